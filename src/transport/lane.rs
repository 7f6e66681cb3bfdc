//! One channel's two rings with the waiting around them: slots in, slots out, asleep in between. Sends home what is owed
//! with whatever goes that way, and books what comes home. Knows slots, not messages.

use super::control::Knock;
use super::descriptor::{Arrived, Descriptor, FIRST_INSIDE, Parcel, RETURNS, Return};
use super::ended::Over;
use super::inbox::{Inbox, Taken};
use super::link::Link;
use super::port::{NoMessage, Port};
use crate::ring::{Full, PAYLOAD, Payload, Producer, area, slots_for};
use crate::shm::handle::Handle;
use crate::shm::inside::INSIDE_WORDS;
use crate::sys::futex::Spot;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::passed::Fds;
use crate::sys::words::{OwnWords, PeerWords};
use crate::wait::{self, Deadline, Notifier, Patience, Roused, Sleeper, Source, Wait};
use std::ops::Deref;
use std::sync::Arc;
use thiserror::Error;

/// There was no room in time, or it is over.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum LaneError {
    #[error("timed out")]
    TimedOut,
    #[error(transparent)]
    Ended(#[from] Over),
}

/// See the module's own words.
pub(crate) struct Lane {
    outbox: Outbox,
    /// Owed handles beyond which they get slots of their own.
    many_owed: usize,
    /// The last to be dropped.
    port: Closing,
}

/// Closes the channel when it goes. The other side may be told then that nothing here looks at its half any more.
struct Closing(Arc<Port>);

struct Outbox {
    producer: Producer,
    sleeper: Sleeper,
    receiver: Notifier,
    patience: Patience,
    wakes: u64,
    /// Slots sent since the last look for returns.
    unlooked: u32,
    /// The peer was told to wait for the next slot awake.
    promised: bool,
}

/// Slots after which a sender looks for returns itself.
const COLLECT_EVERY: u32 = 16;

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
    /// How often the sender went to sleep for want of room.
    pub stalls: u64,
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
        let inbox = Inbox::new(own.clone(), peer.clone(), fence, strategy);
        Self {
            many_owed: usize::try_from(producer.capacity() / 2).unwrap_or(usize::MAX),
            outbox: Outbox {
                producer,
                sleeper: Sleeper::new(own.clone(), area::SENDER, peer.clone(), area::RECEIVER, area::RECEIVER),
                receiver: Notifier::new(own, area::SENDER, peer, area::RECEIVER, fence),
                patience: Patience::new(strategy),
                wakes: 0,
                unlooked: 0,
                promised: false,
            },
            port: Closing(link.port(number, name, inbox)),
        }
    }

    pub(crate) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// How many words of a message may travel inside its slots: half of them, so that another one fits as well; as many as
    /// one has where slots are carried one by one.
    pub(crate) fn inside_max(&self) -> usize {
        let slots = if self.port.core().is_carried() { 1 } else { self.many_owed };
        INSIDE_WORDS.min(FIRST_INSIDE + PAYLOAD * slots.saturating_sub(1))
    }

    pub(crate) fn set_wait(&mut self, strategy: Wait) {
        self.port.with_inbox(|inbox| inbox.patience = Patience::new(strategy));
        self.outbox.patience = Patience::new(strategy);
    }

    pub(crate) fn strategy(&self) -> Wait {
        self.outbox.patience.strategy()
    }

    pub(crate) fn stats(&self) -> WaitStats {
        let (sleeps, receives) = self.port.with_inbox(|inbox| inbox.patience.counts()).unwrap_or_default();
        let (stalls, _) = self.outbox.patience.counts();
        WaitStats { receives, sleeps, wakes: self.outbox.wakes, stalls }
    }

    /// Sends a slot if there is room at once; a handle that is owed rides along. Descriptors of the message go ahead of
    /// it, through the socket.
    #[inline(always)]
    pub(crate) fn try_send(&mut self, parcel: Parcel<'_>) -> Result<bool, Over> {
        let Parcel { envelope, rest, fds } = parcel;
        if !self.port.is_open() {
            return Err(self.port.over());
        }
        if let Some(fds) = fds
            && !self.pass(envelope.id(), fds)?
        {
            return Ok(false);
        }
        // What the peer has returned may lie in the ring of a side that only ever sends.
        self.outbox.unlooked += 1;
        if self.outbox.unlooked >= COLLECT_EVERY {
            self.outbox.unlooked = 0;
            self.port.collect();
        }
        let returned = if envelope.carries_returns() { self.port.pop_owed() } else { self.return_some() };
        let slot = envelope.returning(returned);
        let mut sent = self.push(slot.words(), rest);
        if matches!(sent, Ok(false)) && self.room_or_door(slots_for(rest.len()))? {
            sent = self.push(slot.words(), rest);
        }
        if let (Some(handle), Ok(false)) = (returned, &sent) {
            self.port.push_front_owed(Return { handle, times: 1 });
        }
        sent
    }

    /// How many slots can be filled at once, after a look for what has come home and for what is to go there.
    pub(crate) fn room(&mut self) -> Result<usize, Over> {
        if !self.port.is_open() {
            return Err(self.port.over());
        }
        self.port.collect();
        self.return_some();
        let mut room = self.outbox.producer.room();
        if matches!(room, Ok(0)) && self.room_or_door(1)? {
            room = self.outbox.producer.room();
        }
        match room {
            Ok(room) => Ok(usize::try_from(room).unwrap_or(usize::MAX)),
            Err(broken) => Err(self.port.cut_off(broken)),
        }
    }

    /// Sends messages, as many as there is room for, and wakes their receiver once; tells how many. Nothing travels beside
    /// them.
    pub(crate) fn send_many(&mut self, parcels: &[Parcel<'_>]) -> Result<usize, Over> {
        let (first, mut sent) = (self.outbox.producer.filled(), 0);
        for Parcel { envelope, rest, .. } in parcels {
            let returned = if envelope.carries_returns() { self.port.pop_owed() } else { None };
            match self.outbox.producer.try_push(envelope.returning(returned).words(), rest) {
                Ok(Ok(())) => sent += 1,
                Ok(Err(Full)) => {
                    if let Some(handle) = returned {
                        self.port.push_front_owed(Return { handle, times: 1 });
                    }
                    break;
                }
                Err(broken) => return Err(self.port.cut_off(broken)),
            }
        }
        if sent > 0 {
            self.tell(Some(first));
        }
        Ok(sent)
    }

    /// Sends a slot, waiting for room until the deadline.
    #[inline(always)]
    pub(crate) fn send(&mut self, parcel: Parcel<'_>, deadline: &mut Deadline) -> Result<(), LaneError> {
        while !self.try_send(parcel)? {
            self.wait_for_room(parcel, deadline)?;
        }
        Ok(())
    }

    /// No room: if somebody listens, the peer has to ring once there is. True if there is by now.
    #[cold]
    fn room_or_door(&mut self, slots: u64) -> Result<bool, Over> {
        if !self.port.door.is_listened() {
            return Ok(false);
        }
        self.outbox.sleeper.go_to_door();
        // What was emptied before anyone could see that this end is there.
        let room = self.outbox.producer.has_room(slots).map_err(|broken| self.port.cut_off(broken))?;
        if room {
            self.outbox.sleeper.get_up();
        } else if self.outbox.producer.lacks_memory() {
            self.port.look_again_later(Knock::EMPTIED);
        }
        Ok(room)
    }

    /// Passes descriptors if their message can follow at once, as it must: nobody else fills this ring, so what room
    /// there is stays.
    #[cold]
    fn pass(&mut self, message: u64, fds: &Fds) -> Result<bool, Over> {
        match self.outbox.producer.has_room(1) {
            Ok(room) => Ok(room && self.port.core().pass(self.port.number(), message, fds)),
            Err(broken) => Err(self.port.cut_off(broken)),
        }
    }

    /// Waits until there is room for a message, and for its descriptors; or the channel is over, which sending anew then
    /// tells.
    #[cold]
    pub(crate) fn wait_for_room(&mut self, parcel: Parcel<'_>, deadline: &mut Deadline) -> Result<(), LaneError> {
        let slots = slots_for(parcel.rest.len());
        self.wait_until(|producer| producer.has_room(slots), deadline)?;
        match parcel.fds {
            Some(fds) if !self.port.core().wait_for_window(&self.port, fds.len(), deadline) => Err(LaneError::TimedOut),
            _ => Ok(()),
        }
    }

    /// Waits for room for the first of some messages, or, if that has not been looked at, for `many` slots or a quarter of
    /// the ring, whichever is less: whoever has many to send wakes less often.
    #[cold]
    pub(crate) fn wait_for_more_room(
        &mut self,
        first: Option<&Parcel<'_>>,
        many: usize,
        deadline: &mut Deadline,
    ) -> Result<(), LaneError> {
        let part = (self.outbox.producer.capacity() / 4).min(many as u64).max(1);
        let slots = first.map_or(part, |first| slots_for(first.rest.len()));
        self.wait_until(|producer| producer.has_room(slots), deadline)
    }

    /// Waits until the peer has taken everything that was sent.
    #[cold]
    pub(crate) fn drain(&mut self, deadline: &mut Deadline) -> Result<(), LaneError> {
        self.wait_until(Producer::is_emptied, deadline)?;
        match self.outbox.producer.is_emptied() {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.port.over().into()),
            Err(broken) => Err(self.port.cut_off(broken).into()),
        }
    }

    fn wait_until(&mut self, enough: impl Progress, deadline: &mut Deadline) -> Result<(), LaneError> {
        let mut room = Room { outbox: &mut self.outbox, port: &self.port, enough };
        let ready = wait::wait(&mut room, &self.port.bell, deadline);
        if self.port.door.is_listened() {
            // This wait has ended the one at the door.
            self.port.door.tell(Knock::EMPTIED);
        }
        if !ready {
            return Err(LaneError::TimedOut);
        }
        self.outbox.patience.found();
        Ok(())
    }

    #[inline(always)]
    fn push(&mut self, slot: &Payload, rest: &[u64]) -> Result<bool, Over> {
        match self.outbox.producer.try_push(slot, rest) {
            Ok(Ok(())) => {
                self.tell(None);
                Ok(true)
            }
            Ok(Err(Full)) => Ok(false),
            Err(broken) => Err(self.port.cut_off(broken)),
        }
    }

    /// What was pushed last, or since position `first`, is there to be received: wakes whoever waits for it, who sleeps on
    /// that slot if at all.
    #[inline(always)]
    fn tell(&mut self, first: Option<u64>) {
        let Outbox { producer, receiver, wakes, .. } = &mut self.outbox;
        let roused = receiver.notify(|| match first {
            None => producer.consumers_spot(),
            Some(first) => producer.consumers_spot_at(first),
        });
        if roused != Roused::Awake {
            *wakes += 1;
        }
        if roused == Roused::AtDoor {
            self.port.core().ring(&self.port, Knock::FILLED);
        }
        self.port.core().carry(self.port.number());
        if self.outbox.promised {
            self.promise(false);
        }
    }

    /// Tells the peer whether to wait for the next slot awake, as far as its way of waiting lets it.
    #[cold]
    pub(crate) fn promise(&mut self, soon: bool) {
        self.outbox.promised = soon;
        self.outbox.producer.say_soon(soon);
    }

    /// Fills `taken`, which is empty, with messages that there are already.
    pub(crate) fn try_recv_many(&mut self, taken: &mut Taken) -> Result<(), NoMessage> {
        self.return_many();
        self.port.try_receive_many(taken)
    }

    /// The next message if there is one already.
    #[inline]
    pub(crate) fn try_recv(&mut self, into: &mut Arrived) -> Result<bool, NoMessage> {
        self.return_many();
        self.port.try_receive(into)
    }

    /// The next message, waiting until the deadline.
    #[inline]
    pub(crate) fn recv(&mut self, into: &mut Arrived, deadline: &mut Deadline) -> Result<(), NoMessage> {
        self.return_many();
        self.port.receive(into, deadline)
    }

    /// Gives owed handles slots of their own once so many have gathered that the traffic the other way is too thin to
    /// carry them.
    #[inline]
    pub(crate) fn return_many(&mut self) {
        if self.port.owes() >= self.many_owed {
            self.return_all();
        }
    }

    /// For a slot that has no room for a handle: those that are owed go first, once they fill a slot.
    #[inline]
    fn return_some(&mut self) -> Option<Handle> {
        if self.port.owes() >= RETURNS {
            self.return_all();
        }
        None
    }

    #[cold]
    fn return_all(&mut self) {
        while self.port.is_open() && self.port.owes() >= RETURNS {
            let home = self.port.pop_many_owed();
            if home.iter().all(Option::is_none) {
                // The watcher was quicker.
                return;
            }
            if !matches!(self.push(&Descriptor::Returns(home).to_words(), &[]), Ok(true)) {
                // No room now: they go home another way.
                home.into_iter().rev().flatten().for_each(|back| self.port.push_front_owed(back));
                return;
            }
            self.port.returned_in_slots();
        }
    }
}

impl Deref for Closing {
    type Target = Arc<Port>;

    #[inline]
    fn deref(&self) -> &Arc<Port> {
        &self.0
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if !self.core().is_forked() {
            if let Some(inbox) = self.take_inbox() {
                self.core().closed_here(self.number(), inbox);
            }
            self.leave_door();
        }
    }
}

/// Whether the peer has emptied enough slots.
trait Progress: FnMut(&mut Producer) -> Result<bool, PeerMisbehaved> {}

impl<F: FnMut(&mut Producer) -> Result<bool, PeerMisbehaved>> Progress for F {}

/// Waiting for the peer to empty slots.
struct Room<'a, P> {
    outbox: &'a mut Outbox,
    port: &'a Port,
    enough: P,
}

impl<P: Progress> Source for Room<'_, P> {
    fn ready(&mut self) -> bool {
        // Not open any more, or a cursor that cannot be: sending anew says so.
        (self.enough)(&mut self.outbox.producer).unwrap_or(true) || !self.port.is_open()
    }

    fn spot(&self) -> (Spot<'_>, u32) {
        self.outbox.producer.spot()
    }

    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper) {
        (&mut self.outbox.patience, &mut self.outbox.sleeper)
    }

    fn attends(&mut self) -> bool {
        self.port.core().attend() || self.outbox.producer.lacks_memory()
    }
}
