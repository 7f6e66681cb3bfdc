//! What each operation on a channel can fail with.

use crate::shm::loans::QuotaExceeded;
use crate::transport::LaneError;
use crate::transport::ended::EndedError;
use thiserror::Error;

/// Why a message was not sent. In every case nothing of it reached the peer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The session or the channel is over.
    #[error(transparent)]
    Ended(#[from] EndedError),
    /// No room within the time given: the peer receives more slowly than this side sends.
    #[error("timed out waiting for room")]
    TimedOut,
    /// No room now.
    #[error("no room")]
    Full,
    /// The peer holds as much as it may; try again when it has returned something.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// The message lies in an arena that this session's peer does not see.
    #[error("the message was built in another session's arena")]
    ForeignArena,
    /// The message to reply to came over another channel.
    #[error("the message to reply to came over another channel")]
    NotReceivedHere,
}

/// Why no message was received.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecvError {
    /// The session or the channel is over, and everything that came before has been received.
    #[error(transparent)]
    Ended(#[from] EndedError),
    /// Nothing came in time.
    #[error("timed out waiting for a message")]
    TimedOut,
    /// There is no private memory for a copy; the message is given up, the channel goes on.
    #[error("no memory to copy a message of {bytes} bytes")]
    NoMemory {
        /// How many bytes it has.
        bytes: usize,
    },
}

impl From<LaneError> for RecvError {
    fn from(error: LaneError) -> Self {
        match error {
            LaneError::TimedOut => Self::TimedOut,
            LaneError::Ended(ended) => Self::Ended(ended),
        }
    }
}

/// Why a request got no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// It could not be sent.
    #[error("request not sent")]
    Send(#[source] SendError),
    /// The session or the channel ended before the answer came.
    #[error(transparent)]
    Ended(EndedError),
    /// No answer in time; one that comes later is dropped.
    #[error("timed out waiting for the answer")]
    TimedOut,
    /// So many other messages came meanwhile that no more can be kept: receive them first.
    #[error("too many other messages while waiting for the answer")]
    Backlog,
    /// The answer came, but there is no private memory for a copy of it.
    #[error("no memory to copy an answer of {bytes} bytes")]
    NoMemory {
        /// How many bytes it has.
        bytes: usize,
    },
}

impl From<SendError> for RequestError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Ended(ended) => Self::Ended(ended),
            SendError::TimedOut => Self::TimedOut,
            other => Self::Send(other),
        }
    }
}

impl From<RecvError> for RequestError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Ended(ended) => Self::Ended(ended),
            RecvError::TimedOut => Self::TimedOut,
            RecvError::NoMemory { bytes } => Self::NoMemory { bytes },
        }
    }
}
