//! Clients that break the rules of docs/protocol.md in frames and channels, one by one: each loses its own session, is
//! told so, and nobody else notices.

mod common;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/scene.rs"]
mod scene;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, ask, open, server, words};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE};
use hello_capnp::hello;
use raw::{ARENA, Area, BYTES, Frame, MESSAGES, Memory, Random, Raw, Socket, area, handle, schema};
use scene::{Scene, honest};
use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use strait::{ChannelError, ClientApp, Ended, PeerMisbehaved, Trust};

fn main() -> ExitCode {
    let cases = [
        Case::new("control_frames", control_frames),
        Case::new("an_empty_frame_is_the_end", empty),
        Case::new("descriptors_with_frames", descriptors),
        Case::new("channel_numbers", channel_numbers),
        Case::new("channel_numbers_used_again", used_again).limit(30),
        Case::new("rings_where_none_can_be", rings),
        Case::new("rings_where_none_can_be_at_login", rings_at_login),
        Case::new("metadata_that_is_none", metadata),
        Case::new("a_peer_that_does_not_read_its_socket", stalled),
        Case::new("a_flood_of_frames_starves_nobody", flood),
        Case::new("random_frames", random_frames),
    ];
    common::main(&cases, &[("honest", honest), ("judge", judge)])
}

fn frame(broken: &'static str) -> PeerMisbehaved {
    PeerMisbehaved::Frame(broken)
}

fn control_frames() {
    let mut scene = Scene::new("snapshot");
    for len in [1, 7, 8, 127, 129, 1024, 100_000] {
        scene.breach("length", frame("wrong length"), |raw| assert!(raw.socket.send(&vec![5; len], &[])));
    }
    for kind in [0].into_iter().chain(8..=9).chain(14..=16).chain(18..=23).chain(25..=255).chain([
        256,
        1 << 16 | 5,
        5 << 24,
        u32::MAX,
    ]) {
        scene.breach("kind", frame("unknown kind"), |raw| assert!(raw.socket.say(&Frame::control(kind, 0))));
    }
    for number in [2, 255, u32::MAX] {
        scene.breach("farewell", frame("unknown farewell"), |raw| assert!(raw.socket.say(&Frame::control(6, number))));
    }
    for code in [0, 7, u32::MAX] {
        let refusal = Frame::control(3, 1).u32(8, code);
        scene.breach("refusal", frame("unknown refusal"), |raw| assert!(raw.socket.say(&refusal)));
    }
    let not_utf8 = Frame::open(17, "", schema(), area(1)).bytes(28, &[0xFF, 0xFE]);
    scene.breach("name", frame("name is not UTF-8"), |raw| assert!(raw.socket.say(&not_utf8)));
    // Nothing that goes home is fine.
    let raw = scene.login();
    assert!(raw.socket.say(&Frame::control(5, 0)) && raw.socket.say(&Frame::control(6, 1)));
    scene.peer.must_say("raw: Accused");
    drop(raw);
    scene.end();
}

/// A socket cannot tell it from the end of the stream.
fn empty() {
    let mut scene = Scene::new("snapshot");
    let raw = scene.login();
    let file = File::open("/dev/null").expect("null");
    assert!(raw.socket.send(&[], &[file.as_fd()]));
    scene.peer.must_say("raw: PeerDied");
    assert_eq!(ask(&mut scene.channel, "echo still there"), "still there");
    scene.end();
    drop(raw);
}

fn descriptors() {
    let mut scene = Scene::new("snapshot");
    let file = File::open("/dev/null").expect("null");
    for (count, frame) in [1, 2, 200].into_iter().flat_map(|count| [(count, 5), (count, 6), (count, 99)]) {
        scene.breach("descriptors", PeerMisbehaved::UnexpectedDescriptor, |raw| {
            assert!(raw.socket.send(&Frame::control(frame, 0).0, &vec![file.as_fd(); count]));
        });
    }
    // That they are closed is in the end's census.
    scene.end();
}

fn channel_numbers() {
    let mut scene = Scene::new("snapshot");
    let mut bad = |number: u32, frame: Frame| {
        scene.breach("number", PeerMisbehaved::ChannelNumber(number), |raw| assert!(raw.socket.say(&frame)));
    };
    // The server's own to give.
    for number in [0, 2, 16, u32::MAX - 1] {
        bad(number, Frame::open(number, "main", schema(), area(1)));
    }
    // The log-in's.
    bad(1, Frame::open(1, "main", schema(), area(1)));
    // Answers to questions that were never asked.
    for number in [0, 1, 2, 3, 17, u32::MAX] {
        bad(number, Frame::control(2, number).area(8, area(1)));
        bad(number, Frame::control(3, number).u32(8, 1));
    }
    for number in [0, 2, 3, 17, u32::MAX] {
        bad(number, Frame::control(4, number));
        bad(number, Frame::control(17, number));
        bad(number, Frame::control(12, number).u32(8, 1));
        bad(number, Frame::control(13, number));
    }
    // Open.
    bad(1, Frame::control(17, 1));
    // Said late of a channel that is gone, for all the receiver knows.
    let raw = scene.login();
    for number in [0, 2, 3, 17, u32::MAX] {
        assert!(raw.socket.say(&Frame::control(11, number).u32(8, 1)));
    }
    assert!(raw.socket.say(&Frame::control(6, 0)));
    scene.peer.must_say("raw: PeerClosed");
    drop(raw);
    scene.breach("opened twice", PeerMisbehaved::ChannelNumber(17), |raw| {
        (1..=2).for_each(|place| assert!(raw.socket.say(&Frame::open(17, "main", schema(), area(place)))));
    });
    scene.end();
}

/// Each number once, says the document.
fn used_again() {
    let mut scene = Scene::new("snapshot");
    scene.breach("refused", PeerMisbehaved::ChannelNumber(17), |raw| {
        (1..=2).for_each(|place| assert!(raw.socket.say(&Frame::open(17, "none", schema(), area(place)))));
    });
    scene.end();
}

const WORDS: u64 = BYTES as u64 / 8;

/// Halves of channels that there cannot be, and what is wrong with them.
fn bad_areas() -> Vec<(Area, PeerMisbehaved)> {
    let impossible = [(1, 8), (511, 8), (513, 8), (1 << 63 | 1, 8), (512, 0), (512, 1), (512, 3), (512, 1 << 17)]
        .into_iter()
        .chain([(512, 1 << 31), (512, u32::MAX), (512, 65_537)]);
    let impossible = impossible.map(|(offset, slots)| (Area { offset, slots }, frame("impossible ring")));
    let outside =
        [(WORDS, 2), (WORDS - 512, 64), (0, 65_536), (1 << 35, 8), (u64::MAX - 511, 8), (u64::MAX - 511, 65_536)];
    let outside = outside.into_iter().map(|(offset, slots)| {
        let len = 48 + 8 * u64::from(slots);
        (Area { offset, slots }, PeerMisbehaved::HandleOutOfRange { offset, len, arena_words: WORDS })
    });
    impossible.chain(outside).collect()
}

fn rings() {
    let mut scene = Scene::new("snapshot");
    for (area, broken) in bad_areas() {
        scene.breach("ring", broken, |raw| assert!(raw.socket.say(&Frame::open(17, "main", schema(), area))));
    }
    scene.end();
}

fn rings_at_login() {
    let mut scene = Scene::new("snapshot");
    for (area, broken) in bad_areas() {
        let socket = Socket::knock(scene.place.path());
        let memory = Memory::own(BYTES);
        let hello = Frame::hello(BYTES, "raw", &[("main", schema(), area)]);
        assert!(socket.send(&hello.0, &[memory.read_only().as_fd()]));
        scene.peer.must_say(&format!("{:?}", strait::AcceptError::PeerMisbehaved(broken)));
        assert!(socket.rest().is_empty());
        assert_eq!(ask(&mut scene.channel, "echo still there"), "still there");
    }
    scene.end();
}

/// A server that says what came of the metadata of its clients' offers. Runs until told `stop`.
fn judge(args: &[String]) {
    let app = server(&args[0]).channel::<hello::Owned>("main").offers(1);
    let server = app.allow(&ClientApp::new("raw"), Trust::snapshot()).bind().expect("bind");
    say("ready");
    while hear() != "stop" {
        let session = server.accept().expect("a client");
        let mut offer = session.accept_offer_timeout(PATIENCE).expect("an offer");
        say(format!("{:?}", offer.metadata::<hello::Owned>().map(|metadata| metadata.map(|found| words(&found)))));
    }
}

fn metadata() {
    let place = Place::new();
    let mut peer = Peer::start("judge", &[place.text()]);
    peer.must_say("ready");
    let mut offer = |at: [u64; 2], segments: u32, schema: u64| {
        peer.tell("next");
        let raw = Raw::login(place.path());
        raw::write(&raw.own, MESSAGES, "metadata");
        let wish = Frame::open(17, "c", raw::schema(), area(1)).u64(92, at[0]).u64(100, at[1]);
        assert!(raw.socket.say(&wish.u64(108, schema).u32(116, segments)));
        (peer.line(), raw)
    };
    let good = handle(ARENA, MESSAGES, 16, 5);
    let (said, raw) = offer(good, 1, schema());
    assert_eq!(said, "Ok(Some(\"metadata\"))");
    // It was read and not judged: it is rejected without a reason, and what was lent comes back, unless the session's end
    // is quicker.
    let rest = raw.socket.rest();
    let kinds: Vec<(u32, u32)> = rest.iter().map(|frame| (frame.u32_at(0), frame.u32_at(8))).collect();
    assert!(kinds.contains(&(3, 6)), "{kinds:?}");
    drop(raw);
    assert_eq!(offer(handle(ARENA, MESSAGES, 0, 5), 1, schema()).0, "Ok(None)");
    let (said, _) = offer(good, 1, 77);
    assert!(said.starts_with("Err(WrongSchema"), "{said}");
    let outside = PeerMisbehaved::HandleOutOfRange { offset: WORDS, len: 1, arena_words: WORDS };
    let too_large = PeerMisbehaved::MessageTooLarge { bytes: 8 << 13 | 8, limit: 64 << 10 };
    let breaches = [
        (handle(ARENA, WORDS, 1, 5), 1, outside),
        (handle(ARENA + 1, MESSAGES, 16, 5), 1, PeerMisbehaved::UnknownArena { found: ARENA + 1, expected: ARENA }),
        (good, 0, PeerMisbehaved::SegmentCount(0)),
        (good, 2, PeerMisbehaved::SegmentCount(2)),
        (good, u32::MAX, PeerMisbehaved::SegmentCount(u32::from(u16::MAX))),
        (handle(ARENA, MESSAGES, (8 << 10) + 1, 5), 1, too_large),
    ];
    for (at, segments, broken) in breaches {
        let (said, raw) = offer(at, segments, schema());
        let cause = Ended::PeerMisbehaved(broken);
        assert_eq!(said, format!("{:?}", Err::<(), _>(ChannelError::Ended { peer: "raw".into(), cause })));
        raw.socket.must_end_with_goodbye(1);
    }
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}

/// It makes the server answer and reads no answer.
fn stalled() {
    let mut scene = Scene::new("snapshot");
    let raw = scene.login();
    let mut numbers = (17..).step_by(2);
    while numbers.next().is_some_and(|number| raw.socket.say(&Frame::open(number, "none", schema(), area(1)))) {}
    let line = scene.peer.line();
    assert!(line.starts_with("raw: PeerMisbehaved(Stalled("), "{line}");
    assert_eq!(ask(&mut scene.channel, "echo still there"), "still there");
    // It is cut off all the same; what had been sent may still be read.
    assert!(raw.socket.rest().iter().all(|frame| frame.u32_at(0) == 3));
    drop(raw);
    scene.end();
}

fn flood() {
    let mut scene = Scene::new("snapshot");
    let raws: Vec<Raw> = (0..3).map(|_| scene.login()).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for raw in &raws {
            let (socket, stop) = (&raw.socket, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert!(socket.say(&Frame::control(5, 0)));
                }
            });
        }
        for round in 0..100 {
            // Both in the rings and by way of the thread that reads the floods.
            assert_eq!(ask(&mut scene.channel, &format!("echo {round}")), round.to_string());
            drop(open(&scene.session));
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(raws);
    (0..3).for_each(|_| scene.peer.must_say("raw: PeerDied"));
    // The channels opened meanwhile take the server a moment to close.
    scene.end();
}

/// Random frames, then one that is certainly wrong: either may be what the session ends for.
fn random_frames() {
    let mut random = Random::new();
    let mut scene = Scene::new("snapshot");
    for _ in 0..2_000 {
        let raw = scene.login();
        let mut frame = match random.below(4) {
            0 => Frame::open(17, "main", schema(), area(1)),
            1 => Frame::control(random.below(18) as u32, random.below(20) as u32),
            2 => Frame::control(random.next() as u32, random.next() as u32),
            _ => Frame((0..128).map(|_| random.next() as u8).collect()),
        };
        for _ in 0..random.below(4) {
            frame.0[random.below(128) as usize] = random.next() as u8;
        }
        if random.below(16) == 0 {
            frame.0.resize(1 + random.below(300) as usize, 0);
        }
        raw.socket.say(&frame);
        // Gone already, perhaps.
        raw.socket.say(&Frame::control(99, 0));
        let line = scene.peer.line();
        let orderly = [Ended::PeerClosed, Ended::Accused, Ended::ChannelClosed].map(|end| format!("raw: {end:?}"));
        assert!(line.starts_with("raw: PeerMisbehaved(") || orderly.contains(&line), "{line} for {:?}", frame.0);
        let last = raw.socket.rest().last().map(|frame| frame.u32_at(0));
        assert_eq!(last, Some(6), "a goodbye after {line} for {:?}", frame.0);
        assert_eq!(ask(&mut scene.channel, "echo still there"), "still there");
    }
    scene.end();
}
