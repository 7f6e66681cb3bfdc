//! Fetches a URL that somebody else chose, as a link preview or a webhook does: never from an address that is not public,
//! whatever a name resolves to when the connection is made and wherever redirects lead; never more than a megabyte after
//! decompression, never longer than ten seconds, never anything but HTTP.
//!
//! `cargo run -p proc_curl --example fetcher -- http://169.254.169.254/latest/meta-data/` is refused.

use proc_curl::{AddressPolicy, Client, Error, Redirects, Response, Why};
use std::process::ExitCode;
use std::time::Duration;

/// The largest page, in bytes.
const MOST: u64 = 1 << 20;

fn fetch(client: &Client, url: &str) -> Result<String, Error> {
    client
        .get(url)
        .address_policy(AddressPolicy::public_only())
        .redirects(Redirects::up_to(5))
        .decompress()
        .body_max(MOST)
        .timeout(Duration::from_secs(10))
        .send()
        .and_then(Response::text)
}

fn main() -> ExitCode {
    let Some(url) = std::env::args().nth(1) else {
        eprintln!("usage: fetcher URL");
        return ExitCode::FAILURE;
    };
    match Client::new().and_then(|client| fetch(&client, &url)) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let kind = match error.failure().map(|failure| failure.why) {
                Some(Why::PolicyDenied) => "that address is not for you",
                Some(Why::ProtocolDenied) => "only http and https are fetched",
                Some(Why::BodyTooLarge) => "that is too large",
                _ if error.is_timeout() => "that takes too long",
                _ => "that cannot be fetched",
            };
            eprintln!("{kind}: {error}");
            ExitCode::FAILURE
        }
    }
}
