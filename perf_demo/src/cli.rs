//! The command line: what can be asked for, and how sizes are spelt. Values only.

use crate::payload::Size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use perf_demo::cpus::Pin;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use thiserror::Error;

/// Asked for something that cannot be: exit code 2, as for a wrong option.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Measures what it costs to fetch a file from another process's cache, with strait and without.
///
/// Started plainly, perf_demo starts its own server as a second process, asks it for files of several sizes by
/// several techniques, checks every answer, prints a table and a chart, and exits 0. It takes about a minute and less
/// than 4 GiB of memory.
///
/// A round is one request and its answer. Its time starts before the request is built and ends after the first and the
/// last byte of the file were read and compared with what they must be. Rounds alternate between two files whose bytes
/// all differ (the second is the complement of the first). Before and after each row every chunk's size and XXH3 hash
/// is verified, untimed. Warm-up rounds are not counted.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_long_help = AFTER, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) measure: Measure,
    #[command(flatten)]
    pub(crate) files: Files,
}

const AFTER: &str = "\
TECHNIQUES
  classic       Cap'n Proto over a Unix stream socket: written with vectored writes straight from the message's
                segments, socket buffers of 4 MiB, read into one reused buffer, decoded where it lies.
  bare          The same bytes over the same socket, not decoded: what the socket alone costs.
  shm           strait, read in place: the server is trusted.
  snapshot      strait, copied before it is decoded: the server is not trusted.
  floor-line    Two cache lines in shared memory, written in turn in a tight loop; 10 round trips per sample.
  floor-socket  Eight bytes echoed over a blocking Unix stream socket.

FLOORS
  All techniques of one size, wait and pinning take turns with their floor in blocks of at most 1,000 rounds, because
  what a machine can do changes from minute to minute. Rows that spin or adapt are compared with floor-line, rows that
  park with floor-socket. In --json the floor's row follows the rows it belongs to and bears their payload_bytes.

WAITING
  spin      Looks again and again; a whole CPU each. Sockets are read and written without blocking.
  adaptive  Looks for some 25 us, then sleeps.
  park      Sleeps at once: sockets block. The rows tell how often the client slept per receive: strait counts this
            itself, for sockets it is the thread's voluntary context switches.

EXIT STATUS
  0 if everything was measured and verified, 1 if not, 2 for what cannot be asked for (an option, a size, a file that
  cannot be read), 128 + N when stopped by signal N. `serve` exits 0 when stopped by SIGINT or SIGTERM.

EXAMPLES
  perf_demo
  perf_demo --technique shm,classic --payload 64B,1MiB --wait spin --pin split
  perf_demo --file /usr/bin/gdb --file /etc/services --json
  perf_demo serve --run-dir /tmp/cache      (and, in another terminal:)
  perf_demo client --run-dir /tmp/cache --payload 100KiB";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the server half until it is told to stop (SIGINT, SIGTERM). Clients are served one after the other.
    Serve(Serve),
    /// Runs the measuring half against a server that `serve` started.
    Client(Client),
    /// Measures what it takes to meet: a session from nothing to its first answer beside a bare socket that does as much,
    /// what a session commits, and a request beside thousands of idle sessions.
    Open(Opening),
    /// Measures rings by themselves, between threads and between processes, beside other crates' queues.
    Rings(Rings),
    /// Measures what copying costs at which size, and what lending a message costs instead.
    Memcpy(Memcpy),
    /// Measures one-way streams of messages beside a bare ring between the same two processes.
    Stream(Streaming),
    /// Measures what publishing costs with 1 to 8 subscribers.
    Multicast(Casting),
    /// Measures calls some microseconds apart: waiting adaptively beside spinning.
    Adaptive(Spacing),
    /// Measures small messages inside their slots and on loan: what the limit between the two rests on. Both processes
    /// spin, then park, on CPUs of their own.
    Inline(Inline),
    /// Measures what messages, waiting, sessions and channels cost in CPU time, memory and descriptors.
    Cost(crate::cost::Options),
    /// Measures how the cost of a message grows with its size, and with what there is beside it: messages under way,
    /// channels, sessions, threads.
    Scale(crate::scale::Options),
    /// Measures strait beside iceoryx2, ipc-channel, capnp-rpc and a bare socket, in one run.
    ///
    /// That is a program of its own in peers/, since nobody else is to compile those crates: cargo builds it first, which
    /// takes minutes and, the first time, the network. All arguments are that program's.
    #[command(disable_help_flag = true)]
    Peers {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
        args: Vec<std::ffi::OsString>,
    },
    /// Runs what the goals are measured by, and says which are met.
    Goals(crate::goals::Options),
    /// The other process of `cost` and `scale`.
    #[command(hide = true)]
    Host(Host),
}

#[derive(Args, Debug)]
pub(crate) struct Inline {
    /// Requests per size and way.
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    pub(crate) rounds: usize,
    /// The other process.
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) serve: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Host {
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
    #[arg(long, value_name = "CPU")]
    pub(crate) cpu: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct Casting {
    /// Bursts for each number of subscribers and round.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(10..))]
    pub(crate) bursts: u32,
    /// Rounds, each of which starts its subscribers anew.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Another process: where to meet, where to run, how to wait.
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) serve: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "CPU")]
    pub(crate) cpu: Option<usize>,
    #[arg(long, hide = true)]
    pub(crate) park: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Spacing {
    /// Calls for each gap and turn.
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(10..))]
    pub(crate) calls: u32,
    /// Turns of each way.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) turns: u32,
    /// The other process: where to meet, where to run.
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) serve: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "CPU")]
    pub(crate) cpu: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct Streaming {
    /// Messages in a turn.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) messages: u64,
    /// Measures only the bare ring and the rows whose names contain this.
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(crate) only: String,
    /// Turns of each row.
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) turns: u32,
    /// The other process: where to meet, the parent's page, where to run.
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) serve: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "FD")]
    pub(crate) page: Option<i32>,
    #[arg(long, hide = true, value_name = "CPU")]
    pub(crate) cpu: Option<usize>,
}

/// Measures rings by themselves: one producer or two, one consumer or two, between threads, and with one of each between
/// two processes.
///
/// Beside strait's rings, in turns: rtrb and crossbeam's ArrayQueue, where they can be, and a queue written as Dmitry Vyukov
/// published it. Every value carries 56 bytes.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_RINGS, max_term_width = 110)]
pub(crate) struct Rings {
    /// Timed values of each row.
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    pub(crate) values: u64,
    /// Slots of the ring while values are timed.
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = slots)]
    pub(crate) slots: usize,
    /// Values in each of the nine turns that measure what a value costs when the ring is kept busy.
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=100_000_000))]
    pub(crate) busy: u64,
    /// Prints one JSON object per row on stdout, and no table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Also draws the latency against the share of values that had no more, into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// The other process.
    #[arg(long, hide = true, value_name = "WHERE")]
    pub(crate) other: Option<String>,
}

fn slots(text: &str) -> Result<usize, String> {
    let slots = text.parse().map_err(|_| "not a number".to_owned())?;
    if (2..=512).contains(&slots) { Ok(slots) } else { Err("2 to 512".to_owned()) }
}

const AFTER_RINGS: &str = "\
COLUMNS
  send      Time of the push that succeeded, with one reading of the clock (some 20 to 40 ns).
  receive   Time of the pop that succeeded, likewise.
  latency   From the end of the push to the end of the pop. Producers are not slowed down, so the ring is full most of the
            time, and this is mostly the time spent behind the values before.
  retries   Pushes that found the ring full before the one that succeeded, and pops that found it empty, per value.
  busy      Time per value, both ends at work at once, through a ring of 1024 slots, no clock read in between: the median
            of nine turns. The ratio is the median of the nine ratios with the queue named.

THREADS
  Producers and consumers are sent to the CPUs in turn. Whoever finds the ring full or empty spins, and lets others run
  every 64th time.

MARKS
  busy machine         others used more than a tenth of a CPU while all queues of that kind took turns
  crowded              more threads than CPUs: they wait for each other's time slices
  not pinned           a thread could not be sent to its CPU
  VALUES LOST          not everything arrived, or not once

EXAMPLES
  perf_demo rings
  perf_demo rings --values 100000 --json
  perf_demo rings --plot rings.svg";

/// Measures what copying costs at which size, and what lending a message costs instead.
///
/// Copies between two warm pieces of memory, in steps of 256 bytes to 16 KiB and in powers of two to 16 MiB; tells the five
/// sizes at which most bytes move per tick of the CPU's counter. Then sends messages inside
/// their slots and on loan, by one thread and between two CPUs, and says up to which size copying them into slots pays.
#[derive(Args, Debug)]
pub(crate) struct Memcpy {
    /// Rounds of each size. A round copies at least 16 KiB; the median counts.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) rounds: u32,
    /// Prints one JSON object per size, and one per message, on stdout, and no table (which shows only some of the sizes).
    #[arg(long)]
    pub(crate) json: bool,
    /// Also draws both against the size into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Opening {
    /// Sessions of each kind to open.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub(crate) rounds: usize,
    /// Idle sessions to hold.
    #[arg(long, default_value_t = 4000, value_name = "N")]
    pub(crate) idle: usize,
    /// Requests per turn.
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    pub(crate) requests: usize,
    /// The other process.
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) serve: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) files: Files,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Exits with its first client, or with its parent, which must be this process.
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) child_of: Option<i32>,
}

#[derive(Args, Debug)]
pub(crate) struct Client {
    #[command(flatten)]
    pub(crate) measure: Measure,
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Args, Debug)]
pub(crate) struct Files {
    /// A file for the server to hold; may be repeated. Read once, when the server starts.
    ///
    /// Measured instead of the generated payloads, unless --payload asks for those too. Each is measured together with
    /// a complement of itself that the server makes.
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Place {
    /// The directory where the two halves meet; made if missing, and removed again by the server that made it.
    ///
    /// It must belong to the user and be writable by nobody else. Default: perf_demo in $XDG_RUNTIME_DIR, or
    /// /tmp/perf_demo-UID.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
}

impl Place {
    pub(crate) fn dir(&self) -> PathBuf {
        let runtime = || std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let own = || PathBuf::from(format!("/tmp/perf_demo-{}", nix::unistd::geteuid()));
        self.run_dir.clone().unwrap_or_else(|| runtime().map_or_else(own, |dir| dir.join("perf_demo")))
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Measure {
    /// Sizes of generated files, separated by commas [default: 64B,100KiB,1MiB,10MiB,100MiB,1GiB].
    ///
    /// A number with or without a unit: B, KB, MB, GB (powers of 1000), KiB, MiB, GiB (powers of 1024).
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = Size::parse)]
    pub(crate) payload: Vec<Size>,

    /// What to measure, separated by commas. Floors come by themselves.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "classic,bare,shm,snapshot")]
    pub(crate) technique: Vec<Technique>,

    /// How both sides wait, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "spin,adaptive,park")]
    pub(crate) wait: Vec<WaitMode>,

    /// Which CPUs the two processes run on, separated by commas [default: split where there are two, else same].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) pin: Vec<Pin>,

    /// Timed rounds of each row [default: by size, 20,000 small ones down to 5 of a copied GiB].
    ///
    /// By default a group of rows stops early after some seconds, where the machine is busy with other things.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: Option<u32>,

    /// Has the server build each answer anew, instead of once.
    ///
    /// For classic, shm and snapshot; bare and the floors have nothing to build.
    #[arg(long)]
    pub(crate) fresh: bool,

    /// Prints one JSON object per row on stdout, and no table.
    #[arg(long)]
    pub(crate) json: bool,

    /// Also draws the time against the size, both logarithmic, into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}

/// A way to get a file, or a floor under all ways.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Technique {
    /// Cap'n Proto over a Unix stream socket
    Classic,
    /// The same bytes, not decoded
    Bare,
    /// strait, read in place
    Shm,
    /// strait, copied and then decoded
    Snapshot,
    /// Two cache lines, written in turn
    FloorLine,
    /// Eight bytes echoed over a blocking socket
    FloorSocket,
}

impl Technique {
    /// As it is spelt everywhere.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Bare => "bare",
            Self::Shm => "shm",
            Self::Snapshot => "snapshot",
            Self::FloorLine => "floor-line",
            Self::FloorSocket => "floor-socket",
        }
    }

    pub(crate) fn is_floor(self) -> bool {
        matches!(self, Self::FloorLine | Self::FloorSocket)
    }

    /// Whether its time grows with the payload.
    pub(crate) fn moves_bytes(self) -> bool {
        matches!(self, Self::Classic | Self::Bare | Self::Snapshot)
    }
}

/// How a side waits, whatever it waits for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WaitMode {
    /// Never sleeps
    Spin,
    /// Spins a while, then sleeps
    Adaptive,
    /// Sleeps at once
    Park,
}

impl WaitMode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Park => "park",
        }
    }

    pub(crate) fn floor(self) -> Technique {
        match self {
            Self::Spin | Self::Adaptive => Technique::FloorLine,
            Self::Park => Technique::FloorSocket,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_are_as_spelt_on_the_command_line_and_in_json() -> serde_json::Result<()> {
        for technique in Technique::value_variants() {
            let value = technique.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(value.as_deref(), Some(technique.name()));
            assert_eq!(serde_json::to_value(technique)?, technique.name());
        }
        Ok(())
    }
}
