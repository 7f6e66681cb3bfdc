//! Whether and when a request is made again. Pure.

use std::time::Duration;

/// What a request says about it, and how often that has been done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retries {
    pub(crate) times: u32,
    pub(crate) backoff: Duration,
    pub(crate) backoff_max: Duration,
    pub(crate) ignore_retry_after: bool,
    /// From the beginning, none begins after so long.
    pub(crate) within: Option<Duration>,
    pub(crate) done: u32,
}

impl Retries {
    /// How long to wait before the next attempt; `None` if there is none. `age` is the time since the beginning.
    pub(crate) fn pause(&self, retry_after: Option<&str>, now: u64, age: Duration) -> Option<Duration> {
        if self.done >= self.times {
            return None;
        }
        let doubled = self.backoff.saturating_mul(2_u32.saturating_pow(self.done.min(30)));
        let own = doubled.min(self.backoff_max);
        let asked = retry_after.filter(|_| !self.ignore_retry_after).and_then(|text| seconds_until(text, now));
        let pause = asked.map_or(own, |asked| asked.max(own));
        (self.within.is_none_or(|within| age.saturating_add(pause) <= within)).then_some(pause)
    }
}

/// Whether an answer of this status may be another the next time.
pub(crate) fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// Whether libcurl may fare better the next time.
pub(crate) fn code_may_pass(code: u32) -> bool {
    // Not resolved, not connected, HTTP/2 trouble, broken off, timed out, nothing came, and trouble with sending and
    // receiving.
    matches!(code, 5 | 6 | 7 | 16 | 18 | 28 | 52 | 55 | 56 | 92)
}

/// `Retry-After`: seconds, or a date.
fn seconds_until(text: &str, now: u64) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = date(text)?;
    Some(Duration::from_secs(at.saturating_sub(now)))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that is still sent.
fn date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    let year: u64 = words.next()?.parse().ok()?;
    let mut time = words.next()?.split(':').map(str::parse::<u64>);
    let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
    if !(1970..10_000).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Years begin in March here, so that the odd day is the last.
    let (y, m) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    // The 1st of March of the year 0 was so many days before 1970.
    Some((days.checked_sub(719_468)? * 24 + hour) * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_a_limit() {
        let mut retries = Retries { times: 4, backoff: SECOND, backoff_max: 3 * SECOND, ..Retries::default() };
        let mut pauses = Vec::new();
        while let Some(pause) = retries.pause(None, 0, Duration::ZERO) {
            pauses.push(pause.as_secs());
            retries.done += 1;
        }
        assert_eq!(pauses, [1, 2, 3, 3]);
    }

    #[test]
    fn servers_say_when() {
        let retries = Retries { times: 1, backoff: SECOND, backoff_max: SECOND, ..Retries::default() };
        let pause = |text, now| retries.pause(Some(text), now, Duration::ZERO).map(|pause| pause.as_secs());
        assert_eq!(pause("7", 0), Some(7));
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_770), Some(7));
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_999), Some(1));
        for odd in ["soon", "-1", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 99999999999999 08:49:37 GMT", ""] {
            assert_eq!(pause(odd, 0), Some(1), "{odd}");
        }
        let deaf = Retries { ignore_retry_after: true, ..retries.clone() };
        assert_eq!(deaf.pause(Some("7"), 0, Duration::ZERO), Some(SECOND));
        let short = Retries { within: Some(5 * SECOND), ..retries };
        assert_eq!(short.pause(Some("7"), 0, Duration::ZERO), None);
        assert_eq!(short.pause(Some("3"), 0, 3 * SECOND), None);
    }

    #[test]
    fn leap_days_count() {
        assert_eq!(date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(date("Thu, 01 Jan 1970 00:00:01 GMT"), Some(1));
    }
}
