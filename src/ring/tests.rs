//! The ring in one process: order, fullness, and every shared word turned into a lie.

use super::{Consumer, Full, PAYLOAD, Producer, SEQUENCE, area, slot_at, slots_for};
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::{OwnWords, Scarce, shared};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A ring, with the two sides' words in reach of a liar.
struct Rig {
    producer: Producer,
    consumer: Consumer,
    producers: Arc<OwnWords>,
    consumers: Arc<OwnWords>,
}

fn rig(slots: u32) -> Rig {
    let (producers, seen_producers) = shared(area::words(slots));
    let (consumers, seen_consumers) = shared(area::words(2));
    let (producers, consumers) = (Arc::new(producers), Arc::new(consumers));
    Rig {
        producer: Producer::new(producers.clone(), Arc::new(seen_consumers)),
        consumer: Consumer::new(consumers.clone(), Arc::new(seen_producers)),
        producers,
        consumers,
    }
}

fn payload(number: u64) -> [u64; PAYLOAD] {
    std::array::from_fn(|word| number * 10 + word as u64)
}

#[test]
fn slots_come_out_as_they_went_in_over_many_laps() {
    let mut rig = rig(4);
    let (mut pushed, mut popped) = (0, 0);
    for step in 0..1000_u64 {
        for _ in 0..step % 5 {
            match rig.producer.try_push(&payload(pushed), &[]) {
                Ok(Ok(())) => pushed += 1,
                Ok(Err(Full)) => assert_eq!(pushed - popped, 4),
                Err(broken) => panic!("{broken}"),
            }
        }
        for _ in 0..step % 3 {
            match rig.consumer.try_pop() {
                Ok(Some(found)) => {
                    assert_eq!(found, payload(popped));
                    popped += 1;
                }
                Ok(None) => assert_eq!(pushed, popped),
                Err(broken) => panic!("{broken}"),
            }
        }
    }
    assert!(popped > 100);
}

/// Pushes `number` with so many words more, all of them `number` too.
fn push_long(producer: &mut Producer, number: u64, words: usize) -> bool {
    producer.try_push(&payload(number), &vec![number; words]).unwrap().is_ok()
}

#[test]
fn what_takes_several_slots_comes_out_as_it_went_in() {
    let mut rig = rig(8);
    let (mut pushed, mut popped) = (0_u64, 0);
    let words = |number: u64| (number * 5 % 22) as usize;
    while popped < 1000 {
        if push_long(&mut rig.producer, pushed, words(pushed)) {
            pushed += 1;
            continue;
        }
        // So many were in the way that the next found no room.
        let mut slots = 0;
        let mut found = [0; PAYLOAD];
        while rig.consumer.read_next(&mut found).unwrap() {
            assert_eq!(found, payload(popped));
            let mut rest = vec![0; words(popped)];
            let taken = rig.consumer.read_rest(&mut rest).unwrap();
            assert_eq!((rest, taken), (vec![popped; words(popped)], slots_for(words(popped))));
            rig.consumer.advance(taken);
            popped += 1;
            slots += taken;
        }
        assert!(slots + slots_for(words(pushed)) > 8);
    }
}

#[test]
fn what_does_not_follow_is_told_from_what_does() {
    for words in 1..=21 {
        for position in 0..slots_for(words) - 1 {
            let at = slot_at(1 + position, 3) + SEQUENCE;
            let truth = position + 2;
            for lie in lies(truth, 4) {
                let mut rig = filled_with(words);
                rig.producers.publish(at, lie);
                assert!(rig.consumer.read_next(&mut [0; PAYLOAD]).unwrap());
                let found = rig.consumer.read_rest(&mut vec![0; words]);
                assert_eq!(found, Err(PeerMisbehaved::SequenceOutOfRange { found: lie, expected: truth }));
            }
        }
    }
    // As many as the ring has slots, and more.
    let mut rig = filled(4, 0);
    assert!(rig.consumer.read_next(&mut [0; PAYLOAD]).unwrap());
    assert_eq!(rig.consumer.read_rest(&mut [0; 21]), Ok(4));
    assert!(rig.consumer.read_rest(&mut [0; 22]).is_err());
}

/// A ring of four with one message in it that has so many words more than a slot.
fn filled_with(words: usize) -> Rig {
    let mut rig = rig(4);
    assert!(push_long(&mut rig.producer, 7, words));
    rig
}

#[test]
fn slots_come_to_exist_before_anyone_looks_at_them() {
    const SLOTS: u32 = 8;
    // Two slots at first: the second may not be filled, since the consumer then looks at the third.
    let bytes = |slots: u32| area::words(slots) * 8;
    let (memory, own, seen) = Scarce::new(area::words(SLOTS), bytes(2));
    let own = Arc::new(own);
    let (consumers, seen_consumers) = shared(area::words(2));
    let mut producer = Producer::new(own.clone(), Arc::new(seen_consumers));
    let mut consumer = Consumer::new(Arc::new(consumers), Arc::new(seen));
    assert_eq!((producer.try_push(&payload(0), &[]), producer.has_room(1)), (Ok(Ok(())), Ok(false)));
    assert_eq!((producer.try_push(&payload(1), &[]), producer.lacks_memory()), (Ok(Err(Full)), true));
    assert_eq!(super::filled(&own), 1);
    // Emptying them is no help.
    assert_eq!(consumer.try_pop(), Ok(Some(payload(0))));
    assert_eq!(producer.has_room(1), Ok(false));
    memory.limit.store(bytes(3), Ordering::Relaxed);
    assert_eq!((producer.try_push(&payload(1), &[]), producer.try_push(&payload(2), &[])), (Ok(Ok(())), Ok(Err(Full))));
    // What takes two more needs both, and the one after them.
    memory.limit.store(bytes(4), Ordering::Relaxed);
    assert_eq!(producer.has_room(2), Ok(false));
    assert_eq!((producer.has_room(1), producer.lacks_memory()), (Ok(true), false));
    memory.limit.store(bytes(SLOTS), Ordering::Relaxed);
    for number in 2..9 {
        assert_eq!(producer.try_push(&payload(number), &[]), Ok(Ok(())));
    }
    // Now it is full of messages, which is another matter.
    assert_eq!((producer.try_push(&payload(9), &[]), producer.lacks_memory()), (Ok(Err(Full)), false));
    // From here on nothing is asked for any more.
    memory.limit.store(0, Ordering::Relaxed);
    for number in 1..1000 {
        assert_eq!(consumer.try_pop(), Ok(Some(payload(number))));
        assert_eq!(producer.try_push(&payload(number + 8), &[]), Ok(Ok(())));
    }
    assert_eq!(super::filled(&own), 1007 + 1);
}

/// Values that a word may be made to hold: every bit of the true one flipped, and the edges.
fn lies(truth: u64, capacity: u64) -> impl Iterator<Item = u64> {
    let flipped = (0..64).map(move |bit| truth ^ 1 << bit);
    let edges = [0, 1, capacity - 1, capacity, capacity + 1, u64::MAX, u64::MAX - 1, 1 << 32, 1 << 63];
    let near = [truth.wrapping_sub(1), truth.wrapping_add(1), truth.wrapping_add(capacity)];
    flipped.chain(edges).chain(near).filter(move |&lie| lie != truth)
}

/// A ring of four after `popped` of `pushed` slots were emptied.
fn filled(pushed: u64, popped: u64) -> Rig {
    let mut rig = rig(4);
    for number in 0..pushed {
        assert_eq!(rig.producer.try_push(&payload(number), &[]), Ok(Ok(())));
        if number < popped {
            assert!(matches!(rig.consumer.try_pop(), Ok(Some(_))));
        }
    }
    rig
}

#[test]
fn a_sequence_that_cannot_be_is_told_from_one_that_can() {
    for popped in 0..10 {
        for held in 0..=4 {
            let pushed = popped + held;
            let at = slot_at(popped, 3) + SEQUENCE;
            // What the consumer's next slot holds, and what it could hold instead.
            let (ready, empty) = (popped + 1, (popped + 1).saturating_sub(4));
            let truth = if held > 0 { ready } else { empty };
            for lie in lies(truth, 4) {
                let mut rig = filled(pushed, popped);
                rig.producers.publish(at, lie);
                match rig.consumer.try_pop() {
                    Ok(Some(_)) => assert_eq!(lie, ready),
                    Ok(None) => assert_eq!(lie, empty),
                    Err(PeerMisbehaved::SequenceOutOfRange { found, expected }) => {
                        assert_eq!((found, expected), (lie, ready));
                        assert!(lie != ready && lie != empty);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
}

#[test]
fn a_cursor_that_cannot_be_is_told_from_one_that_can() {
    for popped in 0..10 {
        // Only a ring that looks full makes the producer look at the cursor.
        let pushed = popped + 4;
        for lie in lies(popped, 4) {
            let mut rig = filled(pushed, popped);
            rig.consumers.publish(area::CURSOR, lie);
            let known = rig.producer.consumed();
            match rig.producer.try_push(&payload(0), &[]) {
                Ok(Ok(())) => assert!(lie > known && lie <= pushed),
                Ok(Err(Full)) => assert_eq!(lie, known),
                Err(PeerMisbehaved::CursorOutOfRange { found, low, high }) => {
                    assert_eq!((found, low, high), (lie, known, pushed));
                    assert!(lie < known || lie > pushed);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_cursor_never_goes_back() {
    let mut rig = filled(4, 0);
    rig.consumers.publish(area::CURSOR, 2);
    assert_eq!(rig.producer.try_push(&payload(4), &[]), Ok(Ok(())));
    assert_eq!(rig.producer.try_push(&payload(5), &[]), Ok(Ok(())));
    rig.consumers.publish(area::CURSOR, 1);
    let found = rig.producer.try_push(&payload(6), &[]);
    assert_eq!(found, Err(PeerMisbehaved::CursorOutOfRange { found: 1, low: 2, high: 6 }));
}

#[test]
fn two_threads_agree_on_a_million_slots() {
    let Rig { mut producer, mut consumer, .. } = rig(16);
    let slots = if cfg!(miri) { 500 } else { 1_000_000 };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..slots {
                while producer.try_push(&payload(number), &[]) != Ok(Ok(())) {
                    std::thread::yield_now();
                }
            }
        });
        for number in 0..slots {
            let found = loop {
                match consumer.try_pop() {
                    Ok(Some(found)) => break found,
                    Ok(None) => std::thread::yield_now(),
                    Err(broken) => panic!("{broken}"),
                }
            };
            assert_eq!(found, payload(number));
        }
    });
}
