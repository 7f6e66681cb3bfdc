//! Split channels between two processes: requests from many threads, streams of answers, expectations, half-close, and
//! what becomes of those who wait.

mod common;
#[path = "talk/host.rs"]
mod host;
#[path = "common/raw.rs"]
mod raw;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, SHORT, TRUSTS, client, open, trust, words};
use common::peer::Peer;
use common::{Case, PATIENCE, eventually};
use hello_capnp::hello;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use strait::{
    Channel, ChannelError, DrainError, Ended, ExpectError, Expected, Message, PeerMisbehaved, Receiver, RecvError,
    Replies, RequestError, SendError, Sender, Session, Trust, Wait,
};

type Hello = hello::Owned;

fn main() -> ExitCode {
    let cases = [
        Case::new("requests_from_many_threads_while_another_receives", many_threads),
        Case::new("streams_of_answers", streams),
        Case::new("streams_are_cancelled_by_dropping_them", cancelled),
        Case::new("late_and_unexpected_answers", late_and_unexpected),
        Case::new("expectations_once_and_standing", expectations),
        Case::new("expectations_are_cancelled_by_dropping_them", unexpected),
        Case::new("schemas_without_a_union_have_no_tags", no_union),
        Case::new("this_side_finishes_first", finish_here),
        Case::new("the_other_side_finishes_first", finish_there),
        Case::new("whole_channels_finish_and_close", finish_whole),
        Case::new("a_stream_cut_short_is_no_orderly_end", cut_short),
        Case::new("answers_come_without_a_receiver", no_receiver),
        Case::new("halves_are_dropped_in_any_order", any_order),
        Case::new("halves_are_dropped_while_channels_are_opened", any_order_reopened),
        Case::new("a_half_stays_until_the_other_side_has_left", halves_stay),
        Case::new("what_was_filled_too_late_goes_home", too_late),
        Case::new("a_killed_peer_wakes_everyone", killed),
        Case::new("a_killed_peer_wakes_everyone_behind_a_backlog", killed_behind_backlog),
        Case::new("closing_wakes_everyone", closed),
        Case::new("what_is_kept_has_a_limit", limit),
        Case::new("senders_wait_for_room_together", full),
        Case::new("draining_has_a_deadline", drained),
        Case::new("kinds_need_no_decoding", kinds),
        Case::new("what_was_kept_before_the_split_stays", kept_before),
        Case::new("a_forked_child_has_neither_half", forked),
        Case::new("raw_peers_break_the_rules_of_split_channels", hostile),
    ];
    common::main(&cases, &[("host", host::run)])
}

const WAITS: [Wait; 3] = [Wait::Adaptive, Wait::Park, Wait::Spin];
const THREADS: usize = 8;

/// A case with the host at the other end; `talk` must leave no session.
fn with_host(believing: &str, wait: Wait, talk: impl FnOnce(&Session, &mut Peer)) {
    let place = Place::new();
    let mut peer = Peer::start("host", &[place.text(), believing]);
    peer.must_say("ready");
    let app = client().trust(trust(believing)).wait(wait).channel::<Hello>("main");
    let session = app.connect(&place.server()).expect("connect");
    talk(&session, &mut peer);
    drop(session);
    peer.finish();
    place.must_be_empty();
}

fn with_halves(believing: &str, wait: Wait, talk: impl FnOnce(Sender<Hello>, Receiver<Hello>, &mut Peer)) {
    with_host(believing, wait, |session, peer| {
        let (sender, receiver) = open(session).split();
        talk(sender, receiver, peer);
    });
}

fn text(sender: &Sender<Hello>, words: &str) -> Message<Hello> {
    let mut builder = sender.create_msg();
    builder.init_root().set_greet(words);
    builder.freeze().expect("room")
}

#[track_caller]
fn tell(sender: &Sender<Hello>, words: &str) {
    let message = text(sender, words);
    sender.send_timeout(&message, PATIENCE).expect("send");
}

#[track_caller]
fn ask(sender: &Sender<Hello>, question: &str) -> String {
    let message = text(sender, question);
    words(&sender.request(&message, PATIENCE).expect("answer"))
}

fn stream(sender: &Sender<Hello>, question: &str) -> Replies<Hello> {
    let message = text(sender, question);
    sender.request_stream(&message, PATIENCE).expect("send")
}

#[track_caller]
fn cause<T: std::fmt::Debug>(result: Result<T, RecvError>) -> Ended {
    match result {
        Err(RecvError::Ended(ended)) => ended.cause,
        other => panic!("{other:?}"),
    }
}

fn many_threads() {
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

fn streams() {
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

fn cancelled() {
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

fn late_and_unexpected() {
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
            assert_eq!(common::apps::ask(&mut channel, "twice x"), "x");
            eventually("told", || (common::apps::ask(&mut channel, "unexpected") == "1").then_some(()));
            let message = common::apps::greet(&channel, "echo y");
            let id = channel.send(&message).expect("send");
            let answer = channel.recv_timeout(PATIENCE).expect("answer");
            assert_eq!((words(&answer).as_str(), answer.in_reply_to()), ("y", Some(id)));
            assert!(channel.try_recv().expect("open").is_none());
            drop((answer, channel));
            peer.must_say("ended: ChannelClosed");
        });
    }
}

const GREET: u16 = 0;
const ANSWER: u16 = 1;

fn number(result: Result<strait::Received<Hello>, RecvError>) -> u64 {
    words(&result.expect("message")).parse().expect("a number")
}

fn expectations() {
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

fn unexpected() {
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

/// Two ends in this process.
fn both_ends<T: strait::Schema>(slots: u32, talk: impl FnOnce(Channel<T>, Channel<T>)) {
    let place = Place::new();
    let app = place.server().slots(slots).allow(&client(), trust("in_place")).channel::<T>("main");
    let server = app.clone().bind().expect("bind");
    let connecting = thread::spawn(move || client().slots(slots).trust(trust("in_place")).connect(&app));
    let theirs = server.accept().expect("accept");
    let ours = connecting.join().expect("thread").expect("connect");
    let channel = ours.open_channel("main", PATIENCE).expect("channel");
    talk(channel, theirs.accept_channel().expect("channel"));
    drop((ours, theirs, server));
    place.must_be_empty();
}

fn no_union() {
    both_ends::<capnp::schema_capnp::brand::Owned>(16, |channel, _other| {
        let (_sender, receiver) = channel.split();
        assert_eq!(receiver.expect(0).map(drop), Err(ExpectError::NoUnion));
    });
}

fn finish_here() {
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

fn finish_there() {
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

fn finish_whole() {
    both_ends::<Hello>(64, |mut ours, mut theirs| {
        let message = common::apps::greet(&ours, "x");
        (0..10).for_each(|_| assert!(ours.send(&message).is_ok()));
        ours.finish();
        ours.finish();
        assert_eq!(ours.send(&message), Err(SendError::Finished));
        assert_eq!(ours.request(&message, SHORT).map(drop), Err(RequestError::Send(SendError::Finished)));
        assert_eq!(ours.drain(SHORT), Err(DrainError::TimedOut));
        (0..10).for_each(|_| drop(theirs.recv_timeout(PATIENCE).expect("sent before")));
        assert_eq!(theirs.recv().map(drop), Err(RecvError::Finished));
        ours.drain(PATIENCE).expect("all taken");
        let answer = common::apps::greet(&theirs, "y");
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
        let message = common::apps::greet(&ours, "x");
        ours.send(&message).expect("send");
        assert_eq!(ours.close(SHORT), Err(DrainError::TimedOut));
        assert_eq!(words(&theirs.recv_timeout(PATIENCE).expect("sent before")), "x");
        assert_eq!(theirs.recv().map(drop), Err(RecvError::Finished));
    });
}

fn cut_short() {
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

fn no_receiver() {
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

fn any_order() {
    any_order_of(|session| {
        let mut channels: Vec<_> = (0..ORDERS).map(|_| open(session)).collect();
        Box::new(move |_| channels.pop().expect("enough"))
    });
}

fn any_order_reopened() {
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

fn killed() {
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

fn closed() {
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

fn limit() {
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

fn killed_behind_backlog() {
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

fn full() {
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

fn drained() {
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

fn kinds() {
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

fn kept_before() {
    with_host("snapshot", Wait::Adaptive, |session, peer| {
        let mut channel = open(session);
        let message = common::apps::greet(&channel, "tags 10");
        channel.send(&message).expect("send");
        let late = common::apps::greet(&channel, "later");
        assert_eq!(channel.request(&late, SHORT).map(drop), Err(RequestError::TimedOut));
        assert_eq!(common::apps::ask(&mut channel, "echo kept by now"), "kept by now");
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

fn forked() {
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

/// A raw client, and the halves of its channel.
fn with_raw(talk: impl FnOnce(&mut raw::Raw, Sender<Hello>, Receiver<Hello>)) {
    with_raw_session(|raw, _, sender, receiver| talk(raw, sender, receiver));
}

fn with_raw_session(talk: impl FnOnce(&mut raw::Raw, &Session, Sender<Hello>, Receiver<Hello>)) {
    let place = Place::new();
    let app = place.server().slots(raw::SLOTS).allow(&strait::ClientApp::new("raw"), Trust::snapshot());
    let server = app.channel::<Hello>("main").bind().expect("bind");
    let path = place.path().to_owned();
    let connecting = thread::spawn(move || raw::Raw::login(&path));
    let session = server.accept().expect("accept");
    let mut raw = connecting.join().expect("thread");
    let (sender, receiver) = session.accept_channel().expect("channel").split();
    talk(&mut raw, &session, sender, receiver);
    drop((raw, session, server));
    place.must_be_empty();
}

/// The next frame that says how far the other side is with a channel, and which other frames came before it.
fn left_or_closed(raw: &raw::Raw, number: u32) -> (u32, Vec<raw::Frame>) {
    let mut others = Vec::new();
    loop {
        let (frame, _) = raw.socket.recv().expect("a frame");
        match (frame.u32_at(0), frame.u32_at(4)) {
            (kind @ (4 | 17), found) if found == number => return (kind, others),
            _ => others.push(frame),
        }
    }
}

/// Opens channels from both sides; tells where the other side, in whatever thread, puts its halves.
fn open_both(raw: &raw::Raw, session: &Session, numbers: impl Iterator<Item = u32>) -> Vec<raw::Area> {
    let mut halves = Vec::new();
    for number in numbers {
        let half = raw::area(u64::from(number) % 16);
        assert!(raw.socket.say(&raw::Frame::open(number, "main", raw::schema(), half)));
        let asked = session.open_channel::<Hello>("main", Duration::ZERO);
        assert_eq!(asked.map(drop), Err(ChannelError::TimedOut));
        let (mut opened, mut wished) = (false, false);
        while !(opened && wished) {
            let (frame, _) = raw.socket.recv().expect("a frame");
            match frame.u32_at(0) {
                1 => wished = true,
                2 => opened = true,
                _ => continue,
            }
            halves.push(frame.area_at(if frame.u32_at(0) == 1 { 16 } else { 8 }));
        }
    }
    halves
}

fn halves_stay() {
    const CLOSED: u32 = 4;
    const LEFT: u32 = 17;
    let say = |raw: &raw::Raw, kind: u32| assert!(raw.socket.say(&raw::Frame::control(kind, 1)));
    // The raw side closes first; second; second, when it does not know that yet.
    for closes in [[CLOSED, 0], [0, LEFT], [0, CLOSED]] {
        with_raw_session(|raw, session, sender, mut receiver| {
            if closes[0] == CLOSED {
                say(raw, CLOSED);
                assert_eq!(cause(receiver.recv()), Ended::ChannelClosed);
                // One of the two has everything, which ends the other.
                drop((sender, receiver));
                assert_eq!(left_or_closed(raw, 1).0, LEFT);
            } else {
                drop((sender, receiver));
                assert_eq!(left_or_closed(raw, 1).0, CLOSED);
            }
            let half = raw.lane.their_half;
            let others = open_both(raw, session, (17..33).step_by(2));
            assert!(!others.contains(&half), "{half:?} is being emptied");
            if closes[1] == CLOSED {
                (0..2).for_each(|_| say(raw, CLOSED));
                assert_eq!(left_or_closed(raw, 1).0, LEFT);
                let others = open_both(raw, session, (33..41).step_by(2));
                assert!(!others.contains(&half), "{half:?} is being emptied");
            }
            say(raw, LEFT);
            if closes[1] == LEFT {
                assert_eq!(left_or_closed(raw, 1).0, LEFT);
            }
            // Nobody looks at it any more.
            let others = open_both(raw, session, (41..49).step_by(2));
            assert!(others.contains(&half), "{half:?} is not among {others:?}");
            // The number means nothing any more.
            say(raw, LEFT);
            raw.socket.must_end_with_goodbye(1);
        });
    }
    // Nobody has left what the other side has not closed.
    with_raw(|raw, _sender, mut receiver| {
        say(raw, LEFT);
        assert_eq!(cause(receiver.recv()), Ended::PeerMisbehaved(PeerMisbehaved::ChannelNumber(1)));
        raw.socket.must_end_with_goodbye(1);
    });
}

/// The raw side fills slots until it knows that the channel is closed; once it is told that the other side has left, its half
/// is its own.
fn too_late() {
    with_raw(|raw, sender, receiver| {
        drop((sender, receiver));
        assert_eq!(left_or_closed(raw, 1).0, 4);
        let late: Vec<_> = (0..raw::SLOTS).map(|_| raw.lane.compose("too late")).collect();
        late.iter().for_each(|payload| raw.lane.put(*payload));
        assert!(raw.socket.say(&raw::Frame::control(17, 1)));
        let (kind, mut frames) = left_or_closed(raw, 1);
        assert_eq!(kind, 17);
        (0..raw.lane.half.slots.into()).for_each(|slot| raw.own.store(raw.lane.slot(slot) + 7, u64::MAX));
        let mut home = Vec::new();
        while home.len() < late.len() {
            let frame = frames.pop().unwrap_or_else(|| raw.socket.recv().expect("a frame").0);
            assert_eq!(frame.u32_at(0), 5);
            let handles = (0..7).map(|index| [frame.u64_at(8 + 16 * index), frame.u64_at(16 + 16 * index)]);
            home.extend(handles.filter(|handle| *handle != [0, 0]));
        }
        home.sort_unstable();
        let mut lent: Vec<_> = late.iter().map(|payload| [payload[3], payload[4]]).collect();
        lent.sort_unstable();
        assert_eq!(home, lent);
    });
}

fn hostile() {
    with_raw(|raw, _sender, mut receiver| {
        let mut payload = raw.lane.compose("x");
        payload[2] = 5;
        raw.lane.put(payload);
        let broken = PeerMisbehaved::ReplyToNothing { found: 5, sent: 0 };
        assert_eq!(cause(receiver.recv()), Ended::PeerMisbehaved(broken));
        raw.socket.must_end_with_goodbye(1);
    });
    // Unexpected answers are reported, all in all, and harm nobody.
    with_raw(|raw, sender, mut receiver| {
        tell(&sender, "answer this");
        raw.lane.take_message();
        for _ in 0..100 {
            let mut payload = raw.lane.compose("x");
            payload[2] = 1;
            raw.lane.put(payload);
            assert_eq!(receiver.recv_timeout(Duration::ZERO).map(drop), Err(RecvError::TimedOut));
        }
        let mut told = 0;
        while told < 100 {
            let (frame, _) = raw.socket.recv().expect("a frame");
            match frame.u32_at(0) {
                5 => {}
                11 => {
                    assert_eq!(frame.u32_at(4), 1);
                    assert!(frame.u64_at(8) > told, "once each");
                    told = frame.u64_at(8);
                }
                other => panic!("frame {other}"),
            }
        }
        assert_eq!(told, 100);
    });
    // Requests are cancelled that were never made, and it is said too often that nothing more is sent.
    with_raw(|raw, sender, mut receiver| {
        for id in 0..5_000 {
            assert!(raw.socket.say(&raw::Frame::control(12, 1).u64(8, id)));
        }
        assert!(raw.socket.say(&raw::Frame::control(12, 1).u64(8, u64::MAX)));
        raw.lane.say("asked too early");
        let received = receiver.recv_timeout(PATIENCE).expect("recv");
        // The oldest are forgotten.
        assert!(!sender.is_cancelled(&received));
        let answer = text(&sender, "fine");
        sender.reply(&received, &answer).expect("reply");
        (0..3).for_each(|_| assert!(raw.socket.say(&raw::Frame::control(13, 1))));
        assert_eq!(receiver.recv().map(drop), Err(RecvError::Finished));
        tell(&sender, "still open");
    });
    // What is no message has no tag.
    with_raw(|raw, _sender, mut receiver| {
        let mut greetings = receiver.expect(GREET).expect("free");
        let mut answers = receiver.expect(ANSWER).expect("free");
        raw.own.store(raw::MESSAGES, u64::MAX);
        let payload = raw.lane.message(1, raw::handle(raw::ARENA, raw::MESSAGES, 1, 0));
        raw.lane.put(payload);
        raw.lane.say("greeting");
        assert_eq!(words(&greetings.recv().expect("greeting")), "greeting");
        assert!(receiver.recv().expect("something").get().is_err());
        // One that names memory that is not there ends the session, for whoever opens it.
        let payload = raw.lane.message(2, raw::handle(raw::ARENA, raw::MESSAGES, 1, 0));
        raw.lane.put(payload);
        let broken = PeerMisbehaved::SegmentCount(2);
        assert_eq!(cause(receiver.recv()), Ended::PeerMisbehaved(broken));
        assert_eq!(cause(answers.recv()), Ended::PeerMisbehaved(broken));
    });
    // A channel that is closed and yet filled for ever: nobody waits for ever.
    with_raw(|raw, sender, receiver| {
        let message = text(&sender, "answer this");
        let asking = thread::spawn(move || match sender.request(&message, 4 * PATIENCE) {
            Err(RequestError::Ended(ended)) => ended.cause,
            other => panic!("{other:?}"),
        });
        raw.lane.take_message();
        assert!(raw.socket.say(&raw::Frame::control(4, 1)));
        while !asking.is_finished() {
            let emptied = raw.lane.theirs.load(raw.lane.their_half.offset);
            if raw.lane.filled < emptied + u64::from(raw::SLOTS) {
                let payload = raw.lane.compose("more");
                raw.lane.put(payload);
            }
        }
        assert_eq!(asking.join().expect("thread"), Ended::ChannelClosed);
        drop(receiver);
    });
}
