//! Messages and answers as two processes see them: in order, late, of every size, and those that are refused.

use super::all_returned;
use crate::bulk::{PART, check_file, file};
use crate::cache_capnp::cache;
use crate::common::apps::{Place, SHORT, TRUSTS, ask, client, greet, open, server, trust, words};
use crate::common::obliging::{connect, with_server};
use crate::common::peer::{Peer, say};
use crate::common::{PATIENCE, eventually};
use crate::hello_capnp::hello;
use strait::{Received, RecvError, RequestError, SendError, Trust};

pub fn talk() {
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

pub fn unbegun() {
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

pub fn file_server(args: &[String]) {
    let app = server(&args[0]).allow(&client(), trust(&args[1])).channel::<cache::Owned>("files");
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

pub fn files() {
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

pub fn late() {
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

pub fn kept() {
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

pub fn read_again() {
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

pub fn foreign() {
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

pub fn one_arena() {
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

pub fn crossed_reply() {
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
