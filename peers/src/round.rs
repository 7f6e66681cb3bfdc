//! The two halves of a peer, and how the server's is told what to do: `serve N` in a line of its own means to answer so
//! many requests, `take N` to receive so many that want no answer, and to say so then.

use crate::answers::Request;
use crate::iceoryx::Leavings;
use crate::kinds::{Peer, Wait};
use crate::{bare, channels, iceoryx, ours, rpc};
use anyhow::bail;
use clap::Args;
use perf_demo::cpus::Cpus;
use perf_demo::other::{self, Other};
use std::io::BufRead;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The client's half.
pub(crate) trait Asks {
    /// Asks for one of the two answers; whether what came was right.
    fn ask(&mut self, request: &Request) -> anyhow::Result<bool>;

    /// Sends so many requests that nobody answers.
    fn send(&mut self, _count: u32) -> anyhow::Result<()> {
        bail!("has no way of its own to send without an answer")
    }
}

/// The server's half.
pub(crate) trait Serves {
    /// Answers so many requests, or all there ever are.
    fn serve(&mut self, rounds: u32) -> anyhow::Result<()>;

    /// Receives so many requests.
    fn take(&mut self, _count: u32) -> anyhow::Result<()> {
        bail!("has no way of its own to send without an answer")
    }
}

/// What both halves know.
#[derive(Args, Clone, Debug)]
pub(crate) struct Serve {
    #[arg(long)]
    pub(crate) peer: Peer,
    #[arg(long)]
    pub(crate) wait: Wait,
    #[arg(long)]
    pub(crate) bytes: usize,
    /// A directory of this peer's own.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The server's CPU.
    #[arg(long)]
    pub(crate) cpu: Option<usize>,
    /// Whether both run on one CPU.
    #[arg(long)]
    pub(crate) together: bool,
}

impl Serve {
    /// As arguments of this program.
    fn args(&self) -> Vec<String> {
        let mut args = vec![
            "serve".to_owned(),
            format!("--peer={}", self.peer.name()),
            format!("--wait={}", self.wait.name()),
            format!("--bytes={}", self.bytes),
            format!("--dir={}", self.dir.display()),
        ];
        args.extend(self.cpu.map(|cpu| format!("--cpu={cpu}")));
        args.extend(self.together.then(|| "--together".to_owned()));
        args
    }
}

/// The other process: answers what it is told to, until its input ends.
pub(crate) fn serve(options: &Serve) -> anyhow::Result<()> {
    other::follow_parent()?;
    // Before there are other threads, which inherit it.
    if options.cpu.is_some() {
        Cpus::allowed()?.go_to(options.cpu)?;
    }
    // What it says is where to find it.
    let (mut half, place): (Box<dyn Serves>, String) = match options.peer {
        Peer::Line => bare::serve_line(options)?,
        Peer::Futex => bare::serve_futex()?,
        Peer::Echo | Peer::Socket => bare::serve_socket(options)?,
        Peer::Strait | Peer::StraitFresh => ours::serve(options)?,
        Peer::Iceoryx2Rr | Peer::Iceoryx2RrCopy => iceoryx::serve_requests(options)?,
        Peer::Iceoryx2PubSub => iceoryx::serve_topics(options)?,
        Peer::IpcBytes => channels::serve_bytes(options)?,
        Peer::IpcShared => channels::serve_shared(options)?,
        Peer::CapnpRpc => rpc::serve(options)?,
    };
    other::ready()?;
    other::say(&place)?;
    for order in std::io::stdin().lock().lines() {
        let order = order?;
        match order.split_once(' ') {
            Some(("serve", rounds)) => half.serve(rounds.parse()?)?,
            Some(("take", count)) => {
                half.take(count.parse()?)?;
                other::say("taken")?;
            }
            _ => bail!("what is {order}"),
        }
    }
    Ok(())
}

/// A peer as the client has it: its server process, and this side's half.
pub(crate) struct Pair {
    half: Box<dyn Asks>,
    other: Other,
    /// Dropped when both are gone.
    leavings: Leavings,
}

impl Pair {
    pub(crate) fn start(options: &Serve) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&options.dir)?;
        let leavings = Leavings::of(options);
        let mut other = Other::start(options.args())?;
        let place = other.hear()?;
        let half: Box<dyn Asks> = match options.peer {
            Peer::Line => bare::line(other.pid(), &place, options)?,
            Peer::Futex => bare::futex(other.pid(), &place)?,
            Peer::Echo | Peer::Socket => bare::socket(options)?,
            Peer::Strait | Peer::StraitFresh => ours::ask(options)?,
            Peer::Iceoryx2Rr | Peer::Iceoryx2RrCopy => iceoryx::requests(options)?,
            Peer::Iceoryx2PubSub => iceoryx::topics(options)?,
            Peer::IpcBytes => channels::bytes(place)?,
            Peer::IpcShared => channels::shared(place)?,
            Peer::CapnpRpc => rpc::ask(options)?,
        };
        Ok(Self { half, other, leavings })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.other.pid()
    }

    /// Runs a block: `each` is told of every round whether it is a warm-up, how long it took, and whether it was right.
    pub(crate) fn block(
        &mut self,
        warm: u32,
        rounds: u32,
        mut each: impl FnMut(bool, Duration, bool),
    ) -> anyhow::Result<()> {
        self.other.tell(&format!("serve {}", warm + rounds))?;
        for round in 0..warm + rounds {
            let start = Instant::now();
            let right = self.half.ask(&crate::answers::request(u64::from(round & 1)))?;
            each(round < warm, start.elapsed(), right);
        }
        Ok(())
    }

    /// Sends so many messages one way; how long it took until the last was received.
    pub(crate) fn flow(&mut self, count: u32) -> anyhow::Result<Duration> {
        self.other.tell(&format!("take {count}"))?;
        let start = Instant::now();
        self.half.send(count)?;
        self.other.hear()?;
        Ok(start.elapsed())
    }

    /// Lets it end.
    pub(crate) fn finish(self) {
        let Self { half, other, leavings } = self;
        drop(half);
        other.finish();
        drop(leavings);
    }
}

/// How long anything may take that is polled for: a peer may lose what was sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks until there is something.
#[inline]
pub(crate) fn poll<T>(together: bool, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let mut looks = 0_u32;
    let mut since = None;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        looks = looks.wrapping_add(1);
        if together {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
        if looks.is_multiple_of(1 << 16) && since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            bail!("nothing came in {PATIENCE:?}");
        }
    }
}
