//! L2: how one side waits for the other, and wakes it. Knows no rings: what is waited for is a closure, where to sleep a
//! [`Spot`], and what the two tell each other are three published words each.
//!
//! A waiter looks, spins a little, says that it sleeps, pays the fence, looks once more and sleeps. A notifier publishes
//! work, pays its share of the fence, and makes a system call only if the other said that it sleeps. One of the two
//! therefore sees the other: no wake is lost. A [`Bell`] rung by this process itself (the peer died, the session was
//! closed) ends a sleep as well.

mod deadline;
mod notify;
mod patience;

pub(crate) use deadline::Deadline;
pub(crate) use notify::{Notifier, Sleeper};
pub(crate) use patience::Patience;
pub use patience::Wait;

use crate::sys::futex::{self, Bell, Spot};

/// What a wait is made of: how to look, and where to sleep.
pub(crate) trait Source {
    /// What there is once the wait is over.
    type Item;

    /// Looks. `Some` ends the wait.
    fn look(&mut self) -> Option<Self::Item>;

    /// Where to sleep, and what that word holds as long as there is nothing to find.
    fn spot(&self) -> (Spot<'_>, u32);

    /// Who waits.
    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper);
}

/// Waits until `source` has something or the deadline passes (`None`).
///
/// `bell` must be rung by whatever else can make `look` answer.
#[inline]
pub(crate) fn wait<S: Source>(source: &mut S, bell: &Bell, deadline: &mut Deadline) -> Option<S::Item> {
    match source.look() {
        Some(item) => {
            source.waiter().0.found();
            Some(item)
        }
        None => wait_longer(source, bell, deadline),
    }
}

fn wait_longer<S: Source>(source: &mut S, bell: &Bell, deadline: &mut Deadline) -> Option<S::Item> {
    if let Some(item) = spin(source, deadline) {
        source.waiter().0.found();
        return Some(item);
    }
    loop {
        // Before the look: whoever rings after it wakes us, whoever rang before is seen by it.
        let rung = bell.value();
        source.waiter().1.lie_down();
        let found = source.look();
        let in_time = !deadline.has_passed();
        if found.is_none() && in_time {
            source.waiter().0.sleeps();
            let (spot, empty) = source.spot();
            futex::wait(spot, empty, bell, rung, deadline.at());
        }
        let (patience, sleeper) = source.waiter();
        sleeper.get_up();
        if found.is_some() {
            patience.found();
            return found;
        }
        if !in_time {
            patience.gave_up();
            return None;
        }
        if let Some(item) = source.look() {
            source.waiter().0.found();
            return Some(item);
        }
    }
}

/// Looks again and again, as long as the waiter has patience.
#[cfg(not(strait_loom))]
fn spin<S: Source>(source: &mut S, deadline: &mut Deadline) -> Option<S::Item> {
    let (patience, sleeper) = source.waiter();
    let mut turns = patience.turns(sleeper.shares_cpu_with_peer());
    while turns.next(deadline) {
        if let Some(item) = source.look() {
            source.waiter().0.caught();
            return Some(item);
        }
    }
    None
}

/// The models check the sleep, not the spin.
#[cfg(strait_loom)]
fn spin<S: Source>(_: &mut S, _: &mut Deadline) -> Option<S::Item> {
    None
}
