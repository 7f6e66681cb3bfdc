//! What is measured when, and how it is told: peers of one size, way of waiting and pinning form a group and take turns in
//! blocks, so that the rows of a group, and only those, were measured in the same moments.

use crate::kinds::{Peer, Wait};
use crate::round::{Pair, Serve};
use anyhow::Context;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use perf_demo::cpus::{Cpus, Pin};
use perf_demo::figures::{ratio, show, time, times};
use perf_demo::gauge::Gauge;
use perf_demo::machine::{Watch, mark};
use perf_demo::picture::{COLOURS, Curve, Picture};
use perf_demo::sheet::Sheet;
use serde::Serialize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Sizes of the answers, at least 16 B. Beyond 256 MiB peers do not take turns: together they would need too much
    /// memory.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_parser = size,
        default_value = "64B,4KiB,100KiB,1MiB,100MiB"
    )]
    payload: Vec<usize>,
    /// Whom to measure [default: all]. strait and the floors come by themselves.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    peer: Vec<Peer>,
    /// How both sides wait. strait adapting comes by itself.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "poll,block")]
    wait: Vec<Wait>,
    /// Which CPUs the two processes run on [default: split and same where there are two CPUs; none polls on the same].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pin: Vec<Pin>,
    /// Timed rounds of each row [default: by size and wait, 20,000 small ones down to 10 of copied ones].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(5..))]
    rounds: Option<u32>,
    /// Prints one JSON object per row on stdout, and no table.
    #[arg(long)]
    json: bool,
    /// Also draws the time against the size into this SVG file: the first pinning, asleep where that was measured.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

fn size(text: &str) -> Result<usize, String> {
    let bytes = parse_size::parse_size(text).map_err(|error| format!("{error} (such as 64B, 100KiB or 1GiB)"))?;
    usize::try_from(bytes).ok().filter(|bytes| (16..=4 << 30).contains(bytes)).ok_or("not 16 B to 4 GiB".into())
}

#[derive(Serialize)]
struct Row {
    peer: Peer,
    wait: Wait,
    pin: &'static str,
    payload_bytes: usize,
    rounds: u64,
    rtt_ns: Option<Rtt>,
    /// Its median as a multiple of strait's that waits alike.
    vs_strait: Option<f64>,
    /// And of the floor's: line where both poll, echo where both sleep.
    vs_floor: Option<f64>,
    verified: bool,
    marks: Option<String>,
}

#[derive(Clone, Copy, Serialize)]
struct Rtt {
    min: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// Measures everything that was asked for.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    const COLUMNS: [&str; 11] =
        ["payload", "wait", "pin", "peer", "rounds", "p50", "p90", "p99", "/ strait", "/ floor", ""];
    let cpus = Cpus::allowed()?;
    let pins = match &options.pin[..] {
        [] if cpus.are_two() => vec![Pin::Split, Pin::Same],
        [] => vec![Pin::Same],
        pins => pins.to_vec(),
    };
    let dir = tempfile::TempDir::with_prefix("peers-").context("cannot make a directory to meet in")?;
    let mut sheet = Sheet::new(options.json, 4, &COLUMNS);
    let mut rows = Vec::new();
    for &bytes in &options.payload {
        for &pin in &pins {
            for &wait in &options.wait {
                if wait == Wait::Poll && pin == Pin::Same && cpus.are_two() && options.pin.is_empty() {
                    continue;
                }
                sheet.gap();
                for row in (Group { options, cpus: &cpus, dir: dir.path(), bytes, pin, wait }).run()? {
                    sheet.add(&row, row.cells())?;
                    rows.push(row);
                }
            }
        }
    }
    cpus.go_to(None)?;
    if let Some(path) = &options.plot {
        let wait = if options.wait.contains(&Wait::Block) { Wait::Block } else { Wait::Poll };
        draw(&rows, pins[0], wait, path)?;
    }
    sheet.finish(NOTES)?;
    let wrong = rows.iter().any(|row| row.rtt_ns.is_some() && !row.verified);
    Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

const NOTES: &str = "\
Time from before the request is built until the answer's first and last eight bytes were read, compared, and everything
received was released; answers were made before. \"/ strait\" compares medians with strait that waits alike, \"/ floor\"
with line (two cache lines written in turn) where both poll and with echo (8 bytes over a socket) where both sleep.
iceoryx2 can send nothing twice: its rows without \"copy\" write only the ends of each answer, which then is not what a
server that holds it would send. A row with a mark instead of times could not be measured.";

/// What is measured in turn.
struct Group<'a> {
    options: &'a Options,
    cpus: &'a Cpus,
    dir: &'a Path,
    bytes: usize,
    pin: Pin,
    wait: Wait,
}

/// One peer's part in a group.
struct Turn {
    peer: Peer,
    wait: Wait,
    rounds: u32,
    nanos: Histogram<u64>,
    wrong: bool,
    pair: Option<Pair>,
    failed: Option<String>,
}

/// Turns in a group.
const TURNS: u32 = 5;
const WARM: u32 = 20;
/// Where nobody asked for a number of rounds, a group's last turn begins before this is over.
const BUDGET: Duration = Duration::from_secs(5);
/// Beyond this, peers do not take turns.
const HUGE: usize = 256 << 20;

impl Group<'_> {
    fn run(&self) -> anyhow::Result<Vec<Row>> {
        let (own, _) = self.cpus.places(self.pin);
        self.cpus.go_to(own)?;
        let mut turns = self.turns();
        let begun = Instant::now();
        let mut marks = None;
        if self.bytes > HUGE {
            let watch = Watch::begin(&[Gauge::own()?]);
            for turn in &mut turns {
                self.start(turn);
                turn.take(turn.rounds);
                turn.finish();
            }
            // Servers come and go, and count as others.
            drop(watch);
            mark(&mut marks, "not in turn");
        } else {
            turns.iter_mut().for_each(|turn| self.start(turn));
            let mut gauges = vec![Gauge::own()?];
            gauges.extend(turns.iter().filter_map(|turn| Gauge::of(turn.pair.as_ref()?.pid()).ok()));
            let watch = Watch::begin(&gauges);
            for cycle in 0..TURNS {
                if cycle > 0 && self.options.rounds.is_none() && begun.elapsed() > BUDGET {
                    break;
                }
                for turn in &mut turns {
                    turn.take(turn.rounds.div_ceil(TURNS));
                }
            }
            marks = watch.marks();
            turns.iter_mut().for_each(Turn::finish);
        }
        if self.is_together() && self.wait == Wait::Poll {
            mark(&mut marks, "needs a second CPU");
        }
        Ok(self.rows(&turns, marks))
    }

    fn is_together(&self) -> bool {
        self.pin == Pin::Same || !self.cpus.are_two()
    }

    fn turns(&self) -> Vec<Turn> {
        let asked = &self.options.peer;
        let wanted = |peer: Peer| asked.is_empty() || asked.contains(&peer) || peer == Peer::Strait || peer.is_floor();
        let mut turns = Vec::new();
        for &peer in Peer::value_variants().iter().filter(|peer| wanted(**peer)) {
            for &wait in peer.waits().iter().filter(|wait| **wait == self.wait || **wait == Wait::Adaptive) {
                turns.push(Turn::new(peer, wait, self.options.rounds.unwrap_or_else(|| self.rounds(peer))));
            }
        }
        turns
    }

    /// As many as take about a second.
    fn rounds(&self, peer: Peer) -> u32 {
        let many = if self.wait == Wait::Poll { 20_000 } else { 5_000 };
        if peer.moves_bytes() {
            u32::try_from((1 << 30) / self.bytes.max(1)).unwrap_or(many).clamp(10, many)
        } else {
            many
        }
    }

    /// Starts a peer; if it does not, that is its row.
    fn start(&self, turn: &mut Turn) {
        let (_, cpu) = self.cpus.places(self.pin);
        // Short: the addresses of sockets in it, some with long names of their own, hold a hundred bytes.
        let numbers = [turn.peer as usize, turn.wait as usize, self.pin as usize, self.bytes];
        let dir = self.dir.join(numbers.map(|number| number.to_string()).join("-"));
        let (peer, wait, bytes, together) = (turn.peer, turn.wait, self.bytes, self.is_together());
        let options = Serve { peer, wait, bytes, dir, cpu, together };
        match catch_unwind(AssertUnwindSafe(|| Pair::start(&options))) {
            Ok(Ok(pair)) => turn.pair = Some(pair),
            Ok(Err(error)) => turn.failed = Some(format!("did not start: {error:#}")),
            Err(_) => turn.failed = Some("did not start: panicked".into()),
        }
    }

    fn rows(&self, turns: &[Turn], marks: Option<String>) -> Vec<Row> {
        let p50 = |peer, wait| {
            let turn = turns.iter().find(|turn| turn.peer == peer && turn.wait == wait)?;
            turn.rtt().map(|rtt| rtt.p50)
        };
        let strait = p50(Peer::Strait, self.wait);
        let floor = p50(if self.wait == Wait::Poll { Peer::Line } else { Peer::Echo }, self.wait);
        let against = |rtt: Option<Rtt>, other: Option<u64>| ratio(rtt?.p50, other?);
        let row = |turn: &Turn| {
            let mut marks = turn.failed.clone().or(marks.clone());
            if turn.wrong {
                mark(&mut marks, "WRONG BYTES");
            }
            let rtt = turn.rtt();
            Row {
                peer: turn.peer,
                wait: turn.wait,
                pin: self.pin.name(),
                payload_bytes: self.bytes,
                rounds: turn.nanos.len(),
                rtt_ns: rtt,
                vs_strait: against(rtt, strait),
                vs_floor: against(rtt, floor),
                verified: rtt.is_some() && !turn.wrong,
                marks,
            }
        };
        turns.iter().map(row).collect()
    }
}

impl Turn {
    fn new(peer: Peer, wait: Wait, rounds: u32) -> Self {
        // Up to two minutes, to three digits: within what the crate takes.
        let nanos = Histogram::new_with_bounds(1, 120_000_000_000, 3);
        let nanos = nanos.unwrap_or_else(|_| unreachable!("constant bounds"));
        Self { peer, wait, rounds, nanos, wrong: false, pair: None, failed: None }
    }

    /// Runs a block, if it still can.
    fn take(&mut self, rounds: u32) {
        let Some(pair) = &mut self.pair else { return };
        let (nanos, wrong) = (&mut self.nanos, &mut self.wrong);
        let block = pair.block(WARM.min(rounds), rounds, |is_warm_up, took, right| {
            if !is_warm_up {
                nanos.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            }
            *wrong |= !right;
        });
        if let Err(error) = block {
            self.failed = Some(format!("ended after {} rounds: {error:#}", self.nanos.len()));
            self.pair = None;
        }
    }

    fn finish(&mut self) {
        if let Some(pair) = self.pair.take() {
            pair.finish();
        }
    }

    fn rtt(&self) -> Option<Rtt> {
        let at = |quantile| self.nanos.value_at_quantile(quantile);
        (self.failed.is_none() && !self.nanos.is_empty()).then(|| Rtt {
            min: self.nanos.min(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: self.nanos.max(),
        })
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let words = [&show(self.payload_bytes), self.wait.name(), self.pin, self.peer.name()];
        let mut cells = words.map(String::from).to_vec();
        cells.push(self.rounds.to_string());
        match self.rtt_ns {
            Some(rtt) => cells.extend([rtt.p50, rtt.p90, rtt.p99].map(time)),
            None => cells.extend(["-"; 3].map(String::from)),
        }
        cells.extend([times(self.vs_strait), times(self.vs_floor), self.marks.clone().unwrap_or_default()]);
        cells
    }
}

fn draw(rows: &[Row], pin: Pin, wait: Wait, path: &Path) -> anyhow::Result<()> {
    let curve = |(&peer, colour): (&Peer, [u8; 3])| {
        let rows = rows.iter().filter(|row| row.peer == peer && row.wait == wait && row.pin == pin.name());
        let points = rows.filter_map(|row| Some((row.payload_bytes as f64, row.rtt_ns?.p50 as f64)));
        Curve { name: peer.name().to_owned(), points: points.collect(), colour: (colour, 1.0) }
    };
    let caption = format!("Request and response: median time, {}, pinned {}", wait.name(), pin.name());
    let picture = Picture {
        caption: &caption,
        x: ("size of the answer", &|bytes| show(bytes as usize)),
        y: ("request built to last byte read", &|nanos| time(nanos as u64)),
        curves: Peer::value_variants().iter().zip(COLOURS.into_iter().cycle()).map(curve).collect(),
    };
    picture.draw(path)
}
