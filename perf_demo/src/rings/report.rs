//! What was found about rings, and how it is told: JSON lines, a table, a picture.

use super::blocks::{Block, latencies};
use super::{Between, Contender, Kind};
use crate::cli::Rings;
use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use hdrhistogram::Histogram;
use perf_demo::figures::time;
use perf_demo::machine::mark;
use perf_demo::picture::{Curve, Picture};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// A row's blocks so far.
pub(super) struct Tally {
    send: Histogram<u64>,
    receive: Histogram<u64>,
    latency: Histogram<u64>,
    send_retries: u64,
    receive_retries: u64,
    /// Nanoseconds per value of each busy turn.
    per_value: Vec<f64>,
    whole: bool,
    unpinned: bool,
}

impl Tally {
    pub(super) fn new() -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Ok(Self {
            send: histogram()?,
            receive: histogram()?,
            latency: histogram()?,
            send_retries: 0,
            receive_retries: 0,
            per_value: Vec::new(),
            whole: true,
            unpinned: false,
        })
    }

    pub(super) fn timed(&mut self, block: &Block, warm_up: u64) -> anyhow::Result<()> {
        self.note(block);
        if !block.whole {
            return Ok(());
        }
        for (sent, taken, latency) in latencies(block, warm_up)? {
            self.send.saturating_record(sent.took);
            self.receive.saturating_record(taken.took);
            self.latency.saturating_record(latency);
            self.send_retries += sent.retries;
            self.receive_retries += taken.retries;
        }
        Ok(())
    }

    pub(super) fn busy(&mut self, block: &Block, values: u64) {
        self.note(block);
        self.per_value.push(block.nanos as f64 / values as f64);
    }

    fn note(&mut self, block: &Block) {
        self.whole &= block.whole;
        self.unpinned |= block.unpinned;
    }

    pub(super) fn per_value(&self) -> &[f64] {
        &self.per_value
    }
}

/// Times in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    min: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl Spread {
    fn of(times: &Histogram<u64>) -> Self {
        let at = |quantile| times.value_at_quantile(quantile);
        Self { min: times.min(), p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: times.max() }
    }
}

/// One row. What is serialised is the whole of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    kind: Kind,
    between: Between,
    queue: Contender,
    pub(super) slots: usize,
    values: u64,
    send_ns: Spread,
    receive_ns: Spread,
    latency_ns: Spread,
    send_retries: f64,
    receive_retries: f64,
    busy_ns_per_value: f64,
    /// Whom the ratio is with.
    against: Contender,
    busy_ratio: Option<f64>,
    verified: bool,
    marks: Option<String>,
}

impl Row {
    pub(super) fn new(kind: Kind, between: Between, queue: Contender, tally: &Tally) -> Self {
        let values = tally.latency.len();
        let per_value = |retries: u64| retries as f64 / values.max(1) as f64;
        Self {
            kind,
            between,
            queue,
            slots: 0,
            values,
            send_ns: Spread::of(&tally.send),
            receive_ns: Spread::of(&tally.receive),
            latency_ns: Spread::of(&tally.latency),
            send_retries: per_value(tally.send_retries),
            receive_retries: per_value(tally.receive_retries),
            busy_ns_per_value: median(tally.per_value.clone()),
            against: queue,
            busy_ratio: None,
            verified: tally.whole,
            marks: None,
        }
    }

    /// With another queue, turn by turn: what the machine does in a minute is not what it does in the next.
    pub(super) fn compare(&mut self, against: Contender, theirs: &[f64], tally: &Tally) {
        self.against = against;
        if self.queue != against && !theirs.is_empty() {
            self.busy_ratio = Some(median(tally.per_value.iter().zip(theirs).map(|(own, base)| own / base).collect()));
        }
    }

    /// What a reader of it must know.
    pub(super) fn mark(&mut self, crowded: bool, machine: Option<&str>, tally: &Tally) {
        let marks = [(!self.verified, "VALUES LOST"), (tally.unpinned, "not pinned"), (crowded, "crowded")];
        let marks = marks.into_iter().filter(|mark| mark.0).map(|mark| mark.1);
        marks.chain(machine).for_each(|one| mark(&mut self.marks, one));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

const NOTES: &str = "\
send and receive: the call that succeeded, one clock reading included. latency: from the end of the push to the end of the
pop, producers at full speed. retries: per value. busy: time per value through 1024 slots without clocks, and the median
ratio with the queue named. p50 of the latencies that procCurl published, on another machine, of about 50 values each:
SPSC 1382 ns, MPSC 570 ns, SPMC 1660 ns, MPMC 755 ns. `perf_demo rings --help` explains the rest.";

/// Prints everything; fails if a queue lost anything.
pub(super) fn tell(rows: &[Row], options: &Rings) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if options.json {
        for row in rows {
            serde_json::to_writer(&mut out, row)?;
            out.write_all(b"\n")?;
        }
    } else {
        writeln!(out, "{}\n{NOTES}", table(rows))?;
    }
    if let Some(path) = &options.plot {
        draw(rows, path).with_context(|| format!("cannot draw {}", path.display()))?;
    }
    let wrong = rows.iter().filter(|row| !row.verified).count();
    if wrong > 0 {
        eprintln!("perf_demo: {wrong} rows lost values");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    let (send, receive, latency) =
        (["send p50", "p99"], ["receive p50", "p99"], ["latency p50", "p90", "p99", "p99.9"]);
    let mut header = vec!["ring", "between", "queue"];
    header.extend(send.into_iter().chain(receive).chain(latency));
    header.extend(["send retries", "receive retries", "busy", "ratio", ""]);
    table.set_header(header);
    let mut group = None;
    for row in rows {
        let own = (row.kind, row.between);
        if group.replace(own).is_some_and(|last| last != own) {
            table.add_row([""]);
        }
        let between = match row.between {
            Between::Threads => "threads",
            Between::Processes => "processes",
        };
        let mut cells = vec![row.kind.name().to_owned(), between.to_owned(), row.queue.name().to_owned()];
        let (send, receive, latency) = (row.send_ns, row.receive_ns, row.latency_ns);
        let times = [send.p50, send.p99, receive.p50, receive.p99, latency.p50, latency.p90, latency.p99, latency.p999];
        cells.extend(times.map(time));
        cells.extend([row.send_retries, row.receive_retries].map(|retries| format!("{retries:.2}")));
        cells.push(format!("{:.1} ns", row.busy_ns_per_value));
        cells.push(row.busy_ratio.map(|ratio| format!("{ratio:.2} x {}", row.against.name())).unwrap_or_default());
        cells.push(row.marks.clone().unwrap_or_default());
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(3).take(11) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// One curve per row: how late the latest are, the rarer the further right.
fn draw(rows: &[Row], path: &std::path::Path) -> anyhow::Result<()> {
    let curves = rows
        .iter()
        .map(|row| {
            let between = if row.between == Between::Processes { ", processes" } else { "" };
            let latency = row.latency_ns;
            let at = [(2.0, latency.p50), (10.0, latency.p90), (100.0, latency.p99), (1000.0, latency.p999)];
            Curve {
                name: format!("{} {}{between}", row.queue.name(), row.kind.name()),
                points: at.map(|(rarity, nanos)| (rarity, nanos.max(1) as f64)).to_vec(),
                colour: colour(row),
            }
        })
        .collect();
    let picture = Picture {
        caption: "Through a ring, producers at full speed: latency",
        x: ("one of so many values takes longer", &|rarity| format!("{rarity:.0}")),
        y: ("end of push to end of pop", &|nanos| time(nanos as u64)),
        curves,
    };
    picture.draw(path)
}

/// A colour per queue, paler the more threads there are.
fn colour(row: &Row) -> ([u8; 3], f64) {
    let colour = match row.queue {
        Contender::Strait => [20, 90, 190],
        Contender::Rtrb => [40, 150, 60],
        Contender::ArrayQueue => [200, 40, 40],
        Contender::Vyukov => [130, 130, 130],
    };
    let strength = match (row.kind, row.between) {
        (Kind::Spsc, Between::Threads) => 1.0,
        (Kind::Spsc, Between::Processes) => 0.85,
        (Kind::Mpsc, _) => 0.7,
        (Kind::Spmc, _) => 0.55,
        (Kind::Mpmc, _) => 0.4,
    };
    (colour, strength)
}
