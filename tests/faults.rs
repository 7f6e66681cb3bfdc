//! The kernel says no: each system call that sessions are made with fails, at its first, second, third time, in either
//! side, as strace has it. What comes of it is success or a typed error, after which the same works; never a panic, a hang
//! or anything left behind. Then limits, `exec`, `abort` and a peer that is stopped.
//!
//! `STRAIT_LEVEL`: `quick` tries the first times of what a kernel may say to each, `nightly` and `release` up to 50 of
//! anything. `STRAIT_CALLS` names the calls, with commas, if not all are wanted.

mod common;
#[path = "faults/limits.rs"]
mod limits;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, ask, greet, open, server, words};
use common::obliging::{obliging_server, with_server};
use common::peer::{Peer, hear, say};
use common::{Case, eventually, obliging};
use hello_capnp::hello;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;
use strait::{AcceptError, ClientApp, Ended, RecvError, RequestError, Trust, Wait};

fn main() -> ExitCode {
    let long = if thorough() { 6 * 3600 } else { 180 };
    let cases = [
        Case::new("each_call_of_a_client_fails", || each_call("guest")).limit(long),
        Case::new("each_call_of_a_server_fails", || each_call("host")).limit(long),
        Case::new("a_client_without_descriptors", limits::poor_guest),
        Case::new("a_server_without_descriptors", limits::poor_host),
        Case::new("a_small_dev_shm", limits::small_dev_shm),
        Case::new("peers_whose_clocks_are_a_year_apart", limits::other_time),
        Case::new("exec_with_a_live_session", || leaves("exec")),
        Case::new("abort_with_a_live_session", || leaves("abort")),
        Case::new("a_peer_that_is_stopped", stopped),
        Case::new("the_harness_finds_what_is_wrong", controls),
    ];
    let roles: &[common::Role] = &[
        ("obliging", obliging::run),
        ("guest", guest),
        ("host", host),
        ("poor guest", limits::be_poor_guest),
        ("poor host", limits::be_poor_host),
        ("cramped", limits::be_cramped),
        ("named host", limits::be_named_host),
        ("timed guest", limits::be_timed_guest),
        ("leaver", leaver),
    ];
    common::main(&cases, roles)
}

fn thorough() -> bool {
    matches!(std::env::var("STRAIT_LEVEL").as_deref(), Ok("nightly" | "release"))
}

/// What is to go wrong, for the controls.
fn plant() -> String {
    std::env::var("STRAIT_PLANT").unwrap_or_default()
}

/// What fails, and how it can. Not `futex`: strace cannot tell a wait, which may be interrupted, from a wake, which cannot
/// fail and is not looked at. Nor what cannot fail as it is called: `timerfd_settime`, `shutdown`, `read` and `write` of
/// counters that never block. No byte stream is read or written, so nothing comes in part.
const CALLS: [(&str, &[&str]); 33] = [
    ("accept4", &["EINTR", "ECONNABORTED", "EMFILE", "ENOMEM"]),
    ("bind", &["ENOSPC", "ENOMEM"]),
    ("clone3", &["EAGAIN"]),
    ("connect", &["EINTR", "EAGAIN", "ENOMEM"]),
    ("epoll_create1", &["EMFILE", "ENOMEM"]),
    ("epoll_ctl", &["ENOMEM", "ENOSPC"]),
    ("epoll_wait", &["EINTR"]),
    ("eventfd2", &["EMFILE", "ENOMEM"]),
    ("fallocate", &["EINTR", "ENOMEM", "ENOSPC"]),
    ("fchmod", &["EINTR", "EPERM"]),
    ("fcntl", &["ENOMEM"]),
    ("flock", &["EINTR", "ENOLCK"]),
    ("fstat", &["ENOMEM"]),
    ("fstatfs", &["EINTR", "ENOMEM"]),
    ("ftruncate", &["EINTR", "ENOSPC"]),
    ("futex_waitv", &["EINTR", "EAGAIN", "ENOMEM"]),
    ("getsockopt", &["ENOMEM"]),
    ("listen", &["ENOMEM"]),
    ("madvise", &["EAGAIN", "ENOMEM"]),
    ("membarrier", &["ENOMEM", "ENOSYS"]),
    ("memfd_create", &["EMFILE", "ENOMEM"]),
    ("mmap", &["ENOMEM"]),
    ("newfstatat", &["EINTR", "ENOMEM"]),
    ("openat", &["EINTR", "EMFILE"]),
    ("pidfd_open", &["EMFILE", "ENOMEM"]),
    ("poll", &["EINTR", "ENOMEM"]),
    ("prctl", &["EINVAL"]),
    ("recvmsg", &["EINTR", "EAGAIN", "ENOMEM"]),
    ("sendmsg", &["EINTR", "EAGAIN", "ENOBUFS", "ENOMEM"]),
    ("sched_getaffinity", &["EINVAL"]),
    ("setsockopt", &["ENOMEM"]),
    ("socket", &["EMFILE", "ENOMEM"]),
    ("timerfd_create", &["EMFILE", "ENOMEM"]),
];

/// strace on a process, until dropped.
struct Strace(Child);

impl Strace {
    fn attach(pid: u32, call: &str, errno: &str, time: usize, trace: &str) -> Self {
        let inject = format!("inject={call}:error={errno}:when={time}");
        let mut command = Command::new("strace");
        // A new thread's own first `mmap` is the standard library's, which aborts without.
        command.args((call != "mmap").then_some("-f"));
        command.args(["-qq", "-o", trace, "-e", &format!("trace={call}"), "-e", &inject]);
        let child = command.args(["-p", &pid.to_string()]).stderr(Stdio::null()).spawn().expect("strace");
        eventually("it is traced", || (!is_untraced(pid)).then_some(()));
        Self(child)
    }

    fn detach(mut self, pid: u32) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT).expect("strace");
        self.0.wait().expect("strace");
        eventually("it is not traced", || is_untraced(pid).then_some(()));
    }
}

fn is_untraced(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.contains("TracerPid:\t0\n")
}

/// What any call can be made to fail with, whether or not a kernel would.
const ANY: [&str; 5] = ["EINTR", "EAGAIN", "ENOMEM", "EMFILE", "ENOSPC"];

fn each_call(role: &'static str) {
    if Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return println!("note: skipped: no strace");
    }
    let only = std::env::var("STRAIT_CALLS").ok();
    let wanted = |call: &str| only.as_ref().is_none_or(|only| only.split(',').any(|name| name == call));
    let (mut all, mut outcomes) = (0, BTreeMap::<String, usize>::new());
    for (call, errnos) in CALLS.into_iter().filter(|(call, _)| wanted(call)) {
        let mut hits = 0;
        let times = if thorough() {
            50
        } else if call == "mmap" {
            10
        } else {
            3
        };
        // A socket that is good for nothing is the end of its session, in each new thread anew.
        let never = |errno| ["recvmsg", "sendmsg"].contains(&call) && ["EMFILE", "ENOSPC"].contains(errno);
        let others = ANY.iter().filter(|errno| thorough() && !errnos.contains(errno) && !never(errno));
        for errno in errnos.iter().chain(others) {
            for time in 1..=times {
                let Some(outcome) = one_fault(role, call, errno, time) else { break };
                hits += 1;
                *outcomes.entry(outcome).or_default() += 1;
            }
        }
        all += hits;
        println!("note: {call}: {hits} failures");
    }
    println!("note: {role}: {all} failures, of which came: {outcomes:?}");
    assert!(only.is_some() || all > 60, "hardly anything failed");
}

/// `None` if it was not called so often.
fn one_fault(role: &str, call: &str, errno: &str, time: usize) -> Option<String> {
    let (place, notes) = (Place::new(), Place::new());
    let trace = notes.path().join("trace").display().to_string();
    let mut honest = (role == "guest").then(|| obliging_server(&place, "snapshot"));
    let mut peer = Peer::start(role, &[place.text()]);
    peer.must_say("ready");
    let strace = Strace::attach(peer.pid(), call, errno, time, &trace);
    peer.tell("go");
    if role == "host" {
        call_on(&place);
    }
    let outcome = peer.line();
    strace.detach(peer.pid());
    peer.tell("finish");
    // Its own census is part of a good end.
    peer.finish();
    if let Some(mut honest) = honest.take() {
        assert_eq!(ask(&mut open(&client().connect(&place.server()).expect("connect")), "echo still"), "still");
        honest.tell("stop");
        // It may have something to say of log-ins that came to nothing.
        honest.finish();
    }
    place.must_be_empty();
    let text = std::fs::read_to_string(trace).expect("trace");
    if std::env::var("STRAIT_SHOW").is_ok() {
        println!("{role} {call} {errno} {time}: {outcome}");
    }
    text.contains("(INJECTED)").then_some(outcome)
}

/// Whoever waits longer has been forgotten.
const ENOUGH: Duration = Duration::from_secs(10);

fn client() -> ClientApp {
    common::apps::client().timeout(ENOUGH)
}

/// Does something until it works: says what was wrong at first.
fn until_it_works(act: impl Fn() -> Result<(), Box<dyn Error>>) {
    say("ready");
    assert_eq!(hear(), "go");
    let mut wrong = Vec::new();
    while let Err(error) = act() {
        wrong.push(chain(&*error));
        assert!(wrong.len() < 3, "it does not recover: {wrong:?}");
    }
    if plant() == "leaked descriptor" {
        std::mem::forget(std::fs::File::open("/dev/null").expect("a descriptor"));
    }
    say(if wrong.is_empty() { "success".into() } else { wrong.join("; ") });
    assert_eq!(hear(), "finish");
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// A client that does what sessions are for.
fn guest(args: &[String]) {
    until_it_works(|| visit(&args[0]));
}

fn visit(place: &str) -> Result<(), Box<dyn Error>> {
    let session = client().wait(Wait::Park).connect(&server(place))?;
    let mut channel = session.open_channel::<hello::Owned>("main", ENOUGH)?;
    for size in [10, 1 << 20] {
        let mut question = channel.create_msg();
        question.init_root().set_greet(format!("echo {}", "x".repeat(size)));
        let answer = channel.request(&question.freeze()?, ENOUGH)?;
        assert_eq!(words(&answer).len(), size);
    }
    match channel.recv_timeout(Duration::from_millis(5)) {
        Err(RecvError::TimedOut) => {}
        other => return Err(format!("{other:?}").into()),
    }
    drop(channel);
    drop(session.open_channel::<hello::Owned>("main", ENOUGH)?);
    session.arena().purge();
    session.close();
    Ok(())
}

/// A server of one client.
fn host(args: &[String]) {
    until_it_works(|| serve(&args[0]));
}

fn serve(place: &str) -> Result<(), Box<dyn Error>> {
    let app = server(place).allow(&common::apps::client(), Trust::snapshot()).channel::<hello::Owned>("main");
    let server = app.wait(Wait::Park).bind()?;
    let session = loop {
        match server.accept_timeout(ENOUGH) {
            Ok(session) => break session,
            // Somebody who gave up before.
            Err(AcceptError::Disconnected) => {}
            Err(other) => return Err(other.into()),
        }
    };
    let mut channel = session.accept_channel_timeout::<hello::Owned>(ENOUGH)?;
    loop {
        match channel.recv_timeout(ENOUGH) {
            Ok(received) => {
                let said = words(&received);
                if said == "enough" {
                    return Ok(());
                }
                let mut answer = channel.create_msg();
                answer.init_root().set_answer(&said);
                channel.reply(&received, &answer.freeze()?)?;
            }
            Err(other) => return Err(other.into()),
        }
    }
}

/// A client that asks until it was answered.
fn call_on(place: &Place) {
    let talk = || -> Result<(), Box<dyn Error>> {
        let session = client().connect(&place.server())?;
        let mut channel = session.open_channel::<hello::Owned>("main", ENOUGH)?;
        for size in [10, 1 << 20] {
            let answer = channel.request(&greet(&channel, &"x".repeat(size)), ENOUGH)?;
            assert_eq!(words(&answer).len(), size);
        }
        channel.send_timeout(&greet(&channel, "enough"), ENOUGH)?;
        // It ends the session when it has heard that.
        match channel.recv_timeout(ENOUGH) {
            Err(RecvError::Ended(ended)) if matches!(ended.cause, Ended::PeerClosed | Ended::ChannelClosed) => Ok(()),
            other => Err(format!("{other:?}").into()),
        }
    };
    eventually("a conversation", || talk().ok());
}

/// A process that becomes another, or ends at once, with a live session: its peer learns it as a death.
fn leaves(how: &str) {
    with_server("snapshot", |place, peer| {
        let mut leaver = Peer::start("leaver", &[place.text(), how]);
        let inherited: usize = leaver.line().parse().expect("a number");
        leaver.must_say("in a session");
        leaver.tell("go");
        peer.must_say("session: PeerDied");
        // The other program runs on, and has nothing of the session.
        if how == "exec" {
            let pid = leaver.pid().to_string();
            let fds = || std::fs::read_dir(format!("/proc/{pid}/fd")).expect("procfs").count();
            eventually("it has what the leaver was started with", || (fds() == inherited).then_some(()));
            assert_eq!(common::census::maps(&pid), Vec::<String>::new());
        }
        drop(leaver);
        let session = client().connect(&place.server()).expect("connect");
        assert_eq!(ask(&mut open(&session), "echo still there"), "still there");
        session.close();
        peer.must_say("session: PeerClosed");
    });
}

fn leaver(args: &[String]) {
    // The directory's own is gone by then.
    say(std::fs::read_dir("/proc/self/fd").expect("procfs").count() - 1);
    let session = client().connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    assert_eq!(ask(&mut channel, "echo hello"), "hello");
    say("in a session");
    hear();
    match args[1].as_str() {
        "exec" => panic!("{}", Command::new("sleep").arg("1000").exec()),
        _ => std::process::abort(),
    }
}

/// Whether all threads of a process are in a state.
fn threads_are(pid: Pid, state: &str) -> bool {
    let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("procfs").flatten();
    threads.all(|thread| std::fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| stat.contains(state)))
}

/// It is slow, not dead: an answer comes late, and the session goes on.
fn stopped() {
    let stop = Duration::from_secs(if thorough() { 60 } else { 1 });
    with_server("snapshot", |place, peer| {
        let session = common::apps::client().connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        assert_eq!(ask(&mut channel, "echo before"), "before");
        let pid = Pid::from_raw(peer.pid() as i32);
        kill(pid, Signal::SIGSTOP).expect("kill");
        eventually("every thread has stopped", || threads_are(pid, ") T ").then_some(()));
        let question = greet(&channel, "echo meanwhile");
        assert_eq!(channel.request(&question, stop).map(drop), Err(RequestError::TimedOut));
        assert_eq!(session.end(), None);
        kill(pid, Signal::SIGCONT).expect("kill");
        assert_eq!(ask(&mut channel, "echo after"), "after");
        session.close();
        peer.must_say("session: PeerClosed");
    });
}

/// Whether the first case can fail.
fn controls() {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args([common::AS_CASE, "each_call_of_a_client_fails"]).env("STRAIT_PLANT", "leaked descriptor");
    if Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return println!("note: skipped: no strace");
    }
    let output = command.stdin(Stdio::null()).output().expect("own program");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("left behind"), "{text}");
    println!("note: fails as it must: leaked descriptor");
}
