//! Clients whose sealed messages are not what docs/protocol.md says, one by one: each loses its own session, is told so,
//! and nobody else notices.

mod common;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/scene.rs"]
mod scene;
capnp::generated_code!(mod hello_capnp);

use common::Case;
use common::apps::TRUSTS;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::stat::Mode;
use raw::{Frame, Memory, Random, Raw};
use scene::{Scene, honest};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use strait::{BadMemory, PeerMisbehaved};

fn main() -> ExitCode {
    let cases = [
        Case::new("sealed_by_the_rules", by_the_rules),
        // A server that does not notice says nothing: that is what the limit is for.
        Case::new("memory_that_is_not_sealed", not_sealed).limit(60),
        Case::new("memory_that_is_none", no_memory),
        Case::new("memory_of_another_size", sizes),
        Case::new("memory_that_is_not_there", holes),
        Case::new("tables_that_lie", tables),
        Case::new("slots_without_memory", without),
        Case::new("memory_full_of_anything", anything),
        Case::new("memory_that_is_written_until_it_is_sealed", written),
    ];
    common::main(&cases, &[("honest", honest)])
}

const FIXED: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);
const SEALED: SealFlag = FIXED.union(SealFlag::F_SEAL_WRITE);

/// Memory of so many bytes with these words at its start, and after them a greeting in one segment. Tells how many words
/// that has.
fn written_memory(bytes: usize, words: &[u64]) -> (Memory, u64) {
    let memory = Memory::sealed(bytes, SealFlag::empty());
    (0..bytes as u64 / 8).for_each(|at| memory.store(at, 0));
    let len = raw::write(&memory, words.len() as u64, "look");
    (0..).zip(words).for_each(|(at, &word)| memory.store(at, word));
    (memory, len)
}

/// A greeting with a table of these entries after its own, as it is passed on.
fn message(entries: &[[u64; 2]], seals: SealFlag) -> (OwnedFd, u64) {
    let words = 64 + 2 + 2 * entries.len() as u64;
    let (memory, len) = written_memory(words as usize * 8, &[]);
    let table = [0, len].into_iter().chain(entries.concat());
    (64..).zip(table).for_each(|(at, word)| memory.store(at, word));
    (seal(memory, seals), words)
}

/// Unmaps it and seals it.
fn seal(memory: Memory, seals: SealFlag) -> OwnedFd {
    let fd = memory.read_only();
    let writer = memory.fd.try_clone().expect("descriptor");
    drop(memory);
    fcntl(&writer, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
    fd
}

/// Passes a descriptor and says that a message lies in its so many words.
fn send(raw: &mut Raw, fd: &OwnedFd, words: u64, segments: u64, blobs: u64) {
    let next = raw.lane.sent + 1;
    assert!(raw.socket.send(&Frame::control(7, 1).u64(8, next).u32(16, 1).0, &[fd.as_fd()]));
    slot(raw, 1, words, segments, blobs);
}

fn slot(raw: &mut Raw, fds: u64, words: u64, segments: u64, blobs: u64) {
    let mut payload = raw.lane.message(segments, [words, 0]);
    payload[0] = 4 | segments << 16 | blobs << 32 | fds << 40;
    raw.lane.put(payload);
}

/// The control: what the document says is enough.
fn by_the_rules() {
    for believing in TRUSTS {
        let mut scene = Scene::new(believing);
        let mut raw = scene.login();
        for blobs in [vec![], vec![[0, 8]], vec![[0, 0], [1, 3], [65, 9]], vec![[0, 512]; 255]] {
            let (fd, words) = message(&blobs, SEALED);
            send(&mut raw, &fd, words, 1, blobs.len() as u64);
            let answer = raw.lane.take_message();
            let bytes: u64 = blobs.iter().map(|blob| blob[1]).sum();
            let expected = match blobs.len() {
                0 => "look".into(),
                count => format!("look, {count} blobs, {bytes} bytes"),
            };
            assert_eq!(raw.lane.words_of(answer), expected);
            assert_eq!([answer[5], answer[6]], [0, 0], "nothing comes home");
            raw.lane.put([2, answer[3], answer[4], 0, 0, 0, 0]);
        }
        // With the other seal beside it.
        let (fd, words) = message(&[], SEALED | SealFlag::F_SEAL_FUTURE_WRITE);
        send(&mut raw, &fd, words, 1, 0);
        let answer = raw.lane.take_message();
        assert_eq!(raw.lane.words_of(answer), "look");
        assert!(raw.socket.say(&Frame::control(6, 0)));
        scene.peer.must_say("raw: PeerClosed");
        drop(raw);
        scene.end();
    }
}

/// Whoever is believed.
fn not_sealed() {
    for believing in TRUSTS {
        let mut scene = Scene::new(believing);
        for (seals, bad) in [
            (SealFlag::empty(), BadMemory::Seals),
            (SealFlag::F_SEAL_SEAL, BadMemory::Seals),
            (SealFlag::F_SEAL_WRITE, BadMemory::Seals),
            (SEALED - SealFlag::F_SEAL_SHRINK, BadMemory::Seals),
            (SEALED - SealFlag::F_SEAL_GROW, BadMemory::Seals),
            (SEALED - SealFlag::F_SEAL_SEAL, BadMemory::Seals),
            (FIXED, BadMemory::Writable),
            // A mapping that was there before goes on writing.
            (FIXED | SealFlag::F_SEAL_FUTURE_WRITE, BadMemory::Writable),
        ] {
            let (fd, words) = message(&[], seals);
            scene.breach(&format!("{seals:?}"), PeerMisbehaved::NotSealed(bad), |raw| send(raw, &fd, words, 1, 0));
        }
        scene.end();
    }
}

fn no_memory() {
    let mut scene = Scene::new("snapshot");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let file = tempfile::tempfile().expect("a file");
    file.set_len(4096).expect("room");
    let memory = nix::sys::memfd::memfd_create("huge", nix::sys::memfd::MFdFlags::MFD_HUGETLB);
    // Seals of a file in /dev/shm are none that count.
    let named = File::options().read(true).write(true).create(true).truncate(true).open("/dev/shm/strait-test-sealed");
    let named = named.expect("shared memory");
    std::fs::remove_file("/dev/shm/strait-test-sealed").expect("there");
    named.set_len(4096).expect("room");
    let others: Vec<OwnedFd> = vec![
        reader.into(),
        writer.into(),
        File::open("/dev/null").expect("null").into(),
        File::open("/").expect("a directory").into(),
        std::os::unix::net::UnixStream::pair().expect("sockets").0.into(),
        open("/tmp", OFlag::O_PATH, Mode::empty()).expect("a path"),
        file.into(),
    ];
    for fd in &others {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("a link");
        let mut raw = scene.login();
        send(&mut raw, fd, 512, 1, 0);
        scene.must_report(&raw, &path.to_string_lossy(), "raw: PeerMisbehaved(NotSealed(*");
    }
    scene.breach("named", PeerMisbehaved::NotSealed(BadMemory::Seals), |raw| send(raw, &named.into(), 512, 1, 0));
    if let Ok(huge) = memory {
        scene.breach("huge", PeerMisbehaved::NotSealed(BadMemory::Kind), |raw| send(raw, &huge, 512, 1, 0));
    }
    scene.end();
}

fn sizes() {
    let mut scene = Scene::new("snapshot");
    let limit = 64 << 30;
    let (fd, words) = message(&[], SEALED);
    for claim in [1, words - 1, words + 1, words + 512, 8 << 30] {
        let bad = BadMemory::Size { found: words * 8, announced: claim * 8 };
        scene.breach("size", PeerMisbehaved::NotSealed(bad), |raw| send(raw, &fd, claim, 1, 0));
    }
    for (claim, announced) in [(0, 0), ((8 << 30) + 1, limit + 8), (1 << 61, u64::MAX), (u64::MAX, u64::MAX)] {
        let bad = BadMemory::TooLarge { announced, limit };
        scene.breach("limit", PeerMisbehaved::NotSealed(bad), |raw| send(raw, &fd, claim, 1, 0));
    }
    // Not whole words.
    let (memory, _) = written_memory(4096, &[]);
    nix::unistd::ftruncate(&memory.fd, 4095).expect("cut");
    let odd = seal(memory, SEALED);
    let bad = BadMemory::Size { found: 4095, announced: 4088 };
    scene.breach("odd", PeerMisbehaved::NotSealed(bad), |raw| send(raw, &odd, 511, 1, 0));
    scene.end();
}

/// Whoever reads a hole pays for it.
fn holes() {
    let mut scene = Scene::new("snapshot");
    let bytes = 1_u64 << 30;
    let memory = Memory::sealed(bytes as usize, SealFlag::empty());
    let len = raw::write(&memory, 0, "look");
    (bytes / 8 - 2..).zip([0, len]).for_each(|(at, word)| memory.store(at, word));
    let found = nix::sys::stat::fstat(&memory.fd).expect("known").st_blocks as u64 * 512;
    let fd = seal(memory, SEALED);
    let bad = BadMemory::Holes { found, announced: bytes };
    scene.breach("holes", PeerMisbehaved::NotSealed(bad), |raw| send(raw, &fd, bytes / 8, 1, 0));
    scene.end();
}

fn tables() {
    let mut scene = Scene::new("snapshot");
    for segments in [0, 513, 65_535] {
        let (fd, words) = message(&[], SEALED);
        let mut raw = scene.login();
        send(&mut raw, &fd, words, segments, 0);
        // What is too small for such a table is that, whatever the number.
        scene.must_report(&raw, "segments", "raw: PeerMisbehaved(*");
    }
    let all = 64 + 2 + 2;
    for (offset, bytes, len) in [
        (all, 0, 1),
        (all, 1, 1),
        (all - 1, 9, 2),
        (0, all * 8 + 1, all + 1),
        (u64::MAX, 0, 1),
        (u64::MAX, u64::MAX, 1 << 61),
        (1 << 63, 1 << 63, 1 << 60),
    ] {
        let broken = PeerMisbehaved::HandleOutOfRange { offset, len, arena_words: all };
        let (fd, words) = message(&[[offset, bytes]], SEALED);
        scene.breach("blob", broken, |raw| send(raw, &fd, words, 1, 1));
    }
    // Segments: in words, and none empty.
    for (offset, len) in [(0, 0), (0, all + 1), (all, 1), (1, all), (u64::MAX, 1), (1, u64::MAX)] {
        let broken = PeerMisbehaved::HandleOutOfRange { offset, len, arena_words: all };
        let (fd, words) = message(&[[offset, len]], SEALED);
        scene.breach("segment", broken, |raw| send(raw, &fd, words, 2, 0));
    }
    // A table that is larger than the memory.
    let (fd, words) = message(&[], SEALED);
    let broken = PeerMisbehaved::HandleOutOfRange { offset: 0, len: 2 * 255 + 2, arena_words: words };
    scene.breach("table", broken, |raw| send(raw, &fd, words, 1, 255));
    scene.end();
}

fn without() {
    let mut scene = Scene::new("snapshot");
    scene.breach("none", PeerMisbehaved::NoHandle, |raw| slot(raw, 0, 66, 1, 0));
    let broken = PeerMisbehaved::DescriptorCount { found: 1, announced: 2 };
    let (fd, words) = message(&[], SEALED);
    scene.breach("fewer", broken, |raw| {
        assert!(raw.socket.send(&Frame::control(7, 1).u64(8, 1).u32(16, 1).0, &[fd.as_fd()]));
        slot(raw, 2, words, 1, 0);
    });
    scene.end();
}

/// What cannot change can still be anything: it is read with the limits of what is not believed.
fn anything() {
    let mut scene = Scene::new("snapshot");
    let (mut raw, mut random) = (scene.login(), Random::new());
    for round in 0..200 {
        let (memory, _) = written_memory(4096, &[]);
        let few = random.below(2) == 0;
        for at in 0..510 {
            // Pointers that may be some, as well as any bits.
            let word = random.next();
            memory.store(at, if few { word & 0x0003_0003_0000_03FF } else { word });
        }
        (510..).zip([0, 510]).for_each(|(at, word)| memory.store(at, word));
        let fd = seal(memory, SEALED);
        send(&mut raw, &fd, 512, 1, 0);
        let answer = raw.lane.take_message();
        assert!(!raw.lane.words_of(answer).is_empty() || round < 200);
        raw.lane.put([2, answer[3], answer[4], 0, 0, 0, 0]);
    }
    assert!(raw.socket.say(&Frame::control(6, 0)));
    scene.peer.must_say("raw: PeerClosed");
    drop(raw);
    scene.end();
}

/// The kernel does not seal what somebody can still write; so what is sealed nobody can.
fn written() {
    let mut scene = Scene::new("snapshot");
    let mut raw = scene.login();
    let (memory, len) = written_memory(4096, &[]);
    (510..).zip([0, len]).for_each(|(at, word)| memory.store(at, word));
    let stop = AtomicBool::new(false);
    let fd = memory.read_only();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                memory.store(200, memory.load(200) ^ u64::MAX);
            }
        });
        for _ in 0..100 {
            assert_eq!(fcntl(&memory.fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)), Err(Errno::EBUSY));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let writer = memory.fd.try_clone().expect("descriptor");
    drop(memory);
    fcntl(&writer, FcntlArg::F_ADD_SEALS(SEALED)).expect("seals");
    send(&mut raw, &fd, 512, 1, 0);
    let answer = raw.lane.take_message();
    assert_eq!(raw.lane.words_of(answer), "look");
    assert_eq!(nix::sys::uio::pwrite(&writer, b"x", 0), Err(Errno::EPERM));
    assert!(raw.socket.say(&Frame::control(6, 0)));
    scene.peer.must_say("raw: PeerClosed");
    drop(raw);
    scene.end();
}
