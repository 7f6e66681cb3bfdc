//! What a process has in memory, and whether that grows.

use std::fs;

/// Bytes that a process has in memory: its own, and all with what it shares. Counted page by page, because the counters in
/// `status` are wrong by some.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub private: f64,
    pub all: f64,
}

impl Memory {
    pub fn of(pid: &str) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("procfs");
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
            line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
        };
        Self { private: field("Anonymous:"), all: field("Rss:") }
    }
}

/// A straight line through points, by least squares: its slope, and by how much that may be wrong (95 %).
#[derive(Clone, Copy, Debug)]
pub struct Slope {
    pub per_x: f64,
    pub within: f64,
}

impl Slope {
    /// At least three points.
    pub fn through(points: &[(f64, f64)]) -> Self {
        let count = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
        let per_x = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
        let off: f64 = points.iter().map(|point| (point.1 - y - per_x * (point.0 - x)).powi(2)).sum();
        let freedom = count - 2.0;
        Self { per_x, within: student(freedom) * (off / freedom / spread).sqrt() }
    }

    /// The least it is, as far as can be told.
    pub fn least(&self) -> f64 {
        self.per_x - self.within
    }
}

/// The 97.5 % point of Student's distribution: Peizer and Pratt's approximation by the normal one, off by less than 4 %
/// from two degrees of freedom on.
fn student(freedom: f64) -> f64 {
    const NORMAL: f64 = 1.959_964;
    let fitted = freedom - 2.0 / 3.0 + 0.1 / freedom;
    let exponent = NORMAL.powi(2) * (freedom - 5.0 / 6.0) / fitted.powi(2);
    (freedom * exponent.exp_m1()).sqrt()
}

/// Whether all this is right, by known answers.
pub fn controls() {
    for (freedom, exact) in [(2.0, 4.303), (5.0, 2.571), (10.0, 2.228), (30.0, 2.042), (1000.0, 1.962)] {
        let found = student(freedom);
        assert!((found / exact - 1.0_f64).abs() < 0.05, "{freedom}: {found}");
    }
    // Anscombe's first four: x, y; a slope of 0.5001 with a standard error of 0.1179.
    let (x, y) = (
        [10.0, 8.0, 13.0, 9.0, 11.0, 14.0, 6.0, 4.0, 12.0, 7.0, 5.0],
        [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68],
    );
    let slope = Slope::through(&x.into_iter().zip(y).collect::<Vec<_>>());
    assert!((slope.per_x - 0.5001).abs() < 1e-4 && (slope.within - 2.262 * 0.1179).abs() < 0.01, "{slope:?}");
}
