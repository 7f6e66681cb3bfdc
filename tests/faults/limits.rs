//! Limits of either side, and clocks that disagree: full tables of descriptors, a small `/dev/shm`, time namespaces.

use super::{chain, client, visit};
use crate::common::AS_ROLE;
use crate::common::apps::{Place, SHORT, ask, greet, open, server, trust};
use crate::common::obliging::{run_app, with_server};
use crate::common::peer::{Peer, hear, say};
use crate::hello_capnp::hello;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use strait::{AcceptError, AllocError, Backing, Ended, FreezeError, LoginError, RecvError, RequestError, Trust};

/// A client whose table of descriptors is full at any point of a log-in.
pub fn poor_guest() {
    with_server("snapshot", |place, _| {
        let mut guest = Peer::start("poor guest", &[place.text()]);
        for _ in 0..=MORE {
            println!("note: {}", guest.line());
        }
        guest.finish();
    });
}

/// Descriptors that a log-in may need at once, and some.
const MORE: u64 = 12;

/// Leaves room for so many more descriptors in this process's table; `None` for as many as there were at first.
fn leave_room(for_more: Option<u64>) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    let limit = for_more.map_or(hard, |more| {
        // The limit is one above the highest number there may be.
        let lowest = std::fs::File::open("/dev/null").expect("a descriptor");
        lowest.as_raw_fd() as u64 + more
    });
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).expect("limit");
}

pub fn be_poor_guest(args: &[String]) {
    let mut worked = false;
    for more in 0..=MORE {
        leave_room(Some(more));
        let outcome = visit(&args[0]);
        leave_room(None);
        worked = outcome.is_ok();
        say(format!("{more} descriptors: {}", outcome.map_or_else(|error| chain(&*error), |()| "success".into())));
        visit(&args[0]).expect("with enough of them");
    }
    assert!(worked, "with {MORE} more");
}

/// A server whose table is full at any point of a log-in: who calls is told, or waits until there is room; who is in a
/// session notices nothing.
pub fn poor_host() {
    let place = Place::new();
    let mut peer = Peer::start("poor host", &[place.text()]);
    peer.must_say("ready");
    let before = client().connect(&place.server()).expect("connect");
    let mut channel = open(&before);
    let mut worked = false;
    for more in 0..=MORE {
        peer.tell(&more.to_string());
        peer.must_say("limited");
        let outcome = client().timeout(SHORT * 4).connect(&place.server());
        worked |= outcome.is_ok();
        let found = outcome.as_ref().map_or_else(|error| chain(error), |_| "success".to_owned());
        drop(outcome);
        assert_eq!(ask(&mut channel, "echo still there"), "still there");
        peer.tell("");
        println!("note: {more} descriptors: {found}; {} errors of the server's", peer.line());
        let session = client().connect(&place.server()).expect("connect");
        assert_eq!(ask(&mut open(&session), "echo with room"), "with room");
    }
    assert!(worked, "with {MORE} more");
    drop((channel, before));
    peer.tell("stop");
    // Its own census is part of a good end.
    peer.finish();
    place.must_be_empty();
}

pub fn be_poor_host(args: &[String]) {
    let app = server(&args[0]).allow(&crate::common::apps::client(), Trust::snapshot()).channel::<hello::Owned>("main");
    let server = app.bind().expect("bind");
    let errors = AtomicUsize::new(0);
    say("ready");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                match server.accept() {
                    Ok(session) => drop(scope.spawn(move || echo(&session))),
                    Err(AcceptError::Closed) => return,
                    Err(AcceptError::Io(_) | AcceptError::Refused(LoginError::Busy)) => {
                        errors.fetch_add(1, Ordering::Relaxed);
                        // Room takes a while to come.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(AcceptError::Disconnected | AcceptError::View(_)) => {}
                    Err(other) => panic!("{other:?}"),
                }
            }
        });
        loop {
            match hear().as_str() {
                "stop" => break,
                "" => {
                    leave_room(None);
                    say(errors.swap(0, Ordering::Relaxed));
                }
                more => {
                    leave_room(Some(more.parse().expect("a number")));
                    say("limited");
                }
            }
        }
        server.close();
    });
}

fn echo(session: &strait::Session) {
    while let Ok(mut channel) = session.accept_channel::<hello::Owned>() {
        while let Ok(received) = channel.recv() {
            let said = crate::common::apps::words(&received);
            let answer = greet(&channel, said.strip_prefix("echo ").unwrap_or(&said));
            // Gone, perhaps.
            let _ = channel.reply(&received, &answer);
        }
    }
}

/// Whether processes can be started with this; the case is skipped where not.
fn can(unshare: &[&str]) -> bool {
    let tried = Command::new("unshare").args(unshare).arg("true").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let can = tried.is_ok_and(|status| status.success());
    if !can {
        println!("note: skipped: no unshare {}", unshare.join(" "));
    }
    can
}

/// This program in a role, started with something before it.
fn role_by(mut command: Command, role: &str, args: &[&str]) -> Peer {
    command.arg(std::env::current_exe().expect("own path")).args([AS_ROLE, role]).args(args);
    Peer::of(command)
}

/// Named memory where there are 4 MiB for it: an error, never a signal, and room again afterwards.
pub fn small_dev_shm() {
    if !can(&["-m"]) {
        return;
    }
    let place = Place::new();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", "mount -t tmpfs -o size=4m none /dev/shm && exec \"$0\" \"$@\""]);
    let mut peer = role_by(command, "cramped", &[place.text()]);
    println!("note: {}", peer.line());
    peer.finish();
    place.must_be_empty();
}

pub fn be_cramped(args: &[String]) {
    let room = std::fs::read_to_string("/proc/self/mounts").expect("procfs");
    assert!(room.lines().any(|line| line.contains(" /dev/shm ") && line.contains("size=4096k")), "{room}");
    let mut peer = Peer::start("named host", &[&args[0]]);
    peer.must_say("ready");
    let app = client().backing(Backing::Named).trust(trust("in_place"));
    let session = app.connect(&server(&args[0]).backing(Backing::Named)).expect("connect");
    let mut channel = open(&session);
    let block = |bytes: usize| {
        let mut builder = channel.create_msg_with_capacity(bytes + 64);
        builder.init_root().set_greet("x".repeat(bytes));
        builder.freeze()
    };
    let full = |what: Result<_, _>| matches!(what.map(drop), Err(FreezeError::Alloc(AllocError::Full { .. })));
    let mut most = 0;
    for _ in 0..5 {
        let all: Vec<_> = std::iter::from_fn(|| block(100_000).ok()).collect();
        assert!(all.len() > 5, "{} blocks", all.len());
        most = most.max(all.len());
        assert!(full(block(100_000)) && full(block(8 << 20)));
        drop(all);
        session.arena().purge();
    }
    // Somebody else may use it up as well.
    let mut other = std::fs::File::create("/dev/shm/other").expect("a file");
    while other.write(&[1; 4096]).is_ok() {}
    assert!(full(block(1_000_000)));
    std::fs::remove_file("/dev/shm/other").expect("a file");
    drop(other);
    assert_eq!(ask(&mut channel, "echo with room"), "with room");
    drop((channel, session));
    peer.must_say("session: PeerClosed");
    peer.tell("stop");
    peer.finish();
    say(format!("{most} blocks of 100 kB, then no more"));
}

pub fn be_named_host(args: &[String]) {
    let app = server(&args[0]).backing(Backing::Named).allow(&crate::common::apps::client(), trust("in_place"));
    run_app(app.channel::<hello::Owned>("main"), |_| {});
}

/// Clocks that are a year apart: nothing crosses that a clock was asked for.
pub fn other_time() {
    const YEAR: &str = "31536000";
    let ahead = ["-T", "--monotonic", YEAR, "--boottime", YEAR];
    if !can(&ahead) {
        return;
    }
    let by = |ahead_args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(ahead_args);
        command
    };
    for (theirs, ours) in [(true, false), (false, true), (true, true)] {
        let place = Place::new();
        let start = |ahead_there, role, args: &[&str]| match ahead_there {
            true => role_by(by(&ahead), role, args),
            false => Peer::start(role, args),
        };
        let mut peer = start(theirs, "obliging", &[place.text(), "snapshot"]);
        peer.must_say("ready");
        let mut guest = start(ours, "timed guest", &[place.text(), "dies"]);
        guest.must_say("timed");
        peer.must_say("session: PeerClosed");
        guest.must_say("to be killed");
        guest.kill();
        peer.must_say("session: PeerDied");
        let mut guest = start(ours, "timed guest", &[place.text(), "survives"]);
        guest.must_say("timed");
        peer.must_say("session: PeerClosed");
        guest.must_say("survives");
        peer.kill();
        guest.must_say("died");
        guest.finish();
    }
}

pub fn be_timed_guest(args: &[String]) {
    let session = client().connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    for wait in [strait::Wait::Adaptive, strait::Wait::Park, strait::Wait::Spin] {
        channel.set_wait(wait);
        assert_eq!(ask(&mut channel, "echo hello"), "hello");
        assert_eq!(channel.recv_timeout(SHORT).map(drop), Err(RecvError::TimedOut));
    }
    let gate = greet(&channel, "gate");
    assert_eq!(channel.request(&gate, SHORT).map(drop), Err(RequestError::TimedOut));
    // Whoever serves it waits at the gate, but that was another channel's.
    drop(channel);
    let mut channel = open(&session);
    assert_eq!(ask(&mut channel, "echo hello"), "hello");
    drop(channel);
    session.close();
    say("timed");
    let session = client().connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    if args[1] == "dies" {
        say("to be killed");
        hear();
    }
    channel.set_wait(strait::Wait::Park);
    say("survives");
    assert!(matches!(channel.recv(), Err(RecvError::Ended(ended)) if ended.cause == Ended::PeerDied));
    say("died");
}
