//! Clients that break the rules of docs/protocol.md in shared memory, one by one: each loses its own session, is told
//! so, and nobody else notices.

mod common;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/scene.rs"]
mod scene;
capnp::generated_code!(mod hello_capnp);

use common::apps::{TRUSTS, ask};
use common::{Case, eventually};
use raw::{ARENA, BYTES, Frame, MESSAGES, Memory, Random, Raw, area, handle, schema};
use scene::{LIMIT, Scene, broke, honest};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use strait::PeerMisbehaved;

fn main() -> ExitCode {
    let cases = [
        Case::new("a_raw_peer_that_keeps_the_rules_is_served", keeps_the_rules),
        Case::new("handles_out_of_range", handles),
        Case::new("a_message_without_a_handle", no_handle),
        Case::new("segments", segments),
        Case::new("a_huge_segment_table_is_not_copied", huge_table),
        Case::new("an_odd_segment_table", odd_table).limit(30),
        Case::new("messages_too_large_to_copy", too_large),
        Case::new("unknown_slot_kinds", slot_kinds),
        Case::new("sequences", sequences),
        Case::new("cursors", cursors),
        Case::new("message_numbers", numbers),
        Case::new("returns", returns),
        Case::new("a_peer_that_claims_to_sleep_for_ever", sleeps_for_ever),
        Case::new("messages_that_change_while_they_are_read", changing),
        Case::new("random_slots", random_slots),
    ];
    common::main(&cases, &[("honest", honest)])
}

const WORDS: u64 = BYTES as u64 / 8;

fn out_of_range(offset: u64, len: u64) -> PeerMisbehaved {
    PeerMisbehaved::HandleOutOfRange { offset, len, arena_words: WORDS }
}

/// The control: what the document says is enough to be served.
fn keeps_the_rules() {
    for believing in TRUSTS {
        let mut scene = Scene::new(believing);
        let mut raw = scene.login();
        // Around both rings a few times; what came goes home in each of the ways there are.
        let mut home = [0, 0];
        for round in 0..60 {
            let mut question = raw.lane.compose(&format!("echo {round}"));
            if round % 3 == 0 {
                question[5..7].copy_from_slice(&home);
            }
            raw.lane.put(question);
            let answer = raw.lane.take_message();
            assert_eq!(raw.lane.words_of(answer), round.to_string());
            assert_eq!((answer[0], answer[1], answer[2]), (1 | 1 << 16, raw.lane.sent, raw.lane.sent));
            home = [answer[3], answer[4]];
            match round % 3 {
                0 => raw.lane.put([2, home[0], home[1], 0, 0, 0, 0]),
                1 => assert!(raw.socket.say(&Frame::control(5, 0).u64(8, home[0]).u64(16, home[1]))),
                _ => {}
            }
        }
        two_segments(&mut raw);
        // Another channel, and others that are refused.
        assert!(raw.socket.say(&Frame::open(17, "main", schema(), area(1))));
        let opened = raw_answer(&raw, 2);
        assert_eq!((opened.u32_at(4), opened.u32_at(16)), (17, raw::SLOTS));
        assert!(raw.socket.say(&Frame::open(19, "none", schema(), area(2))));
        let refused = raw_answer(&raw, 3);
        assert_eq!((refused.u32_at(4), refused.u32_at(8)), (19, 1));
        assert!(raw.socket.say(&Frame::open(21, "main", 5, area(2))));
        let refused = raw_answer(&raw, 3);
        assert_eq!((refused.u32_at(4), refused.u32_at(8), refused.u64_at(12)), (21, 2, schema()));
        assert!(raw.socket.say(&Frame::control(4, 17)));
        // The goodbye is answered by one, and then by the end.
        assert!(raw.socket.say(&Frame::control(6, 0)));
        scene.peer.must_say("raw: PeerClosed");
        raw.socket.must_end_with_goodbye(0);
        drop(raw);
        scene.end();
    }
}

/// The next frame of this kind; returns may come at any time.
fn raw_answer(raw: &Raw, kind: u32) -> Frame {
    loop {
        let (frame, fds) = raw.socket.recv().expect("an answer");
        assert!(fds.is_empty() && frame.0.len() == 128);
        if frame.u32_at(0) == kind {
            return frame;
        }
        assert_eq!(frame.u32_at(0), 5);
    }
}

/// A message whose root is a far pointer into the second of two segments.
fn two_segments(raw: &mut Raw) {
    let (first, second, table) = (MESSAGES, MESSAGES + 4096, MESSAGES + 8000);
    let len = raw::write(&raw.own, second, "echo from afar");
    // The landing pad is the root pointer of the second segment, at its word 0.
    raw.own.store(first, 2 | 1 << 32);
    (table..).zip([first, 1, second, len]).for_each(|(at, word)| raw.own.store(at, word));
    let payload = raw.lane.message(2, handle(ARENA, table, 4, 9));
    raw.lane.put(payload);
    let answer = raw.lane.take_message();
    assert_eq!(raw.lane.words_of(answer), "from afar");
}

fn handles() {
    for believing in TRUSTS {
        let mut scene = Scene::new(believing);
        const LAST: u64 = (1 << 36) - 1;
        for (offset, len) in
            [(WORDS, 1), (WORDS - 1, 2), (0, WORDS + 1), (LAST, LAST), (1, LAST), (LAST, 1), (WORDS, LAST)]
        {
            scene.breach("handle", out_of_range(offset, len), |raw| {
                let payload = raw.lane.message(1, handle(ARENA, offset, len, 1));
                raw.lane.put(payload);
            });
        }
        let mut raw = scene.login();
        for found in [0, ARENA + 1, raw.their_arena, (1 << 24) - 1] {
            let payload = raw.lane.message(1, handle(found, MESSAGES, 1, 1));
            raw.lane.put(payload);
            let broken = PeerMisbehaved::UnknownArena { found, expected: ARENA };
            scene.must_report(&raw, "arena", &broke(broken));
            raw = scene.login();
        }
        raw.lane.say("echo good");
        assert!(raw.socket.say(&Frame::control(6, 1)));
        scene.peer.must_say("raw: Accused");
        drop(raw);
        scene.end();
    }
}

fn no_handle() {
    let mut scene = Scene::new("snapshot");
    scene.breach("no handle", PeerMisbehaved::NoHandle, |raw| {
        let payload = raw.lane.message(1, handle(ARENA, MESSAGES, 0, 1));
        raw.lane.put(payload);
    });
    scene.end();
}

/// Sends a message whose handle names a table.
fn send_table(raw: &mut Raw, segments: u64, words: &[u64]) {
    let table = MESSAGES + 8000;
    (table..).zip(words).for_each(|(at, &word)| raw.own.store(at, word));
    let payload = raw.lane.message(segments, handle(ARENA, table, words.len() as u64, 1));
    raw.lane.put(payload);
}

fn segments() {
    for believing in TRUSTS {
        let mut scene = Scene::new(believing);
        for count in [0, 513, 1024, 65_535] {
            scene.breach("count", PeerMisbehaved::SegmentCount(count), |raw| {
                send_table(raw, count.into(), &[MESSAGES, 8].repeat(count.clamp(1, 64) as usize));
            });
        }
        for (count, entries) in [(2, 1), (2, 3), (3, 2), (512, 511), (512, 513), (2, 512)] {
            scene.breach("table", PeerMisbehaved::SegmentCount(count), |raw| {
                send_table(raw, count.into(), &[MESSAGES, 8].repeat(entries));
            });
        }
        let bad = [(WORDS, 1), (0, WORDS + 1), (u64::MAX, 2), (2, u64::MAX), (1 << 63, 1 << 63), (MESSAGES, 0), (0, 0)];
        for (offset, len) in bad {
            for place in [0, 1] {
                scene.breach("entry", out_of_range(offset, len), |raw| {
                    let mut entries = [MESSAGES, 8, MESSAGES, 8];
                    entries[2 * place] = offset;
                    entries[2 * place + 1] = len;
                    send_table(raw, 2, &entries);
                });
            }
        }
        scene.end();
    }
}

fn odd_table() {
    let mut scene = Scene::new("snapshot");
    scene.breach("table", PeerMisbehaved::SegmentCount(2), |raw| {
        send_table(raw, 2, &[MESSAGES, 8, MESSAGES, 8, MESSAGES]);
    });
    scene.end();
}

fn huge_table() {
    for believing in TRUSTS {
        let mut scene = Scene::new(believing);
        let bytes = 256 << 20;
        let mut raw = Raw::login_with(scene.place.path(), Memory::own(bytes));
        let payload = raw.lane.message(2, handle(ARENA, 0, bytes as u64 / 8, 1));
        raw.lane.put(payload);
        scene.must_report(&raw, "table", &broke(PeerMisbehaved::SegmentCount(2)));
        drop(raw);
        let status = std::fs::read_to_string(format!("/proc/{}/status", scene.peer.pid())).expect("procfs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let peak: usize = peak.trim().trim_end_matches(" kB").parse().expect("a number");
        assert!(peak < 128 << 10, "{believing}: {peak} KiB for a message that is nothing");
        scene.end();
    }
}

fn too_large() {
    let mut scene = Scene::new("snapshot");
    let whole =
        |raw: &mut Raw, segments: u64, entry: [u64; 2]| send_table(raw, segments, &entry.repeat(segments as usize));
    for (segments, len) in [(2, WORDS), (512, WORDS / 512 + 1), (512, WORDS)] {
        let broken = PeerMisbehaved::MessageTooLarge { bytes: segments * len * 8, limit: LIMIT };
        scene.breach("sum", broken, |raw| whole(raw, segments, [0, len]));
    }
    let mut raw = Raw::login_with(scene.place.path(), Memory::own(2 * BYTES));
    let payload = raw.lane.message(1, handle(ARENA, 0, WORDS + 1, 1));
    raw.lane.put(payload);
    let broken = PeerMisbehaved::MessageTooLarge { bytes: LIMIT + 8, limit: LIMIT };
    scene.must_report(&raw, "one", &broke(broken));
    // As large as may be is fine, and the segments may overlap: nothing says that they do not.
    let mut raw = scene.login();
    whole(&mut raw, 512, [MESSAGES, WORDS / 512]);
    raw.lane.take_message();
    assert!(raw.socket.say(&Frame::control(6, 0)));
    scene.peer.must_say("raw: PeerClosed");
    drop(raw);
    scene.end();
}

fn slot_kinds() {
    let mut scene = Scene::new("snapshot");
    for kind in (0..=255).filter(|kind| !(1..=4).contains(kind)) {
        scene.breach("kind", PeerMisbehaved::UnknownSlotKind(kind), |raw| {
            let mut payload = raw.lane.compose("echo no");
            payload[0] = payload[0] & !0xFF | u64::from(kind);
            raw.lane.put(payload);
        });
    }
    // A message inside its slot: of no words, of more than fit, with blobs or descriptors beside it.
    for (words, beside) in [(0, 0), (26, 0), (u16::MAX, 0), (1, 1 << 32), (1, 1 << 40)] {
        scene.breach("inside", PeerMisbehaved::InsideLength(words), |raw| {
            let mut payload = raw.lane.compose("echo no");
            payload[0] = 3 | u64::from(words) << 16 | beside;
            raw.lane.put(payload);
        });
    }
    // One that goes on in slots that are not filled.
    for words in [5, 11, 12, 25] {
        scene.breach("inside", PeerMisbehaved::SequenceOutOfRange { found: 0, expected: 2 }, |raw| {
            let mut payload = raw.lane.compose("echo no");
            payload[0] = 3 | words << 16;
            raw.lane.put(payload);
        });
    }
    scene.end();
}

fn sequences() {
    let mut scene = Scene::new("snapshot");
    let slots = u64::from(raw::SLOTS);
    for before in [0, 1, slots - 1, slots, slots + 3, 3 * slots] {
        let expected = before + 1;
        let lap_before = expected.saturating_sub(slots);
        let others = [0, before, expected + 1, expected + slots, lap_before + (1 << 32), expected | 1 << 63, u64::MAX];
        for found in others.into_iter().filter(|found| ![expected, lap_before].contains(found)) {
            scene.breach("sequence", PeerMisbehaved::SequenceOutOfRange { found, expected }, |raw| {
                good(raw, before);
                raw.lane.compose("echo no");
                raw.lane.publish(raw.lane.slot(before) + 7, found);
            });
        }
    }
    scene.end();
}

fn cursors() {
    let mut scene = Scene::new("snapshot");
    let slots = u64::from(raw::SLOTS);
    // How many slots are emptied before the lie; the sender looks at the cursor whenever it has no room.
    for emptied in [0, 1, slots / 2, slots] {
        let high = emptied + slots;
        for found in [high + 1, high + (1 << 32), u64::MAX, 1 << 63].into_iter().chain(emptied.checked_sub(1)) {
            let mut raw = scene.login();
            raw.lane.say("burst 100");
            for _ in 0..emptied {
                raw.lane.take();
            }
            let last = raw.lane.their_half.offset + 48 + 8 * ((high - 1) % slots) + 7;
            eventually("full", || (raw.theirs.load(last) == high).then_some(()));
            raw.lane.set_cursor(found);
            // It may have looked while `emptied` was less, so the lower bound may be any such.
            let line = scene.peer.line();
            let fits = |low| line == broke(PeerMisbehaved::CursorOutOfRange { found, low, high });
            assert!((0..=emptied).any(fits), "{line}: {found} after {emptied}");
            raw.socket.must_end_with_goodbye(1);
            assert_eq!(ask(&mut scene.channel, "echo still there"), "still there");
        }
    }
    // Back and forth.
    let mut raw = scene.login();
    raw.lane.say("burst 1000000");
    let stop = AtomicBool::new(false);
    let (lane, socket) = (&raw.lane, &raw.socket);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for cursor in [5, 3].into_iter().cycle() {
                lane.set_cursor(cursor);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let line = scene.peer.line();
        stop.store(true, Ordering::Relaxed);
        assert!(line.starts_with("raw: PeerMisbehaved(CursorOutOfRange"), "{line}");
        socket.must_end_with_goodbye(1);
    });
    drop(raw);
    scene.end();
}

/// So many questions, answered.
fn good(raw: &mut Raw, count: u64) {
    for round in 0..count {
        let answer = raw.lane.ask(&format!("echo {round}"));
        assert_eq!(raw.lane.words_of(answer), round.to_string());
    }
}

fn numbers() {
    let mut scene = Scene::new("snapshot");
    for before in [0, 1, 20] {
        for found in [0, before, before + 2, u64::MAX].into_iter().filter(|&found| found != before + 1) {
            scene.breach("number", PeerMisbehaved::MessageId { found, expected: before + 1 }, |raw| {
                good(raw, before);
                let mut payload = raw.lane.compose("echo no");
                payload[1] = found;
                raw.lane.put(payload);
            });
        }
        for found in [before + 1, before + 2, u64::MAX] {
            scene.breach("reply", PeerMisbehaved::ReplyToNothing { found, sent: before }, |raw| {
                good(raw, before);
                let mut payload = raw.lane.compose("echo no");
                payload[2] = found;
                raw.lane.put(payload);
            });
        }
    }
    scene.end();
}

/// The three ways home.
const WAYS: [fn(&mut Raw, [u64; 2]); 3] = [
    |raw, home| raw.lane.put([2, 0, 0, 0, 0, home[0], home[1]]),
    |raw, home| {
        let mut payload = raw.lane.compose("echo no");
        payload[5..7].copy_from_slice(&home);
        raw.lane.put(payload);
    },
    |raw, home| assert!(raw.socket.say(&Frame::control(5, 0).u64(8, home[0]).u64(16, home[1]))),
];

fn returns() {
    let mut scene = Scene::new("snapshot");
    // One bit of each field at a time: offset, arena, length (both parts), ticket (both parts), each of its ends.
    let bits = [0, 35, 36, 59, 60, 63, 64, 95, 96, 115, 116, 127];
    for back in WAYS {
        for bit in bits {
            scene.breach("altered", PeerMisbehaved::NotOnLoan, |raw| {
                let answer = raw.lane.ask("echo good");
                let mut home = [answer[3], answer[4]];
                home[bit / 64] ^= 1 << (bit % 64);
                back(raw, home);
            });
        }
        for first in WAYS {
            scene.breach("twice", PeerMisbehaved::NotOnLoan, |raw| {
                let answer = raw.lane.ask("echo good");
                first(raw, [answer[3], answer[4]]);
                // Whichever way is found first, the second time is one too many.
                back(raw, [answer[3], answer[4]]);
            });
        }
        scene.breach("never lent", PeerMisbehaved::NotOnLoan, |raw| {
            back(raw, handle(raw.their_arena, 512, 1, 0));
        });
    }
    scene.breach("twice in one slot", PeerMisbehaved::NotOnLoan, |raw| {
        let answer = raw.lane.ask("echo good");
        raw.lane.put([2, answer[3], answer[4], answer[3], answer[4], 0, 0]);
    });
    scene.end();
}

/// All the words that say so, without ever sleeping: every publication then tries to wake somebody.
fn sleeps_for_ever() {
    let mut scene = Scene::new("snapshot");
    let mut raw = scene.login();
    for word in [16, 17, 18, 32, 33, 34] {
        raw.own.store(raw.lane.half.offset + word, if word % 16 == 1 { 1 << 40 } else { 1 });
    }
    for round in 0..200 {
        let answer = raw.lane.ask(&format!("echo {round}"));
        assert_eq!(raw.lane.words_of(answer), round.to_string());
        assert_eq!(ask(&mut scene.channel, "echo and you"), "and you");
    }
    // Any value is a sleeper's or is not.
    let mut random = Random::new();
    for _ in 0..200 {
        for word in [16, 17, 18, 32, 33, 34] {
            raw.own.store(raw.lane.half.offset + word, random.next());
        }
        raw.lane.ask("echo good");
    }
    drop(raw);
    scene.peer.must_say("raw: PeerDied");
    scene.end();
}

fn changing() {
    let mut scene = Scene::new("snapshot");
    let mut raw = scene.login();
    let mut random = Random::new();
    let len = raw::write(&raw.own, MESSAGES, &"echo ".repeat(1_000));
    let good: Vec<u64> = (0..len).map(|at| raw.own.load(MESSAGES + at)).collect();
    let (own, stop) = (raw.own.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Mostly the pointers at its start, and back again, so that it is often nearly right.
                let at = if random.below(2) == 0 { random.below(4) } else { random.below(len) };
                let word = good[at as usize];
                own.store(MESSAGES + at, word ^ 1 << random.below(64));
                own.store(MESSAGES + at, random.next());
                own.store(MESSAGES + at, word);
            }
        });
        for _ in 0..2_000 {
            let payload = raw.lane.message(1, handle(ARENA, MESSAGES, len, 1));
            raw.lane.put(payload);
            let answer = raw.lane.take_message();
            raw.lane.put([2, answer[3], answer[4], 0, 0, 0, 0]);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(ask(&mut scene.channel, "echo still there"), "still there");
    drop((raw, own));
    scene.peer.must_say("raw: PeerDied");
    scene.end();
}

/// Slots of random words, then one that is certainly wrong: either may be what the session ends for.
fn random_slots() {
    let mut random = Random::new();
    for believing in TRUSTS {
        let mut scene = Scene::new(believing);
        for _ in 0..1_000 {
            let mut raw = scene.login();
            let mut payload = raw.lane.compose("echo random");
            match random.below(3) {
                0 => payload = std::array::from_fn(|_| random.next()),
                1 => (0..=random.below(4)).for_each(|_| payload[random.below(7) as usize] ^= 1 << random.below(64)),
                _ => payload[random.below(7) as usize] = random.next() >> random.below(64),
            }
            // Whoever is told of descriptors waits for them.
            payload[0] &= !(0xFF << 40);
            raw.lane.put(payload);
            // As many as the first may say that it goes on in, and one more.
            (0..4).for_each(|_| raw.lane.put([0xFF; 7]));
            scene.must_report(&raw, "random words", "raw: PeerMisbehaved(*");
        }
        scene.end();
    }
}
