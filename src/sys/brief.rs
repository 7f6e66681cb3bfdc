//! A lock for what takes a few instructions: got by one atomic swap, given back by a plain store, which halves what an
//! uncontended lock costs. Whoever has to wait pauses, then yields, then sleeps, so that a holder that was preempted
//! gets to run whatever the priorities are.

use super::cpu;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Data that one thread at a time may reach, briefly.
#[derive(Debug, Default)]
pub(crate) struct Brief<T> {
    held: AtomicBool,
    data: UnsafeCell<T>,
}

// SAFETY: the data moves with the lock, as in any other container.
unsafe impl<T: Send> Send for Brief<T> {}
// SAFETY: `held` lets one thread at a time reach the data, so sharing the lock only ever hands the data from one thread
// to another.
unsafe impl<T: Send> Sync for Brief<T> {}

impl<T> Brief<T> {
    pub(crate) const fn new(data: T) -> Self {
        Self { held: AtomicBool::new(false), data: UnsafeCell::new(data) }
    }

    /// Waits for whoever holds it.
    #[inline]
    pub(crate) fn lock(&self) -> Holding<'_, T> {
        match self.try_lock() {
            Some(holding) => holding,
            None => self.lock_contended(),
        }
    }

    #[cold]
    fn lock_contended(&self) -> Holding<'_, T> {
        let mut turn = 0_u32;
        loop {
            match turn {
                0..64 => spin_loop(),
                64..80 => cpu::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
            turn = turn.saturating_add(1);
            // Looked at before it is tried: looking leaves the line with its holder.
            if !self.held.load(Ordering::Relaxed)
                && let Some(holding) = self.try_lock()
            {
                return holding;
            }
        }
    }

    /// `None` if somebody holds it.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Holding<'_, T>> {
        // Partner: the release in `Holding::drop`: what its last holder did is visible.
        let held_already = self.held.swap(true, Ordering::Acquire);
        // Made only if it was free: dropping a `Holding` frees the lock, whoever has it.
        if held_already { None } else { Some(Holding { of: self }) }
    }

    /// Frees the lock for a [`Holding`] that was forgotten.
    ///
    /// # Safety
    /// The lock must be held by a forgotten `Holding`, or by a thread that does not exist in this process.
    pub(crate) unsafe fn force_unlock(&self) {
        // Partner: the acquire in `try_lock`.
        self.held.store(false, Ordering::Release);
    }

    /// Where the data lies, whoever holds the lock.
    pub(crate) fn data_ptr(&self) -> *mut T {
        self.data.get()
    }

    /// No lock where nobody else can be.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

/// The right to reach the data.
pub(crate) struct Holding<'a, T> {
    of: &'a Brief<T>,
}

impl<T> Deref for Holding<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the swap in `try_lock` succeeded for this value alone, and `drop` has not run.
        unsafe { &*self.of.data.get() }
    }
}

impl<T> DerefMut for Holding<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`; `&mut self` keeps other references from this value away.
        unsafe { &mut *self.of.data.get() }
    }
}

impl<T> Drop for Holding<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Partner: the acquire in `try_lock`.
        self.of.held.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time() {
        let (counts, turns) = (Brief::new((0_u64, 0_u64)), if cfg!(miri) { 100 } else { 100_000 });
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..turns {
                        let mut held = counts.lock();
                        held.0 += 1;
                        held.1 += 1;
                        assert_eq!(held.0, held.1);
                    }
                });
            }
        });
        let held = counts.lock();
        assert_eq!(held.0, 4 * turns);
        // Twice: a failed attempt must not free it.
        assert!(counts.try_lock().is_none());
        assert!(counts.try_lock().is_none());
        drop(held);
        assert!(counts.try_lock().is_some());
    }
}
