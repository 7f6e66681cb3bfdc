//! When a wait ends at the latest.

use std::time::{Duration, Instant};

/// The clock is read when it first matters: a wait that is over at once never asks it, which would cost as much as
/// sending a message does. So time counts from a microsecond or so after the call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deadline {
    Never,
    After(Duration),
    At(Instant),
}

impl Deadline {
    /// The time itself, fixed by the first call. A timeout too long for the clock is none.
    pub(crate) fn at(&mut self) -> Option<Instant> {
        if let Self::After(timeout) = *self {
            *self = Instant::now().checked_add(timeout).map_or(Self::Never, Self::At);
        }
        match *self {
            Self::At(at) => Some(at),
            Self::Never | Self::After(_) => None,
        }
    }

    pub(crate) fn has_passed(&mut self) -> bool {
        self.at().is_some_and(|at| Instant::now() >= at)
    }
}
