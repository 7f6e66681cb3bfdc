//! A session in use: its channels, its arena, its peer, its end.

use super::app::{ChannelSpec, Options, is_name};
use super::desk::{AtDesk, Desk, Half, Side};
use super::error::ChannelError;
use crate::channel::Channel;
use crate::message::{Schema, Trust};
use crate::shm::arena::Arena;
use crate::shm::view::View;
use crate::sys::seqpacket::Credentials;
use crate::transport::control::{Control, Refusal};
use crate::transport::ended::Ended;
use crate::transport::link::{LinkParts, cut_area, view_area};
use crate::transport::{Lane, Link};
use crate::wait::Wait;
use std::io;
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
}

impl Session {
    /// Begins a session that both sides have agreed on, with the channels they opened.
    pub(super) fn begin(
        side: Side,
        parts: LinkParts,
        view: Arc<View>,
        serves: Vec<ChannelSpec>,
        options: &Options,
        trust: Trust,
        opened: Vec<Half>,
    ) -> io::Result<Self> {
        let channels = opened.iter().map(|half| (half.number, half.own.clone())).collect();
        let desk = Desk::new(side, serves, options.channels_max, options.slots, opened);
        let link = Link::new(parts, view, channels, Box::new(AtDesk(desk.clone())))?;
        Ok(Self { link, desk, trust, wait: options.wait })
    }

    /// Opens a channel that the peer serves under this name: so far servers serve, and clients open. At once if it was opened in the log-in
    /// ([`ClientApp::channel`](crate::ClientApp::channel)), else one round trip to the peer's watcher, which answers
    /// whatever its application is doing; at most `timeout`.
    ///
    /// # Errors
    /// [`ChannelError`]. The session goes on unless it says that it ended.
    pub fn open_channel<T: Schema>(
        &self,
        name: impl Into<String>,
        timeout: Duration,
    ) -> Result<Channel<T>, ChannelError> {
        let spec = ChannelSpec { name: name.into(), schema: T::ID };
        if !is_name(&spec.name) {
            return Err(ChannelError::BadName(spec.name));
        }
        if self.link.core().is_forked() {
            return Err(self.ended());
        }
        if let Some(half) = self.desk.take_now(|waiting| *waiting == spec) {
            return Ok(self.channel(half));
        }
        let core = self.link.core();
        if core.ended().is_some() {
            return Err(self.ended());
        }
        if !self.desk.may_open(core) {
            return Err(ChannelError::TooMany);
        }
        let (own, area) = cut_area(core.arena(), self.desk.slots()).map_err(|_| ChannelError::NoMemory)?;
        let number = self.desk.ask(|number| {
            // The number is new, so this is not refused.
            let _ = core.add_channel(number, own.clone());
            core.send(&Control::OpenChannel { number, schema: spec.schema, area, name: spec.name.clone() });
        });
        let answer = self.desk.answer(number, Instant::now().checked_add(timeout));
        match answer {
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

    fn accept_until<T: Schema>(&self, deadline: Option<Instant>) -> Result<Channel<T>, ChannelError> {
        if self.link.core().is_forked() {
            return Err(self.ended());
        }
        match self.desk.take(|waiting| waiting.schema == T::ID, deadline) {
            Some(half) => Ok(self.channel(half)),
            None if self.link.core().ended().is_some() => Err(self.ended()),
            None => Err(ChannelError::TimedOut),
        }
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

    /// Who the kernel says is at the other end.
    #[must_use]
    pub fn peer(&self) -> Credentials {
        self.link.core().peer()
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

    fn channel<T: Schema>(&self, half: Half) -> Channel<T> {
        let Half { number, spec, own, peer } = half;
        Channel::new(Lane::new(&self.link, number, spec.name, own, peer, self.wait), self.trust)
    }

    fn ended(&self) -> ChannelError {
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
            Refusal::Closed => ChannelError::Ended { peer: self.peer_name().to_owned(), cause: Ended::PeerClosed },
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("peer", &self.peer_name()).field("end", &self.end()).finish_non_exhaustive()
    }
}
