//! Blobs, native values and counters.

use super::{backing, connect, server_app, word};
use crate::common::PATIENCE;
use crate::common::apps::{Place, greet, open, words};
use crate::common::peer::{Peer, say};
use crate::hello_capnp::hello;
use std::sync::atomic::{AtomicU64, Ordering};
use strait::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};
use strait::{Backing, Channel, ValueError};

#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(C)]
struct Sample {
    at: u64,
    value: f32,
    valid: bool,
    rest: [u8; 3],
}

const SAMPLE: Sample = Sample { at: 99, value: 0.25, valid: true, rest: [1, 2, 3] };

#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Stats {
    served: AtomicU64,
    failed: AtomicU64,
}

/// Answers each question with a sample, text, many numbers and raw bytes; and counters where memory is shared.
pub fn value_server(args: &[String]) {
    let backing = backing(&args[1]);
    let server = server_app(&args[0], backing).channel::<hello::Owned>("main").bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    let arena = server.arena();
    let stats = arena.share_counters::<Stats>().expect("room");
    let sample = arena.share(&SAMPLE).expect("room");
    while let Ok(question) = channel.recv() {
        stats.of(|stats| &stats.served).fetch_add(1, Ordering::Release);
        let text = arena.share(words(&question).as_str()).expect("room");
        let numbers = arena.share_slice::<u64>(100_000, |all| (0..).zip(all).for_each(|(n, to)| *to = n * n));
        let mut raw = arena.create_blob(1000).expect("room");
        raw.fill(7);
        let mut answer = channel.create_msg();
        answer.init_root().set_answer("as attached");
        answer.attach_blob(&sample).attach_blob(text).attach_blob(numbers.expect("room")).attach_blob(raw.freeze());
        answer.attach_blob(&stats);
        channel.reply(&question, &answer.freeze().expect("room")).expect("reply");
    }
}

fn with_values(backing: Backing, talk: impl FnOnce(&mut Channel<hello::Owned>)) {
    let place = Place::new();
    let mut peer = Peer::start("values", &[place.text(), word(backing)]);
    peer.must_say("ready");
    let session = connect(&place, backing);
    talk(&mut open(&session));
    drop(session);
    peer.finish();
    place.must_be_empty();
}

pub fn blobs_and_native_values(backing: Backing) {
    with_values(backing, |channel| {
        let mut kept = Vec::new();
        for round in 0..5 {
            let question = greet(channel, &format!("round {round}"));
            let answer = channel.request(&question, PATIENCE).expect("answer");
            assert_eq!((words(&answer).as_str(), answer.blobs().len()), ("as attached", 5));
            let [sample, text, numbers, raw, _] = answer.blobs() else { panic!("five") };
            assert_eq!(*sample.value::<Sample>().expect("a sample"), SAMPLE);
            let numbers = numbers.value::<[u64]>().expect("numbers");
            assert!(numbers.iter().copied().eq((0..100_000).map(|n| n * n)));
            assert_eq!(raw.to_vec().expect("room"), [7; 1000]);
            assert_eq!(raw.value::<[u8]>().map(drop), Err(ValueError::OtherKind));
            assert!(matches!(text.value::<Sample>().map(drop), Err(ValueError::OtherType { .. })));
            // Kept longer than the message it came with.
            kept.push(text.value::<str>().expect("text"));
        }
        (0..5).for_each(|round| assert_eq!(*kept[round], format!("round {round}")));
    });
}

pub fn counters_count_in_shared_memory(backing: Backing) {
    with_values(backing, |channel| {
        let first = channel.request(&greet(channel, "first"), PATIENCE).expect("answer");
        let stats = match first.blobs()[4].counters::<Stats>() {
            Err(error) if backing == Backing::Heap => return assert_eq!(error, ValueError::NotShared),
            stats => stats.expect("counters"),
        };
        drop(first);
        for count in 2..10 {
            let question = greet(channel, "next");
            channel.request(&question, PATIENCE).expect("answer");
            assert_eq!((stats.load(|stats| &stats.served), stats.load(|stats| &stats.failed)), (count, 0));
        }
    });
}
