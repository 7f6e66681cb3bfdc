//! The filling end. Believes its own position, checks the other's cursor.

use super::{PAYLOAD, Payload, SEQUENCE, SLOT, area, slot_at, slots_for};
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
    /// How many slots may be filled at a time.
    limit: u64,
    /// Slots filled so far. Never read back from shared memory.
    filled: u64,
    /// Where the last push began: the slot that published it.
    head: u64,
    /// The last cursor seen, checked: `filled - limit <= consumed <= filled`.
    consumed: u64,
    /// As far as slots may be filled by what is known.
    bound: u64,
    /// As far as they may be filled whatever the consumer has emptied: slots come to exist as the first lap reaches them.
    exist: u64,
    /// That was too little when it was last asked.
    starved: bool,
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "positions are this side's own and counted one by one; the peer's is kept only if it lies between them"
)]
impl Producer {
    /// `own` must have the size of an area of some power of two of slots; `peer` any area's.
    pub(crate) fn new(own: Arc<OwnWords>, peer: Arc<PeerWords>) -> Self {
        let capacity = ((own.len() - area::SLOTS) / SLOT) as u64;
        debug_assert!(capacity.is_power_of_two());
        let (limit, bound, exist, starved) = (capacity, 0, 0, false);
        let mut producer = Self { own, peer, capacity, limit, filled: 0, head: 0, consumed: 0, bound, exist, starved };
        producer.grow(0);
        producer.bound = producer.exist.min(capacity);
        producer
    }

    /// Fills no more than `limit` slots at a time, of which there must be as many.
    #[cfg(not(strait_loom))]
    pub(crate) fn limited(mut self, limit: u64) -> Self {
        debug_assert!((1..=self.capacity).contains(&limit));
        self.limit = limit;
        self.bound = self.bound.min(self.consumed + limit);
        self
    }

    /// Fills the next slot, and as many after it as `rest` takes, and publishes them all at once: from here on the
    /// consumer may read them and everything stored before.
    #[inline(always)]
    pub(crate) fn try_push(&mut self, payload: &Payload, rest: &[u64]) -> Result<Result<(), Full>, PeerMisbehaved> {
        let slots = slots_for(rest.len());
        if !self.has_room(slots)? {
            return Ok(Err(Full));
        }
        let (head, at) = (self.filled, slot_at(self.filled, self.capacity - 1));
        if cfg!(strait_plant = "early-publish") {
            self.own.publish(at + SEQUENCE, head + 1);
        }
        // What comes after the first goes in before it: whoever sees that sees all.
        for (words, position) in rest.chunks(PAYLOAD).zip(head + 1..) {
            let at = slot_at(position, self.capacity - 1);
            self.own.store_run(at, words);
            self.own.store(at + SEQUENCE, position + 1);
        }
        self.own.store_run(at, payload);
        (self.head, self.filled) = (head, head + slots);
        self.own.publish(at + SEQUENCE, head + 1);
        const { assert!(PAYLOAD == SEQUENCE) };
        Ok(Ok(()))
    }

    /// Whether so many slots can be filled now.
    #[inline]
    pub(crate) fn has_room(&mut self, slots: u64) -> Result<bool, PeerMisbehaved> {
        Ok(self.bound - self.filled >= slots || self.refresh(slots)? >= slots)
    }

    /// How many slots can be filled now, as far as is known; looks for more only if that is none.
    #[inline]
    pub(crate) fn room(&mut self) -> Result<u64, PeerMisbehaved> {
        match self.bound - self.filled {
            0 => self.refresh(1),
            known => Ok(known),
        }
    }

    /// Whether there was no room for want of memory, of which the consumer does not tell.
    pub(crate) fn lacks_memory(&self) -> bool {
        self.starved
    }

    /// How many slots were filled so far.
    pub(crate) fn filled(&self) -> u64 {
        self.filled
    }

    /// Where the consumer sleeps for the slot of a position.
    pub(crate) fn consumers_spot_at(&self, position: u64) -> Spot<'_> {
        self.own.spot(slot_at(position, self.capacity - 1) + SEQUENCE)
    }

    /// Says whether another slot will be filled soon.
    pub(crate) fn say_soon(&self, soon: bool) {
        self.own.store(area::SOON, u64::from(soon));
    }

    /// Whether the consumer has emptied every slot that was filled.
    pub(crate) fn is_emptied(&mut self) -> Result<bool, PeerMisbehaved> {
        self.refresh(0)?;
        Ok(self.consumed == self.filled)
    }

    /// Reads the consumer's cursor, and sees to it that so many more slots exist if there is memory; tells how many may be
    /// filled.
    fn refresh(&mut self, slots: u64) -> Result<u64, PeerMisbehaved> {
        // Acquired, so that the consumer has read what these slots held before they are filled anew.
        let found = self.peer.acquire(area::CURSOR);
        if found < self.consumed || found > self.filled {
            return Err(PeerMisbehaved::CursorOutOfRange { found, low: self.consumed, high: self.filled });
        }
        self.consumed = found;
        if self.exist - self.filled < slots {
            self.grow(slots);
        }
        self.starved = self.exist - self.filled < slots;
        self.bound = self.exist.min(found + self.limit);
        Ok(self.bound - self.filled)
    }

    /// Has further slots exist, if there is memory. Slots may be filled once the one after them exists, which the consumer
    /// looks at next.
    #[cold]
    fn grow(&mut self, slots: u64) {
        let last = (self.filled + slots).min(self.capacity - 1);
        let exist = self.own.exist(slot_at(last, self.capacity - 1) + SLOT);
        let exist = (exist.saturating_sub(area::SLOTS) / SLOT) as u64;
        // From the second lap on all of them do.
        self.exist = if exist >= self.capacity { u64::MAX } else { exist.saturating_sub(1) };
    }

    /// The last cursor seen.
    #[cfg(test)]
    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Where the consumer sleeps for what was pushed last: it slept before that was published, or not at all.
    #[inline]
    pub(crate) fn consumers_spot(&self) -> Spot<'_> {
        self.own.spot(slot_at(self.head, self.capacity - 1) + SEQUENCE)
    }

    /// Where to sleep until the consumer's cursor moves on from the value given.
    pub(crate) fn spot(&self) -> (Spot<'_>, u32) {
        (self.peer.spot(area::CURSOR), self.consumed as u32)
    }
}
