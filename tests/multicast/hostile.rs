//! Subscribers and publishers that break the rules of docs/protocol.md: each loses its own session, nobody else notices.

use crate::common::apps::{Place, SHORT, client, server};
use crate::common::eventually;
use crate::common::peer::{Peer, hear, say};
use crate::hello_capnp::hello;
use crate::raw::{ARENA, Frame, MESSAGES, Raw, SLOTS, area, handle, write};
use crate::{LAST, PATIENT, accept, follow, publish, publishing, say_last};
use strait::{
    Channel, ClientApp, Dismissed, Ended, PeerMisbehaved, Policy, Publisher, Session, Subscriber, SubscriptionError,
    Trust,
};

/// A raw subscriber beside an honest one.
struct Scene {
    place: Place,
    server: strait::SessionServer,
    publisher: Publisher<hello::Owned>,
    honest: Peer,
    session: Session,
    published: u64,
}

const RELEASED: u64 = 8;
const CLAIMED: u64 = 9;

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        let server = publishing(&place);
        let mut publisher = Publisher::new(server.arena(), 8).expect("room");
        let mut honest = follow(&place, "in_place", "park");
        let (session, channel) = accept(&server);
        publisher.add(channel, PATIENT).expect("added");
        honest.must_say("subscribed");
        Self { place, server, publisher, honest, session, published: 0 }
    }

    /// A raw peer subscribes.
    fn add(&mut self, policy: Policy) -> (Raw, Session) {
        let path = self.place.path().to_owned();
        let login = std::thread::spawn(move || Raw::login(&path));
        let (session, channel) = accept(&self.server);
        self.publisher.add(channel, policy).expect("added");
        let raw = login.join().expect("thread");
        let staged = eventually("it is told", || {
            let (frame, _) = raw.socket.recv().expect("a frame");
            (frame.u32_at(0) == 24).then_some(frame)
        });
        assert_eq!((staged.u32_at(4), staged.area_at(8).slots, staged.u64_at(20)), (1, 8, self.published));
        (raw, session)
    }

    fn publish(&mut self, count: u64) {
        publish(&mut self.publisher, self.published..self.published + count);
        self.published += count;
    }

    fn end(mut self) {
        say_last(&mut self.publisher);
        self.honest.must_say(&format!("{} 0 {LAST}", self.published));
        self.honest.tell("go");
        drop((self.publisher, self.session, self.server));
        self.honest.finish();
        self.place.must_be_empty();
    }
}

/// Says that it has claimed and released so much.
fn state(raw: &Raw, released: u64, claimed: u64) {
    raw.lane.publish(raw.lane.half.offset + CLAIMED, claimed);
    raw.lane.publish(raw.lane.half.offset + RELEASED, released);
}

pub fn words() {
    let mut scene = Scene::new();
    for (first, then) in [
        ((0, 0), (0, u64::MAX)),
        ((0, 0), (u64::MAX, u64::MAX)),
        ((0, 0), (2, 1)),
        ((2, 3), (1, 3)),
        ((2, 3), (2, 2)),
        ((2, 3), (0, 0)),
    ] {
        let (raw, session) = scene.add(Policy::DropOldest);
        let start = scene.published;
        let at = |word: u64| if word == u64::MAX { word } else { start + word };
        scene.publish(4);
        state(&raw, at(first.0), at(first.1));
        scene.publisher.collect();
        assert_eq!(session.end(), None, "{first:?}");
        state(&raw, at(then.0), at(then.1));
        scene.publish(1);
        scene.publisher.collect();
        let end = session.end();
        assert!(
            matches!(end, Some(Ended::PeerMisbehaved(PeerMisbehaved::CursorOutOfRange { .. }))),
            "{then:?}: {end:?}"
        );
        scene.publisher.collect();
        let dismissed = scene.publisher.take_dismissed();
        assert!(matches!(&dismissed[..], [(name, Dismissed::Left(Ended::PeerMisbehaved(_)))] if name == "raw"));
        raw.socket.must_end_with_goodbye(1);
    }
    scene.end();
}

pub fn hoards() {
    let mut scene = Scene::new();
    // It claims all there is, releases nothing, and says that it sleeps.
    let (raw, session) = scene.add(Policy::DropOldest);
    let start = scene.published;
    raw.lane.publish(raw.lane.half.offset + 16, 1);
    for round in 1..200 {
        scene.publish(1);
        state(&raw, start, start + round);
        assert!(session.on_loan().0 <= 16, "{:?}", session.on_loan());
    }
    assert_eq!(scene.publisher.take_dismissed(), [("raw".into(), Dismissed::TooSlow)]);
    assert_eq!(session.end(), None);
    drop(raw);
    eventually("everything is back", || (session.on_loan().0 == 0).then_some(()));
    // One that is waited for, and does nothing at all.
    let (raw, session) = scene.add(Policy::Block { patience: SHORT });
    scene.publish(20);
    assert_eq!(scene.publisher.take_dismissed(), [("raw".into(), Dismissed::TooSlow)]);
    drop((raw, session));
    scene.end();
}

/// Subscribes to whoever comes; says what came of each.
pub fn lied_to(args: &[String]) {
    let app = server(&args[0]).allow(&client(), Trust::snapshot()).allow(&ClientApp::new("raw"), Trust::snapshot());
    let server = app.channel::<hello::Owned>("main").bind().expect("bind");
    say("ready");
    while hear() == "next" {
        let session = server.accept().expect("accept");
        let channel: Channel<hello::Owned> = session.accept_channel().expect("channel");
        let ended = match Subscriber::new(channel, crate::PATIENCE) {
            Err(strait::SubscribeError::Ended(ended)) => ended,
            Err(other) => panic!("{other}"),
            Ok(mut subscriber) => loop {
                match subscriber.recv() {
                    Ok(message) => say(crate::common::apps::words(&message)),
                    Err(SubscriptionError::Ended(ended)) => break ended,
                    Err(other) => panic!("{other}"),
                }
            },
        };
        say(format!("{:?}", ended.cause));
    }
}

pub fn publishers() {
    let place = Place::new();
    let mut peer = Peer::start("lied to", &[place.text()]);
    peer.must_say("ready");
    // Where this side's ring is, and a slot of it.
    let ring = area(2);
    let slot = ring.offset + 48;
    let stage =
        |offset: u64, slots: u32, start: u64| Frame::control(24, 1).u64(8, offset).u32(16, slots).u64(20, start);
    let good = |raw: &Raw, id: u64, ticket: u32| {
        let len = write(&raw.own, MESSAGES, "good");
        let [low, high] = handle(ARENA, MESSAGES, len, ticket);
        [1 | 1 << 16, id, 0, low, high, 0, 0]
    };
    let put = |raw: &Raw, payload: [u64; 7], sequence: u64| {
        (slot..).zip(payload).for_each(|(at, word)| raw.own.store(at, word));
        raw.own.store(slot + 7, sequence);
        raw.own.wake(slot + 7);
    };
    type Lie<'a> = (&'a str, Box<dyn Fn(&Raw) + 'a>);
    let staged = |raw: &Raw| assert!(raw.socket.say(&stage(ring.offset, SLOTS, 0)));
    let lies: Vec<Lie<'_>> = vec![
        ("Frame(\"impossible ring\")", Box::new(|raw| assert!(raw.socket.say(&stage(ring.offset, 3, 0))))),
        ("Frame(\"impossible ring\")", Box::new(|raw| assert!(raw.socket.say(&stage(ring.offset + 1, SLOTS, 0))))),
        ("HandleOutOfRange", Box::new(|raw| assert!(raw.socket.say(&stage(1 << 35, SLOTS, 0))))),
        (
            "SequenceOutOfRange",
            Box::new(|raw| {
                put(raw, good(raw, 1, 0), 3);
                staged(raw)
            }),
        ),
        (
            "SequenceOutOfRange",
            Box::new(|raw| {
                put(raw, good(raw, 9, 0), 9);
                staged(raw)
            }),
        ),
        (
            "MessageId",
            Box::new(|raw| {
                put(raw, good(raw, 2, 0), 1);
                staged(raw)
            }),
        ),
        (
            "NoHandle",
            Box::new(|raw| {
                put(raw, good(raw, 1, 7), 1);
                staged(raw)
            }),
        ),
        (
            "UnknownSlotKind",
            Box::new(|raw| {
                put(raw, [99, 1, 0, 0, 0, 0, 0], 1);
                staged(raw)
            }),
        ),
        (
            "NoHandle",
            Box::new(|raw| {
                put(raw, [2, 1, 1, 0, 0, 0, 0], 1);
                staged(raw)
            }),
        ),
        (
            "UnexpectedDescriptor",
            Box::new(|raw| {
                let mut payload = good(raw, 1, 0);
                payload[0] |= 1 << 40;
                put(raw, payload, 1);
                staged(raw);
            }),
        ),
        (
            "HandleOutOfRange",
            Box::new(|raw| {
                let [low, high] = handle(ARENA, 1 << 35, 3, 0);
                put(raw, [1 | 1 << 16, 1, 0, low, high, 0, 0], 1);
                staged(raw);
            }),
        ),
    ];
    for (expected, lie) in lies {
        peer.tell("next");
        let raw = Raw::login(place.path());
        lie(&raw);
        let line = peer.line();
        assert!(line.starts_with(&format!("PeerMisbehaved({expected}")), "{line} where {expected} was expected");
    }
    // The control: what the document says is enough.
    peer.tell("next");
    let raw = Raw::login(place.path());
    staged(&raw);
    put(&raw, good(&raw, 1, 0), 1);
    peer.must_say("good");
    eventually("it says so", || {
        let half = raw.lane.their_half.offset;
        ((raw.theirs.load(half + RELEASED), raw.theirs.load(half + CLAIMED)) == (1, 1)).then_some(())
    });
    drop(raw);
    peer.must_say("PeerDied");
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}
