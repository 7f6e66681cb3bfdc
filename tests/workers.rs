//! Meeting without a name: sessions over sockets that both sides were given, and workers that are started with one.

mod common;
#[path = "common/raw.rs"]
mod raw;
capnp::generated_code!(mod hello_capnp);

use common::apps::{SHORT, ask, client, greet, words};
use common::{Case, PATIENCE, eventually};
use hello_capnp::hello;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};
use nix::unistd::Pid;
use raw::{BYTES, Frame, Memory, Socket};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;
use strait::Trust;
use strait::{AcceptError, Channel, ChannelError, ConnectError, Ended, PeerMisbehaved, ServerApp, Session};

fn main() -> ExitCode {
    if let Some(what) = std::env::args().skip_while(|arg| arg != AS_WORKER).nth(1) {
        return worker(&what);
    }
    let cases = [
        Case::new("a_worker_has_a_session_with_its_parent", with_worker),
        Case::new("a_workers_death_is_noticed", death),
        Case::new("a_workers_children_do_not_hide_its_death", grandchild),
        Case::new("a_parents_death_is_noticed", orphan),
        Case::new("workers_that_do_not_log_in", no_login),
        Case::new("both_ends_in_one_process", one_process),
        Case::new("sockets_that_will_not_do", bad_sockets),
        Case::new("first_words_without_a_sender", no_sender),
        Case::new("refusals", refusals),
        Case::new("no_answer", no_answer),
    ];
    common::main(&cases, &[("parent", parent)])
}

const AS_WORKER: &str = "--worker";

fn app() -> ServerApp {
    ServerApp::new("suite").channel::<hello::Owned>("main").opens::<hello::Owned>("jobs")
}

/// Not a role: standard input is a session's socket.
fn worker(what: &str) -> ExitCode {
    let fds = || std::fs::read_dir("/proc/self/fd").expect("procfs").count();
    let before = fds();
    let session = client().serves::<hello::Owned>("jobs").connect_parent(&app()).expect("connect");
    assert_eq!(std::fs::read_link("/proc/self/fd/0").expect("procfs").to_str(), Some("/dev/null"));
    let parents = session.peer().pid == nix::unistd::getppid().as_raw();
    assert!(parents || what == "orphan");
    match what {
        "work" => {
            let mut jobs = session.accept_channel::<hello::Owned>().expect("a channel");
            serve(&mut jobs);
            drop((jobs, session));
            eventually("nothing left", || (fds() == before).then_some(()));
        }
        "linger" => {
            // Inherits what a child inherits.
            let mut child = Command::new("sleep").arg("1000").stdin(Stdio::inherit()).spawn().expect("sleep");
            println!("{}", child.id());
            child.wait().expect("wait");
        }
        "orphan" => {
            let over = session.accept_channel_timeout::<hello::Owned>(PATIENCE).expect("a channel").recv().map(drop);
            println!("{over:?}");
        }
        other => panic!("what is {other}"),
    }
    ExitCode::SUCCESS
}

/// Answers with what it was asked, until the session ends.
fn serve(channel: &mut Channel<hello::Owned>) {
    while let Ok(question) = channel.recv() {
        let answer = greet(channel, &format!("{}!", words(&question)));
        channel.reply(&question, &answer).expect("room");
    }
}

fn command(what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args([AS_WORKER, what]);
    command
}

fn spawn(what: &str) -> (Child, Session) {
    app().spawn(&mut command(what), Trust::snapshot(), PATIENCE).expect("spawn")
}

fn with_worker() {
    let app = app();
    let mut workers: Vec<(Child, Session, Channel<hello::Owned>)> = (0..3)
        .map(|_| {
            let (child, session) = app.spawn(&mut command("work"), Trust::snapshot(), PATIENCE).expect("spawn");
            let own = nix::unistd::geteuid().as_raw();
            assert_eq!((session.peer().pid, session.peer().uid), (child.id() as i32, own));
            assert_eq!(session.peer_program().expect("own user's"), std::env::current_exe().expect("own path"));
            let jobs = session.open_channel("jobs", PATIENCE).expect("opened");
            (child, session, jobs)
        })
        .collect();
    // One arena: a message built once is for all of them.
    let news = greet(&workers[0].2, "news");
    for (_, session, jobs) in &mut workers {
        assert_eq!(words(&jobs.request(&news, PATIENCE).expect("answer")), "news!");
        assert_eq!(ask(jobs, "work"), "work!");
        session.close();
    }
    drop(news);
    for (mut child, session, jobs) in workers {
        drop((session, jobs));
        assert!(child.wait().expect("wait").success());
    }
}

#[track_caller]
fn must_end(session: &Session, cause: Ended) {
    let over = session.accept_channel_timeout::<hello::Owned>(PATIENCE).map(drop);
    assert_eq!(over, Err(ChannelError::Ended { peer: "tester".into(), cause }));
}

fn death() {
    let (mut child, session) = spawn("work");
    let held = session.peer_pidfd().expect("alive");
    child.kill().expect("kill");
    must_end(&session, Ended::PeerDied);
    // Not waited for yet, so its number is still its own; the session says that it is over all the same.
    assert!(session.peer_pidfd().is_err());
    assert!(strait_poll(&held), "a pidfd tells of the death");
    assert_eq!(child.wait().expect("wait").signal(), Some(9));
}

fn strait_poll(fd: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::try_from(PATIENCE).expect("short")).expect("poll") == 1
}

fn grandchild() {
    let mut command = command("linger");
    command.stdout(Stdio::piped());
    let (mut child, session) = app().spawn(&mut command, Trust::snapshot(), PATIENCE).expect("spawn");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let grandchild = Pid::from_raw(line.trim().parse().expect("a number"));
    child.kill().expect("kill");
    must_end(&session, Ended::PeerDied);
    child.wait().expect("wait");
    kill(grandchild, Signal::SIGKILL).expect("it lives");
}

/// Starts a worker whose last words are this process's output, and dies.
fn parent(_: &[String]) {
    let mut command = command("orphan");
    let (_child, _session) = app().spawn(&mut command, Trust::snapshot(), PATIENCE).expect("spawn");
    kill(Pid::this(), Signal::SIGKILL).expect("kill");
}

fn orphan() {
    let mut parent = common::peer::Peer::start("parent", &[]);
    let cause = Ended::PeerDied;
    let ended = strait::EndedError { peer: "suite".into(), channel: "jobs".into(), cause };
    parent.must_say(&format!("{:?}", Err::<(), _>(strait::RecvError::Ended(ended))));
    parent.wait_killed();
}

fn no_login() {
    let trust = Trust::snapshot();
    let gone = app().spawn(&mut Command::new("true"), trust, PATIENCE);
    assert!(matches!(gone, Err(AcceptError::Disconnected)), "{gone:?}");
    let mute = app().spawn(Command::new("sleep").arg("1000"), trust, SHORT);
    assert!(matches!(mute, Err(AcceptError::LoginTimedOut)), "{mute:?}");
    let missing = app().spawn(&mut Command::new("/nowhere"), trust, PATIENCE);
    assert!(matches!(missing, Err(AcceptError::Io(_))), "{missing:?}");
    // This process's own standard input is no socket.
    let nobody = client().connect_parent(&app());
    assert!(matches!(nobody, Err(ConnectError::Io(_))), "{nobody:?}");
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("pair")
}

fn one_process() {
    let (one, other) = pair();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let session = app().accept_over(one, Trust::snapshot(), PATIENCE).expect("accept");
            assert_eq!(session.peer().pid, std::process::id() as i32);
            serve(&mut session.accept_channel().expect("a channel"));
        });
        let session = client().connect_over(other, &app()).expect("connect");
        let mut channel = session.open_channel("main", PATIENCE).expect("opened");
        assert_eq!(ask(&mut channel, "me"), "me!");
        drop((channel, session));
        serving.join().expect("thread");
    });
}

fn bad_sockets() {
    let stream = || socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).expect("pair").0;
    let lonely = || socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    let file = || OwnedFd::from(File::open("/dev/null").expect("null"));
    for bad in [stream, lonely, file] {
        let refused = client().connect_over(bad(), &app());
        assert!(matches!(refused, Err(ConnectError::Io(_))), "{refused:?}");
        let refused = app().accept_over(bad(), Trust::snapshot(), PATIENCE);
        assert!(matches!(refused, Err(AcceptError::Io(_))), "{refused:?}");
    }
    let named = app().opens::<hello::Owned>("a/b").accept_over(pair().0, Trust::snapshot(), PATIENCE);
    assert!(matches!(named, Err(AcceptError::BadName(_))), "{named:?}");
    let many = (0..9).fold(app(), |app, _| app.opens::<hello::Owned>("jobs"));
    let many = many.spawn(&mut Command::new("/nowhere"), Trust::snapshot(), PATIENCE);
    assert!(matches!(many, Err(AcceptError::Refused(strait::LoginError::TooManyChannels))), "{many:?}");
}

/// Sent before anybody asked the kernel for it.
fn no_sender() {
    let (one, other) = pair();
    let memory = Memory::own(BYTES);
    let raw = Socket::of(other);
    assert!(raw.send(&Frame::hello(BYTES, "raw", &[]).0, &[memory.read_only().as_fd()]));
    let refused = app().accept_over(one, Trust::snapshot(), PATIENCE);
    assert!(
        matches!(refused, Err(AcceptError::PeerMisbehaved(PeerMisbehaved::Frame("no credentials")))),
        "{refused:?}"
    );
    assert!(raw.rest().is_empty());
}

fn refusals() {
    let refused = |app: &ServerApp, to: &ServerApp, by: strait::ClientApp| {
        let (one, other) = pair();
        std::thread::scope(|scope| {
            let serving = scope.spawn(|| app.accept_over(one, Trust::snapshot(), PATIENCE).map(drop));
            let outcome = by.connect_over(other, to).map(drop);
            match (serving.join().expect("thread"), outcome) {
                (Err(AcceptError::Refused(there)), Err(ConnectError::Refused(here))) => assert_eq!(there, here),
                other => panic!("{other:?}"),
            }
        });
    };
    refused(&app(), &ServerApp::new("another"), client());
    refused(&app(), &app(), client().channel::<hello::Owned>("none"));
    refused(&app().peer_arena_max(BYTES as u64), &app(), client());
    let full = app().user_quota(strait::UserQuota { sessions: 0, ..strait::UserQuota::default() });
    refused(&full, &app(), client());
    let none = app().user_quota(strait::UserQuota { channels: 0, ..strait::UserQuota::default() });
    refused(&none, &app(), client());
    // Whoever answers runs as somebody else.
    let (one, other) = pair();
    std::thread::scope(|scope| {
        scope.spawn(|| app().accept_over(one, Trust::snapshot(), PATIENCE).map(drop));
        let wrong = client().connect_over(other, &app().uid(4242));
        let own = nix::unistd::geteuid().as_raw();
        assert!(matches!(wrong, Err(ConnectError::WrongServer { found, expected: 4242 }) if found == own), "{wrong:?}");
    });
}

fn no_answer() {
    let (one, other) = pair();
    let mute = client().timeout(SHORT).connect_over(one, &app());
    assert!(matches!(mute, Err(ConnectError::TimedOut)), "{mute:?}");
    drop(other);
    let (one, other) = pair();
    drop(other);
    let gone = client().connect_over(one, &app());
    assert!(matches!(gone, Err(ConnectError::Disconnected)), "{gone:?}");
    let (one, _other) = pair();
    let mute = app().accept_over(one, Trust::snapshot(), Duration::ZERO);
    assert!(matches!(mute, Err(AcceptError::LoginTimedOut)), "{mute:?}");
}
