//! Forks and stops: what a child has of its parent's sessions, that neither of the two notices the other, that a peer
//! notices the parent's death all the same, and that a stopped peer is slow rather than dead.

mod common;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, SHORT, TRUSTS, ask, client, greet, open, server, trust, words};
use common::obliging::{connect, obliging_server, with_server};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, eventually, obliging};
use hello_capnp::hello;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pause};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use strait::{
    AllocError, BindError, Channel, ChannelError, Ended, EndedError, FreezeError, RecvError, RequestError, SendError,
    Session, Trust, Wait,
};

fn main() -> ExitCode {
    let cases = [
        Case::new("a_childs_channel_has_ended", channel_in_child),
        Case::new("a_childs_session_has_ended", session_in_child),
        Case::new("a_childs_session_says_why", end_in_child),
        Case::new("a_child_drops_everything", drops_in_child),
        Case::new("a_child_closes_nothing_of_its_own", close_in_child),
        Case::new("a_child_purges_nothing_of_its_own", purge_in_child),
        Case::new("a_childs_server_is_closed", server_in_child),
        Case::new("a_child_has_sessions_of_its_own", sessions_of_child),
        Case::new("forks_while_others_talk", forks_meanwhile),
        Case::new("no_child_inherits_a_descriptor", nothing_inherited),
        Case::new("dead_client_with_a_living_child", dead_client),
        Case::new("dead_server_with_a_living_child", dead_server),
        Case::new("a_stopped_peer_is_slow", stopped),
        Case::new("a_stopped_peer_is_told_much", told_much_while_stopped),
        Case::new("a_death_ends_every_wait", waits_end),
    ];
    let roles: &[common::Role] = &[
        ("obliging", obliging::run),
        ("client with child", client_with_child),
        ("server with child", server_with_child),
    ];
    common::main(&cases, roles)
}

/// Runs something in a forked child and waits for it; it must neither fail nor crash nor hang.
#[track_caller]
fn in_child(what: impl FnOnce()) {
    // SAFETY: the child runs test code and the library only, whose locks no other thread of this process holds now or
    // which are made for this; it leaves by `_exit`.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            let result = catch_unwind(AssertUnwindSafe(what));
            // SAFETY: always allowed.
            unsafe { libc::_exit(i32::from(result.is_err())) }
        }
        ForkResult::Parent { child } => {
            let killed = Killed(child);
            let status = eventually("the child's end", || {
                let status = waitpid(child, Some(WaitPidFlag::WNOHANG)).expect("wait");
                (status != WaitStatus::StillAlive).then_some(status)
            });
            std::mem::forget(killed);
            assert_eq!(status, WaitStatus::Exited(child, 0));
        }
    }
}

/// A child that a failing case must not leave.
struct Killed(Pid);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// A case with a session whose peer must not notice anything.
fn with_session(talk: impl Fn(&Session, &mut Channel<hello::Owned>)) {
    for believing in TRUSTS {
        with_server(believing, |place, _| {
            let session = connect(place, trust(believing));
            let mut channel = open(&session);
            assert_eq!(ask(&mut channel, "echo before"), "before");
            talk(&session, &mut channel);
            assert_eq!(session.end(), None);
            assert_eq!(ask(&mut channel, "echo after"), "after");
        });
    }
}

fn channel_in_child() {
    with_session(|_, channel| {
        let message = greet(channel, "echo no");
        in_child(|| {
            let forked = || {
                let (peer, channel) = ("suite".to_owned(), "main".to_owned());
                EndedError { peer, channel, cause: Ended::ForkedProcess }
            };
            assert_eq!(channel.send(&message), Err(SendError::Ended(forked())));
            assert_eq!(channel.try_send(&message), Err(SendError::Ended(forked())));
            assert_eq!(channel.send_timeout(&message, PATIENCE), Err(SendError::Ended(forked())));
            assert_eq!(channel.request(&message, PATIENCE).map(drop), Err(RequestError::Ended(forked())));
            assert_eq!(channel.recv().map(drop), Err(RecvError::Ended(forked())));
            assert_eq!(channel.try_recv().map(drop), Err(RecvError::Ended(forked())));
            assert_eq!(channel.recv_timeout(PATIENCE).map(drop), Err(RecvError::Ended(forked())));
            let mut builder = channel.create_msg();
            builder.init_root().set_greet("no");
            let refused = builder.freeze().map(drop);
            assert_eq!(refused, Err(FreezeError::Alloc(AllocError::ForkedProcess)));
        });
    });
}

fn session_in_child() {
    with_session(|session, _| {
        in_child(|| {
            let forked = || ChannelError::Ended { peer: "suite".into(), cause: Ended::ForkedProcess };
            assert_eq!(session.open_channel::<hello::Owned>("main", PATIENCE).map(drop), Err(forked()));
            assert_eq!(session.accept_channel_timeout::<hello::Owned>(SHORT).map(drop), Err(forked()));
            assert_eq!(session.accept_channel::<hello::Owned>().map(drop), Err(forked()));
        });
    });
}

fn end_in_child() {
    with_session(|session, _| in_child(|| assert_eq!(session.end(), Some(Ended::ForkedProcess))));
}

fn drops_in_child() {
    with_session(|session, channel| {
        let question = greet(channel, "echo back");
        let received = channel.request(&question, PATIENCE).expect("answer");
        let mut unfinished = channel.create_msg();
        unfinished.init_root().set_greet("not yet");
        let more = session.open_channel::<hello::Owned>("main", PATIENCE).expect("channel");
        // Both have all of it: the child drops its copies, then the parent its own.
        let mut all = Some((session.clone(), more, question, received, unfinished));
        in_child(|| drop(all.take()));
        let (_, mut more, question, received, mut unfinished) = all.expect("the child's is a copy");
        assert_eq!(words(&received), "back");
        unfinished.get_root().expect("root").set_greet("echo now");
        let finished = unfinished.freeze().expect("room");
        assert_eq!(words(&more.request(&finished, PATIENCE).expect("answer")), "now");
        assert_eq!(words(&more.request(&question, PATIENCE).expect("answer")), "back");
    });
}

fn close_in_child() {
    with_session(|session, _| {
        in_child(|| {
            // The numbers of the parent's descriptors are free here: what is opened now takes them.
            let pipes: Vec<_> = (0..32).map(|_| std::os::unix::net::UnixStream::pair().expect("pair")).collect();
            session.close();
            for (one, other) in &pipes {
                for end in [one, other] {
                    end.set_nonblocking(true).expect("option");
                    let found = std::io::Read::read(&mut &*end, &mut [0; 512]).map_err(|error| error.kind());
                    assert_eq!(found, Err(std::io::ErrorKind::WouldBlock), "written to, or closed");
                }
            }
        });
    });
}

fn purge_in_child() {
    with_session(|session, channel| {
        // Memory that is free and still there.
        let large = greet(channel, &format!("note {}", "x".repeat(4 << 20)));
        drop(large);
        assert!(session.arena().resident().expect("fstat") > 4 << 20);
        in_child(|| {
            let text = vec![b'x'; 8 << 20];
            let files: Vec<_> = (0..16).map(|_| tempfile::tempfile().expect("file")).collect();
            files.iter().for_each(|file| file.write_all_at(&text, 0).expect("write"));
            session.arena().purge();
            for file in files {
                let mut found = vec![0; text.len()];
                file.read_exact_at(&mut found, 0).expect("read");
                assert!(found == text, "a hole was punched into a file of the child's own");
            }
        });
    });
}

fn server_in_child() {
    let place = Place::new();
    let app = place.server().allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
    let mut shared = Some(app.bind().expect("bind"));
    in_child(|| {
        let server = shared.take().expect("a copy");
        assert!(server.accept_timeout(SHORT).is_err());
        let refused = server.create_msg::<hello::Owned>().freeze().map(drop);
        assert_eq!(refused, Err(FreezeError::Alloc(AllocError::ForkedProcess)));
        drop(server);
    });
    assert_eq!(common::census::files(place.path()), ["suite.lock", "suite.sock"]);
    // Still this one's.
    let server = shared.expect("the child's is a copy");
    assert!(matches!(place.server().bind(), Err(BindError::AddrInUse { path: _ })));
    drop(server);
    place.must_be_empty();
}

fn sessions_of_child() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut channel = open(&session);
        in_child(|| {
            let own = connect(place, Trust::snapshot());
            let mut talk = open(&own);
            assert_eq!(ask(&mut talk, "echo child"), "child");
            in_child(|| {
                let grandchild = connect(place, Trust::snapshot());
                assert_eq!(ask(&mut open(&grandchild), "echo grandchild"), "grandchild");
            });
            assert_eq!(ask(&mut talk, "echo still"), "still");
        });
        assert_eq!(ask(&mut channel, "echo parent"), "parent");
    });
}

/// Forks while other threads are in the middle of everything.
fn forks_meanwhile() {
    with_server("in_place", |place, _| {
        let session = connect(place, trust("in_place"));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let mut channel: Channel<hello::Owned> =
                            session.open_channel("main", PATIENCE).expect("channel");
                        (0..20).for_each(|_| assert_eq!(ask(&mut channel, "echo x"), "x"));
                        drop(connect(place, Trust::snapshot()));
                    }
                });
            }
            let mut channel = open(&session);
            let message = greet(&channel, "echo no");
            for _ in 0..100 {
                in_child(|| {
                    let refused = channel.send(&message);
                    assert!(matches!(refused, Err(SendError::Ended(end)) if end.cause == Ended::ForkedProcess));
                });
                assert_eq!(ask(&mut channel, "echo y"), "y");
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}

/// A child that kept a socket would hide its parent's death; one that kept memory would keep it from going.
fn nothing_inherited() {
    with_server("snapshot", |place, peer| {
        let done = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    drop(connect(place, Trust::snapshot()));
                    // It reports each end, and would wait for ever to be heard.
                    peer.line();
                    let own = Place::new();
                    drop(own.server().bind().expect("bind"));
                }
            });
            let found = (0..1_000).find_map(|_| catch_unwind(|| in_child(nothing_held)).err());
            done.store(true, Ordering::Relaxed);
            assert!(found.is_none(), "a child holds something");
        });
    });
}

fn nothing_held() {
    for number in 0..1024 {
        let Ok(target) = std::fs::read_link(format!("/proc/self/fd/{number}")) else { continue };
        let target = target.display().to_string();
        assert!(!target.starts_with("socket:") && !target.contains("memfd:"), "{number}: {target}");
    }
}

/// Forks a child that lives on and says its number.
fn leave_child() {
    // SAFETY: the child only waits, for its end.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => loop {
            pause();
        },
        ForkResult::Parent { child } => say(child),
    }
}

fn client_with_child(args: &[String]) {
    let session = client().connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    assert_eq!(ask_back(&mut channel), "hello");
    leave_child();
    hear();
}

/// Says hello and returns the answer.
fn ask_back(channel: &mut Channel<hello::Owned>) -> String {
    ask(channel, "hello")
}

fn server_with_child(args: &[String]) {
    let app = server(&args[0]).allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
    let server = app.bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    let received = channel.recv().expect("hello");
    let answer = greet(&channel, &words(&received));
    channel.reply(&received, &answer).expect("reply");
    leave_child();
    hear();
}

/// Kills the peer, whose child lives on, and waits for the news in `channel`.
fn notices(mut peer: Peer, session: &Session, mut channel: Channel<hello::Owned>) {
    let child = Killed(Pid::from_raw(peer.line().parse().expect("a number")));
    peer.kill();
    let refused = channel.recv_timeout(PATIENCE).map(drop);
    assert!(matches!(&refused, Err(RecvError::Ended(end)) if end.cause == Ended::PeerDied), "{refused:?}");
    assert_eq!(session.end(), Some(Ended::PeerDied));
    eventually("nothing is on loan", || (session.on_loan() == (0, 0)).then_some(()));
    assert_eq!(kill(child.0, None), Ok(()), "the child was to live");
    // Not this process's child: nobody to wait for.
    kill(child.0, Signal::SIGKILL).expect("kill");
    std::mem::forget(child);
}

fn dead_client() {
    for believing in TRUSTS {
        let place = Place::new();
        let app = place.server().allow(&client(), trust(believing)).channel::<hello::Owned>("main");
        let server = app.bind().expect("bind");
        let peer = Peer::start("client with child", &[place.text()]);
        let session = server.accept().expect("accept");
        let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
        let received = channel.recv().expect("hello");
        let answer = greet(&channel, "hello");
        channel.reply(&received, &answer).expect("reply");
        notices(peer, &session, channel);
        assert_eq!(words(&received), "hello");
    }
}

fn dead_server() {
    for believing in TRUSTS {
        let place = Place::new();
        let mut peer = Peer::start("server with child", &[place.text()]);
        peer.must_say("ready");
        let session = client().trust(trust(believing)).connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        assert_eq!(ask_back(&mut channel), "hello");
        notices(peer, &session, channel);
        // The child holds neither the socket nor the lock.
        drop(place.server().bind().expect("bind"));
        place.must_be_empty();
    }
}

/// Stops a process; nothing of it runs any more when this returns.
fn stop(peer: &Peer) -> Pid {
    let pid = Pid::from_raw(peer.pid() as i32);
    kill(pid, Signal::SIGSTOP).expect("stop");
    eventually("it stops", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        (stat.rsplit(") ").next()?.starts_with('T')).then_some(())
    });
    pid
}

fn stopped() {
    for believing in TRUSTS {
        with_server(believing, |place, peer| {
            let session = connect(place, trust(believing));
            let mut channel = open(&session);
            assert_eq!(ask(&mut channel, "echo before"), "before");
            let pid = stop(peer);
            let question = greet(&channel, "echo late");
            assert_eq!(channel.request(&question, SHORT).map(drop), Err(RequestError::TimedOut));
            let refused = session.open_channel::<hello::Owned>("main", SHORT).map(drop);
            assert_eq!(refused, Err(ChannelError::TimedOut));
            assert_eq!(session.end(), None);
            kill(pid, Signal::SIGCONT).expect("continue");
            assert_eq!(ask(&mut channel, "echo after"), "after");
            assert_eq!(ask(&mut session.open_channel("main", PATIENCE).expect("channel"), "echo new"), "new");
        });
    }
}

/// However much this side has to say to it meanwhile, over the socket that it does not read.
fn told_much_while_stopped() {
    with_server("snapshot", |place, peer| {
        let session = client().slots(4096).connect(&place.server()).expect("connect");
        let channel = open(&session);
        let question = greet(&channel, "note");
        let (sender, receiver) = channel.split();
        let pid = stop(peer);
        for _ in 0..3000 {
            drop(sender.request_stream(&question, PATIENCE).expect("room"));
        }
        assert_eq!(session.end(), None);
        kill(pid, Signal::SIGCONT).expect("continue");
        assert_eq!(ask(&mut session.open_channel("main", PATIENCE).expect("channel"), "echo new"), "new");
        drop((sender, receiver));
    });
}

/// A peer that is stopped answers nothing, so each of these waits until it is killed.
fn waits_end() {
    for wait in [Wait::Spin, Wait::Adaptive, Wait::Park] {
        let place = Place::new();
        let peer = obliging_server(&place, "in_place");
        let session = client().wait(wait).connect(&place.server()).expect("connect");
        let (mut receives, mut sends, mut asks) = (open(&session), open(&session), open(&session));
        let note = greet(&sends, "note");
        stop(&peer);
        while sends.try_send(&note).is_ok() {}
        let begun = Barrier::new(5);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                begun.wait();
                let end = receives.recv().map(drop);
                assert!(matches!(&end, Err(RecvError::Ended(end)) if end.cause == Ended::PeerDied), "{end:?}");
            });
            scope.spawn(|| {
                begun.wait();
                let end = sends.send(&note);
                assert!(matches!(&end, Err(SendError::Ended(end)) if end.cause == Ended::PeerDied), "{end:?}");
            });
            scope.spawn(|| {
                begun.wait();
                let end = asks.request(&note, PATIENCE).map(drop);
                assert!(matches!(&end, Err(RequestError::Ended(end)) if end.cause == Ended::PeerDied), "{end:?}");
            });
            scope.spawn(|| {
                begun.wait();
                let end = session.open_channel::<hello::Owned>("main", PATIENCE).map(drop);
                assert!(matches!(end, Err(ChannelError::Ended { cause: Ended::PeerDied, peer: _ })), "{end:?}");
            });
            begun.wait();
            peer.kill();
        });
        assert_eq!(session.end(), Some(Ended::PeerDied));
        eventually("nothing is on loan", || (session.on_loan() == (0, 0)).then_some(()));
    }
}
