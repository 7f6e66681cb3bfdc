//! Two sides in one process: order, room, and everything a descriptor may be that is no side. What two processes make of it
//! is in `tests/rings.rs`.

use super::{BYTES_MAX, JoinError, MAGIC, PopError, PushError, Side, area, header};
use crate::sys::lent::Lent;
use crate::sys::memfd::BadMemory;
use crate::sys::misbehaved::PeerMisbehaved;
use std::os::fd::OwnedFd;

fn pair(capacity: usize) -> (super::Producer<[u8; 9]>, super::Consumer<[u8; 9]>) {
    let (one, other) = (Side::create(capacity).unwrap(), Side::create(1).unwrap());
    let (ones, others) = (one.descriptor().unwrap(), other.descriptor().unwrap());
    (one.join(others).unwrap().0, other.join(ones).unwrap().1)
}

#[test]
fn values_come_out_as_they_went_in_and_the_room_is_what_was_asked_for() {
    for capacity in [1, 2, 3, 10, 64] {
        let (mut producer, mut consumer) = pair(capacity);
        for lap in 0..5_u8 {
            for number in 0..capacity as u8 {
                producer.try_push([lap ^ number; 9]).unwrap();
            }
            assert_eq!(producer.try_push([0; 9]), Err(PushError::Full));
            for number in 0..capacity as u8 {
                assert_eq!(consumer.try_pop(), Ok([lap ^ number; 9]));
            }
            assert_eq!(consumer.try_pop(), Err(PopError::Empty));
        }
    }
}

#[test]
fn the_largest_side_fits_what_is_accepted() {
    let bytes = ((header::WORDS + area::words(1 << 16)) * 8).next_multiple_of(crate::sys::memfd::PAGE) as u64;
    assert!(bytes <= BYTES_MAX);
    let (mut producer, mut consumer) = pair(1 << 16);
    producer.try_push([1; 9]).unwrap();
    assert_eq!(consumer.try_pop(), Ok([1; 9]));
    for refused in [0, (1 << 16) + 1, usize::MAX] {
        assert_eq!(Side::<u64>::create(refused).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
}

/// Memory with these words at its start, and the room of a ring of two.
fn forged(words: [u64; 4]) -> OwnedFd {
    let lent = Lent::create(header::WORDS + area::words(2)).unwrap();
    let start = lent.words(0..header::WORDS).unwrap();
    words.into_iter().enumerate().for_each(|(index, word)| start.store(index, word));
    lent.descriptor().unwrap()
}

#[test]
fn what_is_no_side_of_this_ring_is_refused() {
    let join = |fd: OwnedFd| Side::<u64>::create(2).unwrap().join(fd);
    let digest = super::digest::<u64>();
    assert!(join(forged([MAGIC, 2, 8, digest])).is_ok());
    assert!(matches!(join(forged([MAGIC ^ 1, 2, 8, digest])), Err(JoinError::NotASide)));
    for lie in [(4, digest), (16, digest), (8, super::digest::<i64>())] {
        assert!(matches!(join(forged([MAGIC, 2, lie.0, lie.1])), Err(JoinError::OtherType { expected: "u64" })));
    }
    // What a page has room for is allowed; what it has not, and what no ring has, is not.
    for lie in [0, 1, 3, 1 << 15, 1 << 17, 1 << 32, u64::MAX] {
        assert!(matches!(join(forged([MAGIC, lie, 8, digest])), Err(JoinError::Slots { found }) if found == lie));
    }
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(join(file.into()), Err(JoinError::Memory(_))));
    let memfd = nix::sys::memfd::memfd_create(c"unsealed", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&memfd, 1 << 16).unwrap();
    assert!(matches!(join(memfd), Err(JoinError::Memory(BadMemory::Seals | BadMemory::Kind))));
    let large = Lent::create(BYTES_MAX as usize / 8 + 1).unwrap().descriptor().unwrap();
    assert!(matches!(join(large), Err(JoinError::Memory(BadMemory::TooLarge { .. }))));
}

#[test]
fn lies_are_told_apart() {
    let (ours, theirs) = (Side::<u64>::create(2).unwrap(), Lent::create(header::WORDS + area::words(2)).unwrap());
    let words = theirs.words(0..header::WORDS + area::words(2)).unwrap();
    [MAGIC, 2, 8, super::digest::<u64>()].into_iter().enumerate().for_each(|(at, word)| words.store(at, word));
    let (mut producer, mut consumer) = ours.join(theirs.descriptor().unwrap()).unwrap();
    // A slot that was filled twice at once, and a cursor ahead of what was pushed.
    words.store(header::WORDS + area::SLOTS + 7, 9);
    let found = PeerMisbehaved::SequenceOutOfRange { found: 9, expected: 1 };
    assert_eq!(consumer.try_pop(), Err(PopError::PeerMisbehaved(found)));
    words.store(header::WORDS + area::CURSOR, 3);
    assert_eq!((producer.try_push(1), producer.try_push(2)), (Ok(()), Ok(())));
    let found = PeerMisbehaved::CursorOutOfRange { found: 3, low: 0, high: 2 };
    assert_eq!(producer.try_push(3), Err(PushError::PeerMisbehaved(found)));
}
