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

/// Holds sessions and their channels, having answered the first question of each; and goes on answering the first of them.
fn holder(args: &[String]) {
    allow_descriptors();
    let app = server(&args[0]).channel::<hello::Owned>("main").allow(&client(), Trust::snapshot());
    let server = app.bind().expect("bind");
    let wanted: usize = args[1].parse().expect("a number");
    say("ready");
    let first = server.accept().expect("a client");
    let mut channel = first.accept_channel::<hello::Owned>().expect("a channel");
    let arena = server.arena().clone();
    let serving = std::thread::spawn(move || {
        while let Ok(question) = channel.recv() {
            let answer = greet(&channel, &arena.resident().expect("own").to_string());
            channel.reply(&question, &answer).expect("room");
        }
    });
    let mut held = vec![(first, None)];
    for _ in 1..wanted {
        let session = server.accept().expect("a client");
        let mut channel = session.accept_channel::<hello::Owned>().expect("a channel");
        let question = channel.recv().expect("a question");
        channel.reply(&question, &greet(&channel, "welcome")).expect("room");
        held.push((session, Some(channel)));
    }
    say("all in");
    hear();
    serving.join().expect("thread");
    // The watcher may hear of the first one's end before it has heard of each other's.
    eventually("everyone's end", || held.iter().all(|(session, _)| session.end().is_some()).then_some(()));
}

/// Bytes of memory that a process has, its own and what it reads of others'.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// What a session may cost each side beyond the first, in bytes.
const COST: u64 = 16 << 10;

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
    let (app, own) = (client().channel::<hello::Owned>("main"), std::process::id());
    let session = app.connect(&place.server()).expect("connect");
    let mut channel = open(&session);
    let committed = |channel: &mut _| {
        let theirs: u64 = ask(channel, "anything").parse().expect("a number");
        [session.arena().resident().expect("own"), theirs]
    };
    let first = committed(&mut channel);
    let holds = || [own, peer.pid()].map(|pid| (descriptors(pid), maps(&pid.to_string()).len(), threads(pid)));
    let before = holds();
    let [own_size, their_size] = [own, peer.pid()].map(resident);
    let meet = |_| {
        let session = app.connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        assert_eq!(ask(&mut channel, "may I?"), "welcome");
        (session, channel)
    };
    let others: Vec<(Session, _)> = (1..many).map(meet).collect();
    peer.must_say("all in");
    let sizes = [own, peer.pid()].map(resident);
    let each = |before: u64, after: u64| after.saturating_sub(before) / many as u64;
    let cost = [each(own_size, sizes[0]), each(their_size, sizes[1])];
    let holds = || [own, peer.pid()].map(|pid| (descriptors(pid), maps(&pid.to_string()).len(), threads(pid)));
    // A descriptor each; the arenas, their mappings and the thread are everyone's.
    let more = before.map(|(fds, maps, threads)| (fds + many - 1, maps, threads));
    eventually("a descriptor each", || (holds() == more).then_some(()));
    let last = committed(&mut channel);
    let shared = [each(first[0], last[0]), each(first[1], last[1])];
    println!("note: bytes each, on each side: resident {cost:?}, of which are shared and this side's {shared:?}");
    assert!(cost.iter().all(|&bytes| bytes <= COST), "resident {cost:?} bytes each");
    assert!(shared.iter().all(|&bytes| bytes <= 8 << 10), "committed {shared:?} bytes each");
    assert!(others.iter().all(|(session, _)| session.end().is_none()));
    // One of them has another channel when it wants one, and its end is not another's.
    let (one, _) = others.last().expect("many");
    let mut last = one.open_channel::<hello::Owned>("main", PATIENCE).expect("opened");
    last.send(&greet(&last, "unheard")).expect("room");
    drop(last);
    drop(others);
    committed(&mut channel);
    drop((channel, session));
    peer.tell("that is all");
    peer.finish();
    place.must_be_empty();
}
