//! An honest server, an honest client of it, and room for raw peers that are not: what the hostile suites share. What
//! the server reports is what its `recv` or `send` returned.

// Every suite is a crate of its own and uses its part of this.
#![allow(dead_code, unreachable_pub)]

use crate::common::apps::{Place, ask, client, greet, open, server, trust};
use crate::common::peer::{Peer, hear, say};
use crate::common::{PATIENCE, census, eventually};
use crate::hello_capnp::hello;
use crate::raw::{self, Raw};
use strait::{AcceptError, Channel, ChannelError, ClientApp, Ended, PeerMisbehaved, Received, RecvError, SendError};
use strait::{Session, Trust};

/// The most bytes the honest server copies of a raw peer's message.
pub const LIMIT: u64 = 1 << 20;

/// A server that answers what it can read and says how each session ended. Runs until told `stop`.
pub fn honest(args: &[String]) {
    let believing = match args[1].as_str() {
        "snapshot" => Trust::snapshot_up_to(LIMIT),
        other => trust(other),
    };
    let app = server(&args[0]).slots(raw::SLOTS).channel::<hello::Owned>("main");
    let app = app.allow(&client(), Trust::snapshot()).allow(&ClientApp::new("raw"), believing);
    let server = app.bind().expect("bind");
    say("ready");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                match server.accept() {
                    Ok(session) => drop(scope.spawn(move || talk(&session))),
                    Err(AcceptError::Closed) => return,
                    Err(error) => say(format!("{error:?}")),
                }
            }
        });
        assert_eq!(hear(), "stop");
        server.close();
    });
}

fn talk(session: &Session) {
    let over = |cause: Ended| say(format!("{}: {cause:?}", session.peer_name()));
    let mut channel = match session.accept_channel_timeout::<hello::Owned>(PATIENCE) {
        Ok(channel) => channel,
        Err(ChannelError::Ended { cause, .. }) => return over(cause),
        Err(other) => panic!("{other}"),
    };
    loop {
        let received = match channel.recv() {
            Ok(received) => received,
            Err(RecvError::Ended(ended)) => return over(ended.cause),
            // The session ends for something else.
            Err(RecvError::Finished) => match session.accept_channel::<hello::Owned>() {
                Err(ChannelError::Ended { cause, .. }) => return over(cause),
                other => panic!("{other:?}"),
            },
            Err(other) => panic!("{other}"),
        };
        if let Err(SendError::Ended(ended)) = answer(&mut channel, received) {
            return over(ended.cause);
        }
    }
}

/// `burst N` is answered with N messages, anything else with itself.
fn answer(channel: &mut Channel<hello::Owned>, mut received: Received<hello::Owned>) -> Result<(), SendError> {
    // Random bytes need not be a message, nor text.
    let said = received.get().ok().and_then(|root| match root.which().ok()? {
        hello::Greet(text) | hello::Answer(text) => text.ok()?.to_string().ok(),
    });
    let mut said = said.unwrap_or_else(|| "unreadable".into());
    if !received.blobs().is_empty() {
        let bytes: Vec<_> = received.blobs().iter().map(|blob| blob.to_vec().expect("memory")).collect();
        said = format!("{said}, {} blobs, {} bytes", bytes.len(), bytes.concat().len());
    }
    match received.take_fds() {
        Ok(fds) if fds.is_empty() => {}
        Ok(fds) => said = format!("{said}, {} descriptors", fds.len()),
        Err(lost) => said = format!("{said}, {lost}"),
    }
    let echo = greet(channel, said.strip_prefix("echo ").unwrap_or(&said));
    match said.strip_prefix("burst ").and_then(|count| count.parse::<u32>().ok()) {
        Some(count) => (0..count).try_for_each(|_| channel.send(&echo).map(drop)),
        None => channel.reply(&received, &echo).map(drop),
    }
}

/// A server, an honest client of it, and room for others.
pub struct Scene {
    pub place: Place,
    pub peer: Peer,
    pub session: Session,
    pub channel: Channel<hello::Owned>,
    before: (usize, usize),
}

impl Scene {
    pub fn new(believing: &str) -> Self {
        let place = Place::new();
        let mut peer = Peer::start("honest", &[place.text(), believing]);
        peer.must_say("ready");
        let session = client().connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        assert_eq!(ask(&mut channel, "echo first"), "first");
        let before = holds(&peer);
        Self { place, peer, session, channel, before }
    }

    pub fn login(&self) -> Raw {
        Raw::login(self.place.path())
    }

    /// The server has noticed, everyone else has not.
    #[track_caller]
    pub fn must_report(&mut self, raw: &Raw, what: &str, expected: &str) {
        let line = self.peer.line();
        assert!(
            line == expected || (expected.ends_with('*') && line.starts_with(expected.trim_end_matches('*'))),
            "{what}: {line} where {expected} was expected"
        );
        raw.socket.must_end_with_goodbye(1);
        assert_eq!(ask(&mut self.channel, "echo still there"), "still there", "{what}");
    }

    #[track_caller]
    pub fn breach(&mut self, what: &str, broken: PeerMisbehaved, act: impl FnOnce(&mut Raw)) {
        let mut raw = self.login();
        act(&mut raw);
        self.must_report(&raw, what, &broke(broken));
    }

    pub fn end(self) {
        let Self { place, mut peer, session, channel, before, .. } = self;
        eventually("the server holds nothing of the ended sessions", || (holds(&peer) == before).then_some(()));
        session.close();
        peer.must_say("tester: PeerClosed");
        drop((channel, session));
        peer.tell("stop");
        // Its own census is part of a good end.
        peer.finish();
        place.must_be_empty();
    }
}

/// How many descriptors and mapped arenas a server has.
fn holds(peer: &Peer) -> (usize, usize) {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", peer.pid())).expect("procfs").count();
    (fds, census::maps(&peer.pid().to_string()).len())
}

pub fn broke(broken: PeerMisbehaved) -> String {
    format!("raw: {:?}", Ended::PeerMisbehaved(broken))
}
