//! The sending half of a split channel, for any number of threads.

use super::error::{DrainError, ForwardError, Forwarded, RequestError, SendError};
use super::replies::Replies;
use super::routes::{Place, Wanted};
use super::shared::{Idle, Room, Shared};
use super::side::{Purpose, Reply};
use crate::message::{Builder, Message, Received, Schema};
use crate::shm::arena::Arena;
use crate::transport::NoMessage;
use crate::wait::Deadline;
use std::sync::Arc;
use std::time::Duration;

/// The sending half of a split [`Channel`](crate::Channel): any thread sends, answers and asks through it, all at once,
/// while another receives through the [`Receiver`](crate::Receiver).
///
/// A clone is another handle to the same half. When the last is dropped, this direction is finished: see
/// [`finish`](Self::finish). Requests and streams that are under way still get their answers.
///
/// Of the threads that wait for messages, one sleeps on the ring and wakes the others as there is something for them;
/// with [`Wait::Spin`](crate::Wait::Spin) they spin as well.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use std::time::Duration;
/// use strait::Channel;
///
/// fn talk(channel: Channel<hello::Owned>) {
///     let (sender, receiver) = channel.split();
///     std::thread::scope(|scope| {
///         for number in 0..8 {
///             let sender = sender.clone();
///             scope.spawn(move || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
///                 let mut question = sender.create_msg();
///                 question.init_root().set_greet(format!("{number}"));
///                 let answer = sender.request(&question.freeze()?, Duration::from_secs(1))?;
///                 println!("{} bytes", answer.size());
///                 Ok(())
///             });
///         }
///         // Whatever answers nothing comes here, until the peer has finished.
///         receiver.for_each(|notice| println!("{notice:?}"));
///     });
/// }
/// # fn main() {}
/// ```
pub struct Sender<T: Schema> {
    half: Arc<Half<T>>,
}

/// What the last sender ends.
struct Half<T: Schema>(Arc<Shared<T>>);

impl<T: Schema> Drop for Half<T> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl<T: Schema> Sender<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { half: Arc::new(Half(shared)) }
    }

    pub(super) fn shared(&self) -> &Arc<Shared<T>> {
        &self.half.0
    }

    /// This side's arena, which its messages and their blobs are built in.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        self.shared().side.arena()
    }

    /// Begins a message in this side's arena.
    #[must_use]
    pub fn create_msg(&self) -> Builder<T> {
        self.shared().side.create_msg()
    }

    /// Begins a message of about `bytes` bytes, in one segment.
    #[must_use]
    pub fn create_msg_with_capacity(&self, bytes: usize) -> Builder<T> {
        self.shared().side.create_msg_with_capacity(bytes)
    }

    /// Sends a message, waiting for room as long as it takes. Returns its number. An answer to it would be unexpected:
    /// ask with [`request`](Self::request).
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent then.
    pub fn send(&self, message: &Message<T>) -> Result<u64, SendError> {
        self.send_as(message, Purpose::NOTICE, Room::By(Deadline::Never))
    }

    /// As [`send`](Self::send), waiting for room at most `timeout`.
    ///
    /// # Errors
    /// [`SendError`], `TimedOut` among them; nothing was sent then.
    pub fn send_timeout(&self, message: &Message<T>, timeout: Duration) -> Result<u64, SendError> {
        self.send_as(message, Purpose::NOTICE, Room::By(Deadline::After(timeout)))
    }

    /// Sends a message if there is room at once. Never blocks. Where another thread waits for room there is none.
    ///
    /// # Errors
    /// [`SendError`], `Full` among them; nothing was sent then.
    pub fn try_send(&self, message: &Message<T>) -> Result<u64, SendError> {
        self.send_as(message, Purpose::NOTICE, Room::Now)
    }

    /// See [`Channel::forward`](crate::Channel::forward).
    ///
    /// # Errors
    /// [`ForwardError`]; nothing was sent then.
    pub fn forward(&self, received: &Received<T>) -> Result<Forwarded, ForwardError> {
        if let Some(message) = received.by_reference()? {
            return Ok(Forwarded::ByReference(self.send(&message)?));
        }
        let copy = received.copy_to(self.arena())?;
        Ok(Forwarded::Copied(self.send(&copy)?))
    }

    /// Answers a message, once and for all, waiting for room as long as it takes.
    ///
    /// # Errors
    /// [`SendError`], `Cancelled` among them; nothing was sent then.
    pub fn reply(&self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        self.reply_as(to, message, Reply::Last, Room::By(Deadline::Never))
    }

    /// As [`reply`](Self::reply), waiting for room at most `timeout`.
    ///
    /// # Errors
    /// [`SendError`], `TimedOut` among them; nothing was sent then.
    pub fn reply_timeout(&self, to: &Received<T>, message: &Message<T>, timeout: Duration) -> Result<u64, SendError> {
        self.reply_as(to, message, Reply::Last, Room::By(Deadline::After(timeout)))
    }

    /// Answers a message, once and for all, if there is room at once. Never blocks.
    ///
    /// # Errors
    /// [`SendError`], `Full` among them; nothing was sent then.
    pub fn try_reply(&self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        self.reply_as(to, message, Reply::Last, Room::Now)
    }

    /// Answers a message and says that more answers to it follow, of which [`reply`](Self::reply) sends the last. Waits
    /// for room as long as it takes.
    ///
    /// # Errors
    /// [`SendError`], `Cancelled` among them; nothing was sent then.
    pub fn reply_more(&self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        self.reply_as(to, message, Reply::MoreFollow, Room::By(Deadline::Never))
    }

    /// As [`reply_more`](Self::reply_more), waiting for room at most `timeout`.
    ///
    /// # Errors
    /// [`SendError`], `TimedOut` among them; nothing was sent then.
    pub fn reply_more_timeout(
        &self,
        to: &Received<T>,
        message: &Message<T>,
        timeout: Duration,
    ) -> Result<u64, SendError> {
        self.reply_as(to, message, Reply::MoreFollow, Room::By(Deadline::After(timeout)))
    }

    /// As [`reply_more`](Self::reply_more) if there is room at once. Never blocks.
    ///
    /// # Errors
    /// [`SendError`], `Full` among them; nothing was sent then.
    pub fn try_reply_more(&self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        self.reply_as(to, message, Reply::MoreFollow, Room::Now)
    }

    /// Whether the peer wants no more answers to its request. It may learn later of what the peer did before.
    #[must_use]
    pub fn is_cancelled(&self, request: &Received<T>) -> bool {
        self.shared().side.is_cancelled(request)
    }

    /// How many answers of this side's the peer has dropped as unexpected, as far as it has said so: it does some 10 ms
    /// after.
    #[must_use]
    pub fn unexpected_replies(&self) -> u64 {
        self.shared().side.port().unexpected_there()
    }

    /// Sends a message and waits for the answer to it, at most `timeout` for both. Whatever comes meanwhile goes where it
    /// belongs; an answer that comes after `timeout` is dropped, and so is every answer but the first.
    ///
    /// # Errors
    /// [`RequestError`]. After `TimedOut` and `Backlog` the channel can be used as before.
    pub fn request(&self, message: &Message<T>, timeout: Duration) -> Result<Received<T>, RequestError> {
        let mut room = Room::By(Deadline::After(timeout));
        let id = self.shared().send(message, Purpose::REQUEST, Some(Wanted::One), &mut room)?;
        let Room::By(mut deadline) = room else { unreachable!("made above") };
        let why = match self.shared().wait_at(Place::Request(id), &mut deadline) {
            Ok(kept) => return Ok(self.shared().side.open_kept(kept)?),
            Err(Idle::Backlog) => {
                self.shared().leave(Place::Request(id));
                return Err(RequestError::Backlog);
            }
            // One answer is wanted and has not come, so the place is not over.
            Err(Idle::TimedOut | Idle::Over) => NoMessage::TimedOut,
            Err(Idle::Finished) => NoMessage::Finished,
            Err(Idle::Ended(ended)) => NoMessage::Ended(ended.into()),
        };
        self.shared().leave(Place::Request(id));
        Err(RequestError::unanswered(why, self.shared().side.port()))
    }

    /// Sends a message that may have any number of answers, waiting for room at most `timeout`. The answers come through
    /// what is returned.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent then.
    pub fn request_stream(&self, message: &Message<T>, timeout: Duration) -> Result<Replies<T>, SendError> {
        let mut room = Room::By(Deadline::After(timeout));
        let id = self.shared().send(message, Purpose::REQUEST, Some(Wanted::All), &mut room)?;
        Ok(Replies::new(self.shared().clone(), id))
    }

    /// Ends this direction, for all senders: nothing more is sent. The peer receives what was sent before and then
    /// [`RecvError::Finished`](crate::RecvError::Finished); it can go on sending. Never blocks.
    pub fn finish(&self) {
        self.shared().finish();
    }

    /// Waits until the peer has taken everything that was sent; it need not have returned it. At most `timeout`; other
    /// senders find no room meanwhile.
    ///
    /// # Errors
    /// [`DrainError`]: the peer may have taken a part.
    pub fn drain(&self, timeout: Duration) -> Result<(), DrainError> {
        self.shared().drain(&mut Deadline::After(timeout))
    }

    /// The name the channel was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared().side.port().name()
    }

    fn send_as(&self, message: &Message<T>, purpose: Purpose, mut room: Room) -> Result<u64, SendError> {
        self.shared().send(message, purpose, None, &mut room)
    }

    fn reply_as(&self, to: &Received<T>, message: &Message<T>, reply: Reply, room: Room) -> Result<u64, SendError> {
        let purpose = self.shared().side.answer(to, reply)?;
        self.send_as(message, purpose, room)
    }
}

impl<T: Schema> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { half: self.half.clone() }
    }
}

impl<T: Schema> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").field("name", &self.name()).finish_non_exhaustive()
    }
}
