//! Rings that something else than shared memory carries: read where they are filled, filled again where they are
//! emptied. Knows positions, not what slots mean.

use super::{PAYLOAD, Payload, SEQUENCE, SLOT, area, slot_at};
use crate::sys::futex;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::sync::{Ordering, fence};
use crate::sys::words::OwnWords;

/// How far this side's ring has been carried to the other side.
#[derive(Debug, Default)]
pub(crate) struct Outlet {
    carried: u64,
}

#[expect(clippy::arithmetic_side_effects, reason = "positions are this side's own, as is the ring")]
impl Outlet {
    /// The next slot that is filled and not carried yet.
    pub(crate) fn next(&self, own: &OwnWords) -> Result<Option<Payload>, PeerMisbehaved> {
        let capacity = ((own.len() - area::SLOTS) / SLOT) as u64;
        let (at, expected) = (slot_at(self.carried, capacity - 1), self.carried + 1);
        let sequence = || {
            let found = own.peek(at + SEQUENCE);
            // Partner: `OwnWords::publish`, by whoever sends.
            fence(Ordering::Acquire);
            found
        };
        let overtaken = |found| Err(PeerMisbehaved::CursorOutOfRange { found, low: 0, high: self.carried });
        match sequence() {
            found if found < expected => return Ok(None),
            found if found > expected => return overtaken(found),
            _ => {}
        }
        let payload = std::array::from_fn(|index| own.peek(at + index));
        // A peer may have lied about what it has emptied, and the slot been filled anew meanwhile.
        match sequence() {
            found if found == expected => Ok(Some(payload)),
            found => overtaken(found),
        }
    }

    /// Whether so many slots are on their way.
    pub(crate) fn has_carried(&self, slots: u64) -> bool {
        self.carried >= slots
    }

    /// It is on its way.
    pub(crate) fn advance(&mut self) {
        self.carried += 1;
    }
}

#[expect(clippy::arithmetic_side_effects, reason = "`position` is counted slot by slot, and a ring has at least two")]
/// Fills a slot of a copied ring and wakes whoever waits for it. One that is not empty yet is found by its reader.
pub(crate) fn fill(copy: &OwnWords, position: u64, payload: &Payload) {
    let capacity = ((copy.len() - area::SLOTS) / SLOT) as u64;
    let at = slot_at(position, capacity - 1);
    const { assert!(PAYLOAD == SEQUENCE) };
    payload.iter().enumerate().for_each(|(index, &word)| copy.store(at + index, word));
    copy.publish(at + SEQUENCE, position + 1);
    futex::wake(copy.spot(at + SEQUENCE));
}

/// How many slots this side has emptied.
pub(crate) fn cursor(own: &OwnWords) -> u64 {
    own.peek(area::CURSOR)
}

/// Notes how many slots the other side has emptied, and wakes whoever waits for room.
pub(crate) fn set_cursor(copy: &OwnWords, cursor: u64) {
    copy.publish(area::CURSOR, cursor);
    futex::wake(copy.spot(area::CURSOR));
}
