//! While both sides spin, messages cross without the kernel: system calls of two processes, counted by strace.

mod common;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, client, greet, open, server, words};
use common::peer::{Peer, say};
use common::{AS_ROLE, Case, PATIENCE};
use hello_capnp::hello;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, getppid};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use strait::{Trust, Wait};

fn main() -> ExitCode {
    let cases =
        [Case::new("spinning_makes_no_system_calls", spinning), Case::new("parking_makes_many_system_calls", parking)];
    common::main(&cases, &[(ROLES[0], talking_server), (ROLES[1], talking_client)])
}

/// A round takes several times as long in a debug build, and the watcher looks every 10 ms while there is traffic: the
/// bound stays, the rounds are fewer.
const ROUNDS: usize = if cfg!(debug_assertions) { 10_000 } else { 100_000 };
const BOUND: usize = 100;

/// Somebody else's load makes rounds longer, and the watcher looks, and is told to look, by the clock: so one quiet turn
/// of these will do.
const TURNS: usize = 5;

/// Whose calls are counted: between two calls that nobody else makes.
fn mark() {
    getppid();
}

fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).expect("affinity");
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect()
}

fn spinning() {
    for (role, turns) in traced("spin", ROUNDS) {
        println!("note: {role}: calls in turns of {ROUNDS} rounds, (all threads, the talking one): {turns:?}");
        assert_eq!(turns.len(), TURNS);
        assert!(turns.iter().any(|&(all, _)| all < BOUND), "{role}: {turns:?}");
    }
}

/// That the count counts: a sleep per message cannot go unseen.
fn parking() {
    for (role, turns) in traced("park", 2 * BOUND) {
        assert_eq!(turns.len(), TURNS);
        assert!(turns.iter().all(|&(_, talking)| talking >= BOUND), "{role}: {turns:?}");
    }
}

/// Has two processes on two CPUs talk, and counts; nothing if that cannot be done here.
fn traced(wait: &str, rounds: usize) -> Vec<(&'static str, Vec<(usize, usize)>)> {
    let has_strace = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let cpus = cpus();
    let (Some(first), Some(second), true) = (cpus.first(), cpus.get(1), has_strace) else {
        println!("note: skipped: needs two CPUs and strace; CPUs: {}, strace: {has_strace}", cpus.len());
        return Vec::new();
    };
    let (place, traces) = (Place::new(), Place::new());
    let trace = |role: &str| traces.path().join(role);
    let start = |role: &str, cpu: &usize| {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o"]).arg(trace(role)).arg(std::env::current_exe().expect("own path"));
        command.args([AS_ROLE, role, place.text(), &cpu.to_string(), wait, &rounds.to_string()]);
        Peer::of(command)
    };
    let mut server = start(ROLES[0], first);
    server.must_say("ready");
    start(ROLES[1], second).finish();
    server.finish();
    ROLES.map(|role| (role, count(&trace(role)))).to_vec()
}

const ROLES: [&str; 2] = ["talking server", "talking client"];

/// The calls between each two marks: in all threads, and in the one that makes the marks.
fn count(trace: &Path) -> Vec<(usize, usize)> {
    let text = std::fs::read_to_string(trace).expect("trace");
    let (mut turns, mut turn) = (Vec::new(), None);
    for line in text.lines() {
        let (thread, call) = line.split_once(' ').expect("a thread and its call");
        let call = call.trim_start();
        match (call.starts_with("getppid("), &mut turn) {
            (true, None) => turn = Some((thread, 0, 0)),
            (true, Some((_, all, talking))) => {
                turns.push((*all, *talking));
                turn = None;
            }
            // The other half of a line that was counted.
            (false, Some(_)) if call.starts_with("<... ") => {}
            (false, Some((talker, all, talking))) => {
                *all += 1;
                *talking += usize::from(*talker == thread);
            }
            (false, None) => {}
        }
    }
    turns
}

/// Goes to its CPU; how to wait, and how many rounds to talk.
fn told(args: &[String]) -> (Wait, usize) {
    let mut set = CpuSet::new();
    set.set(args[1].parse().expect("a number")).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &set).expect("affinity");
    (if args[2] == "spin" { Wait::Spin } else { Wait::Park }, args[3].parse().expect("a number"))
}

fn talking_server(args: &[String]) {
    let (wait, rounds) = told(args);
    let app = server(&args[0]).allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main").wait(wait);
    let server = app.bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    for turn in 0..=TURNS {
        for round in 0..rounds {
            let received = channel.recv().expect("question");
            // The first turn is to warm up.
            if turn > 0 && round == 0 {
                mark();
            }
            let answer = greet(&channel, &words(&received));
            channel.reply(&received, &answer).expect("reply");
        }
        if turn > 0 {
            mark();
        }
    }
}

fn talking_client(args: &[String]) {
    let (wait, rounds) = told(args);
    let session = client().wait(wait).connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    for turn in 0..=TURNS {
        if turn > 0 {
            mark();
        }
        for _ in 0..rounds {
            let question = greet(&channel, "anyone?");
            let answer = channel.request(&question, PATIENCE).expect("answer");
            assert_eq!(words(&answer), "anyone?");
        }
        if turn > 0 {
            mark();
        }
    }
}
