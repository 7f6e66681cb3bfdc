//! L2: rings, which never wait: between [`threads`] of one process, and between [`processes`].
//!
//! Below that, the ring that channels are made of: one-line slots, one producer, one consumer, in two processes that do not
//! believe each other. It knows nothing of what slots mean.
//!
//! A slot is one cache line: seven payload words and, published last, its sequence number: one more than the position
//! it was filled at. So one line crosses per message, and a consumer needs nothing else to know that a slot is ready.
//! The consumer's cursor is a publication of its own, read by the producer only when its last copy says full.
//!
//! What is longer than a slot takes several in a row, of which the first is published last.
//!
//! No `unsafe`: a racing or lying peer can make words wrong, never memory.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

#[cfg(not(strait_loom))]
pub(crate) mod broadcast;
mod consumer;
#[cfg(not(strait_loom))]
mod copy;
#[cfg(all(test, strait_loom))]
mod models;
#[cfg(not(strait_loom))]
pub mod processes;
mod producer;
#[cfg(all(test, not(strait_loom)))]
mod tests;
pub mod threads;

pub(crate) use consumer::Consumer;
#[cfg(not(strait_loom))]
pub(crate) use copy::{Outlet, cursor, fill, set_cursor};
pub(crate) use producer::{Full, Producer};

#[cfg(not(strait_loom))]
use crate::sys::words::{OwnWords, PeerWords};

/// What a slot carries.
pub(crate) type Payload = [u64; PAYLOAD];

/// Words of payload in a slot.
pub(crate) const PAYLOAD: usize = 7;

/// Words in a slot: a cache line.
pub(crate) const SLOT: usize = PAYLOAD + 1;

/// The word of a slot that publishes it.
const SEQUENCE: usize = PAYLOAD;

/// Where the parts of a side's area lie, in words. A side writes its own area and reads the other's; parts written at
/// different times are 128 bytes apart, because CPUs fetch lines in pairs.
pub(crate) mod area {
    /// How many of the *other* side's slots this side has consumed.
    pub(crate) const CURSOR: usize = 0;
    /// This side's receiver: three words of its [`wait`](crate::wait), see there.
    pub(crate) const RECEIVER: usize = 16;
    /// This side's sender: as for the receiver.
    pub(crate) const SENDER: usize = 32;
    /// Not 0 while this side means to fill a slot within some tens of microseconds.
    pub(crate) const SOON: usize = 35;
    /// Of a subscriber: every position below was published, and is read no more.
    pub(crate) const RELEASED: usize = 8;
    /// Of a subscriber: positions from here on it has not begun to look at.
    pub(crate) const CLAIMED: usize = 9;
    /// Of a publisher: the lowest position that this subscriber may still begin to look at.
    pub(crate) const FLOOR: usize = 8;
    /// The first of this side's slots.
    pub(crate) const SLOTS: usize = 48;

    /// Words in an area of `slots` slots.
    pub(crate) const fn words(slots: u32) -> usize {
        SLOTS.saturating_add((slots as usize).saturating_mul(super::SLOT))
    }
}

/// How many slots a ring may have: a power of two between these.
pub(crate) const SLOTS_RANGE: std::ops::RangeInclusive<u32> = 2..=1 << 16;

/// How many slots of a ring have been filled so far. Looks at all of them that exist.
#[cfg(not(strait_loom))]
pub(crate) fn filled(own: &OwnWords) -> u64 {
    let sequences = (area::SLOTS + SEQUENCE..own.exist(0)).step_by(SLOT);
    sequences.map(|at| own.peek(at)).max().unwrap_or(0)
}

/// Whether the consumer says that it has emptied every slot filled in `own`. Not for the fast path: looks at all of them.
#[cfg(not(strait_loom))]
pub(crate) fn is_emptied(own: &OwnWords, consumers: &PeerWords) -> bool {
    let filled = filled(own);
    consumers.acquire(area::CURSOR) >= filled
}

/// Slots that a payload takes together with so many words more.
#[inline]
pub(crate) fn slots_for(rest: usize) -> u64 {
    if rest == 0 { 1 } else { several(rest) }
}

#[inline(never)]
fn several(rest: usize) -> u64 {
    (rest.div_ceil(PAYLOAD) as u64).saturating_add(1)
}

/// Positions count up for ever and are cut to a slot by `mask`.
#[inline]
#[expect(clippy::arithmetic_side_effects, reason = "masked by a ring's capacity")]
fn slot_at(position: u64, mask: u64) -> usize {
    area::SLOTS + (position & mask) as usize * SLOT
}
