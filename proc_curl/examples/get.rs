//! The ten lines: prints what is at a URL. The worker, `procCurlI`, is found beside this program or in `PATH`.
//!
//! `cargo build -p proc_curl_worker && cargo run -p proc_curl --example get -- https://example.org/`

use proc_curl::{Client, Redirects};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("usage: get URL")?;
    let client = Client::new()?;
    let response = client.get(&url).redirects(Redirects::up_to(10)).decompress().send()?;
    eprintln!("{} from {url}", response.status());
    println!("{}", response.text()?);
    Ok(())
}
