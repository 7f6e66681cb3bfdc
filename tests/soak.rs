//! Everything at once for a given time: requests, streams, blobs, descriptors, messages of all sizes, split channels, event
//! loops, clients that come and go and clients that are killed. In between all of it rests, and then both processes hold
//! just what they held before: descriptors, threads and mappings to the last, and memory that does not grow.
//!
//! `STRAIT_SOAK` says how many seconds (10), `STRAIT_SEED` repeats a run, `STRAIT_WORKS` names what is done, with commas, if
//! not all is wanted, `STRAIT_SHOW` has the memory at every rest shown.

mod common;
#[path = "soak/gauge.rs"]
mod gauge;
#[path = "soak/host.rs"]
mod host;
#[path = "soak/load.rs"]
mod load;
#[path = "common/rng.rs"]
mod rng;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, trust};
use common::census::Census;
use common::peer::Peer;
use common::{Case, PATIENCE, eventually};
use gauge::{Memory, Slope};
use hello_capnp::hello;
use load::{Looped, WORKS, casualty, connect, open, reconnect, split, steady};
use rng::Rng;
use std::fs::File;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use strait::{Channel, ClientApp, Session, Wait};

type Hello = hello::Owned;

const BELIEFS: [&str; 2] = ["in_place", "snapshot"];

/// The app whose name says how far it is believed.
fn named(believed: &str) -> ClientApp {
    ClientApp::new(believed).timeout(PATIENCE)
}

fn main() -> ExitCode {
    let cases = [
        Case::new(MIXED, mixed).limit(number("STRAIT_SOAK").unwrap_or(0) * 2 + 180),
        Case::new("slopes_are_what_they_are", gauge::controls),
        Case::new("the_harness_finds_what_is_wrong", controls),
    ];
    common::main(&cases, &[("host", host::run), ("casualty", casualty)])
}

const MIXED: &str = "a_mixed_load";

/// What is to go wrong, for the controls.
fn plant() -> String {
    std::env::var("STRAIT_PLANT").unwrap_or_default()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The sessions that last, which have one arena each.
struct Lasting {
    steady: Vec<(Session, Channel<Hello>)>,
    split: Session,
    looped: Looped,
}

impl Lasting {
    fn new(place: &str) -> Self {
        let session = |which, believed: &str, wait| {
            let app = named(believed).trust(trust(believed)).wait(wait);
            connect(place, which, &app)
        };
        let steady = [(0, "in_place", Wait::Adaptive), (0, "snapshot", Wait::Park), (1, "snapshot", Wait::Park)];
        let with_channel = |session: Session| {
            let channel = open(&session, "main");
            (session, channel)
        };
        Self {
            steady: steady.map(|(which, believed, wait)| with_channel(session(which, believed, wait))).into(),
            split: session(0, "in_place", Wait::Park),
            looped: Looped::new(session(2, "in_place", Wait::Adaptive)),
        }
    }

    /// Nothing is under way any more; tells what the arenas hold.
    fn settle(&mut self) -> u64 {
        let sessions = || self.steady.iter().map(|(session, _)| session).chain([&self.split]);
        for session in sessions() {
            eventually("nothing is on loan", || (session.on_loan() == (0, 0)).then_some(()));
        }
        self.looped.settle();
        sessions().map(Session::arena).chain([self.looped.arena()]).map(host::held).sum()
    }
}

/// What was done.
#[derive(Default)]
struct Done {
    works: [u64; WORKS.len()],
    split: u64,
    looped: u64,
    sessions: u64,
    kills: u64,
}

/// Everything at once, until then.
fn load(place: &str, lasting: &mut Lasting, seed: u64, until: Instant, done: &mut Done) {
    let Lasting { steady: steadies, split: splitting, looped } = lasting;
    let rng = |number: u64| Rng::new(seed ^ number << 32);
    thread::scope(|scope| {
        let working: Vec<_> = steadies
            .iter_mut()
            .zip(0..)
            .map(|((session, channel), number)| {
                scope.spawn(move || {
                    let mut works = [0; WORKS.len()];
                    steady(session, channel, &mut rng(number), until, &mut works);
                    works
                })
            })
            .collect();
        let splitting = scope.spawn(|| split(splitting, until));
        let looping = scope.spawn(|| looped.ask(until));
        let killing = scope.spawn(|| kill(place, &mut rng(9), until));
        let mut works = [0; WORKS.len()];
        done.sessions += reconnect(place, &mut rng(8), until, &mut works);
        let all = working.into_iter().map(|thread| thread.join().expect("thread")).chain([works]);
        all.for_each(|works| done.works.iter_mut().zip(works).for_each(|(sum, more)| *sum += more));
        done.split += splitting.join().expect("thread");
        done.looped += looping.join().expect("thread");
        done.kills += killing.join().expect("thread");
    });
}

/// Kills one client after another at a random moment; tells how many.
fn kill(place: &str, rng: &mut Rng, until: Instant) -> u64 {
    let mut kills = 0;
    while Instant::now() < until {
        let mut casualty = Peer::start("casualty", &[place, &rng.next().to_string()]);
        casualty.must_say("begun");
        // The random moment.
        thread::sleep(Duration::from_micros(rng.below(50_000)));
        casualty.kill();
        kills += 1;
    }
    kills
}

/// What is looked at when all rests.
struct Look {
    /// Hours.
    at: f64,
    client: Memory,
    server: Memory,
    client_holds: f64,
    server_holds: f64,
}

fn mixed() {
    let place = Place::new();
    let total = Duration::from_secs(number("STRAIT_SOAK").unwrap_or(10));
    let seed = number("STRAIT_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("note: {} s, STRAIT_SEED={seed}", total.as_secs());
    let mut server = Peer::start("host", &[place.text()]);
    server.must_say("ready");
    let mut lasting = Lasting::new(place.text());
    let (mut done, mut looks, mut leaks) = (Done::default(), Vec::new(), Vec::new());
    let period = (total / 40).clamp(Duration::from_millis(500), Duration::from_secs(30));
    let (begin, pid) = (Instant::now(), server.pid().to_string());
    // Once before anything is counted: what is made once has been made then.
    load(place.text(), &mut lasting, seed, begin + period, &mut done);
    lasting.settle();
    let before = ["self", &pid].map(settled);
    while begin.elapsed() < total {
        load(place.text(), &mut lasting, seed + looks.len() as u64, Instant::now() + period, &mut done);
        match plant().as_str() {
            "leaked descriptor" => leaks.push(File::open("/dev/null").expect("a descriptor")),
            "leaked memory" => std::mem::forget(vec![1_u8; LEAK]),
            "leaked session" => std::mem::forget(connect(place.text(), 0, &named("snapshot"))),
            "leaked message" => {
                let mut blob = lasting.split.arena().create_blob(LEAK).expect("room");
                blob.fill(1);
                std::mem::forget(blob);
            }
            _ => {}
        }
        let client_holds = lasting.settle() as f64;
        before[1].must_return_in(&pid, PATIENCE);
        before[0].must_return_within(PATIENCE);
        server.tell("held");
        let server_holds = server.line().parse().expect("a number");
        let (client, server) = (Memory::of("self"), Memory::of(&pid));
        let at = begin.elapsed().as_secs_f64() / 3600.0;
        looks.push(Look { at, client, server, client_holds, server_holds });
    }
    report(&done, &looks, &before);
    judge(&looks);
    drop(lasting);
    server.tell("stop");
    server.finish();
    place.must_be_empty();
}

/// What a process holds once those that were killed have been noticed: nothing less for a while.
fn settled(pid: &str) -> Census {
    let mut found = Census::of(pid);
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        thread::sleep(Duration::from_millis(5));
        let now = Census::of(pid);
        if now != found {
            (found, since) = (now, Instant::now());
        }
    }
    found
}

fn report(done: &Done, looks: &[Look], before: &[Census; 2]) {
    let names = WORKS.iter().map(|(name, _)| name);
    let works: Vec<_> = names.zip(done.works).map(|(name, count)| format!("{count} {name}")).collect();
    println!("note: {}", works.join(", "));
    let Done { split, looped, sessions, kills, .. } = done;
    println!("note: {split} times three threads, {looped} answers in a loop, {sessions} sessions, {kills} kills");
    for (side, census) in ["client", "server"].into_iter().zip(before) {
        let (fds, threads, maps) = census.counts();
        println!("note: {side}: {fds} descriptors, {threads} threads, {maps} arenas in all {} rests", looks.len());
    }
}

/// What is looked at, by name.
type Gauge = (&'static str, fn(&Look) -> f64);

const GAUGES: [Gauge; 6] = [
    ("client's own memory", |look| look.client.private),
    ("client's arenas", |look| look.client_holds),
    ("client, all", |look| look.client.all),
    ("server's own memory", |look| look.server.private),
    ("server's arenas", |look| look.server_holds),
    ("server, all", |look| look.server.all),
];

/// What the controls leak at each rest.
const LEAK: usize = 32 << 20;

/// Memory must not grow, as far as can be told in the time: by 64 KiB in an hour. What is filled once, the caches of
/// threads above all, takes minutes until it is full; in less time than that nothing but a gross leak can be told.
fn judge(looks: &[Look]) {
    let looks = &looks[looks.len() / 3..];
    let hours = looks[looks.len() - 1].at - looks[0].at;
    let mut growing = Vec::new();
    if std::env::var("STRAIT_SHOW").is_ok() {
        let all = |look: &Look| GAUGES.map(|(_, gauge)| gauge(look) / 1024.0);
        looks.iter().for_each(|look| println!("note: {:?}", all(look)));
    }
    for (name, gauge) in GAUGES {
        let points: Vec<_> = looks.iter().map(|look| (look.at, gauge(look))).collect();
        let slope = Slope::through(&points);
        let kib = |bytes: f64| bytes / 1024.0;
        let (first, last) = (points[0].1, points[points.len() - 1].1);
        println!(
            "note: {name:20} {:8.0} KiB, at last {:8.0}; {:+9.0} KiB/h +- {:.0}",
            kib(first),
            kib(last),
            kib(slope.per_x),
            kib(slope.within)
        );
        let grows = if hours > 0.6 { slope.least() > 65_536.0 } else { last - first > LEAK as f64 };
        if grows {
            growing.push(name);
        }
    }
    assert!(growing.is_empty(), "grows: {growing:?}");
}

/// Whether all this can fail: it is run with something planted.
fn controls() {
    let plants = [
        ("leaked descriptor", "left behind"),
        ("leaked session", "left behind"),
        ("leaked memory", "grows"),
        ("leaked message", "grows"),
    ];
    let start = |(plant, symptom)| {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args([common::AS_CASE, MIXED]).env("STRAIT_PLANT", plant).env("STRAIT_SOAK", "6");
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        (child.expect("own program"), plant, symptom)
    };
    // At once, since some of them have to run out of patience.
    for (child, plant, symptom) in plants.map(start) {
        let output = child.wait_with_output().expect("wait");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "passed with a {plant} planted");
        assert!(text.contains(symptom), "with {plant}: {text}");
        println!("note: fails as it must: {plant}");
    }
}
