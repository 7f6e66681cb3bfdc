//! Messages and answers, of every size, to one and to many, through rings that fill.

use super::{SLOTS, backing, client_app, connect, server_app, with_server, word};
use crate::bulk::{check_file, file};
use crate::cache_capnp::cache;
use crate::common::apps::{Place, SHORT, ask, greet, open, server, words};
use crate::common::peer::{Peer, hear, say};
use crate::common::{PATIENCE, eventually};
use crate::hello_capnp::hello;
use strait::{Backing, RecvError, RequestError, SendError};

pub fn messages_come_in_order(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let mut channel = open(&session);
        channel.send(&greet(&channel, "burst 2000")).expect("send");
        for index in 0..2_000 {
            let received = channel.recv_timeout(PATIENCE).expect("recv");
            assert_eq!((words(&received), received.id()), (format!("burst {index}"), index + 1));
        }
        assert_eq!(words(&channel.recv().expect("recv")), "done");
        for _ in 0..2_000 {
            channel.send_timeout(&greet(&channel, "note"), PATIENCE).expect("send");
        }
        assert_eq!(ask(&mut channel, "heard"), "2002");
    });
}

pub fn requests_are_answered(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let mut channel = open(&session);
        for index in 0..500 {
            assert_eq!(ask(&mut channel, &format!("echo {index}")), index.to_string());
        }
        let id = channel.send(&greet(&channel, "echo again")).expect("send");
        let answer = channel.recv().expect("recv");
        assert_eq!((words(&answer).as_str(), answer.in_reply_to()), ("again", Some(id)));
        assert!(channel.try_recv().expect("open").is_none());
        assert_eq!(channel.recv_timeout(SHORT).map(drop), Err(RecvError::TimedOut));
        // Nothing at all can be said, too.
        let nothing = channel.create_msg().freeze().expect("room");
        assert_eq!(words(&channel.request(&nothing, PATIENCE).expect("answer")), "?");
    });
}

const LARGE: usize = 100 << 20;

pub fn file_server(args: &[String]) {
    let app = server_app(&args[0], backing(&args[1])).channel::<cache::Owned>("files");
    let server = app.bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<cache::Owned>().expect("channel");
    let segmented = channel.recv().expect("recv");
    check_file(&segmented, 40, 50_000);
    let large = file(&channel, 1, LARGE, true);
    assert_eq!(large.segments().len(), 1);
    channel.reply(&segmented, &large).expect("reply");
    drop((segmented, large));
    let back = channel.recv().expect("recv");
    check_file(&back, 3, LARGE / 3);
    channel.reply(&back, &file(&channel, 40, 50_000, false)).expect("reply");
    assert!(matches!(channel.recv(), Err(RecvError::Ended(_))));
}

pub fn large_messages_and_many_segments(backing: Backing) {
    let place = Place::new();
    let mut peer = Peer::start("files", &[place.text(), word(backing)]);
    peer.must_say("ready");
    let session = client_app(backing).connect(&place.server()).expect("connect");
    let mut channel = session.open_channel::<cache::Owned>("files", PATIENCE).expect("channel");
    let segmented = file(&channel, 40, 50_000, false);
    assert!(segmented.segments().len() > 2, "meant to have several segments");
    let large = channel.request(&segmented, PATIENCE).expect("answer");
    check_file(&large, 1, LARGE);
    let back = file(&channel, 3, LARGE / 3, false);
    assert!(back.segments().len() > 1, "meant to have several segments");
    check_file(&channel.request(&back, PATIENCE).expect("answer"), 40, 50_000);
    drop((segmented, back, large, channel, session));
    peer.finish();
    place.must_be_empty();
}

pub fn a_full_channel_waits_and_goes_on(backing: Backing) {
    with_server(backing, |place, peer| {
        let session = connect(place, backing);
        let mut channel = open(&session);
        channel.send(&greet(&channel, "gate")).expect("send");
        let note = greet(&channel, "note");
        // The one that waits at the gate may leave its slot a little later.
        let mut sent = 0;
        let refused = loop {
            match channel.send_timeout(&note, SHORT) {
                Ok(_) => sent += 1,
                Err(refused) => break refused,
            }
            assert!(sent <= u64::from(SLOTS), "nobody empties it");
        };
        assert_eq!(refused, SendError::TimedOut);
        assert_eq!(channel.try_send(&note), Err(SendError::Full));
        peer.tell("open the gate");
        channel.send_timeout(&note, PATIENCE).expect("room again");
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "passed");
        // The one at the gate, the one that found room again, and this question.
        assert_eq!(ask(&mut channel, "heard"), (sent + 3).to_string());
    });
}

pub fn a_stuck_channel_leaves_the_others_alone(backing: Backing) {
    with_server(backing, |place, peer| {
        let session = connect(place, backing);
        let (mut stuck, mut other) = (open(&session), open(&session));
        stuck.send(&greet(&stuck, "gate")).expect("send");
        let large = greet(&stuck, &"x".repeat(300_000));
        while stuck.try_send(&large).is_ok() {}
        (0..100).for_each(|index| assert_eq!(ask(&mut other, &format!("echo {index}")), index.to_string()));
        peer.tell("open the gate");
        assert_eq!(words(&stuck.recv_timeout(PATIENCE).expect("recv")), "passed");
    });
}

pub fn both_directions_at_once(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let mut channel = open(&session);
                std::thread::spawn(move || {
                    let text = "y".repeat(10_000);
                    for index in 0..100 {
                        let question = format!("echo {thread} {index} {text}");
                        assert_eq!(ask(&mut channel, &question), question[5..]);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("talk"));
    });
}

pub fn late_answers_are_dropped(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let mut channel = open(&session);
        let later = greet(&channel, "later");
        assert_eq!(channel.request(&later, SHORT).map(drop), Err(RequestError::TimedOut));
        assert_eq!(ask(&mut channel, "echo now"), "now");
        assert_eq!(channel.recv_timeout(SHORT).map(drop), Err(RecvError::TimedOut));
    });
}

const TIMES: u64 = 100;

pub fn hearers(args: &[String]) {
    let sessions = [0, 1].map(|_| client_app(backing(&args[1])).connect(&server(&args[0])).expect("connect"));
    let mut channels = sessions.each_ref().map(open);
    // In turns: each has room for a few only.
    for id in 1..=TIMES {
        for channel in &mut channels {
            let received = channel.recv_timeout(PATIENCE).expect("recv");
            assert_eq!((words(&received).as_str(), received.id()), ("to all", id));
        }
    }
    say("read");
    hear();
}

pub fn one_message_to_many_sessions(backing: Backing) {
    let place = Place::new();
    let server = server_app(place.text(), backing).channel::<hello::Owned>("main").bind().expect("bind");
    let mut peer = Peer::start("hearers", &[place.text(), word(backing)]);
    let sessions = [0, 1].map(|_| server.accept().expect("accept"));
    let mut channels = sessions.each_ref().map(|session| session.accept_channel().expect("channel"));
    let mut builder = server.create_msg::<hello::Owned>();
    builder.init_root().set_greet("to all");
    let message = builder.freeze().expect("room");
    for _ in 0..TIMES {
        for channel in &mut channels {
            channel.send_timeout(&message, PATIENCE).expect("send");
        }
    }
    peer.must_say("read");
    eventually("all returned", || sessions.iter().all(|session| session.on_loan() == (0, 0)).then_some(()));
    assert!(message.reader().get().is_ok());
    drop((channels, sessions, message));
    peer.tell("go");
    peer.finish();
    drop(server);
    place.must_be_empty();
}

/// Between others, and in order.
pub fn small_messages_travel_inside_their_slots(backing: Backing) {
    let place = Place::new();
    let mut peer = Peer::start("obliging", &[place.text(), word(backing), "88"]);
    peer.must_say("ready");
    let app = client_app(backing).inline_max(88).channel::<hello::Owned>("main");
    let session = app.connect(&place.server()).expect("connect");
    let mut channel = open(&session);
    for round in 0..100 {
        assert_eq!(ask(&mut channel, &format!("echo {round}")), round.to_string());
        let long = "long".repeat(round + 10);
        assert_eq!(ask(&mut channel, &format!("echo {long}")), long);
    }
    eventually("all is home", || (session.on_loan() == (0, 0)).then_some(()));
    // Nothing is lent, whether it has been received or not.
    for _ in 0..SLOTS {
        channel.send_timeout(&greet(&channel, "note"), PATIENCE).expect("send");
        assert_eq!(session.on_loan(), (0, 0));
    }
    assert_eq!(ask(&mut channel, "heard"), (200 + u64::from(SLOTS) + 1).to_string());
    channel.send(&greet(&channel, "burst 500")).expect("send");
    for index in 0..500 {
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), format!("burst {index}"));
    }
    assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "done");
    drop((channel, session));
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}
