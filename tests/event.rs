//! One loop for everything: sessions, channels, timers, descriptors, signals, other threads; and what goes wrong in it.

mod common;
#[path = "common/raw.rs"]
mod raw;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, ask, client, greet, open, server, words};
use common::obliging::{connect, with_server};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, census, eventually, obliging};
use hello_capnp::hello;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use raw::{Frame, Raw, Socket};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strait::event::{AddError, Event, EventLoop, LoopError, Readiness, RemoveError, Token};
use strait::{AcceptError, Backing, Channel, Ended, RecvError, SendError, ServerApp, Session, Trust};

fn main() -> ExitCode {
    let cases = [
        Case::new("clients_come_talk_and_go", || clients(Backing::Memfd)),
        Case::new("clients_that_share_nothing_come_talk_and_go", || clients(Backing::Heap)),
        Case::new("a_client_waits_in_a_loop", client_side),
        Case::new("a_full_channel_tells_when_there_is_room", || writable(Backing::Memfd)),
        Case::new("a_full_channel_that_is_not_shared_tells_when_there_is_room", || writable(Backing::Heap)),
        Case::new("sessions_move_between_loop_and_watcher", moves),
        Case::new("a_loop_may_go_before_its_sessions", loop_goes_first),
        Case::new("death_is_told", death),
        Case::new("blocking_calls_work_in_the_loops_thread", blocking),
        Case::new("a_second_thread_may_receive", second_thread),
        Case::new("channels_opened_later_are_told", later_channels),
        Case::new("kinds_are_told_and_who_finishes", kinds),
        Case::new("one_flood_starves_nobody", flood),
        Case::new("strangers_and_dawdlers", strangers),
        Case::new("doorbells_out_of_nothing", doorbells),
        Case::new("timers", timers),
        Case::new("descriptors", descriptors),
        Case::new("descriptors_closed_under_the_loop", closed_descriptors),
        Case::new("signals", signals),
        Case::new("wakers", wakers),
        Case::new("a_loop_in_a_poll", nested),
        Case::new("a_forked_child_has_no_loop", forked),
        Case::new("nothing_is_added_twice", twice),
    ];
    let roles: &[common::Role] =
        &[("obliging", obliging::run), ("talkers", talkers), ("receiver", receiver), ("flooder", flooder)];
    common::main(&cases, roles)
}

/// The next event, which must come.
#[track_caller]
fn next(events: &mut EventLoop) -> Event {
    events.wait(Some(Instant::now() + PATIENCE)).expect("an event in time")
}

#[track_caller]
fn must_be_quiet(events: &mut EventLoop) {
    let event = events.wait(Some(Instant::now()));
    assert!(event.is_none(), "{event:?}");
}

/// A server in a loop, which answers what it is asked.
struct Answering {
    events: EventLoop,
    server: Token,
    sessions: HashMap<Token, Session>,
    channels: HashMap<Token, Channel<hello::Owned>>,
    answered: usize,
}

impl Answering {
    fn new(app: ServerApp) -> Self {
        let mut events = EventLoop::new().expect("loop");
        let bound = app.allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main").bind().expect("bind");
        let server = events.add_server(&Arc::new(bound)).expect("server");
        Self { events, server, sessions: HashMap::new(), channels: HashMap::new(), answered: 0 }
    }

    /// Does what an event asks for; hands on what it does not know.
    fn answer(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::Connection { server, token, session } => {
                assert_eq!(server, self.server);
                let channel = session.accept_channel().expect("opened at log-in");
                let of = self.events.add_channel(&channel).expect("channel");
                self.channels.insert(of, channel);
                self.sessions.insert(token, session);
                None
            }
            Event::Message { channel, .. } => {
                let channel = self.channels.get_mut(&channel).expect("in the loop");
                let received = channel.try_recv().expect("open").expect("told");
                let said = words(&received);
                let answer = greet(channel, said.strip_prefix("echo ").unwrap_or(&said));
                match channel.try_reply(&received, &answer) {
                    Ok(_) | Err(SendError::Ended(_)) => {}
                    Err(other) => panic!("{other}"),
                }
                self.answered += 1;
                None
            }
            Event::Closed { channel, .. } => {
                self.channels.remove(&channel).expect("in the loop");
                None
            }
            other => Some(other),
        }
    }

    #[track_caller]
    fn until(&mut self, what: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = next(&mut self.events);
            match self.answer(event) {
                Some(event) if what(&event) => return event,
                Some(Event::Disconnection { session, .. }) => drop(self.sessions.remove(&session).expect("known")),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
    }
}

impl Answering {
    /// Goes on until every session is over; tells how each ended.
    #[track_caller]
    fn until_all_ended(&mut self) -> Vec<Ended> {
        let mut causes = Vec::new();
        while !self.sessions.is_empty() || !self.channels.is_empty() {
            let event = next(&mut self.events);
            match self.answer(event) {
                Some(Event::Disconnection { session, cause }) => {
                    self.sessions.remove(&session).expect("told once");
                    causes.push(cause);
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
        causes
    }
}

/// As it crosses a command line.
fn backing(word: Option<&String>) -> Backing {
    if word.is_some_and(|word| *word == format!("{:?}", Backing::Heap)) { Backing::Heap } else { Backing::Memfd }
}

/// So many sessions, each of which asks so often; then they go, each in its own way.
fn talkers(args: &[String]) {
    let count = |text: &String| text.parse::<usize>().expect("a number");
    let (sessions, times) = (count(&args[1]), count(&args[2]));
    let mut talking: Vec<_> = (0..sessions)
        .map(|_| {
            let app = client().backing(backing(args.get(3))).channel::<hello::Owned>("main");
            let session = app.connect(&server(&args[0])).expect("connect");
            let channel = open(&session);
            (session, channel)
        })
        .collect();
    for time in 0..times {
        // All at once, and then the answers.
        for (index, (_, channel)) in talking.iter_mut().enumerate() {
            let question = greet(channel, &format!("echo {index} {time}"));
            channel.send(&question).expect("send");
        }
        for (index, (_, channel)) in talking.iter_mut().enumerate() {
            let answer = channel.recv_timeout(PATIENCE).expect("answer");
            assert_eq!(words(&answer), format!("{index} {time}"));
        }
    }
    say("done");
    hear();
    for (index, (session, channel)) in talking.into_iter().enumerate() {
        match index % 3 {
            0 => drop((session, channel)),
            1 => drop((channel, session)),
            _ => session.close(),
        }
    }
}

const SESSIONS: usize = 60;
const TIMES: usize = 40;

fn clients(backing: Backing) {
    let place = Place::new();
    let mut answering = Answering::new(place.server().backing(backing));
    let threads = census::threads(std::process::id());
    let (sessions, times, backing) = (SESSIONS.to_string(), TIMES.to_string(), format!("{backing:?}"));
    let mut peer = Peer::start("talkers", &[place.text(), &sessions, &times, &backing]);
    let waker = answering.events.waker();
    let peer = std::thread::spawn(move || {
        peer.must_say("done");
        waker.wake();
        peer
    });
    answering.until(|event| matches!(event, Event::Woken));
    assert_eq!((answering.answered, answering.sessions.len()), (SESSIONS * TIMES, SESSIONS));
    let mut peer = peer.join().expect("thread");
    // No watcher: the loop does everything.
    assert_eq!(census::threads(std::process::id()), threads);
    peer.tell("go");
    assert_eq!(answering.until_all_ended(), vec![Ended::PeerClosed; SESSIONS]);
    peer.finish();
    must_be_quiet(&mut answering.events);
    drop(answering);
    place.must_be_empty();
}

fn client_side() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut channel = open(&session);
        let mut events = EventLoop::new().expect("loop");
        let of_session = events.add_session(&session).expect("session");
        let of_channel = events.add_channel(&channel).expect("channel");
        must_be_quiet(&mut events);
        for index in 0..500 {
            let question = greet(&channel, &format!("echo {index}"));
            channel.try_send(&question).expect("room");
            assert!(matches!(next(&mut events), Event::Message { channel, .. } if channel == of_channel));
            // Told as long as it is there.
            assert!(matches!(next(&mut events), Event::Message { channel, .. } if channel == of_channel));
            assert_eq!(words(&channel.try_recv().expect("open").expect("told")), index.to_string());
            must_be_quiet(&mut events);
        }
        let burst = greet(&channel, "burst 300");
        channel.try_send(&burst).expect("room");
        for index in 0..300 {
            assert!(matches!(next(&mut events), Event::Message { .. }));
            assert_eq!(words(&channel.try_recv().expect("open").expect("told")), format!("burst {index}"));
        }
        assert!(matches!(next(&mut events), Event::Message { .. }));
        assert_eq!(words(&channel.try_recv().expect("open").expect("told")), "done");
        session.close();
        let mut told = [next(&mut events), next(&mut events)].map(|event| match event {
            Event::Closed { channel, cause } => (channel, cause),
            Event::Disconnection { session, cause } => (session, cause),
            other => panic!("{other:?}"),
        });
        told.sort_by_key(|(token, _)| *token);
        assert_eq!(told, [(of_session, Ended::Closed), (of_channel, Ended::Closed)]);
        must_be_quiet(&mut events);
        // Dropped with a session in it that the peer still knows of.
        drop((events, channel, session));
    });
}

/// Receives as many messages as it is told to.
fn receiver(args: &[String]) {
    let app = client().backing(backing(args.get(1))).channel::<hello::Owned>("main");
    let session = app.connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    say("ready");
    let mut next = 0;
    while let Ok(count) = hear().parse::<usize>() {
        for _ in 0..count {
            assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), next.to_string());
            next += 1;
        }
        say("received");
    }
}

fn writable(backing: Backing) {
    let place = Place::new();
    let mut answering = Answering::new(place.server().backing(backing).slots(4));
    let mut peer = Peer::start("receiver", &[place.text(), &format!("{backing:?}")]);
    while answering.channels.is_empty() {
        let event = next(&mut answering.events);
        assert!(answering.answer(event).is_none());
    }
    peer.must_say("ready");
    let Answering { events, channels, .. } = &mut answering;
    let (of_channel, channel) = channels.iter_mut().next().expect("one");
    let mut sent = 0;
    for _ in 0..200 {
        let mut room = 0;
        loop {
            let message = greet(channel, &sent.to_string());
            match channel.try_send(&message) {
                Ok(_) => (sent, room) = (sent + 1, room + 1),
                Err(SendError::Full) => break,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(room > 0, "told that there is room");
        must_be_quiet(events);
        peer.tell("1");
        peer.must_say("received");
        assert!(matches!(next(events), Event::Writable { channel } if channel == *of_channel));
        must_be_quiet(events);
    }
    peer.tell(&(sent - 200).to_string());
    peer.must_say("received");
    peer.tell("enough");
    assert_eq!(answering.until_all_ended(), [Ended::PeerClosed]);
    peer.finish();
}

fn moves() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut channel = open(&session);
        let own = std::process::id();
        assert_eq!(census::threads(own), 2, "the watcher");
        for round in 0..50 {
            let mut events = EventLoop::new().expect("loop");
            // With answers under way at any moment.
            let burst = greet(&channel, "burst 20");
            channel.send(&burst).expect("send");
            let of_session = events.add_session(&session).expect("session");
            let of_channel = events.add_channel(&channel).expect("channel");
            for index in 0..10 {
                assert!(matches!(next(&mut events), Event::Message { .. }));
                assert_eq!(words(&channel.try_recv().expect("open").expect("told")), format!("burst {index}"));
            }
            if round % 10 == 0 {
                eventually("the watcher is gone", || (census::threads(own) == 1).then_some(()));
            }
            match round % 3 {
                0 => events.remove(of_session).expect("session"),
                1 => {
                    events.remove(of_channel).expect("channel");
                    events.remove(of_session).expect("session");
                    assert!(matches!(events.remove(of_session), Err(RemoveError::NotFound)));
                }
                _ => {}
            }
            drop(events);
            for index in 10..20 {
                assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), format!("burst {index}"));
            }
            assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "done");
            // The last may still be on its way out.
            eventually("the watcher is back", || (census::threads(own) == 2).then_some(()));
        }
        // What is owed goes home, whoever sees to it.
        let home = |channel: &mut Channel<hello::Owned>| {
            eventually("nothing is lent", || (ask(channel, "loans").starts_with("(0,")).then_some(()));
        };
        home(&mut channel);
        let mut events = EventLoop::new().expect("loop");
        events.add_session(&session).expect("session");
        home(&mut channel);
    });
}

fn loop_goes_first() {
    for wait_for_end in [false, true] {
        with_server("snapshot", |place, peer| {
            let mut events = EventLoop::new().expect("loop");
            let session = connect(place, Trust::snapshot());
            let mut channel = open(&session);
            events.add_session(&session).expect("session");
            events.add_channel(&channel).expect("channel");
            let received = channel.request(&greet(&channel, "echo kept"), PATIENCE).expect("answer");
            drop((channel, session));
            if wait_for_end {
                // Its users are not all gone: what was received keeps it.
                must_be_quiet_but_closed(&mut events);
            }
            assert_eq!(words(&received), "kept");
            drop(received);
            if wait_for_end {
                peer.must_say("session: PeerClosed");
                // Nobody here wants to know.
                must_be_quiet_but_closed(&mut events);
            }
        });
    }
}

fn must_be_quiet_but_closed(events: &mut EventLoop) {
    while let Some(event) = events.wait(Some(Instant::now())) {
        assert!(matches!(event, Event::Closed { .. }), "{event:?}");
    }
}

fn death() {
    let place = Place::new();
    let mut answering = Answering::new(place.server());
    let mut peers: Vec<_> = (0..3).map(|_| Some(Peer::start("talkers", &[place.text(), "2", "1"]))).collect();
    while answering.answered < 6 {
        let event = next(&mut answering.events);
        assert!(answering.answer(event).is_none());
    }
    peers[1].take().expect("alive").kill();
    for _ in 0..2 {
        let event = answering.until(|event| matches!(event, Event::Disconnection { .. }));
        let Event::Disconnection { session, cause } = event else { unreachable!() };
        assert_eq!(cause, Ended::PeerDied);
        answering.sessions.remove(&session).expect("told once");
    }
    let mut peers: Vec<_> = peers.into_iter().flatten().collect();
    for peer in &mut peers {
        peer.must_say("done");
        peer.tell("go");
    }
    assert_eq!(answering.until_all_ended(), [Ended::PeerClosed; 4]);
    peers.into_iter().for_each(Peer::finish);
}

fn blocking() {
    let place = Place::new();
    let peer = obliging::obliging_server(&place, "snapshot");
    let session = connect(&place, Trust::snapshot());
    let mut events = EventLoop::new().expect("loop");
    let of_session = events.add_session(&session).expect("session");
    let mut channel = open(&session);
    let of_channel = events.add_channel(&channel).expect("channel");
    must_be_quiet(&mut events);
    // Opened over the socket, which only this thread can read.
    let mut second = open(&session);
    assert_eq!(ask(&mut second, "echo second"), "second");
    drop(second);
    // The thirty notes come first, and are told of afterwards.
    let burst = greet(&channel, "burst 30");
    channel.send(&burst).expect("send");
    assert_eq!(ask(&mut channel, "echo blocking"), "blocking");
    for index in 0..30 {
        let event = loop {
            match next(&mut events) {
                Event::Channels { session } => assert_eq!(session, of_session),
                other => break other,
            }
        };
        assert!(matches!(event, Event::Message { channel, .. } if channel == of_channel), "{event:?}");
        assert_eq!(words(&channel.try_recv().expect("open").expect("told")), format!("burst {index}"));
    }
    assert_eq!(words(&channel.recv().expect("the last")), "done");
    // Nobody but the waiter can find out that the peer is gone.
    let die = greet(&channel, "flood-and-die 0");
    channel.send(&die).expect("send");
    assert!(matches!(channel.recv(), Err(RecvError::Ended(_))));
    assert_eq!(session.end(), Some(Ended::PeerDied));
    let mut told: Vec<_> = std::iter::from_fn(|| events.wait(Some(Instant::now()))).collect();
    told.retain(|event| !matches!(event, Event::Channels { .. }));
    assert_eq!(told.len(), 2, "{told:?}");
    drop((channel, session, events));
    drop(peer);
}

/// While another thread receives, the loop leaves the channel alone, and takes it up where that thread leaves it.
fn second_thread() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut channel = open(&session);
        let mut events = EventLoop::new().expect("loop");
        events.add_session(&session).expect("session");
        events.add_channel(&channel).expect("channel");
        let burst = greet(&channel, "burst 400");
        channel.send(&burst).expect("send");
        let waker = events.waker();
        let receiving = std::thread::spawn(move || {
            for index in 0..200 {
                assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), format!("burst {index}"));
            }
            waker.wake();
            channel
        });
        while !matches!(next(&mut events), Event::Woken) {}
        let mut channel = receiving.join().expect("thread");
        for index in 200..400 {
            assert!(matches!(next(&mut events), Event::Message { .. }));
            assert_eq!(words(&channel.try_recv().expect("open").expect("told")), format!("burst {index}"));
        }
        assert!(matches!(next(&mut events), Event::Message { .. }));
    });
}

fn later_channels() {
    let place = Place::new();
    let mut answering = Answering::new(place.server());
    let dir = place.text().to_owned();
    let opening = std::thread::spawn(move || {
        let session = client().channel::<hello::Owned>("main").connect(&server(&dir)).expect("connect");
        let first = open(&session);
        let mut second = open(&session);
        assert_eq!(ask(&mut second, "echo later"), "later");
        drop((first, second, session));
    });
    let event = answering.until(|event| matches!(event, Event::Channels { .. }));
    let Event::Channels { session } = event else { unreachable!() };
    let session = answering.sessions.get(&session).expect("known").clone();
    let channel = session.accept_channel_timeout(Duration::ZERO).expect("there already");
    let token = answering.events.add_channel(&channel).expect("channel");
    answering.channels.insert(token, channel);
    drop(session);
    answering.until(|event| matches!(event, Event::Disconnection { .. }));
    assert_eq!(answering.answered, 1);
    opening.join().expect("thread");
}

fn kinds() {
    let place = Place::new();
    let mut answering = Answering::new(place.server());
    let dir = place.text().to_owned();
    let client = std::thread::spawn(move || {
        let session = client().channel::<hello::Owned>("main").connect(&server(&dir)).expect("connect");
        let mut channel = open(&session);
        for kind in [7, u16::MAX, 0] {
            let mut builder = channel.create_msg();
            builder.init_root().set_greet(kind.to_string());
            builder.set_kind(kind);
            channel.send(&builder.freeze().expect("room")).expect("send");
        }
        channel.finish();
        // It still receives.
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "after the end");
    });
    while answering.channels.is_empty() {
        let event = next(&mut answering.events);
        assert!(answering.answer(event).is_none());
    }
    let (of_channel, channel) = answering.channels.iter_mut().next().expect("one");
    for expected in [7, u16::MAX, 0] {
        let Event::Message { channel: told, kind } = next(&mut answering.events) else { panic!("a message") };
        assert_eq!((told, kind), (*of_channel, expected));
        assert_eq!(words(&channel.try_recv().expect("open").expect("told")), expected.to_string());
    }
    assert!(matches!(next(&mut answering.events), Event::Finished { channel } if channel == *of_channel));
    must_be_quiet(&mut answering.events);
    let last = greet(channel, "after the end");
    channel.try_send(&last).expect("room");
    assert_eq!(answering.until_all_ended(), [Ended::PeerClosed]);
    client.join().expect("thread");
}

/// Sends as fast as it can until told to stop.
fn flooder(args: &[String]) {
    let session = client().channel::<hello::Owned>("main").connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    let message = greet(&channel, "flood");
    while channel.send(&message).is_ok() {}
}

fn flood() {
    let place = Place::new();
    let mut events = EventLoop::new().expect("loop");
    let app = place.server().allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
    events.add_server(&Arc::new(app.bind().expect("bind"))).expect("server");
    let flooders: Vec<_> = (0..3).map(|_| Peer::start("flooder", &[place.text()])).collect();
    let (mut sessions, mut channels) = (Vec::new(), BTreeMap::new());
    let mut counts: BTreeMap<Token, u32> = BTreeMap::new();
    let (mut pipe, inside) = UnixStream::pair().expect("pair");
    events.add_fd(&inside, Readiness::READABLE).expect("descriptor");
    let (mut others, mut told) = (0_u32, 0_u32);
    let mut timer = events.add_timer(Instant::now());
    // All in the loop's one thread: with three floods under way, whatever else happens is told soon.
    while others < 400 {
        match next(&mut events) {
            Event::Connection { session, .. } => {
                let channel: Channel<hello::Owned> = session.accept_channel().expect("log-in");
                channels.insert(events.add_channel(&channel).expect("channel"), channel);
                sessions.push(session);
            }
            Event::Message { channel, .. } => {
                *counts.entry(channel).or_default() += 1;
                told += 1;
                drop(channels.get_mut(&channel).expect("known").try_recv().expect("open"));
            }
            Event::Timer { timer: fired } => {
                assert_eq!(fired, timer);
                timer = events.add_timer(Instant::now());
                told = 0;
                if counts.len() == 3 {
                    others += 1;
                    pipe.write_all(b"x").expect("room");
                }
            }
            Event::External { .. } => {
                let mut byte = [0];
                (&inside).read_exact(&mut byte).expect("told");
                (others, told) = (others + 1, 0);
            }
            other => panic!("{other:?}"),
        }
        // A lap of the queue, and a look at the kernel.
        assert!(told < 200, "{told} messages, and a timer that is due is not told");
    }
    let (least, most) = (counts.values().min().expect("some"), counts.values().max().expect("some"));
    println!("note: messages told per flooder: {counts:?}");
    assert!(*least > 0 && *most > 0);
    flooders.into_iter().for_each(Peer::kill);
    drop((channels, sessions, events));
}

fn strangers() {
    let place = Place::new();
    let mut answering = Answering::new(place.server());
    // Connects and says nothing.
    let dawdler = Socket::knock(place.path());
    let liar = Socket::knock(place.path());
    liar.send(&[7; 64], &[]);
    let event = answering.until(|event| matches!(event, Event::Error { .. }));
    let Event::Error { source, error: LoopError::Accept(error) } = event else { panic!("{event:?}") };
    assert_eq!(source, Some(answering.server));
    assert!(matches!(error, AcceptError::PeerMisbehaved(_)), "{error}");
    let mut peer = Peer::start("talkers", &[place.text(), "1", "5"]);
    while answering.answered < 5 {
        let event = next(&mut answering.events);
        assert!(answering.answer(event).is_none());
    }
    // Two seconds after it came.
    let event = answering.until(|event| matches!(event, Event::Error { .. }));
    assert!(matches!(event, Event::Error { error: LoopError::Accept(AcceptError::LoginTimedOut), .. }), "{event:?}");
    assert!(dawdler.recv().is_none());
    peer.must_say("done");
    peer.tell("go");
    assert_eq!(answering.until_all_ended(), [Ended::PeerClosed]);
    peer.finish();
}

fn doorbells() {
    let place = Place::new();
    let app = place.server().allow(&strait::ClientApp::new("raw"), Trust::snapshot());
    let mut answering = Answering::new(app);
    let dir = place.path().to_owned();
    let hostile = std::thread::spawn(move || {
        let raw = Raw::login(&dir);
        // Known and unknown channels, bits with and without a meaning.
        for number in [1, 2, 3, 17, u32::MAX] {
            for news in [0, 1, 2, 3, 0xFF, u32::MAX] {
                for _ in 0..100 {
                    assert!(raw.socket.say(&Frame::control(10, number).u32(8, news)));
                }
            }
        }
        raw
    });
    let mut spurious = 0;
    while !hostile.is_finished() {
        match answering.events.wait(Some(Instant::now() + Duration::from_millis(1))) {
            None => {}
            Some(Event::Writable { .. }) => spurious += 1,
            Some(event) => assert!(answering.answer(event).is_none()),
        }
    }
    let raw = hostile.join().expect("thread");
    while let Some(event) = answering.events.wait(Some(Instant::now())) {
        assert!(matches!(event, Event::Writable { .. }), "{event:?}");
        spurious += 1;
    }
    println!("note: of 3,000 doorbells, {spurious} were told");
    assert!(spurious <= 300);
    assert_eq!(answering.sessions.values().map(Session::end).collect::<Vec<_>>(), [None]);
    // Waiting at the door under ever new numbers, one gets a doorbell for each message and no more.
    let (of_channel, channel) = answering.channels.iter_mut().next().expect("one");
    for turn in 0..6_u64 {
        raw.own.store(raw.lane.half.offset + 16, 2 | (turn / 2 + 1) << 8);
        let message = greet(channel, "x");
        channel.try_send(&message).expect("room");
    }
    for _ in 0..3 {
        let (frame, _) = raw.socket.recv().expect("a doorbell");
        assert_eq!((frame.u32_at(0), frame.u32_at(4), frame.u32_at(8)), (10, 1, 1));
    }
    // One that waits ever anew and does not read its doorbells is slow: they do not pile up, and it is not cut off.
    for turn in 0..3_000_u64 {
        raw.own.store(raw.lane.half.offset, 6 + turn);
        raw.own.store(raw.lane.half.offset + 16, 2 | (turn + 4) << 8);
        let message = greet(channel, "x");
        channel.try_send(&message).expect("room");
    }
    let of_channel = *of_channel;
    assert_eq!(answering.sessions.values().map(Session::end).collect::<Vec<_>>(), [None]);
    for _ in 0..100 {
        assert_eq!(raw.socket.recv().expect("one more").0.u32_at(0), 10);
    }
    drop(raw);
    let event = answering.until(|event| matches!(event, Event::Disconnection { .. }));
    assert!(matches!(event, Event::Disconnection { cause: Ended::PeerDied, .. }));
    assert!(!answering.channels.contains_key(&of_channel) || answering.sessions.len() == 1);
}

fn timers() {
    let mut events = EventLoop::new().expect("loop");
    assert!(events.wait(Some(Instant::now() + Duration::from_millis(5))).is_none());
    let now = Instant::now();
    let past = events.add_timer(now.checked_sub(Duration::from_secs(1)).unwrap_or(now));
    assert!(matches!(events.wait(Some(now)), Some(Event::Timer { timer }) if timer == past));
    assert!(matches!(events.remove(past), Err(RemoveError::NotFound)));
    // A thousand, added in no order; every third is removed again.
    let mut at: BTreeMap<Token, Instant> = BTreeMap::new();
    for index in 0..1_000_u64 {
        let due = now + Duration::from_micros(index * 7_919 % 1_000 * 50);
        at.insert(events.add_timer(due), due);
    }
    let removed: Vec<_> = at.keys().copied().step_by(3).collect();
    for timer in removed {
        at.remove(&timer);
        events.remove(timer).expect("there");
    }
    let far = events.add_timer(now + PATIENCE * 100);
    let mut last = now;
    while !at.is_empty() {
        let Event::Timer { timer } = next(&mut events) else { panic!("a timer") };
        let due = at.remove(&timer).expect("told once");
        assert!(due >= last && due <= Instant::now(), "in order and not early");
        last = due;
    }
    assert!(events.wait(Some(Instant::now())).is_none());
    events.remove(far).expect("there");
}

fn descriptors() {
    let mut events = EventLoop::new().expect("loop");
    let (mut ours, theirs) = UnixStream::pair().expect("pair");
    let token = events.add_fd(&theirs, Readiness::READABLE).expect("descriptor");
    must_be_quiet(&mut events);
    ours.write_all(b"ab").expect("room");
    for _ in 0..2 {
        let Event::External { fd, readiness } = next(&mut events) else { panic!("a descriptor") };
        assert_eq!((fd, readiness.is_readable(), readiness.is_writable()), (token, true, false));
        (&theirs).read_exact(&mut [0]).expect("told");
    }
    must_be_quiet(&mut events);
    drop(ours);
    let Event::External { readiness, .. } = next(&mut events) else { panic!("a descriptor") };
    assert!(readiness.is_readable() && readiness.is_hung_up());
    events.remove(token).expect("there");
    must_be_quiet(&mut events);
    // A listening TCP socket, and its connection for writing.
    let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
    let listening = events.add_fd(&listener, Readiness::READABLE).expect("descriptor");
    let _outside = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
    assert!(matches!(next(&mut events), Event::External { fd, .. } if fd == listening));
    let (inside, _) = listener.accept().expect("told");
    let writing = events.add_fd(&inside, Readiness::READABLE | Readiness::WRITABLE).expect("descriptor");
    let Event::External { fd, readiness } = next(&mut events) else { panic!("a descriptor") };
    assert_eq!((fd, readiness.is_readable(), readiness.is_writable()), (writing, false, true));
    // Nothing that can be waited for.
    let file = tempfile::tempfile().expect("file");
    assert!(matches!(events.add_fd(&file, Readiness::READABLE), Err(AddError::Io(_))));
}

fn closed_descriptors() {
    let mut events = EventLoop::new().expect("loop");
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let raw = theirs.as_raw_fd();
    let token = events.add_fd(&theirs, Readiness::READABLE).expect("descriptor");
    assert!(matches!(events.add_fd(&theirs, Readiness::READABLE), Err(AddError::AlreadyAdded)));
    drop(theirs);
    // Found out when it is removed.
    assert!(matches!(events.remove(token), Err(RemoveError::ClosedDescriptor)));
    drop(ours);
    // Found out when the number comes back as something else.
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let token = events.add_fd(&theirs, Readiness::READABLE).expect("descriptor");
    let number = theirs.as_raw_fd();
    drop((ours, theirs));
    let (mut ours, theirs) = at_number(number);
    let renewed = events.add_fd(&theirs, Readiness::READABLE).expect("another descriptor");
    assert!(matches!(
        next(&mut events),
        Event::Error { source: Some(source), error: LoopError::ClosedDescriptor } if source == token
    ));
    ours.write_all(b"x").expect("room");
    assert!(matches!(next(&mut events), Event::External { fd, .. } if fd == renewed));
    events.remove(renewed).expect("there");
    must_be_quiet(&mut events);
    // The file lives on under another number, ready all the time: told of once, and then as closed.
    let token = events.add_fd(&theirs, Readiness::READABLE).expect("descriptor");
    let copy = theirs.try_clone().expect("descriptor");
    drop(theirs);
    assert!(matches!(next(&mut events), Event::External { fd, .. } if fd == token));
    assert!(matches!(
        next(&mut events),
        Event::Error { source: Some(source), error: LoopError::ClosedDescriptor } if source == token
    ));
    must_be_quiet(&mut events);
    let timer = events.add_timer(Instant::now());
    assert!(matches!(next(&mut events), Event::Timer { timer: fired } if fired == timer));
    drop((ours, copy));
    let _ = raw;
}

/// A pair whose second end has a number.
fn at_number(number: i32) -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    if theirs.as_raw_fd() == number {
        return (ours, theirs);
    }
    if ours.as_raw_fd() == number {
        return (theirs, ours);
    }
    // SAFETY: nobody has this number, or it could not have been closed.
    let mut target = unsafe { OwnedFd::from_raw_fd(number) };
    nix::unistd::dup2(&theirs, &mut target).expect("dup2");
    (ours, target.into())
}

fn signals() {
    let mut events = EventLoop::new().expect("loop");
    assert!(matches!(events.add_signals(&[0]), Err(AddError::Io(_))));
    let numbers = [Signal::SIGUSR1, Signal::SIGUSR2].map(|signal| signal as i32);
    let token = events.add_signals(&numbers).expect("signals");
    raise(Signal::SIGUSR2).expect("raise");
    raise(Signal::SIGUSR1).expect("raise");
    let mut told = [0, 1].map(|_| match next(&mut events) {
        Event::Signal { signals, signal, pid } => {
            assert_eq!((signals, pid), (token, std::process::id() as i32));
            signal
        }
        other => panic!("{other:?}"),
    });
    told.sort_unstable();
    assert_eq!(told, numbers);
    must_be_quiet(&mut events);
    assert!(SigSet::thread_get_mask().expect("mask").contains(Signal::SIGUSR1));
    events.remove(token).expect("there");
    assert!(!SigSet::thread_get_mask().expect("mask").contains(Signal::SIGUSR1));
}

fn wakers() {
    let mut events = EventLoop::new().expect("loop");
    let waker = events.waker();
    (0..10).for_each(|_| waker.wake());
    assert!(matches!(next(&mut events), Event::Woken));
    must_be_quiet(&mut events);
    for _ in 0..200 {
        let waker = waker.clone();
        let thread = std::thread::spawn(move || waker.wake());
        assert!(matches!(next(&mut events), Event::Woken));
        thread.join().expect("thread");
    }
    drop(events);
    waker.wake();
}

/// Whether a loop's descriptor is readable, within a moment.
fn readable(events: &EventLoop, timeout: PollTimeout) -> bool {
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout).expect("poll") == 1
}

fn nested() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut channel = open(&session);
        let mut events = EventLoop::new().expect("loop");
        events.add_session(&session).expect("session");
        events.add_channel(&channel).expect("channel");
        let patience = PollTimeout::from(30_000_u16);
        let drained = |events: &mut EventLoop| {
            let told: Vec<_> = std::iter::from_fn(|| events.wait(Some(Instant::now()))).collect();
            assert!(told.is_empty(), "{told:?}");
            // Upkeep may be due, but not for ever.
            eventually("nothing to tell", || {
                let quiet = !readable(events, PollTimeout::ZERO);
                if !quiet {
                    assert!(events.wait(Some(Instant::now())).is_none());
                }
                quiet.then_some(())
            });
        };
        drained(&mut events);
        for index in 0..50 {
            let question = greet(&channel, &format!("echo {index}"));
            channel.try_send(&question).expect("room");
            while !matches!(events.wait(Some(Instant::now())), Some(Event::Message { .. })) {
                assert!(readable(&events, patience), "a message");
            }
            assert!(readable(&events, PollTimeout::ZERO), "still there");
            assert_eq!(words(&channel.try_recv().expect("open").expect("told")), index.to_string());
            assert!(events.wait(Some(Instant::now())).is_none());
        }
        drained(&mut events);
        events.waker().wake();
        assert!(readable(&events, patience), "a wish");
        assert!(matches!(events.wait(Some(Instant::now())), Some(Event::Woken)));
        drained(&mut events);
        let timer = events.add_timer(Instant::now() + Duration::from_millis(20));
        let fired = eventually("a timer", || {
            assert!(readable(&events, patience), "a timer");
            events.wait(Some(Instant::now()))
        });
        assert!(matches!(fired, Event::Timer { timer: fired } if fired == timer));
        drained(&mut events);
        // In another loop.
        let mut outer = EventLoop::new().expect("loop");
        let inner = outer.add_fd(&events, Readiness::READABLE).expect("descriptor");
        let question = greet(&channel, "echo nested");
        channel.try_send(&question).expect("room");
        loop {
            assert!(matches!(next(&mut outer), Event::External { fd, .. } if fd == inner));
            if let Some(Event::Message { .. }) = events.wait(Some(Instant::now())) {
                break;
            }
        }
        assert_eq!(words(&channel.try_recv().expect("open").expect("told")), "nested");
    });
}

fn forked() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut channel = open(&session);
        let mut events = EventLoop::new().expect("loop");
        events.add_session(&session).expect("session");
        events.add_channel(&channel).expect("channel");
        // SAFETY: the child calls nothing that another thread of this process could hold a lock of: there is none.
        match unsafe { nix::unistd::fork() }.expect("fork") {
            nix::unistd::ForkResult::Child => {
                let told = events.wait(None);
                let said = matches!(told, Some(Event::Error { error: LoopError::ForkedProcess, .. }))
                    && matches!(events.add_channel(&channel), Err(AddError::ForkedProcess));
                drop(events);
                // SAFETY: ends the process at once.
                unsafe { nix::libc::_exit(if said { 0 } else { 1 }) };
            }
            nix::unistd::ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).expect("wait");
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
        let question = greet(&channel, "echo parent");
        channel.try_send(&question).expect("room");
        assert!(matches!(next(&mut events), Event::Message { .. }));
        assert_eq!(words(&channel.try_recv().expect("open").expect("told")), "parent");
    });
}

fn twice() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let channel = open(&session);
        let (mut one, mut two) = (EventLoop::new().expect("loop"), EventLoop::new().expect("loop"));
        let token = one.add_session(&session).expect("session");
        let of_channel = one.add_channel(&channel).expect("channel");
        for events in [&mut one, &mut two] {
            assert!(matches!(events.add_session(&session), Err(AddError::AlreadyAdded)));
            assert!(matches!(events.add_channel(&channel), Err(AddError::AlreadyAdded)));
        }
        one.remove(token).expect("there");
        one.remove(of_channel).expect("there");
        two.add_session(&session).expect("session");
        two.add_channel(&channel).expect("channel");
        let server = Arc::new(ServerApp::new("other").run_dir(place.text()).bind().expect("bind"));
        let token = one.add_server(&server).expect("server");
        assert!(matches!(one.add_server(&server), Err(AddError::AlreadyAdded)));
        server.close();
        assert!(matches!(
            next(&mut one),
            Event::Error { source: Some(source), error: LoopError::Accept(AcceptError::Closed) } if source == token
        ));
        assert!(matches!(one.remove(token), Err(RemoveError::NotFound)));
        must_be_quiet(&mut one);
    });
}
