//! Downloads any number of URLs side by side, each with a progress bar, into files of their names. A body that nobody has
//! time for waits at its server: neither this process nor the worker holds more of it than a window.
//!
//! `cargo run --release -p proc_curl --example download -- URL...`

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proc_curl::{Client, Redirects, Timeouts};
use std::error::Error;
use std::fs::File;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let urls: Vec<String> = std::env::args().skip(1).collect();
    if urls.is_empty() {
        eprintln!("usage: download URL...");
        return ExitCode::FAILURE;
    }
    let client = match Client::new() {
        Ok(client) => client,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let bars = MultiProgress::new();
    let failed = std::thread::scope(|scope| {
        let running: Vec<_> = urls
            .iter()
            .map(|url| {
                let (client, bar) = (client.clone(), bars.add(ProgressBar::no_length()));
                scope.spawn(move || {
                    let done = download(&client, url, &bar);
                    match &done {
                        Ok(()) => bar.finish(),
                        Err(error) => bar.abandon_with_message(format!("{url}: {error}")),
                    }
                    done.is_err()
                })
            })
            .collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).filter(|failed| *failed).count()
    });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn download(client: &Client, url: &str, bar: &ProgressBar) -> Result<(), Box<dyn Error + Send + Sync>> {
    let name = url.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("index.html");
    let style = "{msg:24!} {bar:40} {bytes:>12} {bytes_per_sec:>14} {eta:>5}";
    bar.set_style(ProgressStyle::with_template(style)?);
    bar.set_message(name.to_owned());
    // Any time in all, but not a minute without a byte.
    let patient = Timeouts { total: None, idle: Some(Duration::from_secs(60)), ..Timeouts::default() };
    let mut response = client.get(url).timeouts(patient).redirects(Redirects::up_to(10)).send()?;
    if response.status() != 200 {
        return Err(format!("status {}", response.status()).into());
    }
    if let Some(length) = response.content_length() {
        bar.set_length(length);
    }
    let mut file = File::create(name)?;
    while let Some(chunk) = response.chunk()? {
        bar.inc(chunk.write_to(&mut file)?);
    }
    Ok(())
}
