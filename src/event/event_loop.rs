//! The loop: a queue of sources that may have something to tell, filled by epoll, by the mail and by the clock. Each source
//! has its turn, so none keeps the others from being heard; a source with nothing to tell costs nothing.

use super::Event;
use super::error::{AddError, RemoveError};
use super::mail::{Mail, Seat, Waker, Words};
use super::slab::{Slab, Token};
use super::source::{ChannelSource, Foreign, Found, SessionSource, Source, What};
use super::upkeep::Upkeep;
use crate::channel::Channel;
use crate::message::Schema;
use crate::session::{Session, SessionServer};
use crate::sys::fork;
use crate::sys::readiness::{Alarm, Epoll, Readiness, Report, Signals};
use nix::errno::Errno;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Waits for everything an application waits for, in one thread, without callbacks.
///
/// Sources are added and removed at any time; each has a [`Token`] by which events name it. A loop may move to another
/// thread; several loops may run in a process. Dropping it hands its sessions back to the watcher's thread and leaves
/// everything else alone.
///
/// Calls that block (`recv`, `request`, `open_channel`, …) still work for channels and sessions in the loop, but the loop
/// tells nothing meanwhile if they are made in its thread; they then wake a hundred times a second, to read the session's
/// socket in the loop's place.
///
/// Events cost the same however many sources there are. Timers come to the millisecond, and late if the application
/// takes its time over other events.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use std::{collections::HashMap, sync::Arc};
/// use strait::event::{Event, EventLoop};
/// use strait::{Channel, SessionServer};
///
/// fn run(server: SessionServer) -> Result<(), Box<dyn std::error::Error>> {
///     let mut events = EventLoop::new()?;
///     events.add_server(&Arc::new(server))?;
///     let (mut sessions, mut channels) = (HashMap::new(), HashMap::new());
///     while let Some(event) = events.wait(None) {
///         match event {
///             Event::Connection { token, session, .. } => {
///                 let channel: Channel<hello::Owned> = session.accept_channel()?;
///                 channels.insert(events.add_channel(&channel)?, channel);
///                 sessions.insert(token, session);
///             }
///             Event::Message { channel, .. } => {
///                 if let Some(message) = channels.get_mut(&channel).map(Channel::try_recv).transpose()?.flatten() {
///                     println!("{:?}", message.get()?);
///                 }
///             }
///             Event::Closed { channel, .. } => drop(channels.remove(&channel)),
///             Event::Disconnection { session, .. } => drop(sessions.remove(&session)),
///             other => eprintln!("{other:?}"),
///         }
///     }
///     Ok(())
/// }
/// # fn main() {}
/// ```
pub struct EventLoop {
    pub(super) epoll: Epoll,
    pub(super) mail: Arc<Mail>,
    pub(super) sources: Slab<Source>,
    /// Those that may have something to tell, each once.
    pub(super) queue: VecDeque<Token>,
    /// Letters being read; kept for its memory.
    pub(super) letters: Vec<Token>,
    pub(super) timers: BTreeSet<(Instant, Token)>,
    /// By descriptor.
    pub(super) foreign: HashMap<i32, Token>,
    /// Descriptors that were told.
    pub(super) told: Vec<Token>,
    pub(super) upkeep: Upkeep,
    /// Turns since the last look at the kernel.
    pub(super) turns: u32,
    pub(super) woken: bool,
    /// For whoever waits on the loop's own descriptor.
    pub(super) alarm: Alarm,
    /// Whether somebody does.
    pub(super) nested: AtomicBool,
    pub(super) fork: u32,
}

/// The mail's number in epoll; not a token.
pub(super) const MAIL: u64 = u64::MAX;
/// The alarm's.
pub(super) const ALARM: u64 = u64::MAX - 1;

impl EventLoop {
    /// A loop with nothing in it.
    ///
    /// # Errors
    /// There are no descriptors left (it takes three).
    pub fn new() -> io::Result<Self> {
        let (epoll, mail, alarm) = (Epoll::new()?, Mail::new()?, Alarm::new()?);
        epoll.add(mail.as_fd(), Readiness::READABLE, Report::Level, MAIL)?;
        epoll.add(alarm.as_fd(), Readiness::READABLE, Report::Level, ALARM)?;
        Ok(Self {
            epoll,
            mail,
            sources: Slab::default(),
            queue: VecDeque::new(),
            letters: Vec::new(),
            timers: BTreeSet::new(),
            foreign: HashMap::new(),
            told: Vec::new(),
            upkeep: Upkeep::default(),
            turns: 0,
            woken: false,
            alarm,
            nested: AtomicBool::new(false),
            fork: fork::generation(),
        })
    }

    /// Lets clients of a server in, without waiting for any of them.
    ///
    /// # Errors
    /// [`AddError`]; the server is not in the loop then.
    pub fn add_server(&mut self, server: &Arc<SessionServer>) -> Result<Token, AddError> {
        self.check()?;
        let token = self.sources.insert_with(|_| What::Server(server.clone()).into());
        self.register(token, server.as_fd(), Readiness::READABLE, Report::Level)
    }

    /// Serves a session in this loop instead of the watcher's thread.
    ///
    /// # Errors
    /// [`AddError`]; the session is where it was then.
    pub fn add_session(&mut self, session: &Session) -> Result<Token, AddError> {
        self.check()?;
        let core = session.core();
        let token = self.sources.insert_with(|token| {
            let seat = Seat::new(&self.mail, token);
            session_source(session, seat).into()
        });
        self.register(token, core.as_fd(), Readiness::READABLE, Report::Level)?;
        let seat = self.seat(token);
        if let Err(error) = core.keep(seat.clone().map(|seat| seat as _)) {
            let _ = self.epoll.delete(core.as_fd().as_raw_fd());
            self.sources.remove(token);
            let already = error.kind() == io::ErrorKind::AlreadyExists;
            return Err(if already { AddError::AlreadyAdded } else { error.into() });
        }
        self.upkeep.arm(core);
        if let (Some(seat), Some(_)) = (seat, core.ended()) {
            seat.leave(Words::ENDED);
        }
        Ok(token)
    }

    /// Tells of a channel's messages, room and end. Its session may be in this loop, where that costs least, or anywhere.
    ///
    /// # Errors
    /// [`AddError`]; the channel is not in the loop then.
    pub fn add_channel<T: Schema>(&mut self, channel: &Channel<T>) -> Result<Token, AddError> {
        self.check()?;
        let port = channel.port();
        let token = self.sources.insert_with(|token| {
            let seat = Seat::new(&self.mail, token);
            let (port, words) = (Arc::downgrade(port), Words::default());
            What::Channel(ChannelSource { port, seat, words, finished: false, closed: false }).into()
        });
        let listens = self.seat(token).is_some_and(|seat| port.listen(seat));
        if !listens {
            self.sources.remove(token);
            return Err(AddError::AlreadyAdded);
        }
        Ok(token)
    }

    /// Tells when a descriptor of the application's own is ready. It is to be removed before it is closed: one that was
    /// not shows as an [`Event::Error`], or when it is removed, or not at all, depending on who else has the file open.
    ///
    /// # Errors
    /// [`AddError`]; `Io` for files that cannot be waited for, such as those on disk.
    pub fn add_fd(&mut self, fd: &impl AsFd, interest: Readiness) -> Result<Token, AddError> {
        self.check()?;
        let raw = fd.as_fd().as_raw_fd();
        let foreign = Foreign { raw, interest, found: Found::Nothing };
        let token = self.sources.insert_with(|_| What::Foreign(foreign).into());
        let token = self.register(token, fd.as_fd(), interest, Report::Once)?;
        if let Some(old) = self.foreign.insert(raw, token) {
            // The kernel had forgotten it: the number stands for something else now.
            self.mark_closed(old);
        }
        Ok(token)
    }

    /// Tells [`Event::Timer`] at a time, at once if that has passed. O(log n).
    pub fn add_timer(&mut self, at: Instant) -> Token {
        let token = self.sources.insert_with(|_| What::Timer(at).into());
        self.timers.insert((at, token));
        self.tell_outside();
        token
    }

    /// Takes signals as events, by number. They are blocked in the calling thread, and in those it starts from now on, as
    /// long as they are in the loop; other threads must block them too, or such a signal ends up there.
    ///
    /// # Errors
    /// [`AddError::Io`] for a number that is no signal, among others.
    pub fn add_signals(&mut self, signals: &[i32]) -> Result<Token, AddError> {
        self.check()?;
        let signals = Signals::new(signals).map_err(io::Error::from)?;
        let token = self.sources.insert_with(|_| What::Signals(signals).into());
        let added = match self.sources.get_mut(token).map(|source| &source.what) {
            Some(What::Signals(signals)) => {
                self.epoll.add(signals.as_fd(), Readiness::READABLE, Report::Level, token.0)
            }
            _ => Err(Errno::EBADF),
        };
        self.added(token, added)
    }

    /// Takes something out of the loop. Nothing more is told of it; a session goes back to the watcher's thread.
    ///
    /// # Errors
    /// [`RemoveError`]
    pub fn remove(&mut self, token: Token) -> Result<(), RemoveError> {
        let source = self.sources.get_mut(token).ok_or(RemoveError::NotFound)?;
        if let What::Session(session) = &source.what {
            // The one thing that can fail comes first.
            session.core.keep(None)?;
        }
        let Some(source) = self.sources.remove(token) else { return Err(RemoveError::NotFound) };
        match source.what {
            What::Channel(channel) => {
                if let Some(port) = channel.port.upgrade() {
                    port.unlisten();
                }
            }
            What::Foreign(foreign) => {
                if self.foreign.get(&foreign.raw) == Some(&token) {
                    self.foreign.remove(&foreign.raw);
                    self.epoll.delete(foreign.raw).map_err(|_| RemoveError::ClosedDescriptor)?;
                }
            }
            What::Server(server) => drop(self.epoll.delete(server.as_fd().as_raw_fd())),
            What::Session(session) => drop(self.epoll.delete(session.core.as_fd().as_raw_fd())),
            What::Signals(signals) => drop(self.epoll.delete(signals.as_fd().as_raw_fd())),
            What::Timer(at) => drop(self.timers.remove(&(at, token))),
        }
        Ok(())
    }

    /// Something with which other threads can end a wait.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker(self.mail.clone())
    }

    /// The next event, waiting until the deadline (for good if there is none, not at all if it has passed); `None` if
    /// nothing happened in time.
    pub fn wait(&mut self, deadline: Option<Instant>) -> Option<Event> {
        let event = self.wait_inside(deadline);
        self.tell_outside();
        event
    }

    fn check(&self) -> Result<(), AddError> {
        if self.fork == fork::generation() { Ok(()) } else { Err(AddError::ForkedProcess) }
    }

    fn register(
        &mut self,
        token: Token,
        fd: BorrowedFd<'_>,
        interest: Readiness,
        report: Report,
    ) -> Result<Token, AddError> {
        let added = self.epoll.add(fd, interest, report, token.0);
        self.added(token, added)
    }

    fn added(&mut self, token: Token, added: nix::Result<()>) -> Result<Token, AddError> {
        let Err(errno) = added else { return Ok(token) };
        self.sources.remove(token);
        Err(if errno == Errno::EEXIST { AddError::AlreadyAdded } else { AddError::Io(errno.into()) })
    }

    fn seat(&mut self, token: Token) -> Option<Arc<Seat>> {
        match &self.sources.get_mut(token)?.what {
            What::Channel(channel) => Some(channel.seat.clone()),
            What::Session(session) => Some(session.seat.clone()),
            What::Foreign(_) | What::Server(_) | What::Signals(_) | What::Timer(_) => None,
        }
    }

    /// Where somebody waits for this loop's descriptor: it has to be readable when there is something to tell, and is
    /// otherwise nobody's concern.
    fn tell_outside(&self) {
        // Partner: `as_fd`, in the same thread or before the loop was handed to this one.
        if !self.nested.load(Ordering::Relaxed) {
            return;
        }
        if !self.queue.is_empty() || !self.told.is_empty() || !self.mail.sleep() {
            self.mail.wish().make();
        }
        let left = self.due().map(|at| at.saturating_duration_since(Instant::now()));
        let _ = self.alarm.set(left);
    }
}

pub(super) fn session_source(session: &Session, seat: Arc<Seat>) -> What {
    let core = session.core().clone();
    What::Session(SessionSource { core, seat, unused: false, at_end: false, ended: false, full: false })
}

impl AsFd for EventLoop {
    /// Readable when [`wait`](Self::wait) may have something to tell. For waiting only.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.nested.store(true, Ordering::Relaxed);
        self.tell_outside();
        self.epoll.as_fd()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        if self.fork != fork::generation() {
            return;
        }
        for source in self.sources.drain() {
            match source.what {
                What::Channel(channel) => drop(channel.port.upgrade().map(|port| port.unlisten())),
                What::Session(session) => {
                    let _ = self.epoll.delete(session.core.as_fd().as_raw_fd());
                    if let Err(error) = session.core.keep(None) {
                        tracing::error!("a session has lost its loop and has no watcher: {error}");
                        session.core.close();
                        // What it has lent must not be reused while the peer lives, of which nobody is told any more.
                        std::mem::forget(session.core);
                    }
                }
                What::Foreign(_) | What::Server(_) | What::Signals(_) | What::Timer(_) => {}
            }
        }
    }
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop").field("timers", &self.timers.len()).finish_non_exhaustive()
    }
}
