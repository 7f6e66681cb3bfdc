//! The server's side of meeting: a name, a socket, and one client after another let in or refused.

use super::app::ServerApp;
use super::error::{AcceptError, BindError};
use super::login::{CHANNELS_MAX, FRAME};
use super::rundir::RunDir;
use super::session::Session;
use super::welcome::{Admission, turn_away};
use crate::message::{Builder, Schema};
use crate::shm::arena::Arena;
use crate::sys::fork;
use crate::sys::lockfile::LockFile;
use crate::sys::seqpacket::{Credentials, Listener, SeqPacket, poll_readable};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
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
        let own = Credentials::own().uid;
        let others = self.allow.iter().any(|allowed| allowed.uid != own);
        let dir = RunDir::make(self.run_dir.as_deref(), own, others)?;
        let lock_name = format!("{}.lock", self.place_name());
        let lock = LockFile::acquire(dir.fd.as_fd(), &lock_name).map_err(io::Error::from)?;
        let lock = lock.ok_or_else(|| BindError::AddrInUse { path: dir.shown(&lock_name) })?;
        let place = Place { socket_name: self.socket_name(), dir, lock };
        // The lock says that whoever made it is dead.
        place.remove_socket().map_err(io::Error::from)?;
        let arena = self.arena(false)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(io::Error::from)?;
        let listener = Listener::bind(&place.dir.reached(&place.socket_name), others).map_err(io::Error::from)?;
        tracing::info!(app = self.name, "listening at {}", place.dir.shown(&place.socket_name).display());
        Ok(SessionServer {
            arena,
            waiting: Mutex::default(),
            listener,
            stop,
            closed: AtomicBool::new(false),
            fork: fork::generation(),
            _place: place,
            app: self,
        })
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
    listener: Listener,
    /// Connected, but not logged in.
    waiting: Mutex<Vec<Waiting>>,
    stop: EventFd,
    closed: AtomicBool,
    fork: u32,
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

#[derive(Debug)]
struct Waiting {
    socket: SeqPacket,
    peer: Credentials,
    crowd: Crowd,
    until: Instant,
    /// Nobody has looked yet whether it has said something.
    new: bool,
}

/// Who shares places to wait in: each user of the allow-list has its own, so that nobody's silence keeps another out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crowd {
    User(u32),
    /// Everybody else.
    Strangers,
}

/// The crowd, if any, of which one more waits than may. In order of arrival, only the last can have made one.
fn crowded(waiting: &[Waiting]) -> Option<Crowd> {
    let last = waiting.last()?.crowd;
    (waiting.iter().filter(|client| client.crowd == last).count() > PLACES).then_some(last)
}

/// How long a client may take over its first words.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Clients of one crowd that may be connected without having logged in.
const PLACES: usize = 16;

/// How long to leave the listener alone when no descriptor is to be had.
const BREATHER: Duration = Duration::from_millis(50);

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

    /// Stops accepting: whoever waits in [`accept`](Self::accept) wakes with [`AcceptError::Closed`]. Sessions go on.
    pub fn close(&self) {
        // A forked child shares the descriptor that wakes, but not the server.
        if self.fork != fork::generation() {
            return;
        }
        self.closed.store(true, Ordering::Release);
        let _ = self.stop.write(1);
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
        let waiting = match deadline {
            None => Some(self.waiting.lock()),
            Some(at) => self.waiting.try_lock_until(at),
        };
        let mut waiting = waiting.ok_or(AcceptError::TimedOut)?;
        loop {
            // Partner: `close`.
            if self.closed.load(Ordering::Acquire) {
                return Err(AcceptError::Closed);
            }
            let breather = self.let_in(&mut waiting)?;
            let now = Instant::now();
            if let Some(index) = waiting.iter().position(|client| client.until <= now) {
                waiting.remove(index);
                return Err(AcceptError::LoginTimedOut);
            }
            let crowd = crowded(&waiting);
            let first_out = waiting.iter().map(|client| client.until).min();
            let wake_at = [deadline, first_out, breather.then(|| now + BREATHER), crowd.map(|_| now)];
            let wake_at = wake_at.into_iter().flatten().min();
            // Whoever has just connected is about to speak.
            let new = waiting
                .iter()
                .position(|client| client.new)
                .map_or_else(|| self.poll(&waiting, !breather && crowd.is_none(), wake_at), |index| Ok(Some(index)));
            let Some(index) = new? else {
                // Nobody has said anything, and one of too many has to go: whoever had the most time to.
                if let Some(index) = waiting.iter().position(|client| Some(client.crowd) == crowd) {
                    turn_away(&waiting.remove(index).socket);
                    return Err(AcceptError::LoginCrowdedOut);
                }
                if deadline.is_some_and(|at| Instant::now() >= at) {
                    return Err(AcceptError::TimedOut);
                }
                continue;
            };
            // One more byte than a frame, so that a longer one shows.
            let mut frame = [0; FRAME + 1];
            let client = waiting.remove(index);
            let look = if client.new { self.app.options.login_look() } else { Duration::ZERO };
            match client.socket.recv_soon(&mut frame, look) {
                Ok(None) => waiting.insert(index, Waiting { new: false, ..client }),
                Ok(Some(packet)) => {
                    // Other threads may let others in meanwhile.
                    drop(waiting);
                    return self.app.log_in(client.socket, Admission::Listed(client.peer), &frame, packet);
                }
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }

    /// Takes who has connected from the kernel's queue, until one of them is one too many; true if there were no
    /// descriptors for all of them.
    fn let_in(&self, waiting: &mut Vec<Waiting>) -> Result<bool, AcceptError> {
        while crowded(waiting).is_none() {
            match self.listener.accept() {
                Ok(Some(socket)) => {
                    let peer = socket.peer().map_err(io::Error::from)?;
                    let listed = self.app.allow.iter().any(|allowed| allowed.uid == peer.uid);
                    let crowd = if listed { Crowd::User(peer.uid) } else { Crowd::Strangers };
                    let until = Instant::now() + LOGIN_TIMEOUT;
                    waiting.push(Waiting { socket, peer, crowd, until, new: true });
                }
                Ok(None) => return Ok(false),
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    tracing::warn!("no descriptors for another client: waiting");
                    return Ok(true);
                }
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(false)
    }

    /// Waits for someone's words; `None` if something else is to be looked at.
    fn poll(&self, waiting: &[Waiting], listens: bool, until: Option<Instant>) -> io::Result<Option<usize>> {
        let mut fds: Vec<BorrowedFd<'_>> = waiting.iter().map(|client| client.socket.as_fd()).collect();
        fds.push(self.stop.as_fd());
        if listens {
            fds.push(self.listener.as_fd());
        }
        let ready = poll_readable(&fds, until)?;
        Ok(ready.iter().take(waiting.len()).position(|&ready| ready))
    }
}
