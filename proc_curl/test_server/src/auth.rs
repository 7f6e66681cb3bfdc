//! Who may come in: basic, digest (MD5, `qop=auth`) and bearer.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, header};
use md5::{Digest, Md5};

const REALM: &str = "strait";
/// One for all: the tests are of clients, not of servers.
const NONCE: &str = "c0ffee";

/// The word after the scheme in the header `name`.
fn credentials<'a>(headers: &'a HeaderMap, name: &header::HeaderName, scheme: &str) -> Option<&'a str> {
    let value = headers.get(name)?.to_str().ok()?;
    let (found, rest) = value.split_once(' ')?;
    found.eq_ignore_ascii_case(scheme).then_some(rest.trim())
}

/// Whether `headers` carry `user:password` in the header `name`.
pub(crate) fn basic(headers: &HeaderMap, name: &header::HeaderName, user: &str, password: &str) -> bool {
    let found = credentials(headers, name, "basic").and_then(|text| BASE64_STANDARD.decode(text).ok());
    found.is_some_and(|found| found == format!("{user}:{password}").into_bytes())
}

pub(crate) fn bearer(headers: &HeaderMap, token: &str) -> bool {
    credentials(headers, &header::AUTHORIZATION, "bearer") == Some(token)
}

pub(crate) fn digest_challenge() -> String {
    format!("Digest realm=\"{REALM}\", qop=\"auth\", algorithm=MD5, nonce=\"{NONCE}\"")
}

pub(crate) fn basic_challenge() -> String {
    format!("Basic realm=\"{REALM}\"")
}

fn md5(text: &str) -> String {
    Md5::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn digest(headers: &HeaderMap, method: &str, uri: &str, user: &str, password: &str) -> bool {
    let Some(text) = credentials(headers, &header::AUTHORIZATION, "digest") else { return false };
    let field = |name: &str| {
        let pairs = text.split(',').filter_map(|pair| pair.trim().split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value.trim_matches('"'))
    };
    let who = md5(&format!("{user}:{REALM}:{password}"));
    let what = md5(&format!("{method}:{uri}"));
    let (count, own, kind) = (field("nc"), field("cnonce"), field("qop"));
    let expected = md5(&format!("{who}:{NONCE}:{count}:{own}:{kind}:{what}"));
    field("username") == user && field("uri") == uri && field("nonce") == NONCE && field("response") == expected
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_who_knows() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Basic dXNlcjpzZWNyZXQ="));
        assert!(basic(&headers, &header::AUTHORIZATION, "user", "secret"));
        assert!(!basic(&headers, &header::AUTHORIZATION, "user", "guess"));
        assert!(!bearer(&headers, "dXNlcjpzZWNyZXQ="));
        assert!(!digest(&headers, "GET", "/", "user", "secret"));
    }
}
