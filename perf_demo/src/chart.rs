//! The medians as bars in a terminal, on a logarithmic scale.

use crate::cli::{Technique, WaitMode};
use crate::report::Row;
use perf_demo::figures::{show, time};
use std::fmt::Write;

/// The longest bar, in characters.
const WIDTH: f64 = 60.0;

/// Parts of a character, in eighths.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// Draws what grows with the payload beside what does not, one block of bars per way of waiting.
pub(crate) fn draw(rows: &[Row]) -> String {
    let drawn = |row: &&Row| !matches!(row.technique, Technique::Bare) && !row.technique.is_floor();
    let times = || rows.iter().filter(drawn).map(|row| log(row.rtt_ns.p50));
    let low = times().fold(f64::INFINITY, f64::min).floor();
    let high = times().fold(f64::NEG_INFINITY, f64::max).ceil();
    let mut text = String::new();
    for wait in [WaitMode::Spin, WaitMode::Adaptive, WaitMode::Park] {
        let mut last = None;
        for row in rows.iter().filter(drawn).filter(|row| row.wait == wait) {
            if last.is_none() {
                let _ = writeln!(
                    text,
                    "{}p50, {}; each step of {:.0} characters is 10 x",
                    if text.is_empty() { "" } else { "\n" },
                    wait.name(),
                    step(low, high)
                );
            }
            let size = if last.replace(row.payload_bytes) == Some(row.payload_bytes) {
                String::new()
            } else {
                show(row.payload_bytes)
            };
            let eighths = ((log(row.rtt_ns.p50) - low) * step(low, high) * 8.0).max(1.0) as usize;
            let bar = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
            let _ = writeln!(text, "{size:>9} {:<8} {bar} {}", row.technique.name(), time(row.rtt_ns.p50));
        }
    }
    text
}

/// Characters per factor of ten.
fn step(low: f64, high: f64) -> f64 {
    (WIDTH / (high - low).max(1.0)).floor()
}

fn log(nanos: u64) -> f64 {
    (nanos.max(1) as f64).log10()
}
