//! Clients and servers that talk in a loop: messages, answers, room, channels opened later, ends in good order.

use super::{Answering, must_be_quiet, next};
use crate::common::apps::{Place, ask, client, greet, open, server, words};
use crate::common::obliging::{connect, with_server};
use crate::common::peer::{Peer, hear, say};
use crate::common::{PATIENCE, census};
use crate::hello_capnp::hello;
use std::time::Duration;
use strait::event::{Event, EventLoop};
use strait::{Backing, Ended, SendError, Trust};

/// As it crosses a command line.
fn backing(word: Option<&String>) -> Backing {
    if word.is_some_and(|word| *word == format!("{:?}", Backing::Heap)) { Backing::Heap } else { Backing::Memfd }
}

/// So many sessions, each of which asks so often; then they go, each in its own way.
pub fn talkers(args: &[String]) {
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

pub fn clients(backing: Backing) {
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

pub fn client_side() {
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
pub fn receiver(args: &[String]) {
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

pub fn writable(backing: Backing) {
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

pub fn later_channels() {
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

pub fn kinds() {
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
