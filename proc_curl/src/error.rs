//! What can go wrong, by name: the request itself as libcurl judged it, or the worker. Values only.

use crate::response::{Head, Info};
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use strait::{AllocError, ConnectError};
use thiserror::Error;

/// Why a request has no answer, or not all of one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The request failed, and the worker is well.
    #[error(transparent)]
    Failed(Box<Failure>),
    /// There is no worker to send it to.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The worker ended while it had the request. A request that could be made again has been.
    #[error("the worker died{}, {bytes} bytes into the body{}", shown_exit(.exit), shown_stderr(.stderr))]
    WorkerDied {
        /// How, if it was this process's child.
        exit: Option<ExitStatus>,
        /// The end of what it wrote to its standard error, if this process reads that.
        stderr: String,
        /// How much of the body had been delivered.
        bytes: u64,
    },
    /// The worker said what a worker does not say. The connection to it is given up.
    #[error("the worker broke the protocol: {what}")]
    WorkerMisbehaved {
        /// What it did.
        what: String,
    },
    /// The worker said nothing by the request's deadline, which is the worker's to keep.
    #[error("the worker has not answered in time")]
    WorkerSilent,
    /// What was to be sent as the request's body could not be read.
    #[error("cannot read the request's body: {0}")]
    Source(#[source] io::Error),
    /// A response's body could not be read where it lies, or not be written where it was to go.
    #[error("cannot copy the response's body: {0}")]
    Copy(#[source] io::Error),
    /// The shared memory for the request is exhausted: responses, or bodies being sent, hold it.
    #[error(transparent)]
    Memory(#[from] AllocError),
    /// The client belongs to the process this one was forked from.
    #[error("the client belongs to the process this one was forked from")]
    ForkedProcess,
}

fn shown_exit(exit: &Option<ExitStatus>) -> String {
    exit.map_or_else(String::new, |exit| format!(" ({exit})"))
}

fn shown_stderr(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

impl Error {
    /// libcurl's number for it (`CURLcode`), which is the exit code of curl. Faults of the worker have those of what curl
    /// would have met: 2 if there is none, 56 if it died, 27 without memory, 26 and 23 for bodies.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Failed(failure) => failure.code,
            Self::Launch(_) | Self::ForkedProcess => 2,
            Self::WorkerDied { .. } | Self::WorkerMisbehaved { .. } => 56,
            Self::WorkerSilent => 28,
            Self::Source(_) => 26,
            Self::Copy(_) => 23,
            Self::Memory(_) => 27,
        }
    }

    /// What is known of a request that failed by itself.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// Whether it failed for want of time, of whichever kind.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.code() == 28
    }
}

/// How a request failed.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{text} ({name}, curl's code {code}, {stage})")]
#[non_exhaustive]
pub struct Failure {
    /// libcurl's number (`CURLcode`).
    pub code: u32,
    /// Its name, as in `CURLE_COULDNT_CONNECT`.
    pub name: String,
    /// What the number does not say.
    pub why: Why,
    /// How far the request had come.
    pub stage: Stage,
    /// The system's number (`errno`), if it has to do with it.
    pub os_error: Option<i32>,
    /// libcurl's words, or the worker's.
    pub text: String,
    /// How much of the body had been delivered.
    pub bytes: u64,
    /// What had been heard from servers until then.
    pub heads: Vec<Head>,
    /// Times, sizes and addresses until then.
    pub info: Info,
}

/// What libcurl's number does not say about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// Nothing: the number says it all.
    Code,
    /// The address policy refused every address there was.
    PolicyDenied,
    /// The URL, or a redirect, has a protocol that is not allowed.
    ProtocolDenied,
    /// Something in the request cannot be: a URL, a header, a combination.
    BadRequest,
    /// The worker's libcurl was built without what the request asks for.
    Unsupported,
    /// It was cancelled.
    Cancelled,
    /// The worker has no room for another request, or no memory for its body.
    Overloaded,
    /// No byte of an answer came in time.
    FirstByteTimeout,
    /// No byte came or went for too long.
    IdleTimeout,
    /// The body is larger than allowed.
    BodyTooLarge,
    /// The request's body broke off.
    BodyBroken,
    /// A fault of the worker's own.
    WorkerFault,
}

/// How far a request had come when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Stage {
    /// Nothing was done yet.
    Prepare,
    /// It waited for others.
    Queue,
    /// A name was looked up.
    Resolve,
    /// A connection was being made.
    Connect,
    /// TLS was being negotiated.
    Tls,
    /// The request was being sent.
    Send,
    /// All was sent, and nothing had come.
    Answer,
    /// The head of the answer was coming.
    Head,
    /// The body was coming.
    Body,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prepare => "while preparing",
            Self::Queue => "while waiting for others",
            Self::Resolve => "while resolving",
            Self::Connect => "while connecting",
            Self::Tls => "while negotiating TLS",
            Self::Send => "while sending",
            Self::Answer => "while waiting for the answer",
            Self::Head => "while receiving the head",
            Self::Body => "while receiving the body",
        })
    }
}

/// Why there is no worker.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// No executable was found.
    #[error("no worker found: neither {}", .0.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" nor "))]
    NotFound(Vec<PathBuf>),
    /// It could not be started.
    #[error("cannot start {}: {source}", .program.display())]
    Start {
        /// The executable.
        program: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// What it says of its protocols cannot be read.
    #[error("{} --protocols: {why}", .program.display())]
    Protocols {
        /// The executable.
        program: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It is older than required.
    #[error("{name} {found} is older than required {required}")]
    TooOld {
        /// The executable's name, which has the major version.
        name: String,
        /// Its version, as in `1.2`.
        found: String,
        /// What was required, as in `1.3`.
        required: String,
    },
    /// It has no transport that this side has.
    #[error("no transport in common: the worker has {theirs}")]
    NoTransport {
        /// Those it has, separated by commas.
        theirs: String,
    },
    /// It has no format that this side has.
    #[error("no format in common: the worker has {theirs}")]
    NoFormat {
        /// Those it has, separated by commas.
        theirs: String,
    },
    /// The URI to meet at cannot be one.
    #[error(transparent)]
    BadUri(#[from] crate::uri::BadUri),
    /// It ended before it was ready.
    #[error("the worker ended before it was ready ({exit}): {stderr}")]
    Exited {
        /// How.
        exit: ExitStatus,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// It does not log in.
    #[error("the worker does not log in: {source}{}", shown_stderr(.stderr))]
    LogIn {
        /// Why.
        source: ConnectError,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// There is no session, or no channel in it.
    #[error("the worker's session cannot be used: {0}")]
    Channel(#[from] strait::ChannelError),
    /// The kernel refuses something else.
    #[error(transparent)]
    Io(#[from] io::Error),
}
