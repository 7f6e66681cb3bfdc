//! Subscribers that are slower than their publisher, or dead; publishers that are gone.

use crate::common::apps::{Place, SHORT, client, server, trust};
use crate::common::peer::{Peer, hear, say};
use crate::common::{PATIENCE, eventually};
use crate::hello_capnp::hello;
use crate::{LAST, PATIENT, accept, all_returned, follow, publish, publishing, say_last, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strait::{Dismissed, Ended, Policy, PublishError, Publisher, Session, SessionServer, Subscriber, Trust, Wait};

/// A publisher with slots for 16 messages, and two followers: one as told, one that is waited for.
struct Pair {
    place: Place,
    server: SessionServer,
    publisher: Publisher<hello::Owned>,
    slow: Peer,
    other: Peer,
    sessions: [Session; 2],
}

impl Pair {
    fn new(policy: Policy) -> Self {
        let place = Place::new();
        let server = publishing(&place);
        let mut publisher = Publisher::new(server.arena(), 16).expect("room");
        let mut add = |policy| {
            let mut peer = follow(&place, "in_place", "park");
            let (session, channel) = accept(&server);
            publisher.add(channel, policy).expect("added");
            peer.must_say("subscribed");
            (peer, session)
        };
        let ((slow, first), (other, second)) = (add(policy), add(PATIENT));
        Self { place, server, publisher, slow, other, sessions: [first, second] }
    }

    fn stop(&self) {
        kill(Pid::from_raw(self.slow.pid() as i32), Signal::SIGSTOP).expect("stopped");
        eventually("it stopped", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.slow.pid())).expect("procfs");
            stat.rsplit(')').next()?.trim_start().starts_with('T').then_some(())
        });
    }

    fn go_on(&self) {
        kill(Pid::from_raw(self.slow.pid() as i32), Signal::SIGCONT).expect("continued");
    }

    /// The other has got all of them, and the slow one says what it has to say.
    fn end(mut self, count: u64, slow: impl FnOnce(&str)) {
        say_last(&mut self.publisher);
        self.other.must_say(&format!("{count} 0 {LAST}"));
        slow(&self.slow.line());
        for peer in [&mut self.slow, &mut self.other] {
            peer.tell("go");
        }
        all_returned(&mut self.publisher, &[&self.sessions[0], &self.sessions[1]]);
        drop((self.publisher, self.sessions, self.server));
        self.slow.finish();
        self.other.finish();
        self.place.must_be_empty();
    }
}

pub fn stopped_drop_oldest() {
    let mut pair = Pair::new(Policy::DropOldest);
    publish(&mut pair.publisher, 0..10);
    pair.stop();
    publish(&mut pair.publisher, 10..500);
    let lost = pair.publisher.subscribers().next().expect("there").lost;
    assert!(lost >= 500 - 32, "{lost}");
    pair.go_on();
    pair.end(500, |line| {
        let mut numbers = line.split(' ');
        let mut next = || numbers.next().expect("three words");
        let (count, lost, why) = (next(), next(), next());
        let [count, lost] = [count, lost].map(|number| number.parse::<u64>().expect("a number"));
        assert_eq!((count + lost, why), (500, LAST), "{line}");
        assert!(lost >= 500 - 42, "{line}");
    });
}

pub fn stopped_lossless() {
    let mut pair = Pair::new(Policy::Lossless { behind: 8 });
    pair.stop();
    publish(&mut pair.publisher, 0..500);
    assert_eq!(pair.publisher.take_dismissed(), [("tester".into(), Dismissed::TooSlow)]);
    pair.go_on();
    // It may have been looking at the next one.
    pair.end(500, |line| assert_eq!(line, "0 0 too slow"));
}

pub fn stopped_block() {
    let mut pair = Pair::new(Policy::Block { patience: SHORT });
    pair.stop();
    publish(&mut pair.publisher, 0..16);
    let next = text(&pair.publisher, &crate::numbered(16));
    assert_eq!(pair.publisher.try_publish(&next), Err(PublishError::Full));
    publish(&mut pair.publisher, 16..500);
    assert_eq!(pair.publisher.take_dismissed(), [("tester".into(), Dismissed::TooSlow)]);
    pair.go_on();
    pair.end(500, |line| assert_eq!(line, "0 0 too slow"));
}

pub fn waits_asleep() {
    let mut pair = Pair::new(PATIENT);
    pair.publisher.set_wait(Wait::Park);
    pair.stop();
    publish(&mut pair.publisher, 0..16);
    let slow = pair.slow.pid() as i32;
    let own = nix::unistd::gettid();
    // Continued once this thread sleeps.
    let waking = std::thread::spawn(move || {
        eventually("the publisher sleeps", || {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{own}/wchan")).expect("procfs");
            stat.contains("futex").then_some(())
        });
        kill(Pid::from_raw(slow), Signal::SIGCONT).expect("continued");
    });
    publish(&mut pair.publisher, 16..17);
    waking.join().expect("thread");
    pair.end(17, |line| assert_eq!(line, format!("17 0 {LAST}")));
}

pub fn killed() {
    let place = Place::new();
    let server = publishing(&place);
    let mut publisher = Publisher::new(server.arena(), 16).expect("room");
    let mut victim = Peer::start("holder", &[place.text()]);
    let (session, channel) = accept(&server);
    publisher.add(channel, Policy::DropOldest).expect("added");
    victim.must_say("subscribed");
    let mut other = follow(&place, "in_place", "adaptive");
    let (other_session, channel) = accept(&server);
    publisher.add(channel, PATIENT).expect("added");
    other.must_say("subscribed");
    publish(&mut publisher, 0..10);
    victim.tell("take 5");
    victim.must_say("taken");
    publish(&mut publisher, 10..100);
    assert_eq!(session.on_loan().0, 5);
    victim.kill();
    // At once, and without the publisher's help.
    eventually("everything is back", || (session.on_loan() == (0, 0)).then_some(()));
    assert_eq!(session.end(), Some(Ended::PeerDied));
    publish(&mut publisher, 100..300);
    assert_eq!(publisher.take_dismissed(), [("tester".into(), Dismissed::Left(Ended::PeerDied))]);
    say_last(&mut publisher);
    other.must_say(&format!("300 0 {LAST}"));
    other.tell("go");
    eventually("it left", || {
        publisher.collect();
        (publisher.subscribers().count() == 0).then_some(())
    });
    publisher.take_dismissed();
    // One that is waited for dies while it is.
    let mut victim = Peer::start("holder", &[place.text()]);
    let (third, channel) = accept(&server);
    publisher.add(channel, PATIENT).expect("added");
    victim.must_say("subscribed");
    let dying = std::thread::spawn(move || {
        // Whatever it is waited for with by then.
        std::thread::sleep(SHORT);
        victim.kill();
    });
    publish(&mut publisher, 0..17);
    dying.join().expect("thread");
    assert_eq!(publisher.take_dismissed(), [("tester".into(), Dismissed::Left(Ended::PeerDied))]);
    drop((publisher, session, other_session, third, server));
    other.finish();
    place.must_be_empty();
}

/// Publishes what it is told to the one subscriber that comes.
pub fn publisher(args: &[String]) {
    let app = server(&args[0]).allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
    let server = app.bind().expect("bind");
    say("ready");
    let (session, channel) = accept(&server);
    let mut publisher = Publisher::new(server.arena(), 64).expect("room");
    publisher.add(channel, PATIENT).expect("added");
    loop {
        match hear().as_str() {
            "publish" => {
                publish(&mut publisher, 0..10);
                say("published");
            }
            "drop" => {
                drop(publisher);
                say("dropped");
                assert_eq!(hear(), "go");
                break;
            }
            other => panic!("{other}"),
        }
    }
    drop((session, server));
}

pub fn publisher_killed() {
    for (believing, wait) in [("in_place", Wait::Park), ("snapshot", Wait::Adaptive)] {
        let place = Place::new();
        let mut peer = Peer::start("publisher", &[place.text()]);
        peer.must_say("ready");
        let session = client().trust(trust(believing)).connect(&place.server()).expect("connect");
        let mut subscriber = Subscriber::new(crate::common::apps::open(&session), PATIENCE).expect("subscribed");
        subscriber.set_wait(wait);
        peer.tell("publish");
        peer.must_say("published");
        assert_eq!(crate::common::apps::words(&subscriber.recv().expect("first")), crate::numbered(0));
        // Asleep when it dies, too.
        let reading = std::thread::spawn(move || {
            let messages: Vec<_> = (&mut subscriber).map(|message| message.expect("message")).collect();
            (messages, subscriber.recv().map(drop))
        });
        std::thread::sleep(SHORT);
        peer.kill();
        let (messages, error) = reading.join().expect("thread");
        assert!(
            matches!(&error, Err(strait::SubscriptionError::Ended(ended)) if ended.cause == Ended::PeerDied),
            "{error:?}"
        );
        let words: Vec<_> = messages.iter().map(crate::common::apps::words).collect();
        assert_eq!(words, (1..10).map(crate::numbered).collect::<Vec<_>>());
        drop((messages, session));
        // The dead one has left its socket.
        let _ = place;
    }
}

pub fn publisher_dropped() {
    let place = Place::new();
    let mut peer = Peer::start("publisher", &[place.text()]);
    peer.must_say("ready");
    let session = client().trust(trust("in_place")).connect(&place.server()).expect("connect");
    let mut subscriber = Subscriber::new(crate::common::apps::open(&session), PATIENCE).expect("subscribed");
    subscriber.set_wait(Wait::Park);
    peer.tell("publish");
    peer.must_say("published");
    let first = subscriber.recv().expect("first");
    let reading = std::thread::spawn(move || {
        while subscriber.recv().is_ok() {}
        subscriber.recv().map(drop)
    });
    peer.tell("drop");
    peer.must_say("dropped");
    let error = reading.join().expect("thread");
    assert!(
        matches!(&error, Err(strait::SubscriptionError::Ended(ended)) if ended.cause == Ended::ChannelClosed),
        "{error:?}"
    );
    // What was received is as it was.
    assert_eq!(crate::common::apps::words(&first), crate::numbered(0));
    drop(first);
    peer.tell("go");
    drop(session);
    peer.finish();
    place.must_be_empty();
}
