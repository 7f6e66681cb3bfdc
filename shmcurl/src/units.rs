//! Numbers as curl's options take them.

use std::time::Duration;

/// Seconds, with or without a fraction.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is no number of seconds");
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if !plain || text.is_empty() {
        return Err(bad());
    }
    let seconds: f64 = text.parse().map_err(|_| bad())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| bad())
}

/// Bytes, with `k`, `M`, `G`, `T` or `P` for powers of 1,024 after it.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is no number of bytes");
    let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic());
    let power = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(bad()),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(1 << (10 * power)).ok_or_else(bad)
}

/// A number of bytes in five places, as curl's meter shows it.
pub(crate) fn short(bytes: u64) -> String {
    const KIB: u64 = 1 << 10;
    if bytes < 100_000 {
        return format!("{bytes:5}");
    }
    let units = [('k', KIB), ('M', KIB.pow(2)), ('G', KIB.pow(3)), ('T', KIB.pow(4)), ('P', KIB.pow(5))];
    for (letter, unit) in units {
        if bytes < 100 * unit && letter != 'k' {
            return format!("{:2}.{}{letter}", bytes / unit, (bytes % unit) * 10 / unit);
        }
        if bytes < 10_000 * unit {
            return format!("{:4}{letter}", bytes / unit);
        }
    }
    format!("{:4}P", bytes >> 50)
}

/// A duration in eight places, as curl's meter shows it.
pub(crate) fn clock(time: Option<Duration>) -> String {
    let Some(seconds) = time.map(|time| time.as_secs()).filter(|seconds| *seconds > 0) else {
        return "--:--:--".into();
    };
    let (hours, days) = (seconds / 3_600, seconds / 86_400);
    match (hours, days) {
        (0..=99, _) => format!("{hours:2}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
        (_, 0..=999) => format!("{days:3}d {:02}h", hours % 24),
        _ => format!("{days:7}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_curls() {
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1_500)));
        for bad in ["", "-1", "x", "1e3", "inf", "1.2.3"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert_eq!((bytes("100"), bytes("2k"), bytes("3G")), (Ok(100), Ok(2_048), Ok(3 << 30)));
        for bad in ["", "k", "1x", "-1", "1.5k", "99999999999999999999", "20000P"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        let shown = [0, 99_999, 100_000, 9_999 << 10, 10_000 << 10, 150 << 20, 15_000 << 20].map(short);
        assert_eq!(shown, ["    0", "99999", "  97k", "9999k", " 9.7M", " 150M", "14.6G"]);
        let times = [0, 59, 3_661, 100 * 3_600, 1_000 * 86_400].map(|s| clock(Some(Duration::from_secs(s))));
        assert_eq!(times, ["--:--:--", " 0:00:59", " 1:01:01", "  4d 04h", "   1000d"]);
    }
}
