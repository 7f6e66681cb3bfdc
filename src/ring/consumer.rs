//! The emptying end. Believes its own position, checks every sequence number.

use super::{Payload, SEQUENCE, SLOT, area, slot_at};
use crate::sys::futex::Spot;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::{OwnWords, PeerWords};
use std::sync::{Arc, Weak};

/// Empties slots of the peer's area.
pub(crate) struct Consumer {
    own: Arc<OwnWords>,
    peer: Arc<PeerWords>,
    capacity: u64,
    /// Slots emptied so far. Never read back from shared memory.
    emptied: u64,
    /// The next slot's words, if they were read already: nothing is read twice.
    peeked: Option<Payload>,
}

impl Consumer {
    /// `peer` must have the size of an area of some power of two of slots; `own` any area's.
    pub(crate) fn new(own: Arc<OwnWords>, peer: Arc<PeerWords>) -> Self {
        let capacity = ((peer.len() - area::SLOTS) / SLOT) as u64;
        debug_assert!(capacity.is_power_of_two());
        Self { own, peer, capacity, emptied: 0, peeked: None }
    }

    /// Takes the next slot if it is filled, each word read once.
    #[inline]
    pub(crate) fn try_pop(&mut self) -> Result<Option<Payload>, PeerMisbehaved> {
        let payload = match self.peeked.take() {
            Some(payload) => payload,
            None => match self.read()? {
                Some(payload) => payload,
                None => return Ok(None),
            },
        };
        self.emptied += 1;
        // From here on the producer may fill the slot again: the loads above come first, because this is a release.
        self.own.publish(area::CURSOR, self.emptied);
        Ok(Some(payload))
    }

    /// What [`try_pop`](Self::try_pop) would take; it stays the producer's to wait for until then.
    #[inline]
    pub(crate) fn peek(&mut self) -> Result<Option<&Payload>, PeerMisbehaved> {
        if self.peeked.is_none() {
            self.peeked = self.read()?;
        }
        Ok(self.peeked.as_ref())
    }

    /// Whether [`try_pop`](Self::try_pop) has anything to say.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        // Nothing is learnt from this word but that it is time to read it properly.
        self.peeked.is_some() || self.peer.peek(self.next() + SEQUENCE) != self.lap_before()
    }

    #[inline]
    fn read(&self) -> Result<Option<Payload>, PeerMisbehaved> {
        let at = self.next();
        let expected = self.emptied + 1;
        let found = self.peer.acquire(at + SEQUENCE);
        if found != expected {
            // Not filled yet: the slot is as the lap before left it, or never used.
            return if found == self.lap_before() {
                Ok(None)
            } else {
                Err(PeerMisbehaved::SequenceOutOfRange { found, expected })
            };
        }
        Ok(Some(std::array::from_fn(|index| self.peer.peek(at + index))))
    }

    /// Where to sleep until the next slot is filled, and what that word holds until then.
    pub(crate) fn spot(&self) -> (Spot<'_>, u32) {
        (self.peer.spot(self.next() + SEQUENCE), self.lap_before() as u32)
    }

    /// A word that stays as it is until the next slot is taken, and what it holds: for whoever waits for something else.
    pub(crate) fn quiet_spot(&self) -> (Spot<'_>, u32) {
        (self.own.spot(area::CURSOR), self.emptied as u32)
    }

    /// What the next slot's sequence is until it is filled.
    #[inline]
    fn lap_before(&self) -> u64 {
        (self.emptied + 1).saturating_sub(self.capacity)
    }

    /// The area it empties, for whoever may outlive it.
    pub(crate) fn theirs(&self) -> Weak<PeerWords> {
        Arc::downgrade(&self.peer)
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Where the producer sleeps for room.
    pub(crate) fn producers_spot(&self) -> Spot<'_> {
        self.own.spot(area::CURSOR)
    }

    fn next(&self) -> usize {
        slot_at(self.emptied, self.capacity - 1)
    }
}
