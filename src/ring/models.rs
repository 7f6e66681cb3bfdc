//! Every interleaving of the shipping ring and wait code, under loom. Run by `tests/models`, which also plants the bugs
//! that must turn each of them red.

use super::{Consumer, PAYLOAD, Producer, area};
use crate::sys::barrier::Fence;
use crate::sys::futex::{Bell, Gate, Spot};
use crate::sys::words::{OwnWords, PeerWords, shared};
use crate::wait::{self, Deadline, Notifier, Patience, Rising, Roused, Sleeper, Source, Wait};
use loom::thread;
use std::sync::Arc;

/// Both processes' areas, each as its writer and as its reader has it.
struct World {
    gate: Gate,
    sender: (Arc<OwnWords>, Arc<PeerWords>),
    receiver: (Arc<OwnWords>, Arc<PeerWords>),
}

fn world(slots: u32) -> World {
    let gate = Gate::new();
    let area = || {
        let (own, peer) = shared(area::words(slots), &gate);
        (Arc::new(own), Arc::new(peer))
    };
    World { sender: area(), receiver: area(), gate }
}

impl World {
    /// A word of the receiver's own that nobody stores to.
    fn still(&self) -> Spot<'_> {
        self.receiver.0.spot(area::SENDER)
    }
}

fn payload(number: u64) -> [u64; PAYLOAD] {
    [number, !number, 0, 0, 0, 0, number]
}

struct Arrival(Consumer, Notifier, Patience, Sleeper);

impl Arrival {
    fn take(&mut self) -> Option<[u64; PAYLOAD]> {
        let found = self.0.try_pop().expect("an honest peer");
        if found.is_some() {
            let _ = self.1.notify(|| self.0.producers_spot());
        }
        found
    }
}

impl Source for Arrival {
    fn ready(&mut self) -> bool {
        self.0.is_ready()
    }
    fn spot(&self) -> (Spot<'_>, u32) {
        self.0.spot()
    }
    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper) {
        (&mut self.2, &mut self.3)
    }
}

struct Room<'a>(&'a mut Producer, &'a mut Patience, &'a mut Sleeper);

impl Source for Room<'_> {
    fn ready(&mut self) -> bool {
        self.0.has_room(1).expect("an honest peer")
    }
    fn spot(&self) -> (Spot<'_>, u32) {
        self.0.spot()
    }
    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper) {
        (&mut *self.1, &mut *self.2)
    }
}

fn receiver(world: &World) -> Arrival {
    let (own, peer) = (world.receiver.0.clone(), world.sender.1.clone());
    let sender = Notifier::new(own.clone(), area::RECEIVER, peer.clone(), area::SENDER, Fence::Each);
    let sleeper = Sleeper::new(own.clone(), area::RECEIVER, peer.clone(), area::SENDER, area::RECEIVER);
    Arrival(Consumer::new(own, peer), sender, Patience::new(Wait::Park), sleeper)
}

fn sender(world: &World) -> (Producer, Notifier, Sleeper) {
    let (own, peer) = (world.sender.0.clone(), world.receiver.1.clone());
    let receiver = Notifier::new(own.clone(), area::SENDER, peer.clone(), area::RECEIVER, Fence::Each);
    let sleeper = Sleeper::new(own.clone(), area::SENDER, peer.clone(), area::RECEIVER, area::RECEIVER);
    (Producer::new(own, peer), receiver, sleeper)
}

/// Sends `count` slots through a ring of two, parking for room, and receives them, parking for work.
fn conversation(count: u64) {
    let world = world(2);
    let mut arrival = receiver(&world);
    let (mut producer, mut notifier, mut room_sleeper) = sender(&world);
    let (bell, sender_bell) = (Bell::new(&world.gate), Bell::new(&world.gate));
    let sending = thread::spawn(move || {
        let mut patience = Patience::new(Wait::Park);
        for number in 1..=count {
            while producer.try_push(&payload(number), &[]).expect("an honest peer").is_err() {
                let mut room = Room(&mut producer, &mut patience, &mut room_sleeper);
                assert!(wait::wait(&mut room, &sender_bell, &mut Deadline::Never));
            }
            let _ = notifier.notify(|| producer.consumers_spot());
        }
    });
    for number in 1..=count {
        let found = loop {
            match arrival.take() {
                Some(found) => break found,
                None => assert!(wait::wait(&mut arrival, &bell, &mut Deadline::Never)),
            }
        };
        assert_eq!(found, payload(number));
    }
    sending.join().unwrap();
}

#[test]
fn what_takes_several_slots_is_whole_when_the_first_shows() {
    loom::model(|| {
        let world = world(4);
        let mut arrival = receiver(&world);
        let (mut producer, _, _) = sender(&world);
        let sending = thread::spawn(move || {
            producer.try_push(&payload(1), &[5, 6]).unwrap().unwrap();
        });
        let mut found = [0; PAYLOAD];
        if arrival.0.read_next(&mut found).expect("an honest peer") {
            let mut rest = [0; 2];
            assert_eq!(arrival.0.read_rest(&mut rest), Ok(2));
            assert_eq!((found, rest), (payload(1), [5, 6]));
            arrival.0.advance(2);
        }
        sending.join().unwrap();
    });
}

#[test]
fn a_slot_is_whole_when_its_sequence_shows() {
    loom::model(|| {
        let world = world(2);
        let mut arrival = receiver(&world);
        let (mut producer, _, _) = sender(&world);
        let sending = thread::spawn(move || {
            producer.try_push(&payload(1), &[]).unwrap().unwrap();
            producer.try_push(&payload(2), &[]).unwrap().unwrap();
        });
        for number in 1..=2 {
            // One look each: what is there must be whole.
            if let Some(found) = arrival.0.try_pop().expect("an honest peer") {
                assert_eq!(found, payload(number));
            } else {
                break;
            }
        }
        sending.join().unwrap();
    });
}

#[test]
fn a_slot_is_not_refilled_while_it_is_read() {
    loom::model(|| {
        let world = world(2);
        let mut arrival = receiver(&world);
        let (mut producer, _, _) = sender(&world);
        for number in 1..=2 {
            producer.try_push(&payload(number), &[]).unwrap().unwrap();
        }
        let sending = thread::spawn(move || {
            let _ = producer.try_push(&payload(3), &[]).unwrap();
        });
        for number in 1..=2 {
            assert_eq!(arrival.0.try_pop(), Ok(Some(payload(number))));
        }
        sending.join().unwrap();
    });
}

#[test]
fn no_wake_is_lost() {
    loom::model(|| conversation(1));
}

#[test]
fn no_wake_is_lost_when_both_sides_sleep() {
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(2);
    bounded.check(|| conversation(3));
}

/// As the transport looks: for what there is, and whether anything can still come.
struct UntilEnd(Arrival, Arc<Rising>);

impl Source for UntilEnd {
    fn ready(&mut self) -> bool {
        self.1.now() != 0 || self.0.ready()
    }
    fn spot(&self) -> (Spot<'_>, u32) {
        self.0.spot()
    }
    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper) {
        self.0.waiter()
    }
}

#[test]
fn death_wakes_a_sleeper() {
    loom::model(|| {
        let world = world(2);
        let arrival = receiver(&world);
        let bell = Arc::new(Bell::new(&world.gate));
        let over = Arc::new(Rising::new(0));
        let watcher = thread::spawn({
            let (bell, over) = (bell.clone(), over.clone());
            move || {
                over.raise(1);
                bell.ring();
            }
        });
        assert!(wait::wait(&mut UntilEnd(arrival, over), &bell, &mut Deadline::Never));
        watcher.join().unwrap();
    });
}

/// A peer publishes, and closes; whoever receives looks at the condition first and then into the ring, as the inbox does.
#[test]
fn what_was_published_before_the_end_is_found() {
    loom::model(|| {
        let world = world(2);
        let (mut producer, _, _) = sender(&world);
        let (bell, over) = (Arc::new(Bell::new(&world.gate)), Arc::new(Rising::new(0)));
        let mut arrival = UntilEnd(receiver(&world), over.clone());
        let closing = thread::spawn({
            let bell = bell.clone();
            move || {
                producer.try_push(&payload(1), &[]).expect("an honest peer").expect("room");
                // Without a wake, whose fence would order the two whatever the end does; the bell wakes as well.
                over.raise(1);
                bell.ring();
            }
        });
        loop {
            let condition = arrival.1.now();
            match arrival.0.take() {
                Some(found) => break assert_eq!(found, payload(1)),
                None => assert_eq!(condition, 0, "the end was seen, and not what came before it"),
            }
            assert!(wait::wait(&mut arrival, &bell, &mut Deadline::Never));
        }
        closing.join().unwrap();
    });
}

/// Receives `count` slots at the door: each time the ring is found empty it says so and waits for the doorbell, which
/// here is a bell of both sides'.
fn at_the_door(count: u64) {
    let world = world(2);
    let Arrival(mut consumer, _, _, mut sleeper) = receiver(&world);
    let (mut producer, mut notifier, _) = sender(&world);
    let door = Arc::new(Bell::new(&world.gate));
    let sending = thread::spawn({
        let door = door.clone();
        move || {
            let mut rings = 0;
            for number in 1..=count {
                producer.try_push(&payload(number), &[]).expect("an honest peer").expect("room");
                if notifier.notify(|| producer.consumers_spot()) == Roused::AtDoor {
                    rings += 1;
                    door.ring();
                }
            }
            rings
        }
    });
    let (mut next, mut waits) = (1, 0);
    while next <= count {
        // Before the look: a doorbell rung after it ends the wait below.
        let rung = door.value();
        sleeper.go_to_door();
        waits += 1;
        if let Some(found) = consumer.try_pop().expect("an honest peer") {
            sleeper.get_up();
            assert_eq!(found, payload(next));
            next += 1;
            continue;
        }
        // The word slept on never changes: only the doorbell wakes.
        crate::sys::futex::wait(world.still(), 0, &door, rung, None);
    }
    // Once for each time it was waited for.
    assert!(sending.join().unwrap() <= waits);
}

#[test]
fn no_doorbell_is_lost() {
    loom::model(|| at_the_door(1));
}

#[test]
fn no_doorbell_is_lost_between_two_slots() {
    let mut bounded = loom::model::Builder::new();
    bounded.preemption_bound = Some(3);
    bounded.check(|| at_the_door(2));
}
