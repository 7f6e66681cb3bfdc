//! Clients that break the rules of docs/protocol.md about what travels beside messages, one by one: each loses its own
//! session, is told so, and nobody else notices.

mod common;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/scene.rs"]
mod scene;
capnp::generated_code!(mod hello_capnp);

use common::Case;
use common::apps::TRUSTS;
use raw::{ARENA, BYTES, Frame, MESSAGES, Raw, handle};
use scene::{Scene, honest};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use strait::PeerMisbehaved;

fn main() -> ExitCode {
    let cases = [
        Case::new("blobs_by_the_rules", blobs_by_the_rules),
        Case::new("blobs_out_of_range", blobs_out_of_range),
        Case::new("more_or_fewer_blobs_than_the_table_has", blob_counts),
        Case::new("blobs_that_change_while_they_are_read", changing),
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
