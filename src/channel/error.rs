//! What each operation on a channel can fail with.

use crate::message::CopyError;
use crate::shm::loans::QuotaExceeded;
use crate::sys::passed::DescriptorsLost;
use crate::transport::ended::{Ended, EndedError};
use crate::transport::port::Port;
use crate::transport::{LaneError, NoMessage};
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
    /// The message lies in an arena that this session's peer does not see:
    /// [`copy_to`](crate::Message::copy_to) makes one that it sees.
    #[error("the message was built in another session's arena")]
    ForeignArena,
    /// The message to reply to came over another channel.
    #[error("the message to reply to came over another channel")]
    NotReceivedHere,
    /// This side has said that it sends no more over this channel.
    #[error("this side has finished sending")]
    Finished,
    /// The peer has cancelled the request that this would answer.
    #[error("the request was cancelled")]
    Cancelled,
}

/// Why not all messages were sent.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("after {sent} messages")]
pub struct SendAllError {
    /// How many were sent: the first so many. Of the others nothing reached the peer.
    pub sent: u64,
    /// What came of the next.
    #[source]
    pub error: SendError,
}

/// Why a message was not sent on. In every case nothing of it reached the peer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// It could not be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The copy could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// How a received message was sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Forwarded {
    /// By reference, under this number: a sealed message, of which all have the one memory.
    ByReference(u64),
    /// As a copy in this side's own arena, under this number. The original may be dropped.
    Copied(u64),
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
    /// Everything has been received, in good order, and nothing more will come here: the peer has finished sending
    /// (whatever it has done since), or this was the last answer, or the one message that was expected.
    #[error("nothing more will come")]
    Finished,
    /// Other threads, streams or expectations of this channel have so many messages waiting that none is taken from the
    /// peer any more, and it stayed so for as long as this call waited: receive, or drop, those first.
    #[error("too many messages are kept for others")]
    Backlog,
    /// There is no private memory for a copy, or no room to map a sealed message; the message is given up, the channel
    /// goes on.
    #[error("no memory for a message of {bytes} bytes")]
    NoMemory {
        /// How many bytes it has.
        bytes: usize,
    },
    /// A sealed message did not arrive, since descriptors did not; it is given up, the channel goes on.
    #[error(transparent)]
    DescriptorsLost(DescriptorsLost),
}

impl From<NoMessage> for RecvError {
    fn from(error: NoMessage) -> Self {
        match error {
            NoMessage::TimedOut => Self::TimedOut,
            NoMessage::Finished => Self::Finished,
            NoMessage::Ended(over) => Self::Ended(*over),
        }
    }
}

/// Why a message that came is not opened.
pub(super) enum Unopened {
    Ended(EndedError),
    NoMemory(usize),
    Lost(DescriptorsLost),
}

impl From<EndedError> for Unopened {
    fn from(ended: EndedError) -> Self {
        Self::Ended(ended)
    }
}

impl From<Unopened> for RecvError {
    fn from(why: Unopened) -> Self {
        match why {
            Unopened::Ended(ended) => Self::Ended(ended),
            Unopened::NoMemory(bytes) => Self::NoMemory { bytes },
            Unopened::Lost(lost) => Self::DescriptorsLost(lost),
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
    /// The answer came, but there is no private memory for a copy of it, or no room to map it.
    #[error("no memory for an answer of {bytes} bytes")]
    NoMemory {
        /// How many bytes it has.
        bytes: usize,
    },
    /// The answer was sealed, and did not arrive, since descriptors did not.
    #[error(transparent)]
    DescriptorsLost(DescriptorsLost),
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

impl From<Unopened> for RequestError {
    fn from(why: Unopened) -> Self {
        match why {
            Unopened::Ended(ended) => Self::Ended(ended),
            Unopened::NoMemory(bytes) => Self::NoMemory { bytes },
            Unopened::Lost(lost) => Self::DescriptorsLost(lost),
        }
    }
}

impl RequestError {
    /// Nothing came, which is an answer of its own kind: a peer that sends no more gives none.
    #[cold]
    pub(super) fn unanswered(why: NoMessage, port: &Port) -> Self {
        match why {
            NoMessage::TimedOut => Self::TimedOut,
            NoMessage::Finished => Self::Ended(finished(port)),
            NoMessage::Ended(over) => Self::Ended(*over),
        }
    }
}

/// What it is to whoever waits for an answer that the peer sends no more.
pub(super) fn finished(port: &Port) -> EndedError {
    let ended = port.error();
    if port.is_open() { EndedError { cause: Ended::Finished, ..ended } } else { ended }
}

/// Why a tag is not expected.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpectError {
    /// Messages of this channel's schema have no tag: its root has no unnamed union.
    #[error("the schema has no unnamed union")]
    NoUnion,
    /// Another expectation takes messages with this tag.
    #[error("messages with tag {0} are expected already")]
    Taken(u16),
    /// The process is a fork of the one that has the session.
    #[error("the channel belongs to the process this one was forked from")]
    ForkedProcess,
}

/// Why it is not known that the peer has taken everything that was sent.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DrainError {
    /// It had not when time was up.
    #[error("timed out before the peer had taken everything")]
    TimedOut,
    /// The session or the channel ended first.
    #[error(transparent)]
    Ended(#[from] EndedError),
}

impl From<LaneError> for DrainError {
    fn from(error: LaneError) -> Self {
        match error {
            LaneError::TimedOut => Self::TimedOut,
            LaneError::Ended(over) => Self::Ended(*over),
        }
    }
}
