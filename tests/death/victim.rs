//! A process to be killed: does what sessions are for, again and again, and notes what it is at where it can still be
//! read afterwards. Told to die in one operation, it has the kernel kill it from a timer while it is at that: on a busy
//! machine nobody else could tell in time.

use crate::bulk::{byte, check_file, file};
use crate::cache_capnp::cache;
use crate::common::PATIENCE;
use crate::common::apps::{server, trust};
use crate::rng::Rng;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use std::fs::OpenOptions;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use strait::{Channel, ClientApp, ConnectError, Message, RecvError, Session, Wait};

/// What a victim is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Meet,
    LogIn,
    OpenChannel,
    Build,
    Send,
    SendBlob,
    SendDescriptors,
    Request,
    RecvParked,
    RecvSpinning,
    ReadInPlace,
    ReadSnapshot,
    Drop,
    CloseChannel,
    CloseSession,
}

use Op::*;

pub const OPS: [(Op, &str); 15] = [
    (Meet, "bind/connect"),
    (LogIn, "log-in"),
    (OpenChannel, "open channel"),
    (Build, "build"),
    (Send, "send"),
    (SendBlob, "blob built and sent"),
    (SendDescriptors, "descriptors sent"),
    (Request, "request"),
    (RecvParked, "recv parked"),
    (RecvSpinning, "recv spinning"),
    (ReadInPlace, "reading in place"),
    (ReadSnapshot, "reading a snapshot"),
    (Drop, "drop of a received message"),
    (CloseChannel, "channel close"),
    (CloseSession, "session close"),
];

impl Op {
    pub fn name(self) -> &'static str {
        OPS[self as usize].1
    }
}

/// Two words in a file that both processes map: a write costs the victim next to nothing and outlives it.
pub struct Note(NonNull<[AtomicU64; 2]>);

impl Note {
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("note");
        file.set_len(PAGE.get() as u64).expect("note");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping anywhere, of a file that keeps its length as long as the test runs.
        let start = unsafe { mmap(None, PAGE, access, MapFlags::MAP_SHARED, &file, 0) }.expect("note");
        Self(start.cast())
    }

    /// What the victim is at, or was at last.
    pub fn is(&self) -> Option<Op> {
        let word = self.words()[0].load(Ordering::Relaxed) & !BETWEEN;
        OPS.get((word as usize).checked_sub(1)?).map(|(op, _)| *op)
    }

    /// Whether it is in the middle of that.
    pub fn is_within(&self) -> bool {
        self.words()[0].load(Ordering::Relaxed) & BETWEEN == 0
    }

    /// When its timer runs out.
    pub fn until(&self) -> Duration {
        Duration::from_nanos(self.words()[1].load(Ordering::Relaxed))
    }

    pub fn clear(&self) {
        self.words()[0].store(0, Ordering::Relaxed);
    }

    fn set(&self, op: Op) {
        self.words()[0].store(op as u64 + 1, Ordering::Relaxed);
    }

    fn set_between(&self) {
        let word = self.words()[0].load(Ordering::Relaxed);
        self.words()[0].store(word | BETWEEN, Ordering::Relaxed);
    }

    fn set_until(&self, until: Duration) {
        self.words()[1].store(until.as_nanos() as u64, Ordering::Relaxed);
    }

    fn words(&self) -> &[AtomicU64; 2] {
        // SAFETY: mapped until drop, and both processes use it as atomics only.
        unsafe { self.0.as_ref() }
    }
}

impl std::ops::Drop for Note {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` and used by nobody else.
        unsafe { munmap(self.0.cast(), PAGE.get()) }.expect("note");
    }
}

/// Set when what the victim was at is over and nothing else has begun.
const BETWEEN: u64 = 1 << 63;

const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

pub const BLOB: usize = 5_000;
pub const PIPES: usize = 3;

/// Parts and bytes per part of every file that victims and survivors send.
pub const FILE: (usize, usize) = (2, 2_000);

/// The clock that all processes read alike.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).expect("clock").into()
}

/// A message that asks for something.
pub fn wish(channel: &Channel<cache::Owned>, words: &str) -> Message<cache::Owned> {
    let mut builder = channel.create_msg();
    builder.init_root().init_get_cache_req().set_file_name(words);
    builder.freeze().expect("room")
}

/// Arguments of both: where, the note, how far the peer is believed, seed, and the one operation to repeat.
struct Victim {
    note: Note,
    timer: Timer,
    focus: Option<Op>,
    rng: Rng,
    reading: Op,
    damaged: bool,
}

impl Victim {
    fn new(args: &[String]) -> Self {
        let focus = OPS.iter().find(|(_, name)| *name == args[4]).map(|(op, _)| *op);
        let reading = if args[2] == "in_place" { ReadInPlace } else { ReadSnapshot };
        let damaged = crate::plant() == "damaged";
        let event = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGKILL, si_value: 0 });
        Self {
            timer: Timer::new(ClockId::CLOCK_MONOTONIC, event).expect("timer"),
            note: Note::open(Path::new(&args[1])),
            focus,
            rng: Rng::new(args[3].parse().expect("seed")),
            reading,
            damaged,
        }
    }

    /// Does something, and notes it as what it is at. If it is what this victim is to die in, it has so many microseconds.
    fn within<T>(&mut self, op: Op, act: impl FnOnce() -> T) -> T {
        self.note.set(op);
        // Not the first time it comes there: what is done once in a session should have been done.
        let armed = self.focus == Some(op) && self.rng.below(4) == 0;
        if armed {
            let longest = if matches!(op, RecvParked | ReadInPlace | ReadSnapshot) { 2_000_000 } else { 100_000 };
            // As many short ones as long ones.
            let bits = self.rng.below(64 - u64::leading_zeros(longest) as u64);
            let life = Duration::from_nanos(1_000 + self.rng.below(1 << bits));
            self.note.set_until(now() + life);
            self.arm(life);
        }
        let made = act();
        if armed {
            self.arm(Duration::ZERO);
        }
        self.note.set_between();
        made
    }

    /// Zero disarms.
    fn arm(&mut self, life: Duration) {
        self.timer.set(Expiration::OneShot(life.into()), TimerSetTimeFlags::empty()).expect("timer");
    }

    fn wants(&self, op: Op) -> bool {
        self.focus.is_none_or(|focus| focus == op)
    }

    /// What comes before or after talking is repeated by talking little.
    fn rounds(&mut self) -> u64 {
        match self.focus {
            None => self.rng.below(4),
            Some(Meet | LogIn | OpenChannel | CloseChannel | CloseSession) => 0,
            Some(_) => u64::MAX,
        }
    }

    /// Uses a session up.
    fn spend(&mut self, session: Session, next: impl Fn(&Session) -> Channel<cache::Owned>) {
        let channels = match self.focus {
            None => 1 + self.rng.below(3),
            Some(Meet | LogIn) => 0,
            Some(CloseSession) => 1,
            Some(_) => u64::MAX,
        };
        for _ in 0..channels {
            let mut channel = self.within(OpenChannel, || next(&session));
            for _ in 0..self.rounds() {
                self.talk(&mut channel);
            }
            self.within(CloseChannel, || drop(channel));
        }
        self.within(CloseSession, || {
            session.close();
            drop(session);
        });
    }

    fn talk(&mut self, channel: &mut Channel<cache::Owned>) {
        let mut message = self.within(Build, || file(channel, FILE.0, FILE.1, true));
        while self.focus == Some(Build) {
            message = self.within(Build, || file(channel, FILE.0, FILE.1, false));
        }
        if self.damaged {
            message = file(channel, FILE.0, FILE.1 + 1, true);
        }
        if self.wants(Send) {
            self.within(Send, || (0..16).for_each(|_| assert_ne!(channel.send(&message).expect("send"), 0)));
        }
        if self.wants(SendBlob) {
            self.within(SendBlob, || channel.send(&with_blob(channel)).expect("send"));
        }
        if self.wants(SendDescriptors) {
            let message = with_descriptors(channel);
            self.within(SendDescriptors, || channel.send(&message).expect("send"));
        }
        for (op, wait) in [(RecvParked, Wait::Park), (RecvSpinning, Wait::Spin)] {
            if self.wants(op) {
                channel.set_wait(wait);
                let silence = Duration::from_millis(if self.focus.is_some() { 20 } else { 1 });
                let heard = self.within(op, || channel.recv_timeout(silence).map(drop));
                assert_eq!(heard, Err(RecvError::TimedOut));
            }
        }
        if self.wants(Request) || self.wants(self.reading) {
            let question = wish(channel, "file");
            let answer = self.within(Request, || channel.request(&question, PATIENCE).expect("answer"));
            if self.wants(self.reading) {
                self.within(self.reading, || check_file(&answer, FILE.0, FILE.1));
            }
        }
        if self.wants(Drop) {
            let count = if self.focus.is_some() { 200 } else { 20 };
            let question = wish(channel, &format!("burst {count}"));
            self.within(Send, || channel.send(&question).expect("send"));
            let take = || (0..count).map(|_| channel.recv_timeout(PATIENCE).expect("burst")).collect::<Vec<_>>();
            let many = self.within(RecvSpinning, take);
            self.within(Drop, || drop(many));
        }
    }
}

/// A message with a file beside it.
fn with_blob(channel: &Channel<cache::Owned>) -> Message<cache::Owned> {
    let mut blob = channel.arena().create_blob(BLOB).expect("room");
    blob.iter_mut().enumerate().for_each(|(at, place)| *place = byte(1, at));
    let mut builder = channel.create_msg();
    builder.init_root().init_get_cache_req().set_file_name("blob");
    builder.attach_blob(blob.freeze());
    builder.freeze().expect("room")
}

/// A message with pipes, each with a word in it.
fn with_descriptors(channel: &Channel<cache::Owned>) -> Message<cache::Owned> {
    let mut builder = channel.create_msg();
    builder.init_root().init_get_cache_req().set_file_name("descriptors");
    for _ in 0..PIPES {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(b"word").expect("room");
        builder.attach_fd(reader);
    }
    builder.freeze().expect("room")
}

/// The app whose name says how far it is believed.
pub fn named(believed: &str) -> ClientApp {
    ClientApp::new(believed).timeout(PATIENCE)
}

/// A client that is killed. One more argument: the name that says how far it is believed itself.
pub fn client(args: &[String]) {
    let mut victim = Victim::new(args);
    let app = named(&args[5]).trust(trust(&args[2]));
    while victim.focus == Some(LogIn) {
        // Nobody accepts there, so if the timer is on this lasts until it runs out.
        let time = Duration::from_millis(10);
        let connect = || app.clone().timeout(time).connect(&server(&args[0])).map(drop);
        assert!(matches!(victim.within(LogIn, connect), Err(ConnectError::TimedOut)));
    }
    loop {
        let session = victim.within(Meet, || app.connect(&server(&args[0])).expect("connect"));
        victim.spend(session, |session| session.open_channel("main", PATIENCE).expect("channel"));
    }
}

/// A server that is killed.
pub fn serve(args: &[String]) {
    let mut victim = Victim::new(args);
    loop {
        let app = server(&args[0]).allow(&named("visitor"), trust(&args[2])).channel::<cache::Owned>("main");
        let server = victim.within(Meet, || app.bind().expect("bind"));
        let sessions = match victim.focus {
            None => 1 + victim.rng.below(3),
            Some(Meet) => 0,
            Some(_) => u64::MAX,
        };
        for _ in 0..sessions {
            let session = victim.within(LogIn, || server.accept().expect("accept"));
            victim.spend(session, |session| session.accept_channel().expect("channel"));
        }
        victim.within(Meet, || drop(server));
    }
}
