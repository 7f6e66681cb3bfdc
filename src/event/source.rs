//! What is in a loop, and what of it is still to be told.

use super::mail::{Seat, Words};
use crate::session::SessionServer;
use crate::sys::readiness::{Readiness, Signals};
use crate::transport::Core;
use crate::transport::port::Port;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// A source with its place in the queue.
pub(super) struct Source {
    pub(super) what: What,
    /// Whether it is in the queue of those to look at.
    pub(super) queued: bool,
}

impl From<What> for Source {
    fn from(what: What) -> Self {
        Self { what, queued: false }
    }
}

pub(super) enum What {
    Channel(ChannelSource),
    Foreign(Foreign),
    Server(Arc<SessionServer>),
    Session(SessionSource),
    Signals(Signals),
    Timer(Instant),
}

pub(super) struct ChannelSource {
    pub(super) port: Weak<Port>,
    pub(super) seat: Arc<Seat>,
    pub(super) words: Words,
    /// That the peer sends no more was told.
    pub(super) finished: bool,
    /// Its end was told.
    pub(super) closed: bool,
}

/// A descriptor of somebody else's, reported once and then renewed: one that was closed meanwhile shows at the renewal, and
/// one whose file lives on under another number cannot keep the loop busy.
pub(super) struct Foreign {
    pub(super) raw: i32,
    pub(super) interest: Readiness,
    pub(super) found: Found,
}

pub(super) enum Found {
    Nothing,
    Ready(Readiness),
    /// Told, and to be renewed before the next wait.
    Told,
    Closed,
}

/// Held until its users are gone and its socket is at its end.
pub(super) struct SessionSource {
    pub(super) core: Arc<Core>,
    pub(super) seat: Arc<Seat>,
    pub(super) unused: bool,
    pub(super) at_end: bool,
    /// Its end was told.
    pub(super) ended: bool,
    /// Its socket is waited for to take more.
    pub(super) full: bool,
}
