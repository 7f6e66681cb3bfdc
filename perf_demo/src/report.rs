//! What was found, and how it is told: JSON lines or a table, and a progress bar meanwhile.

use crate::chart;
use crate::cli::{Measure, Technique, WaitMode};
use crate::plot;
use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use perf_demo::cpus::Pin;
use perf_demo::figures::{ratio, show, time, times};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The rounds of one row so far.
pub(crate) struct Tally {
    nanos: Histogram<u64>,
    /// Rounds whose ends were wrong, and full comparisons that failed.
    wrong: u64,
    sleeps: u64,
    receives: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        // Up to two minutes, to three digits: within what the crate takes.
        let nanos = Histogram::new_with_bounds(1, 120_000_000_000, 3);
        Self { nanos: nanos.unwrap_or_else(|_| unreachable!("constant bounds")), wrong: 0, sleeps: 0, receives: 0 }
    }

    #[inline]
    pub(crate) fn round(&mut self, is_timed: bool, (took, right): (Duration, bool)) {
        if is_timed {
            self.nanos.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
        self.wrong += u64::from(!right);
    }

    pub(crate) fn slept(&mut self, sleeps: u64, receives: u64) {
        self.sleeps += sleeps;
        self.receives += receives;
    }

    pub(crate) fn verified(&mut self, right: bool) {
        self.wrong += u64::from(!right);
    }

    pub(crate) fn is_wrong(&self) -> bool {
        self.wrong > 0
    }

    pub(crate) fn rounds(&self) -> u64 {
        self.nanos.len()
    }

    pub(crate) fn p99(&self) -> u64 {
        self.nanos.value_at_quantile(0.99)
    }

    pub(crate) fn p50(&self) -> u64 {
        self.nanos.value_at_quantile(0.5)
    }
}

/// One row. What is serialised is the whole of `--json`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) technique: Technique,
    pub(crate) wait: WaitMode,
    pin: &'static str,
    pub(crate) payload_bytes: usize,
    rounds: u64,
    pub(crate) fresh: bool,
    sleeps_per_recv: f64,
    pub(crate) rtt_ns: Rtt,
    verified: bool,
    /// Its floor's, of the same minutes.
    #[serde(skip)]
    pub(crate) floor_p50: Option<u64>,
    #[serde(skip)]
    pub(crate) classic_p50: Option<u64>,
    #[serde(skip)]
    pub(crate) bare_p50: Option<u64>,
    /// Spinning on the CPU of whom it waits for.
    #[serde(skip)]
    pub(crate) needs_cpu: bool,
    /// What else went on meanwhile.
    #[serde(skip)]
    pub(crate) disturbed: Option<String>,
}

/// Round-trip times in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rtt {
    min: u64,
    pub(crate) p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl Row {
    pub(crate) fn new(technique: Technique, wait: WaitMode, pin: Pin, payload_bytes: usize, tally: &Tally) -> Self {
        let nanos = &tally.nanos;
        let at = |quantile| nanos.value_at_quantile(quantile);
        Self {
            technique,
            wait,
            pin: pin.name(),
            payload_bytes,
            rounds: nanos.len(),
            fresh: false,
            sleeps_per_recv: if tally.receives == 0 { 0.0 } else { tally.sleeps as f64 / tally.receives as f64 },
            rtt_ns: Rtt {
                min: nanos.min(),
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: nanos.max(),
            },
            verified: tally.wrong == 0,
            floor_p50: None,
            classic_p50: None,
            bare_p50: None,
            needs_cpu: false,
            disturbed: None,
        }
    }

    /// What a reader of the table must know about it.
    fn marks(&self) -> String {
        let mut marks = Vec::new();
        if !self.verified {
            marks.push("WRONG BYTES".to_owned());
        }
        if self.needs_cpu {
            marks.push("needs a second CPU".to_owned());
        }
        if self.wait == WaitMode::Park && self.technique != Technique::FloorLine && self.sleeps_per_recv < 0.99 {
            marks.push("woken before asleep".to_owned());
        }
        if self.technique == Technique::Classic
            && let Some(ratio) = self.bare_p50.and_then(|bare| ratio(self.rtt_ns.p50, bare))
        {
            marks.push(format!("{ratio:.2} x bare"));
        }
        marks.extend(self.disturbed.clone());
        marks.join(", ")
    }
}

/// Collects rows, tells of each as it comes or of all in the end.
pub(crate) struct Report {
    json: bool,
    plot: Option<PathBuf>,
    rows: Vec<Row>,
    bar: ProgressBar,
    groups: u64,
}

/// Steps of the progress bar in a group.
const STEPS: u64 = 100;

impl Report {
    pub(crate) fn new(options: &Measure) -> anyhow::Result<Self> {
        if let Some(path) = &options.plot {
            // Better told now than after a minute of measuring.
            std::fs::File::create(path)
                .map_err(|error| crate::cli::Usage(format!("cannot write {}: {error}", path.display())))?;
        }
        let bar = ProgressBar::no_length();
        bar.set_style(ProgressStyle::with_template("{bar:30} {percent:>3}% {elapsed_precise} {msg}")?);
        Ok(Self { json: options.json, plot: options.plot.clone(), rows: Vec::new(), bar, groups: 0 })
    }

    pub(crate) fn begin(&mut self, groups: usize) {
        self.bar.set_length(groups as u64 * STEPS);
    }

    pub(crate) fn doing(&self, what: &str) {
        // Nothing at all where nobody looks: this runs between blocks.
        if !self.bar.is_hidden() {
            self.bar.set_message(what.to_owned());
        }
    }

    pub(crate) fn progress(&self, cycle: u32, cycles: u32) {
        if !self.bar.is_hidden() {
            let done = u64::from(cycle + 1) * STEPS / u64::from(cycles);
            self.bar.set_position(self.groups * STEPS + done);
        }
    }

    /// Takes the rows of a group, its floors last.
    pub(crate) fn add(&mut self, rows: Vec<Row>) -> anyhow::Result<()> {
        self.groups += 1;
        if self.json {
            let mut out = std::io::stdout().lock();
            for row in &rows {
                serde_json::to_writer(&mut out, row)?;
                out.write_all(b"\n")?;
            }
            out.flush()?;
            // What is in a line is promised; this is for whoever looks.
            if let Some((row, why)) = rows.first().and_then(|row| Some((row, row.disturbed.as_ref()?))) {
                eprintln!("perf_demo: {} {} {}: {why}", show(row.payload_bytes), row.wait.name(), row.pin);
            }
        }
        self.rows.extend(rows);
        Ok(())
    }

    /// Prints what is left to print; fails if anything was wrong.
    pub(crate) fn finish(self) -> anyhow::Result<ExitCode> {
        self.bar.finish_and_clear();
        if !self.json {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}\n\n{}\n{NOTES}", table(&self.rows), chart::draw(&self.rows))?;
        }
        if let Some(path) = &self.plot {
            plot::draw(&self.rows, path).with_context(|| format!("cannot draw {}", path.display()))?;
        }
        let wrong = self.rows.iter().filter(|row| !row.verified).count();
        if wrong > 0 {
            eprintln!("perf_demo: {wrong} rows had wrong bytes");
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

const NOTES: &str = "\
Time from before the request is built until the first and last byte were read and compared; every chunk's size and
XXH3 hash was verified before and after. \"/ floor\" compares medians with the floor measured in turn with the row:
floor-line (two cache lines) where the row spins or adapts, floor-socket (8 bytes echoed) where it parks. \"vs classic\"
is how many times faster than classic of the same group. \"sleeps\" are the client's, per receive.";

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "payload",
        "wait",
        "pin",
        "technique",
        "rounds",
        "min",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
        "/ floor",
        "vs classic",
        "sleeps",
        "",
    ]);
    let mut group = None;
    for row in rows {
        let own = (row.payload_bytes, row.wait, row.pin);
        if group.replace(own).is_some_and(|last| last != own) {
            table.add_row([""]);
        }
        let Rtt { min, p50, p90, p99, p999, max } = row.rtt_ns;
        let floor = times(row.floor_p50.and_then(|floor| ratio(p50, floor)));
        let faster = row.classic_p50.filter(|_| !row.technique.is_floor() && row.technique != Technique::Classic);
        let faster = times(faster.and_then(|classic| ratio(classic, p50)));
        let mut cells = vec![
            show(row.payload_bytes),
            row.wait.name().to_owned(),
            row.pin.to_owned(),
            format!("{}{}", row.technique.name(), if row.fresh { " (fresh)" } else { "" }),
            row.rounds.to_string(),
        ];
        cells.extend([min, p50, p90, p99, p999, max].map(time));
        cells.extend([floor, faster]);
        cells.extend([format!("{:.2}", row.sleeps_per_recv), row.marks()]);
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(4).take(10) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
