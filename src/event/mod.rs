//! L6: one place to wait for everything. An [`EventLoop`] tells one event after the other: clients of its servers, ends
//! of its sessions, messages of its channels, timers, signals, and descriptors of the application's own. Nothing is called
//! back, and no thread is started: a session in a loop has its socket read by that loop, not by this library's watcher.
//!
//! # Waiting in somebody else's loop
//!
//! What can be waited for is a descriptor ([`AsFd`](std::os::fd::AsFd)) that turns readable, with one call that does what
//! there is to do and never blocks:
//!
//! | wait for | then call | until |
//! |---|---|---|
//! | [`EventLoop`] | [`wait`](EventLoop::wait)`(Some(Instant::now()))` | it says `None` |
//! | [`SessionServer`](crate::SessionServer) | [`try_accept`](crate::SessionServer::try_accept) | it says `None` |
//!
//! To wait for sessions and channels in a plain `poll`, put them into an `EventLoop` and poll that: a loop nests in any
//! other. A readable descriptor with nothing behind it is harmless.
#![cfg_attr(
    feature = "tokio",
    doc = "\nUnder tokio, [`tokio`] has sessions and channels as futures and streams instead."
)]

mod error;
mod event_loop;
mod mail;
mod slab;
mod source;
#[cfg(feature = "tokio")]
pub mod tokio;
mod turns;
mod upkeep;

pub use crate::sys::readiness::Readiness;
pub use error::{AddError, LoopError, RemoveError};
pub use event_loop::EventLoop;
pub use mail::Waker;
pub use slab::Token;

use crate::session::Session;
use crate::transport::ended::Ended;

/// What an [`EventLoop`] has to tell.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A server let a client in. The session is in the loop already, under a token of its own.
    Connection {
        /// The server.
        server: Token,
        /// What the session is called in this loop.
        token: Token,
        /// The session.
        session: Session,
    },
    /// A session ended. Told once, unless this side had dropped all of it before. What was received stays, and what was
    /// sent before the end can still be received.
    Disconnection {
        /// The session.
        session: Token,
        /// Why it ended.
        cause: Ended,
    },
    /// The peer opened a channel in a session, or answered to one that is being opened.
    Channels {
        /// The session.
        session: Token,
    },
    /// A channel has a message: [`try_recv`](crate::Channel::try_recv) takes it. Told again as long as there is one, other
    /// sources having their turns in between.
    Message {
        /// The channel.
        channel: Token,
        /// What its sender called this kind of message ([`Message::kind`](crate::Message::kind)): 0 unless it did, or if
        /// the message has left the ring already, because it came during a request.
        kind: u16,
    },
    /// The peer sends no more over a channel ([`Channel::finish`](crate::Channel::finish)), and everything that it sent has
    /// been received. Told once; this side may go on sending.
    Finished {
        /// The channel.
        channel: Token,
    },
    /// A channel that was full ([`SendError::Full`](crate::SendError::Full)) may have room now. Told once for each time it
    /// was found full.
    Writable {
        /// The channel.
        channel: Token,
    },
    /// A channel is over, and everything that came before has been received. Told once.
    Closed {
        /// The channel.
        channel: Token,
        /// Why.
        cause: Ended,
    },
    /// A timer's time has come; it is gone from the loop.
    Timer {
        /// The timer.
        timer: Token,
    },
    /// A descriptor is ready. Told again as long as it is.
    External {
        /// The descriptor.
        fd: Token,
        /// For what.
        readiness: Readiness,
    },
    /// A signal came.
    Signal {
        /// What [`EventLoop::add_signals`] returned.
        signals: Token,
        /// Its number.
        signal: i32,
        /// Who sent it, if a process did.
        pid: i32,
    },
    /// A [`Waker`] was used, once or more often.
    Woken,
    /// Something went wrong in one source; the loop goes on.
    Error {
        /// Where; nowhere in particular if `None`.
        source: Option<Token>,
        /// What.
        error: LoopError,
    },
}
