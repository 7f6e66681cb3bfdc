//! Channels that are opened later or offered with metadata, and apps of another backing, which are refused.

use super::{backing, client_app, connect, server_app, with_server, word};
use crate::common::apps::{Place, ask, client, greet, open, trust, words};
use crate::common::peer::{Peer, say};
use crate::common::{PATIENCE, apps};
use crate::hello_capnp::hello;
use strait::{AcceptError, Backing, Channel, ConnectError, LoginError, RecvError, Session, Trust};

pub fn channels_are_opened_later(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let mut channels: Vec<_> = (0..50).map(|_| open(&session)).collect();
        for round in 0..3 {
            for channel in &mut channels {
                assert_eq!(ask(channel, &format!("echo {round}")), round.to_string());
            }
        }
        drop(channels.drain(10..));
        channels.extend((0..20).map(|_| open(&session)));
        channels.iter_mut().for_each(|channel| assert_eq!(ask(channel, "echo last"), "last"));
    });
}

/// Takes what it is offered, hears it out, answers, and offers a channel itself.
pub fn judge(args: &[String]) {
    let server = server_app(&args[0], backing(&args[1])).offers(1).bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut offer = session.accept_offer().expect("an offer");
    let metadata = offer.metadata::<hello::Owned>().expect("readable").expect("some");
    let mut channel = offer.accept::<hello::Owned>().expect("accepted");
    let mut heard = 0;
    let end = loop {
        match channel.recv_timeout(PATIENCE) {
            Ok(_) => heard += 1,
            Err(end) => break end,
        }
    };
    assert!(matches!(end, RecvError::Finished), "{end}");
    // The other direction is open still.
    channel.send(&greet(&channel, &format!("{} and {heard} more", words(&metadata)))).expect("send");
    let mut own = session.create_msg::<hello::Owned>();
    own.init_root().set_greet("of the server");
    let own = own.freeze().expect("room");
    let mut theirs = session.open_channel_with::<hello::Owned, _>("back", &own, PATIENCE).expect("accepted");
    assert!(words(&theirs.recv().expect("recv")).len() > 60_000);
    assert!(matches!(theirs.recv(), Err(RecvError::Finished | RecvError::Ended(_))));
}

fn with_judge(backing: Backing, talk: impl FnOnce(Session)) {
    let place = Place::new();
    let mut peer = Peer::start("judge", &[place.text(), word(backing)]);
    peer.must_say("ready");
    talk(client_app(backing).offers(1).connect(&place.server()).expect("connect"));
    peer.finish();
    place.must_be_empty();
}

/// Opens a channel, says all of `notes` and no more.
fn offered(session: &Session, notes: usize) -> Channel<hello::Owned> {
    let mut metadata = session.create_msg::<hello::Owned>();
    metadata.init_root().set_greet("of the client");
    let metadata = metadata.freeze().expect("room");
    let mut channel = session.open_channel_with::<hello::Owned, _>("forth", &metadata, PATIENCE).expect("accepted");
    for _ in 0..notes {
        channel.send_timeout(&greet(&channel, "note"), PATIENCE).expect("send");
    }
    channel.finish();
    channel
}

fn accept_back(session: &Session) {
    let mut offer = session.accept_offer_timeout(PATIENCE).expect("an offer");
    let metadata = offer.metadata::<hello::Owned>().expect("readable").expect("some");
    assert_eq!((words(&metadata).as_str(), offer.name()), ("of the server", "back"));
    let mut back = offer.accept::<hello::Owned>().expect("accepted");
    back.send(&greet(&back, &"w".repeat(65_000))).expect("send");
    back.close(PATIENCE).expect("received");
}

pub fn channels_are_offered_with_metadata(backing: Backing) {
    with_judge(backing, |session| {
        let mut channel = offered(&session, 0);
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "of the client and 0 more");
        accept_back(&session);
    });
}

pub fn one_direction_ends_before_the_other(backing: Backing) {
    with_judge(backing, |session| {
        let mut channel = offered(&session, 100);
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "of the client and 100 more");
        // The last of a hundred has been taken, which has to be known here.
        channel.drain(PATIENCE).expect("received");
        accept_back(&session);
    });
}

pub fn other_backings_are_refused(backing: Backing) {
    let place = Place::new();
    let server = server_app(place.text(), backing).channel::<hello::Owned>("main").bind().expect("bind");
    std::thread::scope(|scope| {
        for other in [Backing::Memfd, Backing::Named, Backing::Heap].into_iter().filter(|&other| other != backing) {
            let accepting = scope.spawn(|| server.accept().map(drop));
            let refused = client_app(other).trust(trust("in_place")).connect(&place.server()).map(drop);
            let (ours, theirs) = (other, backing);
            let expected = LoginError::OtherBacking { ours, theirs };
            assert!(matches!(refused, Err(ConnectError::Refused(found)) if found == expected), "{other:?}");
            let told = accepting.join().expect("accepting thread");
            let expected = LoginError::OtherBacking { ours: theirs, theirs: ours };
            assert!(matches!(told, Err(AcceptError::Refused(found)) if found == expected), "{other:?}");
        }
        if backing == Backing::Named {
            // The client would not believe the server,
            let refused = client_app(backing).trust(Trust::snapshot()).connect(&place.server()).map(drop);
            assert!(matches!(refused, Err(ConnectError::Refused(LoginError::NamedNeedsTrust))));
        }
    });
    drop(server);
    if backing == Backing::Named {
        // nor this server the client.
        let server = apps::server(place.text()).backing(backing).allow(&client(), Trust::snapshot());
        let server = server.bind().expect("bind");
        std::thread::scope(|scope| {
            let accepting = scope.spawn(|| server.accept().map(drop));
            let refused = client_app(backing).connect(&place.server()).map(drop);
            assert!(matches!(refused, Err(ConnectError::Refused(LoginError::NamedNeedsTrust))));
            let told = accepting.join().expect("accepting thread");
            assert!(matches!(told, Err(AcceptError::Refused(LoginError::NamedNeedsTrust))));
        });
    }
    place.must_be_empty();
}
