//! How the threads and tasks of a split channel wait for each other. Knows no messages.

use crate::wait::Deadline;
use parking_lot::{Condvar, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

/// Sleeps until notified; may wake early. False once the deadline has passed.
pub(super) fn sleep<S>(condvar: &Condvar, state: &mut MutexGuard<'_, S>, deadline: &mut Deadline) -> bool {
    match deadline.at() {
        Some(at) => !condvar.wait_until(state, at).timed_out(),
        None => {
            condvar.wait(state);
            true
        }
    }
}

/// Somebody who sleeps until signalled.
#[derive(Default)]
pub(super) struct Waiter {
    signalled: AtomicBool,
    condvar: Condvar,
    /// A task, which does not sleep.
    task: Option<Waker>,
}

impl Waiter {
    #[cfg(feature = "tokio")]
    pub(super) fn of_task(task: &Waker) -> Self {
        Self { task: Some(task.clone()), ..Self::default() }
    }

    /// Called under the lock.
    pub(super) fn signal(&self) {
        // Partner: `spin`; sleepers look under the lock.
        self.signalled.store(true, Ordering::Release);
        self.condvar.notify_one();
        self.task.iter().for_each(Waker::wake_by_ref);
    }

    pub(super) fn sleep<S>(&self, state: &mut MutexGuard<'_, S>, deadline: &mut Deadline) -> bool {
        while !self.signalled.load(Ordering::Relaxed) {
            if !sleep(&self.condvar, state, deadline) {
                return false;
            }
        }
        true
    }

    /// For those who never sleep.
    pub(super) fn spin(&self, deadline: &mut Deadline) -> bool {
        // Partner: `signal`.
        while !self.signalled.load(Ordering::Acquire) {
            if deadline.has_passed() {
                return false;
            }
            // Whoever leads may want this CPU.
            std::thread::yield_now();
        }
        true
    }
}
