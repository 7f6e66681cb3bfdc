//! What messages, waiting, sessions and channels cost in CPU time, memory and descriptors: both processes' share, seen from
//! outside of them.

use crate::cli::{Technique, WaitMode};
use crate::client::Client;
use crate::control::Settled;
use crate::driver;
use crate::host::{self, Host, Lot};
use crate::payload::{Expected, Size, Source, Twin};
use crate::report::Tally;
use crate::stop::Stop;
use clap::Args;
use nix::time::{ClockId, clock_gettime};
use perf_demo::cpus::{Cpus, Pin};
use perf_demo::figures::{digits, ratio, show, time, times};
use perf_demo::gauge::{Gauge, Holds};
use perf_demo::machine::{Watch, mark};
use perf_demo::picture::{COLOURS, Curve, Picture};
use perf_demo::sheet::Sheet;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// `perf_demo cost`.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Milliseconds to measure for each row: too short a time, and what a process spends cannot be told from outside.
    #[arg(long, default_value_t = 300, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    millis: u32,
    /// Sizes of the answers.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = Size::parse, default_value = "64B,1MiB")]
    payload: Vec<Size>,
    /// How both sides wait.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "spin,adaptive,park")]
    wait: Vec<WaitMode>,
    /// Which CPUs the two processes run on [default: split and same where there are two CPUs; none spins on
    /// the same].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pin: Vec<Pin>,
    /// Microseconds between two requests, of the rows where they do not follow each other at once.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "10,30,100,300,1000")]
    every: Vec<u64>,
    /// Sessions to hold.
    #[arg(long, default_value_t = 4000, value_name = "N")]
    sessions: usize,
    /// Channels to hold in one session.
    #[arg(long, default_value_t = 256, value_name = "N")]
    channels: usize,
    /// Seconds of idleness to look at.
    #[arg(long, default_value_t = 5, value_name = "N")]
    idle: u64,
    /// Seconds before that, in which freed memory goes back to the system.
    #[arg(long, default_value_t = 17, value_name = "N")]
    settle: u64,
    /// Prints one JSON object per row on stdout, and no tables.
    #[arg(long)]
    json: bool,
    /// Also draws CPU time against the time between requests into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// CPU time of the two processes.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    client: Duration,
    server: Duration,
}

pub(crate) fn run(options: &Options, stop: &Stop) -> anyhow::Result<ExitCode> {
    let cpus = Cpus::allowed()?;
    let pins = match &options.pin[..] {
        [] if cpus.are_two() => vec![Pin::Split, Pin::Same],
        [] => vec![Pin::Same],
        pins => pins.to_vec(),
    };
    driver::beside_server(&[], |dir| messages(options, &mut Client::connect(dir, stop)?, &pins))?;
    if stop.signal().is_none() {
        paced(options, &cpus, stop)?;
    }
    if stop.signal().is_none() {
        held(options, stop)?;
    }
    Ok(ExitCode::SUCCESS)
}

// Request after request.

/// Turns that the techniques of a group take. The kernel counts what a running process spends in ticks of some
/// milliseconds, so they are long.
const TURNS: u32 = 3;
const WARM: u32 = 20;

#[derive(Serialize)]
struct MessageRow {
    figure: &'static str,
    technique: Technique,
    wait: WaitMode,
    pin: &'static str,
    payload_bytes: usize,
    rounds: u32,
    rtt_p50_ns: u64,
    client_cpu_ns: u64,
    server_cpu_ns: u64,
    marks: Option<String>,
}

fn messages(options: &Options, client: &mut Client, pins: &[Pin]) -> anyhow::Result<()> {
    const COLUMNS: [&str; 11] =
        ["payload", "wait", "pin", "technique", "requests", "p50", "client CPU", "server CPU", "both", "/ classic", ""];
    const TECHNIQUES: [Technique; 4] =
        [Technique::Classic, Technique::Snapshot, Technique::Shm, Technique::FloorSocket];
    let mut sheet = Sheet::new(options.json, 4, &COLUMNS);
    for size in &options.payload {
        let source = Source::Generated { bytes: size.0 };
        let [itself, complement] = Twin::BOTH.map(|twin| Expected::of(&source, twin));
        let files = [itself?, complement?];
        client.hold(&source, false)?;
        for &pin in pins {
            for &wait in &options.wait {
                if wait == WaitMode::Spin && pin == Pin::Same && client.cpus().are_two() && options.pin.is_empty() {
                    continue;
                }
                let (own, theirs) = client.cpus().places(pin);
                let together = own.is_some() && own == theirs || !client.cpus().are_two();
                let patience = if together { 1 } else { u32::MAX };
                client.settle(Settled { wait, cpu: theirs, patience }, own)?;
                let gauges = client.gauges()?;
                let watch = Watch::begin(&gauges);
                let mut found: Vec<_> =
                    TECHNIQUES.iter().map(|&technique| (technique, Tally::new(), Spent::default())).collect();
                for (technique, tally, _) in &mut found {
                    tally.verified(client.verify(*technique, &files)?);
                }
                for _ in 0..TURNS {
                    for (technique, tally, spent) in &mut found {
                        let start = Instant::now();
                        client.block(*technique, &files, (WARM, 0), tally)?;
                        let each = start.elapsed() / WARM;
                        let fit = Duration::from_millis(options.millis.into()) / TURNS;
                        let rounds = fit.as_nanos().checked_div(each.as_nanos()).unwrap_or(0);
                        let before = look(&gauges)?;
                        client.block(*technique, &files, (0, u32::try_from(rounds)?.max(1)), tally)?;
                        let after = look(&gauges)?;
                        spent.client += after.client.saturating_sub(before.client);
                        spent.server += after.server.saturating_sub(before.server);
                    }
                }
                let mut marks = watch.marks();
                if together && wait == WaitMode::Spin {
                    mark(&mut marks, "needs a second CPU");
                }
                let rounds = |tally: &Tally| u32::try_from(tally.rounds());
                let classic = match found.first() {
                    Some((_, tally, spent)) => Some(spent.each(rounds(tally)?).2),
                    None => None,
                };
                sheet.gap();
                for (technique, tally, spent) in &found {
                    let mut marks = marks.clone();
                    if tally.is_wrong() {
                        mark(&mut marks, "WRONG BYTES");
                    }
                    let rounds = rounds(tally)?;
                    let (client_cpu_ns, server_cpu_ns, both) = spent.each(rounds);
                    let row = MessageRow {
                        figure: "cpu-per-request",
                        technique: *technique,
                        wait,
                        pin: pin.name(),
                        payload_bytes: size.0,
                        rounds,
                        rtt_p50_ns: tally.p50(),
                        client_cpu_ns,
                        server_cpu_ns,
                        marks,
                    };
                    let mut cells =
                        [&show(size.0), wait.name(), pin.name(), technique.name()].map(String::from).to_vec();
                    cells.push(rounds.to_string());
                    cells.extend([row.rtt_p50_ns, client_cpu_ns, server_cpu_ns, both].map(time));
                    cells.push(times(classic.and_then(|classic| ratio(both, classic))));
                    cells.push(row.marks.clone().unwrap_or_default());
                    sheet.add(&row, cells)?;
                }
            }
        }
    }
    sheet.finish(
        "CPU time, user and system, of each process per request and answer, one after the other at once. floor-socket is 8\n\
         bytes echoed over a blocking socket, whatever the row's payload and wait.\n",
    )
}

fn look(gauges: &[Gauge; 2]) -> anyhow::Result<Spent> {
    Ok(Spent { client: gauges[0].cpu()?, server: gauges[1].cpu()? })
}

impl Spent {
    /// In nanoseconds per request: the client's, the server's, both.
    fn each(self, rounds: u32) -> (u64, u64, u64) {
        let [client, server] = [self.client, self.server]
            .map(|spent| u64::try_from(spent.as_nanos() / u128::from(rounds.max(1))).unwrap_or(u64::MAX));
        (client, server, client.saturating_add(server))
    }
}

// With time in between.

#[derive(Serialize)]
struct PacedRow {
    figure: &'static str,
    wait: WaitMode,
    pin: &'static str,
    every_ns: u64,
    rounds: u32,
    rtt_p50_ns: u64,
    client_cpu_ns: u64,
    server_cpu_ns: u64,
    sleeps_per_recv: f64,
    marks: Option<String>,
}

/// The client works between its requests, so its CPU is awake; only what it spends in them is counted.
fn paced(options: &Options, cpus: &Cpus, stop: &Stop) -> anyhow::Result<()> {
    const COLUMNS: [&str; 10] =
        ["wait", "pin", "every", "requests", "p50", "client CPU", "server CPU", "both", "sleeps", ""];
    let pin = if cpus.are_two() { Pin::Split } else { Pin::Same };
    let (own, theirs) = cpus.places(pin);
    cpus.go_to(own)?;
    let host = Host::start(theirs, stop)?;
    let gauges = [Gauge::own()?, host.gauge()?];
    let mut sheet = Sheet::new(options.json, 2, &COLUMNS);
    let mut curves = Vec::new();
    for &wait in &options.wait {
        // One at a time: a spinning one would take the others' CPU.
        let (_session, mut channel) = host.channel(Lot::Answered, wait)?;
        let mut points = Vec::new();
        sheet.gap();
        for &every in &options.every {
            let every = Duration::from_micros(every.max(1));
            let fit = Duration::from_millis(u64::from(options.millis) * 2);
            let rounds = u32::try_from(fit.as_nanos() / every.as_nanos())?.max(10);
            let mut tally = Tally::new();
            let (mut spent, mut begun, mut stats) = (Spent::default(), look(&gauges)?, channel.wait_stats());
            let watch = Watch::begin(&gauges);
            let mut next = Instant::now();
            for round in 0..WARM + rounds {
                if round == WARM {
                    (spent, begun, stats) = (Spent::default(), look(&gauges)?, channel.wait_stats());
                }
                next = (next + every).max(Instant::now());
                while Instant::now() < next {
                    std::hint::spin_loop();
                }
                let (before, start) = (clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?, Instant::now());
                host::ask(&mut channel)?;
                let took = start.elapsed();
                spent.client += Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before);
                tally.round(round >= WARM, (took, true));
            }
            spent.server = look(&gauges)?.server - begun.server;
            let mut marks = watch.marks();
            if pin == Pin::Same {
                mark(&mut marks, "needs a second CPU");
            }
            let now = channel.wait_stats();
            let (client_cpu_ns, server_cpu_ns, both) = spent.each(rounds);
            points.push((every.as_nanos() as f64, both as f64));
            let row = PacedRow {
                figure: "cpu-per-paced-request",
                wait,
                pin: pin.name(),
                every_ns: u64::try_from(every.as_nanos())?,
                rounds,
                rtt_p50_ns: tally.p50(),
                client_cpu_ns,
                server_cpu_ns,
                sleeps_per_recv: (now.sleeps - stats.sleeps) as f64 / (now.receives - stats.receives).max(1) as f64,
                marks,
            };
            let mut cells = vec![wait.name().to_owned(), pin.name().to_owned(), time(row.every_ns), rounds.to_string()];
            cells.extend([row.rtt_p50_ns, client_cpu_ns, server_cpu_ns, both].map(time));
            cells.extend([digits(row.sleeps_per_recv), row.marks.clone().unwrap_or_default()]);
            sheet.add(&row, cells)?;
        }
        let colour = (COLOURS[curves.len() % COLOURS.len()], 1.0);
        curves.push(Curve { name: wait.name().to_owned(), points, colour });
    }
    cpus.go_to(None)?;
    if let Some(path) = &options.plot {
        let picture = Picture {
            caption: "CPU time of both processes per request of 64 bytes",
            x: ("time between two requests", &|nanos| time(nanos as u64)),
            y: ("CPU time per request", &|nanos| time(nanos as u64)),
            curves,
        };
        picture.draw(path)?;
    }
    sheet.finish(
        "The same with time between two requests, in which the client works. Its CPU time is what it spends in requests; the\n\
         server's is all it spends, waiting included. \"sleeps\" are the client's, per answer.\n",
    )
}

// Nothing at all.

#[derive(Serialize)]
struct IdleRow {
    figure: &'static str,
    sessions: usize,
    channels: usize,
    seconds: u64,
    client_cpu_ns: u64,
    server_cpu_ns: u64,
}

#[derive(Serialize)]
struct HeldRow {
    figure: &'static str,
    what: String,
    client_resident: i64,
    client_private: i64,
    client_descriptors: f64,
    server_resident: i64,
    server_private: i64,
    server_descriptors: f64,
}

fn held(options: &Options, stop: &Stop) -> anyhow::Result<()> {
    const COLUMNS: [&str; 9] =
        ["each of", "times", "client: resident", "private", "fds", "server: resident", "private", "fds", ""];
    let most = host::allow_descriptors()?.saturating_sub(200);
    let count = options.sessions.min(most / 2);
    let host = Host::start(None, stop)?;
    let gauges = [Gauge::own()?, host.gauge()?];
    let mut sheet = Sheet::new(options.json, 1, &COLUMNS);
    let mut short = None;
    if count < options.sessions {
        mark(&mut short, format!("only {most} descriptors allowed"));
    }
    let mut census = Census { gauges, before: holds(&gauges)?, sheet: &mut sheet, short };

    let first = host.channel(Lot::Looped, WaitMode::Adaptive)?;
    let mut talkers = vec![first];
    host::ask(&mut talkers[0].1)?;
    census.tell("first session, with a channel that was used", 1)?;

    let kept_first = host.session(Lot::Kept)?;
    census.skip()?;
    let kept = (0..count).map(|_| host.session(Lot::Kept)).collect::<anyhow::Result<Vec<_>>>()?;
    census.tell("further session, no channel", count)?;
    drop((kept, kept_first));

    // Those that are gone are still being seen off.
    std::thread::sleep(Duration::from_secs(1));
    census.skip()?;
    for _ in 0..count {
        let mut talker = host.channel(Lot::Looped, WaitMode::Adaptive)?;
        host::ask(&mut talker.1)?;
        talkers.push(talker);
    }
    census.tell("further session, with a channel that was used", count)?;

    let stocked = host.session(Lot::Stocked)?;
    let channel = host::open(&stocked, WaitMode::Adaptive)?;
    census.skip()?;
    let channels = (1..=options.channels).map(|_| host::open(&stocked, WaitMode::Adaptive));
    let channels = channels.collect::<anyhow::Result<Vec<_>>>()?;
    census.tell("further channel of a session", options.channels)?;
    sheet.finish(
        "What each adds to what a process has mapped and exists (shared memory in full on both sides), to what is private to\n\
         it, and to its descriptors. What the kernel keeps for a socket is in neither.\n",
    )?;

    std::thread::sleep(Duration::from_secs(options.settle));
    let before = look(&gauges)?;
    std::thread::sleep(Duration::from_secs(options.idle));
    let after = look(&gauges)?;
    let mut sheet = Sheet::new(options.json, 0, &["sessions", "channels", "idle for", "client CPU", "server CPU", ""]);
    let row = IdleRow {
        figure: "idle-cpu",
        sessions: talkers.len() + 1,
        channels: talkers.len() + channels.len() + 1,
        seconds: options.idle,
        client_cpu_ns: u64::try_from((after.client - before.client).as_nanos())?,
        server_cpu_ns: u64::try_from((after.server - before.server).as_nanos())?,
    };
    let mut cells = [row.sessions, row.channels].map(|count| count.to_string()).to_vec();
    cells.push(format!("{} s", row.seconds));
    cells.extend([row.client_cpu_ns, row.server_cpu_ns].map(time));
    cells.push(String::new());
    sheet.add(&row, cells)?;
    drop((channel, channels));
    sheet.finish("CPU time of either process meanwhile, all threads.")
}

fn holds(gauges: &[Gauge; 2]) -> anyhow::Result<[Holds; 2]> {
    Ok([gauges[0].holds()?, gauges[1].holds()?])
}

/// Counts what has come to be held.
struct Census<'a> {
    gauges: [Gauge; 2],
    before: [Holds; 2],
    sheet: &'a mut Sheet,
    short: Option<String>,
}

impl Census<'_> {
    /// What has come so far is not counted.
    fn skip(&mut self) -> anyhow::Result<()> {
        self.before = holds(&self.gauges)?;
        Ok(())
    }

    /// Since last time, so many of these have come.
    fn tell(&mut self, what: &str, count: usize) -> anyhow::Result<()> {
        let now = holds(&self.gauges)?;
        let [client, server] = [now[0] - self.before[0], now[1] - self.before[1]];
        let count_or_one = i64::try_from(count)?.max(1);
        let each = |bytes: i64| bytes / count_or_one;
        let exactly = |descriptors: i64| descriptors as f64 / count_or_one as f64;
        let row = HeldRow {
            figure: "held",
            what: what.to_owned(),
            client_resident: each(client.resident),
            client_private: each(client.private),
            client_descriptors: exactly(client.descriptors),
            server_resident: each(server.resident),
            server_private: each(server.private),
            server_descriptors: exactly(server.descriptors),
        };
        let kib = |bytes: i64| format!("{:.1} KiB", bytes as f64 / 1024.0);
        let cells = vec![
            row.what.clone(),
            count.to_string(),
            kib(row.client_resident),
            kib(row.client_private),
            digits(row.client_descriptors),
            kib(row.server_resident),
            kib(row.server_private),
            digits(row.server_descriptors),
            self.short.clone().unwrap_or_default(),
        ];
        self.sheet.add(&row, cells)?;
        self.before = now;
        Ok(())
    }
}
