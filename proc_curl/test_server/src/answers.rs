//! What each path of the web servers answers; `docs/proc_curl.md` does not list them, this file does.
//!
//! | path | answer |
//! |---|---|
//! | `/echo` | request line, headers, empty line and body, as received |
//! | `/status/N` | that status |
//! | `/redirect/N?status=` | N redirects, then `/echo` |
//! | `/redirect-to?url=&status=`, `/loop` | a redirect there; to itself |
//! | `/cookies`, `/cookies/set?a=b`, `/cookies/give?a=b` | the cookies sent; sets some and redirects to the first; only sets |
//! | `/basic/USER/PASSWORD`, `/digest/USER/PASSWORD`, `/bearer/TOKEN` | 401 or `welcome` |
//! | `/bytes/N?ranges=no` | N bytes of the pattern, ranges served unless told not to |
//! | `/chunked/N` | the same without a length |
//! | `/gzip/N`, `/deflate/N`, `/raw-deflate/N` | the same, compressed |
//! | `/bad-gzip`, `/bomb/N`, `/brotli` | not gzip after all; N zeros in gzip; something said to be brotli |
//! | `/wait?ms=`, `/hang` | an answer after a while; none |
//! | `/drip?pieces=&size=&ms=`, `/stall/N`, `/endless` | a slow body; N bytes and then nothing; no end |
//! | `/broken/N`, `/short/N` | a body broken off after N bytes: without a length, and with one of 2 N |
//! | `/big-header/N`, `/headers/N` | a header of N bytes; N headers |
//! | `/trailers` | a body and two trailers |
//! | `/flaky/N?key=&status=&after=`, `/drop/N?key=` | N refusals with `Retry-After`, or N connections closed; then `attempt N+1` |
//! | `/upload` | counts and checks the body: `5 bytes, pattern` |
//! | `/refuse`, `/deaf` | 413 at once; reads no body and says nothing |
//! | `/gate/N?key=` | answers when N requests have come |

use crate::auth;
use crate::body::{self, Body, full};
use crate::state::{State, Upload};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A closed connection, if an error.
pub(crate) type Answer = io::Result<Response<Body>>;

/// A request's path and query, taken apart.
struct Asked<'a> {
    parts: &'a Parts,
    segments: Vec<&'a str>,
}

impl Asked<'_> {
    fn query(&self, name: &str) -> Option<String> {
        let query = self.parts.uri.query().unwrap_or_default();
        form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    fn number_of(&self, name: &str, or: u64) -> u64 {
        self.query(name).and_then(|text| text.parse().ok()).unwrap_or(or)
    }

    fn number(&self, or: u64) -> u64 {
        self.segments.get(1).and_then(|text| text.parse().ok()).unwrap_or(or)
    }

    fn text(&self, at: usize) -> &str {
        self.segments.get(at).copied().unwrap_or_default()
    }

    fn status(&self, or: u16) -> StatusCode {
        StatusCode::from_u16(self.number_of("status", or.into()) as u16).unwrap_or(StatusCode::BAD_REQUEST)
    }
}

pub(crate) async fn answer(state: Arc<State>, parts: Parts, incoming: Incoming) -> Answer {
    let asked = Asked { parts: &parts, segments: parts.uri.path().split('/').skip(1).collect() };
    let hits = state.hit(parts.uri.path());
    Ok(match asked.text(0) {
        "echo" => echo(&parts, incoming).await?,
        "status" => plain(StatusCode::from_u16(asked.number(200) as u16).unwrap_or(StatusCode::OK), "status\n"),
        "redirect" => match asked.number(1) {
            0 => echo(&parts, incoming).await?,
            left => {
                redirect(asked.status(302), &format!("/redirect/{}?status={}", left - 1, asked.status(302).as_u16()))
            }
        },
        "redirect-to" => redirect(asked.status(302), &asked.query("url").unwrap_or_default()),
        "loop" => redirect(StatusCode::FOUND, "/loop"),
        "cookies" => cookies(&asked),
        "basic" => {
            let known = auth::basic(&parts.headers, &header::AUTHORIZATION, asked.text(1), asked.text(2));
            guarded(known, &auth::basic_challenge())
        }
        "digest" => {
            // A client that has not been challenged yet sends its body in vain: nobody reads it here.
            let uri = parts.uri.path_and_query().map_or("/", |uri| uri.as_str());
            let known = auth::digest(&parts.headers, parts.method.as_str(), uri, asked.text(1), asked.text(2));
            guarded(known, &auth::digest_challenge())
        }
        "bearer" => guarded(auth::bearer(&parts.headers, asked.text(1)), "Bearer"),
        "bytes" => sized(&asked),
        "chunked" => found(body::sized(0, asked.number(1_000))),
        "gzip" => encoded("gzip", full(body::gzip(&crate::pattern::bytes(0, asked.number(1_000) as usize)))),
        "deflate" => encoded("deflate", full(body::zlib(&crate::pattern::bytes(0, asked.number(1_000) as usize)))),
        "raw-deflate" => {
            encoded("deflate", full(body::raw_deflate(&crate::pattern::bytes(0, asked.number(1_000) as usize))))
        }
        "bad-gzip" => encoded("gzip", full("this was never compressed")),
        "brotli" => encoded("br", full("nor was this")),
        "bomb" => encoded("gzip", body::bomb(asked.number(1 << 30))),
        "wait" => {
            tokio::time::sleep(Duration::from_millis(asked.number_of("ms", 100))).await;
            plain(StatusCode::OK, "waited\n")
        }
        "hang" => std::future::pending().await,
        "deaf" => {
            let _unread = incoming;
            std::future::pending().await
        }
        "drip" => {
            let pause = Duration::from_millis(asked.number_of("ms", 10));
            found(body::drip(asked.number_of("pieces", 10), asked.number_of("size", 100), pause))
        }
        "stall" => found(body::stalled(asked.number(100))),
        "endless" => found(body::sized(0, u64::MAX)),
        "broken" => found(body::broken(asked.number(100))),
        "short" => {
            with(found(body::broken(asked.number(100))), header::CONTENT_LENGTH, &(2 * asked.number(100)).to_string())
        }
        "big-header" => {
            with(found(full("big\n")), HeaderName::from_static("x-big"), &"x".repeat(asked.number(1_000) as usize))
        }
        "headers" => {
            let mut response = found(full("many\n"));
            for at in 0..asked.number(100) {
                let name = HeaderName::try_from(format!("x-many-{at}")).expect("a name");
                response.headers_mut().insert(name, HeaderValue::from(at));
            }
            response
        }
        "trailers" => trailers(),
        "flaky" | "drop" => {
            let attempt = state.hit(&format!("attempts of {}", asked.query("key").unwrap_or_default()));
            match (attempt > asked.number(1), asked.text(0)) {
                (true, _) => plain(StatusCode::OK, &format!("attempt {attempt}\n")),
                (false, "drop") => return Err(io::Error::other("dropped")),
                (false, _) => {
                    let refusal = plain(asked.status(503), "not yet\n");
                    with(refusal, header::RETRY_AFTER, &asked.number_of("after", 0).to_string())
                }
            }
        }
        "upload" => upload(&state, incoming).await,
        "refuse" => plain(StatusCode::PAYLOAD_TOO_LARGE, "too much\n"),
        "gate" => {
            let gate = state.gate(&asked.query("key").unwrap_or_default(), asked.number(1) as usize);
            gate.wait().await;
            plain(StatusCode::OK, "all here\n")
        }
        "" => plain(StatusCode::OK, "hello\n"),
        _ => plain(StatusCode::NOT_FOUND, &format!("nothing here, asked {hits} times\n")),
    })
}

fn found(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(text.to_owned()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// One more header; a value that is none makes it a plain 400.
fn with(mut response: Response<Body>, name: HeaderName, value: &str) -> Response<Body> {
    match HeaderValue::from_bytes(value.as_bytes()) {
        Ok(value) => {
            response.headers_mut().append(name, value);
            response
        }
        Err(_) => plain(StatusCode::BAD_REQUEST, "no such value\n"),
    }
}

fn encoded(coding: &str, body: Body) -> Response<Body> {
    with(found(body), header::CONTENT_ENCODING, coding)
}

fn redirect(status: StatusCode, to: &str) -> Response<Body> {
    with(plain(status, "elsewhere\n"), header::LOCATION, to)
}

fn guarded(known: bool, challenge: &str) -> Response<Body> {
    match known {
        true => plain(StatusCode::OK, "welcome\n"),
        false => with(plain(StatusCode::UNAUTHORIZED, "who are you?\n"), header::WWW_AUTHENTICATE, challenge),
    }
}

async fn echo(parts: &Parts, incoming: Incoming) -> Answer {
    let mut text = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version).into_bytes();
    let mut line = |name: &HeaderName, value: &HeaderValue| {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.push(b'\n');
    };
    parts.headers.iter().for_each(|(name, value)| line(name, value));
    let collected = incoming.collect().await.map_err(io::Error::other)?;
    if let Some(trailers) = collected.trailers() {
        trailers.iter().for_each(|(name, value)| line(name, value));
    }
    text.push(b'\n');
    text.extend_from_slice(&collected.to_bytes());
    Ok(with(found(full(text)), HeaderName::from_static("x-echo"), parts.method.as_str()))
}

fn cookies(asked: &Asked<'_>) -> Response<Body> {
    let sent =
        asked.parts.headers.get_all(header::COOKIE).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let sent = sent.collect::<Vec<_>>().join("; ");
    let mut response = match asked.text(1) {
        "set" => redirect(StatusCode::FOUND, "/cookies"),
        "give" => plain(StatusCode::OK, "given\n"),
        _ => return plain(StatusCode::OK, &format!("{sent}\n")),
    };
    let query = asked.parts.uri.query().unwrap_or_default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        response = with(response, header::SET_COOKIE, &format!("{name}={value}; Path=/"));
    }
    response
}

/// What `Range` asks for of `size` bytes: from, to before. `None` if nothing that can be had.
fn range(value: &str, size: u64) -> Option<(u64, u64)> {
    let (from, to) = value.strip_prefix("bytes=")?.split_once('-')?;
    let (from, to) = match (from, to) {
        ("", last) => (size.saturating_sub(last.parse().ok()?), size),
        (from, "") => (from.parse().ok()?, size),
        (from, to) => (from.parse().ok()?, to.parse::<u64>().ok()?.saturating_add(1).min(size)),
    };
    (from < to).then_some((from, to))
}

fn sized(asked: &Asked<'_>) -> Response<Body> {
    let size = asked.number(1_000);
    let wanted = asked.parts.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let wanted = wanted.filter(|_| asked.query("ranges").is_none_or(|word| word != "no"));
    let (status, from, to) = match wanted.map(|value| range(value, size)) {
        None => (StatusCode::OK, 0, size),
        Some(Some((from, to))) => (StatusCode::PARTIAL_CONTENT, from, to),
        Some(None) => {
            let refusal = plain(StatusCode::RANGE_NOT_SATISFIABLE, "no such bytes\n");
            return with(refusal, header::CONTENT_RANGE, &format!("bytes */{size}"));
        }
    };
    let body = if asked.parts.method == Method::HEAD { full("") } else { body::sized(from, to) };
    let mut response = with(found(body), header::CONTENT_LENGTH, &(to - from).to_string());
    *response.status_mut() = status;
    response = with(response, header::ACCEPT_RANGES, "bytes");
    response = with(response, header::ETAG, &format!("\"{size}\""));
    response = with(response, header::LAST_MODIFIED, "Wed, 01 Jan 2025 00:00:00 GMT");
    match status {
        StatusCode::PARTIAL_CONTENT => {
            with(response, header::CONTENT_RANGE, &format!("bytes {from}-{}/{size}", to - 1))
        }
        _ => response,
    }
}

fn trailers() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("c0ffee"));
    trailers.insert("x-rows", HeaderValue::from_static("7"));
    with(found(body::with_trailers("rows\n", trailers)), header::TRAILER, "x-checksum, x-rows")
}

async fn upload(state: &State, mut incoming: Incoming) -> Response<Body> {
    let mut upload = Upload { size: 0, is_pattern: true, complete: true };
    while let Some(frame) = incoming.frame().await {
        match frame.map(|frame| frame.into_data().unwrap_or_else(|_| Bytes::new())) {
            Ok(data) => {
                upload.is_pattern &= crate::pattern::matches(upload.size, &data);
                upload.size += data.len() as u64;
            }
            Err(_) => {
                upload.complete = false;
                break;
            }
        }
    }
    let what = if upload.is_pattern { "pattern" } else { "other" };
    let text = format!("{} bytes, {what}\n", upload.size);
    state.uploaded(upload);
    plain(StatusCode::OK, &text)
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn ranges() {
        assert_eq!(range("bytes=0-99", 1_000), Some((0, 100)));
        assert_eq!(range("bytes=990-2000", 1_000), Some((990, 1_000)));
        assert_eq!(range("bytes=-10", 1_000), Some((990, 1_000)));
        assert_eq!(range("bytes=10-", 1_000), Some((10, 1_000)));
        assert_eq!(range("bytes=1000-", 1_000), None);
        assert_eq!(range("lines=1-2", 1_000), None);
        assert_eq!(range("bytes=0-18446744073709551615", 1_000), Some((0, 1_000)));
    }
}
