//! `kill -9` of either side at random moments and in every operation: what the other side learns, keeps and gives back.
//! `STRAIT_KILLS` says how many (200 in all), `STRAIT_SEED` repeats a run, `STRAIT_TOTALS` names a file whose counts are
//! added to.

#[path = "common/bulk.rs"]
mod bulk;
mod common;
#[path = "death/nursery.rs"]
mod nursery;
#[path = "common/rng.rs"]
mod rng;
#[path = "death/survivor.rs"]
mod survivor;
#[path = "death/totals.rs"]
mod totals;
#[path = "death/victim.rs"]
mod victim;
capnp::generated_code!(mod cache_capnp);
capnp::generated_code!(mod hello_capnp);

use cache_capnp::cache;
use common::apps::{Place, ask, greet, open, server, trust, words};
use common::census::{Census, files};
use common::obliging::{connect, obliging_server};
use common::peer::{Peer, say};
use common::{Case, PATIENCE, eventually, obliging};
use hello_capnp::hello;
use nursery::Victim;
use rng::Rng;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use strait::{AcceptError, Channel, ConnectError, Ended, RecvError, SessionServer, Trust, Wait};
use survivor::{Books, SOON, Seen, keep_company};
use totals::Totals;
use victim::{Note, OPS, Op, named, now};

fn main() -> ExitCode {
    // A second for each is more than they take.
    let limit = number("STRAIT_KILLS").unwrap_or(0).max(180);
    let cases = [
        Case::new(CLIENTS, clients).limit(limit),
        Case::new(SERVERS, servers).limit(limit),
        Case::new("the_harness_finds_what_is_wrong", controls),
    ];
    let roles: &[common::Role] =
        &[("obliging", obliging::run), ("honest client", honest_client), ("nursery", nursery::run)];
    common::main(&cases, roles)
}

const CLIENTS: &str = "killed_clients";
const SERVERS: &str = "killed_servers";
const WAITS: [Wait; 3] = [Wait::Spin, Wait::Adaptive, Wait::Park];
const BELIEFS: [&str; 2] = ["in_place", "snapshot"];

/// What is to go wrong, for the controls.
fn plant() -> String {
    std::env::var("STRAIT_PLANT").unwrap_or_default()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Kills one victim after another, and keeps the table.
struct Killer {
    victims: &'static str,
    nursery: Peer,
    notes: Place,
    note: Note,
    kills: usize,
    rng: Rng,
    totals: Totals,
}

/// A victim that is dead, and what it was at.
struct Dead {
    op: Op,
    /// Whether it was in the middle of it.
    within: bool,
    /// By the clock of [`now`].
    at: Duration,
    aim: Option<Op>,
}

impl Killer {
    fn new(victims: &'static str) -> Self {
        let notes = Place::new();
        let time = std::time::UNIX_EPOCH.elapsed().expect("a clock").subsec_nanos();
        let seed = number("STRAIT_SEED").unwrap_or(u64::from(time));
        let kills = number("STRAIT_KILLS").unwrap_or(200) as usize / 2;
        println!("note: {victims}s: {kills} kills, STRAIT_SEED={seed}");
        let note = Note::open(&notes.path().join("note"));
        let nursery = Peer::start("nursery", &[victims]);
        Self { victims, nursery, notes, note, kills, rng: Rng::new(seed), totals: Totals::default() }
    }

    /// Mostly what was hit least so far, and any moment at all every third time.
    fn aim(&mut self, round: usize) -> Option<Op> {
        let rarest = OPS.iter().map(|&(op, _)| op).min_by_key(|&op| self.totals.of(op, "kills"));
        rarest.filter(|_| !round.is_multiple_of(3))
    }

    /// Starts a victim that meets its peer at `place` and kills it, in the operation `aim` if that can be hit.
    fn kill(&mut self, aim: Option<Op>, place: &Place) -> Dead {
        self.note.clear();
        let believing = match aim {
            Some(Op::ReadInPlace) => "in_place",
            Some(Op::ReadSnapshot) => "snapshot",
            _ => self.rng.pick(&BELIEFS),
        };
        let (seed, believed) = (self.rng.next().to_string(), self.rng.pick(&BELIEFS));
        let path = self.notes.path().join("note");
        let focus = aim.map_or("any", Op::name);
        let args = [place.text(), path.to_str().expect("plain"), believing, &seed, focus, believed];
        let victim = Victim::start(&mut self.nursery, &args);
        let at = if aim.is_some() {
            victim.wait_killed();
            self.note.until()
        } else {
            eventually("it began", || self.note.is());
            // The random moment: as many early ones as late ones.
            let bits = self.rng.below(15);
            thread::sleep(Duration::from_micros(self.rng.below(1 << bits)));
            let at = now();
            victim.kill();
            at
        };
        Dead { op: self.note.is().expect("began"), within: self.note.is_within(), at, aim }
    }

    fn book(&mut self, dead: &Dead, seen: &[Seen]) {
        let after: Vec<_> = seen.iter().filter(|seen| seen.at >= dead.at).collect();
        let ended = |cause| after.iter().filter(|seen| seen.cause == Some(cause)).count();
        let (died, closed) = (ended(Ended::PeerDied), ended(Ended::PeerClosed));
        // It had one session at a time.
        assert!(died <= 1, "{died} sessions died in {}", dead.op.name());
        let aimed = usize::from(dead.aim == Some(dead.op));
        let counts =
            [("kills", 1), ("within", usize::from(dead.within)), ("aimed", aimed), ("died", died), ("closed", closed)];
        counts.into_iter().for_each(|(column, more)| self.totals.add(dead.op, column, more));
        for seen in after {
            assert!(seen.at - dead.at < SOON, "noticed after {:?}", seen.at - dead.at);
            self.totals.noticed(seen.at - dead.at);
        }
    }

    /// Nobody was missed: for the notes of a passed case.
    fn report(mut self) {
        for (op, name) in OPS {
            let kills = self.totals.of(op, "kills");
            assert!(self.kills < 100 || kills >= 3, "too few kills to say anything about {name}");
        }
        self.totals.keep(self.victims);
        self.totals.report(self.victims);
        self.nursery.finish();
    }
}

impl Dead {
    /// Whether there was a session for certain, which must have ended by this death.
    fn had_session(&self) -> bool {
        (Op::OpenChannel..=Op::CloseChannel).contains(&self.op)
    }
}

fn clients() {
    let mut killer = Killer::new("client");
    let (place, slow_place) = (Place::new(), Place::new());
    let app = |place: &Place| {
        let all = BELIEFS.iter().fold(place.server(), |app, name| app.allow(&named(name), trust(name)));
        let all = all.allow(&named("honest"), Trust::snapshot());
        all.channel::<cache::Owned>("main").channel::<hello::Owned>("honest").bind().expect("bind")
    };
    let (server, slow) = (Arc::new(app(&place)), app(&slow_place));
    let books = Arc::new(Books::default());
    let (give, take) = mpsc::channel();
    let accepting = {
        let (server, books) = (server.clone(), books.clone());
        thread::spawn(move || accept(&server, &books, &give))
    };
    let mut honest = Peer::start("honest client", &[place.text()]);
    honest.must_say("ready");
    let session: strait::Session = take.recv().expect("the honest one");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    // An arena keeps what it shows to the first peer for the others.
    let mut first = Peer::start("honest client", &[slow_place.text()]);
    let met = slow.accept().expect("a session");
    first.must_say("ready");
    drop((met.accept_channel::<hello::Owned>().expect("channel"), met));
    first.finish();
    let before = Census::take();
    for round in 0..killer.kills {
        let aim = killer.aim(round);
        let dead = killer.kill(aim, if aim == Some(Op::LogIn) { &slow_place } else { &place });
        // Whoever knocked there is gone, before or after it said who it is.
        while aim == Some(Op::LogIn) {
            match slow.accept_timeout(common::apps::SHORT) {
                Err(AcceptError::Disconnected) => {}
                Err(AcceptError::TimedOut) => break,
                Ok(session) => eventually("the death", || (session.end() == Some(Ended::PeerDied)).then_some(())),
                Err(other) => panic!("{other:?}"),
            }
        }
        let seen = books.quiet(dead.had_session());
        killer.book(&dead, &seen);
        assert_eq!(ask(&mut channel, "still there?"), "still there?");
        before.must_return_within(SOON);
        assert_eq!(files(place.path()), ["suite.lock", "suite.sock"]);
    }
    drop((channel, session));
    honest.finish();
    server.close();
    accepting.join().expect("accepting thread");
    server.arena().purge();
    assert_eq!(server.arena().resident().expect("fstat"), 0);
    drop((server, slow));
    place.must_be_empty();
    killer.report();
}

fn accept(server: &SessionServer, books: &Arc<Books>, honest: &mpsc::Sender<strait::Session>) {
    for wait in WAITS.into_iter().cycle() {
        match server.accept() {
            Ok(session) if session.peer_name() == "honest" => honest.send(session).expect("case"),
            Ok(session) => {
                books.begin();
                let books = books.clone();
                thread::spawn(move || {
                    keep_company(session, &books, wait, strait::Session::accept_channel);
                    books.end();
                });
            }
            Err(AcceptError::Disconnected) => books.saw(None, now()),
            Err(AcceptError::Closed) => return,
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Says what it hears, over the channel `honest`.
fn honest_client(args: &[String]) {
    let app = named("honest").channel::<hello::Owned>("honest");
    let session = app.connect(&server(&args[0])).expect("connect");
    let mut channel: Channel<hello::Owned> = session.open_channel("honest", PATIENCE).expect("channel");
    say("ready");
    loop {
        match channel.recv() {
            Ok(received) => {
                let echo = greet(&channel, &words(&received));
                channel.reply(&received, &echo).expect("reply");
            }
            Err(RecvError::Ended(_)) => return,
            Err(other) => panic!("{other}"),
        }
    }
}

fn servers() {
    let mut killer = Killer::new("server");
    let (place, honest_place) = (Place::new(), Place::new());
    let mut honest = obliging_server(&honest_place, "snapshot");
    let session = connect(&honest_place, Trust::snapshot());
    let mut channel = open(&session);
    let books = Arc::new(Books::default());
    books.begin();
    let visiting = {
        let (books, place) = (books.clone(), place.text().to_owned());
        thread::spawn(move || visit(&place, &books))
    };
    books.quiet(false);
    let before = Census::take();
    for round in 0..killer.kills {
        let aim = killer.aim(round);
        books.go_on();
        let dead = killer.kill(aim, &place);
        let seen = books.quiet(dead.had_session());
        killer.book(&dead, &seen);
        assert_eq!(ask(&mut channel, "echo still there"), "still there");
        before.must_return_within(SOON);
        assert!(files(place.path()).iter().all(|name| ["suite.lock", "suite.sock"].contains(&name.as_str())));
    }
    books.go_home();
    visiting.join().expect("visitor");
    drop((channel, session));
    honest.tell("stop");
    honest.finish();
    // The next one takes the dead one's place, and leaves nothing.
    drop(place.server().bind().expect("bind"));
    place.must_be_empty();
    killer.report();
}

/// Visits whoever serves there, again and again.
fn visit(place: &str, books: &Books) {
    for (turn, wait) in WAITS.into_iter().cycle().enumerate() {
        if !books.rest() {
            return;
        }
        match named("visitor").trust(trust(BELIEFS[turn % 2])).connect(&server(place)) {
            Ok(session) => keep_company(session, books, wait, survivor::open),
            // Before it binds, or dead.
            Err(ConnectError::NotFound { path: _ }) => thread::sleep(Duration::from_micros(200)),
            Err(ConnectError::Disconnected) => books.saw(None, now()),
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Whether the two cases above can fail: each is run with something planted.
fn controls() {
    let plants = [
        (CLIENTS, "leaked descriptor", "left behind"),
        (SERVERS, "leaked descriptor", "left behind"),
        (CLIENTS, "leaked session", "left behind"),
        (SERVERS, "late", "did not notice"),
        (CLIENTS, "damaged", "assertion"),
    ];
    let start = |(case, plant, symptom)| {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.args([common::AS_CASE, case]).env("STRAIT_PLANT", plant).env("STRAIT_KILLS", "24");
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        (child.expect("own program"), case, plant, symptom)
    };
    // At once, since each of them has to run out of patience.
    for (child, case, plant, symptom) in plants.map(start) {
        let output = child.wait_with_output().expect("wait");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{case} passed with a {plant} planted");
        assert!(text.contains(symptom), "{case} with {plant}: {text}");
        println!("note: {case} fails as it must: {plant}");
    }
}
