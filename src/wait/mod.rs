//! L2: how one side waits for the other, and wakes it. Knows no rings: what is waited for is a closure, where to sleep a
//! [`Spot`], and what the two tell each other are three published words each.
//!
//! A waiter looks, spins a little, says that it sleeps, pays the fence, looks once more and sleeps. A notifier publishes
//! work, pays its share of the fence, and makes a system call only if the other said that it sleeps. One of the two
//! therefore sees the other: no wake is lost. A [`Bell`] rung by this process itself (the peer died, the session was
//! closed) ends a sleep as well.

mod notify;
mod patience;

pub(crate) use notify::{Notifier, Sleeper};
pub(crate) use patience::Patience;
pub use patience::Wait;

use crate::sys::futex::{self, Bell, Spot};
use std::time::Instant;

/// What a wait is made of: how to look, and where to sleep.
pub(crate) trait Source {
    /// What there is once the wait is over.
    type Item;

    /// Looks. `Some` ends the wait.
    fn look(&mut self) -> Option<Self::Item>;

    /// Where to sleep, and what that word holds as long as there is nothing to find.
    fn spot(&self) -> (Spot<'_>, u32);
}

/// Waits until `source` has something or the deadline passes (`None`).
///
/// `bell` must be rung by whatever else can make `look` answer.
#[inline]
pub(crate) fn wait<S: Source>(
    source: &mut S,
    patience: &mut Patience,
    sleeper: &mut Sleeper,
    bell: &Bell,
    deadline: Option<Instant>,
) -> Option<S::Item> {
    match source.look() {
        Some(item) => {
            patience.found();
            Some(item)
        }
        None => wait_longer(source, patience, sleeper, bell, deadline),
    }
}

fn wait_longer<S: Source>(
    source: &mut S,
    patience: &mut Patience,
    sleeper: &mut Sleeper,
    bell: &Bell,
    deadline: Option<Instant>,
) -> Option<S::Item> {
    if let Some(item) = patience.spin(sleeper.shares_cpu_with_peer(), deadline, || source.look()) {
        return Some(item);
    }
    loop {
        // Before the look: whoever rings after it wakes us, whoever rang before is seen by it.
        let rung = bell.value();
        sleeper.lie_down();
        if let Some(item) = source.look() {
            sleeper.get_up();
            patience.found();
            return Some(item);
        }
        if deadline.is_some_and(|at| Instant::now() >= at) {
            sleeper.get_up();
            patience.gave_up();
            return None;
        }
        let (spot, empty) = source.spot();
        patience.sleeps();
        futex::wait(spot, empty, bell, rung, deadline);
        sleeper.get_up();
        if let Some(item) = source.look() {
            patience.found();
            return Some(item);
        }
    }
}
