//! The emptying end. Believes its own position, checks every sequence number.

use super::{PAYLOAD, Payload, SEQUENCE, SLOT, area, slot_at, slots_for};
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

#[expect(
    clippy::arithmetic_side_effects,
    reason = "positions are this side's own and counted one by one; a peer's words are only compared with them"
)]
impl Consumer {
    /// `peer` must have the size of an area of some power of two of slots; `own` any area's.
    pub(crate) fn new(own: Arc<OwnWords>, peer: Arc<PeerWords>) -> Self {
        let capacity = ((peer.len() - area::SLOTS) / SLOT) as u64;
        debug_assert!(capacity.is_power_of_two());
        Self { own, peer, capacity, emptied: 0, peeked: None }
    }

    /// Takes the next slot if it is filled, each word read once.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn try_pop(&mut self) -> Result<Option<Payload>, PeerMisbehaved> {
        let mut payload = [0; PAYLOAD];
        if !self.read_next(&mut payload)? {
            return Ok(None);
        }
        self.advance(1);
        Ok(Some(payload))
    }

    /// Reads the next slot, each word once; false if it is not filled. To be followed by [`advance`](Self::advance).
    #[inline(always)]
    pub(crate) fn read_next(&mut self, into: &mut Payload) -> Result<bool, PeerMisbehaved> {
        if self.peeked.is_some() { Ok(self.take_peeked(into)) } else { self.read(into) }
    }

    #[cold]
    fn take_peeked(&mut self, into: &mut Payload) -> bool {
        self.peeked.take().map(|payload| *into = payload).is_some()
    }

    /// What was pushed together with the next slot, which has just been read: the words of the slots after it. Tells how
    /// many slots it is all in all.
    #[inline]
    pub(crate) fn read_rest(&self, rest: &mut [u64]) -> Result<u64, PeerMisbehaved> {
        for (words, position) in rest.chunks_mut(PAYLOAD).zip(self.emptied + 1..) {
            let (at, expected) = (slot_at(position, self.capacity - 1), position + 1);
            // Stored before the next slot was published, which has been acquired.
            let found = self.peer.peek(at + SEQUENCE);
            if found != expected {
                return Err(PeerMisbehaved::SequenceOutOfRange { found, expected });
            }
            self.peer.peek_run(at, words);
        }
        Ok(slots_for(rest.len()))
    }

    /// Lets go of slots that have been read.
    #[inline]
    pub(crate) fn advance(&mut self, slots: u64) {
        self.emptied += slots;
        // From here on the producer may fill them again: the loads before come first, because this is a release.
        self.own.publish(area::CURSOR, self.emptied);
    }

    /// As [`advance`](Self::advance), but the producer learns of it by the next [`say_emptied`](Self::say_emptied).
    #[inline]
    pub(crate) fn advance_unsaid(&mut self, slots: u64) {
        self.emptied += slots;
    }

    #[inline]
    pub(crate) fn say_emptied(&self) {
        // As in `advance`.
        self.own.publish(area::CURSOR, self.emptied);
    }

    /// Whether the producer says that it fills another slot soon. It may never do so.
    pub(crate) fn is_promised(&self) -> bool {
        self.peer.peek(area::SOON) != 0
    }

    /// What [`read_next`](Self::read_next) would read; it stays the producer's to wait for until then.
    #[inline]
    pub(crate) fn peek(&mut self) -> Result<Option<&Payload>, PeerMisbehaved> {
        let mut payload = [0; PAYLOAD];
        if self.peeked.is_none() && self.read(&mut payload)? {
            self.peeked = Some(payload);
        }
        Ok(self.peeked.as_ref())
    }

    /// Whether [`read_next`](Self::read_next) has anything to say.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        // Nothing is learnt from this word but that it is time to read it properly.
        self.peeked.is_some() || self.peer.peek(self.next() + SEQUENCE) != self.lap_before()
    }

    #[inline(always)]
    fn read(&self, into: &mut Payload) -> Result<bool, PeerMisbehaved> {
        let at = self.next();
        let expected = self.emptied + 1;
        let found = self.peer.acquire(at + SEQUENCE);
        if found != expected {
            // Not filled yet: the slot is as the lap before left it, or never used.
            return if found == self.lap_before() {
                Ok(false)
            } else {
                Err(PeerMisbehaved::SequenceOutOfRange { found, expected })
            };
        }
        self.peer.peek_run(at, into);
        Ok(true)
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
