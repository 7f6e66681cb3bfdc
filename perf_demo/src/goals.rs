//! What strait is to reach, and whether it does on this machine: each goal is a ratio between rows of one run of one of the
//! other commands.

use anyhow::{Context, ensure};
use clap::Args;
use perf_demo::figures::{digits, time};
use perf_demo::sheet::Sheet;
use serde::Serialize;
use serde_json::Value;
use std::process::{Command, ExitCode, Stdio};

/// `perf_demo goals`.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only goals whose command contains one of these words, such as `peers` or `cost`.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    only: Vec<String>,
    /// Prints one JSON object per goal on stdout, and no table.
    #[arg(long)]
    json: bool,
}

/// A command, and what its rows must show.
struct Run {
    args: &'static [&'static str],
    judge: fn(&Rows) -> Option<Vec<Goal>>,
}

/// One figure beside what it may be.
#[derive(Serialize)]
struct Goal {
    work: &'static str,
    #[serde(skip)]
    unit: Unit,
    found: f64,
    limit: f64,
    met: bool,
}

#[derive(Clone, Copy)]
enum Unit {
    Nanoseconds,
    Times,
    Percent,
    KiB,
}

const RUNS: [Run; 6] = [
    Run {
        args: &["--technique", "shm", "--payload", "64B", "--wait", "spin", "--pin", "split", "--rounds", "100000"],
        judge: |rows| {
            let (own, floor) = (rows.find(&[("technique", "shm")])?, rows.find(&[("technique", "floor-line")])?);
            Some(vec![
                at_most(
                    "64 B, spin, prebuilt: p50, of 2 x line + 300 ns",
                    Unit::Nanoseconds,
                    p50(own)?,
                    2.0 * p50(floor)? + 300.0,
                ),
                at_most(
                    "64 B, spin, prebuilt: p99, of 2 x own p50",
                    Unit::Nanoseconds,
                    at(own, "p99")?,
                    2.0 * p50(own)?,
                ),
            ])
        },
    },
    Run {
        args: &[
            "--technique",
            "shm",
            "--payload",
            "64B",
            "--wait",
            "spin",
            "--pin",
            "split",
            "--rounds",
            "100000",
            "--fresh",
        ],
        judge: |rows| {
            let (own, floor) = (rows.find(&[("technique", "shm")])?, rows.find(&[("technique", "floor-line")])?);
            let limit = 2.0 * p50(floor)? + 450.0;
            Some(vec![at_most(
                "64 B, spin, answer built each time: p50, of 2 x line + 450 ns",
                Unit::Nanoseconds,
                p50(own)?,
                limit,
            )])
        },
    },
    Run {
        args: &["scale", "--sweep", "payload"],
        judge: |rows| {
            let times = || rows.0.iter().filter_map(|row| row["p50_ns"].as_f64());
            let (low, high) = (times().reduce(f64::min)?, times().reduce(f64::max)?);
            Some(vec![at_most("64 B to 1 GiB: largest p50, of the smallest", Unit::Times, high / low, 1.15)])
        },
    },
    Run {
        args: &["peers", "--payload", "64B"],
        judge: |rows| {
            let of = |peer, wait, pin| p50(rows.find(&[("peer", peer), ("wait", wait), ("pin", pin)])?);
            let apart = of("strait", "block", "split")?;
            let together = of("strait", "block", "same")?;
            let built = of("strait-fresh", "poll", "split")? / of("iceoryx2-rr", "poll", "split")?;
            let futex = apart / of("futex", "block", "split")?;
            Some(vec![
                at_most("64 B, spin, answer built each time, of iceoryx2 polling", Unit::Times, built, 0.5),
                at_most(
                    "parked on one CPU, of an 8-byte echo",
                    Unit::Times,
                    together / of("echo", "block", "same")?,
                    0.8,
                ),
                at_most(
                    "parked on one CPU, of iceoryx2 with events",
                    Unit::Times,
                    together / of("iceoryx2-rr", "block", "same")?,
                    0.6,
                ),
                at_most(
                    "parked on two CPUs, of an 8-byte echo",
                    Unit::Times,
                    apart / of("echo", "block", "split")?,
                    1.25,
                ),
                at_most("parked on two CPUs, of a bare futex", Unit::Times, futex, 1.1),
            ])
        },
    },
    Run {
        args: &["cost", "--wait", "adaptive", "--payload", "64B"],
        judge: |rows| {
            let idle = rows.find(&[("figure", "idle-cpu")])?;
            let seconds = idle["seconds"].as_f64()?;
            let share = |side: &str| Some(idle[side].as_f64()? / 1e7 / seconds);
            let (client, server) = (share("client_cpu_ns")?, share("server_cpu_ns")?);
            let each = rows.find(&[("what", "further session, with a channel that was used")])?;
            let kib = |side: &str| Some(each[side].as_f64()? / 1024.0);
            Some(vec![
                // Less than this is what looking costs.
                at_most("4,000 idle sessions: CPU of the client", Unit::Percent, client, 0.1),
                at_most("4,000 idle sessions: CPU of the server", Unit::Percent, server, 0.1),
                at_most("a further session, resident at the client", Unit::KiB, kib("client_resident")?, 16.0),
                at_most("a further session, resident at the server", Unit::KiB, kib("server_resident")?, 16.0),
            ])
        },
    },
    Run {
        args: &["--technique", "classic,shm", "--payload", "100MiB"],
        judge: |rows| {
            let faster = |wait| {
                let of = |technique| p50(rows.find(&[("technique", technique), ("wait", wait)])?);
                Some(of("classic")? / of("shm")?)
            };
            Some(vec![
                at_least("100 MiB, spin: times faster than classic", faster("spin")?, 100.0),
                at_least("100 MiB, adaptive: times faster than classic", faster("adaptive")?, 100.0),
                at_least("100 MiB, park: times faster than classic", faster("park")?, 100.0),
            ])
        },
    },
];

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut sheet = Sheet::new(options.json, 2, &["command", "goal", "at", "limit", ""]);
    for Run { args, judge } in RUNS {
        let command = format!("perf_demo {}", args.join(" "));
        if !(options.only.is_empty() || options.only.iter().any(|word| command.contains(word.as_str()))) {
            continue;
        }
        sheet.gap();
        let goals = rows(args).and_then(|rows| judge(&rows).context("a row is missing"));
        match goals {
            Ok(goals) => {
                for goal in goals {
                    let verdict = if goal.met { "met" } else { "NOT MET" };
                    let values = [goal.found, goal.limit].map(|value| goal.unit.show(value));
                    let [found, limit] = values;
                    sheet.add(&goal, vec![command.clone(), goal.work.to_owned(), found, limit, verdict.to_owned()])?;
                }
            }
            Err(error) => {
                let why = format!("could not be measured: {error:#}");
                let row = serde_json::json!({ "command": command, "failed": why });
                sheet.add(&row, vec![command, String::new(), "-".into(), "-".into(), why])?;
            }
        }
    }
    sheet.finish("Limits are computed from the floors of the same run. Quote them only from a quiet machine.")?;
    Ok(ExitCode::SUCCESS)
}

/// The rows that a command of this program prints.
fn rows(args: &[&str]) -> anyhow::Result<Rows> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    let output = command.args(args).arg("--json").stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{}", output.status);
    let text = std::str::from_utf8(&output.stdout)?;
    Ok(Rows(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?))
}

struct Rows(Vec<Value>);

impl Rows {
    /// The one where these are so.
    fn find(&self, all: &[(&str, &str)]) -> Option<&Value> {
        self.0.iter().find(|row| all.iter().all(|(key, value)| row[*key] == *value))
    }
}

fn p50(row: &Value) -> Option<f64> {
    at(row, "p50")
}

fn at(row: &Value, quantile: &str) -> Option<f64> {
    row["rtt_ns"][quantile].as_f64()
}

fn at_most(work: &'static str, unit: Unit, found: f64, limit: f64) -> Goal {
    Goal { work, unit, found, limit, met: found <= limit }
}

fn at_least(work: &'static str, found: f64, limit: f64) -> Goal {
    Goal { work, unit: Unit::Times, found, limit, met: found >= limit }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Nanoseconds => time(value as u64),
            Self::Times => format!("{} x", digits(value)),
            Self::Percent => format!("{} %", digits(value)),
            Self::KiB => format!("{} KiB", digits(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Value {
        serde_json::from_str(text).unwrap_or_default()
    }

    #[test]
    fn a_goal_is_judged_by_its_rows_and_missed_without_them() {
        let own = row(r#"{"technique":"shm","rtt_ns":{"p50":500,"p99":1001}}"#);
        let floor = row(r#"{"technique":"floor-line","rtt_ns":{"p50":100,"p99":110}}"#);
        let judge = RUNS[0].judge;
        assert!(judge(&Rows(vec![own.clone()])).is_none());
        let goals = judge(&Rows(vec![own, floor])).unwrap_or_default();
        assert_eq!(goals.iter().map(|goal| goal.met).collect::<Vec<_>>(), [true, false]);
        assert_eq!(goals.iter().map(|goal| goal.limit).collect::<Vec<_>>(), [500.0, 1000.0]);
    }

    #[test]
    fn what_is_to_be_large_is_judged_the_other_way_round() {
        let waits = ["spin", "adaptive", "park"].map(|wait| {
            let line = |technique, p50| {
                row(&format!(r#"{{"technique":"{technique}","wait":"{wait}","rtt_ns":{{"p50":{p50}}}}}"#))
            };
            [line("classic", if wait == "park" { 99 } else { 101 }), line("shm", 1)]
        });
        let goals = (RUNS[5].judge)(&Rows(waits.into_iter().flatten().collect())).unwrap_or_default();
        assert_eq!(goals.iter().map(|goal| goal.met).collect::<Vec<_>>(), [true, true, false]);
    }
}
