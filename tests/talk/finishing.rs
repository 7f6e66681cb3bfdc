//! One direction ends, from either side, in good order or not; and who waits until what was sent is received.

use super::{Hello, both_ends, cause, stream, tell, text, with_halves};
use crate::common::apps::{Place, SHORT, TRUSTS, client, open, words};
use crate::common::peer::Peer;
use crate::common::{PATIENCE, apps};
use std::thread;
use strait::{DrainError, Ended, RecvError, RequestError, SendError, Wait};

pub fn finish_here() {
    for believing in TRUSTS {
        with_halves(believing, Wait::Adaptive, |sender, mut receiver, peer| {
            tell(&sender, "later");
            for round in 0..200 {
                tell(&sender, if round == 0 { "notices 200" } else { "notices 0" });
            }
            let other = sender.clone();
            let message = text(&sender, "echo too late");
            let replies = stream(&sender, "stream 3");
            drop(sender);
            other.finish();
            assert_eq!(other.send(&message), Err(SendError::Finished));
            assert_eq!(other.try_send(&message), Err(SendError::Finished));
            assert_eq!(other.request(&message, SHORT).map(drop), Err(RequestError::Send(SendError::Finished)));
            other.finish();
            drop(other);
            peer.must_say("finished");
            // The other direction goes on: notices, answers to what was asked before, and what is said last.
            assert_eq!(replies.filter(Result::is_ok).count(), 3);
            for index in 0..200 {
                assert_eq!(words(&receiver.recv_timeout(PATIENCE).expect("notice")), format!("notice {index}"));
            }
            assert_eq!(words(&receiver.recv_timeout(PATIENCE).expect("notice")), "goodbye");
            // The host has dropped both halves by now, or soon.
            assert_eq!(receiver.recv().map(drop), Err(RecvError::Finished));
        });
    }
}

pub fn finish_there() {
    for believing in TRUSTS {
        with_halves(believing, Wait::Park, |sender, mut receiver, peer| {
            tell(&sender, "notices 100");
            tell(&sender, "finish");
            for index in 0..100 {
                assert_eq!(words(&receiver.recv_timeout(PATIENCE).expect("notice")), format!("notice {index}"));
            }
            assert_eq!(receiver.recv().map(drop), Err(RecvError::Finished));
            assert_eq!(receiver.try_recv().map(drop), Err(RecvError::Finished));
            assert!(receiver.next().is_none());
            // Nobody answers any more, and those who ask learn it at once.
            let question = text(&sender, "unanswered");
            let Err(RequestError::Ended(ended)) = sender.request(&question, PATIENCE) else { panic!("answered") };
            assert_eq!(ended.cause, Ended::Finished);
            assert_eq!(cause(stream(&sender, "unanswered").recv()), Ended::Finished);
            peer.must_say("heard unanswered");
            peer.must_say("heard unanswered");
            for index in 0..300 {
                tell(&sender, &format!("{index}"));
                peer.must_say(&format!("heard {index}"));
            }
            drop(sender);
            peer.must_say("finished");
            // An end in good order remains one, whatever the other side does next.
            assert_eq!(receiver.recv().map(drop), Err(RecvError::Finished));
        });
    }
}

pub fn finish_whole() {
    both_ends::<Hello>(64, |mut ours, mut theirs| {
        let message = apps::greet(&ours, "x");
        (0..10).for_each(|_| assert!(ours.send(&message).is_ok()));
        ours.finish();
        ours.finish();
        assert_eq!(ours.send(&message), Err(SendError::Finished));
        assert_eq!(ours.request(&message, SHORT).map(drop), Err(RequestError::Send(SendError::Finished)));
        assert_eq!(ours.drain(SHORT), Err(DrainError::TimedOut));
        (0..10).for_each(|_| drop(theirs.recv_timeout(PATIENCE).expect("sent before")));
        assert_eq!(theirs.recv().map(drop), Err(RecvError::Finished));
        ours.drain(PATIENCE).expect("all taken");
        let answer = apps::greet(&theirs, "y");
        let Err(RequestError::Ended(ended)) = theirs.request(&answer, PATIENCE) else { panic!("answered") };
        assert_eq!(ended.cause, Ended::Finished);
        theirs.send(&answer).expect("the other direction is open");
        let closing = thread::spawn(move || theirs.close(PATIENCE));
        assert_eq!(words(&ours.recv().expect("request")), "y");
        assert_eq!(words(&ours.recv().expect("notice")), "y");
        assert_eq!(closing.join().expect("thread"), Ok(()));
        assert_eq!(ours.recv().map(drop), Err(RecvError::Finished));
    });
    // Nobody takes anything: closed all the same, when time is up.
    both_ends::<Hello>(64, |mut ours, mut theirs| {
        let message = apps::greet(&ours, "x");
        ours.send(&message).expect("send");
        assert_eq!(ours.close(SHORT), Err(DrainError::TimedOut));
        assert_eq!(words(&theirs.recv_timeout(PATIENCE).expect("sent before")), "x");
        assert_eq!(theirs.recv().map(drop), Err(RecvError::Finished));
    });
}

pub fn cut_short() {
    both_ends::<Hello>(64, |ours, theirs| {
        let (sender, receiver) = ours.split();
        let (other, mut asked) = theirs.split();
        let mut replies = stream(&sender, "x");
        let question = asked.recv().expect("question");
        assert!(question.is_request());
        let part = text(&other, "part");
        other.reply_more(&question, &part).expect("reply");
        drop(other);
        assert_eq!(words(&replies.recv().expect("part")), "part");
        assert_eq!(cause(replies.recv()), Ended::Finished);
        assert_eq!(cause(replies.next().expect("told once")), Ended::Finished);
        assert!(replies.next().is_none());
        drop((receiver, sender, asked));
    });
}

pub fn drained() {
    with_halves("snapshot", Wait::Adaptive, |sender, receiver, peer| {
        sender.drain(PATIENCE).expect("nothing was sent");
        tell(&sender, "gate");
        (0..20).for_each(|_| tell(&sender, "notices 0"));
        assert_eq!(sender.drain(SHORT), Err(DrainError::TimedOut));
        peer.tell("open");
        sender.drain(PATIENCE).expect("all taken");
        tell(&sender, "gate");
        tell(&sender, "notices 0");
        sender.finish();
        let draining = {
            let sender = sender.clone();
            thread::spawn(move || sender.drain(PATIENCE))
        };
        peer.tell("open");
        assert_eq!(draining.join().expect("thread"), Ok(()));
        peer.must_say("finished");
        drop((sender, receiver));
    });
    // A peer that dies has not taken everything.
    let place = Place::new();
    let mut peer = Peer::start("host", &[place.text(), "snapshot"]);
    peer.must_say("ready");
    let session = client().connect(&place.server()).expect("connect");
    let (sender, _receiver) = open(&session).split();
    tell(&sender, "gate");
    (0..20).for_each(|_| tell(&sender, "notices 0"));
    let draining = thread::spawn(move || sender.drain(4 * PATIENCE));
    peer.kill();
    match draining.join().expect("thread") {
        Err(DrainError::Ended(ended)) => assert_eq!(ended.cause, Ended::PeerDied),
        other => panic!("{other:?}"),
    }
}
