//! Peers that die, flood, dawdle, lie and ring for nothing.

use super::{Answering, next};
use crate::common::apps::{Place, SHORT, client, greet, open, server};
use crate::common::peer::Peer;
use crate::hello_capnp::hello;
use crate::raw::{Frame, Raw, Socket};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strait::event::{Event, EventLoop, LoopError, Readiness, Token};
use strait::{AcceptError, Channel, Ended, Session, Trust};

pub fn death() {
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

/// Sends as fast as it can until told to stop.
pub fn flooder(args: &[String]) {
    let session = client().channel::<hello::Owned>("main").connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    let message = greet(&channel, "flood");
    while channel.send(&message).is_ok() {}
}

pub fn flood() {
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

pub fn strangers() {
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

/// A slot that is seen before its descriptors: nothing is told of it, nor of what lies behind it, until they are there.
pub fn late_descriptors() {
    let place = Place::new();
    let mut answering = Answering::new(place.server().allow(&strait::ClientApp::new("raw"), Trust::snapshot()));
    let dir = place.path().to_owned();
    let hostile = std::thread::spawn(move || Raw::login(&dir));
    while !hostile.is_finished() || answering.channels.is_empty() {
        let event = answering.events.wait(Some(Instant::now() + Duration::from_millis(1)));
        assert!(event.is_none_or(|event| answering.answer(event).is_none()));
    }
    let mut raw = hostile.join().expect("thread");
    let knock = || Frame::control(10, 1).u32(8, 1);
    let quiet = |answering: &mut Answering| {
        let event = answering.events.wait(Some(Instant::now() + SHORT));
        assert!(event.is_none(), "{event:?}");
    };
    for round in 0..6_u64 {
        let mut payload = raw.lane.compose("with a descriptor");
        let number = raw.lane.sent;
        payload[0] |= 1 << 40;
        raw.lane.put(payload);
        raw.lane.say("behind it");
        assert!(raw.socket.say(&knock()));
        quiet(&mut answering);
        let channel = *answering.channels.keys().next().expect("one");
        // Looked for in vain, it has left its slot.
        if round % 2 == 0 {
            let found = answering.channels.get_mut(&channel).expect("known").try_recv().expect("open");
            assert!(found.is_none());
            assert!(raw.socket.say(&knock()));
            quiet(&mut answering);
        }
        let null = std::fs::File::open("/dev/null").expect("null");
        let frame = Frame::control(7, 1).u64(8, number).u32(16, 1);
        assert!(raw.socket.send(&frame.0, &[null.as_fd()]));
        for expected in [1, 0] {
            assert!(matches!(next(&mut answering.events), Event::Message { .. }));
            let received = answering.channels.get_mut(&channel).expect("known").try_recv().expect("open");
            assert_eq!(received.expect("told").take_fds().expect("here").len(), expected);
        }
    }
    drop(raw);
    assert_eq!(answering.until_all_ended(), [Ended::PeerDied]);
}

pub fn doorbells() {
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
