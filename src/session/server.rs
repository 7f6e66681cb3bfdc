//! The server's side of meeting: a name, a socket, and one client after another let in or refused.

use super::app::ServerApp;
use super::error::{AcceptError, BindError};
use super::lobby::{FirstWords, Lobby};
use super::login::CHANNELS_MAX;
use super::rundir::RunDir;
use super::session::Session;
use super::welcome::Admission;
use crate::message::{Builder, Schema};
use crate::shm::arena::Arena;
use crate::sys::lockfile::LockFile;
use crate::sys::seqpacket::{Listener, own_uid, poll_readable};
use crate::transport::Keeper;
use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl ServerApp {
    /// Takes the app's name and listens.
    ///
    /// A socket that a dead server left is replaced; a living one is [`BindError::AddrInUse`].
    ///
    /// # Errors
    /// [`BindError`]; nothing is left of the attempt then.
    pub fn bind(self) -> Result<SessionServer, BindError> {
        if let Some(bad) = self.bad_name() {
            return Err(BindError::BadName(bad));
        }
        if self.options.opens.len() > CHANNELS_MAX {
            return Err(BindError::TooManyChannels);
        }
        let own = own_uid();
        let others = self.allow.iter().any(|allowed| allowed.uid != own);
        let dir = RunDir::make(self.run_dir.as_deref(), own, others)?;
        let lock_name = format!("{}.lock", self.place_name());
        let lock = LockFile::acquire(dir.fd.as_fd(), &lock_name).map_err(io::Error::from)?;
        let lock = lock.ok_or_else(|| BindError::AddrInUse { path: dir.shown(&lock_name) })?;
        let place = Place { socket_name: self.socket_name(), dir, lock };
        // The lock says that whoever made it is dead.
        place.remove_socket().map_err(io::Error::from)?;
        let arena = self.arena(false)?;
        let listener = Listener::bind(&place.dir.reached(&place.socket_name), others).map_err(io::Error::from)?;
        tracing::info!(app = self.name, "listening at {}", place.dir.shown(&place.socket_name).display());
        let lobby = Lobby::new(listener, &self).map_err(io::Error::from)?;
        Ok(SessionServer { arena, lobby, _place: place, app: self })
    }
}

/// A server app that listens. Threads may share it and accept at once.
///
/// Dropping it frees the name; sessions that were accepted go on.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use strait::{AcceptError, SessionServer};
///
/// fn run(server: &SessionServer) {
///     loop {
///         match server.accept() {
///             Ok(session) => {
///                 std::thread::spawn(move || session.accept_channel::<hello::Owned>());
///             }
///             Err(AcceptError::Closed) => return,
///             Err(refused) => eprintln!("{refused}"),
///         }
///     }
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct SessionServer {
    app: ServerApp,
    arena: Arena,
    lobby: Lobby,
    _place: Place,
}

/// The name in the run directory. The socket goes before the lock does.
#[derive(Debug)]
struct Place {
    dir: RunDir,
    socket_name: String,
    lock: LockFile,
}

impl Place {
    fn remove_socket(&self) -> nix::Result<()> {
        match unlinkat(&self.dir.fd, self.socket_name.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.lock.is_held() {
            let _ = self.remove_socket();
        }
    }
}

impl SessionServer {
    /// The next session, waiting as long as it takes.
    ///
    /// # Errors
    /// [`AcceptError`]: one per client refused, after which to go on accepting; or that the server was closed.
    pub fn accept(&self) -> Result<Session, AcceptError> {
        self.accept_until(None)
    }

    /// As [`accept`](Self::accept), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`AcceptError`], `TimedOut` among them.
    pub fn accept_timeout(&self, timeout: Duration) -> Result<Session, AcceptError> {
        self.accept_until(Instant::now().checked_add(timeout))
    }

    /// The next session if one is ready. Never blocks.
    ///
    /// To wait for it together with other things, wait until [`as_fd`](AsFd::as_fd) is readable and call this until it
    /// says `None`; or add the server to an [`EventLoop`](crate::event::EventLoop).
    ///
    /// # Errors
    /// [`AcceptError`], as for [`accept`](Self::accept).
    pub fn try_accept(&self) -> Result<Option<Session>, AcceptError> {
        self.try_accept_for(|| None)
    }

    /// As [`try_accept`](Self::try_accept), for a session that is kept by somebody from the start.
    pub(crate) fn try_accept_for(
        &self,
        keeper: impl FnOnce() -> Option<Arc<dyn Keeper>>,
    ) -> Result<Option<Session>, AcceptError> {
        let Some(FirstWords { socket, peer, frame, packet }) = self.lobby.next()? else { return Ok(None) };
        self.app.log_in(socket, Admission::Listed(peer), &frame, packet, keeper).map(Some)
    }

    /// Stops accepting: whoever waits in [`accept`](Self::accept) wakes with [`AcceptError::Closed`]. Sessions go on.
    pub fn close(&self) {
        self.lobby.close();
    }

    /// The arena that messages for clients of this user are built in: what is built here once can be sent to all of
    /// them.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Begins a message that can be sent in every session with a client of this user.
    #[must_use]
    pub fn create_msg<T: Schema>(&self) -> Builder<T> {
        Builder::new(&self.arena)
    }

    /// Begins such a message of about `bytes` bytes, in one segment.
    #[must_use]
    pub fn create_msg_with_capacity<T: Schema>(&self, bytes: usize) -> Builder<T> {
        Builder::with_capacity(&self.arena, bytes)
    }

    fn accept_until(&self, deadline: Option<Instant>) -> Result<Session, AcceptError> {
        loop {
            if let Some(session) = self.try_accept_for(|| None)? {
                return Ok(session);
            }
            if !poll_readable(&[self.as_fd()], deadline)?.contains(&true)
                && deadline.is_some_and(|at| Instant::now() >= at)
            {
                return Err(AcceptError::TimedOut);
            }
        }
    }
}

impl AsFd for SessionServer {
    /// Readable when [`try_accept`](Self::try_accept) has something to do. For waiting only.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lobby.as_fd()
    }
}
