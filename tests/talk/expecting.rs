//! Expectations: which receiver a message goes to, by the tag of its union.

use super::{ANSWER, GREET, ask, both_ends, number, tell, with_halves, with_host};
use crate::common::apps::{SHORT, TRUSTS, open};
use crate::common::{PATIENCE, apps, eventually};
use std::thread;
use std::time::Duration;
use strait::{ExpectError, RecvError, RequestError, Wait};

pub fn expectations() {
    for believing in TRUSTS {
        with_halves(believing, Wait::Adaptive, |sender, mut receiver, peer| {
            // Before they come, in another thread.
            let mut answers = receiver.expect(ANSWER).expect("free");
            assert_eq!(receiver.expect(ANSWER).map(drop), Err(ExpectError::Taken(ANSWER)));
            tell(&sender, "tags 2000");
            thread::scope(|scope| {
                scope.spawn(|| {
                    for odd in (1..2_000).step_by(2) {
                        assert_eq!(number(answers.recv_timeout(PATIENCE)), odd);
                    }
                    assert!(answers.try_recv().expect("open").is_none());
                });
                for even in (0..2_000).step_by(2) {
                    assert_eq!(number(receiver.recv_timeout(PATIENCE)), even);
                }
            });
            drop(answers);
            // After they came.
            tell(&sender, "tags 10");
            assert_eq!(ask(&sender, "echo all here"), "all here");
            let mut greetings = receiver.expect(GREET).expect("free");
            let mut first = receiver.expect_once(ANSWER).expect("free");
            assert_eq!(number(first.recv()), 1);
            assert_eq!(first.recv().map(drop), Err(RecvError::Finished));
            assert!(first.next().is_none());
            let mut second = receiver.expect_once(ANSWER).expect("free again");
            assert_eq!(number(second.recv()), 3);
            for odd in [5, 7, 9] {
                assert_eq!(number(receiver.recv()), odd);
            }
            for even in [0, 2, 4, 6, 8] {
                assert_eq!(number(greetings.recv()), even);
            }
            assert_eq!(greetings.recv_timeout(SHORT).map(drop), Err(RecvError::TimedOut));
            // One that nobody will ever send is no hindrance.
            let mut never = receiver.expect(999).expect("free");
            assert_eq!(never.recv_timeout(Duration::ZERO).map(drop), Err(RecvError::TimedOut));
            tell(&sender, "finish");
            assert_eq!(greetings.recv().map(drop), Err(RecvError::Finished));
            assert_eq!(never.next().map(drop), None);
            drop((sender, receiver));
            peer.must_say("finished");
        });
    }
}

pub fn unexpected() {
    with_halves("snapshot", Wait::Adaptive, |sender, mut receiver, peer| {
        let mut answers = receiver.expect(ANSWER).expect("free");
        tell(&sender, "tags 10");
        assert_eq!(number(answers.recv_timeout(PATIENCE)), 1);
        assert_eq!(number(receiver.recv_timeout(PATIENCE)), 0);
        assert_eq!(ask(&sender, "echo all here"), "all here");
        drop(answers);
        // What it had goes back to where it belongs in the order.
        for index in 2..10 {
            assert_eq!(number(receiver.recv()), index);
        }
        // With no receiver, it goes home; so does what the receiver had.
        let answers = receiver.expect(ANSWER).expect("free");
        tell(&sender, "tags 10");
        assert_eq!(ask(&sender, "echo all here"), "all here");
        drop(receiver);
        drop(answers);
        eventually("all home", || {
            (ask(&sender, "loans").starts_with("(0") || ask(&sender, "loans").starts_with("(1")).then_some(())
        });
        drop(sender);
        peer.must_say("finished");
    });
}

pub fn no_union() {
    both_ends::<capnp::schema_capnp::brand::Owned>(16, |channel, _other| {
        let (_sender, receiver) = channel.split();
        assert_eq!(receiver.expect(0).map(drop), Err(ExpectError::NoUnion));
    });
}

pub fn kept_before() {
    with_host("snapshot", Wait::Adaptive, |session, peer| {
        let mut channel = open(session);
        let message = apps::greet(&channel, "tags 10");
        channel.send(&message).expect("send");
        let late = apps::greet(&channel, "later");
        assert_eq!(channel.request(&late, SHORT).map(drop), Err(RequestError::TimedOut));
        assert_eq!(apps::ask(&mut channel, "echo kept by now"), "kept by now");
        let (sender, mut receiver) = channel.split();
        let mut odd = receiver.expect(ANSWER).expect("free");
        for number_there in 0..10 {
            let from = if number_there % 2 == 0 { receiver.recv() } else { odd.recv() };
            assert_eq!(number(from), number_there);
        }
        // A request given up before the split is still known as such.
        tell(&sender, "now");
        assert_eq!(ask(&sender, "unexpected"), "0");
        assert_eq!(ask(&sender, "unexpected"), "0");
        drop((sender, receiver, odd));
        peer.must_say("finished");
    });
}
