//! The cases about file descriptors. Whether one is still open anywhere is told by a pipe: its reader finds the end when
//! no writer is left in any process.

use super::{enter, with_keeper, with_keeper_over};
use crate::common::apps::{Place, ask, client, greet, open, words};
use crate::common::peer::Peer;
use crate::common::{PATIENCE, apps};
use crate::hello_capnp::hello;
use crate::keeper::{full_pipe, look};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, fork};
use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use strait::{Backing, Channel, FreezeError, Message, RequestError, SendError};

fn message(
    channel: &Channel<hello::Owned>,
    words: &str,
    fds: impl IntoIterator<Item = OwnedFd>,
) -> Message<hello::Owned> {
    let mut message = channel.create_msg();
    message.init_root().set_greet(words);
    for fd in fds {
        message.attach_fd(fd);
    }
    message.freeze().expect("room")
}

fn ask_with(channel: &mut Channel<hello::Owned>, question: &str, fds: impl IntoIterator<Item = OwnedFd>) -> String {
    let message = message(channel, question, fds);
    words(&channel.request(&message, PATIENCE).expect("answer"))
}

/// No process has a writing end any more; what was written is returned.
#[track_caller]
fn must_end(mut reader: PipeReader) -> String {
    let mut found = String::new();
    loop {
        let mut polled = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).expect("not that long");
        assert!(poll(&mut polled, patience).expect("poll") > 0, "somebody has it open still");
        let mut some = [0; 100];
        match reader.read(&mut some).expect("a pipe") {
            0 => return found,
            count => found.push_str(&String::from_utf8_lossy(&some[..count])),
        }
    }
}

pub fn every_kind(backing: Backing) {
    with_keeper_over(backing, "snapshot", |place, _| {
        let (session, mut channel) = enter(place, client().backing(backing));
        let mut file = tempfile::tempfile_in("/tmp").expect("file");
        write!(file, "a file").and_then(|()| std::io::Seek::rewind(&mut file)).expect("file");
        let memfd = nix::sys::memfd::memfd_create("passed", nix::sys::memfd::MFdFlags::empty()).expect("memfd");
        let mut memory = File::from(memfd);
        write!(memory, "memory").and_then(|()| std::io::Seek::rewind(&mut memory)).expect("memory");
        let (mut near, far) = UnixStream::pair().expect("sockets");
        write!(near, "a socket").and_then(|()| near.shutdown(std::net::Shutdown::Write)).expect("socket");
        let null = File::open("/dev/null").expect("null");
        let all = [file.into(), full_pipe("a pipe"), memory.into(), OwnedFd::from(far), null.into()];
        let found = ask_with(&mut channel, "look", all);
        assert!(found.starts_with("/tmp/"), "{found}");
        let rest = found.split_once('=').expect("a file").1;
        assert_eq!(rest, "a file pipe=a pipe /memfd=memory socket=a socket /dev/null=");
        // As many as may be, in order, with blobs beside them; and none.
        let mut many = channel.create_msg();
        many.init_root().set_greet("look");
        many.attach_blob(super::blob(session.arena(), 1, 100));
        for index in 0..64 {
            many.attach_fd(full_pipe(&index.to_string()));
        }
        let many = many.freeze().expect("room");
        let expected: Vec<_> = (0..64).map(|index| format!("pipe={index}")).collect();
        assert_eq!(words(&channel.request(&many, PATIENCE).expect("answer")), expected.join(" "));
        assert_eq!(ask_with(&mut channel, "look", []), "");
        // Writing works as well, and ends with the other side's hold.
        let pipes: Vec<_> = (0..3).map(|_| std::io::pipe().expect("a pipe")).collect();
        let (readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        assert_eq!(ask_with(&mut channel, "write", writers.into_iter().map(OwnedFd::from)), "written");
        assert_eq!(readers.into_iter().map(must_end).collect::<String>(), "012");
    });
}

/// Messages with and without, on two channels at once.
pub fn stay_with(backing: Backing) {
    with_keeper_over(backing, "in_place", |place, _| {
        let (session, first) = enter(place, client().backing(backing));
        let ask_many = |mut channel: Channel<hello::Owned>, name: &str| {
            for round in 0..100 {
                let count = round % 4;
                let fds = (0..count).map(|index| full_pipe(&format!("{name}{round}.{index}")));
                let expected: Vec<_> = (0..count).map(|index| format!("pipe={name}{round}.{index}")).collect();
                assert_eq!(ask_with(&mut channel, "look", fds), expected.join(" "));
            }
        };
        ask_many(first, "a");
        ask_many(open(&session), "b");
    });
}

pub fn with_answers() {
    with_keeper("snapshot", |place, _| {
        let (_session, mut channel) = enter(place, client());
        // The flood's messages are kept while its answer is awaited; then each still has its own.
        let question = greet(&channel, "flood 50");
        assert_eq!(words(&channel.request(&question, PATIENCE).expect("answer")), "50");
        let question = greet(&channel, "give 3");
        let mut given = channel.request(&question, PATIENCE).expect("answer");
        let found = given.take_fds().expect("all there");
        assert_eq!(found.into_iter().map(look).collect::<String>(), "pipe=0pipe=1pipe=2");
        assert!(given.take_fds().expect("taken").is_empty());
        for index in 0..50 {
            let mut kept = channel.recv_timeout(PATIENCE).expect("kept");
            assert_eq!(words(&kept), index.to_string());
            let found = kept.take_fds().expect("all there").into_iter().map(look).collect::<String>();
            assert_eq!(found, format!("pipe={index}"));
        }
        // A late answer's are closed unseen: that is in the census.
        let question = greet(&channel, "give 5");
        match channel.request(&question, Duration::ZERO) {
            Err(RequestError::TimedOut) | Ok(_) => {}
            Err(other) => panic!("{other}"),
        }
        assert_eq!(ask(&mut channel, "sizes"), "");
    });
}

pub fn sent_again() {
    with_keeper("snapshot", |place, _| {
        let (session, mut channel) = enter(place, client());
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let message = message(&channel, "write", [writer.into()]);
        for _ in 0..3 {
            assert_eq!(words(&channel.request(&message, PATIENCE).expect("answer")), "written");
        }
        drop(channel);
        let mut other = open(&session);
        assert_eq!(words(&other.request(&message.clone(), PATIENCE).expect("answer")), "written");
        drop(message);
        assert_eq!(must_end(reader), "0000");
    });
}

/// From many threads at once, and answers with descriptors to each.
pub fn split() {
    with_keeper("snapshot", |place, _| {
        let (_session, channel) = enter(place, client());
        let (sender, _receiver) = channel.split();
        std::thread::scope(|scope| {
            for name in 0..4 {
                let sender = sender.clone();
                scope.spawn(move || {
                    for round in 0..50 {
                        let mut question = sender.create_msg();
                        question.init_root().set_greet("look");
                        let count = round % 3 * 20;
                        for index in 0..count {
                            question.attach_fd(full_pipe(&format!("{name}.{round}.{index}")));
                        }
                        let expected: Vec<_> = (0..count).map(|index| format!("pipe={name}.{round}.{index}")).collect();
                        let answer = sender.request(&question.freeze().expect("room"), PATIENCE).expect("answer");
                        assert_eq!(words(&answer), expected.join(" "));
                        let mut question = sender.create_msg();
                        question.init_root().set_greet("give 7");
                        let question = question.freeze().expect("room");
                        let mut given = sender.request(&question, PATIENCE).expect("answer");
                        assert_eq!(given.take_fds().expect("all there").len(), 7);
                    }
                });
            }
        });
    });
}

pub fn too_many() {
    with_keeper("snapshot", |place, _| {
        let (_session, channel) = enter(place, client());
        let mut message = channel.create_msg();
        for _ in 0..65 {
            message.attach_fd(full_pipe(""));
        }
        assert_eq!(message.freeze().err(), Some(FreezeError::TooManyDescriptors(65)));
    });
}

pub fn window(backing: Backing) {
    with_keeper_over(backing, "snapshot", |place, peer| {
        let (_session, mut channel) = enter(place, client().backing(backing));
        let question = greet(&channel, "flood 300");
        channel.send(&question).expect("room");
        // It has filled what there is while nothing was received here.
        peer.must_say("full");
        for index in 0..300 {
            let mut flooded = channel.recv_timeout(PATIENCE).expect("a message");
            assert_eq!(words(&flooded), index.to_string());
            assert_eq!(look(flooded.take_fds().expect("there").remove(0)), format!("pipe={index}"));
        }
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("the answer")), "128");
    });
}

pub fn window_ends() {
    let fill = |channel: &mut Channel<hello::Owned>| {
        let full = message(channel, "look", [full_pipe("")]);
        let sent = (0..).find(|_| matches!(channel.try_send(&full), Err(SendError::Full)));
        assert_eq!(sent, Some(128));
        full
    };
    let place = Place::new();
    let mut peer = Peer::start("keeper", &[place.text(), "snapshot"]);
    peer.must_say("ready");
    // It answers nothing, since it accepts one channel at a time.
    let (session, _first) = enter(&place, client());
    let mut second = open(&session);
    let full = fill(&mut second);
    // By the deadline.
    assert_eq!(second.send_timeout(&full, apps::SHORT), Err(SendError::TimedOut));
    // What has none goes on.
    second.try_send(&greet(&second, "look")).expect("room");
    // By this side's end, by the peer's.
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(matches!(second.send(&full), Err(SendError::Ended(_)))));
        session.close();
    });
    drop(session);
    let (session, _first) = enter(&place, client());
    let mut second = open(&session);
    let full = fill(&mut second);
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(matches!(second.send(&full), Err(SendError::Ended(_)))));
        peer.kill();
    });
}

pub fn unread() {
    with_keeper("snapshot", |place, _| {
        let (session, mut channel) = enter(place, client());
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut reader = Some(reader);
        let full = message(&channel, "look", [writer.into()]);
        channel.send(&greet(&channel, "close")).expect("room");
        // Into a channel that is being closed, as often as it goes.
        let sent = (0..1_000).take_while(|_| channel.try_send(&full).is_ok()).count();
        println!("note: {sent} sent");
        drop((channel, full));
        must_end(reader.take().expect("there"));
        // All of them count as taken: there is room for as many again.
        let mut channel = open(&session);
        let expected = vec!["pipe="; 64].join(" ");
        for _ in 0..4 {
            assert_eq!(ask_with(&mut channel, "look", (0..64).map(|_| full_pipe(""))), expected);
        }
        // With the session, nobody having accepted the channel.
        let mut unaccepted = open(&session);
        let (reader, writer) = std::io::pipe().expect("a pipe");
        unaccepted.send(&message(&unaccepted, "look", [writer.into()])).expect("room");
        drop((unaccepted, channel, session));
        must_end(reader);
    });
}

pub fn killed() {
    let place = Place::new();
    let mut peer = Peer::start("keeper", &[place.text(), "snapshot"]);
    peer.must_say("ready");
    let (session, _first) = enter(&place, client());
    let mut second = open(&session);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    second.send(&message(&second, "look", [writer.into()])).expect("room");
    peer.kill();
    must_end(reader);
    drop(session);
}

pub fn of_the_dead() {
    let place = Place::new();
    let mut peer = Peer::start("keeper", &[place.text(), "snapshot"]);
    peer.must_say("ready");
    let (_session, mut channel) = enter(&place, client());
    channel.send(&greet(&channel, "flood 300")).expect("room");
    peer.must_say("full");
    peer.kill();
    // Everything that was sent, with everything that went with it.
    for index in 0..128 {
        let mut received = channel.recv_timeout(PATIENCE).expect("sent before");
        assert_eq!(look(received.take_fds().expect("passed before").remove(0)), format!("pipe={index}"));
    }
    assert!(channel.recv_timeout(PATIENCE).is_err());
}

/// The message comes whole, says what it lost, and nothing that did arrive stays open.
pub fn table_full() {
    with_keeper("snapshot", |place, _| {
        let (_session, mut channel) = enter(place, client());
        // Once before, so that what a first time takes is there.
        assert_eq!(ask_with(&mut channel, "look", [full_pipe("x")]), "pipe=x");
        let before = ask(&mut channel, "descriptors");
        assert_eq!(ask(&mut channel, "fill 2"), "filled");
        for count in [20, 64, 4] {
            let pipes: Vec<_> = (0..count).map(|_| std::io::pipe().expect("a pipe")).collect();
            let (readers, writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
            let found = ask_with(&mut channel, "look", writers.into_iter().map(OwnedFd::from));
            assert_eq!(found, format!("{count} lost"));
            readers.into_iter().for_each(|reader| drop(must_end(reader)));
        }
        assert_eq!(ask(&mut channel, "empty"), "emptied");
        assert_eq!(ask_with(&mut channel, "look", [full_pipe("y")]), "pipe=y");
        assert_eq!(ask(&mut channel, "descriptors"), before);
    });
}

/// A user may have no more descriptors under way than a process may have open: they wait here until they may.
pub fn kernel_full() {
    with_keeper("snapshot", |place, peer| {
        let (_session, mut channel) = enter(place, client());
        let pid = Pid::from_raw(peer.pid() as i32);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, 40, hard).expect("a limit");
        let capable = set_capabilities([0, 0]);
        kill(pid, Signal::SIGSTOP).expect("stopped");
        let full = message(&channel, "look", [full_pipe("")]);
        for _ in 0..128 {
            channel.try_send(&full).expect("room");
        }
        set_capabilities(capable);
        kill(pid, Signal::SIGCONT).expect("goes on");
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("a limit");
        for _ in 0..128 {
            assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("an answer")), "pipe=");
        }
    });
}

/// Of this thread, as far as they have effect: the privileged have no such limit. Returns what they were.
fn set_capabilities(effective: [u32; 2]) -> [u32; 2] {
    let (header, mut data) = ([0x2008_0522_u32, 0], [[0_u32; 3]; 2]);
    // SAFETY: version 3 has two groups of three words, which live for the calls.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) };
    assert_eq!(result, 0, "capget");
    let before = [data[0][0], data[1][0]];
    (data[0][0], data[1][0]) = (effective[0], effective[1]);
    // SAFETY: as above.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(result, 0, "capset");
    before
}

/// A child has none of those attached here, nor of those that came and were not taken.
pub fn forked() {
    with_keeper("snapshot", |place, _| {
        let (_session, mut channel) = enter(place, client());
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let attached = message(&channel, "look", [writer.into()]);
        let question = greet(&channel, "give 2");
        let mut given = channel.request(&question, PATIENCE).expect("answer");
        let (asleep, alarm) = std::io::pipe().expect("a pipe");
        // SAFETY: the child calls what takes no lock of another thread's, and leaves without returning.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                drop(alarm);
                let lost = given.take_fds().is_err();
                // Until the parent has looked.
                let _ = (&asleep).read(&mut [0]);
                // SAFETY: ends the process and does nothing else.
                unsafe { nix::libc::_exit(i32::from(!lost)) };
            }
            ForkResult::Parent { child } => {
                drop(attached);
                must_end(reader);
                assert_eq!(given.take_fds().expect("here").len(), 2);
                drop((asleep, alarm));
                let ended = nix::sys::wait::waitpid(child, None).expect("wait");
                assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
    });
}
