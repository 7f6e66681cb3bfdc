//! Subscribers that do as they should.

use crate::common::apps::{self, Place, SHORT, client, open, server, trust, words};
use crate::common::peer::{Peer, hear, say};
use crate::common::{PATIENCE, eventually};
use crate::hello_capnp::hello;
use crate::{LAST, PATIENT, accept, all_returned, follow, numbered, publish, publishing, say_last, text};
use std::os::fd::OwnedFd;
use strait::{
    AddError, Arena, Backing, ClientApp, Ended, Policy, PublishError, Publisher, SubscribeError, Subscriber,
    SubscriptionError, Trust,
};

const COUNT: u64 = 2000;

pub fn everything() {
    let place = Place::new();
    let server = publishing(&place);
    let ways = [("in_place", "park"), ("snapshot", "adaptive"), ("in_place", "adaptive")];
    let mut publisher = Publisher::new(server.arena(), 32).expect("room");
    let mut sessions = Vec::new();
    let mut peers: Vec<Peer> = ways
        .iter()
        .map(|(believing, wait)| {
            let mut peer = follow(&place, believing, wait);
            let (session, channel) = accept(&server);
            publisher.add(channel, PATIENT).expect("added");
            peer.must_say("subscribed");
            sessions.push(session);
            peer
        })
        .collect();
    publish(&mut publisher, 0..COUNT / 2);
    // One that comes later begins where it came.
    let mut late = follow(&place, "in_place", "park");
    let (session, channel) = accept(&server);
    publisher.add(channel, PATIENT).expect("added");
    late.must_say("subscribed");
    publish(&mut publisher, COUNT / 2..COUNT);
    say_last(&mut publisher);
    for peer in &mut peers {
        peer.must_say(&format!("{COUNT} 0 {LAST}"));
    }
    late.must_say(&format!("{} 0 {LAST}", COUNT / 2));
    peers.push(late);
    sessions.push(session);
    // Nothing was ever lent to anyone by itself.
    assert!(sessions.iter().all(|session| session.on_loan() == (0, 0)));
    let states: Vec<_> = publisher.subscribers().collect();
    assert!(states.len() == 4 && states.iter().all(|state| state.peer == "tester" && state.lost == 0), "{states:?}");
    assert_eq!(publisher.take_dismissed(), []);
    publisher.close(PATIENCE).expect("all read");
    drop((sessions, server));
    for mut peer in peers {
        peer.tell("go");
        peer.finish();
    }
    place.must_be_empty();
}

/// Receives as it is told, keeps what it received, and checks it at the end.
pub fn holder(args: &[String]) {
    let session = client().trust(trust("in_place")).connect(&server(&args[0])).expect("connect");
    let mut subscriber = Some(Subscriber::new(open(&session), PATIENCE).expect("subscribed"));
    say("subscribed");
    let mut held = Vec::new();
    loop {
        let line = hear();
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("take", count) => {
                let count: usize = count.parse().expect("a number");
                let subscriber = subscriber.as_mut().expect("subscribed");
                let error = (0..count).find_map(|_| match subscriber.recv_timeout(PATIENCE) {
                    Ok(message) => {
                        held.push(message);
                        None
                    }
                    Err(error) => Some(error),
                });
                say(error.map_or("taken".into(), |error| format!("{error:?}")));
            }
            ("drop", which) => {
                // In another thread.
                let message = held.remove(which.parse().expect("a number"));
                std::thread::spawn(move || drop(message)).join().expect("thread");
                say("dropped");
            }
            ("unsubscribe", _) => {
                drop(subscriber.take());
                say("unsubscribed");
            }
            ("check", _) => say(held.iter().map(words).collect::<Vec<_>>().join(" ")),
            ("go", _) => return,
            other => panic!("{other:?}"),
        }
    }
}

pub fn any_order() {
    let place = Place::new();
    let server = publishing(&place);
    let mut publisher = Publisher::new(server.arena(), 8).expect("room");
    let mut peer = Peer::start("holder", &[place.text()]);
    let (session, channel) = accept(&server);
    publisher.add(channel, PATIENT).expect("added");
    peer.must_say("subscribed");
    publish(&mut publisher, 0..8);
    peer.tell("take 8");
    peer.must_say("taken");
    // The oldest is what counts.
    for which in [3, 6, 2] {
        peer.tell(&format!("drop {which}"));
        peer.must_say("dropped");
    }
    let more = text(&publisher, &numbered(8));
    assert_eq!(publisher.try_publish(&more), Err(PublishError::Full));
    assert_eq!(publisher.publish_timeout(&more, SHORT), Err(PublishError::TimedOut));
    for _ in 0..2 {
        peer.tell("drop 0");
        peer.must_say("dropped");
    }
    // 0 and 1 went now, 2 and 3 before.
    publish(&mut publisher, 8..12);
    let more = text(&publisher, &numbered(12));
    assert_eq!(publisher.try_publish(&more), Err(PublishError::Full));
    peer.tell("check");
    peer.must_say(&[4, 5, 6].map(numbered).join(" "));
    peer.tell("take 4");
    peer.must_say("taken");
    peer.tell("check");
    peer.must_say(&[4, 5, 6, 8, 9, 10, 11].map(numbered).join(" "));
    peer.tell("go");
    drop((publisher, session, server));
    peer.finish();
    place.must_be_empty();
}

pub fn holding() {
    let place = Place::new();
    let server = publishing(&place);
    let mut publisher = Publisher::new(server.arena(), 4).expect("room");
    let mut peer = Peer::start("holder", &[place.text()]);
    let (session, channel) = accept(&server);
    publisher.add(channel, Policy::DropOldest).expect("added");
    peer.must_say("subscribed");
    // It reads a lap without dropping anything, and the publisher goes on.
    publish(&mut publisher, 0..4);
    peer.tell("take 4");
    peer.must_say("taken");
    publish(&mut publisher, 4..100);
    peer.tell("take 1");
    peer.must_say("Holding");
    // What it holds is as it was.
    peer.tell("check");
    peer.must_say(&[0, 1, 2, 3].map(numbered).join(" "));
    assert_eq!(session.on_loan().0, 4);
    for _ in 0..4 {
        peer.tell("drop 0");
        peer.must_say("dropped");
    }
    all_returned(&mut publisher, &[&session]);
    peer.tell("take 2");
    peer.must_say("taken");
    peer.tell("check");
    let kept = peer.line();
    let first: u64 = kept.split('.').next().expect("a number").parse().expect("a number");
    assert!((96..99).contains(&first), "{kept}");
    assert_eq!(kept, [first, first + 1].map(numbered).join(" "));
    peer.tell("go");
    drop((publisher, session, server));
    peer.finish();
    place.must_be_empty();
}

pub fn outlives() {
    let place = Place::new();
    let server = publishing(&place);
    let mut publisher = Publisher::new(server.arena(), 8).expect("room");
    let mut peer = Peer::start("holder", &[place.text()]);
    let (session, channel) = accept(&server);
    publisher.add(channel, PATIENT).expect("added");
    peer.must_say("subscribed");
    publish(&mut publisher, 0..4);
    peer.tell("take 3");
    peer.must_say("taken");
    peer.tell("unsubscribe");
    peer.must_say("unsubscribed");
    let left = eventually("it left", || {
        publisher.collect();
        publisher.take_dismissed().pop()
    });
    assert_eq!(left, ("tester".into(), strait::Dismissed::Left(Ended::ChannelClosed)));
    assert_eq!((publisher.subscribers().count(), session.on_loan().0), (0, 3));
    // The ring goes around, and memory is used anew.
    publish(&mut publisher, 4..200);
    peer.tell("check");
    peer.must_say(&[0, 1, 2].map(numbered).join(" "));
    peer.tell("drop 0");
    peer.must_say("dropped");
    eventually("one is back", || {
        publisher.collect();
        (session.on_loan().0 == 2).then_some(())
    });
    // Nor does it matter that the publisher goes.
    drop(publisher);
    peer.tell("check");
    peer.must_say(&[1, 2].map(numbered).join(" "));
    peer.tell("go");
    eventually("the end of the socket", || (session.on_loan().0 == 0).then_some(()));
    drop((session, server));
    peer.finish();
    place.must_be_empty();
}

pub fn freed() {
    const BYTES: usize = 1 << 20;
    let place = Place::new();
    let server = publishing(&place);
    let mut publisher = Publisher::<hello::Owned>::new(server.arena(), 64).expect("room");
    // Nobody to publish to: nothing is kept.
    let big = |publisher: &Publisher<hello::Owned>| text(publisher, &"x".repeat(BYTES));
    for _ in 0..100 {
        let message = big(&publisher);
        publisher.publish(&message).expect("published");
    }
    let mut peer = Peer::start("holder", &[place.text()]);
    let (session, channel) = accept(&server);
    publisher.add(channel, PATIENT).expect("added");
    peer.must_say("subscribed");
    // Held by nobody but the publisher: they go with the subscriber.
    let message = big(&publisher);
    publisher.publish(&message).expect("published");
    peer.tell("take 1");
    peer.must_say("taken");
    peer.tell("drop 0");
    peer.must_say("dropped");
    peer.tell("go");
    eventually("it left", || {
        publisher.collect();
        (publisher.subscribers().count() == 0).then_some(())
    });
    drop((message, publisher, session, server));
    peer.finish();
    place.must_be_empty();
}

pub fn refused() {
    let place = Place::new();
    let server = publishing(&place);
    let mut publisher = Publisher::<hello::Owned>::new(server.arena(), 8).expect("room");
    let app = place.server();
    let connecting = std::thread::spawn(move || {
        let session = client().connect(&app).expect("connect");
        let channel = open(&session);
        (session, channel)
    });
    let (session, channel) = accept(&server);
    let (ours, mine) = connecting.join().expect("thread");
    // Another arena, for the message and for the session.
    let foreign = apps::greet(&mine, "elsewhere");
    assert_eq!(publisher.publish(&foreign), Err(PublishError::ForeignArena));
    let mut other = Publisher::<hello::Owned>::new(ours.arena(), 8).expect("room");
    assert_eq!(other.add(channel, PATIENT), Err(AddError::ForeignArena));
    let mut builder = publisher.create_msg();
    builder.attach_fd(OwnedFd::from(std::fs::File::open("/dev/null").expect("null")));
    let passing = builder.freeze().expect("room");
    assert_eq!(publisher.publish(&passing), Err(PublishError::Descriptors));
    // A channel over which nothing is published; one that is closed.
    let error = Subscriber::new(open(&ours), SHORT).expect_err("nothing is published");
    assert_eq!(error, SubscribeError::TimedOut);
    session.close();
    let error = Subscriber::new(mine, PATIENCE).expect_err("closed");
    assert!(matches!(error, SubscribeError::Ended(_)), "{error:?}");
    drop((foreign, passing, publisher, other, ours, session, server));
    place.must_be_empty();
    not_shared();
}

/// Nothing of either is mapped in a child, which must be told so and not crash, nor disturb its parent.
pub fn forked() {
    let place = Place::new();
    let server = publishing(&place);
    let mut publisher = Publisher::new(server.arena(), 8).expect("room");
    let app = place.server();
    let connecting = std::thread::spawn(move || {
        let session = client().trust(trust("in_place")).connect(&app).expect("connect");
        let channel = open(&session);
        (session, channel)
    });
    let (session, channel) = accept(&server);
    let (ours, mine) = connecting.join().expect("thread");
    publisher.add(channel, PATIENT).expect("added");
    let mut subscriber = Subscriber::new(mine, PATIENCE).expect("subscribed");
    publish(&mut publisher, 0..2);
    let message = text(&publisher, &numbered(2));
    let held = subscriber.recv().expect("first");
    // SAFETY: the child runs this library only, whose locks no other thread of this process holds now; it leaves by
    // `_exit`.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        nix::unistd::ForkResult::Child => {
            let told = publisher.publish(&message) == Err(PublishError::ForkedProcess)
                && matches!(subscriber.try_recv(), Err(SubscriptionError::Ended(ended)) if ended.cause == Ended::ForkedProcess);
            publisher.collect();
            drop((held, subscriber, publisher));
            // SAFETY: always allowed.
            unsafe { nix::libc::_exit(i32::from(!told)) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).expect("wait");
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
        }
    }
    publisher.publish(&message).expect("published");
    let next: Vec<_> =
        [subscriber.recv(), subscriber.recv()].into_iter().map(|one| words(&one.expect("message"))).collect();
    assert_eq!(next, [1, 2].map(numbered));
    drop((held, subscriber, publisher, message, ours, session, server));
    place.must_be_empty();
}

/// Where no memory is shared there is nothing to write once.
fn not_shared() {
    let place = Place::new();
    let heap = |app: strait::ServerApp| app.backing(Backing::Heap);
    let app = heap(place.server()).allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
    let server = app.clone().bind().expect("bind");
    let connecting = std::thread::spawn(move || {
        let client: ClientApp = client().backing(Backing::Heap);
        client.connect(&app).expect("connect")
    });
    let session = server.accept().expect("accept");
    let ours = connecting.join().expect("thread");
    let mine = open(&ours);
    let channel = session.accept_channel::<hello::Owned>().expect("channel");
    let arena: Arena = session.arena().clone();
    let mut publisher = Publisher::new(&arena, 8).expect("room");
    assert_eq!(publisher.add(channel, PATIENT), Err(AddError::NotShared));
    drop((publisher, arena, mine, ours, session, server));
    place.must_be_empty();
}
