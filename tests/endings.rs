//! How sessions end, in both kinds of trust: who wakes, what still arrives, what stays readable.

mod common;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, TRUSTS, client, greet, open, server, trust, words};
use common::obliging::{connect, obliging_server, with_server};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, eventually, obliging};
use hello_capnp::hello;
use std::process::ExitCode;
use std::sync::mpsc;
use strait::{Ended, RecvError, SendError, Trust};

fn main() -> ExitCode {
    let cases = [
        Case::new("received_messages_outlive_everything", outlive),
        Case::new("a_channel_accepted_after_the_close_has_nothing", after_close),
        Case::new("close_wakes_a_sleeper", close_wakes),
        Case::new("a_dropped_session_maps_nothing", maps_nothing),
        Case::new("what_was_sent_before_the_end_arrives", drains),
        Case::new("what_was_sent_with_returns_before_the_end_arrives", drains_with_returns),
    ];
    common::main(&cases, &[("obliging", obliging::run), ("poet", poet)])
}

fn poet(args: &[String]) {
    let app = server(&args[0]).allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
    let server = app.bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    let poem = greet(&channel, &"so much depends upon ".repeat(10_000));
    channel.send(&poem).expect("send");
    drop(poem);
    hear();
}

fn outlive() {
    for believing in TRUSTS {
        let place = Place::new();
        let mut peer = Peer::start("poet", &[place.text(), believing]);
        peer.must_say("ready");
        let session = client().trust(trust(believing)).connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        let received = channel.recv_timeout(PATIENCE).expect("recv");
        drop(channel);
        session.close();
        drop(session);
        peer.kill();
        // In another thread, too.
        let thread = std::thread::spawn(move || assert!(words(&received) == "so much depends upon ".repeat(10_000)));
        thread.join().expect("thread");
        // Left by the dead.
        assert_eq!(common::census::files(place.path()), ["suite.lock", "suite.sock"]);
    }
}

/// Even if the other side still has a channel that was closed here.
fn maps_nothing() {
    with_server("in_place", |place, peer| {
        let maps = || common::census::maps("self").len();
        let session = connect(place, trust("in_place"));
        let mut channel = open(&session);
        let gate = greet(&channel, "gate");
        channel.send(&gate).expect("send");
        drop((gate, channel));
        let before = maps();
        drop(session);
        assert_eq!(maps() + 1, before, "the server's arena");
        peer.tell("open the gate");
        peer.must_say("session: PeerClosed");
    });
}

/// The state letter of a thread of this process.
fn state_of(thread: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

fn close_wakes() {
    for wait in [strait::Wait::Spin, strait::Wait::Adaptive, strait::Wait::Park] {
        with_server("snapshot", |place, _| {
            let session = connect(place, Trust::snapshot());
            let mut channel = open(&session);
            channel.set_wait(wait);
            let (give, take) = mpsc::channel();
            let thread = std::thread::spawn(move || {
                give.send(nix::unistd::gettid().as_raw()).expect("case");
                (channel.recv().map(drop), channel)
            });
            let id = take.recv().expect("thread");
            if wait != strait::Wait::Spin {
                eventually("it sleeps", || (state_of(id) == Some('S')).then_some(()));
            }
            session.close();
            let (result, mut channel) = thread.join().expect("thread");
            let Err(RecvError::Ended(ended)) = result else { panic!("{result:?}") };
            assert_eq!((ended.cause, ended.channel.as_str(), ended.peer.as_str()), (Ended::Closed, "main", "suite"));
            let message = greet(&channel, "echo no");
            assert!(matches!(channel.send(&message), Err(SendError::Ended(ended)) if ended.cause == Ended::Closed));
            assert_eq!(session.end(), Some(Ended::Closed));
        });
    }
}

fn drains() {
    // In place the server holds the question until it is done, so no slot carries it home.
    drains_from("in_place");
}

fn drains_with_returns() {
    drains_from("snapshot");
}

fn drains_from(believing: &str) {
    let causes = [
        ("flood-and-close-channel", Ended::ChannelClosed),
        ("flood-and-close-session", Ended::PeerClosed),
        ("flood-and-die", Ended::PeerDied),
    ];
    for (command, cause) in causes {
        let place = Place::new();
        let mut peer = obliging_server(&place, believing);
        let session = connect(&place, trust("in_place"));
        let mut channel = open(&session);
        let message = greet(&channel, &format!("{command} 200"));
        channel.send(&message).expect("send");
        let over = || session.end().is_some() || cause == Ended::ChannelClosed;
        eventually("the end of it", || over().then_some(()));
        for index in 0..200 {
            let received = channel.recv().unwrap_or_else(|error| panic!("{command} at {index}: {error:?}"));
            assert_eq!(words(&received), format!("flood {index}"));
        }
        let Err(RecvError::Ended(ended)) = channel.recv().map(drop) else { panic!("no end") };
        assert_eq!(ended.cause, cause);
        let Err(RecvError::Ended(ended)) = channel.try_recv().map(drop) else { panic!("no end") };
        assert_eq!(ended.cause, cause);
        let Err(SendError::Ended(ended)) = channel.send(&message).map(drop) else { panic!("no end") };
        assert_eq!(ended.cause, cause);
        drop((channel, session));
        if cause != Ended::PeerDied {
            peer.tell("stop");
            peer.finish();
            place.must_be_empty();
        }
    }
}

/// What was under way when this side closed is not for it any more, however late it asks.
fn after_close() {
    let place = Place::new();
    let app = place.server().allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
    let server = app.clone().bind().expect("bind");
    let connecting = std::thread::spawn(move || client().connect(&app));
    let theirs = server.accept().expect("accept");
    let ours = connecting.join().expect("thread").expect("connect");
    let mut channel = open(&ours);
    let message = greet(&channel, "too late");
    channel.send(&message).expect("send");
    theirs.close();
    let mut late = theirs.accept_channel::<hello::Owned>().expect("accept");
    match late.recv() {
        Err(RecvError::Ended(ended)) => assert_eq!(ended.cause, Ended::Closed),
        other => panic!("{other:?}"),
    }
}
