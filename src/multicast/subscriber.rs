//! The subscribing side.

use super::error::{SubscribeError, SubscriptionError};
use super::standing::{CUT_OFF, OVER};
use crate::channel::Channel;
use crate::message::{Received, Schema};
use crate::ring::area;
use crate::ring::broadcast::{self, Look};
use crate::shm::handle::Handle;
use crate::shm::view::{Home, View};
use crate::sys::barrier::Fence;
use crate::sys::brief::Brief;
use crate::sys::futex::Spot;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::{OwnWords, PeerWords};
use crate::transport::descriptor::{Descriptor, Envelope, FIRST_INSIDE};
use crate::transport::link::view_area;
use crate::transport::port::Port;
use crate::wait::{self, Deadline, Notifier, Patience, Sleeper, Source, Wait};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Receives what the other side of a channel publishes with a [`Publisher`](crate::Publisher).
///
/// Messages are on loan until they are dropped, in any thread and any order; the publisher counts a subscriber as far
/// behind as its oldest message that was not dropped. Dropping the subscriber unsubscribes; messages stay.
///
/// An iterator that ends when the publisher is gone.
pub struct Subscriber<T: Schema> {
    seat: Seat,
    patience: Patience,
    sleeper: Sleeper,
    lost: u64,
    missed: u64,
    /// The last to be dropped: it closes the channel.
    channel: Channel<T>,
}

/// Where it sits.
struct Seat {
    stand: Arc<Stand>,
    ring: Arc<PeerWords>,
    /// The publisher's words about this subscriber.
    floors: Arc<PeerWords>,
    /// The next to be received.
    next: u64,
}

/// What messages come from and go back to.
struct Stand {
    port: Arc<Port>,
    own: Arc<OwnWords>,
    reading: Brief<Reading>,
}

struct Reading {
    /// What was received and not released, oldest first; whether it is still read.
    messages: VecDeque<(u64, bool)>,
    /// To the publisher, which may wait for room.
    publisher: Notifier,
    /// What is released if nothing is read.
    next: u64,
}

impl<T: Schema> Subscriber<T> {
    /// Subscribes to what the other side publishes over a channel, from when it [added](crate::Publisher::add) it on. Waits
    /// at most `timeout` for the other side to say that it does.
    ///
    /// # Errors
    /// [`SubscribeError`]; the channel is closed then.
    pub fn new(channel: Channel<T>, timeout: Duration) -> Result<Self, SubscribeError> {
        let port = channel.port().clone();
        let deadline = Instant::now().checked_add(timeout);
        let at = loop {
            let rung = port.bell.value();
            if let Some(at) = port.staged() {
                break at;
            }
            if !port.is_open() {
                return Err(port.error().into());
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return Err(SubscribeError::TimedOut);
            }
            // Where a loop keeps the session, it may be waiting for this call.
            let slice = port.core().attend().then(|| Instant::now().checked_add(LOOK)).flatten();
            port.bell.wait(rung, [deadline, slice].into_iter().flatten().min());
        };
        let (Some((own, floors)), Some(view)) = (port.halves(), port.core().view()) else {
            return Err(port.error().into());
        };
        let ring = view_area(&view, at.ring).map_err(|broken| {
            port.core().misbehaved(broken);
            port.error()
        })?;
        let publisher = Notifier::new(own.clone(), area::RECEIVER, ring.clone(), area::SENDER, port.core().fence());
        let reading = Brief::new(Reading { messages: VecDeque::new(), publisher, next: at.start });
        Ok(Self {
            patience: Patience::new(channel.strategy()),
            sleeper: Sleeper::new(own.clone(), area::RECEIVER, ring.clone(), area::SENDER, area::RECEIVER),
            seat: Seat { stand: Arc::new(Stand { port, own, reading }), ring, floors, next: at.start },
            lost: 0,
            missed: 0,
            channel,
        })
    }

    /// The next message, waiting as long as it takes.
    ///
    /// # Errors
    /// [`SubscriptionError`].
    pub fn recv(&mut self) -> Result<Received<T>, SubscriptionError> {
        self.recv_by(&mut Deadline::Never)
    }

    /// The next message, waiting at most `timeout`.
    ///
    /// # Errors
    /// [`SubscriptionError`], `TimedOut` among them.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Received<T>, SubscriptionError> {
        self.recv_by(&mut Deadline::After(timeout))
    }

    /// The next message if there is one already. Never blocks.
    ///
    /// # Errors
    /// [`SubscriptionError`].
    #[inline]
    pub fn try_recv(&mut self) -> Result<Option<Received<T>>, SubscriptionError> {
        // Not even what was published before is to be read, or in a forked child there to be.
        if self.seat.stand.port.is_over() {
            return Err(self.seat.stand.port.error().into());
        }
        // Read before the ring: what was published before the end must still be found.
        let open = self.seat.stand.port.is_open();
        let start = self.seat.next;
        match self.seat.take() {
            Ok(Taken::Message(envelope, lost)) => {
                self.missed = lost;
                self.lost += lost;
                debug_assert!(self.seat.next > start);
                let stand: Arc<Stand> = self.seat.stand.clone();
                Ok(Some(self.channel.open_from(&envelope, stand)?))
            }
            Ok(Taken::Nothing) if open => Ok(None),
            Ok(Taken::Nothing | Taken::Over) => Err(self.seat.stand.port.error().into()),
            Ok(Taken::CutOff) => Err(SubscriptionError::TooSlow),
            Ok(Taken::Holding) => Err(SubscriptionError::Holding),
            Err(broken) => {
                self.seat.stand.port.core().misbehaved(broken);
                Err(self.seat.stand.port.error().into())
            }
        }
    }

    fn recv_by(&mut self, deadline: &mut Deadline) -> Result<Received<T>, SubscriptionError> {
        let mut in_time = true;
        loop {
            if let Some(message) = self.try_recv()? {
                self.patience.found();
                return Ok(message);
            }
            if !in_time {
                return Err(SubscriptionError::TimedOut);
            }
            let Self { seat, patience, sleeper, .. } = self;
            let port = seat.stand.port.clone();
            in_time = wait::wait(&mut Arrival { seat, patience, sleeper }, &port.bell, deadline);
        }
    }

    /// How many messages were lost in all, because this side was too slow for them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// How many of them were lost between the message received last and the one before it.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// How it waits from now on.
    pub fn set_wait(&mut self, wait: Wait) {
        self.patience = Patience::new(wait);
    }

    /// The name of the channel it subscribed over.
    #[must_use]
    pub fn name(&self) -> &str {
        self.channel.name()
    }
}

impl<T: Schema> Iterator for Subscriber<T> {
    type Item = Result<Received<T>, SubscriptionError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.recv() {
            Err(SubscriptionError::Ended(_)) => None,
            other => Some(other),
        }
    }
}

impl<T: Schema> std::fmt::Debug for Subscriber<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscriber").field("name", &self.name()).field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// Between looks for a session that a loop keeps.
const LOOK: Duration = Duration::from_millis(10);

enum Taken {
    /// And how many were lost before it.
    Message(Envelope, u64),
    Nothing,
    /// The publisher is gone.
    Over,
    CutOff,
    Holding,
}

impl Seat {
    /// Takes the next message: claimed, looked at, and then found to have been this one's to look at.
    #[inline]
    fn take(&mut self) -> Result<Taken, PeerMisbehaved> {
        let mut lost = 0;
        loop {
            let position = self.next;
            let look = broadcast::look(&self.ring, position)?;
            if look == Look::NotYet {
                return Ok(match self.floors.peek(area::FLOOR) {
                    CUT_OFF => Taken::CutOff,
                    OVER => Taken::Over,
                    _ => Taken::Nothing,
                });
            }
            if self.stand.is_full(broadcast::slots(self.ring.len())) {
                return Ok(Taken::Holding);
            }
            self.stand.own.publish(area::CLAIMED, position.saturating_add(1));
            // Partner: the publisher's fence between raising the floor and looking at what is claimed.
            Fence::own_half();
            let payload = broadcast::read(&self.ring, position);
            match self.floors.peek(area::FLOOR) {
                CUT_OFF => return Ok(Taken::CutOff),
                OVER => return Ok(Taken::Over),
                floor if floor > position => {
                    lost += floor - position;
                    self.next = floor;
                    self.stand.skip_to(floor);
                }
                _ if look == Look::Gone => {
                    // Overwritten, and not for having been lost.
                    let expected = position.saturating_add(1);
                    return Err(PeerMisbehaved::SequenceOutOfRange { found: expected, expected });
                }
                _ => return self.judge(payload, position).map(|envelope| Taken::Message(envelope, lost)),
            }
        }
    }

    fn judge(&mut self, payload: [u64; 7], position: u64) -> Result<Envelope, PeerMisbehaved> {
        let Descriptor::Message(envelope) = Descriptor::from_words(payload)? else {
            return Err(PeerMisbehaved::NoHandle);
        };
        let expected = position.saturating_add(1);
        if envelope.id() != expected {
            return Err(PeerMisbehaved::MessageId { found: envelope.id(), expected });
        }
        if envelope.fds() > 0 {
            return Err(PeerMisbehaved::UnexpectedDescriptor);
        }
        match envelope.lent_as() {
            Some(handle) if handle.ticket() != position as u32 => return Err(PeerMisbehaved::NoHandle),
            Some(_) => self.stand.received(position),
            None if usize::from(envelope.segments()) > FIRST_INSIDE => {
                return Err(PeerMisbehaved::InsideLength(envelope.segments()));
            }
            None => self.stand.skip_to(expected),
        }
        self.next = expected;
        Ok(envelope)
    }
}

impl Stand {
    /// Whether the oldest message that is read is a lap behind.
    fn is_full(&self, slots: u64) -> bool {
        let reading = self.reading.lock();
        reading.messages.front().is_some_and(|(oldest, _)| reading.next.saturating_sub(*oldest) >= slots)
    }

    fn received(&self, position: u64) {
        let mut reading = self.reading.lock();
        reading.messages.push_back((position, true));
        reading.next = position.saturating_add(1);
    }

    /// Goes on at a position, nothing before which is read that was not received.
    fn skip_to(&self, next: u64) {
        let mut reading = self.reading.lock();
        reading.next = next;
        if next > self.own.peek(area::CLAIMED) {
            self.own.publish(area::CLAIMED, next);
        }
        self.settle(&mut reading);
    }

    /// Tells the publisher what is released by now.
    fn settle(&self, reading: &mut Reading) {
        while reading.messages.front().is_some_and(|(_, read)| !read) {
            reading.messages.pop_front();
        }
        let released = reading.messages.front().map_or(reading.next, |(oldest, _)| *oldest);
        self.own.publish(area::RELEASED, released);
        // It sleeps on this word, if at all; nobody waits for it at a door.
        let _ = reading.publisher.notify(|| self.own.spot(area::RELEASED));
    }
}

impl Home for Stand {
    fn view(&self) -> &View {
        self.port.view()
    }

    fn owe(&self, handle: Handle) {
        // In a forked child the words are not mapped, and the lock may have been held by a thread that is not here.
        if self.port.core().is_forked() {
            return;
        }
        let mut reading = self.reading.lock();
        let Some(&(oldest, _)) = reading.messages.front() else { return };
        // Positions by the low half of their number, of which a lap has far fewer.
        let position = oldest.saturating_add(u64::from(handle.ticket().wrapping_sub(oldest as u32)));
        let index = reading.messages.partition_point(|(other, _)| *other < position);
        if let Some((_, read)) = reading.messages.get_mut(index) {
            *read = false;
        }
        if index == 0 {
            self.settle(&mut reading);
        }
    }
}

/// Waiting for a message.
struct Arrival<'a> {
    seat: &'a mut Seat,
    patience: &'a mut Patience,
    sleeper: &'a mut Sleeper,
}

impl Source for Arrival<'_> {
    #[inline]
    fn ready(&mut self) -> bool {
        let over = !self.seat.stand.port.is_open() || self.seat.floors.peek(area::FLOOR) >= OVER;
        over || broadcast::look(&self.seat.ring, self.seat.next) != Ok(Look::NotYet)
    }

    fn spot(&self) -> (Spot<'_>, u32) {
        broadcast::awaited(&self.seat.ring, self.seat.next)
    }

    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper) {
        (self.patience, self.sleeper)
    }

    fn attends(&mut self) -> bool {
        self.seat.stand.port.core().attend()
    }
}
