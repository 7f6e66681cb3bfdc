//! Many messages at a time: lent under one lock and laid out with one wake, taken with one word to their sender.

use super::error::{RecvError, SendAllError, SendError};
use super::receiver;
use super::sender::Sender;
use super::shared::{Room, Shared, State};
use super::side::{BATCH_MAX, Batch, Purpose};
use super::{Channel, Lane, LaneError};
use crate::message::{Message, Received, Schema};
use crate::shm::handle::Handle;
use crate::shm::view::Borrowed;
use crate::transport::descriptor::{Arrived, Return};
use crate::transport::port::Port;
use crate::transport::{TAKEN_MAX, Taken};
use crate::wait::Deadline;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

impl<T: Schema> Channel<T> {
    /// Sends messages in order, waiting for room as long as it takes; says how many. They are published some at a time, and
    /// a receiver that sleeps is woken once for those: cheaper than one [`send`](Self::send) each. One message may be sent
    /// many times.
    ///
    /// ```no_run
    /// # capnp::generated_code!(mod hello_capnp);
    /// # use hello_capnp::hello;
    /// use strait::{Channel, Message, SendAllError};
    ///
    /// fn burst(channel: &mut Channel<hello::Owned>, news: &[Message<hello::Owned>]) -> Result<u64, SendAllError> {
    ///     channel.send_all(news)
    /// }
    ///
    /// fn take(channel: &mut Channel<hello::Owned>) -> Result<usize, strait::RecvError> {
    ///     // Waits for one, and takes along what has come with it.
    ///     let first = channel.recv()?;
    ///     channel.try_iter().try_fold(first.size(), |sum, next| Ok(sum + next?.size()))
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// [`SendAllError`], which says how many were sent before.
    pub fn send_all<'m>(&mut self, messages: impl IntoIterator<Item = &'m Message<T>>) -> Result<u64, SendAllError>
    where
        T: 'm,
    {
        in_chunks(messages, |some| self.send_some(some, &mut Room::By(Deadline::Never)))
    }

    /// As [`send_all`](Self::send_all), waiting for room at most `timeout` in all.
    ///
    /// # Errors
    /// [`SendAllError`], for `TimedOut` among others.
    pub fn send_all_timeout<'m>(
        &mut self,
        messages: impl IntoIterator<Item = &'m Message<T>>,
        timeout: Duration,
    ) -> Result<u64, SendAllError>
    where
        T: 'm,
    {
        let mut room = Room::By(Deadline::After(timeout));
        in_chunks(messages, |some| self.send_some(some, &mut room))
    }

    /// Sends the first messages, as many as there is room for at once; says how many. Never blocks.
    ///
    /// # Errors
    /// [`SendAllError`], but never for `Full`.
    pub fn try_send_all<'m>(&mut self, messages: impl IntoIterator<Item = &'m Message<T>>) -> Result<u64, SendAllError>
    where
        T: 'm,
    {
        unless_full(in_chunks(messages, |some| self.send_some(some, &mut Room::Now)))
    }

    /// The messages that are there already, in order; ends when there is none. Takes several at a time from the peer, whose
    /// sender hears of it once. Never blocks. What is not taken from it stays to be received.
    ///
    /// It also ends where the peer has finished sending; another end of the channel it tells once.
    pub fn try_iter(&mut self) -> TryIter<'_, T> {
        TryIter { channel: self, taken: Taken::new(), next: 0, told: false }
    }

    /// Receives messages as long as there are any, waiting for the first at most `timeout`, and shows each to `each`; says
    /// how many. They go home together afterwards: the cheapest way to look at many small messages. What `each` wants to
    /// keep it has to copy; see [`try_iter`](Self::try_iter).
    ///
    /// # Errors
    /// [`RecvError`]; `each` may have seen some messages before.
    pub fn recv_each(&mut self, timeout: Duration, mut each: impl FnMut(&Received<T>)) -> Result<u64, RecvError> {
        let mut shown = 0;
        while let Some(kept) = self.next_kept() {
            each(&self.side.open_kept(kept)?);
            shown += 1;
        }
        let mut taken = Taken::new();
        if shown == 0 {
            let mut first = Arrived::default();
            self.lane.recv(&mut first, &mut Deadline::After(timeout))?;
            taken.push(first);
        }
        loop {
            if taken.is_empty() {
                match self.lane.try_recv_many(&mut taken) {
                    Ok(()) if taken.is_empty() => return Ok(shown),
                    Ok(()) => {}
                    // It is said by the next call.
                    Err(_) if shown > 0 => return Ok(shown),
                    Err(error) => return Err(error.into()),
                }
            }
            let mut seen =
                Seen { port: self.side.port().clone(), spare: None, home: SmallVec::new(), taken: &mut taken };
            // Backwards, so that what is left when `each` panics is still there.
            seen.taken.reverse();
            while let Some(mut arrived) = seen.taken.pop() {
                if self.judge(&mut arrived, None)? {
                    let (received, before) = self.side.open_again(&mut arrived, seen.spare.take())?;
                    seen.home.extend(before);
                    each(&received);
                    seen.spare = received.into_borrowed();
                    shown += 1;
                }
            }
        }
    }

    /// Sends the first message, and those after it that can be sent with it.
    fn send_some(&mut self, messages: &[&Message<T>], room: &mut Room) -> Result<usize, SendError> {
        if let Some(first) = messages.first().filter(|first| first.fds().is_some()) {
            return match room {
                Room::Now => self.try_send(first),
                Room::By(deadline) => self.send_by(first, Purpose::NOTICE, deadline),
            }
            .map(|_| 1);
        }
        if self.finished {
            return Err(SendError::Finished);
        }
        loop {
            let free = self.lane.room().map_err(|over| SendError::Ended(*over))?;
            let mut batch = Batch::new();
            if free > 0 {
                self.side.parcels(messages.get(..free).unwrap_or(messages), &mut batch)?;
            }
            for (parcel, id) in batch.iter_mut().zip(self.conversation.next_id()..) {
                *parcel = parcel.numbered(id);
            }
            let sent = self.lane.send_many(&batch);
            for parcel in batch.get(*sent.as_ref().unwrap_or(&0)..).unwrap_or_default() {
                let _ = self.side.unlend(parcel.envelope, SendError::Full);
            }
            let sent = sent.map_err(|over| SendError::Ended(*over))?;
            for parcel in batch.iter().take(sent) {
                self.conversation.sent(parcel.envelope.id());
            }
            if sent > 0 {
                return Ok(sent);
            }
            // One that takes several slots may find no room where there is some.
            let Room::By(deadline) = room else { return Err(SendError::Full) };
            self.lane.wait_for_more_room(batch.first(), messages.len(), deadline).map_err(without_room)?;
        }
    }
}

fn without_room(error: LaneError) -> SendError {
    match error {
        LaneError::TimedOut => SendError::TimedOut,
        LaneError::Ended(over) => SendError::Ended(*over),
    }
}

impl<T: Schema> Sender<T> {
    /// Sends messages in order, waiting for room as long as it takes; says how many. Messages of other threads may go in
    /// between. See [`Channel::send_all`](crate::Channel::send_all).
    ///
    /// # Errors
    /// [`SendAllError`], which says how many were sent before.
    pub fn send_all<'m>(&self, messages: impl IntoIterator<Item = &'m Message<T>>) -> Result<u64, SendAllError>
    where
        T: 'm,
    {
        in_chunks(messages, |some| self.shared().send_some(some, &mut Room::By(Deadline::Never)))
    }

    /// As [`send_all`](Self::send_all), waiting for room at most `timeout` in all.
    ///
    /// # Errors
    /// [`SendAllError`], for `TimedOut` among others.
    pub fn send_all_timeout<'m>(
        &self,
        messages: impl IntoIterator<Item = &'m Message<T>>,
        timeout: Duration,
    ) -> Result<u64, SendAllError>
    where
        T: 'm,
    {
        let mut room = Room::By(Deadline::After(timeout));
        in_chunks(messages, |some| self.shared().send_some(some, &mut room))
    }

    /// Sends the first messages, as many as there is room for at once; says how many. Never blocks.
    ///
    /// # Errors
    /// [`SendAllError`], but never for `Full`.
    pub fn try_send_all<'m>(&self, messages: impl IntoIterator<Item = &'m Message<T>>) -> Result<u64, SendAllError>
    where
        T: 'm,
    {
        unless_full(in_chunks(messages, |some| self.shared().send_some(some, &mut Room::Now)))
    }
}

/// Has `send_some` send messages until there are none left. It sends at least one at a time, or says why not.
fn in_chunks<'m, T: Schema + 'm>(
    messages: impl IntoIterator<Item = &'m Message<T>>,
    mut send_some: impl FnMut(&[&'m Message<T>]) -> Result<usize, SendError>,
) -> Result<u64, SendAllError> {
    let (mut messages, mut sent) = (messages.into_iter(), 0);
    loop {
        // Gathered before any lock is taken: what the caller's iterator does is its own business.
        let chunk: SmallVec<[&Message<T>; BATCH_MAX]> = messages.by_ref().take(BATCH_MAX).collect();
        if chunk.is_empty() {
            return Ok(sent);
        }
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let some = send_some(rest).map_err(|error| SendAllError { sent, error })?;
            sent += some as u64;
            rest = rest.get(some..).unwrap_or_default();
        }
    }
}

fn unless_full(sent: Result<u64, SendAllError>) -> Result<u64, SendAllError> {
    match sent {
        Err(SendAllError { sent, error: SendError::Full }) => Ok(sent),
        other => other,
    }
}

/// Messages that were looked at and are to go home together.
struct Seen<'a> {
    port: Arc<Port>,
    /// What the last one was borrowed by; goes home by itself.
    spare: Option<Borrowed>,
    home: SmallVec<[Handle; TAKEN_MAX]>,
    /// Those that nobody has looked at yet, the next one last.
    taken: &'a mut Taken,
}

impl Drop for Seen<'_> {
    fn drop(&mut self) {
        // Any left are those that nobody will look at.
        self.home.extend(self.taken.drain(..).filter_map(|arrived| arrived.envelope.lent_as()));
        self.port.owe_all(self.home.iter().map(|&handle| Return { handle, times: 1 }));
    }
}

/// The messages that are there already: see [`Channel::try_iter`].
#[must_use = "an iterator does nothing unless it is asked"]
pub struct TryIter<'a, T: Schema> {
    channel: &'a mut Channel<T>,
    taken: Taken,
    /// The first of `taken` that was not given out.
    next: usize,
    told: bool,
}

impl<T: Schema> TryIter<'_, T> {
    fn find(&mut self) -> Result<Option<Received<T>>, RecvError> {
        if let Some(kept) = self.channel.next_kept() {
            return Ok(Some(self.channel.side.open_kept(kept)?));
        }
        loop {
            let Some(arrived) = self.taken.get_mut(self.next) else {
                self.taken.clear();
                self.next = 0;
                self.channel.lane.try_recv_many(&mut self.taken)?;
                if self.taken.is_empty() {
                    return Ok(None);
                }
                continue;
            };
            self.next += 1;
            if self.channel.judge(arrived, None)? {
                return Ok(Some(self.channel.side.open(arrived)?));
            }
        }
    }
}

impl<T: Schema> Iterator for TryIter<'_, T> {
    type Item = Result<Received<T>, RecvError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let found = self.find().transpose()?;
        receiver::next(found, &mut self.told)
    }
}

impl<T: Schema> Drop for TryIter<'_, T> {
    fn drop(&mut self) {
        for mut arrived in self.taken.drain(..).skip(self.next) {
            // A breach has ended the session by now, of which the next call tells.
            let Ok(true) = self.channel.judge(&mut arrived, None) else { continue };
            if let Ok(kept) = self.channel.side.keep(arrived) {
                self.channel.kept.push_back(kept);
                self.channel.side.port().set_kept_back(true);
            }
        }
    }
}

impl<T: Schema> std::fmt::Debug for TryIter<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TryIter").field("channel", &self.channel).finish_non_exhaustive()
    }
}

impl<T: Schema> Shared<T> {
    /// As [`Channel::send_some`].
    fn send_some(&self, messages: &[&Message<T>], room: &mut Room) -> Result<usize, SendError> {
        if let Some(first) = messages.first().filter(|first| first.fds().is_some()) {
            return self.send(first, Purpose::NOTICE, None, room).map(|_| 1);
        }
        let mut state = self.state.lock();
        loop {
            if state.finished {
                return Err(SendError::Finished);
            }
            self.look_for_returns(&mut state);
            // Where somebody waits for room there is none.
            let free = state.lane.as_mut().map_or(Ok(0), Lane::room).map_err(|over| SendError::Ended(*over))?;
            let mut batch = Batch::new();
            if free > 0 {
                self.side.parcels(messages.get(..free).unwrap_or(messages), &mut batch)?;
            }
            let sent = self.send_batch(&mut state, &mut batch)?;
            if sent > 0 {
                return Ok(sent);
            }
            let Room::By(deadline) = room else { return Err(SendError::Full) };
            let wait = |lane: &mut Lane, deadline: &mut Deadline| {
                lane.wait_for_more_room(batch.first(), messages.len(), deadline)
            };
            self.with_lane(&mut state, deadline, wait).map_err(without_room)?;
        }
    }

    /// Sends messages, as many as there is room for; tells how many.
    fn send_batch(&self, state: &mut State, batch: &mut Batch<'_>) -> Result<usize, SendError> {
        let Some(lane) = &mut state.lane else { return Ok(0) };
        for parcel in batch.iter_mut() {
            *parcel = parcel.numbered(state.routes.send(None));
        }
        let sent = lane.send_many(batch);
        for parcel in batch.get(*sent.as_ref().unwrap_or(&0)..).unwrap_or_default().iter().rev() {
            state.routes.unsend(parcel.envelope.id());
            let _ = self.side.unlend(parcel.envelope, SendError::Full);
        }
        sent.map_err(|over| SendError::Ended(*over))
    }
}
