//! Curves in an SVG file, both axes logarithmic.

use anyhow::{anyhow, bail};
use plotters::prelude::*;
use std::path::Path;

/// What is drawn, and what is written beside it.
pub struct Picture<'a> {
    /// Above it.
    pub caption: &'a str,
    /// Below it, and how the values there are spelt.
    pub x: (&'a str, &'a dyn Fn(f64) -> String),
    /// The same at its left.
    pub y: (&'a str, &'a dyn Fn(f64) -> String),
    /// The curves, in the order of the legend.
    pub curves: Vec<Curve>,
}

/// One curve. Values that have no logarithm are left out.
pub struct Curve {
    /// In the legend.
    pub name: String,
    /// In any order.
    pub points: Vec<(f64, f64)>,
    /// Red, green, blue, and how strong.
    pub colour: ([u8; 3], f64),
}

/// Colours to tell curves apart by, where these have no meaning.
pub const COLOURS: [[u8; 3]; 10] = [
    [20, 90, 190],
    [200, 40, 40],
    [40, 150, 60],
    [220, 140, 0],
    [130, 60, 170],
    [0, 150, 160],
    [130, 130, 130],
    [180, 90, 40],
    [220, 80, 160],
    [60, 60, 60],
];

impl Picture<'_> {
    /// Draws it into a file.
    ///
    /// # Errors
    /// If there is nothing to draw, or the file cannot be written.
    pub fn draw(mut self, path: &Path) -> anyhow::Result<()> {
        for curve in &mut self.curves {
            curve.points.retain(|&(x, y)| x > 0.0 && y > 0.0 && x.is_finite() && y.is_finite());
            curve.points.sort_by(|one, other| one.0.total_cmp(&other.0));
        }
        self.curves.retain(|curve| !curve.points.is_empty());
        if self.curves.is_empty() {
            bail!("there is nothing to draw");
        }
        let points = || self.curves.iter().flat_map(|curve| curve.points.iter().copied());
        let span = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
            low / 2.0..high * 2.0
        };
        let wrong = |error: DrawingAreaErrorKind<_>| anyhow!("{error}");
        let area = SVGBackend::new(path, (960, 600)).into_drawing_area();
        area.fill(&WHITE).map_err(wrong)?;
        let (across, up) = (span(&mut points().map(|point| point.0)), span(&mut points().map(|point| point.1)));
        let mut chart = ChartBuilder::on(&area)
            .caption(self.caption, ("sans-serif", 22))
            .margin(12)
            .x_label_area_size(45)
            .y_label_area_size(80)
            .build_cartesian_2d(across.log_scale(), up.log_scale())
            .map_err(wrong)?;
        chart
            .configure_mesh()
            .x_desc(self.x.0)
            .y_desc(self.y.0)
            .x_label_formatter(&|&value| (self.x.1)(value))
            .y_label_formatter(&|&value| (self.y.1)(value))
            .draw()
            .map_err(wrong)?;
        for Curve { name, points, colour: ([red, green, blue], strength) } in self.curves {
            let style = RGBColor(red, green, blue).mix(strength).stroke_width(2);
            let dots = points.clone().into_iter().map(|point| Circle::new(point, 3, style.filled()));
            chart
                .draw_series(LineSeries::new(points, style))
                .map_err(wrong)?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
            chart.draw_series(dots).map_err(wrong)?;
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
}
