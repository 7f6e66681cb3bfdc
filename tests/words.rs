//! Every word that a peer shares, with every bit flipped and every value at a boundary, however full the rings are; a peer
//! that never stops changing its words while they are read; every byte of a log-in, every length of one, every message in
//! every state. The server lives, says what was wrong, and serves everyone else.
//!
//! `STRAIT_LEVEL`: `quick` leaves out occupancies and values that `nightly` and `release` have.

mod common;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/scene.rs"]
mod scene;
capnp::generated_code!(mod hello_capnp);

use common::Case;
use common::apps::{ask, client, open};
use common::eventually;
use hello_capnp::hello;
use raw::{ARENA, BYTES, Frame, MESSAGES, Memory, Random, Raw, Socket, area, handle, schema};
use scene::{Scene, broke, honest};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use strait::{Channel, PeerMisbehaved};

fn main() -> ExitCode {
    let long = if thorough() { 6 * 3600 } else { 180 };
    let cases = [
        Case::new("every_bit_of_a_slot", slots).limit(long),
        Case::new("every_bit_of_a_sequence", sequences).limit(long),
        Case::new("every_bit_of_a_cursor", cursors).limit(long),
        Case::new("every_bit_of_what_is_said_of_sleeping", sleepers).limit(long),
        Case::new("a_peer_that_changes_all_its_words_all_the_time", mutator).limit(long),
        Case::new("every_byte_and_length_of_a_login", logins).limit(long),
        Case::new("every_message_in_every_state", states),
    ];
    common::main(&cases, &[("honest", honest)])
}

/// Whether it may take hours.
fn thorough() -> bool {
    matches!(std::env::var("STRAIT_LEVEL").as_deref(), Ok("nightly" | "release"))
}

const SLOTS: u64 = raw::SLOTS as u64;

/// Rounds before, so that the rings are at every place.
fn occupancies() -> Vec<u64> {
    if thorough() { (0..=SLOTS + 1).collect() } else { vec![0, 3, SLOTS] }
}

/// A word with each bit flipped, and the values at boundaries.
fn bad_values(word: u64, near: u64) -> Vec<u64> {
    let flips = (0..64).map(|bit| word ^ 1 << bit);
    let cap = [0, 1, SLOTS - 1, SLOTS, SLOTS + 1, u64::MAX, 1 << 63, u64::from(u32::MAX)];
    let near = [near.wrapping_sub(1), near, near + 1, near + SLOTS, near.wrapping_sub(SLOTS)];
    let mut all: Vec<u64> = flips.chain(cap).chain(near).filter(|&value| value != word).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// So many questions, answered, and the answers given back.
fn good(raw: &mut Raw, count: u64) {
    for round in 0..count {
        let answer = raw.lane.ask(&format!("echo {round}"));
        assert_eq!(raw.lane.words_of(answer), round.to_string());
    }
}

fn slots() {
    let mut scene = Scene::new("snapshot");
    let mut count = 0;
    for before in occupancies() {
        for word in 0..7 {
            let whole = Raw::login(scene.place.path()).lane.compose("echo no")[word];
            scene.peer.must_say("raw: PeerDied");
            for value in bad_values(whole, before) {
                let mut raw = scene.login();
                good(&mut raw, before);
                let mut payload = raw.lane.compose("echo no");
                payload[word] = value;
                raw.lane.put(payload);
                // It may be a message all the same; the next is none.
                raw.lane.put([0xFF; 7]);
                count += 1;
                if word == 0 && value >> 40 & 0xFF != 0 {
                    // Descriptors come by another way: it may wait for these until this side is gone.
                    drop(raw);
                    let line = scene.peer.line();
                    assert!(line == "raw: PeerDied" || line.starts_with("raw: PeerMisbehaved("), "{line}");
                    continue;
                }
                scene.must_report(&raw, "slot", "raw: PeerMisbehaved(*");
            }
        }
    }
    println!("note: {count} slots");
    scene.end();
}

fn sequences() {
    let mut scene = Scene::new("snapshot");
    let mut count = 0;
    for before in occupancies() {
        let expected = before + 1;
        let empty = expected.saturating_sub(SLOTS);
        for found in bad_values(expected, before).into_iter().filter(|&found| found != empty) {
            scene.breach("sequence", PeerMisbehaved::SequenceOutOfRange { found, expected }, |raw| {
                good(raw, before);
                raw.lane.compose("echo no");
                raw.lane.publish(raw.lane.slot(before) + 7, found);
            });
            count += 1;
        }
    }
    println!("note: {count} sequences");
    scene.end();
}

fn cursors() {
    let mut scene = Scene::new("snapshot");
    let mut count = 0;
    for unread in occupancies().into_iter().filter(|&unread| unread <= SLOTS) {
        for cursor in bad_values(0, unread) {
            let mut raw = scene.login();
            raw.lane.say(&format!("burst {unread}"));
            if unread > 0 {
                let last = raw.lane.their_half.offset + 48 + 8 * (unread - 1) + 7;
                eventually("so many are unread", || (raw.theirs.load(last) == unread).then_some(()));
            }
            raw.lane.set_cursor(cursor);
            // It looks when its ring is full.
            raw.lane.say("burst 100");
            if cursor > SLOTS {
                let broken = PeerMisbehaved::CursorOutOfRange { found: cursor, low: 0, high: SLOTS };
                scene.must_report(&raw, "cursor", &broke(broken));
            } else {
                let (next, filled) = ((SLOTS + cursor - 1) % SLOTS, SLOTS + cursor);
                let last = raw.lane.their_half.offset + 48 + 8 * next + 7;
                eventually("it is believed", || (raw.theirs.load(last) == filled).then_some(()));
                drop(raw);
                scene.peer.must_say("raw: PeerDied");
            }
            count += 1;
        }
    }
    println!("note: {count} cursors");
    scene.end();
}

/// No value of these is a breach: they say when to make a call for nothing, or to make none.
fn sleepers() {
    let mut scene = Scene::new("snapshot");
    let mut raw = scene.login();
    let mut count = 0;
    for (word, quiet) in [16, 17, 18, 32, 33, 34].into_iter().zip([0, 1].into_iter().cycle()) {
        for value in bad_values(quiet, 1) {
            raw.own.store(raw.lane.half.offset + word, value);
            let answer = raw.lane.ask("echo good");
            raw.lane.put([2, answer[3], answer[4], 0, 0, 0, 0]);
            raw.own.store(raw.lane.half.offset + word, 0);
            count += 1;
        }
        assert_eq!(ask(&mut scene.channel, "echo still there"), "still there");
    }
    println!("note: {count} values");
    drop(raw);
    scene.peer.must_say("raw: PeerDied");
    scene.end();
}

/// Changes words of its own: those of the ring, and those of one message, mostly at their beginnings.
struct Mutator<'a> {
    own: &'a Memory,
    random: Random,
    message: u64,
    done: &'a AtomicU64,
}

impl Mutator<'_> {
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let at = match self.random.below(8) {
                0 => self.random.below(48 + 8 * SLOTS),
                1..4 => MESSAGES + self.random.below(4),
                _ => MESSAGES + self.random.below(self.message),
            };
            let word = self.own.load(at);
            let other = if self.random.below(2) == 0 { word ^ 1 << self.random.below(64) } else { self.random.next() };
            self.own.store(at, other);
            // Back again, mostly, so that it is often nearly right.
            if self.random.below(4096) > 0 {
                self.own.store(at, word);
            }
            if self.done.fetch_add(1, Ordering::Relaxed).is_multiple_of(64) {
                std::thread::yield_now();
            }
        }
    }
}

/// Says so when it goes, so that no thread runs on after a failure.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One session with a peer whose words change all the time; tells how many messages were answered before it ended. With
/// nobody to attack it is just as busy, but what changes is memory that nobody else has.
fn one_mutation(scene: &mut Scene, seed: u64, attacks: bool, done: &AtomicU64, until: Instant) -> u64 {
    let mut raw = scene.login();
    let len = raw::write(&raw.own, MESSAGES, &"echo ".repeat(200));
    let (own, stop) = (if attacks { raw.own.clone() } else { Arc::new(Memory::own(BYTES)) }, AtomicBool::new(false));
    let mut answered = 0;
    std::thread::scope(|scope| {
        let _over = Over(&stop);
        scope.spawn(|| Mutator { own: &own, random: Random(seed | 1), message: len, done }.run(&stop));
        while Instant::now() < until {
            let payload = raw.lane.message(1, handle(ARENA, MESSAGES, len, 1));
            raw.lane.put(payload);
            let at = raw.lane.their_half.offset + 48 + 8 * (raw.lane.emptied % SLOTS);
            let expected = raw.lane.emptied + 1;
            // It answers, or it has cut this side off; or a change undid what this side had just said.
            let patience = Instant::now() + Duration::from_millis(20);
            while raw.theirs.load(at + 7) != expected && !raw.socket.is_over() && Instant::now() < patience {
                std::thread::yield_now();
            }
            if raw.theirs.load(at + 7) != expected {
                break;
            }
            let answer = raw.lane.take();
            if answer[0] & 0xFF == 1 {
                raw.lane.put([2, answer[3], answer[4], 0, 0, 0, 0]);
                answered += 1;
            }
        }
    });
    drop((raw, own));
    let line = scene.peer.line();
    assert!(line == "raw: PeerDied" || attacks && line.starts_with("raw: PeerMisbehaved("), "{line}");
    answered
}

/// How long honest questions take while something else is done.
fn beside(channel: &mut Channel<hello::Owned>, times: &mut Vec<Duration>, act: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                assert_eq!(ask(channel, "echo still there"), "still there");
                times.push(start.elapsed());
            }
        });
        let _over = Over(&over);
        act();
    });
}

fn middle(times: &mut [Duration]) -> Duration {
    let middle = times.len() / 2;
    *times.select_nth_unstable(middle).1
}

/// Honest questions meanwhile take no longer than beside a process that is as busy and attacks nobody. All three in turn,
/// so that what else this machine does is in all of them.
fn mutator() {
    let mut random = Random::new();
    let mut scene = Scene::new("snapshot");
    let (done, none) = (AtomicU64::new(0), AtomicU64::new(0));
    let session = client().connect(&scene.place.server()).expect("connect");
    let mut other = open(&session);
    let turn = Duration::from_secs(if thorough() { 10 } else { 1 });
    let turns = if thorough() { 60 } else { 5 };
    let (mut sessions, mut answered) = (0, 0);
    let [mut quiet, mut busy, mut attacked] = [const { Vec::new() }; 3];
    for _ in 0..turns {
        beside(&mut other, &mut quiet, || std::thread::sleep(turn / 4));
        for (attacks, times) in [(false, &mut busy), (true, &mut attacked)] {
            let end = Instant::now() + if attacks { turn } else { turn / 2 };
            beside(&mut other, times, || {
                while Instant::now() < end {
                    let counter = if attacks { &done } else { &none };
                    let count = one_mutation(&mut scene, random.next(), attacks, counter, end);
                    assert_eq!(ask(&mut scene.channel, "echo still there"), "still there");
                    if attacks {
                        (sessions, answered) = (sessions + 1, answered + count);
                    }
                }
            });
        }
    }
    let mutations = done.load(Ordering::Relaxed);
    println!("note: {mutations} changes, {sessions} sessions, {answered} answers");
    let [quiet, busy, attacked] = [&mut quiet, &mut busy, &mut attacked].map(|times| middle(times));
    let times = |than: Duration| attacked.as_secs_f64() / than.as_secs_f64();
    println!(
        "note: honest round trips, p50: {quiet:?} alone, {busy:?} beside a busy process, {attacked:?} meanwhile: {:.2} \
         times as long as beside the busy one, {:.2} times as long as alone",
        times(busy),
        times(quiet)
    );
    assert!(mutations > 1_000 && answered > 0);
    session.close();
    drop((other, session));
    scene.peer.must_say("tester: PeerClosed");
    scene.end();
}

/// What a server may say of a log-in that is not quite right.
const JUDGEMENTS: [&str; 5] = ["PeerMisbehaved(", "Refused(", "Disconnected", "raw: PeerDied", "raw: PeerMisbehaved("];

fn logins() {
    let mut scene = Scene::new("snapshot");
    let hello = || Frame::hello(BYTES, "raw", &[("main", schema(), area(0))]);
    let mut judged = std::collections::BTreeMap::new();
    let mut try_one = |frame: &[u8]| {
        let (memory, socket) = (Memory::own(BYTES), Socket::knock(scene.place.path()));
        assert!(socket.send(frame, &[memory.read_only().as_fd()]));
        drop(socket);
        let line = scene.peer.line();
        let judgement = JUDGEMENTS.into_iter().find(|judgement| line.starts_with(judgement));
        *judged.entry(judgement.unwrap_or_else(|| panic!("{line} for {frame:?}"))).or_insert(0) += 1;
    };
    let used = 184 + 84;
    for at in 0..used {
        let old = hello().0[at];
        let all: Vec<u8> = if thorough() { (0..=255).collect() } else { vec![old ^ 1, old ^ 0x80, 0, 0xFF] };
        for value in all.into_iter().filter(|&value| value != old) {
            try_one(&hello().bytes(at, &[value]).0);
        }
    }
    for len in 0..=1100 {
        let mut frame = hello();
        frame.0.resize(len, 0);
        if thorough() || len % 4 < 2 {
            try_one(&frame.0);
        }
    }
    println!("note: {judged:?}");
    assert_eq!(ask(&mut scene.channel, "echo still there"), "still there");
    scene.end();
}

/// What it is called, and how a session gets there.
type State = (&'static str, fn(&Raw));

/// Frames of the log-in and of what comes after it, where they belong and where they do not.
fn states() {
    let mut scene = Scene::new("snapshot");
    let hello = || Frame::hello(BYTES, "raw", &[("main", schema(), area(0))]);
    let mut messages = vec![hello(), Frame::login(2), Frame::login(3), Frame::login(0), Frame(vec![0; 1024])];
    for number in [0, 1, 2, 17, 18, u32::MAX] {
        messages.push(Frame::open(number, "main", schema(), area(1)));
        messages.push(Frame::open(number, "none", schema(), area(1)));
        messages.extend((0..=20).map(|kind| Frame::control(kind, number)));
    }
    for message in &messages {
        // Before the log-in.
        if message.0 != hello().0 {
            let socket = Socket::knock(scene.place.path());
            assert!(socket.send(&message.0, &[]));
            drop(socket);
            let line = scene.peer.line();
            assert!(line.starts_with("PeerMisbehaved(Frame("), "{line} for {:?}", message.0);
        }
    }
    let before: [State; 4] = [
        ("logged in", |_| {}),
        ("its channel closed", |raw| assert!(raw.socket.say(&Frame::control(4, 1)))),
        ("after a goodbye", |raw| assert!(raw.socket.say(&Frame::control(6, 0)))),
        ("after an accusation", |raw| assert!(raw.socket.say(&Frame::control(6, 1)))),
    ];
    let ends = ["PeerMisbehaved(", "PeerDied", "PeerClosed", "Accused", "ChannelClosed"];
    for (state, prepare) in before {
        for message in &messages {
            let raw = scene.login();
            prepare(&raw);
            // Gone already, perhaps.
            raw.socket.send(&message.0, &[]);
            drop(raw);
            let line = scene.peer.line();
            let said = line.strip_prefix("raw: ").unwrap_or_default();
            assert!(ends.iter().any(|end| said.starts_with(end)), "{state}: {line} for {:?}", message.0);
        }
        assert_eq!(ask(&mut scene.channel, "echo still there"), "still there", "{state}");
    }
    println!("note: {} messages in each of {} states", messages.len(), 1 + before.len());
    scene.end();
}
