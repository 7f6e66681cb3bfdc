//! Many sessions between two processes: what each costs, and that nothing of it stays.

mod common;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, ask, client, greet, open, server};
use common::census::{maps, threads};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, eventually};
use hello_capnp::hello;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::process::ExitCode;
use strait::{Session, Trust};

fn main() -> ExitCode {
    let cases = [Case::new("thousands_of_sessions", thousands)];
    common::main(&cases, &[("holder", holder)])
}

const MANY: usize = 4_000;

/// As many descriptors as this user may have.
fn allow_descriptors() -> usize {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("limit");
    usize::try_from(most).unwrap_or(usize::MAX)
}

/// Holds sessions, and answers the first of them.
fn holder(args: &[String]) {
    allow_descriptors();
    let app = server(&args[0]).channel::<hello::Owned>("main").allow(&client(), Trust::snapshot());
    let server = app.bind().expect("bind");
    let wanted: usize = args[1].parse().expect("a number");
    say("ready");
    let first = server.accept().expect("a client");
    let mut channel = first.accept_channel::<hello::Owned>().expect("a channel");
    let serving = std::thread::spawn(move || {
        while let Ok(question) = channel.recv() {
            let answer = greet(&channel, "answer");
            channel.reply(&question, &answer).expect("room");
        }
    });
    let mut held: Vec<Session> = vec![first];
    for _ in 1..wanted {
        held.push(server.accept().expect("a client"));
    }
    say("all in");
    hear();
    serving.join().expect("thread");
    // The watcher may hear of the first one's end before it has heard of each other's.
    eventually("everyone's end", || held.iter().all(|session| session.end().is_some()).then_some(()));
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("procfs").count()
}

fn thousands() {
    // Some are this process's own.
    let many = MANY.min(allow_descriptors() - 100);
    println!("note: {many} sessions");
    let place = Place::new();
    let mut peer = Peer::start("holder", &[place.text(), &many.to_string()]);
    peer.must_say("ready");
    let (app, own) = (client(), std::process::id());
    let session = app.connect(&place.server()).expect("connect");
    let mut channel = open(&session);
    assert_eq!(ask(&mut channel, "anything"), "answer");
    let holds = || [own, peer.pid()].map(|pid| (descriptors(pid), maps(&pid.to_string()).len(), threads(pid)));
    let before = holds();
    let resident = session.arena().resident().expect("own");
    let others: Vec<Session> = (1..many).map(|_| app.connect(&place.server()).expect("connect")).collect();
    peer.must_say("all in");
    let holds = || [own, peer.pid()].map(|pid| (descriptors(pid), maps(&pid.to_string()).len(), threads(pid)));
    // A descriptor each; the arenas, their mappings and the thread are everyone's.
    let more = before.map(|(fds, maps, threads)| (fds + many - 1, maps, threads));
    eventually("a descriptor each", || (holds() == more).then_some(()));
    let committed = session.arena().resident().expect("own").saturating_sub(resident) / many as u64;
    assert!(committed < 256 << 10, "{committed} bytes each");
    assert_eq!(ask(&mut channel, "anything"), "answer");
    assert!(others.iter().all(|session| session.end().is_none()));
    // One of them has a channel when it wants one, and its end is not another's.
    let mut last = others.last().expect("many").open_channel::<hello::Owned>("main", PATIENCE).expect("opened");
    last.send(&greet(&last, "unheard")).expect("room");
    drop(last);
    drop(others);
    assert_eq!(ask(&mut channel, "anything"), "answer");
    drop((channel, session));
    peer.tell("that is all");
    peer.finish();
    place.must_be_empty();
}
