//! A ring that one process fills and many others read, each at its own pace. Its slots are those of any ring; nobody's
//! cursor is looked at here: whoever fills a slot anew has seen to it that those who may still read it are told.

#![expect(
    clippy::arithmetic_side_effects,
    reason = "positions are masked by the ring's size, which its area was made or checked for; differences are compared first"
)]

use super::{PAYLOAD, Payload, SEQUENCE, SLOT, area, slot_at};
use crate::sys::futex::Spot;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::sync::{Ordering, fence};
use crate::sys::words::{OwnWords, PeerWords};

/// What a reader finds at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Not published yet.
    NotYet,
    There,
    /// Another message by now, a lap or more later.
    Gone,
}

/// Fills the slot of a position and publishes it.
#[inline]
pub(crate) fn put(own: &OwnWords, position: u64, payload: &Payload) {
    let at = slot_at(position, slots(own.len()) - 1);
    const { assert!(PAYLOAD == SEQUENCE) };
    for (index, &word) in payload.iter().enumerate() {
        own.store(at + index, word);
    }
    own.publish(at + SEQUENCE, position + 1);
}

/// Where those sleep who wait for a position.
pub(crate) fn spot(own: &OwnWords, position: u64) -> Spot<'_> {
    own.spot(slot_at(position, slots(own.len()) - 1) + SEQUENCE)
}

/// Looks whether a position was published.
#[inline]
pub(crate) fn look(peer: &PeerWords, position: u64) -> Result<Look, PeerMisbehaved> {
    let slots = slots(peer.len());
    let expected = position.wrapping_add(1);
    let found = peer.acquire(slot_at(position, slots - 1) + SEQUENCE);
    match found {
        _ if found == expected => Ok(Look::There),
        _ if found == before(position, slots) => Ok(Look::NotYet),
        _ if found > expected && (found - expected).is_multiple_of(slots) => Ok(Look::Gone),
        _ => Err(PeerMisbehaved::SequenceOutOfRange { found, expected }),
    }
}

/// The words of a position that was published, as they are now. To be followed by a look whether they still were its own:
/// that look sees what the writer of other words said before it wrote them.
#[inline]
pub(crate) fn read(peer: &PeerWords, position: u64) -> Payload {
    let at = slot_at(position, slots(peer.len()) - 1);
    let payload = std::array::from_fn(|index| peer.peek(at + index));
    // Partner: the publisher's fence between raising a floor and filling slots below it.
    fence(Ordering::Acquire);
    payload
}

/// Where to sleep until a position is published, and what that word holds until then.
pub(crate) fn awaited(peer: &PeerWords, position: u64) -> (Spot<'_>, u32) {
    let slots = slots(peer.len());
    (peer.spot(slot_at(position, slots - 1) + SEQUENCE), before(position, slots) as u32)
}

/// How many slots an area of so many words has.
#[inline]
pub(crate) fn slots(words: usize) -> u64 {
    ((words - area::SLOTS) / SLOT) as u64
}

/// What the slot of a position says before that is published.
#[inline]
fn before(position: u64, slots: u64) -> u64 {
    position.wrapping_add(1).saturating_sub(slots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::words::shared;

    #[test]
    fn every_position_is_found_once_it_is_published_and_until_it_is_overwritten() {
        let (own, peer) = shared(area::words(4));
        for position in 0..20_u64 {
            assert_eq!(look(&peer, position), Ok(Look::NotYet));
            put(&own, position, &[position; PAYLOAD]);
            assert_eq!(look(&peer, position), Ok(Look::There));
            assert_eq!(read(&peer, position), [position; PAYLOAD]);
            if position >= 4 {
                assert_eq!(look(&peer, position - 4), Ok(Look::Gone));
            }
        }
    }

    #[test]
    fn other_sequences_are_breaches() {
        let (own, peer) = shared(area::words(4));
        for found in [1, 2, 3, 5, 7, u64::MAX] {
            own.publish(area::SLOTS + SEQUENCE, found);
            let expected = 9;
            let breach = Err(PeerMisbehaved::SequenceOutOfRange { found, expected });
            assert_eq!(look(&peer, 8), if found == 5 { Ok(Look::NotYet) } else { breach }, "{found}");
        }
    }
}
