//! How the halves agree on what comes next: lines of JSON over a Unix stream socket. Untimed, and silent while rounds
//! run.

use crate::cli::{Technique, WaitMode};
use crate::payload::Source;
use anyhow::{Context, bail};
use nix::sys::socket::{MsgFlags, recv};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What a client tells the server.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub(crate) enum Order {
    /// Hold the two files of this source, and no others.
    Hold { source: Source, fresh: bool },
    /// Accept what comes next in this way.
    Open { way: Way },
    /// Close what was open in this way: the client has done so.
    Close { way: Way },
    /// From here on, wait like this, and run there.
    Settle { settled: Settled },
    /// Serve so many rounds.
    Block { technique: Technique, rounds: u32 },
}

/// Ways for requests and answers to go.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// A channel read in place.
    InPlace,
    /// A channel read in snapshots.
    Snapshot,
    /// The socket of `classic` and `bare`.
    Stream,
    /// The socket of `floor-socket`.
    Echo,
}

/// How a side waits, and where it runs.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Settled {
    pub(crate) wait: WaitMode,
    /// The server's CPU.
    pub(crate) cpu: Option<usize>,
    /// After how many looks in vain a spinning side lets others run: at once where both share a CPU.
    pub(crate) patience: u32,
}

/// What the server says first: who it is, where the line of `floor-line` is, and what files it was given.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Welcome {
    pub(crate) pid: u32,
    pub(crate) line_fd: i32,
    pub(crate) files: Vec<Source>,
}

/// What the server says to each order but `Block`, or when it must give up.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Done,
    Failed(String),
}

/// The longest line anybody has reason to send.
const LINE_MAX: u64 = 1 << 20;

/// One end of the control socket.
#[derive(Debug)]
pub(crate) struct Control {
    lines: BufReader<UnixStream>,
}

impl Control {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { lines: BufReader::new(stream) }
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        self.lines.get_ref()
    }

    pub(crate) fn say<T: Serialize>(&mut self, what: &T) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        self.lines.get_mut().write_all(&line).context("the other half is gone")
    }

    /// The next line; `None` once the other half is gone.
    pub(crate) fn hear<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        let mut line = Vec::new();
        match (&mut self.lines).take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_slice(&line).context("the other half is not of this version")?)),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until an order was carried out.
    pub(crate) fn done(&mut self) -> anyhow::Result<()> {
        match self.hear()? {
            Some(Answer::Done) => Ok(()),
            Some(Answer::Failed(why)) => bail!("server: {why}"),
            None => bail!("the server is gone"),
        }
    }

    /// What the server said last, for a client whose round just failed.
    pub(crate) fn last_words(&mut self) -> Option<String> {
        self.stream().set_read_timeout(Some(LAST_WORDS)).ok()?;
        match self.hear::<Answer>() {
            Ok(Some(Answer::Failed(why))) => Some(format!("server: {why}")),
            Ok(None) => Some("the server is gone".into()),
            _ => None,
        }
    }

    /// For whoever waits in shared memory, where nothing else tells.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(recv(self.stream().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT), Ok(0))
    }
}

const LAST_WORDS: Duration = Duration::from_secs(1);
