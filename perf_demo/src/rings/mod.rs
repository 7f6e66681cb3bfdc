//! The rings by themselves, one producer or two, one consumer or two, beside what else there is: procCurl's table, with
//! percentiles, and what a value costs when the ring is kept busy. Knows the order of things; what is timed is in
//! [`blocks`], between what in [`queues`].

mod blocks;
mod other;
mod queues;
mod report;

use crate::cli::Rings;
use crate::stop::Stop;
use anyhow::Context;
use blocks::{Block, between_threads};
use crossbeam_queue::ArrayQueue;
use other::Other;
use perf_demo::cpus::Cpus;
use perf_demo::gauge::Gauge;
use perf_demo::machine::Watch;
use queues::{Item, Vyukov};
use report::{Row, Tally};
use serde::Serialize;
use std::process::ExitCode;
use std::sync::Arc;
use strait::ring::threads;

/// How many there are at each end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Spsc,
    Mpsc,
    Spmc,
    Mpmc,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spsc => "SPSC",
            Self::Mpsc => "MPSC",
            Self::Spmc => "SPMC",
            Self::Mpmc => "MPMC",
        }
    }

    /// Where there are several, two: as in procCurl's benchmark.
    fn ends(self) -> (usize, usize) {
        match self {
            Self::Spsc => (1, 1),
            Self::Mpsc => (2, 1),
            Self::Spmc => (1, 2),
            Self::Mpmc => (2, 2),
        }
    }
}

/// What the ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Between {
    Threads,
    Processes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contender {
    Strait,
    Rtrb,
    ArrayQueue,
    Vyukov,
}

impl Contender {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Strait => "strait",
            Self::Rtrb => "rtrb",
            Self::ArrayQueue => "ArrayQueue",
            Self::Vyukov => "Vyukov",
        }
    }
}

/// Slots of a ring that is kept busy.
const BUSY_SLOTS: usize = 1024;

/// Turns that all queues of a group take.
const TURNS: usize = 9;

/// Timed values that do not count, of each producer in each turn.
const WARM_UP: u64 = 200;

pub(crate) fn run(options: &Rings, stop: &Stop) -> anyhow::Result<ExitCode> {
    if let Some(parent) = &options.other {
        other::serve(parent, options.slots)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &options.plot {
        // Better told now than after measuring.
        std::fs::File::create(path)
            .map_err(|error| crate::cli::Usage(format!("cannot write {}: {error}", path.display())))?;
    }
    let cpus = Cpus::allowed()?;
    let mut ours = vec![Gauge::own()?];
    let mut rows = Vec::new();
    use Contender::{ArrayQueue, Rtrb, Strait, Vyukov};
    let groups: [(Kind, &[Contender], Contender); 4] = [
        (Kind::Spsc, &[Strait, Rtrb, ArrayQueue, Vyukov], Rtrb),
        (Kind::Mpsc, &[Strait, ArrayQueue, Vyukov], ArrayQueue),
        (Kind::Spmc, &[Strait, ArrayQueue, Vyukov], ArrayQueue),
        (Kind::Mpmc, &[Strait, ArrayQueue, Vyukov], ArrayQueue),
    ];
    for (kind, queues, against) in groups {
        let block = |queue, slots, values, timed| threads_block(kind, queue, slots, values, timed, &cpus);
        rows.extend(group(options, kind, Between::Threads, queues, against, &cpus, &ours, stop, block)?);
    }
    // This thread is a producer from here on.
    let home = cpus.spread().next().flatten();
    let pinned = cpus.go_to(home).is_ok();
    let mut other = Other::start(&cpus, options.slots)?;
    ours.push(Gauge::of(other.pid())?);
    let block = |queue, slots, values, timed| {
        let block: Block = other.block(queue, slots == BUSY_SLOTS, values, timed)?;
        Ok(Block { unpinned: block.unpinned || !pinned, ..block })
    };
    rows.extend(group(options, Kind::Spsc, Between::Processes, &[Strait, Vyukov], Vyukov, &cpus, &ours, stop, block)?);
    other.finish()?;
    if stop.signal().is_some() {
        // The exit status tells which.
        return Ok(ExitCode::FAILURE);
    }
    report::tell(&rows, options)
}

/// All queues of a kind, in turns.
#[expect(clippy::too_many_arguments, reason = "what a group is")]
fn group(
    options: &Rings,
    kind: Kind,
    between: Between,
    queues: &[Contender],
    against: Contender,
    cpus: &Cpus,
    ours: &[Gauge],
    stop: &Stop,
    mut block: impl FnMut(Contender, usize, u64, bool) -> anyhow::Result<Block>,
) -> anyhow::Result<Vec<Row>> {
    let (producers, consumers) = kind.ends();
    let mut tallies: Vec<Tally> = queues.iter().map(|_| Tally::new()).collect::<Result<_, _>>()?;
    let timed = options.values.div_ceil(TURNS as u64) + WARM_UP * producers as u64;
    let busy = options.busy / producers as u64 * producers as u64;
    let watch = Watch::begin(ours);
    for turn in 0..TURNS {
        for step in 0..queues.len() {
            // Another begins each time, so that none has always the same before it.
            let at = (turn + step) % queues.len();
            if stop.signal().is_some() {
                return Ok(Vec::new());
            }
            let values = timed / producers as u64 * producers as u64;
            let what = || format!("{} {}", queues[at].name(), kind.name());
            let blocks = [
                block(queues[at], options.slots, values, true).with_context(what)?,
                block(queues[at], BUSY_SLOTS, busy, false).with_context(what)?,
            ];
            tallies[at].timed(&blocks[0], WARM_UP)?;
            tallies[at].busy(&blocks[1], busy);
        }
    }
    let base = queues.iter().position(|&queue| queue == against);
    let base = base.map(|at| tallies[at].per_value().to_vec()).unwrap_or_default();
    let crowded = producers + consumers > cpus.count();
    let machine = watch.marks();
    Ok(queues
        .iter()
        .zip(&tallies)
        .map(|(&queue, tally)| {
            let mut row = Row::new(kind, between, queue, tally);
            row.slots = options.slots;
            row.compare(against, &base, tally);
            row.mark(crowded, machine.as_deref(), tally);
            row
        })
        .collect())
}

fn threads_block(
    kind: Kind,
    queue: Contender,
    slots: usize,
    values: u64,
    timed: bool,
    cpus: &Cpus,
) -> anyhow::Result<Block> {
    let (producers, consumers) = kind.ends();
    match (queue, kind) {
        (Contender::Strait, Kind::Spsc) => {
            let (producer, consumer) = threads::spsc::<Item>(slots);
            between_threads(vec![producer], vec![consumer], values, timed, cpus)
        }
        (Contender::Strait, Kind::Mpsc) => {
            let (producer, consumer) = threads::mpsc::<Item>(slots);
            between_threads(vec![producer; producers], vec![consumer], values, timed, cpus)
        }
        (Contender::Strait, Kind::Spmc) => {
            let (producer, consumer) = threads::spmc::<Item>(slots);
            between_threads(vec![producer], vec![consumer; consumers], values, timed, cpus)
        }
        (Contender::Strait, Kind::Mpmc) => {
            let (producer, consumer) = threads::mpmc::<Item>(slots);
            between_threads(vec![producer; producers], vec![consumer; consumers], values, timed, cpus)
        }
        (Contender::Rtrb, _) => {
            let (producer, consumer) = rtrb::RingBuffer::<Item>::new(slots);
            between_threads(vec![producer], vec![consumer], values, timed, cpus)
        }
        (Contender::ArrayQueue, _) => {
            let queue = Arc::new(ArrayQueue::<Item>::new(slots));
            between_threads(vec![queue.clone(); producers], vec![queue; consumers], values, timed, cpus)
        }
        (Contender::Vyukov, _) => {
            let queue = Vyukov::new(slots)?;
            between_threads(vec![queue.clone(); producers], vec![queue; consumers], values, timed, cpus)
        }
    }
}
