//! One channel's two rings with the waiting around them: slots in, slots out, asleep in between. Sends home what is owed
//! with whatever goes that way, and books what comes home. Knows slots, not messages.

use super::descriptor::{Descriptor, Envelope, RETURNS};
use super::ended::EndedError;
use super::link::Link;
use super::port::Port;
use crate::ring::{Consumer, Full, Payload, Producer, area};
use crate::sys::fork;
use crate::sys::futex::Spot;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::{OwnWords, PeerWords};
use crate::wait::{self, Notifier, Patience, Sleeper, Source, Wait};
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// Nothing came, or there was no room, in time; or it is over.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum LaneError {
    #[error("timed out")]
    TimedOut,
    #[error(transparent)]
    Ended(#[from] EndedError),
}

/// See the module's own words.
pub(crate) struct Lane {
    port: Arc<Port>,
    outbox: Outbox,
    inbox: Inbox,
}

struct Outbox {
    producer: Producer,
    sleeper: Sleeper,
    receiver: Notifier,
    patience: Patience,
    wakes: u64,
}

struct Inbox {
    consumer: Consumer,
    sleeper: Sleeper,
    sender: Notifier,
    patience: Patience,
    /// Owed handles beyond which they get slots of their own.
    many_owed: usize,
}

/// How often a lane's ends slept and woke the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitStats {
    /// Messages received after waiting or at once.
    pub receives: u64,
    /// How often the receiver went to sleep.
    pub sleeps: u64,
    /// How often sending had to wake the peer.
    pub wakes: u64,
}

impl Lane {
    pub(crate) fn new(
        link: &Link,
        number: u32,
        name: String,
        own: Arc<OwnWords>,
        peer: Arc<PeerWords>,
        strategy: Wait,
    ) -> Self {
        let fence = link.core().fence();
        let producer = Producer::new(own.clone(), peer.clone());
        Self {
            port: link.port(number, name),
            inbox: Inbox {
                many_owed: usize::try_from(producer.capacity() / 2).unwrap_or(usize::MAX),
                consumer: Consumer::new(own.clone(), peer.clone()),
                sleeper: Sleeper::new(own.clone(), area::RECEIVER, peer.clone(), area::SENDER, area::RECEIVER),
                sender: Notifier::new(own.clone(), area::RECEIVER, peer.clone(), area::SENDER, fence),
                patience: Patience::new(strategy),
            },
            outbox: Outbox {
                producer,
                sleeper: Sleeper::new(own.clone(), area::SENDER, peer.clone(), area::RECEIVER, area::RECEIVER),
                receiver: Notifier::new(own, area::SENDER, peer, area::RECEIVER, fence),
                patience: Patience::new(strategy),
                wakes: 0,
            },
        }
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    pub(crate) fn set_wait(&mut self, strategy: Wait) {
        self.inbox.patience = Patience::new(strategy);
        self.outbox.patience = Patience::new(strategy);
    }

    pub(crate) fn stats(&self) -> WaitStats {
        let (sleeps, receives) = self.inbox.patience.counts();
        WaitStats { receives, sleeps, wakes: self.outbox.wakes }
    }

    /// Sends a slot if there is room at once; a handle that is owed rides along.
    #[inline]
    pub(crate) fn try_send(&mut self, envelope: Envelope) -> Result<bool, EndedError> {
        if !self.port.is_open() {
            return Err(self.port.error());
        }
        let returned = self.port.pop_owed();
        let sent = self.push(Descriptor::Message(Envelope { returned, ..envelope }));
        if let (Some(handle), Ok(false)) = (returned, &sent) {
            self.port.push_front_owed(handle);
        }
        sent
    }

    /// Sends a slot, waiting for room until the deadline.
    #[inline]
    pub(crate) fn send(&mut self, envelope: Envelope, deadline: Option<Instant>) -> Result<(), LaneError> {
        while !self.try_send(envelope)? {
            self.wait_for_room(deadline)?;
        }
        Ok(())
    }

    #[cold]
    fn wait_for_room(&mut self, deadline: Option<Instant>) -> Result<(), LaneError> {
        let Outbox { producer, sleeper, patience, .. } = &mut self.outbox;
        let mut room = Room { producer, port: &self.port };
        match wait::wait(&mut room, patience, sleeper, &self.port.bell, deadline) {
            Some(Ok(())) => Ok(()),
            Some(Err(broken)) => Err(cut_off(&self.port, broken).into()),
            None => Err(LaneError::TimedOut),
        }
    }

    fn push(&mut self, descriptor: Descriptor) -> Result<bool, EndedError> {
        let Outbox { producer, receiver, wakes, .. } = &mut self.outbox;
        match producer.try_push(&descriptor.to_words()) {
            Ok(Ok(())) => {
                *wakes += u64::from(receiver.notify(|| producer.consumers_spot()));
                Ok(true)
            }
            Ok(Err(Full)) => Ok(false),
            Err(broken) => Err(cut_off(&self.port, broken)),
        }
    }

    /// The next message if there is one already.
    #[inline]
    pub(crate) fn try_recv(&mut self) -> Result<Option<Envelope>, EndedError> {
        self.return_many();
        match self.inbox.arrival(&self.port).0.look() {
            None => Ok(None),
            Some(found) => self.settle(found).map(Some),
        }
    }

    /// The next message, waiting until the deadline.
    #[inline]
    pub(crate) fn recv(&mut self, deadline: Option<Instant>) -> Result<Envelope, LaneError> {
        self.return_many();
        let (mut arrival, patience, sleeper) = self.inbox.arrival(&self.port);
        match wait::wait(&mut arrival, patience, sleeper, &self.port.bell, deadline) {
            None => Err(LaneError::TimedOut),
            Some(found) => Ok(self.settle(found)?),
        }
    }

    fn settle(&self, found: Found) -> Result<Envelope, EndedError> {
        match found {
            Found::Message(envelope) => Ok(envelope),
            Found::End => Err(self.port.error()),
            Found::Broken(broken) => Err(cut_off(&self.port, broken)),
        }
    }

    /// Gives owed handles slots of their own once so many have gathered that the traffic the other way is too thin to
    /// carry them.
    #[inline]
    fn return_many(&mut self) {
        if self.port.owes() >= self.inbox.many_owed {
            self.return_all();
        }
    }

    #[cold]
    fn return_all(&mut self) {
        while self.port.is_open() && self.port.owes() >= RETURNS {
            let home = std::array::from_fn(|_| self.port.pop_owed());
            if !matches!(self.push(Descriptor::Returns(home)), Ok(true)) {
                // No room now: they go home another way.
                home.into_iter().flatten().for_each(|handle| self.port.push_front_owed(handle));
                return;
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.port.core().fork() == fork::generation() {
            self.port.core().closed_here(self.port.number());
        }
    }
}

impl Inbox {
    fn arrival<'a>(&'a mut self, port: &'a Port) -> (Arrival<'a>, &'a mut Patience, &'a mut Sleeper) {
        let Self { consumer, sender, patience, sleeper, .. } = self;
        (Arrival { consumer, sender, port }, patience, sleeper)
    }
}

/// Waiting for a message.
struct Arrival<'a> {
    consumer: &'a mut Consumer,
    sender: &'a mut Notifier,
    port: &'a Port,
}

/// What a look at the ring can end with.
enum Found {
    Message(Envelope),
    /// There is nothing and nothing will come.
    End,
    Broken(PeerMisbehaved),
}

impl Arrival<'_> {
    /// Books what comes home; passes a message on.
    #[inline]
    fn open(&self, payload: Payload) -> Result<Option<Envelope>, PeerMisbehaved> {
        let core = self.port.core();
        match Descriptor::from_words(payload)? {
            Descriptor::Message(envelope) => {
                if let Some(handle) = envelope.returned {
                    core.loans().give_back(handle)?;
                }
                Ok(Some(envelope))
            }
            Descriptor::Returns(home) => {
                home.into_iter().flatten().try_for_each(|handle| core.loans().give_back(handle))?;
                core.arm();
                Ok(None)
            }
        }
    }
}

impl Source for Arrival<'_> {
    type Item = Found;

    #[inline]
    fn look(&mut self) -> Option<Found> {
        // Read before the ring: what was published before the end must still be found.
        let open = self.port.is_open();
        if self.port.is_over() {
            return Some(Found::End);
        }
        loop {
            let opened = match self.consumer.try_pop() {
                Ok(None) if open => return None,
                Ok(None) => return Some(Found::End),
                Ok(Some(payload)) => self.open(payload),
                Err(broken) => Err(broken),
            };
            self.sender.notify(|| self.consumer.producers_spot());
            match opened {
                Ok(None) => {}
                Ok(Some(envelope)) => return Some(Found::Message(envelope)),
                Err(broken) => return Some(Found::Broken(broken)),
            }
        }
    }

    fn spot(&self) -> (Spot<'_>, u32) {
        self.consumer.spot()
    }
}

/// Waiting for room.
struct Room<'a> {
    producer: &'a mut Producer,
    port: &'a Port,
}

impl Source for Room<'_> {
    type Item = Result<(), PeerMisbehaved>;

    fn look(&mut self) -> Option<Self::Item> {
        match self.producer.has_room() {
            // Not open any more: sending anew says why.
            Ok(room) => (room || !self.port.is_open()).then_some(Ok(())),
            Err(broken) => Some(Err(broken)),
        }
    }

    fn spot(&self) -> (Spot<'_>, u32) {
        self.producer.spot()
    }
}

fn cut_off(port: &Port, broken: PeerMisbehaved) -> EndedError {
    port.core().misbehaved(broken);
    port.error()
}
