//! What a message that changes while it is read does to its reader: nothing to one that copies it first, and death to one
//! that reads it where it lies without being able to believe its sender. The latter is the control: Cap'n Proto looks at a
//! struct's pointer, checks its bounds by a second look and uses what the first look found.

mod common;
#[path = "common/raw.rs"]
mod raw;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, server, trust};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE};
use hello_capnp::hello;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use raw::{ARENA, Frame, Memory, Raw, handle};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use strait::{ClientApp, Received, RecvError};

fn main() -> ExitCode {
    let cases = [
        Case::new("a_reader_of_copies_lives", copies_live),
        Case::new("the_harness_finds_what_is_wrong", in_place_dies),
    ];
    common::main(&cases, &[("reader", reader)])
}

/// Larger than any gap between other mappings of a reader, so that what comes after it is what the reader put there.
const BYTES: usize = 1 << 30;
/// Messages that a reader of copies gets.
const MESSAGES: usize = 2_000;
/// How often each is looked at.
const LOOKS: usize = 200;
/// How long the other reader may take to die.
const SOON: Duration = Duration::from_secs(120);

fn flips<R>(place: &Place, act: impl FnOnce(&mut Raw, u64) -> R) -> R {
    let mut raw = Raw::login_with(place.path(), Memory::own(BYTES));
    // At the very end of its memory, so that nothing of it lies behind the message.
    let at = raw.own.words() - 16;
    raw::write(&raw.own, at, "words");
    let good = raw.own.load(at);
    // The same struct with 65,535 words of data: its pointers would lie half a megabyte further on.
    let bad = good | 0xFFFF << 32;
    let stop = AtomicBool::new(false);
    let own = raw.own.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                own.store(at, bad);
                own.store(at, good);
            }
        });
        let result = act(&mut raw, at);
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn tell(raw: &mut Raw, at: u64) {
    let len = raw.own.words() - at;
    let ticket = raw.lane.sent as u32;
    let slot = raw.lane.message(1, handle(ARENA, at, len, ticket));
    raw.lane.put(slot);
}

fn copies_live() {
    let place = Place::new();
    let mut peer = Peer::start("reader", &[place.text(), "snapshot"]);
    peer.must_say("ready");
    flips(&place, |raw, at| {
        (0..MESSAGES).for_each(|_| tell(raw, at));
        assert!(raw.socket.say(&Frame::control(6, 0)));
        let found = peer.line();
        println!("note: {found}");
        assert!(!found.contains("changed"), "{found}");
    });
    peer.finish();
    place.must_be_empty();
}

/// The same reader, believing whom it must not: were it not killed, the case above would show nothing.
fn in_place_dies() {
    let place = Place::new();
    let mut peer = Peer::start("reader", &[place.text(), "in_place"]);
    peer.must_say("ready");
    let began = Instant::now();
    let status = flips(&place, |raw, at| {
        tell(raw, at);
        peer.end()
    });
    assert_eq!(status.signal(), Some(Signal::SIGSEGV as i32), "{status}");
    println!("note: killed by the second look after {:.3} s", began.elapsed().as_secs_f64());
}

/// Reads what a peer sends, believing it so far, and says what it found.
fn reader(args: &[String]) {
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let raw = ClientApp::new("raw");
    let app = server(&args[0]).slots(raw::SLOTS).arena_bytes(1 << 20).channel::<hello::Owned>("main");
    let server = app.allow(&raw, trust(&args[1])).bind().expect("bind");
    // The kernel puts the next mapping below this one, or elsewhere behind a gap: either way nothing can be read there.
    // SAFETY: no address is asked for, and nobody ever touches it.
    unsafe { mmap_anonymous(None, (4 << 20).try_into().expect("some"), ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }
        .expect("address space");
    say("ready");
    let session = server.accept_timeout(PATIENCE).expect("a client");
    let mut channel = session.accept_channel_timeout::<hello::Owned>(PATIENCE).expect("its channel");
    let (mut read, mut refused, mut changed) = (0_u64, 0_u64, 0_u64);
    loop {
        let message = match channel.recv_timeout(PATIENCE) {
            Ok(message) => message,
            Err(RecvError::Ended(_) | RecvError::Finished) => break,
            Err(other) => panic!("{other}"),
        };
        let first = look(&message);
        match first {
            Some(_) => read += 1,
            None => refused += 1,
        }
        let deadline = Instant::now() + SOON;
        // Where it lies there is only one message, looked at until it kills.
        while (0..LOOKS).any(|_| look(&message) != first) || (args[1] == "in_place" && Instant::now() < deadline) {
            changed += 1;
        }
    }
    let changed = if changed > 0 { format!(", {changed} changed under the reader") } else { String::new() };
    say(format!("{read} messages read, {refused} refused{changed}"));
    drop((channel, session, server));
    assert_eq!(hear(), "");
}

/// What there is to read; nothing where Cap'n Proto finds it malformed.
fn look(message: &Received<hello::Owned>) -> Option<usize> {
    match message.get().ok()?.which().ok()? {
        hello::Greet(text) | hello::Answer(text) => Some(text.ok()?.len()),
    }
}
