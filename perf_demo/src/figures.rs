//! Figures for people: sizes, times, ratios.

/// A size, exact where a binary unit fits.
#[must_use]
pub fn show(bytes: usize) -> String {
    humansize::format_size(bytes, humansize::BINARY.space_after_value(true).decimal_places(1))
}

/// A time with its unit.
#[must_use]
pub fn time(nanos: u64) -> String {
    let nanos = nanos as f64;
    match nanos {
        ..1e3 => format!("{nanos:.0} ns"),
        ..1e6 => format!("{} us", digits(nanos / 1e3)),
        ..1e9 => format!("{} ms", digits(nanos / 1e6)),
        _ => format!("{} s", digits(nanos / 1e9)),
    }
}

/// How many times as much one is as the other, if that can be said.
#[must_use]
pub fn ratio(one: u64, other: u64) -> Option<f64> {
    (other > 0).then(|| one as f64 / other as f64)
}

/// A ratio in a table; nothing if there is none.
#[must_use]
pub fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(String::new, |ratio| format!("{} x", digits(ratio)))
}

/// Three digits, or all before the point.
#[must_use]
pub fn digits(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        assert_eq!(
            [7, 1234, 56_789, 178_000_000, 1_500_000_000].map(time),
            ["7 ns", "1.23 us", "56.8 us", "178 ms", "1.50 s"]
        );
    }
}
