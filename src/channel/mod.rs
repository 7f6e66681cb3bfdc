//! L4: a conversation in one schema between two processes: messages, requests, replies. Knows no sockets and no log-in;
//! its rules are a pure state machine ([`conversation`]), the loop around them is here.

mod conversation;
mod error;

pub use error::{RecvError, RequestError, SendError};

use crate::message::{Builder, Message, OpenProblem, Opening, Received, Schema, Shelf, Trust};
use crate::shm::arena::Arena;
use crate::shm::handle::Handle;
use crate::shm::loans::LendProblem;
use crate::shm::view::Borrowed;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::transport::descriptor::Envelope;
use crate::transport::lane::WaitStats;
use crate::transport::port::Port;
use crate::transport::{Lane, LaneError};
use crate::wait::{Deadline, Wait};
use conversation::{Conversation, Verdict};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One end of a channel that carries messages with root `T`, in both directions.
///
/// Owned by one thread at a time (`Send`, all methods take `&mut self`). Everything that was sent before the other
/// side closed, or died, can still be received. Dropping it closes the channel; messages received over it stay.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use std::time::Duration;
/// use strait::{Channel, RequestError};
///
/// fn ask(channel: &mut Channel<hello::Owned>) -> Result<(), Box<dyn std::error::Error>> {
///     let mut question = channel.create_msg();
///     question.init_root().set_greet("world");
///     match channel.request(&question.freeze()?, Duration::from_millis(50)) {
///         Ok(answer) => println!("{:?}", answer.get()?),
///         Err(RequestError::TimedOut) => println!("no answer"),
///         Err(other) => return Err(other.into()),
///     }
///     Ok(())
/// }
/// # fn main() {}
/// ```
pub struct Channel<T: Schema> {
    lane: Lane,
    trust: Trust,
    shelf: Arc<Shelf>,
    conversation: Conversation,
    /// What no other channel of this process has.
    serial: u64,
    root: PhantomData<fn() -> T>,
}

impl<T: Schema> Channel<T> {
    pub(crate) fn new(lane: Lane, trust: Trust) -> Self {
        static SERIALS: AtomicU64 = AtomicU64::new(0);
        let serial = SERIALS.fetch_add(1, Ordering::Relaxed);
        Self { lane, trust, shelf: Arc::default(), conversation: Conversation::default(), serial, root: PhantomData }
    }

    /// This side's arena, which its messages and their blobs are built in.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        self.port().core().arena()
    }

    /// Begins a message in this side's arena.
    #[must_use]
    pub fn create_msg(&self) -> Builder<T> {
        Builder::new(self.arena())
    }

    /// Begins a message of about `bytes` bytes, in one segment.
    #[must_use]
    pub fn create_msg_with_capacity(&self, bytes: usize) -> Builder<T> {
        Builder::with_capacity(self.arena(), bytes)
    }

    /// Sends a message, waiting for room as long as it takes. Returns its number.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent then.
    pub fn send(&mut self, message: &Message<T>) -> Result<u64, SendError> {
        self.send_until(message, None, Deadline::Never)
    }

    /// As [`send`](Self::send), waiting for room at most `timeout`.
    ///
    /// # Errors
    /// [`SendError`], `TimedOut` among them; nothing was sent then.
    pub fn send_timeout(&mut self, message: &Message<T>, timeout: Duration) -> Result<u64, SendError> {
        self.send_until(message, None, Deadline::After(timeout))
    }

    /// Sends a message if there is room at once. Never blocks.
    ///
    /// # Errors
    /// [`SendError`], `Full` among them; nothing was sent then.
    pub fn try_send(&mut self, message: &Message<T>) -> Result<u64, SendError> {
        self.try_send_as(message, None)
    }

    fn try_send_as(&mut self, message: &Message<T>, in_reply_to: Option<u64>) -> Result<u64, SendError> {
        let envelope = self.envelope(message, in_reply_to)?;
        match self.lane.try_send(envelope) {
            Ok(true) => Ok(self.conversation.sent(envelope.id)),
            Ok(false) => Err(self.unlend(envelope, SendError::Full)),
            Err(ended) => Err(self.unlend(envelope, ended.into())),
        }
    }

    /// Answers a message, waiting for room as long as it takes. Two sides that both send and never receive wait for each
    /// other: where that can be, take a form with a deadline.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent then.
    pub fn reply(&mut self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        self.reply_until(to, message, Deadline::Never)
    }

    /// As [`reply`](Self::reply), waiting for room at most `timeout`.
    ///
    /// # Errors
    /// [`SendError`], `TimedOut` among them; nothing was sent then.
    pub fn reply_timeout(
        &mut self,
        to: &Received<T>,
        message: &Message<T>,
        timeout: Duration,
    ) -> Result<u64, SendError> {
        self.reply_until(to, message, Deadline::After(timeout))
    }

    /// Answers a message if there is room at once. Never blocks.
    ///
    /// # Errors
    /// [`SendError`], `Full` among them; nothing was sent then.
    pub fn try_reply(&mut self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        let in_reply_to = self.replies(to)?;
        self.try_send_as(message, Some(in_reply_to))
    }

    fn reply_until(&mut self, to: &Received<T>, message: &Message<T>, deadline: Deadline) -> Result<u64, SendError> {
        let in_reply_to = self.replies(to)?;
        self.send_until(message, Some(in_reply_to), deadline)
    }

    /// The number to answer; of another channel's message the peer would take the answer for a breach.
    fn replies(&self, to: &Received<T>) -> Result<u64, SendError> {
        if to.channel() == self.serial { Ok(to.id()) } else { Err(SendError::NotReceivedHere) }
    }

    /// Sends a message and waits for the answer to it. Other messages that come meanwhile are kept, in order, for
    /// [`recv`](Self::recv); an answer that comes after `timeout` is dropped.
    ///
    /// # Errors
    /// [`RequestError`]. After `TimedOut` the channel can be used as before.
    pub fn request(&mut self, message: &Message<T>, timeout: Duration) -> Result<Received<T>, RequestError> {
        let mut deadline = Deadline::After(timeout);
        let id = self.send_by(message, None, &mut deadline)?;
        loop {
            if self.conversation.keeps_no_more() {
                self.conversation.give_up(id);
                return Err(RequestError::Backlog);
            }
            let envelope = match self.lane.recv(&mut deadline) {
                Ok(envelope) => envelope,
                Err(LaneError::TimedOut) => {
                    self.conversation.give_up(id);
                    return Err(RequestError::TimedOut);
                }
                Err(LaneError::Ended(ended)) => return Err(RequestError::Ended(ended)),
            };
            match self.judge(&envelope)? {
                Verdict::Late => self.send_home(envelope)?,
                Verdict::Deliver if envelope.in_reply_to == Some(id) => return Ok(self.open(envelope)?),
                Verdict::Deliver => self.conversation.keep(envelope),
            }
        }
    }

    /// The next message, waiting as long as it takes.
    ///
    /// # Errors
    /// [`RecvError`], once everything that was sent has been received.
    pub fn recv(&mut self) -> Result<Received<T>, RecvError> {
        self.recv_until(Deadline::Never)
    }

    /// The next message, waiting at most `timeout`.
    ///
    /// # Errors
    /// [`RecvError`], `TimedOut` among them.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Received<T>, RecvError> {
        self.recv_until(Deadline::After(timeout))
    }

    /// The next message if there is one already. Never blocks.
    ///
    /// # Errors
    /// [`RecvError`], once everything that was sent has been received.
    pub fn try_recv(&mut self) -> Result<Option<Received<T>>, RecvError> {
        if let Some(kept) = self.conversation.next_kept() {
            return self.open(kept).map(Some);
        }
        while let Some(envelope) = self.lane.try_recv()? {
            match self.judge(&envelope)? {
                Verdict::Deliver => return self.open(envelope).map(Some),
                Verdict::Late => self.send_home(envelope)?,
            }
        }
        Ok(None)
    }

    /// How this end waits from now on.
    pub fn set_wait(&mut self, wait: Wait) {
        self.lane.set_wait(wait);
    }

    /// How often this end slept and woke the other.
    #[must_use]
    pub fn wait_stats(&self) -> WaitStats {
        self.lane.stats()
    }

    /// The name it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        self.port().name()
    }

    fn recv_until(&mut self, mut deadline: Deadline) -> Result<Received<T>, RecvError> {
        if let Some(kept) = self.conversation.next_kept() {
            return self.open(kept);
        }
        loop {
            let envelope = self.lane.recv(&mut deadline)?;
            match self.judge(&envelope)? {
                Verdict::Deliver => return self.open(envelope),
                Verdict::Late => self.send_home(envelope)?,
            }
        }
    }

    fn judge(&mut self, envelope: &Envelope) -> Result<Verdict, RecvError> {
        match self.conversation.arrived(envelope.id, envelope.in_reply_to) {
            Ok(verdict) => Ok(verdict),
            Err(broken) => Err(self.cut_off(broken)),
        }
    }

    #[inline]
    fn open(&mut self, envelope: Envelope) -> Result<Received<T>, RecvError> {
        let opened = self.borrow(envelope.handle).map_err(OpenProblem::Peer).and_then(|borrowed| {
            let Envelope { segments, blobs, id, in_reply_to, .. } = envelope;
            let opening = Opening { borrowed, segments, id, in_reply_to, channel: self.serial };
            match blobs {
                0 => Received::open(opening, self.trust, &self.shelf),
                _ => Received::open_with(opening, blobs, self.trust, &self.shelf),
            }
        });
        opened.map_err(|problem| match problem {
            OpenProblem::Peer(broken) => self.cut_off(broken),
            OpenProblem::NoMemory(bytes) => RecvError::NoMemory { bytes },
        })
    }

    /// Returns what was received without opening it.
    fn send_home(&self, envelope: Envelope) -> Result<(), RecvError> {
        self.borrow(envelope.handle).map(drop).map_err(|broken| self.cut_off(broken))
    }

    #[inline]
    fn borrow(&self, handle: Handle) -> Result<Borrowed, PeerMisbehaved> {
        Borrowed::new(handle, self.port().clone())
    }

    fn cut_off(&self, broken: PeerMisbehaved) -> RecvError {
        self.port().core().misbehaved(broken);
        RecvError::Ended(self.port().error())
    }

    #[inline]
    fn send_until(
        &mut self,
        message: &Message<T>,
        in_reply_to: Option<u64>,
        mut deadline: Deadline,
    ) -> Result<u64, SendError> {
        self.send_by(message, in_reply_to, &mut deadline)
    }

    #[inline]
    fn send_by(
        &mut self,
        message: &Message<T>,
        in_reply_to: Option<u64>,
        deadline: &mut Deadline,
    ) -> Result<u64, SendError> {
        let envelope = self.envelope(message, in_reply_to)?;
        match self.lane.send(envelope, deadline) {
            Ok(()) => Ok(self.conversation.sent(envelope.id)),
            Err(LaneError::TimedOut) => Err(self.unlend(envelope, SendError::TimedOut)),
            Err(LaneError::Ended(ended)) => Err(self.unlend(envelope, ended.into())),
        }
    }

    /// Lends a message to the peer and addresses it.
    #[inline]
    fn envelope(&self, message: &Message<T>, in_reply_to: Option<u64>) -> Result<Envelope, SendError> {
        let core = self.port().core();
        let frozen = message.frozen();
        if !frozen.arena().same(core.arena()) {
            return Err(SendError::ForeignArena);
        }
        if !self.port().is_open() {
            return Err(SendError::Ended(self.port().error()));
        }
        Ok(Envelope {
            id: self.conversation.next_id(),
            in_reply_to,
            handle: core.loans().lend(frozen).map_err(|problem| self.not_lent(problem))?,
            // At most 512, or it would not be frozen.
            segments: frozen.segment_count() as u16,
            // At most 255, likewise.
            blobs: frozen.blobs().len() as u8,
        })
    }

    #[cold]
    fn not_lent(&self, problem: LendProblem) -> SendError {
        match problem {
            LendProblem::Quota(exceeded) => SendError::Quota(exceeded),
            LendProblem::Over => SendError::Ended(self.port().error()),
        }
    }

    /// What was not sent is not on loan either.
    #[cold]
    fn unlend(&self, envelope: Envelope, error: SendError) -> SendError {
        // Already reclaimed if the session ended meanwhile.
        let _ = self.port().core().loans().give_back(envelope.handle);
        error
    }

    fn port(&self) -> &Arc<Port> {
        self.lane.port()
    }
}

impl<T: Schema> Drop for Channel<T> {
    fn drop(&mut self) {
        // What was kept for later goes home unread; what is left in the ring follows with the lane.
        while let Some(kept) = self.conversation.next_kept() {
            if self.send_home(kept).is_err() {
                return;
            }
        }
    }
}

impl<T: Schema> std::fmt::Debug for Channel<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("name", &self.name()).finish_non_exhaustive()
    }
}
