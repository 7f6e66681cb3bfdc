//! The server's side of meeting: a name, a socket, and one client after another let in or refused.

use super::app::ServerApp;
use super::desk::{Asked, Half, Opened, Side};
use super::error::{AcceptError, BindError};
use super::login::{Answer, CHANNELS_MAX, FRAME, Hello, Policy, Refused, VERSION};
use super::rundir::RunDir;
use super::session::Session;
use super::terms::Terms;
use crate::message::{Builder, Schema, Trust};
use crate::shm::arena::Arena;
use crate::shm::view::{View, ViewError};
use crate::sys::fork;
use crate::sys::lockfile::LockFile;
use crate::sys::memory::Backing;
use crate::sys::seqpacket::{Credentials, Listener, Packet, SeqPacket, poll_readable};
use crate::transport::link::{LinkParts, cut_area, view_area};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{UnlinkatFlags, unlinkat};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
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
        if let Some(bad) = self.options.bad_name(&[&self.name]) {
            return Err(BindError::BadName(bad.to_owned()));
        }
        if self.options.opens.len() > CHANNELS_MAX {
            return Err(BindError::TooManyChannels);
        }
        let own = Credentials::own().uid;
        let others = self.allow.iter().any(|allowed| allowed.uid != own);
        let dir = RunDir::make(self.run_dir.as_deref(), own, others)?;
        let lock_name = format!("{}.lock", self.name);
        let lock = LockFile::acquire(dir.fd.as_fd(), &lock_name).map_err(io::Error::from)?;
        let lock = lock.ok_or_else(|| BindError::AddrInUse { path: dir.shown(&lock_name) })?;
        let place = Place { socket_name: self.socket_name(), dir, lock };
        // The lock says that whoever made it is dead.
        place.remove_socket().map_err(io::Error::from)?;
        let arena = self.options.make_arena(false)?;
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
    until: Instant,
}

/// How long a client may take over its first words.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Clients that may be connected without having logged in; more wait in the kernel's queue.
const WAITING_MAX: usize = 64;

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
                waiting.swap_remove(index);
                return Err(AcceptError::LoginTimedOut);
            }
            let first_out = waiting.iter().map(|client| client.until).min();
            let wake_at = [deadline, first_out, breather.then(|| now + BREATHER)].into_iter().flatten().min();
            let listens = !breather && waiting.len() < WAITING_MAX;
            let Some(index) = self.poll(&waiting, listens, wake_at)? else {
                if deadline.is_some_and(|at| Instant::now() >= at) {
                    return Err(AcceptError::TimedOut);
                }
                continue;
            };
            // One more byte than a frame, so that a longer one shows.
            let mut frame = [0; FRAME + 1];
            let client = waiting.swap_remove(index);
            match client.socket.recv(&mut frame) {
                Ok(None) => waiting.push(client),
                Ok(Some(packet)) => return self.log_in(client.socket, &frame, packet),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }

    /// Takes who has connected from the kernel's queue; true if there were no descriptors for all of them.
    fn let_in(&self, waiting: &mut Vec<Waiting>) -> Result<bool, AcceptError> {
        while waiting.len() < WAITING_MAX {
            match self.listener.accept() {
                Ok(Some(socket)) => waiting.push(Waiting { socket, until: Instant::now() + LOGIN_TIMEOUT }),
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

    fn log_in(&self, socket: SeqPacket, frame: &[u8], packet: Packet) -> Result<Session, AcceptError> {
        if packet.len == 0 {
            return Err(AcceptError::Disconnected);
        }
        if packet.truncated && packet.len <= FRAME {
            // Its descriptor found no room in this process.
            return Err(refuse(&socket, Refused::Busy, None));
        }
        let peer = socket.peer().map_err(io::Error::from)?;
        let said = frame.get(..packet.len).unwrap_or(frame);
        let hello = match Hello::from_bytes(said)? {
            Ok(hello) => hello,
            Err(theirs) => {
                let hello = Hello::of_version(theirs);
                return Err(refuse(&socket, Refused::Incompatible(VERSION), Some((&hello, peer))));
            }
        };
        let policy = Policy {
            server: &self.app.name,
            allow: &self.app.allow,
            serves: &self.app.options.serves,
            channels_max: self.app.options.channels_max,
            backing: self.app.options.backing,
        };
        let no = |refused| refuse(&socket, refused, Some((&hello, peer)));
        let trust = policy.judge(&hello, peer.uid, peer.gid).map_err(no)?.trust;
        // Memory with a name can be opened by its user alone.
        if hello.terms.backing == Backing::Named && peer.uid != Credentials::own().uid {
            return Err(no(Refused::NamedNeedsTrust));
        }
        let mut fds = packet.fds.into_iter();
        let (memory, None) = (fds.next(), fds.next()) else {
            return Err(no(Refused::Memory));
        };
        let view = match hello.terms.view(memory, peer.uid, self.app.options.peer_arena_max) {
            Ok(Some(view)) => view,
            Ok(None) => return Err(no(Refused::Memory)),
            Err(ViewError::Bad(bad)) => {
                tracing::warn!(client = hello.client, pid = peer.pid, "memory refused: {bad}");
                return Err(no(Refused::Memory));
            }
            Err(error) => {
                no(Refused::Busy);
                return Err(error.into());
            }
        };
        self.begin(socket, peer, &hello, view, trust)
    }

    fn begin(
        &self,
        socket: SeqPacket,
        peer: Credentials,
        hello: &Hello,
        view: Arc<View>,
        trust: Trust,
    ) -> Result<Session, AcceptError> {
        let options = &self.app.options;
        let foreign = peer.uid != Credentials::own().uid;
        let arena = if foreign { options.make_arena(true)? } else { self.arena.clone() };
        let (mut opened, mut areas, mut opens) = (Opened::default(), Vec::new(), Vec::new());
        for (number, (spec, at)) in Side::Client.login_numbers().zip(&hello.channels) {
            let theirs = view_area(&view, *at)?;
            let (own, at) = cut_area(&arena, options.slots)?;
            areas.push(at);
            opened.incoming.push(Half { number, spec: spec.clone(), own, peer: theirs });
        }
        for (number, spec) in Side::Server.login_numbers().zip(&options.opens) {
            let (own, at) = cut_area(&arena, options.slots)?;
            opens.push((spec.clone(), at));
            opened.asked.push((Asked { number, spec: spec.clone(), own }, None));
        }
        let terms = Terms::of(&arena, options.backing);
        let memory = arena.read_only_fd()?;
        let welcome = Answer::Welcome { terms, areas, opens }.to_bytes();
        let passed: SmallVec<[_; 1]> = memory.iter().map(AsFd::as_fd).collect();
        match socket.send(&welcome, &passed) {
            Ok(()) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(AcceptError::Disconnected),
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let parts = LinkParts {
            socket,
            peer_name: hello.client.clone(),
            peer,
            arena,
            quota: options.loan_quota,
            fence: terms.fence(hello.terms),
        };
        tracing::info!(app = self.app.name, client = parts.peer_name, pid = peer.pid, uid = peer.uid, "session");
        Ok(Session::begin(Side::Server, parts, view, options, trust, opened)?)
    }
}

/// Tells a client why not, and says it to this side's own application.
fn refuse(socket: &SeqPacket, refused: Refused, whom: Option<(&Hello, Credentials)>) -> AcceptError {
    let _ = socket.send(&Answer::Refused(refused).to_bytes(), &[]);
    match whom {
        Some((hello, peer)) => {
            tracing::warn!(client = hello.client, pid = peer.pid, uid = peer.uid, "refused: {refused:?}");
            refused.explain(hello, peer.uid, peer.gid, true).into()
        }
        None => super::error::LoginError::Busy.into(),
    }
}
