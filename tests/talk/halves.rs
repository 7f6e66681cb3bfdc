//! Halves that go one by one, in every order; and in a forked child, which has none.

use super::{ANSWER, GREET, Hello, ask, number, stream, tell, text, with_halves, with_host};
use crate::common::PATIENCE;
use crate::common::apps::{TRUSTS, open, words};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::sync::Barrier;
use std::thread;
use strait::{Channel, DrainError, Ended, ExpectError, RecvError, SendError, Session, Wait};

pub fn no_receiver() {
    for believing in TRUSTS {
        with_halves(believing, Wait::Adaptive, |sender, receiver, peer| {
            let (asked, answers) = (text(&sender, "echo x"), stream(&sender, "stream 50"));
            tell(&sender, "notices 50");
            drop(receiver);
            // Far more than a ring holds: somebody has to take what nobody receives.
            for _ in 0..500 {
                assert_eq!(words(&sender.request(&asked, PATIENCE).expect("answer")), "x");
                tell(&sender, "notices 3");
            }
            assert_eq!(answers.count(), 50);
            // One that is under way when the last sender goes.
            let last = stream(&sender, "stream 5");
            drop(sender);
            peer.must_say("finished");
            assert_eq!(last.map(|part| words(&part.expect("part"))).last(), Some("part 5".into()));
        });
    }
}

const ORDERS: usize = 120;

pub fn any_order() {
    any_order_of(|session| {
        let mut channels: Vec<_> = (0..ORDERS).map(|_| open(session)).collect();
        Box::new(move |_| channels.pop().expect("enough"))
    });
}

pub fn any_order_reopened() {
    any_order_of(|_| Box::new(open));
}

type Opener = Box<dyn FnMut(&Session) -> Channel<Hello>>;

fn any_order_of(opener: fn(&Session) -> Opener) {
    with_host("in_place", Wait::Adaptive, |session, peer| {
        let mut opened = opener(session);
        for round in 0..ORDERS {
            let (sender, receiver) = opened(session).split();
            let parts: [Box<dyn FnOnce() + Send>; 5] = {
                let other = sender.clone();
                let expected = receiver.expect(ANSWER).expect("free");
                let replies = stream(&sender, "stream 10");
                tell(&sender, "tags 10");
                [
                    Box::new(move || drop(sender)),
                    Box::new(move || drop(other)),
                    Box::new(move || drop(receiver)),
                    Box::new(move || drop(expected)),
                    Box::new(move || drop(replies)),
                ]
            };
            // All orders in turn, here or each in a thread of its own.
            let mut parts = Vec::from(parts);
            let (mut order, mut code) = (Vec::new(), round);
            while !parts.is_empty() {
                order.push(parts.remove(code % parts.len()));
                code /= parts.len() + 1;
            }
            if round % 2 == 0 {
                order.into_iter().for_each(|part| part());
            } else {
                let together = Barrier::new(order.len());
                thread::scope(|scope| {
                    for part in order {
                        let together = &together;
                        scope.spawn(move || {
                            together.wait();
                            part();
                        });
                    }
                });
            }
            peer.must_say("finished");
        }
    });
}

pub fn forked() {
    with_halves("in_place", Wait::Adaptive, |sender, mut receiver, peer| {
        let mut expected = receiver.expect(ANSWER).expect("free");
        let mut replies = stream(&sender, "stream 2");
        let message = text(&sender, "echo x");
        tell(&sender, "tags 10");
        assert_eq!(ask(&sender, "echo all here"), "all here");
        // SAFETY: the child calls what it calls and ends.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                let is = |cause| cause == Ended::ForkedProcess;
                let mut fine = matches!(sender.send(&message), Err(SendError::Ended(ended)) if is(ended.cause));
                fine &= matches!(receiver.recv(), Err(RecvError::Ended(ended)) if is(ended.cause));
                fine &= matches!(expected.try_recv(), Err(RecvError::Ended(ended)) if is(ended.cause));
                fine &= matches!(replies.recv(), Err(RecvError::Ended(ended)) if is(ended.cause));
                fine &= matches!(sender.drain(PATIENCE), Err(DrainError::Ended(ended)) if is(ended.cause));
                fine &= receiver.expect(GREET).map(drop) == Err(ExpectError::ForkedProcess);
                drop((sender, receiver, expected, replies));
                // SAFETY: the child has nothing left to do.
                unsafe { nix::libc::_exit(i32::from(!fine)) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
        assert_eq!(replies.by_ref().count(), 2);
        assert_eq!(number(expected.recv()), 1);
        assert_eq!(number(receiver.recv()), 0);
        assert_eq!(words(&sender.request(&message, PATIENCE).expect("answer")), "x");
        drop((sender, receiver, expected, replies));
        peer.must_say("finished");
    });
}
