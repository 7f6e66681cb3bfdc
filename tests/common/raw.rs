//! A peer written against docs/protocol.md, without the library: its own socket, memory, frames and ring words. It keeps
//! the rules only as far as a case wants it to.

// Every suite is a crate of its own and uses its part of this.
#![allow(dead_code, unreachable_pub)]

use crate::common::{PATIENCE, eventually};
use crate::hello_capnp::hello;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, listen, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::sys::time::TimeVal;
use std::io::{IoSlice, IoSliceMut};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// The number this side gives its arena.
pub const ARENA: u32 = 77;
/// Slots of every ring of this side.
pub const SLOTS: u32 = 8;
/// Bytes of this side's arena unless a case wants another.
pub const BYTES: usize = 1 << 20;
/// Where this side's messages begin, in words: after the rings.
pub const MESSAGES: u64 = 16 * 512;

/// FNV-1a of what two builds must lay out alike; the document gives the place of the text, not the text.
pub fn layout() -> u64 {
    let text = "slot: 7 words + sequence; inside: 4, then 7; area: cursor 0, receiver 16, sender 32, slots 48; end: sleeps (1 futex, \
        2 door), cpu, leaves fence; handle: offset 36, arena 24, len 36, ticket 32; returns: 3 handles, \
        times 16; table: offset, len; blob: offset, bytes; control: \
        128; login: 1024; capnp; endian: ";
    let endian = if cfg!(target_endian = "little") { "little" } else { "big" };
    let bytes = text.bytes().chain(endian.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// A frame, to be written to by place.
#[derive(Clone)]
pub struct Frame(pub Vec<u8>);

impl Frame {
    pub fn control(kind: u32, number: u32) -> Self {
        Self(vec![0; 128]).u32(0, kind).u32(4, number)
    }

    pub fn login(kind: u32) -> Self {
        Self(vec![0; 1024]).bytes(0, b"strait\0\x01").u32(8, kind).u32(12, 1).u32(16, 1).u64(24, layout())
    }

    /// A client's first words, asking for these channels.
    pub fn hello(bytes: usize, client: &str, channels: &[(&str, u64, Area)]) -> Self {
        let mut frame = Self::login(1).u32(40, ARENA).u64(44, bytes as u64).bytes(52, client.as_bytes());
        frame = frame.bytes(116, b"suite").u32(180, channels.len() as u32);
        for (index, (name, schema, area)) in channels.iter().enumerate() {
            let at = 184 + 84 * index;
            frame = frame.bytes(at, name.as_bytes()).u64(at + 64, *schema).area(at + 72, *area);
        }
        frame
    }

    pub fn open(number: u32, name: &str, schema: u64, area: Area) -> Self {
        Self::control(1, number).u64(8, schema).area(16, area).bytes(28, name.as_bytes())
    }

    pub fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn u32(self, at: usize, value: u32) -> Self {
        self.bytes(at, &value.to_le_bytes())
    }

    pub fn u64(self, at: usize, value: u64) -> Self {
        self.bytes(at, &value.to_le_bytes())
    }

    pub fn area(self, at: usize, area: Area) -> Self {
        self.u64(at, area.offset).u32(at + 8, area.slots)
    }

    pub fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four"))
    }

    pub fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight"))
    }

    pub fn area_at(&self, at: usize) -> Area {
        Area { offset: self.u64_at(at), slots: self.u32_at(at + 8) }
    }
}

/// A side's half of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub offset: u64,
    pub slots: u32,
}

/// Where this side puts the half of its n-th channel.
pub fn area(index: u64) -> Area {
    Area { offset: index * 512, slots: SLOTS }
}

pub fn handle(arena: u32, offset: u64, len: u64, ticket: u32) -> [u64; 2] {
    [offset | u64::from(arena) << 36 | (len & 15) << 60, len >> 4 | u64::from(ticket) << 32]
}

/// A socket of whole frames.
pub struct Socket(OwnedFd);

impl Socket {
    fn new() -> Self {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("socket");
        Self(fd).patient()
    }

    /// One that somebody else has connected.
    pub fn of(fd: OwnedFd) -> Self {
        Self(fd).patient()
    }

    fn patient(self) -> Self {
        setsockopt(&self.0, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0)).expect("option");
        self
    }

    pub fn knock(dir: &Path) -> Self {
        let socket = Self::new();
        let address = UnixAddr::new(&dir.join("suite.sock")).expect("short");
        connect(socket.0.as_raw_fd(), &address).expect("a server");
        socket
    }

    pub fn listen(dir: &Path) -> Self {
        let socket = Self::new();
        bind(socket.0.as_raw_fd(), &UnixAddr::new(&dir.join("suite.sock")).expect("short")).expect("bind");
        listen(&socket.0, Backlog::new(16).expect("few")).expect("listen");
        socket
    }

    pub fn accept(&self) -> Self {
        let raw = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC).expect("accept");
        // SAFETY: accept4 made it for us just now.
        Self(unsafe { OwnedFd::from_raw_fd(raw) }).patient()
    }

    /// False if the other side is gone.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => true,
            Err(Errno::EPIPE | Errno::ECONNRESET) => false,
            Err(errno) => panic!("send: {errno}"),
        }
    }

    pub fn say(&self, frame: &Frame) -> bool {
        self.send(&frame.0, &[])
    }

    /// The next frame with its descriptors; `None` at the end.
    pub fn recv(&self) -> Option<(Frame, Vec<OwnedFd>)> {
        let mut bytes = vec![0; 2048];
        let mut space = nix::cmsg_space!([RawFd; 8]);
        let (len, fds) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let found = match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Err(Errno::ECONNRESET) => return None,
                other => other.expect("a frame in time"),
            };
            let rights = found.cmsgs().expect("room").filter_map(|control| match control {
                ControlMessageOwned::ScmRights(fds) => Some(fds),
                _ => None,
            });
            // SAFETY: the kernel made them for us just now.
            let fds: Vec<_> = rights.flatten().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }).collect();
            (found.bytes, fds)
        };
        bytes.truncate(len);
        (len > 0).then_some((Frame(bytes), fds))
    }

    /// Whether the other side is gone, or has shut this socket down. Takes nothing that may be read.
    pub fn is_over(&self) -> bool {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLHUP)];
        poll(&mut polled, PollTimeout::ZERO).expect("poll");
        polled[0].revents().is_some_and(|found| !found.is_empty())
    }

    /// All frames until the end.
    pub fn rest(&self) -> Vec<Frame> {
        std::iter::from_fn(|| self.recv().map(|(frame, _)| frame)).collect()
    }

    /// The last word must be that this side broke the protocol, or whatever else.
    #[track_caller]
    pub fn must_end_with_goodbye(&self, number: u32) {
        let rest = self.rest();
        let last = rest.last().map(|frame| (frame.u32_at(0), frame.u32_at(4), frame.0.len()));
        assert_eq!(last, Some((6, number, 128)), "the goodbye");
    }
}

/// An arena, one's own or a peer's.
pub struct Memory {
    pub fd: OwnedFd,
    map: NonNull<libc::c_void>,
    pub bytes: usize,
}

// SAFETY: an address range that nobody unmaps before the drop, reached by atomics only.
unsafe impl Send for Memory {}
// SAFETY: as for `Send`.
unsafe impl Sync for Memory {}

impl Memory {
    pub fn own(bytes: usize) -> Self {
        Self::sealed(bytes, SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL)
    }

    pub fn sealed(bytes: usize, seals: SealFlag) -> Self {
        let fd = memfd_create("raw-peer", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("memfd");
        nix::unistd::ftruncate(&fd, bytes as i64).expect("size");
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).expect("seals");
        Self::map(fd, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    pub fn map(fd: OwnedFd, bytes: usize, protection: ProtFlags) -> Self {
        let len = NonZeroUsize::new(bytes).expect("not empty");
        // SAFETY: a mapping of its own, at an address the kernel chooses.
        let map = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &fd, 0) }.expect("mmap");
        Self { fd, map, bytes }
    }

    /// As it is passed on.
    pub fn read_only(&self) -> OwnedFd {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).expect("open")
    }

    pub fn words(&self) -> u64 {
        self.bytes as u64 / 8
    }

    pub fn word(&self, at: u64) -> &AtomicU64 {
        assert!(at < self.words());
        // SAFETY: inside the mapping, aligned, and atomics may be reached from anywhere.
        unsafe { self.map.cast::<AtomicU64>().add(at as usize).as_ref() }
    }

    pub fn load(&self, at: u64) -> u64 {
        self.word(at).load(Ordering::Acquire)
    }

    pub fn store(&self, at: u64, value: u64) {
        self.word(at).store(value, Ordering::Release);
    }

    /// Wakes whoever sleeps on a word, whether or not it says that it does.
    pub fn wake(&self, at: u64) {
        fence(Ordering::SeqCst);
        let word: *const AtomicU32 = self.word(at).as_ptr().cast();
        // SAFETY: FUTEX_WAKE reads no memory; the address only names a queue.
        unsafe { libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAKE, i32::MAX) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nothing outlives `self`.
        unsafe { munmap(self.map, self.bytes) }.expect("munmap");
    }
}

/// A session of this side.
pub struct Raw {
    pub socket: Socket,
    pub own: Arc<Memory>,
    pub theirs: Arc<Memory>,
    pub their_arena: u32,
    /// The channel opened at log-in.
    pub lane: Lane,
}

impl Raw {
    /// Logs in as `raw`, with the channel `main`.
    pub fn login(dir: &Path) -> Self {
        Self::login_with(dir, Memory::own(BYTES))
    }

    pub fn login_with(dir: &Path, own: Memory) -> Self {
        let socket = Socket::knock(dir);
        let hello = Frame::hello(own.bytes, "raw", &[("main", schema(), area(0))]);
        assert!(socket.send(&hello.0, &[own.read_only().as_fd()]));
        let (welcome, fds) = socket.recv().expect("an answer");
        assert_eq!((welcome.0.len(), welcome.u32_at(8), welcome.u32_at(52)), (1024, 2, 1), "a welcome");
        let bytes = welcome.u64_at(44) as usize;
        let theirs = Memory::map(fds.into_iter().next().expect("memory"), bytes, ProtFlags::PROT_READ);
        Self::begin(socket, own, theirs, welcome.u32_at(40), welcome.area_at(56))
    }

    pub fn begin(socket: Socket, own: Memory, theirs: Memory, their_arena: u32, half: Area) -> Self {
        let (own, theirs) = (Arc::new(own), Arc::new(theirs));
        let lane = Lane::new(&own, &theirs, area(0), half);
        Self { socket, own, theirs, their_arena, lane }
    }
}

/// What `hello` messages are in.
pub fn schema() -> u64 {
    <hello::Owned as strait::Schema>::ID
}

/// A channel.
pub struct Lane {
    pub own: Arc<Memory>,
    pub theirs: Arc<Memory>,
    pub half: Area,
    pub their_half: Area,
    pub filled: u64,
    pub emptied: u64,
    pub sent: u64,
}

impl Lane {
    pub fn new(own: &Arc<Memory>, theirs: &Arc<Memory>, half: Area, their_half: Area) -> Self {
        Self { own: own.clone(), theirs: theirs.clone(), half, their_half, filled: 0, emptied: 0, sent: 0 }
    }

    /// The word that slot `position` begins at.
    pub fn slot(&self, position: u64) -> u64 {
        self.half.offset + 48 + 8 * (position % u64::from(self.half.slots))
    }

    /// Fills the next slot.
    pub fn put(&mut self, payload: [u64; 7]) {
        let room = |lane: &Self| {
            let emptied = lane.theirs.load(lane.their_half.offset);
            (lane.filled < emptied + u64::from(lane.half.slots)).then_some(())
        };
        eventually("room", || room(self));
        let at = self.slot(self.filled);
        (at..).zip(payload).for_each(|(at, word)| self.own.store(at, word));
        self.filled += 1;
        self.publish(at + 7, self.filled);
    }

    /// Stores a word that the other side may sleep on.
    pub fn publish(&self, at: u64, value: u64) {
        self.own.store(at, value);
        self.own.wake(at);
    }

    /// This side's cursor.
    pub fn set_cursor(&self, value: u64) {
        self.publish(self.half.offset, value);
    }

    /// Empties the next slot, waiting for it.
    pub fn take(&mut self) -> [u64; 7] {
        let slots = u64::from(self.their_half.slots);
        let at = self.their_half.offset + 48 + 8 * (self.emptied % slots);
        eventually("a slot", || (self.theirs.load(at + 7) == self.emptied + 1).then_some(()));
        let payload = std::array::from_fn(|index| self.theirs.load(at + index as u64));
        self.emptied += 1;
        self.set_cursor(self.emptied);
        payload
    }

    /// The next message, whatever comes home meanwhile.
    pub fn take_message(&mut self) -> [u64; 7] {
        loop {
            let payload = self.take();
            if payload[0] & 0xFF == 1 {
                return payload;
            }
        }
    }

    /// What says that a message lies at a handle. Counts it as sent.
    pub fn message(&mut self, segments: u64, handle: [u64; 2]) -> [u64; 7] {
        self.sent += 1;
        [1 | segments << 16, self.sent, 0, handle[0], handle[1], 0, 0]
    }

    /// Writes a message and says where it lies, unsent.
    pub fn compose(&mut self, words: &str) -> [u64; 7] {
        let at = MESSAGES + (self.sent % 16) * 512;
        let len = write(&self.own, at, words);
        let ticket = self.sent as u32;
        self.message(1, handle(ARENA, at, len, ticket))
    }

    pub fn say(&mut self, words: &str) {
        let payload = self.compose(words);
        self.put(payload);
    }

    /// Asks and returns the answer's slot.
    pub fn ask(&mut self, words: &str) -> [u64; 7] {
        self.say(words);
        self.take_message()
    }

    /// The words of a message of the other side, in one segment.
    pub fn words_of(&self, payload: [u64; 7]) -> String {
        let offset = payload[3] & ((1 << 36) - 1);
        let len = (payload[4] & 0xFFFF_FFFF) << 4 | payload[3] >> 60;
        let mut words = capnp::Word::allocate_zeroed_vec(len as usize);
        let bytes = capnp::Word::words_to_bytes_mut(&mut words);
        for (part, at) in bytes.chunks_exact_mut(8).zip(offset..) {
            part.copy_from_slice(&self.theirs.load(at).to_le_bytes());
        }
        let segments: [&[u8]; 1] = [bytes];
        let reader = capnp::message::Reader::new(capnp::message::SegmentArray::new(&segments), Default::default());
        match reader.get_root::<hello::Reader<'_>>().expect("root").which().expect("known") {
            hello::Greet(text) | hello::Answer(text) => text.expect("text").to_string().expect("utf-8"),
        }
    }
}

/// Writes a message in one segment; tells how many words it has.
pub fn write(memory: &Memory, at: u64, words: &str) -> u64 {
    let mut builder = capnp::message::Builder::new_default();
    builder.init_root::<hello::Builder<'_>>().set_greet(words);
    let segments = builder.get_segments_for_output();
    assert_eq!(segments.len(), 1, "short enough for one segment");
    for (word, at) in segments[0].chunks_exact(8).zip(at..) {
        memory.store(at, u64::from_le_bytes(word.try_into().expect("eight")));
    }
    segments[0].len() as u64 / 8
}

/// Numbers that look random, the same for the same seed.
pub struct Random(pub u64);

impl Random {
    /// From `STRAIT_SEED` or the clock; a failing case prints it.
    pub fn new() -> Self {
        let clock = || std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
        let seed = std::env::var("STRAIT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(clock) | 1;
        println!("note: STRAIT_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
