//! Requests from many threads, streams of answers, late and unexpected ones.

use super::{THREADS, WAITS, ask, stream, tell, text, with_halves, with_host};
use crate::common::apps::{SHORT, TRUSTS, open, words};
use crate::common::{PATIENCE, apps, eventually};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use strait::{RecvError, RequestError, Wait};

pub fn many_threads() {
    for believing in TRUSTS {
        for wait in WAITS {
            with_halves(believing, wait, |sender, mut receiver, peer| {
                // Spinning threads that outnumber the CPUs are slow.
                let rounds = if wait == Wait::Spin { 20 } else { 150 };
                thread::scope(|scope| {
                    for thread in 0..THREADS {
                        let sender = sender.clone();
                        scope.spawn(move || {
                            for round in 0..rounds {
                                let said = format!("{thread}/{round}");
                                assert_eq!(ask(&sender, &format!("echo {said}")), said);
                                if thread == 0 {
                                    tell(&sender, "notices 5");
                                }
                            }
                        });
                    }
                    for round in 0..rounds {
                        for index in 0..5 {
                            let found = words(&receiver.recv_timeout(PATIENCE).expect("notice"));
                            assert_eq!(found, format!("notice {index}"), "in round {round}");
                        }
                    }
                });
                assert!(receiver.try_recv().expect("open").is_none());
                drop((sender, receiver));
                peer.must_say("finished");
            });
        }
    }
}

pub fn streams() {
    for believing in TRUSTS {
        with_halves(believing, Wait::Adaptive, |sender, mut receiver, peer| {
            let parts: Vec<_> = stream(&sender, "stream 500").map(|part| words(&part.expect("part"))).collect();
            assert_eq!(parts, (1..=500).map(|part| format!("part {part}")).collect::<Vec<_>>());
            // Several at once, read in the other order.
            let mut several: Vec<_> =
                (1..=20).map(|count| (count, stream(&sender, &format!("stream {count}")))).collect();
            for (count, replies) in several.iter_mut().rev() {
                for part in 1..=*count {
                    let answer = replies.recv_timeout(PATIENCE).expect("part");
                    assert_eq!((words(&answer), answer.more_follow()), (format!("part {part}"), part < *count));
                    assert_eq!(answer.in_reply_to(), Some(replies.id()));
                }
                assert_eq!(replies.recv().map(drop), Err(RecvError::Finished));
                assert_eq!(replies.try_recv().map(drop), Err(RecvError::Finished));
                assert!(replies.next().is_none());
            }
            let mut one = stream(&sender, "stream 1");
            assert_eq!(words(&eventually("a part", || one.try_recv().expect("open"))), "part 1");
            // The first answer is enough for a request; the others are late, and no surprise.
            assert_eq!(ask(&sender, "stream 100"), "part 1");
            // Answers are looked for meanwhile.
            assert_eq!(ask(&sender, "echo between"), "between");
            assert_eq!(ask(&sender, "unexpected"), "0");
            assert!(receiver.try_recv().expect("open").is_none());
            drop((one, several, sender, receiver));
            peer.must_say("finished");
        });
    }
}

pub fn cancelled() {
    for believing in TRUSTS {
        with_halves(believing, Wait::Adaptive, |sender, mut receiver, peer| {
            for taken in [0, 1, 300] {
                let parts: Vec<_> = stream(&sender, "endless").take(taken).map(|part| part.expect("part")).collect();
                assert!(parts.iter().zip(1..).all(|(part, number)| words(part) == format!("part {number}")));
                // The other side may wait for room: what is on its way is dropped by whoever looks at the ring.
                let done = AtomicBool::new(false);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        while !done.load(Ordering::Relaxed) {
                            assert_eq!(ask(&sender, "echo meanwhile"), "meanwhile");
                        }
                    });
                    peer.must_say("cancelled");
                    done.store(true, Ordering::Relaxed);
                });
                assert!(receiver.try_recv().expect("open").is_none());
            }
            // The parts that were on their way were late, not unexpected.
            assert_eq!(ask(&sender, "unexpected"), "0");
            drop((sender, receiver));
            peer.must_say("finished");
        });
    }
}

pub fn late_and_unexpected() {
    for believing in TRUSTS {
        with_halves(believing, Wait::Adaptive, |sender, mut receiver, peer| {
            let later = text(&sender, "later");
            assert_eq!(sender.request(&later, SHORT).map(drop), Err(RequestError::TimedOut));
            tell(&sender, "now");
            assert_eq!(ask(&sender, "echo after"), "after");
            assert_eq!(ask(&sender, "unexpected"), "0");
            assert_eq!(ask(&sender, "twice x"), "x");
            let told = |count: &str| eventually("told", || (ask(&sender, "unexpected") == count).then_some(()));
            told("1");
            // An answer to what was no request.
            tell(&sender, "echo nobody asked");
            told("2");
            assert!(receiver.try_recv().expect("open").is_none());
            assert_eq!(sender.unexpected_replies(), 0);
            tell(&sender, "is-request");
            assert_eq!(words(&receiver.recv_timeout(PATIENCE).expect("notice")), "false");
            let question = text(&sender, "is-request");
            assert_eq!(sender.request(&question, SHORT).map(drop), Err(RequestError::TimedOut));
            assert_eq!(words(&receiver.recv_timeout(PATIENCE).expect("notice")), "true");
            drop((sender, receiver));
            peer.must_say("finished");
        });
        // An owner of a whole channel hears answers to what it sent, but none too many to what it asked.
        with_host(believing, Wait::Adaptive, |session, peer| {
            let mut channel = open(session);
            assert_eq!(apps::ask(&mut channel, "twice x"), "x");
            eventually("told", || (apps::ask(&mut channel, "unexpected") == "1").then_some(()));
            let message = apps::greet(&channel, "echo y");
            let id = channel.send(&message).expect("send");
            let answer = channel.recv_timeout(PATIENCE).expect("answer");
            assert_eq!((words(&answer).as_str(), answer.in_reply_to()), ("y", Some(id)));
            assert!(channel.try_recv().expect("open").is_none());
            drop((answer, channel));
            peer.must_say("ended: ChannelClosed");
        });
    }
}

pub fn kinds() {
    for believing in TRUSTS {
        with_halves(believing, Wait::Adaptive, |sender, receiver, peer| {
            for kind in [0, 1, 0x7FFF, u16::MAX - 1] {
                let mut builder = sender.create_msg();
                builder.set_kind(kind).init_root().set_greet("kind");
                let message = builder.freeze().expect("room");
                assert_eq!(message.kind(), kind);
                assert_eq!(sender.request(&message.clone(), PATIENCE).expect("answer").kind(), kind + 1);
            }
            drop((sender, receiver));
            peer.must_say("finished");
        });
    }
}
