//! Clients that break the rules of docs/protocol.md about what travels beside messages, one by one: each loses its own
//! session, is told so, and nobody else notices.

mod common;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/scene.rs"]
mod scene;
capnp::generated_code!(mod hello_capnp);

use common::Case;
use common::apps::{TRUSTS, ask};
use raw::{ARENA, BYTES, Frame, MESSAGES, Raw, area, handle, schema};
use scene::{Scene, honest};
use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use strait::PeerMisbehaved;

fn main() -> ExitCode {
    let cases = [
        Case::new("blobs_by_the_rules", blobs_by_the_rules),
        Case::new("blobs_out_of_range", blobs_out_of_range),
        Case::new("more_or_fewer_blobs_than_the_table_has", blob_counts),
        Case::new("blobs_that_change_while_they_are_read", changing),
        Case::new("descriptors_by_the_rules", descriptors_by_the_rules),
        Case::new("other_numbers_of_descriptors_than_announced", descriptor_counts),
        Case::new("descriptors_out_of_turn", out_of_turn),
        Case::new("descriptors_for_channels_that_are_not", wrong_channels),
        Case::new("a_flood_of_descriptors", flood),
        Case::new("descriptors_that_never_come", never_come),
        Case::new("descriptors_whose_message_never_comes", message_never_comes),
        Case::new("descriptors_said_to_be_taken", said_to_be_taken),
    ];
    common::main(&cases, &[("honest", honest)])
}

const WORDS: u64 = BYTES as u64 / 8;
const TABLE: u64 = MESSAGES + 8000;

/// Sends a greeting whose handle names a table of these entries, said to be of so many blobs after its one segment.
fn send_table(raw: &mut Raw, blobs: u64, entries: &[[u64; 2]]) {
    let len = raw::write(&raw.own, MESSAGES, "look");
    let words: Vec<u64> = [MESSAGES, len].into_iter().chain(entries.concat()).collect();
    (TABLE..).zip(&words).for_each(|(at, &word)| raw.own.store(at, word));
    let mut payload = raw.lane.message(1, handle(ARENA, TABLE, words.len() as u64, 1));
    payload[0] |= blobs << 32;
    raw.lane.put(payload);
}

/// The control: what the document says is enough. Blobs may overlap anything, be empty, and end anywhere.
fn blobs_by_the_rules() {
    for believing in TRUSTS {
        let mut scene = Scene::new(believing);
        let mut raw = scene.login();
        let (all, mut out) = (BYTES as u64, Vec::new());
        for entries in [
            vec![[0, 1]],
            vec![[WORDS - 1, 8], [WORDS - 1, 7], [WORDS - 1, 0], [0, 0]],
            vec![[0, all]],
            vec![[0, all], [1, all - 8], [TABLE, 48], [MESSAGES, 100]],
            vec![[5, 3]; 255],
        ] {
            send_table(&mut raw, entries.len() as u64, &entries);
            let answer = raw.lane.take_message();
            let bytes: u64 = entries.iter().map(|entry| entry[1]).sum();
            assert_eq!(raw.lane.words_of(answer), format!("look, {} blobs, {bytes} bytes", entries.len()));
            // Whatever a message has, it is one handle that comes home.
            out.push(handle(ARENA, TABLE, 2 * entries.len() as u64 + 2, 1));
            let home = [answer[5], answer[6]];
            assert!(home == [0, 0] || out.contains(&home));
            raw.lane.put([2, answer[3], answer[4], 0, 0, 0, 0]);
        }
        assert!(raw.socket.say(&Frame::control(6, 0)));
        scene.peer.must_say("raw: PeerClosed");
        drop(raw);
        scene.end();
    }
}

fn blobs_out_of_range() {
    for believing in TRUSTS {
        let mut scene = Scene::new(believing);
        let all = BYTES as u64;
        // Offset in words, length in bytes, the words that makes.
        for (offset, bytes, len) in [
            (WORDS, 0, 1),
            (WORDS, 1, 1),
            (WORDS - 1, 9, 2),
            (0, all + 1, WORDS + 1),
            (1, all, WORDS),
            (u64::MAX, 0, 1),
            (u64::MAX, u64::MAX, 1 << 61),
            (0, u64::MAX, 1 << 61),
            (1 << 63, 1 << 63, 1 << 60),
        ] {
            let broken = PeerMisbehaved::HandleOutOfRange { offset, len, arena_words: WORDS };
            for place in [0, 1, 254] {
                scene.breach("entry", broken, |raw| {
                    let mut entries = vec![[MESSAGES, 8]; place + 1];
                    entries[place] = [offset, bytes];
                    send_table(raw, entries.len() as u64, &entries);
                });
            }
        }
        scene.end();
    }
}

fn blob_counts() {
    for believing in TRUSTS {
        let mut scene = Scene::new(believing);
        for (blobs, entries) in [(1, 0), (1, 2), (2, 1), (255, 254), (255, 256), (254, 255), (0, 1), (255, 0)] {
            // Without blobs it is a segment of whatever the table holds, and may be read.
            if blobs > 0 {
                scene.breach("count", PeerMisbehaved::SegmentCount(1), |raw| {
                    send_table(raw, blobs, &vec![[MESSAGES, 8]; entries]);
                });
            }
        }
        // Blobs do not make up for segments, nor the other way round.
        for segments in [0, 513, 2, 65_535] {
            scene.breach("segments", PeerMisbehaved::SegmentCount(segments), |raw| {
                (TABLE..TABLE + 4).zip([MESSAGES, 8, MESSAGES, 8]).for_each(|(at, word)| raw.own.store(at, word));
                let mut payload = raw.lane.message(segments.into(), handle(ARENA, TABLE, 4, 1));
                payload[0] |= 1 << 32;
                raw.lane.put(payload);
            });
        }
        scene.end();
    }
}

/// Bytes are never more than wrong, whenever they change.
fn changing() {
    let mut scene = Scene::new("snapshot");
    let mut raw = scene.login();
    let (own, stop) = (raw.own.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in 0.. {
                own.store(MESSAGES + 100 + value % 100, value);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        for _ in 0..500 {
            send_table(&mut raw, 1, &[[MESSAGES + 100, 800]]);
            let answer = raw.lane.take_message();
            assert_eq!(raw.lane.words_of(answer), "look, 1 blobs, 800 bytes");
            raw.lane.put([2, answer[3], answer[4], 0, 0, 0, 0]);
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop((raw, own));
    scene.peer.must_say("raw: PeerDied");
    scene.end();
}

/// The frame that goes ahead of a message, with so many descriptors.
fn pass(raw: &Raw, number: u32, message: u64, announced: u32, count: usize) -> bool {
    let file = File::open("/dev/null").expect("null");
    let frame = Frame::control(7, number).u64(8, message).u32(16, announced);
    raw.socket.send(&frame.0, &vec![file.as_fd(); count])
}

/// A message that says it has so many.
fn send_with(raw: &mut Raw, count: u64) {
    let mut payload = raw.lane.compose("look");
    payload[0] |= count << 40;
    raw.lane.put(payload);
}

/// The control: what the document says is enough, far more often than so many may be under way.
fn descriptors_by_the_rules() {
    let mut scene = Scene::new("snapshot");
    let mut raw = scene.login();
    for count in [1, 64, 3, 64, 2, 1, 64, 64, 64] {
        let next = raw.lane.sent + 1;
        assert!(pass(&raw, 1, next, count as u32, count));
        send_with(&mut raw, count as u64);
        let answer = raw.lane.take_message();
        assert_eq!(raw.lane.words_of(answer), format!("look, {count} descriptors"));
        raw.lane.put([2, answer[3], answer[4], 0, 0, 0, 0]);
    }
    // The slot first: it waits. And with blobs.
    send_with(&mut raw, 5);
    assert!(pass(&raw, 1, raw.lane.sent, 5, 5));
    let answer = raw.lane.take_message();
    assert_eq!(raw.lane.words_of(answer), "look, 5 descriptors");
    // Lost on the way: the message says so.
    let next = raw.lane.sent + 1;
    assert!(raw.socket.say(&Frame::control(7, 1).u64(8, next).u32(16, 2).u32(20, 1)));
    send_with(&mut raw, 2);
    let answer = raw.lane.take_message();
    assert!(raw.lane.words_of(answer).starts_with("look, 2 descriptors were sent"), "it says so");
    // It has said how many it has taken, at every half window.
    assert!(raw.socket.say(&Frame::control(6, 0)));
    scene.peer.must_say("raw: PeerClosed");
    let taken = raw.socket.rest().into_iter().filter(|frame| frame.u32_at(0) == 7 && frame.u32_at(4) == 0);
    let taken: Vec<_> = taken.map(|frame| frame.u64_at(8)).collect();
    assert_eq!(taken, [65, 132, 199, 263, 327]);
    drop(raw);
    scene.end();
}

fn descriptor_counts() {
    let mut scene = Scene::new("snapshot");
    for count in [0, 65, 253, 1 << 16, u32::MAX] {
        scene.breach("number", PeerMisbehaved::Frame("no such number of descriptors"), |raw| {
            assert!(pass(raw, 1, 1, count, 0));
        });
    }
    for (announced, found) in [(1, 0), (1, 2), (2, 1), (64, 63), (64, 200), (64, 0)] {
        let broken = PeerMisbehaved::DescriptorCount { found, announced: announced as usize };
        scene.breach("frame", broken, |raw| assert!(pass(raw, 1, 1, announced, found)));
    }
    for (announced, found) in [(1, 2), (2, 1), (64, 1), (255, 64)] {
        let broken = PeerMisbehaved::DescriptorCount { found, announced: announced as usize };
        scene.breach("slot", broken, |raw| {
            assert!(pass(raw, 1, 1, found as u32, found));
            send_with(raw, announced);
        });
    }
    scene.end();
}

fn out_of_turn() {
    let mut scene = Scene::new("snapshot");
    for (first, then) in [(1, 1), (2, 1), (1, 0), (u64::MAX, u64::MAX), (u64::MAX, 1)] {
        scene.breach("frames", PeerMisbehaved::DescriptorsOutOfTurn { message: then }, |raw| {
            assert!(pass(raw, 1, first, 1, 1) && pass(raw, 1, then, 1, 1));
        });
    }
    scene.breach("none", PeerMisbehaved::DescriptorsOutOfTurn { message: 0 }, |raw| assert!(pass(raw, 1, 0, 1, 1)));
    // A later message's are here, so this one's never come.
    scene.breach("slot", PeerMisbehaved::DescriptorsOutOfTurn { message: 1 }, |raw| {
        assert!(pass(raw, 1, 2, 1, 1));
        send_with(raw, 1);
    });
    scene.end();
}

fn wrong_channels() {
    let mut scene = Scene::new("snapshot");
    for number in [2, 3, 17, u32::MAX] {
        scene.breach("number", PeerMisbehaved::ChannelNumber(number), |raw| assert!(pass(raw, number, 1, 1, 1)));
    }
    scene.breach("closed", PeerMisbehaved::ChannelNumber(17), |raw| {
        assert!(raw.socket.say(&Frame::open(17, "main", schema(), area(1))));
        // Nobody has accepted it; they are kept, and then closed.
        assert!(pass(raw, 17, 1, 64, 64));
        assert!(raw.socket.say(&Frame::control(4, 17)));
        assert!(pass(raw, 17, 2, 1, 1));
    });
    scene.end();
}

fn flood() {
    let mut scene = Scene::new("snapshot");
    scene.breach("one channel", PeerMisbehaved::TooManyDescriptors(129), |raw| {
        for message in 1..=129 {
            assert!(pass(raw, 1, message, 1, 1));
        }
    });
    scene.breach("many channels", PeerMisbehaved::TooManyDescriptors(192), |raw| {
        for number in [17, 19] {
            let index = u64::from(number - 15) / 2;
            assert!(raw.socket.say(&Frame::open(number, "main", schema(), area(index))));
        }
        for number in [1, 17, 19] {
            assert!(pass(raw, number, 1, 64, 64));
        }
    });
    scene.end();
}

/// Its own receiver waits, for a while; nobody else does, and little CPU is spent on it.
fn never_come() {
    let mut scene = Scene::new("snapshot");
    let mut raw = scene.login();
    send_with(&mut raw, 1);
    raw.lane.say("echo behind it");
    let before = cpu_ticks(scene.peer.pid());
    for round in 0..200 {
        assert_eq!(ask(&mut scene.channel, &format!("echo {round}")), round.to_string());
        // The machine's own clock of what the server does, not a wait for anything.
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let spent = cpu_ticks(scene.peer.pid()) - before;
    assert!(spent < 30, "{spent} of some 40 clock ticks");
    // After some seconds it is received without them, and what is behind it.
    let answer = raw.lane.take_message();
    assert!(raw.lane.words_of(answer).starts_with("look, 1 descriptors were sent"), "it says so");
    let answer = raw.lane.take_message();
    assert_eq!(raw.lane.words_of(answer), "behind it");
    // Then they come, too late; others do in time.
    assert!(pass(&raw, 1, 1, 1, 1));
    let next = raw.lane.sent + 1;
    assert!(pass(&raw, 1, next, 2, 2));
    send_with(&mut raw, 2);
    let answer = raw.lane.take_message();
    assert_eq!(raw.lane.words_of(answer), "look, 2 descriptors");
    assert!(raw.socket.say(&Frame::control(6, 0)));
    scene.peer.must_say("raw: PeerClosed");
    drop(raw);
    scene.end();
}

/// User and system time of a process, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("procfs");
    let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// They are closed with the channel, or with the session: that is in the end's census.
fn message_never_comes() {
    let mut scene = Scene::new("snapshot");
    for way in 0..3 {
        let raw = scene.login();
        assert!(pass(&raw, 1, 9, 64, 64));
        match way {
            0 => drop(raw),
            1 => assert!(raw.socket.say(&Frame::control(6, 0))),
            _ => assert!(raw.socket.say(&Frame::control(4, 1))),
        }
        scene.peer.must_say(["raw: PeerDied", "raw: PeerClosed", "raw: ChannelClosed"][way]);
    }
    scene.end();
}

fn said_to_be_taken() {
    let mut scene = Scene::new("snapshot");
    for found in [1, 128, u64::MAX] {
        let broken = PeerMisbehaved::DescriptorsTaken { found, low: 0, high: 0 };
        scene.breach("taken", broken, |raw| assert!(raw.socket.say(&Frame::control(7, 0).u64(8, found))));
    }
    let mut raw = scene.login();
    assert!(raw.socket.say(&Frame::control(7, 0)));
    let answer = raw.lane.ask("echo none is none");
    assert_eq!(raw.lane.words_of(answer), "none is none");
    drop(raw);
    scene.peer.must_say("raw: PeerDied");
    // With descriptors, where none may be.
    scene.breach("taken", PeerMisbehaved::UnexpectedDescriptor, |raw| assert!(pass(raw, 0, 0, 1, 1)));
    scene.end();
}
