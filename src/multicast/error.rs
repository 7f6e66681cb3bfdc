//! What each operation of publishers and subscribers can fail with.

use crate::channel::RecvError;
use crate::transport::ended::{Ended, EndedError};
use thiserror::Error;

/// Why a channel's other side did not become a subscriber.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddError {
    /// The session or the channel is over.
    #[error(transparent)]
    Ended(#[from] EndedError),
    /// Its session has another arena than the publisher: what is published there it would not see.
    #[error("the session has another arena")]
    ForeignArena,
    /// Its session shares no memory.
    #[error("the session shares no memory")]
    NotShared,
}

/// Why a message was not published. Nobody has got it then.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishError {
    /// A subscriber that is waited for has no room now.
    #[error("a subscriber has no room")]
    Full,
    /// A subscriber that is waited for had no room in the time given.
    #[error("timed out waiting for a subscriber")]
    TimedOut,
    /// The message was built in another arena than the publisher's.
    #[error("the message was built in another arena")]
    ForeignArena,
    /// File descriptors go through a session's socket, to one peer.
    #[error("a message with file descriptors cannot be published")]
    Descriptors,
    /// This process is a fork of the publisher's.
    #[error("the publisher belongs to the process this one was forked from")]
    ForkedProcess,
}

/// Why a publisher has a subscriber no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dismissed {
    /// It unsubscribed, or its session ended, as is said.
    Left(Ended),
    /// It was slower than its policy allows.
    TooSlow,
}

/// Why a channel did not become a subscriber's.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The session or the channel is over.
    #[error(transparent)]
    Ended(#[from] EndedError),
    /// The other side does not publish over it, or has not said so in time.
    #[error("nothing is published over this channel")]
    TimedOut,
}

/// Why a subscriber got no message.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriptionError {
    /// The publisher or its session is gone, and everything that was published before has been received.
    #[error(transparent)]
    Ended(#[from] EndedError),
    /// Nothing was published in time.
    #[error("timed out waiting for a message")]
    TimedOut,
    /// This subscriber was slower than its publisher allows, which has dismissed it.
    #[error("dismissed for being too slow")]
    TooSlow,
    /// The oldest message that was not dropped yet is a whole ring behind: nothing more can be received before that is
    /// dropped.
    #[error("too many messages are held")]
    Holding,
    /// There is no private memory for a copy; the message is given up, the subscription goes on.
    #[error("no memory to copy a message of {bytes} bytes")]
    NoMemory {
        /// How many bytes it has.
        bytes: usize,
    },
}

impl From<RecvError> for SubscriptionError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Ended(ended) => Self::Ended(ended),
            RecvError::NoMemory { bytes } => Self::NoMemory { bytes },
            // A look at what is there already has no other.
            RecvError::TimedOut | RecvError::Finished | RecvError::Backlog | RecvError::DescriptorsLost(_) => {
                Self::TimedOut
            }
        }
    }
}
