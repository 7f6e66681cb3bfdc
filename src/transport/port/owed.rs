//! What is owed to the peer: handles that go home with whatever goes that way next, and the word to whoever looks after
//! the session that something is.

use super::{Owed, Port};
use crate::shm::handle::Handle;
use crate::transport::descriptor::{RETURNS, Return, TIMES_MAX};
use std::sync::atomic::Ordering;

impl Port {
    pub(in crate::transport) fn returned_in_slots(&self) {
        // Ordered by `arm_for_flag` and `tick`.
        self.in_slots.store(true, Ordering::Relaxed);
        self.arm_for_flag();
    }

    /// As [`arm`](Self::arm), for what is in no lock: a flag, or a count, that was just set.
    #[cold]
    pub(super) fn arm_for_flag(&self) {
        // Partner: `tick`, after which all of these are looked at. Swapped in any case: either the watcher's swap comes
        // later and sees what was set before this one, or this one comes later and sees that the watcher has to be told. A
        // mere load might be from before the watcher's swap while the flag is set after the watcher has looked.
        if !self.armed.swap(true, Ordering::AcqRel) {
            self.core().owes(self.number);
        }
    }

    /// Has the watcher look here at its next tick. A load if it does already.
    #[inline]
    pub(super) fn arm(&self) {
        // Partner: `tick`. The work this is about is under a lock that `tick` takes after disarming: if it came too late for
        // that, the lock orders this load after the disarming.
        if !self.armed.load(Ordering::Relaxed) && !self.armed.swap(true, Ordering::AcqRel) {
            self.core().owes(self.number);
        }
    }

    /// The watcher's look: takes what was owed at the last one already and is still. Tells whether anything is owed
    /// since, and has another look taken then.
    pub(in crate::transport) fn tick(&self, into: &mut Vec<Handle>) -> bool {
        // Partners: `arm`, `arm_for_flag`.
        self.armed.swap(false, Ordering::AcqRel);
        let owing = self.take_stale(into);
        if owing {
            self.arm();
        }
        owing
    }

    /// Whether handles were returned in slots since the last call.
    pub(in crate::transport) fn take_returned_in_slots(&self) -> bool {
        // Ordered by `tick` and `arm_for_flag`.
        self.in_slots.swap(false, Ordering::Relaxed)
    }

    /// As [`owe`](crate::shm::view::Home::owe), for many.
    pub(crate) fn owe_all(&self, home: impl Iterator<Item = Return>) {
        // As there: in a forked child the books are a copy.
        if !self.core().is_forked() {
            let mut owed = self.owed.lock();
            home.for_each(|back| owed.add(back));
            self.count(&owed);
            drop(owed);
            self.arm();
        }
    }

    /// A handle for the next slot that goes the peer's way.
    #[inline]
    pub(in crate::transport) fn pop_owed(&self) -> Option<Handle> {
        if self.owes() == 0 {
            return None;
        }
        let mut owed = self.owed.lock();
        let handle = owed.pop(1);
        self.count(&owed);
        handle.map(|Return { handle, .. }| handle)
    }

    /// As many as go into a slot of their own.
    pub(in crate::transport) fn pop_many_owed(&self) -> [Option<Return>; RETURNS] {
        let mut owed = self.owed.lock();
        let home = std::array::from_fn(|_| owed.pop(TIMES_MAX));
        self.count(&owed);
        home
    }

    #[expect(clippy::arithmetic_side_effects, reason = "counts of what is held here, at most a book full")]
    pub(in crate::transport) fn push_front_owed(&self, back: Return) {
        let mut owed = self.owed.lock();
        owed.count += back.times as usize;
        owed.handles.push_front(back);
        self.count(&owed);
    }

    /// How many handles are owed. Another thread's latest may be missing.
    #[inline]
    pub(in crate::transport) fn owes(&self) -> usize {
        // A number to act on sooner or later; the handles themselves are under the lock.
        self.owes.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, owed: &Owed) {
        self.owes.store(owed.count, Ordering::Relaxed);
    }

    /// Takes what was owed at the last call already and is still; tells whether anything is owed since.
    fn take_stale(&self, into: &mut Vec<Handle>) -> bool {
        let mut owed = self.owed.lock();
        let stale = owed.stale;
        owed.take(stale, into);
        owed.stale = owed.count;
        self.count(&owed);
        owed.stale > 0
    }
}

#[expect(clippy::arithmetic_side_effects, reason = "counts of what is held here, at most a book full")]
impl Owed {
    #[inline]
    pub(super) fn add(&mut self, back: Return) {
        self.count += back.times as usize;
        match self.handles.back_mut() {
            Some(last) if last.handle == back.handle && last.times + back.times <= TIMES_MAX => {
                last.times += back.times
            }
            _ => self.handles.push_back(back),
        }
    }

    /// The next, at most so often.
    fn pop(&mut self, times: u32) -> Option<Return> {
        let next = self.handles.front_mut()?;
        let home = Return { handle: next.handle, times: next.times.min(times) };
        next.times -= home.times;
        if next.times == 0 {
            self.handles.pop_front();
        }
        self.count -= home.times as usize;
        self.stale = self.stale.saturating_sub(home.times as usize);
        Some(home)
    }

    /// The next so many, one by one.
    pub(super) fn take(&mut self, most: usize, into: &mut Vec<Handle>) {
        let mut left = most.min(self.count);
        while left > 0
            && let Some(Return { handle, times }) = self.pop(u32::try_from(left).unwrap_or(u32::MAX))
        {
            into.extend(std::iter::repeat_n(handle, times as usize));
            left -= times as usize;
        }
    }
}
