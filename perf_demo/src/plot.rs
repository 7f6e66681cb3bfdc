//! The medians as curves in an SVG file, both axes logarithmic.

use crate::cli::{Technique, WaitMode};
use crate::payload::show;
use crate::report::{Row, time};
use anyhow::{anyhow, bail};
use plotters::prelude::*;
use std::path::Path;

/// One curve per technique and way of waiting, all in one picture.
pub(crate) fn draw(rows: &[Row], path: &Path) -> anyhow::Result<()> {
    let rows: Vec<&Row> = rows.iter().filter(|row| !row.technique.is_floor()).collect();
    let sizes = || rows.iter().map(|row| row.payload_bytes as f64);
    let times = || rows.iter().map(|row| row.rtt_ns.p50.max(1) as f64);
    if rows.is_empty() {
        bail!("there is nothing but floors to draw");
    }
    let span = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::INFINITY, 1.0_f64), |(low, high), v| (low.min(v), high.max(v)));
        low / 2.0..high * 2.0
    };
    let wrong = |error: DrawingAreaErrorKind<_>| anyhow!("{error}");
    let area = SVGBackend::new(path, (960, 600)).into_drawing_area();
    area.fill(&WHITE).map_err(wrong)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Fetching a file from another process: median time", ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(80)
        .build_cartesian_2d(span(&mut sizes()).log_scale(), span(&mut times()).log_scale())
        .map_err(wrong)?;
    chart
        .configure_mesh()
        .x_desc("size of the file")
        .y_desc("request built to last byte read")
        .x_label_formatter(&|bytes| show(*bytes as usize))
        .y_label_formatter(&|nanos| time(*nanos as u64))
        .draw()
        .map_err(wrong)?;
    for technique in [Technique::Classic, Technique::Bare, Technique::Snapshot, Technique::Shm] {
        for wait in [WaitMode::Spin, WaitMode::Adaptive, WaitMode::Park] {
            let mut points: Vec<(f64, f64)> = rows
                .iter()
                .filter(|row| row.technique == technique && row.wait == wait)
                .map(|row| (row.payload_bytes as f64, row.rtt_ns.p50.max(1) as f64))
                .collect();
            if points.is_empty() {
                continue;
            }
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            let style = style(technique, wait);
            let dots = points.clone().into_iter().map(|point| Circle::new(point, 3, style.filled()));
            chart
                .draw_series(LineSeries::new(points, style))
                .map_err(wrong)?
                .label(format!("{} {}", technique.name(), wait.name()))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
            chart.draw_series(dots).map_err(wrong)?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(wrong)?;
    area.present().map_err(wrong)
}

/// A colour per technique, paler the more a side sleeps.
fn style(technique: Technique, wait: WaitMode) -> ShapeStyle {
    let colour = match technique {
        Technique::Classic => RGBColor(200, 40, 40),
        Technique::Bare => RGBColor(130, 130, 130),
        Technique::Snapshot => RGBColor(220, 140, 0),
        _ => RGBColor(20, 90, 190),
    };
    let strength = match wait {
        WaitMode::Spin => 1.0,
        WaitMode::Adaptive => 0.65,
        WaitMode::Park => 0.35,
    };
    colour.mix(strength).stroke_width(2)
}
