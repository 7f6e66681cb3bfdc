//! The medians as curves, time against size.

use crate::cli::{Technique, WaitMode};
use crate::report::Row;
use perf_demo::figures::{show, time};
use perf_demo::picture::{Curve, Picture};
use std::path::Path;

/// One curve per technique and way of waiting, all in one picture.
pub(crate) fn draw(rows: &[Row], path: &Path) -> anyhow::Result<()> {
    let mut curves = Vec::new();
    for technique in [Technique::Classic, Technique::Bare, Technique::Snapshot, Technique::Shm] {
        for wait in [WaitMode::Spin, WaitMode::Adaptive, WaitMode::Park] {
            let points = rows
                .iter()
                .filter(|row| row.technique == technique && row.wait == wait)
                .map(|row| (row.payload_bytes as f64, row.rtt_ns.p50.max(1) as f64));
            let name = format!("{} {}", technique.name(), wait.name());
            curves.push(Curve { name, points: points.collect(), colour: colour(technique, wait) });
        }
    }
    let picture = Picture {
        caption: "Fetching a file from another process: median time",
        x: ("size of the file", &|bytes| show(bytes as usize)),
        y: ("request built to last byte read", &|nanos| time(nanos as u64)),
        curves,
    };
    picture.draw(path)
}

/// A colour per technique, paler the more a side sleeps.
fn colour(technique: Technique, wait: WaitMode) -> ([u8; 3], f64) {
    let colour = match technique {
        Technique::Classic => [200, 40, 40],
        Technique::Bare => [130, 130, 130],
        Technique::Snapshot => [220, 140, 0],
        _ => [20, 90, 190],
    };
    let strength = match wait {
        WaitMode::Spin => 1.0,
        WaitMode::Adaptive => 0.65,
        WaitMode::Park => 0.35,
    };
    (colour, strength)
}
