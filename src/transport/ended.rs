//! How a session or a channel ended, as every operation on it reports from then on.

use crate::sys::misbehaved::PeerMisbehaved;
use thiserror::Error;

/// How it ended.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// This side closed the session.
    #[error("closed by this side")]
    Closed,
    /// The peer closed the session, orderly.
    #[error("closed by the peer")]
    PeerClosed,
    /// The peer closed this channel; the session goes on.
    #[error("channel closed by the peer")]
    ChannelClosed,
    /// The peer has finished sending over this channel; it may still receive.
    #[error("the peer has finished sending")]
    Finished,
    /// The peer died, or dropped its socket without a word.
    #[error("the peer died")]
    PeerDied,
    /// The peer broke a rule and was cut off.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(PeerMisbehaved),
    /// The peer says that this side broke a rule, and cut it off.
    #[error("the peer accuses this side of breaking the protocol")]
    Accused,
    /// This process is a fork of the one that had the session.
    #[error("the session belongs to the process this one was forked from")]
    ForkedProcess,
}

/// A session, or one channel of it, is over. Says which and why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("session with `{peer}`, channel `{channel}`: {cause}")]
pub struct EndedError {
    /// The app at the other end.
    pub peer: String,
    /// The channel's name.
    pub channel: String,
    /// What ended it.
    pub cause: Ended,
}

/// The same on its way to whoever reports it. Boxed, because what may be an error is as large as one.
pub(crate) type Over = Box<EndedError>;

/// The last thing one side tells the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    Closed,
    PeerMisbehaved,
}
