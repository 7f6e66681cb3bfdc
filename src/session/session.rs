//! A session in use: its channels, its arena, its peer, its end.

use super::app::{ChannelSpec, is_name};
use super::desk::{Asked, AtDesk, Desk, Half, Manners, Offered, Opened, Side};
use super::error::{ChannelError, CloseError};
use super::introduction::Introduction;
use super::offer::{METADATA_MAX, Offer};
use super::options::Options;
use crate::channel::Channel;
use crate::message::{Body, Builder, Message, Schema, Trust};
use crate::shm::arena::Arena;
use crate::shm::loans::LendProblem;
use crate::shm::view::View;
use crate::sys::pidfd;
use crate::sys::seqpacket::Credentials;
use crate::transport::control::{Control, MetadataAt, Refusal, Wish};
use crate::transport::ended::Ended;
use crate::transport::link::{LinkParts, Meeting, view_area};
use crate::transport::{Core, Keeper, Lane, Link};
use crate::wait::Wait;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A session between two apps: what channels are opened in.
///
/// A clone is another handle to the same session; threads may share it. It ends when either side closes it, drops
/// every handle, channel and received message of it, or dies.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use std::time::Duration;
/// use strait::{ChannelError, Session};
///
/// fn talk(session: &Session) -> Result<(), ChannelError> {
///     let ours = session.open_channel::<hello::Owned>("main", Duration::from_secs(1))?;
///     println!("to {} (pid {})", session.peer_name(), session.peer().pid);
///     session.close();
///     Ok(())
/// }
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct Session {
    link: Link,
    desk: Arc<Desk>,
    trust: Trust,
    wait: Wait,
    inline_max: usize,
    introductions: Arc<Vec<Introduction>>,
}

/// What a process runs, as far as it can be seen.
pub(super) fn program_of(pid: i32) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe"))
}

/// How often a session that is being drained is looked at.
const DRAIN_LOOK: Duration = Duration::from_millis(2);

impl Session {
    /// Begins a session that both sides have agreed on, with the channels they opened.
    pub(super) fn begin(
        side: Side,
        parts: LinkParts,
        view: Arc<View>,
        options: &Options,
        trust: Trust,
        mut opened: Opened,
        keeper: Option<Arc<dyn Keeper>>,
    ) -> io::Result<Self> {
        let (channels, answers) = (opened.areas(), std::mem::take(&mut opened.answers));
        let desk = Desk::new(side, Manners::of(options), opened);
        let link = Link::new(parts, view, channels, Box::new(AtDesk(desk.clone())), keeper)?;
        answers.iter().for_each(|answer| link.core().send(answer));
        let introductions = options.introductions.clone();
        let session = Self { link, desk, trust, wait: options.wait, inline_max: options.inline_max, introductions };
        session.introductions.iter().for_each(|introduction| session.introduce(introduction));
        Ok(session)
    }

    /// Asks for a channel that nobody wants yet. What fails is tried again when somebody does, who hears why.
    fn introduce(&self, introduction: &Introduction) {
        if let Ok(asked) = self.request(introduction.spec.clone(), || introduction.lend(self).map(Some)) {
            self.desk.keep_initial(asked);
        }
    }

    /// Opens a channel. Under a name that the peer serves it is there at once if it was opened in the log-in
    /// ([`ClientApp::channel`](crate::ClientApp::channel), [`ServerApp::opens`](crate::ServerApp::opens)), else after
    /// one round trip to the peer's watcher, which answers whatever its application is doing. Under another name the
    /// peer's application decides, if it takes [offers](crate::ServerApp::offers). Waits at most `timeout`.
    ///
    /// # Errors
    /// [`ChannelError`]. The session goes on unless it says that it ended.
    pub fn open_channel<T: Schema>(
        &self,
        name: impl Into<String>,
        timeout: Duration,
    ) -> Result<Channel<T>, ChannelError> {
        let spec = self.spec::<T>(name.into())?;
        let introduction = self.introductions.iter().find(|introduction| introduction.spec == spec);
        let asked = match self.desk.take_initial(&spec) {
            Some(asked) => asked,
            None => self.request(spec, || introduction.map(|introduction| introduction.lend(self)).transpose())?,
        };
        self.opened(asked, timeout)
    }

    /// As [`open_channel`](Self::open_channel), with a message for whoever judges it: of at most 64 KiB, built in this
    /// session's arena, on loan to the peer until it has read it. A peer that serves the name opens the channel without
    /// looking at the message.
    ///
    /// # Errors
    /// [`ChannelError`]. The session goes on unless it says that it ended.
    pub fn open_channel_with<T: Schema, M: Schema>(
        &self,
        name: impl Into<String>,
        metadata: &Message<M>,
        timeout: Duration,
    ) -> Result<Channel<T>, ChannelError> {
        let spec = self.spec::<T>(name.into())?;
        self.opened(self.request(spec, || self.lend_metadata(metadata).map(Some))?, timeout)
    }

    fn spec<T: Schema>(&self, name: String) -> Result<ChannelSpec, ChannelError> {
        if !is_name(&name) {
            return Err(ChannelError::BadName(name));
        }
        if self.core().is_forked() {
            return Err(self.ended());
        }
        Ok(ChannelSpec { name, schema: T::ID })
    }

    pub(super) fn lend_metadata<M: Schema>(&self, metadata: &Message<M>) -> Result<MetadataAt, ChannelError> {
        let Body::Lent(frozen) = metadata.body() else {
            return Err(ChannelError::AttachedToMetadata);
        };
        if !frozen.blobs().is_empty() || metadata.fds().is_some() {
            return Err(ChannelError::AttachedToMetadata);
        }
        if !frozen.arena().same(self.core().arena()) {
            return Err(ChannelError::ForeignArena);
        }
        let bytes = metadata.segments().map(<[u8]>::len).sum();
        if bytes > METADATA_MAX {
            return Err(ChannelError::MetadataTooLarge { bytes, limit: METADATA_MAX });
        }
        match self.core().loans().lend(frozen) {
            // At most 512, or it would not be frozen.
            Ok(handle) => Ok(MetadataAt { handle, segments: frozen.segment_count() as u16, schema: M::ID }),
            Err(LendProblem::Quota(exceeded)) => Err(exceeded.into()),
            Err(LendProblem::Over) => Err(self.ended()),
        }
    }

    /// Asks the peer for a channel.
    fn request(
        &self,
        spec: ChannelSpec,
        metadata: impl FnOnce() -> Result<Option<MetadataAt>, ChannelError>,
    ) -> Result<Asked, ChannelError> {
        let core = self.core();
        if core.ended().is_some() {
            return Err(self.ended());
        }
        if !self.desk.may_open(core) {
            return Err(ChannelError::TooMany);
        }
        let (own, area) = core.cut_area(self.desk.slots())?;
        let metadata = metadata()?;
        let number = self.desk.ask(|number| {
            // The number is new, so this is not refused.
            let _ = core.add_channel(number, own.clone());
            let (schema, name) = (spec.schema, spec.name.clone());
            core.send(&Control::OpenChannel(Wish { number, schema, area, name, metadata }));
        });
        Ok(Asked { number, spec, own })
    }

    /// Waits for the peer's answer.
    fn opened<T: Schema>(&self, asked: Asked, timeout: Duration) -> Result<Channel<T>, ChannelError> {
        let core = self.core();
        let Asked { number, spec, own } = asked;
        match self.desk.answer(core, number, Instant::now().checked_add(timeout)) {
            None => Err(if core.ended().is_some() { self.ended() } else { ChannelError::TimedOut }),
            Some(Err(refusal)) => {
                core.forget_channel(number);
                Err(self.refused(refusal, spec))
            }
            Some(Ok(area)) => match view_area(self.link.view(), area) {
                Ok(peer) => Ok(self.channel(Half { number, spec, own, peer })),
                Err(broken) => {
                    core.misbehaved(broken);
                    Err(self.ended())
                }
            },
        }
    }

    /// The next channel with messages of type `T` that the peer has opened, waiting as long as it takes. Channels of one
    /// type tell themselves apart by [`name`](Channel::name). A channel counts as opened for the peer before it is accepted
    /// here: what the peer sends meanwhile waits in it.
    ///
    /// # Errors
    /// [`ChannelError::Ended`] once the session is over.
    pub fn accept_channel<T: Schema>(&self) -> Result<Channel<T>, ChannelError> {
        self.accept_until(None)
    }

    /// As [`accept_channel`](Self::accept_channel), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`ChannelError::Ended`] once the session is over, [`ChannelError::TimedOut`] if none was opened in time.
    pub fn accept_channel_timeout<T: Schema>(&self, timeout: Duration) -> Result<Channel<T>, ChannelError> {
        self.accept_until(Instant::now().checked_add(timeout))
    }

    /// As [`accept_channel_timeout`](Self::accept_channel_timeout), for a channel of this name alone.
    ///
    /// # Errors
    /// [`ChannelError::Ended`] once the session is over, [`ChannelError::TimedOut`] if none was opened in time.
    pub fn accept_channel_named<T: Schema>(&self, name: &str, timeout: Duration) -> Result<Channel<T>, ChannelError> {
        let fits = |waiting: &ChannelSpec| waiting.schema == T::ID && waiting.name == name;
        self.accept_fitting(fits, Instant::now().checked_add(timeout))
    }

    fn accept_until<T: Schema>(&self, deadline: Option<Instant>) -> Result<Channel<T>, ChannelError> {
        self.accept_fitting(|waiting| waiting.schema == T::ID, deadline)
    }

    fn accept_fitting<T: Schema>(
        &self,
        fits: impl Fn(&ChannelSpec) -> bool,
        deadline: Option<Instant>,
    ) -> Result<Channel<T>, ChannelError> {
        if self.core().is_forked() {
            return Err(self.ended());
        }
        let half = self.desk.take(self.core(), fits, deadline);
        half.map(|half| self.channel(half)).ok_or_else(|| self.nothing_came())
    }

    /// The next channel that the peer wants to open under a name that this side does not serve, waiting as long as it
    /// takes. Needs [`ServerApp::offers`](crate::ServerApp::offers) or [`ClientApp::offers`](crate::ClientApp::offers).
    ///
    /// # Errors
    /// [`ChannelError::Ended`] once the session is over.
    pub fn accept_offer(&self) -> Result<Offer, ChannelError> {
        self.accept_offer_until(None)
    }

    /// As [`accept_offer`](Self::accept_offer), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`ChannelError::Ended`] once the session is over, [`ChannelError::TimedOut`] if none came in time.
    pub fn accept_offer_timeout(&self, timeout: Duration) -> Result<Offer, ChannelError> {
        self.accept_offer_until(Instant::now().checked_add(timeout))
    }

    fn accept_offer_until(&self, deadline: Option<Instant>) -> Result<Offer, ChannelError> {
        if self.core().is_forked() {
            return Err(self.ended());
        }
        let offered = self.desk.take_offer(self.core(), deadline);
        offered.map(|offered| Offer::new(self.clone(), offered)).ok_or_else(|| self.nothing_came())
    }

    fn nothing_came(&self) -> ChannelError {
        if self.core().ended().is_some() { self.ended() } else { ChannelError::TimedOut }
    }

    /// Makes a channel of what the peer has offered, or tells it why not.
    pub(super) fn accept_offered<T: Schema>(&self, offered: Offered) -> Result<Channel<T>, ChannelError> {
        let core = self.core();
        if core.ended().is_some() {
            return Err(self.ended());
        }
        let Offered { number, spec, peer, metadata } = offered;
        if let Some(metadata) = metadata {
            core.owe(metadata.handle);
        }
        let refuse = |refusal, error| {
            core.send(&Control::ChannelRefused { number, refusal });
            Err(error)
        };
        if spec.schema != T::ID {
            let (channel, theirs) = (spec.name, spec.schema);
            let error = ChannelError::WrongSchema { channel, ours: T::ID, theirs };
            return refuse(Refusal::OtherSchema(T::ID), error);
        }
        if !self.desk.may_open(core) {
            return refuse(Refusal::TooMany, ChannelError::TooMany);
        }
        let (own, area) = match core.cut_area(self.desk.slots()) {
            Ok(cut) => cut,
            Err(problem) => return refuse(problem.into(), problem.into()),
        };
        // Numbers are checked when they are offered, so this is not refused.
        let _ = core.add_channel(number, own.clone());
        core.send(&Control::ChannelOpened { number, area });
        Ok(self.channel(Half { number, spec, own, peer }))
    }

    /// Begins a message in this side's arena: metadata, or one to be sent in any channel of the session.
    #[must_use]
    pub fn create_msg<M: Schema>(&self) -> Builder<M> {
        Builder::new(self.arena())
    }

    /// The arena that this side's messages of this session are built in.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        self.link.core().arena()
    }

    /// The name of the app at the other end.
    #[must_use]
    pub fn peer_name(&self) -> &str {
        self.link.core().peer_name()
    }

    /// Who the kernel says is at the other end: whoever connected, or listened; over a socket that both were given,
    /// whoever sent the first words.
    #[must_use]
    pub fn peer(&self) -> Credentials {
        self.link.core().peer()
    }

    /// The process at the other end, held by descriptor: it can be waited for (`poll`) and be sent signals without hitting
    /// another that was given its number.
    ///
    /// # Errors
    /// The kernel's; `NotFound` if the process, or the session, is over.
    pub fn peer_pidfd(&self) -> io::Result<OwnedFd> {
        let core = self.core();
        if core.is_forked() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let asked = match core.meeting() {
            Meeting::ByName => pidfd::of_peer(core.as_fd()),
            Meeting::Given => Err(Errno::ENOPROTOOPT),
        };
        match asked {
            Ok(found) => return Ok(found),
            // What the socket does not know goes by number.
            Err(Errno::ENOPROTOOPT) => {}
            Err(Errno::ESRCH | Errno::EINVAL) => return Err(io::ErrorKind::NotFound.into()),
            Err(errno) => return Err(errno.into()),
        }
        let found = pidfd::of_number(self.peer().pid);
        // While the peer's end of the socket is open it lives, so its number was its own when it was looked up.
        match found {
            Ok(found) if core.ended().is_none() && !pidfd::has_hung_up(core.as_fd()) => Ok(found),
            Ok(_) | Err(Errno::ESRCH) => Err(io::ErrorKind::NotFound.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The program that the peer runs, from `/proc/PID/exe`. Advisory: see
    /// [`ClientApp::program`](crate::ClientApp::program).
    ///
    /// # Errors
    /// The kernel's: this process may not look, or the peer is gone.
    pub fn peer_program(&self) -> io::Result<PathBuf> {
        program_of(self.peer().pid)
    }

    /// How many messages, and how many bytes, the peer has on loan from this side.
    #[must_use]
    pub fn on_loan(&self) -> (usize, u64) {
        let core = self.link.core();
        if core.is_forked() { (0, 0) } else { core.loans().outstanding() }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<Ended> {
        self.link.core().ended()
    }

    /// Ends the session for both sides. Whoever waits in it, in any thread, wakes with [`Ended::Closed`]. The peer may
    /// still receive what was sent, and everyone keeps what they have received. Never blocks.
    pub fn close(&self) {
        self.link.core().close();
    }

    /// Ends the session for both sides once the peer has received everything that was sent, and has returned everything
    /// it was lent; after `timeout` in any case. Looks every few milliseconds. What other threads send meanwhile is
    /// waited for as well.
    ///
    /// # Errors
    /// [`CloseError`]: how the session ended otherwise.
    pub fn close_timeout(&self, timeout: Duration) -> Result<(), CloseError> {
        let deadline = Instant::now().checked_add(timeout);
        let core = self.core();
        loop {
            if let Some(cause) = core.ended() {
                return Err(CloseError::Ended { peer: self.peer_name().to_owned(), cause });
            }
            core.attend();
            if core.is_drained() {
                core.close();
                return Ok(());
            }
            let now = Instant::now();
            if deadline.is_some_and(|at| at <= now) {
                core.close();
                let (loans, bytes) = self.on_loan();
                return Err(CloseError::TimedOut { loans, bytes });
            }
            let look = now + DRAIN_LOOK;
            self.desk.sleep(deadline.map_or(look, |at| at.min(look)));
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        self.link.core()
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) fn trust(&self) -> Trust {
        self.trust
    }

    fn channel<T: Schema>(&self, half: Half) -> Channel<T> {
        let Half { number, spec, own, peer } = half;
        Channel::new(Lane::new(&self.link, number, spec.name, own, peer, self.wait), self.trust, self.inline_max)
    }

    pub(super) fn ended(&self) -> ChannelError {
        let cause = self.end().unwrap_or(Ended::Closed);
        ChannelError::Ended { peer: self.peer_name().to_owned(), cause }
    }

    fn refused(&self, refusal: Refusal, spec: ChannelSpec) -> ChannelError {
        let ChannelSpec { name: channel, schema: ours } = spec;
        match refusal {
            Refusal::UnknownName => ChannelError::UnknownChannel { channel },
            Refusal::OtherSchema(theirs) => ChannelError::WrongSchema { channel, ours, theirs },
            Refusal::TooMany => ChannelError::TooMany,
            Refusal::NoMemory => ChannelError::NoMemory,
            Refusal::Closed => {
                // Its goodbye is on its way: everyone here is to say the same from now on.
                self.core().end(Ended::PeerClosed);
                self.ended()
            }
            Refusal::Rejected(reason) => ChannelError::Rejected { channel, reason },
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("peer", &self.peer_name()).field("end", &self.end()).finish_non_exhaustive()
    }
}
