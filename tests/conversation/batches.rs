//! Many messages at a time: sent together, taken together.

use super::both_ends;
use crate::common::apps::{Place, SHORT, ask, client, greet, open, server, trust, words};
use crate::common::peer::{Peer, hear, say};
use crate::common::{PATIENCE, eventually};
use crate::hello_capnp::hello;
use std::os::fd::OwnedFd;
use strait::{Channel, Message, QuotaScope, SendError, Trust, Wait};

const COUNT: u64 = 1000;

/// Receives until the peer has finished, in batches; says what there was.
pub fn counter(args: &[String]) {
    let app = server(&args[0]).slots(8).allow(&client(), trust(&args[1])).channel::<hello::Owned>("main");
    let server = app.bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel: Channel<hello::Owned> = session.accept_channel().expect("channel");
    let (mut count, mut fds, mut bytes) = (0, 0, 0);
    while let Ok(first) = channel.recv() {
        for message in std::iter::once(Ok(first)).collect::<Vec<_>>().into_iter().chain(channel.try_iter()) {
            let Ok(mut message) = message else { break };
            count += 1;
            assert_eq!(message.id(), count);
            let said = words(&message);
            assert!(said == "again" || said == count.to_string(), "{said} is number {count}");
            fds += message.take_fds().expect("descriptors").len();
            bytes += said.len();
        }
    }
    say(format!("{count} {fds} {bytes}"));
    assert_eq!(hear(), "go");
    drop((channel, session));
}

pub fn in_order() {
    for believing in ["in_place", "snapshot"] {
        let place = Place::new();
        let mut peer = Peer::start("counter", &[place.text(), believing]);
        peer.must_say("ready");
        let session = client().slots(8).connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        let again = greet(&channel, "again");
        // Some are one message, some carry a descriptor, and the ring has eight slots.
        let (mut fds, mut bytes) = (0, 0);
        let all: Vec<Message<hello::Owned>> = (1..=COUNT)
            .map(|number| {
                if number % 3 == 0 {
                    bytes += "again".len();
                    return again.clone();
                }
                bytes += number.to_string().len();
                let mut builder = channel.create_msg();
                builder.init_root().set_greet(number.to_string());
                if number % 100 == 1 {
                    fds += 1;
                    builder.attach_fd(OwnedFd::from(std::fs::File::open("/dev/null").expect("null")));
                }
                builder.freeze().expect("room")
            })
            .collect();
        assert_eq!(channel.send_all(&all), Ok(COUNT));
        assert_eq!(channel.send_all([]), Ok(0));
        channel.finish();
        peer.must_say(&format!("{COUNT} {fds} {bytes}"));
        // Nothing goes the other way.
        eventually("all returned", || (session.on_loan() == (0, 0)).then_some(()));
        assert_eq!(session.end(), None);
        peer.tell("go");
        drop((channel, again, all, session));
        peer.finish();
        place.must_be_empty();
    }
}

pub fn threads() {
    const THREADS: u64 = 4;
    both_ends(16, |ours, theirs| {
        let channel = open(ours);
        let mut other: Channel<hello::Owned> = theirs.accept_channel().expect("accept");
        let (sender, receiver) = channel.split();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let sender = sender.clone();
                scope.spawn(move || {
                    let all = (0..COUNT).map(|number| {
                        let mut builder = sender.create_msg();
                        builder.init_root().set_greet(format!("{thread} {number}"));
                        builder.freeze().expect("room")
                    });
                    let all: Vec<_> = all.collect();
                    assert_eq!(sender.send_all(&all), Ok(COUNT));
                });
            }
            let mut next = [0; THREADS as usize];
            let mut count = 0;
            while count < THREADS * COUNT {
                let first = words(&other.recv_timeout(PATIENCE).expect("message"));
                let rest = other.try_iter().map(|message| words(&message.expect("message")));
                for said in std::iter::once(first).chain(rest) {
                    let (thread, number) = said.split_once(' ').expect("two numbers");
                    let next = &mut next[thread.parse::<usize>().expect("a number")];
                    assert_eq!(number, next.to_string());
                    *next += 1;
                    count += 1;
                }
            }
        });
        eventually("all returned", || {
            let _ = sender.try_send_all([]);
            (ours.on_loan().0 == 0).then_some(())
        });
        drop((sender, receiver));
    });
}

pub fn left() {
    both_ends(64, |ours, theirs| {
        let mut channel = open(ours);
        let mut other: Channel<hello::Owned> = theirs.accept_channel().expect("accept");
        let all: Vec<_> = (0..40).map(|number| greet(&channel, &number.to_string())).collect();
        assert_eq!(channel.send_all(&all), Ok(40));
        let mut taken: Vec<String> = other.try_iter().take(2).map(|message| words(&message.expect("one"))).collect();
        taken.push(words(&other.recv().expect("third")));
        taken.push(words(&other.try_recv().expect("fourth").expect("there")));
        taken.extend(other.try_iter().map(|message| words(&message.expect("the others"))));
        assert_eq!(taken, (0..40).map(|number| number.to_string()).collect::<Vec<_>>());
        assert!(other.try_iter().next().is_none());
        // Those that nobody took go home with the channel.
        assert_eq!(channel.send_all(&all), Ok(40));
        drop(other.try_iter().next());
        drop(other);
        eventually("all returned", || (ours.on_loan().0 == 0).then_some(()));
        assert!(matches!(channel.send_all(&all).expect_err("closed").error, SendError::Ended(_)));
    });
}

pub fn shown() {
    for inline in [0, 32] {
        let place = Place::new();
        let app = place.server().inline_max(inline).allow(&client(), trust("in_place")).channel::<hello::Owned>("main");
        let server = app.clone().bind().expect("bind");
        let connecting = std::thread::spawn(move || {
            let client = client().slots(128).inline_max(inline).trust(trust("in_place"));
            client.connect(&app).expect("connect")
        });
        let theirs = server.accept().expect("accept");
        let ours = connecting.join().expect("thread");
        let mut channel = open(&ours);
        let mut other: Channel<hello::Owned> = theirs.accept_channel().expect("accept");
        let again = greet(&channel, "again");
        let all: Vec<_> =
            (0..100)
                .map(|number| {
                    if number % 2 == 0 {
                        again.clone()
                    } else {
                        greet(&channel, &format!("{number}").repeat(number % 5))
                    }
                })
                .collect();
        let said = |message: &Message<hello::Owned>| match message.reader().get().expect("root").which().expect("known")
        {
            hello::Greet(text) | hello::Answer(text) => text.expect("text").to_string().expect("utf-8"),
        };
        let expected: Vec<_> = all.iter().map(said).collect();
        for _ in 0..5 {
            assert_eq!(channel.send_all(&all), Ok(100));
            // Some are kept behind a request that nobody answers.
            let question = greet(&other, "question");
            assert_eq!(other.request(&question, SHORT).map(drop), Err(strait::RequestError::TimedOut));
            drop(channel.recv().expect("question"));
            let mut found = Vec::new();
            while found.len() < 100 {
                other.recv_each(PATIENCE, |message| found.push(words(message))).expect("messages");
            }
            assert_eq!(found, expected);
            assert_eq!(channel.send_all(&all), Ok(100));
            let mut found = Vec::new();
            while found.len() < 100 {
                other.recv_each(PATIENCE, |message| found.push(words(message))).expect("messages");
            }
            assert_eq!(found, expected);
            eventually("all returned", || (ours.on_loan().0 == 0).then_some(()));
        }
        assert_eq!(other.recv_each(SHORT, |_| ()), Err(strait::RecvError::TimedOut));
        // A look that ends badly costs the peer nothing.
        assert_eq!(channel.send_all(&all), Ok(100));
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            other.recv_each(PATIENCE, |_| panic!("as planned"))
        }));
        assert!(looked.is_err());
        while other.try_recv().expect("open").is_some() {}
        eventually("all returned", || (ours.on_loan().0 == 0).then_some(()));
        drop((channel, other, all, again, ours, theirs, server));
        place.must_be_empty();
    }
}

pub fn stopped() {
    both_ends(4, |ours, theirs| {
        let mut channel = open(ours);
        let mut other: Channel<hello::Owned> = theirs.accept_channel().expect("accept");
        let all: Vec<_> = (0..10).map(|number| greet(&channel, &number.to_string())).collect();
        assert_eq!(channel.try_send_all(&all), Ok(4));
        assert_eq!(channel.try_send_all(&all), Ok(0));
        // What was not sent is not on loan.
        assert_eq!(ours.on_loan().0, 4);
        let error = channel.send_all_timeout(&all, SHORT).expect_err("no room");
        assert_eq!((error.sent, error.error), (0, SendError::TimedOut));
        assert_eq!(ours.on_loan().0, 4);
        let received = other.try_iter().map(|message| words(&message.expect("one"))).collect::<Vec<_>>();
        assert_eq!(received, ["0", "1", "2", "3"]);
        let foreign = greet(&other, "of the other side");
        let mixed = [all[0].clone(), all[1].clone(), foreign];
        let error = channel.send_all(&mixed).expect_err("foreign");
        assert_eq!((error.sent, error.error), (2, SendError::ForeignArena));
        channel.finish();
        let error = channel.send_all(&mixed).expect_err("finished");
        assert_eq!((error.sent, error.error), (0, SendError::Finished));
        assert_eq!(other.try_iter().filter(Result::is_ok).count(), 2);
    });
    let place = Place::new();
    let quota = strait::LoanQuota { loans: 3, bytes: u64::MAX };
    let app = place.server().allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
    let server = app.clone().bind().expect("bind");
    let connecting = std::thread::spawn(move || client().loan_quota(quota).connect(&app).expect("connect"));
    let theirs = server.accept().expect("accept");
    let ours = connecting.join().expect("thread");
    let mut channel = open(&ours);
    let message = greet(&channel, "again");
    let error = channel.send_all(std::iter::repeat_n(&message, 5)).expect_err("a quota");
    assert_eq!(error.sent, 3);
    assert!(matches!(error.error, SendError::Quota(exceeded) if exceeded.scope == QuotaScope::Session));
    drop((channel, message, ours, theirs, server));
    place.must_be_empty();
}

pub fn asleep() {
    both_ends(2, |ours, theirs| {
        for wait in [Wait::Park, Wait::Adaptive] {
            let mut channel = open(ours);
            let mut other: Channel<hello::Owned> = theirs.accept_channel().expect("accept");
            channel.set_wait(wait);
            let message = greet(&channel, "again");
            assert_eq!(channel.try_send_all(std::iter::repeat_n(&message, 3)), Ok(2));
            assert_eq!(channel.wait_stats().stalls, 0);
            assert_eq!(channel.send_timeout(&message, SHORT), Err(SendError::TimedOut));
            assert!(channel.wait_stats().stalls > 0, "{wait:?}");
            // And wakes when there is room.
            let sending = std::thread::spawn(move || {
                channel.send_all(std::iter::repeat_n(&message, 100)).expect("room");
                channel
            });
            for _ in 0..102 {
                drop(other.recv_timeout(PATIENCE).expect("message"));
            }
            drop(sending.join().expect("thread"));
        }
    });
}

pub fn promised() {
    both_ends(8, |ours, theirs| {
        let mut channel = open(ours);
        let mut other: Channel<hello::Owned> = theirs.accept_channel().expect("accept");
        let answering = std::thread::spawn(move || {
            for _ in 0..100 {
                let question = other.recv_timeout(PATIENCE).expect("question");
                other.promise_soon();
                let answer = greet(&other, &words(&question));
                other.reply(&question, &answer).expect("reply");
            }
            // One that is not kept.
            other.promise_soon();
            other
        });
        for number in 0..100 {
            assert_eq!(ask(&mut channel, &number.to_string()), number.to_string());
        }
        let other = answering.join().expect("thread");
        assert_eq!(channel.recv_timeout(SHORT).map(drop), Err(strait::RecvError::TimedOut));
        drop(other);
    });
}
