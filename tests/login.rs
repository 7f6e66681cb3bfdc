//! Meeting: how apps find each other, and each way in which they do not, seen from both sides where there are two.

mod common;
#[path = "common/raw.rs"]
mod raw;
capnp::generated_code!(mod cache_capnp);
capnp::generated_code!(mod hello_capnp);

use cache_capnp::cache;
use common::apps::{Place, SHORT, ask, client, open, server};
use common::obliging::{self, with_server};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, census};
use hello_capnp::hello;
use nix::sys::memfd::{MFdFlags, memfd_create};
use raw::{BYTES, Frame, Memory, Random, Socket, area, schema};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use strait::{AcceptError, BadMemory, BindError, ClientApp, ConnectError, LoginError, PeerMisbehaved, Schema};
use strait::{ServerApp, Trust, Version, ViewError};

fn main() -> ExitCode {
    let cases = [
        Case::new("no_server", no_server),
        Case::new("a_dead_servers_socket_is_replaced", stale),
        Case::new("a_living_servers_name_is_taken", living),
        Case::new("of_servers_that_race_one_wins", race),
        Case::new("names", names),
        Case::new("refusals", refusals),
        Case::new("versions", versions),
        Case::new("first_words_that_are_none", garbage),
        Case::new("half_open_clients", half_open),
        Case::new("more_half_open_clients_than_wait", many_half_open),
        Case::new("memory", memory),
        Case::new("memory_larger_than_the_policy", policy),
        Case::new("close_and_timeouts_of_accept", accepting),
        Case::new("run_directories", run_dirs),
    ];
    common::main(&cases, &[("obliging", obliging::run), ("doorman", doorman), ("racer", racer)])
}

/// An obliging server that says who came in; arguments: where, and what is special about it.
fn doorman(args: &[String]) {
    let app = server(&args[0]).channel::<hello::Owned>("main").channel::<cache::Owned>("files");
    let app = app.allow(&ClientApp::new("raw"), Trust::snapshot());
    let app = match args[1].as_str() {
        "plain" => app.allow(&client(), Trust::snapshot()),
        "group" => app.allow(&client().gid(4242), Trust::snapshot()),
        "small" => app.allow(&client(), Trust::snapshot()).peer_arena_max(BYTES as u64),
        "narrow" => app.allow(&client(), Trust::snapshot()).channels_max(1),
        other => panic!("what is {other}"),
    };
    obliging::run_app(app, |session| say(format!("in: {}", session.peer_name())));
}

fn with_doorman(special: &str, talk: impl FnOnce(&Place, &mut Peer)) {
    let place = Place::new();
    let mut peer = Peer::start("doorman", &[place.text(), special]);
    peer.must_say("ready");
    talk(&place, &mut peer);
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}

#[track_caller]
fn must_be_missing(app: &ServerApp, expected: PathBuf) {
    match client().connect(app) {
        Err(ConnectError::NotFound { path }) => assert_eq!(path, expected),
        other => panic!("{other:?}"),
    }
}

fn no_server() {
    let place = Place::new();
    must_be_missing(&place.server(), place.path().join("suite.sock"));
    let nowhere = place.path().join("nowhere");
    must_be_missing(&ServerApp::new("suite").run_dir(&nowhere), nowhere.join("suite.sock"));
    place.must_be_empty();
}

fn stale() {
    let place = Place::new();
    let mut peer = obliging::obliging_server(&place, "snapshot");
    let session = obliging::connect(&place, Trust::snapshot());
    drop(session);
    peer.must_say("session: PeerClosed");
    peer.kill();
    assert_eq!(census::files(place.path()), ["suite.lock", "suite.sock"]);
    must_be_missing(&place.server(), place.path().join("suite.sock"));
    let mut peer = obliging::obliging_server(&place, "snapshot");
    let session = obliging::connect(&place, Trust::snapshot());
    assert_eq!(ask(&mut open(&session), "echo again"), "again");
    drop(session);
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}

fn living() {
    with_server("snapshot", |place, _| {
        let session = obliging::connect(place, Trust::snapshot());
        for _ in 0..3 {
            match place.server().bind() {
                Err(BindError::AddrInUse { path }) => assert_eq!(path, place.path().join("suite.lock")),
                other => panic!("{other:?}"),
            }
        }
        // Another name is free; and nothing happened to the first.
        drop(ServerApp::new("suite2").run_dir(place.path()).bind().expect("bind"));
        assert_eq!(ask(&mut open(&session), "echo still there"), "still there");
        drop(obliging::connect(place, Trust::snapshot()));
    });
}

fn racer(args: &[String]) {
    say("here");
    hear();
    let bound = server(&args[0]).bind();
    match &bound {
        Ok(_) => say("won"),
        Err(BindError::AddrInUse { .. }) => say("lost"),
        Err(other) => say(format!("{other:?}")),
    }
    hear();
}

fn race() {
    const RACERS: usize = 6;
    let place = Place::new();
    for round in 0..10 {
        let mut racers: Vec<Peer> = (0..RACERS).map(|_| Peer::start("racer", &[place.text()])).collect();
        racers.iter_mut().for_each(|racer| racer.must_say("here"));
        racers.iter_mut().for_each(|racer| racer.tell("go"));
        let said: Vec<String> = racers.iter_mut().map(Peer::line).collect();
        assert_eq!(said.iter().filter(|line| *line == "won").count(), 1, "{said:?}");
        assert_eq!(said.iter().filter(|line| *line == "lost").count(), RACERS - 1, "{said:?}");
        for (racer, said) in racers.into_iter().zip(said) {
            // Every other time the winner leaves its socket to the next race.
            if said == "won" && round % 2 == 0 { racer.kill() } else { racer.finish() }
        }
    }
    place.must_be_empty();
}

fn names() {
    let place = Place::new();
    for bad in ["", ".", "..", ".a", "a/b", "../suite", "a b", "a\0b", "ü", &"x".repeat(65)] {
        let named = ServerApp::new(bad).run_dir(place.path());
        let refused = |error: &ConnectError| matches!(error, ConnectError::BadName(name) if name == bad);
        assert!(client().connect(&named).is_err_and(|error| refused(&error)), "{bad}");
        assert!(ClientApp::new(bad).connect(&place.server()).is_err_and(|error| refused(&error)), "{bad}");
        let with = client().channel::<hello::Owned>(bad);
        assert!(with.connect(&place.server()).is_err_and(|error| refused(&error)), "{bad}");
        let refused = |error: BindError| matches!(error, BindError::BadName(name) if name == bad);
        assert!(named.bind().is_err_and(refused), "{bad}");
        assert!(place.server().channel::<hello::Owned>(bad).bind().is_err_and(refused), "{bad}");
    }
    place.must_be_empty();
    let longest = ServerApp::new("x".repeat(64)).run_dir(place.path()).bind().expect("bind");
    drop(longest);
}

/// The client is refused, the server says the same, and neither has mapped the other's memory.
#[track_caller]
fn must_be_refused(app: &ClientApp, place: &Place, peer: &mut Peer, here: LoginError, there: LoginError) {
    let before = census::maps(&peer.pid().to_string());
    match app.connect(&place.server()) {
        Err(ConnectError::Refused(error)) => assert_eq!(error, here),
        other => panic!("{other:?}"),
    }
    peer.must_say(&format!("accept: {:?}", AcceptError::Refused(there)));
    assert_eq!(census::maps(&peer.pid().to_string()), before);
    // What this side had before is given up by its watcher, in its own time.
    common::eventually("nothing mapped", || census::maps("self").is_empty().then_some(()));
}

fn refusals() {
    with_doorman("plain", |place, peer| {
        let mut both = |app: ClientApp, error: LoginError| must_be_refused(&app, place, peer, error.clone(), error);
        both(ClientApp::new("stranger"), LoginError::NotAllowed { client: "stranger".into() });
        let main = || client().channel::<hello::Owned>("main");
        both(main().channel::<hello::Owned>("none"), LoginError::UnknownChannel { channel: "none".into() });
        let (ours, theirs) = (<cache::Owned as Schema>::ID, <hello::Owned as Schema>::ID);
        let wrong = |ours, theirs| LoginError::WrongSchema { channel: "main".into(), ours, theirs };
        let app = main().channel::<cache::Owned>("main");
        must_be_refused(&app, place, peer, wrong(ours, theirs), wrong(theirs, ours));
        // This side's own limit: the server hears nothing of it.
        let nine = (0..9).fold(client(), |app, _| app.channel::<hello::Owned>("main"));
        let refused = nine.connect(&place.server());
        assert!(matches!(refused, Err(ConnectError::Refused(LoginError::TooManyChannels))), "{refused:?}");
        // Whoever is refused may come again.
        let eight = (0..8).fold(client(), |app, _| app.channel::<hello::Owned>("main"));
        let session = eight.connect(&place.server()).expect("connect");
        peer.must_say("in: tester");
        (0..8).for_each(|_| assert_eq!(ask(&mut open(&session), "echo in"), "in"));
        session.close();
        peer.must_say("session: PeerClosed");
    });
    with_doorman("narrow", |place, peer| {
        let two = client().channel::<hello::Owned>("main").channel::<cache::Owned>("files");
        must_be_refused(&two, place, peer, LoginError::TooManyChannels, LoginError::TooManyChannels);
    });
    with_doorman("group", |place, peer| {
        let gid = nix::unistd::getegid().as_raw();
        let error = LoginError::WrongGroup { client: "tester".into(), gid };
        must_be_refused(&client(), place, peer, error.clone(), error);
    });
}

fn versions() {
    let ours = Version { oldest: 1, newest: 1, layout: raw::layout() };
    let others = [
        Version { layout: !ours.layout, ..ours },
        Version { oldest: 2, newest: 9, ..ours },
        Version { oldest: 0, newest: 0, ..ours },
    ];
    let speaking =
        |frame: Frame, version: Version| frame.u32(12, version.oldest).u32(16, version.newest).u64(24, version.layout);
    with_doorman("plain", |place, peer| {
        for theirs in others {
            // Of another version everything after the head may be different.
            for len in [1024, 32, 600, 1025] {
                let mut hello = speaking(Frame::login(1), theirs).bytes(32, &[0xFF; 500]);
                hello.0.resize(len, 0xAA);
                let socket = Socket::knock(place.path());
                let (memory, file) = (Memory::own(BYTES), File::open("/dev/null").expect("null"));
                assert!(socket.send(&hello.0, &[memory.fd.as_fd(), file.as_fd()]));
                let error = LoginError::Incompatible { ours, theirs };
                peer.must_say(&format!("accept: {:?}", AcceptError::Refused(error)));
                let answer = socket.rest().pop().expect("an answer");
                assert_eq!((answer.u32_at(8), answer.u32_at(32)), (3, 1), "refused as incompatible");
                assert_eq!((answer.u32_at(12), answer.u32_at(16), answer.u64_at(24)), (1, 1, ours.layout));
            }
        }
        // One that speaks this version among others is let in.
        let socket = Socket::knock(place.path());
        let memory = Memory::own(BYTES);
        let hello = Frame::hello(BYTES, "raw", &[]).u32(12, 0).u32(16, 7);
        assert!(socket.send(&hello.0, &[memory.read_only().as_fd()]));
        peer.must_say("in: raw");
        assert_eq!(socket.recv().expect("an answer").0.u32_at(8), 2);
        drop(socket);
        peer.must_say("session: PeerDied");
    });
    for theirs in others {
        let place = Place::new();
        let listener = Socket::listen(place.path());
        let thread = {
            let app = place.server();
            std::thread::spawn(move || client().connect(&app))
        };
        let socket = listener.accept();
        assert_eq!(socket.recv().expect("a hello").0.u32_at(8), 1);
        assert!(socket.say(&speaking(Frame::login(3), theirs).u32(32, 1)));
        match thread.join().expect("thread") {
            Err(ConnectError::Refused(error)) => assert_eq!(error, LoginError::Incompatible { ours, theirs }),
            other => panic!("{other:?}"),
        }
    }
}

fn garbage() {
    let mut random = Random::new();
    with_doorman("plain", |place, peer| {
        let hello = || Frame::hello(BYTES, "raw", &[("main", schema(), area(0))]);
        let longer = |len: usize| {
            let mut frame = hello();
            frame.0.resize(len, 0);
            frame
        };
        let noise = Frame((0..1024).map(|_| random.next() as u8).collect());
        let frames = [
            (noise, "not strait"),
            (hello().bytes(7, &[2]), "not strait"),
            (longer(1), "not strait"),
            (longer(31), "not strait"),
            (longer(32), "no hello"),
            (longer(1023), "no hello"),
            (longer(1025), "no hello"),
            (longer(60_000), "no hello"),
            (hello().u32(8, 2), "no hello"),
            (hello().u32(8, 0), "no hello"),
            (hello().u32(180, 9), "too many channels"),
            (hello().u32(180, u32::MAX), "too many channels"),
            (hello().u32(180, 2), "channel without a name"),
            (hello().bytes(184, b"a/b"), "channel without a name"),
            (hello().bytes(52, &[0xFF]), "name is not UTF-8"),
            (hello().bytes(116, &[0xC0]), "name is not UTF-8"),
        ];
        for (frame, what) in frames {
            let memory = Memory::own(BYTES);
            let socket = Socket::knock(place.path());
            assert!(socket.send(&frame.0, &[memory.read_only().as_fd()]));
            let error = AcceptError::PeerMisbehaved(PeerMisbehaved::Frame(what));
            peer.must_say(&format!("accept: {error:?}"));
            assert!(socket.rest().is_empty(), "no answer to {what}");
        }
        drop(Socket::knock(place.path()));
        peer.must_say("accept: Disconnected");
        // For another server than this one.
        let (memory, socket) = (Memory::own(BYTES), Socket::knock(place.path()));
        assert!(socket.send(&hello().bytes(116, b"other").0, &[memory.read_only().as_fd()]));
        let error = AcceptError::Refused(LoginError::NotAllowed { client: "raw".into() });
        peer.must_say(&format!("accept: {error:?}"));
        assert_eq!(socket.rest().pop().expect("an answer").u32_at(32), 2);
    });
}

/// What a client may take over its first words.
const LOGIN: Duration = Duration::from_secs(2);

fn half_open() {
    with_doorman("plain", |place, peer| {
        let start = Instant::now();
        let silent: Vec<Socket> = (0..10).map(|_| Socket::knock(place.path())).collect();
        let session = client().connect(&place.server()).expect("connect");
        let mut given_up = 0;
        loop {
            match peer.line().as_str() {
                "in: tester" => break,
                // The machine was so busy that their time was up before the other one's turn.
                "accept: LoginTimedOut" if start.elapsed() >= LOGIN => given_up += 1,
                other => panic!("{other}"),
            }
        }
        assert_eq!(ask(&mut open(&session), "echo in time"), "in time");
        let others = (given_up..silent.len()).map(|_| peer.line()).filter(|line| line == "accept: LoginTimedOut");
        assert_eq!(others.count(), silent.len() - given_up);
        assert!(start.elapsed() >= LOGIN, "given up too early");
        assert!(silent.iter().all(|socket| socket.rest().is_empty()));
        session.close();
        peer.must_say("session: PeerClosed");
    });
}

fn many_half_open() {
    with_doorman("plain", |place, peer| {
        const SILENT: usize = 70;
        let silent: Vec<Socket> = (0..SILENT).map(|_| Socket::knock(place.path())).collect();
        let session = client().connect(&place.server()).expect("connect");
        assert_eq!(ask(&mut open(&session), "echo late"), "late");
        session.close();
        let mut said: Vec<String> = (0..SILENT + 2).map(|_| peer.line()).collect();
        said.sort();
        let crowded_out = said.iter().take_while(|line| *line == "accept: LoginCrowdedOut").count();
        // 16 have places to wait in; the machine may be so busy that some had their time before the others came.
        assert!((1..=SILENT - 15).contains(&crowded_out), "{said:?}");
        assert!(said[crowded_out..SILENT].iter().all(|line| line == "accept: LoginTimedOut"), "{said:?}");
        assert_eq!(said[SILENT..], ["in: tester", "session: PeerClosed"]);
        let told: Vec<_> = silent.iter().map(|socket| socket.rest()).filter(|rest| !rest.is_empty()).collect();
        assert_eq!(told.len(), crowded_out);
        assert!(told.iter().all(|rest| (rest[0].u32_at(8), rest[0].u32_at(32)) == (3, 9)), "busy");
    });
}

fn memory() {
    use nix::fcntl::SealFlag;
    with_doorman("small", |place, peer| {
        let mut offer = |what: &str, announced: usize, fds: &[BorrowedFd<'_>]| {
            let socket = Socket::knock(place.path());
            assert!(socket.send(&Frame::hello(announced, "raw", &[]).0, fds));
            let error = AcceptError::Refused(LoginError::MemoryRefused);
            assert_eq!(peer.line(), format!("accept: {error:?}"), "{what}");
            let answer = socket.rest().pop().expect("an answer");
            assert_eq!((answer.u32_at(8), answer.u32_at(32)), (3, 8), "{what}");
            let maps = census::maps(&peer.pid().to_string());
            assert!(!maps.iter().any(|line| line.contains("raw-peer")), "{what}: {maps:?}");
        };
        let (shrink, grow, seal) = (SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_GROW, SealFlag::F_SEAL_SEAL);
        for seals in [SealFlag::empty(), shrink | grow, shrink | seal, grow | seal] {
            offer("unsealed", BYTES, &[Memory::sealed(BYTES, seals).read_only().as_fd()]);
        }
        let (good, small, large) = (Memory::own(BYTES), Memory::own(BYTES / 2), Memory::own(BYTES + 4096));
        offer("smaller than announced", BYTES, &[small.read_only().as_fd()]);
        offer("larger than announced", BYTES / 2, &[good.read_only().as_fd()]);
        offer("announced as nothing", 0, &[good.read_only().as_fd()]);
        offer("announced as no size at all", usize::MAX, &[good.read_only().as_fd()]);
        offer("larger than the policy", large.bytes, &[large.read_only().as_fd()]);
        offer("none", BYTES, &[]);
        offer("two", BYTES, &[good.read_only().as_fd(), good.read_only().as_fd()]);
        offer("many", BYTES, &[good.fd.as_fd(); 200]);
        let file = tempfile::tempfile().expect("file");
        file.set_len(BYTES as u64).expect("size");
        offer("a file", BYTES, &[file.as_fd()]);
        offer("a device", BYTES, &[File::open("/dev/zero").expect("zero").as_fd()]);
        offer("a directory", BYTES, &[File::open("/").expect("root").as_fd()]);
        offer("a socket", BYTES, &[std::os::unix::net::UnixDatagram::unbound().expect("socket").as_fd()]);
        let shm = tempfile::tempfile_in("/dev/shm").expect("file");
        shm.set_len(BYTES as u64).expect("size");
        offer("an unsealed file on tmpfs", BYTES, &[shm.as_fd()]);
        if let Ok(huge) = memfd_create("raw-peer", MFdFlags::MFD_HUGETLB | MFdFlags::MFD_ALLOW_SEALING) {
            offer("a memfd of huge pages", BYTES, &[huge.as_fd()]);
        }
    });
}

fn policy() {
    with_doorman("small", |place, peer| {
        must_be_refused(&client(), place, peer, LoginError::MemoryRefused, LoginError::MemoryRefused);
        let small = client().arena_bytes(BYTES);
        let session = small.connect(&place.server()).expect("connect");
        peer.must_say("in: tester");
        drop(session);
        peer.must_say("session: PeerClosed");
        // And the other way round: the server is left with a session that ends at once.
        match small.clone().peer_arena_max(1 << 30).connect(&place.server()) {
            Err(ConnectError::View(ViewError::Bad(BadMemory::TooLarge { announced, limit }))) => {
                assert_eq!((announced, limit), (64 << 30, 1 << 30));
            }
            other => panic!("{other:?}"),
        }
        // The first session's end may still linger until the server has heard of it.
        common::eventually("nothing mapped", || census::maps("self").is_empty().then_some(()));
        peer.must_say("in: tester");
        peer.must_say("session: PeerDied");
    });
}

fn accepting() {
    let place = Place::new();
    let server = place.server().bind().expect("bind");
    assert_eq!(census::files(place.path()), ["suite.lock", "suite.sock"]);
    assert!(matches!(server.accept_timeout(SHORT), Err(AcceptError::TimedOut)));
    assert!(matches!(server.accept_timeout(Duration::ZERO), Err(AcceptError::TimedOut)));
    std::thread::scope(|scope| {
        let threads = [None, Some(PATIENCE * 10), None].map(|patience| {
            let server = &server;
            scope.spawn(move || patience.map_or_else(|| server.accept(), |patience| server.accept_timeout(patience)))
        });
        server.close();
        for thread in threads {
            assert!(matches!(thread.join().expect("thread"), Err(AcceptError::Closed)));
        }
    });
    assert!(matches!(server.accept(), Err(AcceptError::Closed)));
    assert!(matches!(server.accept_timeout(SHORT), Err(AcceptError::Closed)));
    drop(server);
    // Whoever has no time for its first words is gone before this wait, shorter than the usual time, is over.
    let hasty = place.server().login_timeout(Duration::ZERO).bind().expect("bind");
    let silent = Socket::knock(place.path());
    let refused = hasty.accept_timeout(LOGIN / 2);
    assert!(matches!(refused, Err(AcceptError::LoginTimedOut)), "{refused:?}");
    assert!(silent.rest().is_empty());
    drop(hasty);
    place.must_be_empty();
    drop(place.server().bind().expect("the name is free"));
    place.must_be_empty();
}

fn run_dirs() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let place = Place::new();
    for mode in [0o722, 0o702, 0o720, 0o777, 0o1777] {
        let dir = place.path().join(format!("{mode:o}"));
        std::fs::create_dir(&dir).expect("directory");
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(mode)).expect("mode");
        let app = ServerApp::new("suite").run_dir(&dir);
        let writable =
            |error: &strait::RunDirError| matches!(error, strait::RunDirError::Writable { path } if *path == dir);
        assert!(matches!(client().connect(&app), Err(ConnectError::RunDir(error)) if writable(&error)), "{mode:o}");
        assert!(matches!(app.bind(), Err(BindError::RunDir(error)) if writable(&error)), "{mode:o}");
        assert!(census::files(&dir).is_empty());
    }
    // Whatever it leads to; and something that is no directory.
    let (good, link, file) = (place.path().join("good"), place.path().join("link"), place.path().join("file"));
    std::fs::create_dir(&good).expect("directory");
    std::fs::set_permissions(&good, PermissionsExt::from_mode(0o700)).expect("mode");
    symlink(&good, &link).expect("link");
    File::create(&file).expect("file");
    for bad in [link, file] {
        let app = ServerApp::new("suite").run_dir(&bad);
        let found = |error: &strait::RunDirError| matches!(error, strait::RunDirError::Io { path, .. } if *path == bad);
        assert!(matches!(client().connect(&app), Err(ConnectError::RunDir(error)) if found(&error)), "{bad:?}");
        assert!(matches!(app.bind(), Err(BindError::RunDir(error)) if found(&error)), "{bad:?}");
    }
    drop(ServerApp::new("suite").run_dir(&good).bind().expect("bind"));
    assert!(census::files(&good).is_empty());
}
