//! One way: requests of 64 bytes as fast as they go, both sides looking again and again, until the last has been received.

use crate::kinds::{Peer, Wait};
use crate::round::{Pair, Serve};
use anyhow::Context;
use clap::Args;
use perf_demo::cpus::{Cpus, Pin};
use perf_demo::figures::{digits, ratio, time, times};
use perf_demo::gauge::Gauge;
use perf_demo::machine::{Watch, mark};
use perf_demo::sheet::Sheet;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Messages of each turn, of which a row has five.
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(100..))]
    messages: u32,
    /// Prints one JSON object per row on stdout, and no table.
    #[arg(long)]
    json: bool,
}

/// Those that have something of the kind.
const PEERS: [Peer; 5] = [Peer::Strait, Peer::StraitFresh, Peer::Iceoryx2PubSub, Peer::IpcBytes, Peer::Socket];
const TURNS: usize = 5;
/// Requests that are answered before that.
const WARM: u32 = 20;

#[derive(Serialize)]
struct Row {
    peer: Peer,
    pin: &'static str,
    messages: u32,
    /// The median turn's time per message.
    ns_per_message: Option<u64>,
    vs_strait: Option<f64>,
    marks: Option<String>,
}

/// Measures all of them, in turns.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let cpus = Cpus::allowed()?;
    let pin = if cpus.are_two() { Pin::Split } else { Pin::Same };
    let (own, cpu) = cpus.places(pin);
    cpus.go_to(own)?;
    let dir = tempfile::TempDir::with_prefix("peers-").context("cannot make a directory to meet in")?;
    let start = |peer: Peer| {
        // ipc-channel can only sleep.
        let wait = if peer == Peer::IpcBytes { Wait::Block } else { Wait::Poll };
        let dir = dir.path().join(peer.name());
        let mut pair = Pair::start(&Serve { peer, wait, bytes: 64, dir, cpu, together: pin == Pin::Same })?;
        // iceoryx2 connects its ends when something comes, and may lose what came before.
        pair.block(0, WARM, |_, _, _| {})?;
        anyhow::Ok(pair)
    };
    let mut pairs: Vec<_> = PEERS.map(|peer| (peer, start(peer), Vec::new())).into_iter().collect();
    let mut gauges = vec![Gauge::own()?];
    gauges.extend(pairs.iter().filter_map(|(_, pair, _)| Gauge::of(pair.as_ref().ok()?.pid()).ok()));
    let watch = Watch::begin(&gauges);
    // The first turn is a warm-up.
    for turn in 0..=TURNS {
        for (_, pair, took) in &mut pairs {
            let Ok(running) = pair else { continue };
            match running.flow(options.messages) {
                Ok(all) if turn > 0 => took.push(all),
                Ok(_) => {}
                Err(error) => *pair = Err(error),
            }
        }
    }
    let mut marks = watch.marks();
    if pin == Pin::Same {
        mark(&mut marks, "needs a second CPU");
    }
    let each = |took: &[Duration]| {
        let mut sorted = took.to_vec();
        sorted.sort();
        u64::try_from(sorted.get(sorted.len() / 2)?.as_nanos() / u128::from(options.messages)).ok()
    };
    let strait = pairs.first().and_then(|(.., took)| each(took));
    let mut sheet = Sheet::new(options.json, 2, &["peer", "pin", "messages", "per message", "M/s", "/ strait", ""]);
    for (peer, pair, took) in pairs {
        let ns_per_message = each(&took).filter(|_| pair.is_ok());
        let failed = pair.as_ref().err().map(|error| format!("{error:#}"));
        let vs_strait = ns_per_message.zip(strait).and_then(|(own, strait)| ratio(own, strait));
        let marks = failed.or(marks.clone());
        let row = Row { peer, pin: pin.name(), messages: options.messages, ns_per_message, vs_strait, marks };
        let rate = ns_per_message.map(|each| digits(1e3 / each.max(1) as f64));
        let mut cells = vec![peer.name().to_owned(), pin.name().to_owned(), options.messages.to_string()];
        cells.extend([ns_per_message.map_or("-".into(), time), rate.unwrap_or("-".into()), times(vs_strait)]);
        cells.push(row.marks.clone().unwrap_or_default());
        sheet.add(&row, cells)?;
        if let Ok(pair) = pair {
            pair.finish();
        }
    }
    cpus.go_to(None)?;
    sheet.finish(NOTES)?;
    Ok(ExitCode::SUCCESS)
}

const NOTES: &str = "\
64 bytes one way, one at a time, by the clock until the last was received; the median of five turns. strait: a message built
before, sent again and again, received and released; strait-fresh: built and decoded each time. iceoryx2-pub-sub: a loan
filled and sent, read and released. ipc-bytes sleeps; socket writes each by itself and reads as many as there are.";
