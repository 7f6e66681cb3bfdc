//! L4: a conversation in one schema between two processes: messages, requests, replies. Knows no sockets and no log-in;
//! its rules are pure state machines ([`conversation`], [`routes`]), the loops around them are here (one owner) and in
//! [`shared`] (split: many threads).

mod batch;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod conversation;
mod error;
#[cfg(feature = "tokio")]
mod polled;
mod receiver;
mod replies;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod routes;
mod sender;
mod shared;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod side;
#[cfg(test)]
mod tests;
mod waiter;

pub use batch::TryIter;
pub use error::{DrainError, ExpectError, ForwardError, Forwarded, RecvError, RequestError, SendAllError, SendError};
#[cfg(feature = "tokio")]
pub(crate) use polled::{Polled, SendAs, Waiting};
pub use receiver::{Expected, Receiver};
pub use replies::Replies;
pub use sender::Sender;

use crate::message::{Builder, Message, Received, Schema, Trust};
use crate::shm::arena::Arena;
use crate::shm::view::Home;
use crate::transport::descriptor::{ASKS, Arrived, Envelope, MORE, Parcel};
use crate::transport::lane::WaitStats;
use crate::transport::port::Port;
use crate::transport::{Lane, LaneError};
use crate::wait::{Deadline, Wait};
use conversation::{Answers, Conversation, Verdict};
use error::Unopened;
use routes::KEPT_MAX;
use shared::Shared;
use side::{Kept, Purpose, Reply, Side};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// One end of a channel that carries messages with root `T`, in both directions.
///
/// Owned by one thread at a time (`Send`, all methods take `&mut self`); [`split`](Self::split) makes it one for many
/// threads. Everything that was sent before the other side closed, or died, can still be received. Dropping it closes
/// the channel; messages received over it stay.
///
/// An answer to a message that was sent with [`send`](Self::send) comes through [`recv`](Self::recv), like any message.
/// The answers to [`request`](Self::request) do not: one that comes too late is dropped, one after the last is dropped
/// and reported to its sender ([`unexpected_replies`](Self::unexpected_replies)).
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
    /// Messages that came while an answer was awaited, oldest first; gone before the lane.
    kept: VecDeque<Kept>,
    lane: Lane,
    side: Side<T>,
    conversation: Conversation,
    /// This side sends no more.
    finished: bool,
}

impl<T: Schema> Channel<T> {
    pub(crate) fn new(lane: Lane, trust: Trust, inline_max: usize) -> Self {
        let side = Side::new(&lane, trust, inline_max);
        Self { kept: VecDeque::new(), lane, side, conversation: Conversation::default(), finished: false }
    }

    /// Makes it two: a [`Sender`] that any number of threads may share, and a [`Receiver`] for one. What has been
    /// received but not taken yet stays in order. An event loop that the channel is in is told of it no longer. From here on an answer to anything but a request is unexpected.
    #[must_use]
    pub fn split(self) -> (Sender<T>, Receiver<T>) {
        self.side.port().leave_door();
        Shared::split(self)
    }

    /// This side's arena, which its messages and their blobs are built in.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        self.side.arena()
    }

    /// Begins a message in this side's arena.
    #[must_use]
    pub fn create_msg(&self) -> Builder<T> {
        self.side.create_msg()
    }

    /// Begins a message of about `bytes` bytes, in one segment.
    #[must_use]
    pub fn create_msg_with_capacity(&self, bytes: usize) -> Builder<T> {
        self.side.create_msg_with_capacity(bytes)
    }

    /// Sends a message, waiting for room as long as it takes. Returns its number.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent then.
    pub fn send(&mut self, message: &Message<T>) -> Result<u64, SendError> {
        self.send_by(message, Purpose::NOTICE, &mut Deadline::Never)
    }

    /// As [`send`](Self::send), waiting for room at most `timeout`.
    ///
    /// # Errors
    /// [`SendError`], `TimedOut` among them; nothing was sent then.
    pub fn send_timeout(&mut self, message: &Message<T>, timeout: Duration) -> Result<u64, SendError> {
        self.send_by(message, Purpose::NOTICE, &mut Deadline::After(timeout))
    }

    /// Sends a message if there is room at once. Never blocks.
    ///
    /// # Errors
    /// [`SendError`], `Full` among them; nothing was sent then.
    pub fn try_send(&mut self, message: &Message<T>) -> Result<u64, SendError> {
        self.try_send_as(message, Purpose::NOTICE)
    }

    #[inline]
    fn try_send_as(&mut self, message: &Message<T>, purpose: Purpose) -> Result<u64, SendError> {
        let parcel = self.parcel(message, purpose)?;
        match self.lane.try_send(parcel) {
            Ok(true) => Ok(self.conversation.sent(parcel.envelope.id())),
            Ok(false) => Err(self.side.unlend(parcel.envelope, SendError::Full)),
            Err(over) => Err(self.side.unlend(parcel.envelope, SendError::Ended(*over))),
        }
    }

    /// Sends a message on that was received over any channel of any session, with what is attached to it; says how. Waits
    /// for room as long as it takes.
    ///
    /// A sealed message goes by reference: its sender has given it out of hand ([`SealedBuilder`](crate::SealedBuilder)).
    /// Any other is copied: its bytes are the first sender's, who lends them to this process alone and would have them back
    /// while somebody else still reads. To send one's own message to many, keep the [`Message`].
    ///
    /// # Errors
    /// [`ForwardError`]; nothing was sent then.
    pub fn forward(&mut self, received: &Received<T>) -> Result<Forwarded, ForwardError> {
        if let Some(message) = received.by_reference()? {
            return Ok(Forwarded::ByReference(self.send(&message)?));
        }
        let copy = received.copy_to(self.arena())?;
        Ok(Forwarded::Copied(self.send(&copy)?))
    }

    /// Answers a message, once and for all, waiting for room as long as it takes. Two sides that both send and never
    /// receive wait for each other: where that can be, take a form with a deadline.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent then.
    pub fn reply(&mut self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        self.reply_by(to, message, Reply::Last, Deadline::Never)
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
        self.reply_by(to, message, Reply::Last, Deadline::After(timeout))
    }

    /// Answers a message, once and for all, if there is room at once. Never blocks.
    ///
    /// # Errors
    /// [`SendError`], `Full` among them; nothing was sent then.
    pub fn try_reply(&mut self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        self.try_send_as(message, self.side.answer(to, Reply::Last)?)
    }

    /// Answers a message and says that more answers to it follow, of which [`reply`](Self::reply) sends the last. Waits
    /// for room as long as it takes.
    ///
    /// # Errors
    /// [`SendError`], `Cancelled` among them; nothing was sent then.
    pub fn reply_more(&mut self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        self.reply_by(to, message, Reply::MoreFollow, Deadline::Never)
    }

    /// As [`reply_more`](Self::reply_more), waiting for room at most `timeout`.
    ///
    /// # Errors
    /// [`SendError`], `TimedOut` among them; nothing was sent then.
    pub fn reply_more_timeout(
        &mut self,
        to: &Received<T>,
        message: &Message<T>,
        timeout: Duration,
    ) -> Result<u64, SendError> {
        self.reply_by(to, message, Reply::MoreFollow, Deadline::After(timeout))
    }

    /// As [`reply_more`](Self::reply_more) if there is room at once. Never blocks.
    ///
    /// # Errors
    /// [`SendError`], `Full` among them; nothing was sent then.
    pub fn try_reply_more(&mut self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        self.try_send_as(message, self.side.answer(to, Reply::MoreFollow)?)
    }

    /// Tells the peer that a message, an answer as a rule, follows within some tens of microseconds: if it waits
    /// [adaptively](Wait::Adaptive), it looks for it some 100 us longer before it sleeps. Taken back by whatever is sent
    /// next. A store to memory; a peer that sleeps already is not woken.
    ///
    /// ```no_run
    /// # capnp::generated_code!(mod hello_capnp);
    /// # use hello_capnp::hello;
    /// # fn work(_: &strait::Received<hello::Owned>) {}
    /// # fn f(channel: &mut strait::Channel<hello::Owned>, answer: &strait::Message<hello::Owned>)
    /// # -> Result<(), Box<dyn std::error::Error>> {
    /// let question = channel.recv()?;
    /// channel.promise_soon();
    /// work(&question);
    /// channel.reply(&question, answer)?;
    /// # Ok(())
    /// # }
    /// # fn main() {}
    /// ```
    pub fn promise_soon(&mut self) {
        self.lane.promise(true);
    }

    /// Whether the peer wants no more answers to its request. It may learn later of what the peer did before.
    #[must_use]
    pub fn is_cancelled(&self, request: &Received<T>) -> bool {
        self.side.is_cancelled(request)
    }

    /// How many answers of this side's the peer has dropped as unexpected, as far as it has said so: it does some 10 ms
    /// after.
    #[must_use]
    pub fn unexpected_replies(&self) -> u64 {
        self.side.port().unexpected_there()
    }

    #[inline]
    fn reply_by(
        &mut self,
        to: &Received<T>,
        message: &Message<T>,
        reply: Reply,
        mut deadline: Deadline,
    ) -> Result<u64, SendError> {
        let purpose = self.side.answer(to, reply)?;
        self.send_by(message, purpose, &mut deadline)
    }

    /// Sends a message and waits for the answer to it. Other messages that come meanwhile are kept, in order, for
    /// [`recv`](Self::recv); an answer that comes after `timeout` is dropped, and so is every answer but the first.
    ///
    /// # Errors
    /// [`RequestError`]. After `TimedOut` the channel can be used as before.
    pub fn request(&mut self, message: &Message<T>, timeout: Duration) -> Result<Received<T>, RequestError> {
        let mut deadline = Deadline::After(timeout);
        let id = self.send_by(message, Purpose::REQUEST, &mut deadline)?;
        let mut arrived = Arrived::default();
        loop {
            if self.kept.len() >= KEPT_MAX {
                self.conversation.give_up(id);
                return Err(RequestError::Backlog);
            }
            if let Err(why) = self.lane.recv(&mut arrived, &mut deadline) {
                self.conversation.give_up(id);
                return Err(RequestError::unanswered(why, self.side.port()));
            }
            if !self.judge(&mut arrived, Some(id))? {
                continue;
            }
            if arrived.envelope.in_reply_to() != Some(id) {
                let kept = self.side.keep(std::mem::take(&mut arrived)).map_err(RequestError::Ended)?;
                self.kept.push_back(kept);
                self.side.port().set_kept_back(true);
                continue;
            }
            if arrived.envelope.flags() & MORE != 0 {
                self.conversation.give_up(id);
            }
            return Ok(self.side.open(&mut arrived)?);
        }
    }

    /// The next message, waiting as long as it takes.
    ///
    /// # Errors
    /// [`RecvError`], once everything that was sent has been received.
    pub fn recv(&mut self) -> Result<Received<T>, RecvError> {
        self.recv_by(Deadline::Never)
    }

    /// The next message, waiting at most `timeout`.
    ///
    /// # Errors
    /// [`RecvError`], `TimedOut` among them.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Received<T>, RecvError> {
        self.recv_by(Deadline::After(timeout))
    }

    /// The next message if there is one already. Never blocks.
    ///
    /// # Errors
    /// [`RecvError`], once everything that was sent has been received.
    pub fn try_recv(&mut self) -> Result<Option<Received<T>>, RecvError> {
        if let Some(kept) = self.next_kept() {
            return Ok(Some(self.side.open_kept(kept)?));
        }
        let mut arrived = Arrived::default();
        while self.lane.try_recv(&mut arrived)? {
            if self.judge(&mut arrived, None)? {
                return Ok(Some(self.side.open(&mut arrived)?));
            }
        }
        Ok(None)
    }

    #[inline]
    fn recv_by(&mut self, mut deadline: Deadline) -> Result<Received<T>, RecvError> {
        if let Some(kept) = self.next_kept() {
            return Ok(self.side.open_kept(kept)?);
        }
        let mut arrived = Arrived::default();
        loop {
            self.lane.recv(&mut arrived, &mut deadline)?;
            if self.judge(&mut arrived, None)? {
                return Ok(self.side.open(&mut arrived)?);
            }
        }
    }

    #[inline]
    fn next_kept(&mut self) -> Option<Kept> {
        let kept = self.kept.pop_front()?;
        if self.kept.is_empty() {
            self.side.port().set_kept_back(false);
        }
        Some(kept)
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        self.side.port()
    }

    pub(crate) fn strategy(&self) -> Wait {
        self.lane.strategy()
    }

    /// Opens a message that did not come through the ring, and whose loan goes home elsewhere.
    pub(crate) fn open_from(&self, envelope: &Envelope, home: Arc<dyn Home>) -> Result<Received<T>, RecvError> {
        Ok(self.side.open_from(envelope, home)?)
    }

    /// Whether a message is to be delivered. If not, it goes home unread.
    #[inline(always)]
    fn judge(&mut self, arrived: &mut Arrived, awaited: Option<u64>) -> Result<bool, Unopened> {
        let envelope = &arrived.envelope;
        let verdict = match self.conversation.arrived(envelope.id(), Answers::of(envelope)) {
            Ok(verdict) => verdict,
            Err(broken) => return Err(self.side.cut_off(broken).into()),
        };
        // The one request that is under way is the awaited one; the others are answered, or given up.
        let answers_request = envelope.in_reply_to().is_some() && envelope.flags() & ASKS != 0;
        let unexpected = answers_request && envelope.in_reply_to() != awaited;
        if verdict == Verdict::Deliver && !unexpected {
            Ok(true)
        } else {
            self.refuse(std::mem::take(arrived), verdict)
        }
    }

    #[cold]
    fn refuse(&self, arrived: Arrived, verdict: Verdict) -> Result<bool, Unopened> {
        if verdict == Verdict::Deliver {
            self.side.port().unexpected_here();
        }
        drop(self.side.keep(arrived)?);
        Ok(false)
    }

    /// Ends this direction: nothing more is sent. The peer receives what was sent before and then
    /// [`RecvError::Finished`]; it can go on sending. Never blocks.
    pub fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) {
            self.side.port().say_finished();
        }
    }

    /// Waits until the peer has taken everything that was sent; it need not have returned it. At most `timeout`.
    ///
    /// # Errors
    /// [`DrainError`]: the peer may have taken a part.
    pub fn drain(&mut self, timeout: Duration) -> Result<(), DrainError> {
        Ok(self.lane.drain(&mut Deadline::After(timeout))?)
    }

    /// Finishes, waits at most `timeout` until the peer has taken everything that was sent, and closes, in any case.
    /// Dropping the channel closes it as well, without waiting and without knowing.
    ///
    /// # Errors
    /// [`DrainError`]: the peer had not taken everything by then. It still may.
    pub fn close(mut self, timeout: Duration) -> Result<(), DrainError> {
        self.finish();
        self.drain(timeout)
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
        self.side.port().name()
    }

    #[inline]
    fn send_by(&mut self, message: &Message<T>, purpose: Purpose, deadline: &mut Deadline) -> Result<u64, SendError> {
        let parcel = self.parcel(message, purpose)?;
        match self.lane.send(parcel, deadline) {
            Ok(()) => Ok(self.conversation.sent(parcel.envelope.id())),
            Err(LaneError::TimedOut) => Err(self.side.unlend(parcel.envelope, SendError::TimedOut)),
            Err(LaneError::Ended(over)) => Err(self.side.unlend(parcel.envelope, SendError::Ended(*over))),
        }
    }

    #[inline(always)]
    fn parcel<'a>(&self, message: &'a Message<T>, purpose: Purpose) -> Result<Parcel<'a>, SendError> {
        if self.finished {
            return Err(SendError::Finished);
        }
        Ok(self.side.parcel(message, purpose)?.numbered(self.conversation.next_id()))
    }
}

impl<T: Schema> std::fmt::Debug for Channel<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("name", &self.name()).finish_non_exhaustive()
    }
}
