//! The kinds in one thread against a plain queue, and in several threads against each other.

use super::{Cardinality, Consumer, Empty, Full, Multi, Producer, Value, mpmc, mpsc, spmc, spsc};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// A value of `WORDS` words and five bytes more, all of which say which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C, packed)]
struct Odd<const WORDS: usize> {
    words: [u64; WORDS],
    rest: [u8; 5],
}

impl<const WORDS: usize> Odd<WORDS> {
    fn new(number: u64) -> Self {
        Self { words: [number.wrapping_mul(0x9E37_79B9_7F4A_7C15); WORDS], rest: [number as u8; 5] }
    }
}

/// Pushes and pops in one thread as `steps` say (pushes if positive), singly or in slices, beside a queue.
fn agrees<T: Value + PartialEq + std::fmt::Debug, P: Cardinality, C: Cardinality>(
    (mut producer, mut consumer): (Producer<T, P>, Consumer<T, C>),
    value: fn(u64) -> T,
    steps: &[(i8, bool)],
) {
    let capacity = producer.capacity();
    assert_eq!(consumer.capacity(), capacity);
    let (mut queue, mut pushed) = (VecDeque::new(), 0_u64);
    for &(step, at_once) in steps {
        let count = usize::from(step.unsigned_abs());
        if step > 0 && at_once {
            let values: Vec<T> = (pushed..).take(count).map(value).collect();
            let done = producer.push_slice(&values);
            assert_eq!(done, count.min(capacity - queue.len()));
            queue.extend(&values[..done]);
            pushed += done as u64;
        } else if step > 0 {
            for _ in 0..count {
                let done = producer.try_push(value(pushed));
                assert_eq!(done, if queue.len() == capacity { Err(Full) } else { Ok(()) });
                if done.is_ok() {
                    queue.push_back(value(pushed));
                    pushed += 1;
                }
            }
        } else if at_once {
            let mut found = vec![value(0); count];
            let done = consumer.pop_slice(&mut found);
            assert_eq!(done, count.min(queue.len()));
            assert!(queue.drain(..done).eq(found[..done].iter().copied()));
        } else {
            for _ in 0..count {
                assert_eq!(consumer.try_pop(), queue.pop_front().ok_or(Empty));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 128 }))]

    #[test]
    fn every_kind_is_a_queue(capacity in 1..20_usize, steps in prop::collection::vec((-12..13_i8, any::<bool>()), 0..60)) {
        agrees(spsc(capacity), |number| number, &steps);
        agrees(mpsc(capacity), |number| [number as u8; 3], &steps);
        agrees(spmc(capacity), Odd::<6>::new, &steps);
        agrees(mpmc(capacity), Odd::<9>::new, &steps);
        agrees(spsc(capacity), |number| [number; 7], &steps);
    }
}

#[test]
fn handles_that_lag_behind_find_their_place() {
    let (mut one, mut early) = mpmc::<u64>(2);
    let (mut other, mut late) = (one.clone(), early.clone());
    for lap in 0..10 {
        assert_eq!((one.try_push(2 * lap), one.try_push(2 * lap + 1)), (Ok(()), Ok(())));
        assert_eq!(other.try_push(0), Err(Full));
        assert_eq!((early.try_pop(), early.try_pop()), (Ok(2 * lap), Ok(2 * lap + 1)));
    }
    // Ten laps on, as if they had been asleep.
    assert_eq!(late.try_pop(), Err(Empty));
    assert_eq!(other.push_slice(&[20, 21, 22]), 2);
    let mut found = [0; 3];
    assert_eq!((late.pop_slice(&mut found), found), (2, [20, 21, 0]));
    assert_eq!((early.pop_slice(&mut found), early.try_pop()), (0, Err(Empty)));
}

#[test]
fn nothing_at_once_is_nothing() {
    let (mut producer, mut consumer) = mpmc::<u64>(2);
    assert_eq!((producer.push_slice(&[]), consumer.pop_slice(&mut [])), (0, 0));
    producer.try_push(1).unwrap();
    assert_eq!((consumer.pop_slice(&mut []), consumer.try_pop()), (0, Ok(1)));
}

#[test]
fn an_end_knows_when_the_other_is_gone() {
    let (producer, mut consumer) = mpsc::<u64>(2);
    let mut clone = producer.clone();
    drop(producer);
    assert!(!consumer.is_abandoned());
    clone.try_push(1).unwrap();
    drop(clone);
    assert!(consumer.is_abandoned());
    assert_eq!((consumer.try_pop(), consumer.try_pop()), (Ok(1), Err(Empty)));
    let (producer, consumer) = spmc::<u64>(2);
    let clone = consumer.clone();
    drop(consumer);
    assert!(!producer.is_abandoned());
    drop(clone);
    assert!(producer.is_abandoned());
}

#[test]
#[should_panic(expected = "no slots")]
fn a_ring_of_nothing_is_refused() {
    spsc::<u64>(0);
}

/// A producer's number and a count of its own, told in every word.
fn labelled(producer: u64, number: u64) -> [u64; 7] {
    let word = producer << 48 | number;
    [word, word ^ 1, word ^ 2, word ^ 3, word ^ 4, word ^ 5, word ^ 6]
}

/// Several threads at both ends; everything arrives once, whole, and in each producer's order.
fn storm<P: Cardinality + 'static, C: Cardinality + 'static>(
    producers: Vec<Producer<[u64; 7], P>>,
    consumers: Vec<Consumer<[u64; 7], C>>,
    at_once: usize,
) where
    Producer<[u64; 7], P>: Send,
    Consumer<[u64; 7], C>: Send,
{
    let each: u64 = if cfg!(miri) { 60 } else { 6_000 };
    let all = each * producers.len() as u64;
    let (arrived, sum) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for (label, mut producer) in producers.into_iter().enumerate() {
            scope.spawn(move || {
                let mut number = 0;
                while number < each {
                    let last = each.min(number + at_once as u64);
                    let values: Vec<_> = (number..last).map(|number| labelled(label as u64, number)).collect();
                    let done = match &values[..] {
                        [value] => producer.try_push(*value).map_or(0, |()| 1),
                        values => producer.push_slice(values),
                    };
                    number += done as u64;
                    if done == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
        for mut consumer in consumers {
            let (arrived, sum) = (&arrived, &sum);
            scope.spawn(move || {
                let mut last = [None; 8];
                let mut values = vec![[0; 7]; at_once];
                while arrived.load(Ordering::Relaxed) < all {
                    let done = match &mut values[..] {
                        [value] => consumer.try_pop().map_or(0, |found| {
                            *value = found;
                            1
                        }),
                        values => consumer.pop_slice(values),
                    };
                    for value in &values[..done] {
                        let (producer, number) = (value[0] >> 48, value[0] & 0xFFFF_FFFF_FFFF);
                        assert_eq!(*value, labelled(producer, number), "torn");
                        let last = &mut last[producer as usize];
                        assert!(last.is_none_or(|last| last < number), "out of order, or twice");
                        *last = Some(number);
                        sum.fetch_add(number + 1, Ordering::Relaxed);
                    }
                    arrived.fetch_add(done as u64, Ordering::Relaxed);
                    if done == 0 {
                        thread::yield_now();
                    }
                }
            });
        }
    });
    assert_eq!(arrived.into_inner(), all);
    // Each number once from each producer: nothing twice, for then something would be missing.
    assert_eq!(sum.into_inner(), all / each * (each * (each + 1) / 2));
}

fn clones<T: Clone>(one: T, count: usize) -> Vec<T> {
    vec![one; count]
}

#[test]
fn one_to_one_under_storm() {
    for at_once in [1, 5] {
        let (producer, consumer) = spsc(10);
        storm(vec![producer], vec![consumer], at_once);
    }
}

#[test]
fn many_to_one_under_storm() {
    for at_once in [1, 5] {
        let (producer, consumer) = mpsc(10);
        storm(clones::<Producer<_, Multi>>(producer, 3), vec![consumer], at_once);
    }
}

#[test]
fn one_to_many_under_storm() {
    for at_once in [1, 5] {
        let (producer, consumer) = spmc(10);
        storm(vec![producer], clones::<Consumer<_, Multi>>(consumer, 3), at_once);
    }
}

#[test]
fn many_to_many_under_storm() {
    for (slots, at_once) in [(10, 1), (2, 1), (10, 5), (1, 1)] {
        let (producer, consumer) = mpmc(slots);
        storm(clones(producer, 3), clones(consumer, 3), at_once);
    }
}
