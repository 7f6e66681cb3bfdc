//! L2: how one side waits for the other, and wakes it. Knows no rings: what is waited for is a closure, where to sleep a
//! [`Spot`], and what the two tell each other are three published words each.
//!
//! A waiter looks, spins a little, says that it sleeps, pays the fence, looks once more and sleeps. A notifier publishes
//! work, pays its share of the fence, and makes a system call only if the other said that it sleeps. One of the two
//! therefore sees the other: no wake is lost. A [`Bell`] rung by this process itself (the peer died, the session was
//! closed) ends a sleep as well.
//!
//! A side that waits for much at once does not sleep in a futex: its [`Sleeper`] goes to the door, by the same rules, and
//! the notifier that finds it there reports so, once, to whoever can ring.

mod deadline;
mod notify;
mod patience;
mod rising;
#[cfg(all(test, not(strait_loom)))]
mod tests;

pub(crate) use deadline::Deadline;
#[cfg(not(strait_loom))]
pub(crate) use notify::{Crier, waits_at_door};
pub(crate) use notify::{Notifier, Roused, Sleeper};
pub(crate) use patience::Patience;
pub use patience::Wait;
#[cfg(not(strait_loom))]
pub(crate) use patience::look_out;
pub(crate) use rising::Rising;

use crate::sys::futex::{self, Bell, Spot};
use std::time::{Duration, Instant};

/// What a wait is made of: how to look, and where to sleep.
pub(crate) trait Source {
    /// Whether there is anything to wait for no longer. Cheap: asked again and again.
    fn ready(&mut self) -> bool;

    /// Where to sleep, and what that word holds as long as there is nothing to find.
    fn spot(&self) -> (Spot<'_>, u32);

    /// Who waits.
    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper);

    /// Asked once, before the first sleep: whether the other side has said that it will not be long.
    fn is_promised(&self) -> bool {
        false
    }

    /// Asked before each sleep. True if nobody rings the bell unless the waiter looks for the reasons itself, which this
    /// call has done: the sleep is then a short one.
    fn attends(&mut self) -> bool {
        false
    }
}

/// A sleep of a waiter that has to look for what may end its wait.
const SLICE: Duration = Duration::from_millis(10);

/// Waits until `source` is ready, or the deadline passes: false. To be called when it was not ready a moment ago; what
/// it has is then taken by the caller, who says so to its [`Patience`].
///
/// `bell` must be rung by whatever else can make `source` ready.
pub(crate) fn wait<S: Source>(source: &mut S, bell: &Bell, deadline: &mut Deadline) -> bool {
    if spin(source, deadline) {
        return true;
    }
    loop {
        // Before the look: whoever rings after it wakes us, whoever rang before is seen by it.
        let rung = bell.value();
        source.waiter().1.lie_down();
        let ready = source.ready();
        let in_time = !deadline.has_passed();
        if !ready && in_time {
            source.waiter().0.sleeps();
            let slice = if source.attends() { Instant::now().checked_add(SLICE) } else { None };
            let until = [deadline.at(), slice].into_iter().flatten().min();
            let (spot, empty) = source.spot();
            futex::wait(spot, empty, bell, rung, until);
        }
        let (patience, sleeper) = source.waiter();
        sleeper.get_up();
        if ready {
            return true;
        }
        if !in_time {
            patience.gave_up();
            return false;
        }
        if source.ready() {
            return true;
        }
    }
}

/// Looks again and again, as long as the waiter has patience.
#[cfg(not(strait_loom))]
#[inline]
fn spin<S: Source>(source: &mut S, deadline: &mut Deadline) -> bool {
    let (patience, sleeper) = source.waiter();
    let mut turns = patience.turns(sleeper.shares_cpu_with_peer());
    loop {
        while turns.next(deadline) {
            if source.ready() {
                source.waiter().0.caught();
                return true;
            }
        }
        if !turns.prolong(source) {
            return false;
        }
    }
}

/// The models check the sleep, not the spin.
#[cfg(strait_loom)]
fn spin<S: Source>(_: &mut S, _: &mut Deadline) -> bool {
    false
}
