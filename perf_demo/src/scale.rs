//! How the cost of a message grows with its size, and with what there is beside it: messages under way, channels, sessions,
//! threads. Each row is measured in turn with the floor, and compared with the first row of its sweep.

use crate::cache_capnp::cache;
use crate::cli::{Technique, WaitMode};
use crate::client::Client;
use crate::control::Settled;
use crate::driver;
use crate::host::{self, Host, Lot, PATIENCE};
use crate::payload::{Expected, Size, Source, Twin};
use crate::report::Tally;
use crate::stop::Stop;
use anyhow::Context;
use clap::{Args, ValueEnum};
use perf_demo::cpus::{Cpus, Pin};
use perf_demo::figures::{ratio, show, time, times};
use perf_demo::gauge::Gauge;
use perf_demo::machine::{Watch, mark};
use perf_demo::picture::{COLOURS, Curve, Picture};
use perf_demo::sheet::Sheet;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use strait::Channel;

/// `perf_demo scale`.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// What to vary [default: all].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    sweep: Vec<Sweep>,
    /// Sizes of answers.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = Size::parse,
        default_value = "64B,4KiB,100KiB,1MiB,10MiB,100MiB,1GiB"
    )]
    payload: Vec<Size>,
    /// Messages under way at a time, of the 256 there is room for.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,2,4,8,16,32,64,128",
        value_parser = clap::value_parser!(u32).range(1..=128)
    )]
    in_flight: Vec<u32>,
    /// Channels in one session.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,4,16,64,256,1024")]
    channels: Vec<usize>,
    /// Sessions between two processes.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,10,100,1000,4000")]
    sessions: Vec<usize>,
    /// Threads on either side.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "1,2,4,8,16",
        value_parser = clap::value_parser!(u32).range(1..=256)
    )]
    threads: Vec<u32>,
    /// Requests of each row.
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u32).range(100..))]
    rounds: u32,
    /// Which CPUs the two processes run on, but for threads, which run anywhere [default: split where there are two, else
    /// same].
    #[arg(long)]
    pin: Option<Pin>,
    /// Prints one JSON object per row on stdout, and no table.
    #[arg(long)]
    json: bool,
    /// Also draws the sweeps as curves into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// What is varied.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Sweep {
    /// The answer's size
    Payload,
    /// Messages under way in one channel, both ways
    InFlight,
    /// Channels of one session, served by one loop; each is asked in turn
    Channels,
    /// Sessions, one of which is asked, by a thread of its own
    Sessions,
    /// Sessions with a channel each, all in one loop; one is asked
    LoopSessions,
    /// Threads on either side, with a session each
    Threads,
    /// Threads of the client that share one channel
    Sharing,
}

impl Sweep {
    fn name(self) -> &'static str {
        match self {
            Self::Payload => "payload",
            Self::InFlight => "in-flight",
            Self::Channels => "channels",
            Self::Sessions => "sessions",
            Self::LoopSessions => "loop-sessions",
            Self::Threads => "threads",
            Self::Sharing => "sharing",
        }
    }
}

#[derive(Serialize)]
struct Row {
    sweep: Sweep,
    value: usize,
    wait: WaitMode,
    pin: &'static str,
    rounds: u32,
    p50_ns: u64,
    p99_ns: u64,
    floor_p50_ns: Option<u64>,
    marks: Option<String>,
}

pub(crate) fn run(options: &Options, stop: &Stop) -> anyhow::Result<ExitCode> {
    let cpus = Cpus::allowed()?;
    let pin = options.pin.unwrap_or(if cpus.are_two() { Pin::Split } else { Pin::Same });
    let mut found = Found::new(options, &cpus, pin, stop);
    for sweep in Sweep::value_variants() {
        if !(options.sweep.is_empty() || options.sweep.contains(sweep)) {
            continue;
        }
        found.begin();
        match sweep {
            Sweep::Payload => driver::beside_server(&[], |dir| payloads(&mut found, Client::connect(dir, stop)?))?,
            Sweep::InFlight => in_flight(&mut found)?,
            Sweep::Channels => channels(&mut found)?,
            Sweep::Sessions => sessions(&mut found, Sweep::Sessions)?,
            Sweep::LoopSessions => sessions(&mut found, Sweep::LoopSessions)?,
            Sweep::Threads => threads(&mut found)?,
            Sweep::Sharing => sharing(&mut found)?,
        }
        if stop.signal().is_some() {
            break;
        }
    }
    found.finish()?;
    Ok(ExitCode::SUCCESS)
}

/// What has been found, and what all sweeps need.
struct Found<'a> {
    options: &'a Options,
    cpus: &'a Cpus,
    pin: Pin,
    stop: &'a Stop,
    sheet: Sheet,
    rows: Vec<Row>,
    /// The first of the present sweep.
    first: Option<u64>,
}

impl<'a> Found<'a> {
    fn new(options: &'a Options, cpus: &'a Cpus, pin: Pin, stop: &'a Stop) -> Self {
        const COLUMNS: [&str; 11] =
            ["sweep", "value", "wait", "pin", "messages", "p50", "p99", "floor-line", "/ floor", "/ first", ""];
        let sheet = Sheet::new(options.json, 4, &COLUMNS);
        Self { options, cpus, pin, stop, sheet, rows: Vec::new(), first: None }
    }

    fn begin(&mut self) {
        self.sheet.gap();
        self.first = None;
    }

    /// A host on the CPU it belongs on, and this process on its own.
    fn host(&self) -> anyhow::Result<Host> {
        let (own, theirs) = self.cpus.places(self.pin);
        self.cpus.go_to(own)?;
        Host::start(theirs, self.stop)
    }

    fn is_together(&self) -> bool {
        self.pin == Pin::Same || !self.cpus.are_two()
    }

    /// Runs `round`, which says how long one message took, in turns with the floor; and reports.
    fn measure(
        &mut self,
        what: (Sweep, usize, WaitMode),
        rounds: u32,
        host: &mut Host,
        mut round: impl FnMut() -> anyhow::Result<Duration>,
    ) -> anyhow::Result<()> {
        let (mut tally, mut floor) = (Tally::new(), Tally::new());
        let watch = Watch::begin(&[Gauge::own()?, host.gauge()?]);
        for turn in 0..TURNS {
            for number in 0..WARM + rounds / TURNS {
                let took = round()?;
                tally.round(number >= WARM, (took, true));
            }
            if !self.is_together() {
                host.floor(FLOOR, |took| floor.round(turn > 0 || TURNS == 1, (took, true)))?;
            }
        }
        let floor = (!self.is_together()).then(|| floor.p50());
        self.tell(what, self.pin, &tally, floor, watch.marks())
    }

    fn tell(
        &mut self,
        (sweep, value, wait): (Sweep, usize, WaitMode),
        pin: Pin,
        tally: &Tally,
        floor_p50_ns: Option<u64>,
        mut marks: Option<String>,
    ) -> anyhow::Result<()> {
        if self.is_together() && wait == WaitMode::Spin {
            mark(&mut marks, "needs a second CPU");
        }
        let (p50_ns, p99_ns, rounds) = (tally.p50(), tally.p99(), u32::try_from(tally.rounds())?);
        let row = Row { sweep, value, wait, pin: pin.name(), rounds, p50_ns, p99_ns, floor_p50_ns, marks };
        let value = if sweep == Sweep::Payload { show(value) } else { value.to_string() };
        let first = *self.first.get_or_insert(p50_ns);
        let mut cells = vec![sweep.name().to_owned(), value, wait.name().to_owned(), pin.name().to_owned()];
        cells.extend([rounds.to_string(), time(p50_ns), time(p99_ns)]);
        cells.push(floor_p50_ns.map(time).unwrap_or_default());
        cells.push(times(floor_p50_ns.and_then(|floor| ratio(p50_ns, floor))));
        cells.push(times(ratio(p50_ns, first)));
        cells.push(row.marks.clone().unwrap_or_default());
        self.sheet.add(&row, cells)?;
        self.rows.push(row);
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        if let Some(path) = &self.options.plot {
            let curve = |(sweep, colour): (&Sweep, [u8; 3])| {
                let rows = self.rows.iter().filter(|row| row.sweep == *sweep);
                let points = rows.map(|row| (row.value as f64, row.p50_ns as f64)).collect();
                Curve { name: sweep.name().to_owned(), points, colour: (colour, 1.0) }
            };
            let picture = Picture {
                caption: "One request and its answer: median time",
                x: ("bytes of the answer, or how many there are", &|value| format!("{value:.0}")),
                y: ("time per message", &|nanos| time(nanos as u64)),
                curves: Sweep::value_variants().iter().zip(COLOURS).map(curve).collect(),
            };
            picture.draw(path)?;
        }
        self.sheet.finish(NOTES)
    }
}

const NOTES: &str = "\
payload: a request and its answer, read in place. in-flight: so many messages are under way, each answered by another;
time per message and its answer, in batches. channels: all in one session, served by one loop, asked one after the other.
sessions: one is asked, the others are idle. loop-sessions: the same, all served by one loop, which sleeps in between.
threads: so many in each process, with a session each, anywhere; sharing: so many threads ask over one channel: time per
request of the whole, by the clock. \"/ first\" compares medians with the first row of the sweep, \"/ floor\" with
floor-line, two cache lines written in turn, measured in turn with the row.";

/// Turns that a row and its floor take.
const TURNS: u32 = 5;
const WARM: u32 = 20;
/// Samples of the floor in each turn.
const FLOOR: u32 = 100;
/// Messages in one sample where many are under way.
const BATCH: u32 = 128;

fn payloads(found: &mut Found<'_>, mut client: Client) -> anyhow::Result<()> {
    let (own, theirs) = client.cpus().places(found.pin);
    let patience = if found.is_together() { 1 } else { u32::MAX };
    client.settle(Settled { wait: WaitMode::Spin, cpu: theirs, patience }, own)?;
    for size in &found.options.payload {
        let source = Source::Generated { bytes: size.0 };
        let [itself, complement] = Twin::BOTH.map(|twin| Expected::of(&source, twin));
        let files = [itself?, complement?];
        client.hold(&source, false)?;
        let (mut tally, mut floor) = (Tally::new(), Tally::new());
        tally.verified(client.verify(Technique::Shm, &files)?);
        let watch = Watch::begin(&client.gauges()?);
        for _ in 0..TURNS {
            client.block(Technique::Shm, &files, (WARM, found.options.rounds / TURNS), &mut tally)?;
            client.block(Technique::FloorLine, &files, (WARM, FLOOR), &mut floor)?;
        }
        let mut marks = watch.marks();
        if tally.is_wrong() {
            mark(&mut marks, "WRONG BYTES");
        }
        found.tell((Sweep::Payload, size.0, WaitMode::Spin), found.pin, &tally, Some(floor.p50()), marks)?;
    }
    Ok(())
}

fn in_flight(found: &mut Found<'_>) -> anyhow::Result<()> {
    let mut host = found.host()?;
    // A sample is many messages.
    let samples = found.options.rounds / 10;
    for &window in &found.options.in_flight {
        let (_session, mut channel) = host.channel(Lot::Echoed, WaitMode::Spin)?;
        let question = host::question(&channel)?;
        for _ in 0..window {
            channel.send(&question)?;
        }
        let batch = || {
            let start = Instant::now();
            for _ in 0..BATCH {
                host::read(channel.recv()?.get()?)?;
                channel.send(&question)?;
            }
            Ok(start.elapsed() / BATCH)
        };
        found.measure((Sweep::InFlight, window as usize, WaitMode::Spin), samples, &mut host, batch)?;
    }
    Ok(())
}

fn channels(found: &mut Found<'_>) -> anyhow::Result<()> {
    let mut host = found.host()?;
    let session = host.session(Lot::Looped)?;
    let mut channels: Vec<Channel<cache::Owned>> = Vec::new();
    for &count in &found.options.channels {
        while channels.len() < count {
            let mut channel = host::open(&session, WaitMode::Spin)?;
            host::ask(&mut channel)?;
            channels.push(channel);
        }
        let mut next = 0;
        let round = || {
            next = (next + 1) % count.max(1);
            let channel = channels.get_mut(next).context("no channels")?;
            timed(|| host::ask(channel))
        };
        found.measure((Sweep::Channels, count, WaitMode::Spin), found.options.rounds, &mut host, round)?;
    }
    Ok(())
}

fn sessions(found: &mut Found<'_>, sweep: Sweep) -> anyhow::Result<()> {
    let most = host::allow_descriptors()?.saturating_sub(100);
    let mut host = found.host()?;
    let (lot, idle) = match sweep {
        Sweep::LoopSessions => (Lot::Looped, Lot::Looped),
        _ => (Lot::Answered, Lot::Kept),
    };
    let (_session, mut channel) = host.channel(lot, WaitMode::Spin)?;
    let mut others = Vec::new();
    for &count in &found.options.sessions {
        let count = count.min(most);
        while others.len() + 1 < count {
            let session = host.session(idle)?;
            // In a loop, each has a channel that has been used.
            let mut other = (idle == Lot::Looped).then(|| host::open(&session, WaitMode::Spin)).transpose()?;
            other.as_mut().map(host::ask).transpose()?;
            others.push((session, other));
        }
        let round = || timed(|| host::ask(&mut channel));
        found.measure((sweep, count, WaitMode::Spin), found.options.rounds, &mut host, round)?;
    }
    Ok(())
}

fn threads(found: &mut Found<'_>) -> anyhow::Result<()> {
    found.cpus.go_to(None)?;
    let host = Host::start(None, found.stop)?;
    for &count in &found.options.threads {
        let channels = (0..count).map(|_| host.channel(Lot::Answered, WaitMode::Adaptive));
        let mut channels = channels.collect::<anyhow::Result<Vec<_>>>()?;
        let each = found.options.rounds / TURNS / count;
        crowd(found, &host, Sweep::Threads, count, |tell| {
            for _ in 0..TURNS {
                let start = Instant::now();
                std::thread::scope(|scope| {
                    let ask = |channel: &mut _| (0..each).try_for_each(|_| host::ask(channel));
                    let asking = channels.iter_mut().map(|(_, channel)| scope.spawn(move || ask(channel)));
                    asking.collect::<Vec<_>>().into_iter().try_for_each(joined)
                })?;
                tell(start.elapsed() / (each * count).max(1));
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn sharing(found: &mut Found<'_>) -> anyhow::Result<()> {
    found.cpus.go_to(None)?;
    let host = Host::start(None, found.stop)?;
    let (_session, channel) = host.channel(Lot::Answered, WaitMode::Adaptive)?;
    let (sender, _receiver) = channel.split();
    for &count in &found.options.threads {
        let each = found.options.rounds / TURNS / count;
        crowd(found, &host, Sweep::Sharing, count, |tell| {
            let ask = || -> anyhow::Result<()> {
                let mut request = sender.create_msg_with_capacity(64);
                request.init_root().init_get_cache_req().set_file_name("what is there?");
                host::read(sender.request(&request.freeze()?, PATIENCE)?.get()?)
            };
            for _ in 0..TURNS {
                let start = Instant::now();
                std::thread::scope(|scope| {
                    let asking = (0..count).map(|_| scope.spawn(|| (0..each).try_for_each(|_| ask())));
                    asking.collect::<Vec<_>>().into_iter().try_for_each(joined)
                })?;
                tell(start.elapsed() / (each * count).max(1));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A row whose samples are turns of many threads; the first is not counted.
fn crowd(
    found: &mut Found<'_>,
    host: &Host,
    sweep: Sweep,
    count: u32,
    run: impl FnOnce(&mut dyn FnMut(Duration)) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let watch = Watch::begin(&[Gauge::own()?, host.gauge()?]);
    let (mut tally, mut turns) = (Tally::new(), 0);
    run(&mut |took| {
        tally.round(turns > 0, (took, true));
        turns += 1;
    })?;
    let mut marks = watch.marks();
    if 2 * count as usize > found.cpus.count() {
        mark(&mut marks, "more threads than CPUs");
    }
    found.tell((sweep, count as usize, WaitMode::Adaptive), Pin::None, &tally, None, marks)
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

#[inline]
fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
