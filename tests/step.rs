//! `kill -9` at every instruction of what is done all the time, and around every system call and after every store to
//! shared memory of what is done now and then: either side in turn, stepped by ptrace to where it dies. The other side gets
//! a typed error or a whole message, is left with nothing, and its other session goes on.
//!
//! `STRAIT_LEVEL` says how many points: `quick` some of each operation, spread evenly; `nightly` and `release` every
//! instruction of the first kind, and of the second every system call, every store and 2,000 instructions; `stores` just
//! every store of the second. `STRAIT_OPS` names the operations, with commas, if not all are wanted.

#[path = "common/bulk.rs"]
mod bulk;
mod common;
#[cfg(target_arch = "x86_64")]
#[path = "step/stores.rs"]
mod stores;
#[path = "step/survivor.rs"]
mod survivor;
#[path = "step/tracer.rs"]
mod tracer;
#[path = "step/victim.rs"]
mod victim;
capnp::generated_code!(mod cache_capnp);
capnp::generated_code!(mod hello_capnp);

use cache_capnp::cache;
use common::apps::{Place, ask, client, open, server, trust};
use common::census::{Census, files};
use common::obliging::{connect, obliging_server};
use common::peer::Peer;
use common::{Case, PATIENCE, eventually, obliging};
use hello_capnp::hello;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use strait::{AcceptError, Channel, ConnectError, Ended, Session, Trust};
use survivor::{End, Stage, keep_company};
use tracer::{Point, Stride, Trace, Traced};
use victim::{FIRST, LIFE, Op, SERVING, TALK};

fn main() -> ExitCode {
    let long = if matches!(std::env::var("STRAIT_LEVEL").as_deref(), Ok("nightly" | "release" | "stores")) {
        6 * 3600
    } else {
        180
    };
    let cases = [
        Case::new(CLIENTS_TALK, || clients(&TALK)).limit(long),
        Case::new("clients_killed_in_what_is_done_now_and_then", || clients(&[&FIRST[..], &LIFE].concat())).limit(long),
        Case::new("servers_killed_in_what_is_done_all_the_time", || servers(&TALK)).limit(long),
        Case::new("servers_killed_in_what_is_done_now_and_then", || servers(&LIFE)).limit(long),
        Case::new("servers_killed_with_nobody_there", nobody_there).limit(long),
        Case::new("the_harness_finds_what_is_wrong", controls),
    ];
    let roles: &[common::Role] =
        &[("obliging", obliging::run), ("visitor", visitor), ("client", victim::client), ("server", victim::serve)];
    common::main(&cases, roles)
}

const CLIENTS_TALK: &str = "clients_killed_in_what_is_done_all_the_time";

/// How long after a death everything about it must be over. The issue says a second; the machine may be busy.
const SOON: Duration = Duration::from_secs(5);

/// What is to go wrong, for the controls.
fn plant() -> String {
    std::env::var("STRAIT_PLANT").unwrap_or_default()
}

/// Where to die, at most, in each operation.
struct Budget {
    instructions: u64,
    calls: u64,
    stores: u64,
}

impl Budget {
    fn of(op: Op) -> Self {
        let talk = TALK.contains(&op);
        let (instructions, calls, stores) = match std::env::var("STRAIT_LEVEL").as_deref() {
            Ok("nightly" | "release") if op == Op::FirstLogIn => (0, u64::MAX, 0),
            Ok("nightly" | "release") if talk => (u64::MAX, u64::MAX, 0),
            Ok("nightly" | "release") => (2_000, u64::MAX, u64::MAX),
            Ok("quick") | Err(_) if op.makes_arena() => (0, 12, 0),
            Ok("quick") | Err(_) if talk => (24, 12, 0),
            Ok("quick") | Err(_) => (8, 12, 8),
            Ok("stores") => (u64::from(!op.makes_arena()), 0, u64::MAX),
            Ok("few") => (4, 0, 0),
            Ok(other) => panic!("STRAIT_LEVEL={other}"),
        };
        Self { instructions, calls, stores }
    }
}

/// Evenly spread, the first and the last among them.
fn spread(whole: u64, most: u64) -> Vec<u64> {
    let count = most.min(whole + 1);
    (0..count).map(|index| if count == 1 { 0 } else { index * whole / (count - 1) }).collect()
}

/// What came of an operation's kills.
#[derive(Default)]
struct Row {
    instructions: u64,
    calls: u64,
    stores: usize,
    kills: usize,
    /// Kills at the very point meant: the others' operations were over before.
    aimed: usize,
    /// Kills after which the survivor had a message of the victim's, all of it.
    came: usize,
    died: usize,
    closed: usize,
    /// Before there was a session, as the survivor saw it.
    none: usize,
}

/// Kills victims in one operation after another. `run` starts a victim and takes it to the beginning of its operation;
/// `quiet` waits until the survivor is done with a dead one.
fn kill_all(ops: &[Op], mut run: impl FnMut(Op) -> Traced, mut quiet: impl FnMut() -> Vec<End>) {
    tracer::settle();
    println!("note: operation       instructions  calls  stores  kills  aimed  came  PeerDied  PeerClosed  no session");
    let mut all = 0;
    let wanted =
        |op: Op| std::env::var("STRAIT_OPS").map_or(true, |ops| ops.split(',').any(|name| name == format!("{op:?}")));
    for &op in ops.iter().filter(|&&op| wanted(op)) {
        let most = Budget::of(op);
        let mut row = Row::default();
        let mut settle = |row: &mut Row| {
            row.kills += 1;
            let ends = quiet();
            row.none += usize::from(ends.is_empty());
            for End { cause, came } in ends {
                row.came += usize::from(came > 0);
                row.died += usize::from(cause == Ended::PeerDied);
                row.closed += usize::from(cause == Ended::PeerClosed);
                let closes = op == Op::CloseSession && cause == Ended::PeerClosed;
                assert!(cause == Ended::PeerDied || closes, "{op:?}: {cause:?}");
            }
        };
        let mut trace = Trace::default();
        if most.instructions > 0 {
            let victim = run(op);
            trace = victim.trace();
            (row.instructions, row.stores) = (trace.instructions, trace.stores.len());
            // At its end.
            victim.kill_at(Point::Inside(0), &trace);
            settle(&mut row);
        }
        let victim = run(op);
        let calls = victim.count_calls();
        row.calls = calls;
        victim.kill_at(Point::Inside(0), &trace);
        settle(&mut row);
        let mut kill_at = |point| {
            row.aimed += usize::from(run(op).kill_at(point, &trace));
            settle(&mut row);
        };
        for steps in spread(trace.instructions, most.instructions) {
            kill_at(Point::After(Stride::Instruction, steps));
        }
        for index in spread((trace.stores.len() as u64).saturating_sub(1), most.stores) {
            trace.stores.get(index as usize).into_iter().for_each(|&store| kill_at(Point::Stored(store)));
        }
        for strides in spread(calls, most.calls) {
            kill_at(Point::After(Stride::Call, strides));
            // From the beginning of a call.
            if strides % 2 == 1 {
                kill_at(Point::Inside(strides));
            }
        }
        let Row { instructions, calls, stores, kills, aimed, came, died, closed, none } = row;
        println!(
            "note: {:15} {instructions:13} {calls:6} {stores:7} {kills:6} {aimed:6} {came:5} {died:9} {closed:11} {none:11}",
            format!("{op:?}")
        );
        let sends = matches!(op, Op::Publish | Op::Wake | Op::ReturnRiding | Op::SendBlob | Op::SendDescriptors);
        let publishes = cfg!(target_arch = "x86_64") && most.instructions > 0 && sends;
        assert!(!publishes || stores >= 8, "{op:?}: a slot alone is eight stores");
        assert!(!sends || (came > 0 && came < kills), "both before and after it was published");
        assert!(aimed * 8 > kills, "{op:?}: hardly a point was met");
        all += kills;
    }
    println!("note: {all} kills");
}

/// Takes a victim to the beginning of its operation, once the survivor is ready for it.
fn begin(victim: &mut Traced, op: Op, readies: &mpsc::Receiver<i32>) {
    victim.0.must_say("ready");
    if !op.meets() {
        let survivor = readies.recv_timeout(PATIENCE).expect("the survivor gets ready");
        if op == Op::Wake {
            eventually("the survivor sleeps", || is_in_futex(survivor).then_some(()));
        }
    }
    victim.0.tell("go");
    victim.run_to_mark();
}

fn is_in_futex(thread: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap_or_default();
    call.starts_with(&format!("{} ", nix::libc::SYS_futex_waitv))
}

/// Where this side opens channels, and victims accept them.
fn opens(session: &Session) -> bool {
    session.peer_name() == "suite"
}

fn clients(ops: &[Op]) {
    let place = Place::new();
    let app = place.server().slots(victim::SLOTS).allow(&client(), Trust::snapshot());
    let app = app.allow(&victim::app(), trust("in_place"));
    let app = app.channel::<cache::Owned>("main").channel::<hello::Owned>("honest");
    let server = Arc::new(app.bind().expect("bind"));
    let (stage, readies, ends) = Stage::new();
    let stage = Arc::new(stage);
    let (give, take) = mpsc::channel();
    let accepting = {
        let (server, stage) = (server.clone(), stage.clone());
        thread::spawn(move || {
            loop {
                match server.accept() {
                    Ok(session) if session.peer_name() == "tester" => give.send(session).expect("case"),
                    Ok(session) => {
                        let stage = stage.clone();
                        thread::spawn(move || keep_company(session, &stage, Session::accept_channel));
                    }
                    Err(AcceptError::Disconnected) => {}
                    Err(AcceptError::Closed) => return,
                    Err(other) => panic!("{other:?}"),
                }
            }
        })
    };
    let mut honest = Peer::start("visitor", &[place.text()]);
    let session: Session = take.recv().expect("the honest one");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    let before = Census::take();
    let run = |op| {
        stage.set(op);
        let mut victim = Traced(Peer::start("client", &[place.text(), &format!("{op:?}")]));
        begin(&mut victim, op, &readies);
        victim
    };
    let quiet = || {
        stage.died();
        // There must have been a session, or there may have been.
        let mut seen = Vec::new();
        if !stage.op().meets() {
            seen.push(ends.recv_timeout(SOON).expect("the survivor did not notice the death"));
        }
        assert_eq!(ask(&mut channel, "still there?"), "still there?");
        before.must_return_within(SOON);
        seen.extend(ends.try_iter());
        seen
    };
    kill_all(ops, run, quiet);
    drop((channel, session));
    honest.must_say("end");
    honest.finish();
    server.close();
    accepting.join().expect("accepting thread");
    server.arena().purge();
    assert_eq!(server.arena().resident().expect("fstat"), 0);
    drop(server);
    place.must_be_empty();
}

/// An honest client: says what it hears.
fn visitor(args: &[String]) {
    let session = client().connect(&server(&args[0])).expect("connect");
    let mut channel: Channel<hello::Owned> = session.open_channel("honest", PATIENCE).expect("channel");
    while let Ok(received) = channel.recv() {
        let echo = common::apps::greet(&channel, &common::apps::words(&received));
        channel.reply(&received, &echo).expect("reply");
    }
    common::peer::say("end");
}

fn servers(ops: &[Op]) {
    let (place, honest_place) = (Place::new(), Place::new());
    let mut honest = obliging_server(&honest_place, "snapshot");
    let session = connect(&honest_place, Trust::snapshot());
    let mut channel = open(&session);
    let (stage, readies, ends) = Stage::new();
    let stage = Arc::new(stage);
    let before = Census::take();
    let visiting = std::cell::RefCell::new(None);
    let run = |op| {
        stage.set(op);
        let mut victim = Traced(Peer::start("server", &[place.text(), &format!("{op:?}")]));
        victim.0.must_say("bound");
        let (stage, place) = (stage.clone(), place.text().to_owned());
        visiting.replace(Some(thread::spawn(move || visit(&place, &stage))));
        begin(&mut victim, op, &readies);
        victim
    };
    let quiet = || {
        stage.died();
        visiting.take().expect("a visitor").join().expect("a visitor's good end");
        let seen: Vec<End> = ends.try_iter().collect();
        assert!(stage.op().meets() || seen.len() == 1);
        assert_eq!(ask(&mut channel, "echo still there"), "still there");
        before.must_return_within(SOON);
        assert!(files(place.path()).iter().all(|name| ["suite.lock", "suite.sock"].contains(&name.as_str())));
        seen
    };
    kill_all(ops, run, quiet);
    drop((channel, session));
    honest.tell("stop");
    honest.finish();
    // The next one takes the dead one's place, and leaves nothing.
    drop(place.server().bind().expect("bind"));
    place.must_be_empty();
}

fn visit(place: &str, stage: &Stage) {
    match victim::app().trust(trust(stage.op().trust())).connect(&server(place)) {
        Ok(session) => keep_company(session, stage, |session| session.open_channel("main", PATIENCE)),
        Err(ConnectError::Disconnected | ConnectError::NotFound { path: _ }) => {}
        Err(other) => panic!("{other:?}"),
    }
}

/// Whatever a dead server leaves in the directory, the next one takes its place.
fn nobody_there() {
    let place = Place::new();
    let before = Census::take();
    let (_, readies, _) = Stage::new();
    let run = |op| {
        let mut victim = Traced(Peer::start("server", &[place.text(), &format!("{op:?}")]));
        begin(&mut victim, op, &readies);
        victim
    };
    let quiet = || {
        assert!(files(place.path()).iter().all(|name| ["suite.lock", "suite.sock"].contains(&name.as_str())));
        match client().connect(&place.server()) {
            Err(ConnectError::NotFound { path: _ }) => {}
            other => panic!("{other:?}"),
        }
        drop(place.server().bind().expect("bind"));
        place.must_be_empty();
        before.must_return_within(SOON);
        Vec::new()
    };
    kill_all(&SERVING, run, quiet);
}

/// Whether all this can fail: a case is run with something planted.
fn controls() {
    let plants = [("leaked descriptor", "left behind"), ("leaked session", "left behind")];
    let start = |(plant, symptom)| {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args([common::AS_CASE, CLIENTS_TALK]).env("STRAIT_PLANT", plant).env("STRAIT_LEVEL", "few");
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        (child.expect("own program"), plant, symptom)
    };
    // At once, since each of them has to run out of patience.
    for (child, plant, symptom) in plants.map(start) {
        let output = child.wait_with_output().expect("wait");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "passed with a {plant} planted");
        assert!(text.contains(symptom), "with {plant}: {text}");
        println!("note: fails as it must: {plant}");
    }
}
