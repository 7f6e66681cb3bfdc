//! The rules a peer can break, one variant each. Whoever finds one broken ends that session and nothing else; the
//! floors above only carry the value upwards.

#[cfg(not(strait_loom))]
use super::memfd::BadMemory;
use thiserror::Error;

/// A rule of the protocol that the peer broke. Finding one ends the session it was found in, with both sides told; the
/// process and its other sessions go on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    /// A slot's sequence number is neither the one awaited nor the one of the lap before.
    #[error("slot sequence {found} where {expected} or the lap before it was due")]
    SequenceOutOfRange {
        /// What the slot held.
        found: u64,
        /// What it may hold once filled.
        expected: u64,
    },
    /// The consumer's cursor lies outside what has been published.
    #[error("cursor {found} outside {low}..={high}")]
    CursorOutOfRange {
        /// What the cursor held.
        found: u64,
        /// The last cursor seen.
        low: u64,
        /// What has been published.
        high: u64,
    },
    /// A slot names a kind this version does not know.
    #[error("unknown slot kind {0}")]
    UnknownSlotKind(u8),
    /// A handle names an arena that was never announced.
    #[error("handle names arena {found}, the peer's is {expected}")]
    UnknownArena {
        /// The arena the handle names.
        found: u32,
        /// The arena the peer announced.
        expected: u32,
    },
    /// A message inside its slots claims no words, or more than may be, or something that travels beside it.
    #[error("message of {0} words inside its slots, or with something beside it")]
    InsideLength(u16),
    /// The memory of a sealed message is not what it has to be.
    #[cfg(not(strait_loom))]
    #[error("the memory of a sealed message is unusable: {0}")]
    NotSealed(BadMemory),
    /// A message, or a slot of returns, that names no memory.
    #[error("a slot without a handle")]
    NoHandle,
    /// A handle, or an entry of a segment table, reaches outside the arena or names nothing.
    #[error("handle {offset}+{len} words lies outside the arena of {arena_words} words")]
    HandleOutOfRange {
        /// First word named.
        offset: u64,
        /// How many words.
        len: u64,
        /// How many the arena has.
        arena_words: u64,
    },
    /// A message claims no segments, more than a message may have, or another number than its table has.
    #[error("message of {0} segments, or with a table of another length")]
    SegmentCount(u32),
    /// A message to be copied is larger than this side copies.
    #[error("message of {bytes} bytes, at most {limit} are copied")]
    MessageTooLarge {
        /// How many it claims.
        bytes: u64,
        /// How many this side copies.
        limit: u64,
    },
    /// A handle was returned that is not on loan to this peer.
    #[error("returned a handle that is not on loan")]
    NotOnLoan,
    /// Message numbers count up by one; this one does not.
    #[error("message id {found} where {expected} was due")]
    MessageId {
        /// The number the slot carries.
        found: u64,
        /// The number due.
        expected: u64,
    },
    /// A reply to a message that was never sent.
    #[error("reply to message {found}, but only {sent} were sent")]
    ReplyToNothing {
        /// The number replied to.
        found: u64,
        /// How many this side has sent.
        sent: u64,
    },
    /// A control frame that is too short, too long, or of a kind this version does not know.
    #[error("malformed control frame: {0}")]
    Frame(&'static str),
    /// A channel number that is not open, or is open already.
    #[error("channel number {0} out of turn")]
    ChannelNumber(u32),
    /// File descriptors where none may be sent.
    #[error("sent file descriptors with a frame that carries none")]
    UnexpectedDescriptor,
    /// Another number of descriptors than the message, or its frame, says.
    #[error("{found} descriptors where {announced} were announced")]
    DescriptorCount {
        /// How many there are.
        found: usize,
        /// How many there should be.
        announced: usize,
    },
    /// Descriptors for a message that had its turn, or a message whose descriptors had theirs.
    #[error("descriptors of message {message} out of turn")]
    DescriptorsOutOfTurn {
        /// The message.
        message: u64,
    },
    /// More descriptors under way than may be.
    #[error("{0} descriptors under way")]
    TooManyDescriptors(u64),
    /// The peer took fewer descriptors than before, or more than there were.
    #[error("took {found} descriptors, outside {low}..={high}")]
    DescriptorsTaken {
        /// How many it says.
        found: u64,
        /// How many it said last.
        low: u64,
        /// How many it was sent.
        high: u64,
    },
    /// The peer does not read its control socket and its queue is full.
    #[error("control socket not read for {0} frames")]
    Stalled(usize),
}
