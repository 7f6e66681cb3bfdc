//! What a worker says it has, and what to choose from it. Pure.

use crate::uri::{Format, Transport, Uri};
use serde_json::Value;

/// What `--protocols` prints.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Offer {
    transports: Vec<(String, f64)>,
    formats: Vec<(String, f64)>,
    pub(crate) version: u32,
}

/// Why nothing could be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Nothing {
    Transport(String),
    Format(String),
}

impl Offer {
    /// Reads it, comments, missing commas and all.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let all: Value = serde_json::from_str(&strict(text)).map_err(|error| error.to_string())?;
        let rates = |key: &str| {
            let named = all.get(key).and_then(Value::as_object).ok_or_else(|| format!("no `{key}`"))?;
            let rate = |about: &Value| about.get("rate").or_else(|| about.get("speedRate")).and_then(Value::as_f64);
            Ok::<_, String>(named.iter().map(|(name, about)| (name.clone(), rate(about).unwrap_or(0.0))).collect())
        };
        let version = all.get("version").and_then(Value::as_u64).ok_or("no `version`")?;
        let version = u32::try_from(version).map_err(|_| "no `version`")?;
        Ok(Self { transports: rates("transports")?, formats: rates("formats")?, version })
    }

    /// The fastest transport that both have and whose caps do, and the fastest format that it carries; ties by name. Names
    /// that this side does not know do not matter.
    pub(crate) fn choose(&self, transports: &[Transport], formats: &[Format]) -> Result<(Transport, Format), Nothing> {
        let transports = common(&self.transports, transports, Transport::name);
        if transports.is_empty() {
            return Err(Nothing::Transport(names(&self.transports)));
        }
        let formats = common(&self.formats, formats, Format::name);
        let carried = |transport: Transport| formats.iter().copied().find(|format| Uri::fits(transport, *format));
        let found = transports.into_iter().find_map(|transport| Some((transport, carried(transport)?)));
        found.ok_or_else(|| Nothing::Format(names(&self.formats)))
    }
}

fn names(offered: &[(String, f64)]) -> String {
    let mut names: Vec<&str> = offered.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// What both have, the best first.
fn common<T: Copy>(offered: &[(String, f64)], ours: &[T], name: impl Fn(T) -> &'static str) -> Vec<T> {
    let rated = |own: &T| Some((offered.iter().find(|(theirs, _)| theirs == name(*own))?.1, *own));
    let mut both: Vec<(f64, T)> = ours.iter().filter_map(rated).collect();
    both.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| name(a.1).cmp(name(b.1))));
    both.into_iter().map(|(_, own)| own).collect()
}

/// JSON as it should be, of JSON as people write it: comments go, commas come where one value follows another, and go where
/// none does.
fn strict(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    // A value has ended, and nothing has come since; and where the last comma is, if nothing has come since that.
    let (mut ended, mut comma) = (false, None);
    while let Some(next) = chars.next() {
        match next {
            '/' if chars.peek() == Some(&'/') => {
                chars.by_ref().find(|skipped| *skipped == '\n');
                out.push('\n');
            }
            '/' if chars.peek() == Some(&'*') => {
                let mut last = ' ';
                chars.by_ref().skip(1).find(|skipped| std::mem::replace(&mut last, *skipped) == '*' && *skipped == '/');
            }
            '"' => {
                if ended {
                    out.push(',');
                }
                out.push('"');
                let mut escaped = false;
                for inside in chars.by_ref() {
                    out.push(inside);
                    match inside {
                        _ if escaped => escaped = false,
                        '\\' => escaped = true,
                        '"' => break,
                        _ => {}
                    }
                }
                (ended, comma) = (true, None);
            }
            ',' => {
                comma = Some(out.len());
                out.push(',');
                ended = false;
            }
            ':' => {
                out.push(':');
                ended = false;
            }
            '}' | ']' => {
                if let Some(at) = comma.take() {
                    out.remove(at);
                }
                out.push(next);
                ended = true;
            }
            '{' | '[' => {
                if ended {
                    out.push(',');
                }
                out.push(next);
                (ended, comma) = (false, None);
            }
            blank if blank.is_whitespace() => out.push(blank),
            word => {
                if ended && !out.ends_with(|last: char| last.is_alphanumeric() || "+-.".contains(last)) {
                    out.push(',');
                }
                out.push(word);
                (ended, comma) = (true, None);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the text that procCurl began with.
    const SEED: &str = r#"{
      "transports": {
        "tcp": { "speedRate": 1 },
        "io": { "speedRate": 5 },
        "mmap_boring": { "rate": 10 }
      },
      "formats": {
        "jsonrpc": { "rate": 1 },
        "grpc": {
          "rate": 10
        }
        "msgpack-rpc": { "rate": 10 }
        "raw": { // fast but imparity prone
          "rate": 20
        }
      },
      "version": 2
    }"#;

    #[test]
    fn the_seeds_example_is_understood() {
        let offer = Offer::parse(SEED).expect("an offer");
        assert_eq!((offer.version, offer.transports.len(), offer.formats.len()), (2, 3, 4));
        assert_eq!(offer.choose(Transport::ALL, Format::ALL), Ok((Transport::Io, Format::JsonRpc)));
        let nothing = offer.choose(&[Transport::Shm], Format::ALL);
        assert_eq!(nothing, Err(Nothing::Transport("io, mmap_boring, tcp".into())));
        let nothing = offer.choose(Transport::ALL, &[Format::Handle]);
        assert_eq!(nothing, Err(Nothing::Format("grpc, jsonrpc, msgpack-rpc, raw".into())));
    }

    #[test]
    fn the_fastest_that_fit_each_other_are_chosen() {
        let text = r#"{"transports": {"shm": {"rate": 1}, "unix": {"rate": 9}}, /* , */
            "formats": {"handle": {"rate": 5}, "capnp": {"rate": 1,},}, "version": 1}"#;
        let offer = Offer::parse(text).expect("an offer");
        assert_eq!(offer.choose(Transport::ALL, Format::ALL), Ok((Transport::Unix, Format::Capnp)));
        assert_eq!(offer.choose(Transport::ALL, &[Format::Handle]), Ok((Transport::Shm, Format::Handle)));
    }

    #[test]
    fn what_is_no_offer_is_refused() {
        for bad in ["", "{", "[]", "{}", "\"", "{\"transports\": {}, \"formats\": {}}", "//", "/*", "{\"a\\"] {
            assert!(Offer::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            strict(r#"["a, }" 1 -2.5e3, true [] {"x" : null,}]"#),
            r#"["a, }" ,1 ,-2.5e3, true ,[] ,{"x" : null}]"#
        );
    }
}
