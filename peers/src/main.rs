//! strait beside what a user would pick instead: request and response at the same sizes, between two processes, in one
//! run. Knows only which half to run.
//!
//! A server process for each peer, so that one that does not start, or that ends, takes no other with it; this process is
//! the client of all of them and gives them their turns.

mod answers;
mod bare;
mod channels;
mod flow;
mod iceoryx;
mod kinds;
mod ours;
mod round;
mod rpc;
mod table;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

capnp::generated_code!(mod cache_capnp);
capnp::generated_code!(mod fetch_capnp);

/// Measures strait beside other ways for two processes to ask and answer.
///
/// Every peer answers the same requests of 64 bytes with the same bytes, which its server holds in memory beforehand. A
/// round begins before the request is built and ends after the first and the last eight bytes of the answer were read and
/// compared with what they must be, everything received being released again. Peers of one size, way of waiting and
/// pinning take turns in blocks.
#[derive(Debug, Parser)]
#[command(name = "perf_demo peers", args_conflicts_with_subcommands = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: table::Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures messages of 64 bytes one way, as fast as they go.
    Stream(flow::Options),
    /// The other process.
    #[command(hide = true)]
    Serve(round::Serve),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        None => table::run(&cli.options),
        Some(Command::Stream(options)) => flow::run(options),
        Some(Command::Serve(serve)) => round::serve(serve).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("peers: {error:#}");
        ExitCode::FAILURE
    })
}
