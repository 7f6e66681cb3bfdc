//! One URL that stands for many: `{a,b}`, `[1-9]`, `[01-20:2]`, `[a-z]`. Pure.

use thiserror::Error;

/// What is wrong with a pattern, and where: curl's code 3.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum BadGlob {
    #[error("bad range in column {0}")]
    Range(usize),
    #[error("unmatched brace in column {0}")]
    Unmatched(usize),
    #[error("unmatched close brace/bracket in column {0}")]
    UnmatchedClose(usize),
    #[error("too many URLs")]
    TooMany,
}

/// A pattern taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glob {
    parts: Vec<Part>,
    count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Set(Vec<String>),
    Letters { first: u8, step: u8, count: u64 },
    Numbers { first: u64, step: u64, count: u64, width: usize },
}

impl Part {
    fn count(&self) -> u64 {
        match self {
            Self::Literal(_) => 1,
            Self::Set(words) => words.len() as u64,
            Self::Letters { count, .. } | Self::Numbers { count, .. } => *count,
        }
    }

    /// `at` is below the count.
    fn value(&self, at: u64) -> String {
        match self {
            Self::Literal(text) => text.clone(),
            Self::Set(words) => words.get(at as usize).cloned().unwrap_or_default(),
            Self::Letters { first, step, .. } => char::from(first.saturating_add(*step * at as u8)).to_string(),
            Self::Numbers { first, step, width, .. } => format!("{:0width$}", first + step * at),
        }
    }
}

impl Glob {
    /// A URL that stands for itself.
    pub(crate) fn literal(url: &str) -> Self {
        Self { parts: vec![Part::Literal(url.to_owned())], count: 1 }
    }

    /// # Errors
    /// [`BadGlob`].
    pub(crate) fn parse(url: &str) -> Result<Self, BadGlob> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(char) = url[at..].chars().next() {
            let column = at + 1;
            let rest = &url[at..];
            let part = match char {
                '\\' if rest[1..].starts_with(['{', '}', '[', ']']) => {
                    literal.push_str(&rest[1..2]);
                    at += 2;
                    continue;
                }
                '[' if address(rest).is_some() => {
                    let length = address(rest).unwrap_or(1);
                    literal.push_str(&rest[..length]);
                    at += length;
                    continue;
                }
                '{' => {
                    let end = rest.find('}').ok_or(BadGlob::Unmatched(column))?;
                    at += end + 1;
                    if rest[1..end].contains('{') {
                        return Err(BadGlob::Unmatched(column));
                    }
                    Part::Set(rest[1..end].split(',').map(str::to_owned).collect())
                }
                '[' => {
                    let end = rest.find(']').ok_or(BadGlob::Range(column))?;
                    at += end + 1;
                    range(&rest[1..end]).ok_or(BadGlob::Range(column))?
                }
                '}' | ']' => return Err(BadGlob::UnmatchedClose(column)),
                other => {
                    literal.push(other);
                    at += other.len_utf8();
                    continue;
                }
            };
            parts.push(Part::Literal(std::mem::take(&mut literal)));
            parts.push(part);
        }
        parts.push(Part::Literal(literal));
        let count =
            parts.iter().try_fold(1u64, |count, part| count.checked_mul(part.count())).ok_or(BadGlob::TooMany)?;
        Ok(Self { parts, count })
    }

    /// How many URLs it stands for.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The one of this number, the last pattern counting fastest, and what each pattern stands for in it.
    pub(crate) fn nth(&self, mut number: u64) -> (String, Vec<String>) {
        let mut values: Vec<String> = Vec::new();
        for part in self.parts.iter().rev() {
            values.push(part.value(number % part.count().max(1)));
            number /= part.count().max(1);
        }
        values.reverse();
        let url = values.concat();
        let patterns = self.parts.iter().zip(values).filter(|(part, _)| !matches!(part, Part::Literal(_)));
        (url, patterns.map(|(_, value)| value).collect())
    }
}

/// How long the IPv6 address in brackets is that a text begins with, if it does.
fn address(text: &str) -> Option<usize> {
    let end = text.find(']')?;
    let inner = text.get(1..end)?;
    let inner = inner.split('%').next().unwrap_or(inner);
    inner.parse::<std::net::Ipv6Addr>().ok().map(|_| end + 1)
}

/// What stands in brackets: `1-9`, `001-100:5`, `a-z:2`.
fn range(text: &str) -> Option<Part> {
    let (ends, step) = text.split_once(':').map_or((text, Some(1)), |(ends, step)| (ends, step.parse::<u64>().ok()));
    let step = step.filter(|step| *step > 0)?;
    let (first, last) = ends.split_once('-')?;
    if let ([first], [last]) = (first.as_bytes(), last.as_bytes()) {
        let letters = first.is_ascii_alphabetic() && last.is_ascii_alphabetic() && first <= last;
        if letters && first.is_ascii_lowercase() == last.is_ascii_lowercase() {
            let count = u64::from(last - first) / step + 1;
            return Some(Part::Letters { first: *first, step: u8::try_from(step).unwrap_or(u8::MAX), count });
        }
    }
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let width = if first.starts_with('0') { first.len() } else { 0 };
    let (first, last) = (number(first)?, number(last)?);
    let span = last.checked_sub(first)?;
    Some(Part::Numbers { first, step, count: (span / step).checked_add(1)?, width })
}

/// `#1` in a file's name for what the first pattern stands for, and so on; numbers without a pattern stay.
pub(crate) fn file_name(name: &str, values: &[String]) -> String {
    let mut out = String::new();
    let mut rest = name;
    while let Some(at) = rest.find('#') {
        let digits = rest[at + 1..].len() - rest[at + 1..].trim_start_matches(|char: char| char.is_ascii_digit()).len();
        let number = rest[at + 1..at + 1 + digits].parse::<usize>().ok();
        let value = number.and_then(|number| values.get(number.checked_sub(1)?));
        out.push_str(&rest[..at]);
        match value {
            // What came from a URL makes no directories.
            Some(value) => out.push_str(&value.replace('/', "_")),
            None => out.push_str(&rest[at..at + 1 + digits]),
        }
        rest = &rest[at + 1 + digits..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(url: &str) -> Vec<String> {
        let glob = Glob::parse(url).expect("a pattern");
        (0..glob.count()).map(|number| glob.nth(number).0).collect()
    }

    #[test]
    fn patterns_stand_for_what_they_say() {
        assert_eq!(all("http://h/{a,b}[1-2]"), ["http://h/a1", "http://h/a2", "http://h/b1", "http://h/b2"]);
        assert_eq!(all("[08-12:2]"), ["08", "10", "12"]);
        assert_eq!(all("[a-e:2]"), ["a", "c", "e"]);
        assert_eq!(all("http://[::1]:80/"), ["http://[::1]:80/"]);
        assert_eq!(all("http://[fe80::1%25eth0]/[1-1]"), ["http://[fe80::1%25eth0]/1"]);
        assert_eq!(all("a\\[1-2\\]\\{b\\}"), ["a[1-2]{b}"]);
        assert_eq!(all("é{ü}"), ["éü"]);
        let glob = Glob::parse("{a,b}/[1-3]").expect("a pattern");
        let (_, values) = glob.nth(5);
        assert_eq!(values, ["b", "3"]);
        assert_eq!(file_name("x_#2_#1_#3#", &values), "x_3_b_#3#");
    }

    #[test]
    fn what_is_no_pattern_says_where() {
        for (url, error) in [
            ("a[1-", BadGlob::Range(2)),
            ("[9-1]", BadGlob::Range(1)),
            ("[a-Z]", BadGlob::Range(1)),
            ("[1-2:0]", BadGlob::Range(1)),
            ("[0-18446744073709551615]", BadGlob::Range(1)),
            ("[x]", BadGlob::Range(1)),
            ("{a", BadGlob::Unmatched(1)),
            ("{a{b}}", BadGlob::Unmatched(1)),
            ("a}", BadGlob::UnmatchedClose(2)),
            ("[1-9999999999][1-9999999999]", BadGlob::TooMany),
        ] {
            assert_eq!(Glob::parse(url), Err(error), "{url}");
        }
    }
}
