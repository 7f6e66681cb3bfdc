//! Every interleaving of the shipping rings between threads, under loom, for each kind. Run by `tests/models`, which also
//! plants the bugs that must turn them red.

use super::{Cardinality, Consumer, Multi, Producer, Single, Slots, Value, around};
use loom::thread;
use std::sync::Arc;

/// A value whose parts must stay together.
fn value(number: u64) -> [u64; 2] {
    [number, !number]
}

fn ring<P: Cardinality, C: Cardinality>(slots: usize) -> (Producer<[u64; 2], P>, Consumer<[u64; 2], C>) {
    around(Arc::new(Slots::new(slots)))
}

/// Where consumers compete, one may read in vain what is being filled.
fn contested<P: Cardinality>(slots: usize) -> (Producer<[u64; 2], P>, Consumer<[u64; 2], Multi>) {
    around(Arc::new(Slots::new(slots).without_witnesses()))
}

fn push<T: Value, P: Cardinality>(producer: &mut Producer<T, P>, value: T) {
    while producer.try_push(value).is_err() {
        thread::yield_now();
    }
}

fn pop<C: Cardinality>(consumer: &mut Consumer<[u64; 2], C>) -> u64 {
    loop {
        match consumer.try_pop() {
            Ok(found) => return number(found),
            Err(_) => thread::yield_now(),
        }
    }
}

fn number(found: [u64; 2]) -> u64 {
    assert_eq!(found, value(found[0]), "torn");
    found[0]
}

fn bounded(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(preemptions);
    bounded.check(model);
}

fn sorted(mut found: Vec<u64>) -> Vec<u64> {
    found.sort_unstable();
    found
}

/// Around a ring of two: the third value waits for the first to be taken.
fn around_the_ring<P: Cardinality + 'static, C: Cardinality + 'static>()
where
    Producer<[u64; 2], P>: Send,
{
    let (mut producer, mut consumer) = ring::<P, C>(2);
    let pushing = thread::spawn(move || (1..=3).for_each(|number| push(&mut producer, value(number))));
    assert_eq!([1, 2, 3].map(|_| pop(&mut consumer)), [1, 2, 3]);
    pushing.join().unwrap();
}

#[test]
fn one_to_one() {
    loom::model(around_the_ring::<Single, Single>);
}

/// Also what shows that several consumers release what they have read.
#[test]
fn one_of_many_to_one_of_many() {
    bounded(3, around_the_ring::<Multi, Multi>);
}

#[test]
fn slices() {
    bounded(3, || {
        let (mut producer, mut consumer) = ring::<Multi, Multi>(2);
        let pushing = thread::spawn(move || {
            let mut done = 0;
            let values = [1, 2, 3].map(value);
            while done < 3 {
                done += producer.push_slice(&values[done..]);
                thread::yield_now();
            }
        });
        let (mut found, mut done) = ([value(0); 3], 0);
        while done < 3 {
            done += consumer.pop_slice(&mut found[done..]);
            thread::yield_now();
        }
        assert_eq!(found.map(number), [1, 2, 3]);
        pushing.join().unwrap();
    });
}

#[test]
fn many_to_one() {
    bounded(3, || {
        let (producer, mut consumer) = ring::<Multi, Single>(2);
        let pushing = [1, 2].map(|number| {
            let mut producer = producer.clone();
            thread::spawn(move || push(&mut producer, value(number)))
        });
        assert_eq!(sorted(vec![pop(&mut consumer), pop(&mut consumer)]), [1, 2]);
        pushing.into_iter().for_each(|pushing| pushing.join().unwrap());
    });
}

#[test]
fn many_to_one_around_the_ring() {
    bounded(2, || {
        let (producer, mut consumer) = ring::<Multi, Single>(1);
        let pushing = [1, 2].map(|number| {
            let mut producer = producer.clone();
            thread::spawn(move || push(&mut producer, value(number)))
        });
        assert_eq!(sorted(vec![pop(&mut consumer), pop(&mut consumer)]), [1, 2]);
        pushing.into_iter().for_each(|pushing| pushing.join().unwrap());
    });
}

/// What each of two consumers finds in at most two looks.
fn looks(mut consumer: Consumer<[u64; 2], Multi>) -> Vec<u64> {
    (0..2).filter_map(|_| consumer.try_pop().ok()).map(number).collect()
}

#[test]
fn one_to_many() {
    bounded(3, || {
        let (mut producer, consumer) = ring::<Single, Multi>(2);
        push(&mut producer, value(1));
        let popping = [consumer.clone(), consumer.clone()].map(|consumer| thread::spawn(move || looks(consumer)));
        push(&mut producer, value(2));
        let found: Vec<u64> =
            popping.into_iter().flat_map(|popping| popping.join().unwrap()).chain(looks(consumer)).collect();
        assert_eq!(sorted(found), [1, 2]);
    });
}

/// The producer goes around while consumers compete: what one has read in vain is thrown away.
#[test]
fn one_to_many_around_the_ring() {
    bounded(3, || {
        let (mut producer, consumer) = contested::<Single>(1);
        push(&mut producer, value(1));
        let popping = [consumer.clone(), consumer.clone()].map(|consumer| thread::spawn(move || looks(consumer)));
        let second = producer.try_push(value(2)).is_ok();
        let found: Vec<u64> =
            popping.into_iter().flat_map(|popping| popping.join().unwrap()).chain(looks(consumer)).collect();
        assert_eq!(sorted(found), if second { vec![1, 2] } else { vec![1] });
    });
}

#[test]
fn many_to_many() {
    bounded(2, || {
        let (producer, consumer) = contested::<Multi>(2);
        let pushing = [1, 2].map(|number| {
            let mut producer = producer.clone();
            thread::spawn(move || producer.try_push(value(number)).expect("room for both"))
        });
        let popping = thread::spawn({
            let consumer = consumer.clone();
            move || looks(consumer)
        });
        let mut found = looks(consumer.clone());
        pushing.into_iter().for_each(|pushing| pushing.join().unwrap());
        found.extend(popping.join().unwrap());
        found.extend(looks(consumer));
        assert_eq!(sorted(found), [1, 2]);
    });
}
