//! Who may have what: instances, programs, quotas; and coming again after having been refused.

mod common;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, SHORT, ask, client, greet, open, server, words};
use common::peer::{Peer, say};
use common::{Case, PATIENCE, census, eventually, obliging};
use hello_capnp::hello;
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use strait::{
    BindError, Channel, ChannelError, ClientApp, ConnectError, DescriptorsLost, LoginError, QuotaExceeded, QuotaScope,
    SendError,
};
use strait::{ServerApp, Session, Trust, UserQuota};

fn main() -> ExitCode {
    let cases = [
        Case::new("instances_of_an_app", instances),
        Case::new("names_of_instances", names),
        Case::new("programs", programs),
        Case::new("a_users_sessions", sessions),
        Case::new("a_users_channels", channels),
        Case::new("a_users_loans", loans),
        Case::new("a_users_descriptors", descriptors),
        Case::new("clients_come_again_once_there_is_a_server", retrying),
        Case::new("clients_come_again_after_a_server_died", reconnecting),
        Case::new("clients_do_not_come_again_for_nothing", hopeless),
    ];
    let roles: &[common::Role] = &[("instance", instance), ("limited", limited), ("obliging", obliging::run)];
    common::main(&cases, roles)
}

/// An obliging server that is one of several; arguments: where, its name.
fn instance(args: &[String]) {
    let app = server(&args[0]).instance(&args[1]).allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
    obliging::run_app(app, |session| say(format!("in: {}", session.peer_name())));
}

fn instances() {
    let place = Place::new();
    let mut peers: Vec<Peer> = ["one", "two"].map(|name| Peer::start("instance", &[place.text(), name])).into();
    peers.iter_mut().for_each(|peer| peer.must_say("ready"));
    assert_eq!(census::files(place.path()), ["suite.one.lock", "suite.one.sock", "suite.two.lock", "suite.two.sock"]);
    for (name, peer) in ["one", "two"].iter().zip(&mut peers) {
        let session = client().connect(&place.server().instance(*name)).expect("connect");
        peer.must_say("in: tester");
        assert_eq!(session.peer().pid, peer.pid() as i32);
        assert_eq!(ask(&mut open(&session), "echo here"), "here");
        drop(session);
        peer.must_say("session: PeerClosed");
        let taken = place.server().instance(*name).bind();
        assert!(matches!(taken, Err(BindError::AddrInUse { .. })), "{taken:?}");
    }
    for missing in [place.server(), place.server().instance("three")] {
        assert!(matches!(client().connect(&missing), Err(ConnectError::NotFound { .. })));
    }
    // Another app whose name looks like an instance of this one is not taken for it.
    let other = ServerApp::new("suite.three").run_dir(place.path()).allow(&client(), Trust::snapshot());
    let other = other.bind().expect("bind");
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(other.accept().is_err()));
        match client().connect(&place.server().instance("three")) {
            Err(ConnectError::Refused(LoginError::NotAllowed { client })) => assert_eq!(client, "tester"),
            other => panic!("{other:?}"),
        }
    });
    drop(other);
    for mut peer in peers {
        peer.tell("stop");
        peer.finish();
    }
    place.must_be_empty();
}

fn names() {
    let place = Place::new();
    for bad in ["", ".", "a/b", "..", "ü", &"x".repeat(59)] {
        let app = place.server().instance(bad);
        assert!(matches!(client().connect(&app), Err(ConnectError::BadName(_))), "{bad}");
        assert!(matches!(app.bind(), Err(BindError::BadName(_))), "{bad}");
    }
    drop(place.server().instance("x".repeat(58)).bind().expect("64 characters in all"));
    place.must_be_empty();
}

/// An obliging server with a limit, or one more line on its allow-list; arguments: where, which.
fn limited(args: &[String]) {
    let unlimited = UserQuota::default();
    let app = server(&args[0]).channel::<hello::Owned>("main");
    let quota = |quota: UserQuota| (client(), quota);
    let (client, quota) = match args[1].as_str() {
        "sessions" => quota(UserQuota { sessions: 2, ..unlimited }),
        "channels" => quota(UserQuota { channels: 3, ..unlimited }),
        "loans" => quota(UserQuota { loans: 10, ..unlimited }),
        "bytes" => quota(UserQuota { bytes: 1 << 20, ..unlimited }),
        program => (client().program(program), unlimited),
    };
    obliging::run_app(app.user_quota(quota).allow(&client, Trust::snapshot()), |_| {});
}

fn with_limit(which: &str, talk: impl FnOnce(&Place, &mut Peer)) {
    let place = Place::new();
    let mut peer = Peer::start("limited", &[place.text(), which]);
    peer.must_say("ready");
    talk(&place, &mut peer);
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}

fn connect(place: &Place) -> Session {
    client().connect(&place.server()).expect("connect")
}

fn programs() {
    let own = std::env::current_exe().expect("own path");
    with_limit(own.to_str().expect("plain"), |place, peer| {
        let session = connect(place);
        assert_eq!(ask(&mut open(&session), "echo me"), "me");
        drop(session);
        peer.must_say("session: PeerClosed");
    });
    with_limit("/usr/bin/another", |place, peer| {
        let refused = LoginError::WrongProgram { client: "tester".into() };
        match client().connect(&place.server()) {
            Err(ConnectError::Refused(found)) => assert_eq!(found, refused),
            other => panic!("{other:?}"),
        }
        peer.must_say(&format!("accept: {:?}", strait::AcceptError::Refused(refused)));
    });
}

fn sessions() {
    with_limit("sessions", |place, peer| {
        let (one, two) = (connect(place), connect(place));
        let uid = nix::unistd::geteuid().as_raw();
        match client().connect(&place.server()) {
            Err(ConnectError::Refused(LoginError::TooManySessions { uid: found })) => assert_eq!(found, uid),
            other => panic!("{other:?}"),
        }
        peer.must_say(&format!("accept: {:?}", strait::AcceptError::Refused(LoginError::TooManySessions { uid })));
        // The others notice nothing; and an end makes room.
        assert_eq!(ask(&mut open(&one), "echo still there"), "still there");
        drop(two);
        peer.must_say("session: PeerClosed");
        // The server may have heard of it a moment before it has given it all up.
        let again = eventually("room", || match client().connect(&place.server()) {
            Ok(session) => Some(session),
            Err(ConnectError::Refused(LoginError::TooManySessions { .. })) => {
                assert!(peer.line().starts_with("accept: Refused"));
                None
            }
            Err(other) => panic!("{other}"),
        });
        assert_eq!(ask(&mut open(&again), "echo again"), "again");
        drop(again);
        peer.must_say("session: PeerClosed");
        drop(one);
        peer.must_say("session: PeerClosed");
    });
}

fn channels() {
    with_limit("channels", |place, _| {
        let (one, two) = (connect(place), connect(place));
        let mut channels = [open(&one), open(&one), open(&two)];
        for session in [&one, &two] {
            let more = session.open_channel::<hello::Owned>("main", PATIENCE).map(drop);
            assert_eq!(more, Err(ChannelError::TooMany));
        }
        channels.iter_mut().for_each(|channel| assert_eq!(ask(channel, "echo works"), "works"));
        // Also those of the log-in.
        let eager = client().channel::<hello::Owned>("main").connect(&place.server());
        assert!(matches!(eager, Err(ConnectError::Refused(LoginError::TooManyChannels))), "{eager:?}");
        drop(channels);
        eventually("room", || one.open_channel::<hello::Owned>("main", PATIENCE).ok());
    });
}

/// What this side has on loan is limited by the server's user, which here is its own; so the server is in this process.
fn loans() {
    for (which, quota) in [
        ("loans", UserQuota { loans: 10, ..UserQuota::default() }),
        ("bytes", UserQuota { bytes: 10_000, ..UserQuota::default() }),
    ] {
        let place = Place::new();
        let app = place.server().channel::<hello::Owned>("main").allow(&client(), Trust::snapshot()).user_quota(quota);
        let server = app.bind().expect("bind");
        std::thread::scope(|scope| {
            let accepted = scope.spawn(|| [server.accept().expect("accept"), server.accept().expect("accept")]);
            let clients = [connect(&place), connect(&place)];
            let ends = clients.each_ref().map(open);
            let sessions = accepted.join().expect("thread");
            let mut channels =
                sessions.each_ref().map(|session| session.accept_channel::<hello::Owned>().expect("opened"));
            let message = greet(&channels[0], &"x".repeat(1_000));
            // Both sessions draw on one account.
            let mut sent = 0;
            let exceeded = loop {
                match channels[sent % 2].try_send(&message) {
                    Ok(_) => sent += 1,
                    Err(SendError::Quota(exceeded)) => break exceeded,
                    Err(other) => panic!("{other}"),
                }
            };
            let held = sessions.iter().map(Session::on_loan).fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
            assert_eq!(exceeded, QuotaExceeded { scope: QuotaScope::User, loans: held.0, bytes: held.1 });
            assert!(
                if which == "loans" { sent == 10 } else { held.1 <= 10_000 && held.1 > 8_000 },
                "{which}: {held:?}"
            );
            // Returned, or the borrower gone: there is room again.
            let [mut first, second] = ends;
            let mut received = 0;
            while let Ok(Some(_)) = first.try_recv() {
                received += 1;
            }
            assert_eq!(received, sent.div_ceil(2));
            let [one, two] = clients;
            drop((second, two));
            eventually("room", || channels[0].try_send(&message).ok());
            eventually("all is home", || {
                while let Ok(Some(_)) = first.try_recv() {}
                (sessions[0].on_loan() == (0, 0) && sessions[1].on_loan() == (0, 0)).then_some(())
            });
            drop((first, one));
        });
        drop(server);
        place.must_be_empty();
    }
}

/// Sends as many writing ends of a pipe, and waits until the other side's watcher has read of them. The message says how
/// many they are.
fn pass(session: &Session, channel: &mut Channel<hello::Owned>, count: usize) -> PipeReader {
    let (reader, writer) = std::io::pipe().expect("pipe");
    let mut message = channel.create_msg();
    message.init_root().set_greet(count.to_string());
    for _ in 0..count {
        message.attach_fd(writer.try_clone().expect("descriptor"));
    }
    channel.send(&message.freeze().expect("room")).expect("sent");
    // Answered by the watcher, after what was sent before.
    drop(open(session));
    reader
}

fn received(channel: &mut Channel<hello::Owned>, count: usize) -> Result<Vec<OwnedFd>, DescriptorsLost> {
    let mut received = channel.recv().expect("a message");
    assert_eq!(words(&received), count.to_string());
    received.take_fds()
}

/// What waits to be received counts, over all sessions of the user; what is more is closed, and the message arrives.
fn descriptors() {
    let place = Place::new();
    let quota = UserQuota { descriptors: 3, ..UserQuota::default() };
    let app = place.server().channel::<hello::Owned>("main").allow(&client(), Trust::snapshot()).user_quota(quota);
    let server = app.bind().expect("bind");
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| [server.accept().expect("accept"), server.accept().expect("accept")]);
        let [one, two] = [connect(&place), connect(&place)];
        let sessions = accepted.join().expect("thread");
        let [mut first, mut second] = [open(&one), open(&two)];
        let [mut from_first, mut from_second] =
            sessions.each_ref().map(|session| session.accept_channel::<hello::Owned>().expect("opened"));
        let mut kept = pass(&one, &mut first, 2);
        // Two more do not fit, whichever session they come by: nobody has them, though nobody has received anything.
        for (session, channel) in [(&two, &mut second), (&one, &mut first)] {
            assert_eq!(pass(session, channel, 2).read(&mut [0]).expect("a pipe"), 0);
        }
        // One does, and the fourth does not.
        let fits = pass(&two, &mut second, 1);
        assert_eq!(pass(&one, &mut first, 1).read(&mut [0]).expect("a pipe"), 0);
        assert!(matches!(received(&mut from_second, 2), Err(DescriptorsLost { sent: 2 })));
        assert_eq!(received(&mut from_second, 1).expect("it fits").len(), 1);
        let had = received(&mut from_first, 2).expect("they fit");
        assert!(matches!(received(&mut from_first, 2), Err(DescriptorsLost { sent: 2 })));
        assert!(matches!(received(&mut from_first, 1), Err(DescriptorsLost { sent: 1 })));
        // What was received counts no more, even while the application has it.
        let all = pass(&two, &mut second, 3);
        drop((had, fits));
        assert_eq!(kept.read(&mut [0]).expect("a pipe"), 0);
        // Nor does what will never be received.
        drop((from_second, second, two));
        drop(all);
        eventually("room", || {
            let _reader = pass(&one, &mut first, 3);
            received(&mut from_first, 3).ok()
        });
        // Never more than the sender's window, however little of it got through.
        for _ in 0..100 {
            drop(pass(&one, &mut first, 64));
            assert!(matches!(received(&mut from_first, 64), Err(DescriptorsLost { sent: 64 })));
        }
        assert_eq!(sessions[0].end(), None);
    });
    drop(server);
    place.must_be_empty();
}

fn retrying() {
    let place = Place::new();
    let none = client().connect_retrying(&place.server(), SHORT);
    assert!(matches!(none, Err(ConnectError::NotFound { .. })), "{none:?}");
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| client().connect_retrying(&place.server(), PATIENCE).expect("in time"));
        let mut peer = obliging::obliging_server(&place, "snapshot");
        let session = connecting.join().expect("thread");
        assert_eq!(ask(&mut open(&session), "echo at last"), "at last");
        drop(session);
        peer.must_say("session: PeerClosed");
        peer.tell("stop");
        peer.finish();
    });
    place.must_be_empty();
}

fn reconnecting() {
    let place = Place::new();
    let mut attempts = client().reconnect(&place.server(), PATIENCE);
    let mut peer = obliging::obliging_server(&place, "snapshot");
    for _ in 0..3 {
        assert_eq!(attempts.pause(), Duration::ZERO);
        let session = attempts.next().expect("time").expect("a session");
        assert_eq!(ask(&mut open(&session), "echo again"), "again");
        peer.kill();
        let over = session.accept_channel_timeout::<hello::Owned>(PATIENCE).map(drop);
        assert!(matches!(over, Err(ChannelError::Ended { cause: strait::Ended::PeerDied, .. })), "{over:?}");
        // Each failure is told, and each pause is longer than the half of the one before.
        for _ in 0..3 {
            assert!(matches!(attempts.next(), Some(Err(ConnectError::NotFound { .. }))));
            assert!(attempts.pause() >= Duration::from_millis(5));
        }
        peer = obliging::obliging_server(&place, "snapshot");
        let back = attempts.next().expect("time").expect("a session");
        drop(back);
        peer.must_say("session: PeerClosed");
    }
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}

fn hopeless() {
    let place = Place::new();
    let mut peer = obliging::obliging_server(&place, "snapshot");
    let start = Instant::now();
    let mut attempts = ClientApp::new("stranger").reconnect(&place.server(), Duration::MAX);
    let refused = attempts.next();
    assert!(matches!(refused, Some(Err(ConnectError::Refused(LoginError::NotAllowed { .. })))), "{refused:?}");
    assert!(attempts.next().is_none() && attempts.next().is_none());
    let bad = client().connect_retrying(&ServerApp::new("/"), Duration::MAX);
    assert!(matches!(bad, Err(ConnectError::BadName(_))), "{bad:?}");
    assert!(start.elapsed() < PATIENCE);
    assert!(peer.line().starts_with("accept: Refused"));
    // No time at all is one attempt.
    let once: Vec<_> = client().reconnect(&place.server().instance("none"), Duration::ZERO).collect();
    assert!(matches!(once[..], [Err(ConnectError::NotFound { .. })]), "{once:?}");
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}
