//! What can go wrong in a loop.

use crate::session::AcceptError;
use std::io;
use thiserror::Error;

/// What an [`Event::Error`](super::Event::Error) is about.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoopError {
    /// A client was not let in, after which the server goes on; or the server was closed, and has left the loop.
    #[error(transparent)]
    Accept(#[from] AcceptError),
    /// A descriptor was closed without being removed before; it has left the loop.
    #[error("a descriptor was closed while it was in the loop")]
    ClosedDescriptor,
    /// This process is a fork of the one that has the loop.
    #[error("the loop belongs to the process this one was forked from")]
    ForkedProcess,
    /// The kernel refused something.
    #[error("the event loop")]
    Io(#[from] io::Error),
}

/// Why something was not added to a loop.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AddError {
    /// It is in a loop already, this one or another.
    #[error("in a loop already")]
    AlreadyAdded,
    /// This process is a fork of the one that has the loop.
    #[error("the loop belongs to the process this one was forked from")]
    ForkedProcess,
    /// The kernel refused: not a descriptor, one that cannot be waited for, no signal, or out of some resource.
    #[error("cannot be added to the loop")]
    Io(#[from] io::Error),
}

/// Why something was not removed from a loop.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// Nothing in the loop has this token, or has it any more.
    #[error("not in the loop")]
    NotFound,
    /// A descriptor was closed without being removed before. It has left the loop now.
    #[error("the descriptor was closed while it was in the loop")]
    ClosedDescriptor,
    /// A session cannot be handed back to the watcher's thread; it is still in the loop.
    #[error("cannot be removed from the loop")]
    Io(#[from] io::Error),
}
