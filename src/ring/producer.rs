//! The filling end. Believes its own position, checks the other's cursor.

use super::{PAYLOAD, Payload, SEQUENCE, SLOT, area, slot_at};
use crate::sys::futex::Spot;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::{OwnWords, PeerWords};
use std::sync::Arc;

/// The ring has no room: the consumer is slower.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Fills slots in its own area.
pub(crate) struct Producer {
    own: Arc<OwnWords>,
    peer: Arc<PeerWords>,
    capacity: u64,
    /// Slots filled so far. Never read back from shared memory.
    filled: u64,
    /// The last cursor seen, checked: `filled - capacity <= consumed <= filled`.
    consumed: u64,
}

impl Producer {
    /// `own` must have the size of an area of some power of two of slots; `peer` any area's.
    pub(crate) fn new(own: Arc<OwnWords>, peer: Arc<PeerWords>) -> Self {
        let capacity = ((own.len() - area::SLOTS) / SLOT) as u64;
        debug_assert!(capacity.is_power_of_two());
        Self { own, peer, capacity, filled: 0, consumed: 0 }
    }

    /// Fills the next slot and publishes it: from here on the consumer may read it and everything stored before.
    #[inline]
    pub(crate) fn try_push(&mut self, payload: &Payload) -> Result<Result<(), Full>, PeerMisbehaved> {
        if self.filled - self.consumed == self.capacity && self.refresh()? == 0 {
            return Ok(Err(Full));
        }
        let at = slot_at(self.filled, self.capacity - 1);
        if cfg!(strait_plant = "early-publish") {
            self.own.publish(at + SEQUENCE, self.filled + 1);
        }
        for (index, &word) in payload.iter().enumerate() {
            self.own.store(at + index, word);
        }
        self.filled += 1;
        self.own.publish(at + SEQUENCE, self.filled);
        const { assert!(PAYLOAD == SEQUENCE) };
        Ok(Ok(()))
    }

    /// Whether a push would succeed now.
    pub(crate) fn has_room(&mut self) -> Result<bool, PeerMisbehaved> {
        Ok(self.filled - self.consumed < self.capacity || self.refresh()? > 0)
    }

    /// Whether the consumer has emptied every slot that was filled.
    pub(crate) fn is_emptied(&mut self) -> Result<bool, PeerMisbehaved> {
        self.refresh()?;
        Ok(self.consumed == self.filled)
    }

    /// Reads the consumer's cursor; tells how many slots are free.
    fn refresh(&mut self) -> Result<u64, PeerMisbehaved> {
        // Acquired, so that the consumer has read what these slots held before they are filled anew.
        let found = self.peer.acquire(area::CURSOR);
        if found < self.consumed || found > self.filled {
            return Err(PeerMisbehaved::CursorOutOfRange { found, low: self.consumed, high: self.filled });
        }
        self.consumed = found;
        Ok(self.capacity - (self.filled - self.consumed))
    }

    /// The last cursor seen.
    #[cfg(test)]
    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Where the consumer sleeps for the slot filled last: it slept before that was published, or not at all.
    #[inline]
    pub(crate) fn consumers_spot(&self) -> Spot<'_> {
        self.own.spot(slot_at(self.filled.wrapping_sub(1), self.capacity - 1) + SEQUENCE)
    }

    /// Where to sleep until the consumer's cursor moves on from the value given.
    pub(crate) fn spot(&self) -> (Spot<'_>, u32) {
        (self.peer.spot(area::CURSOR), self.consumed as u32)
    }
}
