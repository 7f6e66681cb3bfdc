//! Rings between two processes: handed over with messages of a session, used by both at once, and left by one that is
//! killed.

mod common;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, client, open, server, trust, words};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE};
use hello_capnp::hello;
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Instant;
use strait::Channel;
use strait::ring::processes::{Consumer, JoinError, PopError, Producer, PushError, Side};

fn main() -> ExitCode {
    let cases = [
        Case::new("values_cross_both_ways", both_ways),
        Case::new("a_killed_producers_values_stay", killed),
        Case::new("another_type_is_refused", other_type),
        Case::new("a_forked_child_has_no_ring", in_child),
    ];
    let roles: &[common::Role] = &[("echo", echo), ("fill", fill)];
    common::main(&cases, roles)
}

type Value = [u64; 7];

fn value(number: u64) -> Value {
    std::array::from_fn(|word| number << 3 | word as u64)
}

const SLOTS: usize = 10;

/// Exchanges sides with the process at the other end: the asker's way.
fn ask_for_ring(channel: &mut Channel<hello::Owned>) -> (Producer<Value>, Consumer<Value>) {
    let side = Side::create(SLOTS).expect("a side");
    let mut request = channel.create_msg();
    request.init_root().set_greet("ring");
    request.attach_fd(side.descriptor().expect("a descriptor"));
    let mut answer = channel.request(&request.freeze().expect("room"), PATIENCE).expect("answer");
    assert_eq!(words(&answer), "ring");
    let theirs = answer.take_fds().expect("descriptors").pop().expect("a descriptor");
    side.join(theirs).expect("a ring")
}

/// The other end's way.
fn be_asked_for_ring(dir: &str) -> (Producer<Value>, Consumer<Value>) {
    let server = server(dir).allow(&client(), trust("snapshot")).channel::<hello::Owned>("main").bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    let mut request = channel.recv().expect("request");
    let theirs = request.take_fds().expect("descriptors").pop().expect("a descriptor");
    let side = Side::create(SLOTS).expect("a side");
    let mut answer = channel.create_msg();
    answer.init_root().set_answer("ring");
    answer.attach_fd(side.descriptor().expect("a descriptor"));
    channel.reply(&request, &answer.freeze().expect("room")).expect("reply");
    // The descriptor is on its way with the answer, which its receiver says it has by closing.
    let ring = side.join(theirs).expect("a ring");
    assert!(channel.recv().is_err());
    ring
}

/// Looks until there is something: the other process is busy with nothing else.
fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "the other process is too slow, or gone");
        std::thread::yield_now();
    }
}

fn push(producer: &mut Producer<Value>, value: Value) {
    until(|| match producer.try_push(value) {
        Ok(()) => Some(()),
        Err(PushError::Full) => None,
        Err(error) => panic!("{error}"),
    });
}

fn pop(consumer: &mut Consumer<Value>) -> Value {
    until(|| match consumer.try_pop() {
        Ok(value) => Some(value),
        Err(PopError::Empty) => None,
        Err(error) => panic!("{error}"),
    })
}

/// A ring with a process in this role, and the session that carried it gone.
fn ring_with(role: &str) -> (Peer, Producer<Value>, Consumer<Value>, Place) {
    let place = Place::new();
    let mut peer = Peer::start(role, &[place.text()]);
    peer.must_say("ready");
    let session = client().connect(&place.server()).expect("connect");
    let mut channel = open(&session);
    let (producer, consumer) = ask_for_ring(&mut channel);
    (peer, producer, consumer, place)
}

const VALUES: u64 = 5_000;

/// Sends back what comes, in order, until it has sent all.
fn echo(args: &[String]) {
    let (mut producer, mut consumer) = be_asked_for_ring(&args[0]);
    for _ in 0..VALUES {
        let value = pop(&mut consumer);
        push(&mut producer, value);
    }
    assert_eq!(hear(), "stop");
}

fn both_ways() {
    let (mut peer, mut producer, mut consumer, _place) = ring_with("echo");
    let (mut sent, mut back) = (0, 0);
    while back < VALUES {
        while sent < VALUES && producer.try_push(value(sent)) == Ok(()) {
            sent += 1;
        }
        match consumer.try_pop() {
            Ok(found) => {
                assert_eq!(found, value(back));
                back += 1;
            }
            Err(PopError::Empty) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(consumer.try_pop(), Err(PopError::Empty));
    peer.tell("stop");
    peer.finish();
}

/// Fills the ring, and waits to be killed.
fn fill(args: &[String]) {
    let (mut producer, _consumer) = be_asked_for_ring(&args[0]);
    (0..SLOTS as u64).for_each(|number| push(&mut producer, value(number)));
    assert_eq!(producer.try_push(value(0)), Err(PushError::Full));
    say("full");
    hear();
}

fn killed() {
    let (mut peer, mut producer, mut consumer, _place) = ring_with("fill");
    peer.must_say("full");
    peer.kill();
    for number in 0..SLOTS as u64 {
        assert_eq!(consumer.try_pop(), Ok(value(number)));
    }
    assert_eq!(consumer.try_pop(), Err(PopError::Empty));
    // Nobody empties it any more.
    (0..SLOTS as u64).for_each(|number| assert_eq!(producer.try_push(value(number)), Ok(())));
    assert_eq!(producer.try_push(value(0)), Err(PushError::Full));
}

fn other_type() {
    let side = Side::<u32>::create(4).expect("a side");
    let other: OwnedFd = Side::<i32>::create(4).and_then(|side| side.descriptor()).expect("a side");
    assert!(matches!(side.join(other), Err(JoinError::OtherType { expected: "u32" })));
}

fn in_child() {
    let (one, other) = (Side::<u64>::create(4).expect("a side"), Side::<u64>::create(4).expect("a side"));
    let fds = (one.descriptor().expect("a descriptor"), other.descriptor().expect("a descriptor"));
    let (mut producer, mut consumer) = one.join(fds.1).expect("a ring");
    producer.try_push(1).expect("room");
    // SAFETY: this process has one thread, and the child leaves by `_exit`.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            let right = producer.try_push(2) == Err(PushError::ForkedProcess)
                && consumer.try_pop() == Err(PopError::ForkedProcess)
                && other.descriptor().is_err()
                && matches!(other.join(fds.0), Err(JoinError::ForkedProcess));
            drop((producer, consumer));
            // SAFETY: always allowed.
            unsafe { libc::_exit(i32::from(!right)) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        }
    }
    let (_, mut theirs) = other.join(fds.0).expect("a ring");
    assert_eq!((theirs.try_pop(), consumer.try_pop()), (Ok(1), Err(PopError::Empty)));
}
