//! What two processes can say to each other, in both kinds of trust.

#[path = "common/bulk.rs"]
mod bulk;
mod common;
capnp::generated_code!(mod cache_capnp);
capnp::generated_code!(mod hello_capnp);

use bulk::{PART, check_file, file};
use cache_capnp::cache;
use common::apps::{Place, SHORT, TRUSTS, ask, client, greet, open, server, trust, words};
use common::obliging::{connect, with_server};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, eventually, obliging};
use hello_capnp::hello;
use std::process::ExitCode;
use std::sync::mpsc;
use strait::{Channel, ChannelError, Ended, Received, RecvError, RequestError, SendError, Trust};

fn main() -> ExitCode {
    let cases = [
        Case::new("talk", talk),
        Case::new("unbegun_messages_read_as_the_default", unbegun),
        Case::new("many_segments_and_large_messages", files),
        Case::new("one_message_many_times_to_two_sessions", many_times),
        Case::new("drops_in_another_thread_go_home", dropped_elsewhere),
        Case::new("late_replies_are_dropped", late),
        Case::new("messages_during_a_request_are_kept_in_order", kept),
        Case::new("foreign_messages_are_refused", foreign),
        Case::new("a_client_app_has_one_arena", one_arena),
        Case::new("unread_messages_go_home_when_a_channel_closes", unread),
        Case::new("many_held_messages_go_home_at_once", many_held),
        Case::new("replies_need_not_wait_for_room", bounded_replies),
        Case::new("a_reply_over_another_channel_is_refused", crossed_reply),
        Case::new("received_messages_can_be_read_again", read_again),
        Case::new("channels_at_log_in_and_later", channels),
        Case::new("many_sessions_and_channels", many),
        Case::new("small_messages_travel_inside_their_slots", inside),
        Case::new("full_ring", full_ring),
        Case::new("full_small_ring", full_small_ring),
        Case::new("small_rings_come_and_go", small_rings),
    ];
    let roles: &[common::Role] = &[("obliging", obliging::run), ("files", file_server), ("two sessions", two_sessions)];
    common::main(&cases, roles)
}

fn talk() {
    for believing in TRUSTS {
        with_server(believing, |place, _| {
            let session = connect(place, trust(believing));
            assert_eq!((session.peer_name(), session.end()), ("suite", None));
            let mut channel = open(&session);
            assert_eq!(ask(&mut channel, "echo hello"), "hello");
            assert!(channel.try_recv().expect("open").is_none());
            assert_eq!(channel.recv_timeout(SHORT).map(drop), Err(RecvError::TimedOut));
            let question = greet(&channel, "echo again");
            let id = channel.send(&question).expect("send");
            let answer = channel.recv().expect("recv");
            assert_eq!((words(&answer).as_str(), answer.in_reply_to(), answer.id()), ("again", Some(id), 2));
            channel.send_timeout(&question, PATIENCE).expect("send");
            assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "again");
            channel.try_send(&question).expect("room");
            let answer = eventually("an answer", || channel.try_recv().expect("open"));
            assert_eq!(words(&answer), "again");
            // Far beyond the capacity of both rings.
            (0..2_000).for_each(|index| assert_eq!(ask(&mut channel, &format!("echo {index}")), index.to_string()));
        });
    }
}

fn unbegun() {
    for believing in TRUSTS {
        with_server(believing, |place, _| {
            let session = connect(place, trust(believing));
            let mut channel = open(&session);
            let nothing = channel.create_msg().freeze().expect("room");
            let answer = channel.request(&nothing, PATIENCE).expect("answer");
            // The default of the schema: an empty greeting.
            assert_eq!(words(&answer), "?");
        });
    }
}

const LARGE: (usize, usize) = (6, 50 << 20);

fn file_server(args: &[String]) {
    let app = server(&args[0]).allow(&common::apps::client(), trust(&args[1])).channel::<cache::Owned>("files");
    let server = app.bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<cache::Owned>().expect("channel");
    let segmented = channel.recv().expect("recv");
    check_file(&segmented, 40, PART);
    let large = file(&channel, LARGE.0, LARGE.1, true);
    assert_eq!(large.segments().len(), 1);
    channel.reply(&segmented, &large).expect("reply");
    drop(large);
    let back = channel.recv().expect("recv");
    check_file(&back, LARGE.0, LARGE.1);
    channel.reply(&back, &file(&channel, 40, PART, false)).expect("reply");
    assert!(matches!(channel.recv(), Err(RecvError::Ended(_))));
}

fn files() {
    for believing in TRUSTS {
        let place = Place::new();
        let mut peer = Peer::start("files", &[place.text(), believing]);
        peer.must_say("ready");
        let session = client().trust(trust(believing)).connect(&place.server()).expect("connect");
        let mut channel = session.open_channel::<cache::Owned>("files", PATIENCE).expect("channel");
        let segmented = file(&channel, 40, PART, false);
        assert!(segmented.segments().len() > 2, "meant to have several segments");
        let large = channel.request(&segmented, PATIENCE).expect("answer");
        check_file(&large, LARGE.0, LARGE.1);
        let back = file(&channel, LARGE.0, LARGE.1, false);
        check_file(&channel.request(&back, PATIENCE).expect("answer"), 40, PART);
        drop((large, channel, session));
        peer.finish();
        place.must_be_empty();
    }
}

const TIMES: usize = 100;

fn two_sessions(args: &[String]) {
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

fn many_times() {
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

fn dropped_elsewhere() {
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

/// The server has everything back. Traffic carries home one message and owes another, so it has to pause for longer
/// than returns wait for traffic.
fn all_returned(channel: &mut Channel<hello::Owned>) {
    eventually("the server has everything back", || {
        std::thread::sleep(SHORT);
        (ask(channel, "loans") == "(0, 0)").then_some(())
    });
}

fn late() {
    for believing in TRUSTS {
        with_server(believing, |place, _| {
            let session = connect(place, trust(believing));
            let mut channel = open(&session);
            let question = greet(&channel, "later");
            assert_eq!(channel.request(&question, SHORT).map(drop), Err(RequestError::TimedOut));
            // The late answer comes before this one, and must not be taken for it, nor for a message.
            assert_eq!(ask(&mut channel, "echo now"), "now");
            assert_eq!(channel.recv_timeout(SHORT).map(drop), Err(RecvError::TimedOut));
            assert_eq!(channel.request(&question, SHORT).map(drop), Err(RequestError::TimedOut));
            let other = greet(&channel, "echo then");
            channel.send(&other).expect("send");
            assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "then");
            all_returned(&mut channel);
        });
    }
}

fn kept() {
    for believing in TRUSTS {
        with_server(believing, |place, _| {
            let session = connect(place, trust(believing));
            let mut channel = open(&session);
            // More than the ring holds.
            assert_eq!(ask(&mut channel, "burst 1000"), "done");
            assert_eq!(ask(&mut channel, "echo between"), "between");
            for index in 0..1_000 {
                assert_eq!(words(&channel.recv().expect("kept")), format!("burst {index}"));
            }
            assert!(channel.try_recv().expect("open").is_none());
            // More than is kept: an error that can be recovered from by receiving.
            let question = greet(&channel, "burst 5000");
            assert_eq!(channel.request(&question, PATIENCE).map(drop), Err(RequestError::Backlog));
            for index in 0..5_000 {
                assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("kept")), format!("burst {index}"));
            }
            assert_eq!(ask(&mut channel, "echo after"), "after");
        });
    }
}

fn read_again() {
    for believing in TRUSTS {
        with_server("snapshot", |place, _| {
            let session = connect(place, trust(believing));
            let mut channel = open(&session);
            let long = "x".repeat(20_000);
            let question = greet(&channel, &format!("echo {long}"));
            let received = channel.request(&question, PATIENCE).expect("answer");
            (0..10).for_each(|_| assert_eq!(words(&received), long));
        });
    }
}

fn foreign() {
    with_server("snapshot", |place, _| {
        let (one, other) = (connect(place, Trust::snapshot()), connect(place, Trust::snapshot()));
        let (mut first, second) = (open(&one), open(&other));
        let message = greet(&second, "echo no");
        assert_eq!(first.send(&message), Err(SendError::ForeignArena));
        assert_eq!(first.try_send(&message), Err(SendError::ForeignArena));
        assert_eq!(first.request(&message, PATIENCE).map(drop), Err(RequestError::Send(SendError::ForeignArena)));
        assert_eq!(ask(&mut first, "echo yes"), "yes");
        let mut fresh = one.open_channel::<hello::Owned>("main", PATIENCE).expect("channel");
        let question = greet(&first, "echo x");
        let received = first.request(&question, PATIENCE).expect("answer");
        assert_eq!(fresh.reply(&received, &question), Err(SendError::NotReceivedHere));
        assert_eq!(ask(&mut fresh, "echo still"), "still");
    });
}

fn one_arena() {
    with_server("in_place", |here, _| {
        with_server("snapshot", |there, _| {
            let app = client().channel::<hello::Owned>("main");
            let sessions = [here, there].map(|place| app.clone().connect(&place.server()).expect("connect"));
            let mut channels = sessions.each_ref().map(open);
            let question = greet(&channels[0], "echo both");
            for channel in &mut channels {
                let answer = channel.request(&question, PATIENCE).expect("answer");
                assert_eq!(words(&answer), "both");
            }
        });
    });
}

/// Two ends in this process, so that both books can be read.
fn both_ends(slots: u32, talk: impl FnOnce(&strait::Session, &strait::Session)) {
    let place = Place::new();
    let app = place.server().slots(slots).allow(&client(), trust("in_place")).channel::<hello::Owned>("main");
    let server = app.clone().bind().expect("bind");
    let connecting = std::thread::spawn(move || client().slots(slots).trust(trust("in_place")).connect(&app));
    let theirs = server.accept().expect("accept");
    let ours = connecting.join().expect("thread").expect("connect");
    talk(&ours, &theirs);
    drop((ours, theirs, server));
    place.must_be_empty();
}

fn inside() {
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
            assert_eq!(common::apps::words(&question), asked);
            let before = theirs.on_loan().0;
            answering.reply(&question, &greet(&answering, answers)).expect("reply");
            assert_eq!(theirs.on_loan().0, before + usize::from(answers.len() > 7), "{answers}");
            let answer = asking.recv().expect("answer");
            assert_eq!((common::apps::words(&answer).as_str(), answer.in_reply_to()), (answers, Some(question.id())));
        }
        // What small messages leave no room for goes home in slots of its own.
        for round in 0..1000 {
            let long = greet(&asking, "more than fits a slot");
            asking.send(&long).expect("send");
            drop(answering.recv().expect("question"));
            answering.send(&greet(&answering, "short")).expect("send");
            assert_eq!(common::apps::words(&asking.recv().expect("answer")), "short", "{round}");
            assert!(ours.on_loan().0 < 16, "{:?}", ours.on_loan());
        }
        drop((asking, answering, ours, theirs, server));
        place.must_be_empty();
    }
}

fn unread() {
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

/// To a peer that asks and does not listen.
fn bounded_replies() {
    both_ends(2, |ours, theirs| {
        let mut channel = open(ours);
        let mut other = theirs.accept_channel::<hello::Owned>().expect("accept");
        let question = greet(&channel, "x");
        channel.send(&question).expect("send");
        let asked = other.recv().expect("recv");
        let answer = greet(&other, "y");
        other.try_reply(&asked, &answer).expect("room");
        other.reply_timeout(&asked, &answer, PATIENCE).expect("room");
        let lent = theirs.on_loan().0;
        assert_eq!(other.try_reply(&asked, &answer), Err(SendError::Full));
        assert_eq!(other.reply_timeout(&asked, &answer, SHORT), Err(SendError::TimedOut));
        // What was not sent is not on loan.
        assert_eq!(theirs.on_loan().0, lent);
        assert_eq!(channel.recv().expect("recv").in_reply_to(), Some(asked.id()));
        eventually("room again", || other.try_reply(&asked, &answer).ok());
    });
}

fn many_held() {
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

fn crossed_reply() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let (mut first, mut second) = (open(&session), session.open_channel("main", PATIENCE).expect("channel"));
        let question = greet(&first, "echo x");
        let received: Received<hello::Owned> = first.request(&question, PATIENCE).expect("answer");
        // The second has received a message of the same number.
        assert_eq!(ask(&mut second, "echo y"), "y");
        assert_eq!(second.reply(&received, &question), Err(SendError::NotReceivedHere));
    });
}

fn channels() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut first = open(&session);
        let mut later = session.open_channel::<hello::Owned>("main", PATIENCE).expect("channel");
        assert_eq!((ask(&mut first, "echo 1"), ask(&mut later, "echo 2")), ("1".into(), "2".into()));
        let refused = session.open_channel::<hello::Owned>("none", PATIENCE).map(drop);
        assert_eq!(refused, Err(ChannelError::UnknownChannel { channel: "none".into() }));
        let (ours, theirs) = (<cache::Owned as strait::Schema>::ID, <hello::Owned as strait::Schema>::ID);
        let refused = session.open_channel::<cache::Owned>("main", PATIENCE).map(drop);
        assert_eq!(refused, Err(ChannelError::WrongSchema { channel: "main".into(), ours, theirs }));
        let refused = session.open_channel::<hello::Owned>("a/b", PATIENCE).map(drop);
        assert_eq!(refused, Err(ChannelError::BadName("a/b".into())));
        assert_eq!(session.accept_channel_timeout::<hello::Owned>(SHORT).map(drop), Err(ChannelError::TimedOut));
        assert_eq!(ask(&mut later, "echo 3"), "3");
        drop(later);
        // Numbers and rings come back: far more than may be open at once.
        for index in 0..3_000 {
            let mut channel = session.open_channel::<hello::Owned>("main", PATIENCE).expect("channel");
            if index % 100 == 0 {
                assert_eq!(ask(&mut channel, "echo again"), "again");
            }
        }
        let many: Vec<Channel<hello::Owned>> = std::iter::from_fn(|| match session.open_channel("main", PATIENCE) {
            Ok(channel) => Some(channel),
            Err(ChannelError::TooMany) => None,
            Err(other) => panic!("{other}"),
        })
        .collect();
        assert!((1_000..=1_024).contains(&many.len()), "{}", many.len());
        drop(many);
        assert_eq!(ask(&mut first, "echo 4"), "4");
        session.close();
        let refused = session.open_channel::<hello::Owned>("main", PATIENCE).map(drop);
        assert_eq!(refused, Err(ChannelError::Ended { peer: "suite".into(), cause: Ended::Closed }));
    });
}

fn many() {
    with_server("in_place", |place, _| {
        let sessions: Vec<_> = (0..20).map(|_| connect(place, trust("in_place"))).collect();
        std::thread::scope(|scope| {
            for (number, session) in sessions.iter().enumerate() {
                for part in 0..5 {
                    scope.spawn(move || {
                        let mut channel = session.open_channel("main", PATIENCE).expect("channel");
                        for round in 0..50 {
                            let said = format!("{number}/{part}/{round}");
                            assert_eq!(ask(&mut channel, &format!("echo {said}")), said);
                        }
                    });
                }
            }
        });
        drop(sessions);
        // The census of both sides finds out whether anything stayed.
    });
}

fn full_ring() {
    full_ring_of(256);
}

fn full_small_ring() {
    full_ring_of(4);
}

/// Rings of every size, again and again, with messages of like sizes in between.
fn small_rings() {
    with_server("snapshot", |place, _| {
        for round in 0..300 {
            let session = client().slots(2 << (round % 8)).connect(&place.server()).expect("connect");
            let mut channels: Vec<_> = (0..8).map(|_| open(&session)).collect();
            for (index, channel) in channels.iter_mut().enumerate() {
                let said = "x".repeat(1_000 * index);
                assert_eq!(ask(channel, &format!("echo {said}")), said);
            }
        }
    });
}

fn full_ring_of(slots: usize) {
    with_server("snapshot", |place, peer| {
        let session = client().slots(slots as u32).connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        let gate = greet(&channel, "gate");
        channel.send(&gate).expect("send");
        let note = greet(&channel, "note");
        let mut notes = 0;
        // The server has taken `gate` out of the ring once there is room for the last.
        eventually("full", || {
            while channel.try_send(&note).is_ok() {
                notes += 1;
            }
            (notes == slots).then_some(())
        });
        assert_eq!(channel.try_send(&note), Err(SendError::Full));
        assert_eq!(channel.send_timeout(&note, SHORT), Err(SendError::TimedOut));
        assert_eq!(channel.request(&note, SHORT).map(drop), Err(RequestError::TimedOut));
        // What was not sent is not on loan: the gate may be home already, the notes are not.
        assert!((slots..=slots + 1).contains(&session.on_loan().0), "{:?}", session.on_loan());
        let thread = std::thread::spawn(move || {
            for _ in 0..100 {
                channel.send(&note).expect("room, in time");
            }
            channel
        });
        peer.tell("open the gate");
        let mut channel = thread.join().expect("thread");
        assert_eq!(words(&channel.recv().expect("recv")), "passed");
        assert_eq!(ask(&mut channel, "heard"), (1 + slots + 100 + 1).to_string());
    });
}
