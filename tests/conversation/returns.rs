//! What is lent comes home: sent many times, dropped elsewhere, never read, held for long.

use super::{all_returned, both_ends};
use crate::common::apps::{Place, SHORT, TRUSTS, client, greet, open, server, trust, words};
use crate::common::obliging::{connect, with_server};
use crate::common::peer::{Peer, hear, say};
use crate::common::{PATIENCE, apps, eventually};
use crate::hello_capnp::hello;
use std::sync::mpsc;
use strait::{Received, RequestError, SendError, Trust};

const TIMES: usize = 100;

pub fn two_sessions(args: &[String]) {
    let sessions = [0, 1].map(|_| client().trust(trust(&args[1])).connect(&server(&args[0])).expect("connect"));
    let mut channels = sessions.each_ref().map(open);
    for channel in &mut channels {
        for id in 1..=TIMES as u64 {
            let received = channel.recv_timeout(PATIENCE).expect("recv");
            assert_eq!((words(&received).as_str(), received.id()), ("to all", id));
        }
    }
    say("read");
    hear();
}

pub fn many_times() {
    for believing in TRUSTS {
        let place = Place::new();
        let app = place.server().allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
        let server = app.bind().expect("bind");
        let mut peer = Peer::start("two sessions", &[place.text(), believing]);
        let sessions = [0, 1].map(|_| server.accept().expect("accept"));
        let mut channels = sessions.each_ref().map(|session| session.accept_channel().expect("channel"));
        let mut builder = server.create_msg::<hello::Owned>();
        builder.init_root().set_greet("to all");
        let message = builder.freeze().expect("room");
        for _ in 0..TIMES {
            for channel in &mut channels {
                channel.send(&message).expect("send");
            }
        }
        peer.must_say("read");
        // Nothing goes the other way, so the loans come home on their own.
        eventually("all returned", || sessions.iter().all(|session| session.on_loan() == (0, 0)).then_some(()));
        assert!(message.reader().get().is_ok());
        drop((channels, sessions, message));
        peer.tell("go");
        peer.finish();
        drop(server);
        place.must_be_empty();
    }
}

pub fn dropped_elsewhere() {
    with_server("in_place", |place, _| {
        let session = connect(place, trust("in_place"));
        let mut channel = open(&session);
        let (give, take) = mpsc::channel::<Received<hello::Owned>>();
        let thread = std::thread::spawn(move || take.into_iter().map(|received| words(&received).len()).sum::<usize>());
        for _ in 0..1_000 {
            let message = greet(&channel, "echo abc");
            give.send(channel.request(&message, PATIENCE).expect("answer")).expect("thread");
        }
        drop(give);
        assert_eq!(thread.join().expect("thread"), 3_000);
        all_returned(&mut channel);
        assert!(session.on_loan().0 <= 1, "the last question may still be on its way home");
    });
}

/// Each length that fits some slots, between others, over a ring of four that has room for two at a time.
pub fn inside_several() {
    for believed in TRUSTS {
        let place = Place::new();
        let app = place.server().slots(4).inline_max(500).allow(&client(), trust(believed));
        let app = app.channel::<hello::Owned>("main");
        let server = app.clone().bind().expect("bind");
        let connecting = std::thread::spawn(move || {
            client().slots(8).inline_max(500).trust(trust(believed)).connect(&app).expect("connect")
        });
        let theirs = server.accept().expect("accept");
        let ours = connecting.join().expect("thread");
        let mut asking = open(&ours);
        let mut answering = theirs.accept_channel::<hello::Owned>().expect("accept");
        for round in 0..3_000 {
            let words = "x".repeat(round * 7 % 240);
            asking.send(&greet(&asking, &words)).expect("send");
            let question = answering.recv().expect("question");
            assert_eq!(apps::words(&question), words);
            answering.reply(&question, &greet(&answering, &words)).expect("reply");
            let answer = asking.recv().expect("answer");
            assert_eq!((apps::words(&answer), answer.in_reply_to()), (words, Some(question.id())));
        }
        // Half a ring of four holds eleven words: root, tag, pointer, and a text of 63 bytes with its end.
        for (bytes, lent) in [(63, 0), (64, 1)] {
            let before = theirs.on_loan().0;
            answering.send(&greet(&answering, &"x".repeat(bytes))).expect("send");
            assert_eq!(theirs.on_loan().0, before + lent);
            drop(asking.recv().expect("recv"));
        }
        // Room for one of two slots is no room.
        let two = greet(&answering, &"x".repeat(63));
        answering.send(&two).expect("send");
        answering.send(&greet(&answering, "x")).expect("send");
        assert_eq!(answering.try_send(&two), Err(SendError::Full));
        assert_eq!(answering.send_timeout(&two, SHORT), Err(SendError::TimedOut));
        let taking = std::thread::spawn(move || {
            for bytes in [63, 1, 63] {
                assert_eq!(apps::words(&asking.recv().expect("recv")).len(), bytes);
            }
            asking
        });
        answering.send(&two).expect("send");
        drop((taking.join().expect("thread"), answering, ours, theirs, server));
        place.must_be_empty();
    }
}

pub fn inside() {
    for believed in TRUSTS {
        let place = Place::new();
        let app = place.server().inline_max(32).allow(&client(), trust(believed)).channel::<hello::Owned>("main");
        let server = app.clone().bind().expect("bind");
        let connecting =
            std::thread::spawn(move || client().inline_max(24).trust(trust(believed)).connect(&app).expect("connect"));
        let theirs = server.accept().expect("accept");
        let ours = connecting.join().expect("thread");
        let mut asking = open(&ours);
        let mut answering = theirs.accept_channel::<hello::Owned>().expect("accept");
        // Root pointer, tag and pointer are three words, a text and its end the rest: up to 7 bytes make 32.
        for (words, answers) in [("", "1234567"), ("1234567", "12345678"), ("12345678", "")] {
            let (asked, before) = (words, ours.on_loan().0);
            asking.send(&greet(&asking, asked)).expect("send");
            // Three words and the empty text's one make 32 bytes, more than this side's limit.
            assert_eq!(ours.on_loan().0, before + 1);
            let question = answering.recv().expect("question");
            assert_eq!(apps::words(&question), asked);
            let before = theirs.on_loan().0;
            answering.reply(&question, &greet(&answering, answers)).expect("reply");
            assert_eq!(theirs.on_loan().0, before + usize::from(answers.len() > 7), "{answers}");
            let answer = asking.recv().expect("answer");
            assert_eq!((apps::words(&answer).as_str(), answer.in_reply_to()), (answers, Some(question.id())));
        }
        // What small messages leave no room for goes home in slots of its own.
        for round in 0..1000 {
            let long = greet(&asking, "more than fits a slot");
            asking.send(&long).expect("send");
            drop(answering.recv().expect("question"));
            answering.send(&greet(&answering, "short")).expect("send");
            assert_eq!(apps::words(&asking.recv().expect("answer")), "short", "{round}");
            assert!(ours.on_loan().0 < 16, "{:?}", ours.on_loan());
        }
        drop((asking, answering, ours, theirs, server));
        place.must_be_empty();
    }
}

pub fn unread() {
    both_ends(64, |ours, theirs| {
        for _ in 0..3 {
            let mut channel = open(ours);
            let mut other = theirs.accept_channel::<hello::Owned>().expect("accept");
            let answer = greet(&other, "x");
            for _ in 0..40 {
                other.send(&answer).expect("send");
            }
            let question = greet(&channel, "y");
            for _ in 0..40 {
                channel.send(&question).expect("send");
            }
            // Some are kept behind a request that nobody answers, the rest stay in the ring.
            assert_eq!(channel.request(&question, SHORT).map(drop), Err(RequestError::TimedOut));
            drop(channel);
            drop(other);
            eventually("both books empty", || (ours.on_loan().0 + theirs.on_loan().0 == 0).then_some(()));
        }
    });
}

pub fn many_held() {
    both_ends(256, |ours, theirs| {
        let mut channel = open(ours);
        let mut other = theirs.accept_channel::<hello::Owned>().expect("accept");
        let answer = greet(&other, "x");
        let held: Vec<_> = (0..40_000)
            .map(|_| {
                other.send(&answer).expect("send");
                channel.recv().expect("recv")
            })
            .collect();
        assert_eq!(theirs.on_loan().0, 40_000);
        drop(held);
        eventually("all home", || (theirs.on_loan().0 == 0).then_some(()));
        assert_eq!((ours.end(), theirs.end()), (None, None));
    });
}
