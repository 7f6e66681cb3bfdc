//! The cases about messages that go to more than one: lent to many, copied, sent on.

use super::{all_home, ask_with, blob, enter};
use crate::common::apps::{Place, ask, client, greet, open, words};
use crate::common::eventually;
use crate::common::peer::{Peer, hear, say};
use crate::common::{PATIENCE, apps};
use crate::hello_capnp::hello;
use crate::keeper;
use strait::{AllocError, Builder, ClientApp, CopyError, ForwardError, Forwarded, FreezeError, SendError, Trust};

fn keepers(count: usize) -> Vec<(Place, Peer)> {
    let one = |_| {
        let place = Place::new();
        let mut peer = Peer::start("keeper", &[place.text(), "in_place"]);
        peer.must_say("ready");
        (place, peer)
    };
    (0..count).map(one).collect()
}

fn stop(keepers: Vec<(Place, Peer)>) {
    for (_place, mut peer) in keepers {
        peer.tell("stop");
        peer.finish();
    }
}

/// Built before there is any session, in the app's arena.
pub fn many_servers() {
    let app = client();
    let arena = app.arena().expect("memory");
    let mut message = Builder::<hello::Owned>::new(&arena);
    message.init_root().set_greet("keep");
    message.attach_blob(blob(&arena, 1, 4 << 20));
    let message = message.freeze().expect("room");
    let mut keepers = keepers(4);
    let mut sessions: Vec<_> = keepers.iter().map(|(place, _)| enter(place, app.clone())).collect();
    for (session, channel) in &mut sessions {
        assert_eq!(words(&channel.request(&message, PATIENCE).expect("answer")), "1");
        assert!(session.on_loan().1 >= 4 << 20);
    }
    drop(message);
    // One copy, whoever has it.
    let resident = || arena.resident().expect("known");
    assert!(resident() < 8 << 20);
    let (_place, killed) = keepers.remove(0);
    killed.kill();
    all_home(&sessions[0].0);
    for (_session, channel) in sessions.iter_mut().skip(1) {
        assert_eq!(ask(channel, "find kept 1"), "1");
        arena.purge();
        assert!(resident() >= 4 << 20, "there while anyone has it");
        assert_eq!(ask(channel, "drop"), "1");
    }
    eventually("the last return frees it", || {
        arena.purge();
        (resident() < 4 << 20).then_some(())
    });
    drop(sessions);
    stop(keepers);
}

/// A client that receives one message with a blob and keeps it until told otherwise.
pub fn listener(args: &[String]) {
    let (_session, mut channel) = enter_at(&args[0]);
    let news = channel.recv_timeout(PATIENCE).expect("news");
    let bytes = news.blobs()[0].to_vec().expect("memory");
    say(keeper::is_filled(&bytes, 2));
    assert_eq!(hear(), "drop");
    drop(news);
    say("dropped");
    assert_eq!(hear(), "leave");
}

fn enter_at(dir: &str) -> (strait::Session, strait::Channel<hello::Owned>) {
    let session = client().connect(&apps::server(dir)).expect("connect");
    let channel = open(&session);
    (session, channel)
}

/// Built before anyone has come, in the server's arena.
pub fn many_clients() {
    let place = Place::new();
    let app = place.server().channel::<hello::Owned>("main").allow(&client(), Trust::snapshot());
    let server = app.bind().expect("bind");
    let mut news = server.create_msg::<hello::Owned>();
    news.init_root().set_answer("news");
    news.attach_blob(blob(server.arena(), 2, 4 << 20));
    let news = news.freeze().expect("room");
    let mut peers: Vec<_> = (0..4).map(|_| Peer::start("listener", &[place.text()])).collect();
    let mut sessions: Vec<_> = peers
        .iter()
        .map(|_| {
            let session = server.accept_timeout(PATIENCE).expect("a client");
            let channel = session.accept_channel_timeout::<hello::Owned>(PATIENCE).expect("its channel");
            (session, channel)
        })
        .collect();
    for (_session, channel) in &mut sessions {
        channel.send(&news).expect("room");
    }
    peers.iter_mut().for_each(|peer| peer.must_say("true"));
    drop(news);
    peers.remove(0).kill();
    for peer in &mut peers {
        server.arena().purge();
        assert!(server.arena().resident().expect("known") >= 4 << 20, "there while anyone has it");
        peer.tell("drop");
        peer.must_say("dropped");
    }
    eventually("the last return frees it", || {
        server.arena().purge();
        (server.arena().resident().expect("known") < 4 << 20).then_some(())
    });
    // A client waits for its server's end before it gives up what it could still be lent.
    drop(sessions);
    for mut peer in peers {
        peer.tell("leave");
        peer.finish();
    }
}

/// Two apps of one process have an arena each; so has an app with a peer of another user.
pub fn copied() {
    let mut keepers = keepers(1);
    {
        let place = &keepers[0].0;
        let (session, channel) = enter(place, client());
        let (_other, mut seen) = enter(place, ClientApp::new("other").timeout(PATIENCE));
        // Segments that grew, a blob, descriptors.
        let mut message = channel.create_msg();
        message.init_root().set_greet("find 3");
        message.attach_blob(blob(session.arena(), 3, 100_000)).attach_fd(keeper::full_pipe("passed"));
        let message = message.freeze().expect("room");
        assert_eq!(seen.send(&message), Err(SendError::ForeignArena));
        let copy = message.copy_to(seen.arena()).expect("room");
        assert!(copy.segments().eq(message.segments()) && copy.blobs()[0][..] == message.blobs()[0][..]);
        drop(message);
        assert_eq!(words(&seen.request(&copy, PATIENCE).expect("answer")), "100000:3");
        let long = "word ".repeat(10_000);
        let mut grown = Builder::<hello::Owned>::new(session.arena());
        grown.init_root().set_greet("sizes");
        grown.init_root().set_greet(&*long);
        grown.set_kind(9).init_root().set_answer(&*format!("sizes {long}"));
        let grown = grown.freeze().expect("room");
        assert!(grown.segments().len() > 1);
        let copy = grown.copy_to(seen.arena()).expect("room");
        assert_eq!((copy.kind(), copy.segments().eq(grown.segments())), (9, true));
        assert_eq!(words(&seen.request(&copy, PATIENCE).expect("answer")), "");
    }
    stop(std::mem::take(&mut keepers));
}

/// From one keeper to another, which finds what the first has made.
pub fn sent_on() {
    for believing in apps::TRUSTS {
        let keepers = keepers(2);
        {
            let from = client().trust(apps::trust(believing));
            let (first, mut source) = enter(&keepers[0].0, from);
            let (_second, mut target) = enter(&keepers[1].0, ClientApp::new("other").timeout(PATIENCE));
            for (question, answer) in [("make 7 300000", "true"), ("give 3", "pipe=0 pipe=1 pipe=2"), ("sizes", "")] {
                let question = greet(&source, question);
                let received = source.request(&question, PATIENCE).expect("answer");
                let Forwarded::Copied(id) = target.forward(&received).expect("sent") else { panic!("not copied") };
                // The first keeper's memory is not needed any more.
                drop(received);
                let answered = target.recv_timeout(PATIENCE).expect("answer");
                assert_eq!((words(&answered).as_str(), answered.in_reply_to()), (answer, Some(id)));
            }
            all_home(&first);
            eventually("what was sent on is home", || (ask(&mut source, "loans") == "0").then_some(()));
        }
        stop(keepers);
    }
}

pub fn changed() {
    for believing in apps::TRUSTS {
        let keepers = keepers(1);
        {
            let (session, mut channel) = enter(&keepers[0].0, client().trust(apps::trust(believing)));
            let question = greet(&channel, "make 7 1000");
            let received = channel.request(&question, PATIENCE).expect("answer");
            let mut changed = received.to_builder(session.arena()).expect("well-formed");
            assert!(
                matches!(changed.get_root().expect("root").into_reader().which(), Ok(hello::Answer(Ok(text))) if text == "made")
            );
            changed.get_root().expect("root").set_greet("sizes");
            changed.attach_blob(blob(session.arena(), 0, 12));
            assert_eq!(words(&received), "made", "the original is as it was");
            drop(received);
            let changed = changed.freeze().expect("room");
            assert_eq!(words(&channel.request(&changed, PATIENCE).expect("answer")), "12");
        }
        stop(keepers);
    }
}

pub fn no_room() {
    let keepers = keepers(1);
    {
        let (_session, mut channel) = enter(&keepers[0].0, client());
        let small = ClientApp::new("other").timeout(PATIENCE).arena_bytes(1 << 20);
        let (_small, mut full) = enter(&keepers[0].0, small);
        let question = greet(&channel, "make 7 2000000");
        let received = channel.request(&question, PATIENCE).expect("answer");
        let refused = full.forward(&received);
        let no_room = CopyError::Freeze(FreezeError::Alloc(AllocError::Full { bytes: 2_000_000 }));
        assert_eq!(format!("{:?}", refused.expect_err("no room")), format!("{:?}", ForwardError::Copy(no_room)));
        let large = blob(channel.arena(), 1, 2_000_000);
        let mut message = channel.create_msg();
        message.attach_blob(large);
        let message = message.freeze().expect("room");
        let refused = message.copy_to(full.arena()).map(drop);
        assert_eq!(refused, Err(FreezeError::Alloc(AllocError::Full { bytes: 2_000_000 })));
        assert_eq!(ask_with(&mut full, "sizes", &[]), "");
    }
    stop(keepers);
}
