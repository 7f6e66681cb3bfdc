//! Those who wait, for answers, for room, and behind more than is kept; and what wakes them.

use super::{ANSWER, Hello, THREADS, WAITS, ask, cause, stream, tell, text, with_halves, with_host};
use crate::common::apps::{Place, SHORT, TRUSTS, client, open, trust, words};
use crate::common::peer::Peer;
use crate::common::{PATIENCE, eventually};
use std::thread;
use strait::{Ended, Expected, Receiver, RecvError, RequestError, SendError, Sender, Wait};

/// All that can wait, each in a thread; they tell how their waits ended.
fn waiters(sender: &Sender<Hello>, receiver: Receiver<Hello>, question: &str) -> Vec<thread::JoinHandle<Ended>> {
    let mut threads = Vec::new();
    for _ in 0..THREADS {
        let (sender, message) = (sender.clone(), text(sender, question));
        threads.push(thread::spawn(move || match sender.request(&message, 4 * PATIENCE) {
            Err(RequestError::Ended(ended)) => ended.cause,
            other => panic!("{other:?}"),
        }));
    }
    let mut expected: Expected<Hello> = receiver.expect(ANSWER).expect("free");
    threads.push(thread::spawn(move || cause(expected.recv())));
    let mut replies = stream(sender, question);
    threads.push(thread::spawn(move || cause(replies.recv())));
    let mut receiver = receiver;
    threads.push(thread::spawn(move || cause(receiver.recv())));
    threads
}

fn wait_for_all(threads: Vec<thread::JoinHandle<Ended>>, expected: Ended) {
    for thread in threads {
        assert_eq!(thread.join().expect("thread"), expected);
    }
}

pub fn killed() {
    for wait in WAITS {
        let place = Place::new();
        let mut peer = Peer::start("host", &[place.text(), "snapshot"]);
        peer.must_say("ready");
        let session = client().wait(wait).connect(&place.server()).expect("connect");
        let (sender, receiver) = open(&session).split();
        let threads = waiters(&sender, receiver, "silence");
        (0..=THREADS).for_each(|_| peer.must_say("silent"));
        peer.kill();
        wait_for_all(threads, Ended::PeerDied);
        let message = text(&sender, "x");
        assert!(matches!(sender.send(&message), Err(SendError::Ended(ended)) if ended.cause == Ended::PeerDied));
    }
}

pub fn closed() {
    with_host("snapshot", Wait::Adaptive, |session, peer| {
        let (sender, receiver) = open(session).split();
        let threads = waiters(&sender, receiver, "silence");
        (0..=THREADS).for_each(|_| peer.must_say("silent"));
        session.close();
        wait_for_all(threads, Ended::Closed);
        drop(sender);
        peer.must_say("ended: PeerClosed");
    });
}

/// As many as are kept.
const KEPT: u64 = 4096;

/// Waits for an answer behind more messages than are kept until no more are.
fn fill(sender: &Sender<Hello>) {
    let question = text(sender, "echo x");
    eventually("full", || match sender.request(&question, SHORT) {
        Err(RequestError::Backlog) => Some(()),
        Err(RequestError::TimedOut) => None,
        other => panic!("{other:?}"),
    });
}

pub fn limit() {
    for believing in TRUSTS {
        with_halves(believing, Wait::Adaptive, |sender, mut receiver, peer| {
            tell(&sender, "notices 6000");
            // Nobody receives: what is behind the notices cannot be reached.
            fill(&sender);
            let mut replies = stream(&sender, "stream 3");
            assert_eq!(replies.try_recv().map(drop), Err(RecvError::Backlog));
            assert_eq!(replies.recv_timeout(SHORT).map(drop), Err(RecvError::Backlog));
            // Somebody who waits gets his answer once others have received.
            let (asking, asked) = (sender.clone(), text(&sender, "echo waited"));
            let waiting = thread::spawn(move || words(&asking.request(&asked, PATIENCE).expect("answer")));
            for index in 0..6_000 {
                let notice = receiver.recv_timeout(PATIENCE).expect("notice");
                assert_eq!(words(&notice), format!("notice {index}"));
            }
            assert_eq!(waiting.join().expect("thread"), "waited");
            assert_eq!(replies.count(), 3);
            assert_eq!(ask(&sender, "echo again"), "again");
            // A stream that nobody reads fills it as well; dropping it makes room.
            let unread = stream(&sender, "stream 5000");
            tell(&sender, "notices 1");
            eventually("full", || match receiver.recv_timeout(SHORT) {
                Err(RecvError::Backlog) => Some(()),
                Err(RecvError::TimedOut) => None,
                other => panic!("{other:?}"),
            });
            assert_eq!(receiver.try_recv().map(drop), Err(RecvError::Backlog));
            drop(unread);
            assert_eq!(words(&receiver.recv_timeout(PATIENCE).expect("notice")), "notice 0");
            drop((sender, receiver));
            peer.must_say("finished");
        });
    }
}

pub fn killed_behind_backlog() {
    let place = Place::new();
    let mut peer = Peer::start("host", &[place.text(), "in_place"]);
    peer.must_say("ready");
    let session = client().trust(trust("in_place")).connect(&place.server()).expect("connect");
    let (sender, mut receiver) = open(&session).split();
    tell(&sender, "notices 6000");
    fill(&sender);
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (sender, message) = (sender.clone(), text(&sender, "echo y"));
            thread::spawn(move || match sender.request(&message, 4 * PATIENCE) {
                Err(RequestError::Ended(ended)) => ended.cause,
                other => panic!("{other:?}"),
            })
        })
        .collect();
    peer.kill();
    wait_for_all(threads, Ended::PeerDied);
    // What had come is still there, in order.
    for index in 0..KEPT {
        assert_eq!(words(&receiver.recv().expect("kept")), format!("notice {index}"));
    }
    assert_eq!(cause(receiver.last().expect("an end")), Ended::PeerDied);
}

pub fn full() {
    with_host("snapshot", Wait::Park, |session, peer| {
        let (sender, receiver) = open(session).split();
        tell(&sender, "gate");
        let note = text(&sender, "notices 0");
        let mut sent = 0;
        eventually("full", || {
            while sender.try_send(&note).is_ok() {
                sent += 1;
            }
            (sent >= 256).then_some(())
        });
        assert_eq!(sender.send_timeout(&note, SHORT), Err(SendError::TimedOut));
        let lent = session.on_loan().0;
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..100 {
                        sender.send_timeout(&note, PATIENCE).expect("room, in time");
                    }
                });
            }
            // Somebody waits for room, so there is none.
            assert_eq!(sender.try_send(&note), Err(SendError::Full));
            peer.tell("open");
        });
        assert!(lent <= 258, "{lent}");
        assert_eq!(ask(&sender, "echo done"), "done");
        drop((sender, receiver));
        peer.must_say("finished");
    });
}
