//! Heads out of the lines that libcurl hands on, and which of them is the answer's own. Pure.

use std::ops::Range;

/// What a head is the head of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Final,
    Informational,
    Passing,
    Connect,
}

/// A version of HTTP, as a status line says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Version {
    #[default]
    Unknown,
    Http09,
    Http10,
    Http11,
    Http2,
    Http3,
}

/// The head of an answer: its lines as they came, and where in them what is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) status: u16,
    pub(crate) version: Version,
    bytes: Vec<u8>,
    reason: Range<usize>,
    fields: Vec<[Range<usize>; 2]>,
}

impl Head {
    fn begin(line: &[u8]) -> Self {
        let line = line.trim_ascii_end();
        let mut words = line.splitn(3, |&byte| byte == b' ');
        let version = match words.next().unwrap_or_default() {
            b"HTTP/1.0" => Version::Http10,
            b"HTTP/1.1" => Version::Http11,
            b"HTTP/2" | b"HTTP/2.0" => Version::Http2,
            b"HTTP/3" => Version::Http3,
            _ => Version::Unknown,
        };
        let status = words.next().and_then(|word| std::str::from_utf8(word).ok()?.parse().ok()).unwrap_or(0);
        let reason = words.next().map_or(0, <[u8]>::len);
        let reason = line.len() - reason..line.len();
        Self { kind: Kind::Final, status, version, bytes: line.to_vec(), reason, fields: Vec::new() }
    }

    fn add(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(line);
        match (line.first(), self.fields.last_mut()) {
            // The rest of a field, in lines as they once were allowed.
            (Some(b' ' | b'\t'), Some([_, value])) if value.end == start => value.end = self.bytes.len(),
            _ => {
                let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
                let value = line.get(colon + 1..).unwrap_or_default();
                let blank = value.len() - value.trim_ascii_start().len();
                let from = (start + colon + 1 + blank).min(self.bytes.len());
                let until = (start + line.trim_ascii_end().len()).max(from);
                self.fields.push([start..start + colon, from..until]);
            }
        }
    }

    pub(crate) fn reason(&self) -> &[u8] {
        self.part(&self.reason)
    }

    /// Names and values.
    pub(crate) fn fields(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|[name, value]| (self.part(name), self.part(value)))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields();
        let (_, value) = fields.find(|(found, _)| found.eq_ignore_ascii_case(name.as_bytes()))?;
        std::str::from_utf8(value).ok()
    }

    fn part(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }
}

/// What follows from a request for what a head means.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expecting {
    /// Redirects are followed.
    pub(crate) redirects: bool,
    /// Questions for credentials may be answered, by the server or a proxy.
    pub(crate) auth: bool,
    /// Failures that may pass are tried again.
    pub(crate) retries: bool,
    /// A CONNECT to a proxy comes first.
    pub(crate) tunnel: bool,
}

/// Takes lines and gives heads.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    expecting: Expecting,
    /// Being read.
    open: Option<Head>,
    /// Complete, but what follows decides what it is.
    undecided: Option<Head>,
    /// The answer's own has been given.
    decided: bool,
    trailers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Heads {
    pub(crate) fn new(expecting: Expecting) -> Self {
        Self { expecting, ..Self::default() }
    }

    /// A line, its end and all. What it completes goes to `give`.
    pub(crate) fn line(&mut self, line: &[u8], mut give: impl FnMut(Head)) {
        let blank = matches!(line, b"\r\n" | b"\n" | b"");
        if let Some(head) = &mut self.open {
            if !blank {
                head.add(line);
            } else if let Some(head) = self.open.take() {
                self.complete(head, give);
            }
        } else if line.starts_with(b"HTTP/") {
            // What was undecided is followed by something else.
            if let Some(head) = self.undecided.take() {
                give(Head { kind: Kind::Passing, ..head });
            }
            self.decided = false;
            self.open = Some(Head::begin(line));
        } else if !blank {
            let mut trailer = Head::begin(b"");
            trailer.add(line);
            self.trailers.extend(trailer.fields().map(|(name, value)| (name.to_vec(), value.to_vec())));
        }
    }

    fn complete(&mut self, head: Head, mut give: impl FnMut(Head)) {
        let Expecting { redirects, auth, retries, tunnel } = self.expecting;
        let status = head.status;
        if (100..200).contains(&status) && status != 101 {
            return give(Head { kind: Kind::Informational, ..head });
        }
        if tunnel && (200..300).contains(&status) {
            // The first success is the proxy's own.
            self.expecting.tunnel = false;
            return give(Head { kind: Kind::Connect, ..head });
        }
        let redirect = redirects && (300..400).contains(&status) && head.get("location").is_some();
        let question = auth && matches!(status, 401 | 407);
        if redirect || question || tunnel || (retries && crate::retry::may_pass(status)) {
            self.undecided = Some(head);
        } else {
            self.decided = true;
            give(head);
        }
    }

    /// The body begins, or all is over: what was undecided is the answer's own.
    pub(crate) fn decide(&mut self, give: impl FnOnce(Head)) {
        if let Some(head) = self.undecided.take() {
            self.decided = true;
            give(head);
        }
    }

    /// What is undecided will be tried again.
    pub(crate) fn pass(&mut self, give: impl FnOnce(Head)) {
        if let Some(head) = self.undecided.take() {
            give(Head { kind: Kind::Passing, ..head });
        }
    }

    /// The one that may be the answer's own, if that is not decided.
    pub(crate) fn undecided(&self) -> Option<&Head> {
        self.undecided.as_ref()
    }

    /// Whether a head is on its way, or there.
    pub(crate) fn has_begun(&self) -> bool {
        self.open.is_some() || self.undecided.is_some() || self.decided
    }

    /// Whether the answer's own has been given.
    pub(crate) fn is_decided(&self) -> bool {
        self.decided
    }

    pub(crate) fn take_trailers(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        std::mem::take(&mut self.trailers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(heads: &mut Heads, text: &str) -> Vec<(Kind, u16)> {
        let mut given = Vec::new();
        for line in text.split_inclusive('\n') {
            heads.line(line.as_bytes(), |head| given.push((head.kind, head.status)));
        }
        given
    }

    #[test]
    fn fields_keep_their_order_and_repeat() {
        let mut heads = Heads::default();
        let mut given = Vec::new();
        let text = "HTTP/1.1 200 All  right\r\nA: 1\r\na:2 \r\nEmpty:\r\nLong: x\r\n\ty\r\nodd\r\n\r\nT: z\r\n";
        for line in text.split_inclusive('\n') {
            heads.line(line.as_bytes(), |head| given.push(head));
        }
        let [head] = given.as_slice() else { panic!("one head") };
        let fields: Vec<_> = head.fields().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        let expected = [("A", "1"), ("a", "2"), ("Empty", ""), ("Long", "x\ty"), ("odd", "")];
        assert_eq!(fields, expected.map(|(name, value)| (name.into(), value.into())));
        assert_eq!((head.version, head.status, head.reason()), (Version::Http11, 200, &b"All  right"[..]));
        assert_eq!(head.get("EMPTY"), Some(""));
        assert_eq!(heads.take_trailers(), [(b"T".to_vec(), b"z".to_vec())]);
    }

    #[test]
    fn the_answers_own_head_is_the_last() {
        let expecting = Expecting { redirects: true, auth: true, retries: false, tunnel: false };
        let mut heads = Heads::new(expecting);
        assert_eq!(feed(&mut heads, "HTTP/1.1 100 Go on\r\n\r\n"), [(Kind::Informational, 100)]);
        assert_eq!(feed(&mut heads, "HTTP/1.1 302 x\r\nLocation: /\r\n\r\n"), []);
        assert_eq!(feed(&mut heads, "HTTP/2 401 \r\n\r\n"), [(Kind::Passing, 302)]);
        assert_eq!(feed(&mut heads, "HTTP/2 200 \r\n\r\n"), [(Kind::Passing, 401), (Kind::Final, 200)]);
        assert!(heads.is_decided());
        // A redirect without a place to go to is an answer.
        let mut heads = Heads::new(Expecting { redirects: true, ..Expecting::default() });
        assert_eq!(feed(&mut heads, "HTTP/1.1 304 x\r\n\r\n"), [(Kind::Final, 304)]);
        let mut heads = Heads::new(Expecting { redirects: true, ..Expecting::default() });
        feed(&mut heads, "HTTP/1.1 302 x\r\nLocation: /\r\n\r\n");
        let mut own = None;
        heads.decide(|head| own = Some((head.kind, head.status)));
        assert_eq!(own, Some((Kind::Final, 302)));
    }

    #[test]
    fn a_proxys_answer_is_none_of_the_servers() {
        let mut heads = Heads::new(Expecting { tunnel: true, auth: true, ..Expecting::default() });
        assert_eq!(feed(&mut heads, "HTTP/1.1 407 x\r\n\r\n"), []);
        let rest = "HTTP/1.1 200 established\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(feed(&mut heads, rest), [(Kind::Passing, 407), (Kind::Connect, 200), (Kind::Final, 200)]);
    }

    #[test]
    fn whatever_comes_is_kept_within_bounds() {
        let mut heads = Heads::default();
        let odd: [&[u8]; 6] = [b"HTTP/", b"\xff\xfe: \xff\r\n", b"  \n", b":\n", b"HTTP/9 99999999 \xff\r\n", b"\r\n"];
        for line in odd.iter().chain(&odd) {
            heads.line(line, |head| assert!(head.fields().count() < 12));
        }
    }
}
