//! A server whose clients come as futures.

use super::driver::{self, Driver};
use super::session::AsyncSession;
use crate::session::{AcceptError, SessionServer};
use ::tokio::io::unix::AsyncFd;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

/// A server app that listens in a tokio runtime.
#[derive(Debug)]
pub struct AsyncServer(AsyncFd<Listening>);

#[derive(Debug)]
struct Listening(Arc<SessionServer>);

impl AsRawFd for Listening {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsyncServer {
    /// Has this runtime wait for a server's clients. Others may accept as well.
    ///
    /// # Errors
    /// There is no runtime here, or the kernel refuses.
    pub fn new(server: Arc<SessionServer>) -> io::Result<Self> {
        driver::runtime()?;
        driver::readable(Listening(server)).map(Self)
    }

    /// The next session, driven by this runtime. Dropped before it is ready, it has accepted nobody.
    ///
    /// # Errors
    /// [`AcceptError`]: one per client refused, after which to go on accepting; or that the server was closed.
    pub async fn accept(&self) -> Result<AsyncSession, AcceptError> {
        loop {
            let mut ready = self.0.readable().await?;
            let driver = Arc::new(Driver::default());
            match self.server().try_accept_for(|| Some(driver.clone()))? {
                Some(session) => return Ok(AsyncSession::kept(session, driver)?),
                None => ready.clear_ready(),
            }
        }
    }

    /// The server itself.
    #[must_use]
    pub fn server(&self) -> &Arc<SessionServer> {
        &self.0.get_ref().0
    }
}
