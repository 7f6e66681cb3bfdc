//! A process to be killed: does what sessions are for, again and again, and notes what it is at where it can still be
//! read afterwards. Told to die in one operation, it has the kernel kill it from a timer while it is at that: on a busy
//! machine nobody else could tell in time.

use crate::bulk::{check_file, file};
use crate::cache_capnp::cache;
use crate::common::PATIENCE;
use crate::common::apps::{server, trust};
use crate::rng::Rng;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};
use std::fs::OpenOptions;
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

pub const OPS: [(Op, &str); 13] = [
    (Meet, "bind/connect"),
    (LogIn, "log-in"),
    (OpenChannel, "open channel"),
    (Build, "build"),
    (Send, "send"),
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

    /// What the victim is at.
    pub fn is(&self) -> Option<Op> {
        OPS.get((self.words()[0].load(Ordering::Relaxed) as usize).checked_sub(1)?).map(|(op, _)| *op)
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

const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

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

/// Arguments of both roles: where, the note, how far the peer is believed, seed, and the one operation to repeat.
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

    /// Notes what comes next. If it is what this victim is to die in, it has so many microseconds.
    fn at(&mut self, op: Op) {
        if self.focus == self.note.is() && self.focus.is_some() {
            self.arm(Duration::ZERO);
        }
        self.note.set(op);
        // Not the first time it comes there: what is done once in a session should have been done.
        if self.focus == Some(op) && self.rng.below(4) == 0 {
            let longest = if matches!(op, RecvParked | ReadInPlace | ReadSnapshot) { 2_000_000 } else { 100_000 };
            // As many short ones as long ones.
            let bits = self.rng.below(64 - u64::leading_zeros(longest) as u64);
            let life = Duration::from_nanos(1_000 + self.rng.below(1 << bits));
            self.note.set_until(now() + life);
            self.arm(life);
        }
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
            self.at(OpenChannel);
            let mut channel = next(&session);
            for _ in 0..self.rounds() {
                self.talk(&mut channel);
            }
            self.at(CloseChannel);
            drop(channel);
        }
        self.at(CloseSession);
        session.close();
        drop(session);
    }

    fn talk(&mut self, channel: &mut Channel<cache::Owned>) {
        self.at(Build);
        let mut message = file(channel, FILE.0, FILE.1, true);
        while self.focus == Some(Build) {
            self.at(Build);
            message = file(channel, FILE.0, FILE.1, false);
        }
        if self.damaged {
            message = file(channel, FILE.0, FILE.1 + 1, true);
        }
        if self.wants(Send) {
            self.at(Send);
            (0..16).for_each(|_| assert_ne!(channel.send(&message).expect("send"), 0));
        }
        for (op, wait) in [(RecvParked, Wait::Park), (RecvSpinning, Wait::Spin)] {
            if self.wants(op) {
                channel.set_wait(wait);
                let silence = Duration::from_millis(if self.focus.is_some() { 20 } else { 1 });
                self.at(op);
                assert_eq!(channel.recv_timeout(silence).map(drop), Err(RecvError::TimedOut));
            }
        }
        if self.wants(Request) || self.wants(self.reading) {
            self.at(Request);
            let question = wish(channel, "file");
            let answer = channel.request(&question, PATIENCE).expect("answer");
            if self.wants(self.reading) {
                self.at(self.reading);
                check_file(&answer, FILE.0, FILE.1);
            }
        }
        if self.wants(Drop) {
            let count = if self.focus.is_some() { 200 } else { 20 };
            let question = wish(channel, &format!("burst {count}"));
            self.at(Send);
            channel.send(&question).expect("send");
            self.at(RecvSpinning);
            let many: Vec<_> = (0..count).map(|_| channel.recv_timeout(PATIENCE).expect("burst")).collect();
            self.at(Drop);
            drop(many);
        }
    }
}

/// The app whose name says how far it is believed.
pub fn named(believed: &str) -> ClientApp {
    ClientApp::new(believed).timeout(PATIENCE)
}

/// The role of a client that is killed. One more argument: the name that says how far it is believed itself.
pub fn client(args: &[String]) {
    let mut victim = Victim::new(args);
    let app = named(&args[5]).trust(trust(&args[2]));
    while victim.focus == Some(LogIn) {
        // Nobody accepts there, so if the timer is on this lasts until it runs out.
        victim.at(LogIn);
        let time = Duration::from_millis(10);
        assert!(matches!(app.clone().timeout(time).connect(&server(&args[0])), Err(ConnectError::TimedOut)));
    }
    loop {
        victim.at(Meet);
        let session = app.connect(&server(&args[0])).expect("connect");
        victim.spend(session, |session| session.open_channel("main", PATIENCE).expect("channel"));
    }
}

/// The role of a server that is killed.
pub fn serve(args: &[String]) {
    let mut victim = Victim::new(args);
    loop {
        victim.at(Meet);
        let app = server(&args[0]).allow(&named("visitor"), trust(&args[2])).channel::<cache::Owned>("main");
        let server = app.bind().expect("bind");
        let sessions = match victim.focus {
            None => 1 + victim.rng.below(3),
            Some(Meet) => 0,
            Some(_) => u64::MAX,
        };
        for _ in 0..sessions {
            victim.at(LogIn);
            let session = server.accept().expect("accept");
            victim.spend(session, |session| session.accept_channel().expect("channel"));
        }
        victim.at(Meet);
    }
}
