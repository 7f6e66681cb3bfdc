//! A session whose socket a task reads.

use super::channel::AsyncChannel;
use super::driver::{self, Driver};
use crate::message::Schema;
use crate::session::{ChannelError, ClientApp, ConnectError, ServerApp, Session};
use crate::transport::ended::Ended;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// A session driven by tokio. A clone is another handle to the same session.
#[derive(Clone)]
pub struct AsyncSession {
    session: Session,
    driver: Arc<Driver>,
}

impl AsyncSession {
    /// Has this runtime drive a session, in place of the watcher's thread.
    ///
    /// # Errors
    /// There is no runtime here, or the session is in an event loop or another runtime (`AlreadyExists`), or the kernel
    /// refuses. The session is where it was then.
    pub fn new(session: Session) -> io::Result<Self> {
        driver::runtime()?;
        let driver = Arc::new(Driver::default());
        session.core().keep(Some(driver.clone()))?;
        Self::kept(session, driver)
    }

    /// A session that the driver keeps already.
    pub(super) fn kept(session: Session, driver: Arc<Driver>) -> io::Result<Self> {
        driver::start(session.core().clone(), driver.clone())?;
        Ok(Self { session, driver })
    }

    /// Connects to a server app and logs in. That takes some hundred microseconds if the server is well, on one of the
    /// threads that tokio has for what blocks.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing is left of the attempt then.
    pub async fn connect(app: &ClientApp, server: &ServerApp) -> Result<Self, ConnectError> {
        let (app, server) = (app.clone(), server.clone());
        let connecting = driver::runtime()?.spawn_blocking(move || app.connect(&server));
        let session = connecting.await.map_err(io::Error::other)??;
        Ok(Self::new(session)?)
    }

    /// As [`Session::open_channel`]: at once if it was opened in the log-in, else on one of the threads that tokio has for
    /// what blocks.
    ///
    /// # Errors
    /// [`ChannelError`]. The session goes on unless it says that it ended.
    pub async fn open_channel<T: Schema + 'static>(
        &self,
        name: impl Into<String>,
        timeout: Duration,
    ) -> Result<AsyncChannel<T>, ChannelError> {
        let (session, name) = (self.session.clone(), name.into());
        let opening = ::tokio::task::spawn_blocking(move || session.open_channel::<T>(name, timeout));
        match opening.await {
            Ok(opened) => opened.map(AsyncChannel::new),
            // The runtime is shutting down.
            Err(_) => Err(ChannelError::TimedOut),
        }
    }

    /// The next channel with messages of type `T` that the peer has opened.
    ///
    /// # Errors
    /// [`ChannelError::Ended`] once the session is over.
    pub async fn accept_channel<T: Schema>(&self) -> Result<AsyncChannel<T>, ChannelError> {
        loop {
            let mut changed = pin!(self.driver.changed.notified());
            // Before the look, so that no change falls in between.
            changed.as_mut().enable();
            match self.session.accept_channel_timeout::<T>(Duration::ZERO) {
                Err(ChannelError::TimedOut) => changed.await,
                other => return other.map(AsyncChannel::new),
            }
        }
    }

    /// Waits for the end of the session, and tells how it ended.
    pub async fn ended(&self) -> Ended {
        loop {
            let mut changed = pin!(self.driver.changed.notified());
            changed.as_mut().enable();
            if let Some(cause) = self.session.end() {
                return cause;
            }
            changed.await;
        }
    }

    /// The session itself. Its calls that block also block the task.
    #[must_use]
    pub fn session(&self) -> &Session {
        &self.session
    }
}

impl std::fmt::Debug for AsyncSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.session.fmt(f)
    }
}
