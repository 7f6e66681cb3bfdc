//! Servers that break the rules of docs/protocol.md: a real client tells what it got, in its log-in or after it, and
//! keeps nothing.

mod common;
#[path = "common/raw.rs"]
mod raw;
capnp::generated_code!(mod hello_capnp);

use common::Case;
use common::apps::{Place, client, greet, open, server};
use common::peer::{Peer, say};
use hello_capnp::hello;
use nix::fcntl::SealFlag;
use nix::sys::mman::ProtFlags;
use raw::{ARENA, Area, BYTES, Frame, MESSAGES, Memory, Raw, Socket, area, handle, schema};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use strait::{BadMemory, ConnectError, Ended, LoginError, PeerMisbehaved, RecvError, SendError, ViewError};

fn main() -> ExitCode {
    let cases = [
        Case::new("a_raw_server_that_keeps_the_rules", keeps_the_rules),
        Case::new("welcomes_that_are_none", welcomes),
        Case::new("a_welcome_with_two_descriptors", two_descriptors),
        Case::new("refusals", refusals),
        Case::new("no_answer", no_answer),
        Case::new("after_the_login", after_login),
        Case::new("answers_about_channels", channels),
        Case::new("an_accusation_is_not_overtaken", not_overtaken),
    ];
    common::main(&cases, &[("visitor", visitor)])
}

/// A real client. Says how the log-in went, greets, then says whatever it receives until the session ends, and how it
/// did. Asked to, it opens another channel first.
fn visitor(args: &[String]) {
    let limit = std::time::Duration::from_millis(args[1].parse().expect("a number"));
    let app = client().timeout(limit).slots(raw::SLOTS).channel::<hello::Owned>("main");
    let session = match app.connect(&server(&args[0])) {
        Ok(session) => session,
        Err(error) => return say(format!("{error:?}")),
    };
    say("connected");
    if args[2] == "open" {
        match session.open_channel::<hello::Owned>("later", common::PATIENCE) {
            Ok(_) => say("opened"),
            Err(error) => return say(format!("{error:?}")),
        }
    }
    let mut channel = open(&session);
    let message = greet(&channel, "hello");
    if let Err(SendError::Ended(ended)) = channel.send(&message) {
        return say(format!("{:?}", ended.cause));
    }
    loop {
        match channel.recv() {
            Ok(received) => say(common::apps::words(&received)),
            Err(RecvError::Ended(ended)) => {
                drop((channel, session));
                return say(format!("{:?}", ended.cause));
            }
            Err(other) => panic!("{other}"),
        }
    }
}

/// A visitor that has said its hello, and the socket it came over.
struct Visit {
    peer: Peer,
    socket: Socket,
    hello: Frame,
    theirs: Memory,
    _place: Place,
}

impl Visit {
    fn new(then: &str) -> Self {
        Self::hurried(then, "30000")
    }

    fn hurried(then: &str, millis: &str) -> Self {
        let place = Place::new();
        let listener = Socket::listen(place.path());
        let peer = Peer::start("visitor", &[place.text(), millis, then]);
        let socket = listener.accept();
        let (hello, fds) = socket.recv().expect("a hello");
        let head = (hello.0.len(), hello.u32_at(8), hello.u32_at(12), hello.u32_at(16), hello.u64_at(24));
        assert_eq!(head, (1024, 1, 1, 1, raw::layout()));
        assert_eq!((&hello.0[52..59], &hello.0[116..122]), (&b"tester\0"[..], &b"suite\0"[..]));
        assert_eq!((hello.u32_at(180), &hello.0[184..189], hello.u64_at(248)), (1, &b"main\0"[..], schema()));
        let memory = fds.into_iter().next().expect("memory");
        let theirs = Memory::map(memory, hello.u64_at(44) as usize, ProtFlags::PROT_READ);
        Self { peer, socket, hello, theirs, _place: place }
    }

    fn must_say_and_end(mut self, expected: &str) {
        self.peer.must_say(expected);
        // Its census is part of a good end.
        self.peer.finish();
    }

    fn welcome(self) -> (Peer, Raw, Place) {
        let own = Memory::own(BYTES);
        assert!(self.socket.send(&welcome().0, &[own.read_only().as_fd()]));
        let (number, half) = (self.hello.u32_at(40), self.hello.area_at(256));
        let mut peer = self.peer;
        peer.must_say("connected");
        (peer, Raw::begin(self.socket, own, self.theirs, number, half), self._place)
    }
}

fn welcome() -> Frame {
    Frame::login(2).u32(40, ARENA).u64(44, BYTES as u64).u32(52, 1).area(56, area(0))
}

fn keeps_the_rules() {
    let (mut peer, mut raw, _place) = Visit::new("open").welcome();
    let (wish, _) = raw.socket.recv().expect("a wish");
    assert_eq!((wish.0.len(), wish.u32_at(0), wish.u32_at(4) % 2, wish.u64_at(8)), (128, 1, 1, schema()));
    assert_eq!(&wish.0[28..34], b"later\0");
    assert!(raw.socket.say(&Frame::control(2, wish.u32_at(4)).area(8, area(1))));
    peer.must_say("opened");
    // Dropped at once.
    let (closed, _) = raw.socket.recv().expect("a frame");
    assert_eq!((closed.u32_at(0), closed.u32_at(4)), (4, wish.u32_at(4)));
    let question = raw.lane.take_message();
    assert_eq!(raw.lane.words_of(question), "hello");
    for round in 0..30 {
        let mut answer = raw.lane.compose(&format!("answer {round}"));
        if round == 0 {
            answer[2] = 1;
            answer[5..7].copy_from_slice(&question[3..5]);
        }
        raw.lane.put(answer);
        peer.must_say(&format!("answer {round}"));
    }
    assert!(raw.socket.say(&Frame::control(6, 0)));
    peer.must_say("PeerClosed");
    raw.socket.must_end_with_goodbye(0);
    // Until the end of the socket this side may still be reading, so the visitor keeps what it had lent.
    drop(raw);
    peer.finish();
}

fn welcomes() {
    let good = Memory::own(BYTES);
    let unsealed = Memory::sealed(BYTES, SealFlag::F_SEAL_SHRINK);
    let (fd, loose) = (good.read_only(), unsealed.read_only());
    let (one, two): (&[BorrowedFd<'_>], &[BorrowedFd<'_>]) = (&[fd.as_fd()], &[fd.as_fd(), loose.as_fd()]);
    let frame = |what| ConnectError::PeerMisbehaved(PeerMisbehaved::Frame(what));
    let bad = |bad| ConnectError::View(ViewError::Bad(bad));
    let cut = |len: usize| Frame(welcome().0.into_iter().chain([0; 1]).take(len).collect());
    let words = BYTES as u64 / 8;
    let outside = PeerMisbehaved::HandleOutOfRange { offset: words, len: 48 + 64, arena_words: words };
    let size = |announced| BadMemory::Size { found: BYTES as u64, announced };
    let too_large = |announced| BadMemory::TooLarge { announced, limit: 64 << 30 };
    let cases: Vec<(Frame, &[BorrowedFd<'_>], ConnectError)> = vec![
        (welcome(), &[], frame("welcome without memory")),
        (welcome().u32(52, 0), one, frame("welcome with other channels")),
        (welcome().u32(52, 2), one, frame("welcome with other channels")),
        (welcome().area(56, Area { offset: 1, slots: 8 }), one, frame("impossible ring")),
        (welcome().area(56, Area { offset: 0, slots: 9 }), one, frame("impossible ring")),
        (welcome().area(56, Area { offset: words, slots: 8 }), one, ConnectError::PeerMisbehaved(outside)),
        (welcome().u64(44, BYTES as u64 * 2), one, bad(size(BYTES as u64 * 2))),
        (welcome().u64(44, 0), one, bad(too_large(0))),
        (welcome().u64(44, u64::MAX), one, bad(too_large(u64::MAX))),
        (welcome(), &two[1..], bad(BadMemory::Seals)),
        (welcome().u32(68, 9), one, frame("too many channels")),
        (welcome().u32(68, 1).bytes(72, b"a/b"), one, frame("channel without a name")),
        (welcome().u32(68, 1).bytes(72, b"events"), one, frame("impossible ring")),
        (welcome().u32(8, 1), one, frame("no answer")),
        (welcome().u32(8, 9), one, frame("no answer")),
        (welcome().bytes(0, b"S"), one, frame("not strait")),
        (cut(1025), one, frame("no answer")),
        (cut(1023), one, frame("no answer")),
        (cut(20), one, frame("not strait")),
    ];
    for (frame, fds, expected) in cases {
        let visit = Visit::new("-");
        assert!(visit.socket.send(&frame.0, fds));
        visit.must_say_and_end(&format!("{expected:?}"));
    }
    let device = std::fs::File::open("/dev/zero").expect("zero");
    let visit = Visit::new("-");
    assert!(visit.socket.send(&welcome().0, &[device.as_fd()]));
    visit.must_say_and_end(&format!("{:?}", bad(BadMemory::Kind)));
}

fn two_descriptors() {
    let (own, other) = (Memory::own(BYTES), Memory::own(BYTES));
    let mut visit = Visit::new("-");
    assert!(visit.socket.send(&welcome().0, &[own.read_only().as_fd(), other.read_only().as_fd()]));
    assert_ne!(visit.peer.line(), "connected");
    drop(visit.socket);
    visit.peer.finish();
}

fn refusals() {
    let gid = nix::unistd::getegid().as_raw();
    let uid = nix::unistd::geteuid().as_raw();
    let tester = || "tester".to_owned();
    let errors = [
        (2, LoginError::NotAllowed { client: tester() }),
        (3, LoginError::WrongUser { client: tester(), uid }),
        (4, LoginError::WrongGroup { client: tester(), gid }),
        (5, LoginError::UnknownChannel { channel: "main".into() }),
        (6, LoginError::WrongSchema { channel: "main".into(), ours: schema(), theirs: 5 }),
        (7, LoginError::TooManyChannels),
        (8, LoginError::MemoryRefused),
        (9, LoginError::Busy),
        (10, LoginError::WrongProgram { client: tester() }),
        (11, LoginError::TooManySessions { uid }),
    ];
    for (code, error) in errors {
        let visit = Visit::new("-");
        assert!(visit.socket.say(&Frame::login(3).u32(32, code).u64(40, 5)));
        visit.must_say_and_end(&format!("{:?}", ConnectError::Refused(error)));
    }
    for code in [0, 12, u32::MAX] {
        let visit = Visit::new("-");
        assert!(visit.socket.say(&Frame::login(3).u32(32, code)));
        let error = ConnectError::PeerMisbehaved(PeerMisbehaved::Frame("unknown refusal"));
        visit.must_say_and_end(&format!("{error:?}"));
    }
    // An index of no channel.
    let visit = Visit::new("-");
    assert!(visit.socket.say(&Frame::login(3).u32(32, 5).u32(36, u32::MAX)));
    assert!(Visit::new("-").socket.send(&[0], &[]), "another is served meanwhile");
    visit.must_say_and_end(r##"Refused(UnknownChannel { channel: "#4294967295" })"##);
}

fn no_answer() {
    let visit = Visit::hurried("-", "100");
    visit.must_say_and_end("TimedOut");
    let mut visit = Visit::new("-");
    drop(visit.socket);
    visit.peer.must_say("Disconnected");
    visit.peer.finish();
}

fn broke(broken: PeerMisbehaved) -> String {
    format!("{:?}", Ended::PeerMisbehaved(broken))
}

type Breach = (PeerMisbehaved, fn(&mut Raw));

fn after_login() {
    let arena_words = BYTES as u64 / 8;
    let breaches: [Breach; 12] = [
        (PeerMisbehaved::HandleOutOfRange { offset: arena_words, len: 1, arena_words }, |raw| {
            let payload = raw.lane.message(1, handle(ARENA, raw.own.words(), 1, 0));
            raw.lane.put(payload);
        }),
        (PeerMisbehaved::UnknownArena { found: ARENA + 1, expected: ARENA }, |raw| {
            let payload = raw.lane.message(1, handle(ARENA + 1, MESSAGES, 1, 0));
            raw.lane.put(payload);
        }),
        (PeerMisbehaved::SegmentCount(513), |raw| {
            let payload = raw.lane.message(513, handle(ARENA, MESSAGES, 1026, 0));
            raw.lane.put(payload);
        }),
        (PeerMisbehaved::UnknownSlotKind(9), |raw| raw.lane.put([9, 0, 0, 0, 0, 0, 0])),
        (PeerMisbehaved::SequenceOutOfRange { found: 7, expected: 1 }, |raw| {
            raw.lane.publish(raw.lane.slot(0) + 7, 7);
        }),
        (PeerMisbehaved::MessageId { found: 2, expected: 1 }, |raw| {
            raw.lane.sent = 1;
            raw.lane.say("two");
        }),
        (PeerMisbehaved::ReplyToNothing { found: 2, sent: 1 }, |raw| {
            let mut payload = raw.lane.compose("what");
            payload[2] = 2;
            raw.lane.put(payload);
        }),
        (PeerMisbehaved::NotOnLoan, |raw| {
            let question = raw.lane.take_message();
            let home = [question[3], question[4]];
            raw.lane.put([2, home[0], home[1], home[0], home[1], 0, 0]);
        }),
        (PeerMisbehaved::Frame("wrong length"), |raw| assert!(raw.socket.send(&[1; 100], &[]))),
        (PeerMisbehaved::UnexpectedDescriptor, |raw| {
            let memory = raw.own.fd.as_fd();
            assert!(raw.socket.send(&Frame::control(5, 0).0, &[memory]));
        }),
        // Clients serve no channels, and their numbers are odd.
        (PeerMisbehaved::ChannelNumber(1), |raw| {
            assert!(raw.socket.say(&Frame::open(1, "main", schema(), area(1))));
        }),
        (PeerMisbehaved::ChannelNumber(33), |raw| assert!(raw.socket.say(&Frame::control(2, 33).area(8, area(1))))),
    ];
    for (broken, act) in breaches {
        let (mut peer, mut raw, _place) = Visit::new("-").welcome();
        // It has sent by now, so whatever comes is found by its receiving.
        let last = raw.lane.their_half.offset + 48 + 7;
        common::eventually("its message", || (raw.theirs.load(last) == 1).then_some(()));
        act(&mut raw);
        peer.must_say(&broke(broken));
        raw.socket.must_end_with_goodbye(1);
        peer.finish();
    }
}

/// The application learns of the end, and drops everything, while the watcher is still about to accuse.
fn not_overtaken() {
    for _ in 0..300 {
        let (mut peer, raw, _place) = Visit::new("-").welcome();
        assert!(raw.socket.say(&Frame::control(200, 0)));
        peer.must_say(&broke(PeerMisbehaved::Frame("unknown kind")));
        raw.socket.must_end_with_goodbye(1);
        peer.finish();
    }
}

type Answer = (fn(u32) -> Frame, PeerMisbehaved);

fn channels() {
    // A wish that a server may have: a client serves nothing.
    let (peer, raw, _place) = Visit::new("-").welcome();
    assert!(raw.socket.say(&Frame::open(18, "main", schema(), area(1))));
    let (refused, _) = raw.socket.recv().expect("an answer");
    assert_eq!((refused.u32_at(0), refused.u32_at(4), refused.u32_at(8)), (3, 18, 1));
    drop((peer, raw));
    let words = BYTES as u64 / 8;
    let outside = PeerMisbehaved::HandleOutOfRange { offset: words, len: 48 + 64, arena_words: words };
    let answers: [Answer; 5] = [
        (
            |number| Frame::control(2, number).area(8, Area { offset: 8, slots: 8 }),
            PeerMisbehaved::Frame("impossible ring"),
        ),
        (|number| Frame::control(2, number).area(8, Area { offset: BYTES as u64 / 8, slots: 8 }), outside),
        (|number| Frame::control(3, number).u32(8, 77), PeerMisbehaved::Frame("unknown refusal")),
        (|number| Frame::control(3, number).u32(8, 6).bytes(20, &[0xFF]), PeerMisbehaved::Frame("reason is not UTF-8")),
        (|number| Frame::control(2, number + 1), PeerMisbehaved::ChannelNumber(18)),
    ];
    for (answer, broken) in answers {
        let (mut peer, raw, _place) = Visit::new("open").welcome();
        let (wish, _) = raw.socket.recv().expect("a wish");
        assert_eq!((wish.u32_at(0), wish.u32_at(4)), (1, 17));
        assert!(raw.socket.say(&answer(17)));
        let cause = Ended::PeerMisbehaved(broken);
        peer.must_say(&format!("{:?}", strait::ChannelError::Ended { peer: "suite".into(), cause }));
        assert_eq!(raw.socket.rest().last().map(|frame| frame.u32_at(0)), Some(6), "a goodbye");
        peer.finish();
    }
}
