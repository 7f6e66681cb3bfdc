//! What strait costs, measured: a file cache and its client, as two real processes.
//!
//! Plainly, this process is the client and starts the server itself ([`driver`]); `serve` and `client` are the same
//! halves by hand. Knows only which half to run and what to exit with.

mod adaptive;
mod chart;
mod classic;
mod cli;
mod client;
mod control;
mod cost;
mod driver;
mod floor;
mod goals;
mod group;
mod host;
mod inline;
mod memcpy;
mod multicast;
mod opening;
mod payload;
mod peers;
mod plot;
mod report;
mod rings;
mod scale;
mod server;
mod shm;
mod stop;
mod store;
mod stream;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;
use stop::Stop;

capnp::generated_code!(mod cache_capnp);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Stop::watch().and_then(|stop| {
        let done = match &cli.command {
            None => driver::run(&cli.measure, &cli.files.file, &stop),
            Some(Command::Serve(serve)) => server::run(serve, &stop),
            Some(Command::Client(client)) => client::run(client, &stop),
            Some(Command::Inline(inline)) => inline::run(inline),
            Some(Command::Open(open)) => opening::run(open),
            Some(Command::Rings(rings)) => rings::run(rings, &stop),
            Some(Command::Memcpy(memcpy)) => memcpy::run(memcpy, &stop),
            Some(Command::Stream(streaming)) => stream::run(streaming),
            Some(Command::Multicast(casting)) => multicast::run(casting),
            Some(Command::Adaptive(spacing)) => adaptive::run(spacing),
            Some(Command::Cost(cost)) => cost::run(cost, &stop),
            Some(Command::Goals(goals)) => goals::run(goals),
            Some(Command::Peers { args }) => peers::run(args),
            Some(Command::Scale(scale)) => scale::run(scale, &stop),
            Some(Command::Host(host)) => host::run(host),
        };
        match stop.signal() {
            // Being told to stop is no failure of a server; of a measurement it is, and a shell wants to know which.
            Some(_) if matches!(cli.command, Some(Command::Serve(_))) => Ok(ExitCode::SUCCESS),
            Some(signal) => Ok(ExitCode::from(128_u8.saturating_add(signal))),
            None => done,
        }
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("perf_demo: {error:#}");
        ExitCode::from(if error.is::<cli::Usage>() { 2 } else { 1 })
    })
}
