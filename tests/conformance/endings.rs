//! How channels, sessions and apps end, and what comes home then; what may be lent until then.

use super::{SLOTS, backing, client_app, connect, server_app, start_server, with_server, word};
use crate::common::apps::{Place, ask, greet, open, server, words};
use crate::common::peer::{Peer, hear, say};
use crate::common::{PATIENCE, census, eventually};
use crate::hello_capnp::hello;
use strait::{Backing, Channel, Ended, LoanQuota, RecvError, SendError};

/// Everything that comes until the end, and the end.
fn drain(channel: &mut Channel<hello::Owned>) -> (usize, Ended) {
    for received in 0.. {
        match channel.recv_timeout(PATIENCE) {
            Ok(message) => assert_eq!(words(&message), format!("flood {received}")),
            Err(RecvError::Ended(ended)) => return (received, ended.cause),
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!("no end")
}

pub fn a_channel_closes_after_what_was_sent(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let (mut closing, mut other) = (open(&session), open(&session));
        closing.send(&greet(&closing, "flood-and-close-channel 100")).expect("send");
        assert_eq!(drain(&mut closing), (100, Ended::ChannelClosed));
        assert!(matches!(closing.try_send(&greet(&closing, "note")), Err(SendError::Ended(_))));
        assert_eq!(ask(&mut other, "echo still there"), "still there");
    });
}

pub fn a_session_closes_after_what_was_sent(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let mut channel = open(&session);
        channel.send(&greet(&channel, "flood-and-close-session 100")).expect("send");
        assert_eq!(drain(&mut channel), (100, Ended::PeerClosed));
        assert_eq!(session.end(), Some(Ended::PeerClosed));
    });
}

pub fn what_was_sent_before_a_death_is_received(backing: Backing) {
    let place = Place::new();
    let peer = start_server(&place, backing);
    let session = connect(&place, backing);
    let mut channel = open(&session);
    let few = SLOTS - 1;
    channel.send(&greet(&channel, &format!("flood-and-die {few}"))).expect("send");
    eventually("its death", || session.end());
    assert_eq!(drain(&mut channel), (few as usize, Ended::PeerDied));
    drop((channel, session, peer));
    // The next one finds nothing in its way, and leaves nothing.
    drop(server_app(place.text(), backing).bind().expect("bind"));
    place.must_be_empty();
}

pub fn what_was_received_stays(backing: Backing) {
    let place = Place::new();
    let peer = start_server(&place, backing);
    let session = connect(&place, backing);
    let mut channel = open(&session);
    let kept: Vec<_> = (0..20)
        .map(|index| {
            let question = greet(&channel, &format!("echo {index}"));
            channel.request(&question, PATIENCE).expect("answer")
        })
        .collect();
    peer.kill();
    eventually("its death", || session.end());
    drop((channel, session));
    (0..20).for_each(|index| assert_eq!(words(&kept[index]), index.to_string()));
    drop(kept);
    drop(server_app(place.text(), backing).bind().expect("bind"));
    place.must_be_empty();
}

pub fn idle_client(args: &[String]) {
    let session = client_app(backing(&args[1])).connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    let received = channel.recv_timeout(PATIENCE).expect("recv");
    say(words(&received));
    hear();
    drop((received, channel, session));
}

pub fn the_death_of_a_client_is_noticed(backing: Backing) {
    let place = Place::new();
    let server = server_app(place.text(), backing).channel::<hello::Owned>("main").bind().expect("bind");
    let mut peer = Peer::start("client", &[place.text(), word(backing)]);
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    channel.send(&greet(&channel, "hold this")).expect("send");
    peer.must_say("hold this");
    assert_eq!(session.on_loan().0, 1);
    peer.kill();
    assert!(matches!(channel.recv(), Err(RecvError::Ended(ended)) if ended.cause == Ended::PeerDied));
    eventually("its loans are over", || (session.on_loan() == (0, 0)).then_some(()));
    drop((channel, session, server));
    place.must_be_empty();
    remove_stale(backing);
}

/// A killed client has no successor of its own here: whoever makes the next named memory clears up.
fn remove_stale(backing: Backing) {
    if backing == Backing::Named {
        let elsewhere = Place::new();
        drop(server_app(elsewhere.text(), backing).bind().expect("bind"));
    }
    assert_eq!(census::stale_names(), Vec::<String>::new());
}

pub fn quotas_hold(backing: Backing) {
    let place = Place::new();
    let app = server_app(place.text(), backing).loan_quota(LoanQuota { loans: 2, bytes: 100_000 });
    let server = app.channel::<hello::Owned>("main").bind().expect("bind");
    let mut peer = Peer::start("client", &[place.text(), word(backing)]);
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    let message = greet(&channel, "one of two");
    channel.send(&message).expect("send");
    peer.must_say("one of two");
    channel.send(&message).expect("send");
    assert!(matches!(channel.send(&message), Err(SendError::Quota(exceeded)) if exceeded.loans == 2));
    let large = greet(&channel, &"z".repeat(100_000));
    assert!(matches!(channel.send(&large), Err(SendError::Quota(_))));
    // The client leaves, and everything comes home.
    peer.tell("go");
    eventually("all returned", || (session.on_loan() == (0, 0)).then_some(()));
    drop((message, large, channel, session, server));
    peer.finish();
    place.must_be_empty();
}

pub fn unread_messages_go_home(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let (mut closing, mut other) = (open(&session), open(&session));
        closing.send(&greet(&closing, "burst 6")).expect("send");
        eventually("one of them", || closing.try_recv().expect("open"));
        drop(closing);
        // All but the question and its answer.
        eventually("unread ones are home", || (ask(&mut other, "loans").starts_with("(0, ")).then_some(()));
    });
}

pub fn killed_apps_leave_nothing(backing: Backing) {
    let place = Place::new();
    for _ in 0..3 {
        // Each time over what the one before left.
        let peer = start_server(&place, backing);
        let session = connect(&place, backing);
        assert_eq!(ask(&mut open(&session), "echo here"), "here");
        peer.kill();
        eventually("its death", || session.end());
    }
    drop(server_app(place.text(), backing).bind().expect("bind"));
    assert_eq!(census::stale_names(), Vec::<String>::new());
    place.must_be_empty();
}
