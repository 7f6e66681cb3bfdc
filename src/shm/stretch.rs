//! Where rings lie: stretches off the far end of an arena's memory, whose pages come to exist as they are needed. Blocks
//! are jemalloc's, exist whole and come off the near end. Knows how long stretches are, not what lies in them.

use super::arena::{AllocError, Arena};
use super::handle::WORD;
use crate::sys::brief::Brief;
use crate::sys::words::{Grow, OwnWords};
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Stretches that were in use and may be again.
#[derive(Debug, Default)]
pub(super) struct Stretches(Brief<Vec<Kind>>);

/// Those of one length.
#[derive(Debug)]
struct Kind {
    bytes: usize,
    /// Where each begins and how many bytes of it exist. The last to fall free are the first to be used again.
    warm: Vec<(usize, usize)>,
    /// How many of them, from the first, had fallen free when memory was last given back.
    stale: usize,
    /// Where those begin that have no pages.
    bare: Vec<usize>,
}

impl Kind {
    fn take(&mut self) -> Option<(usize, usize)> {
        let taken = self.warm.pop();
        self.stale = self.stale.min(self.warm.len());
        taken.or_else(|| self.bare.pop().map(|offset| (offset, 0)))
    }
}

impl Stretches {
    fn take(&self, bytes: usize) -> Option<(usize, usize)> {
        self.0.lock().iter_mut().find(|kind| kind.bytes == bytes)?.take()
    }

    fn put(&self, bytes: usize, offset: usize, exist: usize) {
        let mut kinds = self.0.lock();
        let known = kinds.iter().position(|kind| kind.bytes == bytes);
        let index = known.unwrap_or_else(|| {
            kinds.push(Kind { bytes, warm: Vec::new(), stale: 0, bare: Vec::new() });
            kinds.len() - 1
        });
        if let Some(kind) = kinds.get_mut(index) {
            if exist > 0 { kind.warm.push((offset, exist)) } else { kind.bare.push(offset) }
        }
    }

    /// Gives back the pages of what is not in use: all, or what was not in use the last time either.
    pub(super) fn give_back(&self, all: bool, punch: impl Fn(usize, usize) -> bool) {
        let mut stale = Vec::new();
        for kind in &mut *self.0.lock() {
            let cold = if all { kind.warm.len() } else { kind.stale };
            stale.extend(kind.warm.drain(..cold).map(|(offset, exist)| (kind.bytes, offset, exist)));
            kind.stale = kind.warm.len();
        }
        // Outside the lock, which is for a few instructions.
        for (bytes, offset, exist) in stale {
            let left = if punch(offset, exist) { 0 } else { exist };
            self.put(bytes, offset, left);
        }
    }
}

/// A stretch in use. Its first page exists; falls free on drop.
struct Stretch {
    arena: Arena,
    offset: usize,
    bytes: usize,
    /// Written by one thread at a time: whoever fills what lies here.
    exist: AtomicUsize,
}

/// In what steps pages come to exist.
const STEP: usize = 4096;

impl Arena {
    /// Zeroed words for this process to write while others read them, beginning on a page of their own, and at which word
    /// of the arena. `with` is dropped when they fall free.
    pub(crate) fn words(&self, words: usize, with: impl Any + Send + Sync) -> Result<(OwnWords, u64), AllocError> {
        if self.is_forked() {
            return Err(AllocError::ForkedProcess);
        }
        let full = AllocError::Full { bytes: words.saturating_mul(WORD) };
        let bytes = words.checked_mul(WORD).and_then(|bytes| bytes.checked_next_multiple_of(STEP)).ok_or(full)?;
        let used = self.stretches().take(bytes);
        let (offset, exist) = used.or_else(|| self.carve_far(bytes).map(|offset| (offset, 0))).ok_or(full)?;
        let stretch = Stretch { arena: self.clone(), offset, bytes, exist: AtomicUsize::new(exist) };
        let start = stretch.start();
        // SAFETY: that many bytes of the stretch exist, in the arena's mapping, and nobody else has the stretch.
        unsafe { start.write_bytes(0, exist) };
        if stretch.grow(STEP) < STEP {
            return Err(full);
        }
        let keep = Arc::new((stretch, with));
        // SAFETY: the stretch is so many aligned words or more in the arena's mapping, lives as long as `keep`, and nobody
        // else has it.
        Ok((unsafe { OwnWords::growing(start.cast(), words, keep) }, (offset / WORD) as u64))
    }
}

impl Stretch {
    fn start(&self) -> NonNull<u8> {
        let (base, _) = self.arena.range();
        // SAFETY: stretches are carved from inside the arena's mapping.
        unsafe { base.add(self.offset) }
    }

    fn grow(&self, wanted: usize) -> usize {
        let exist = self.exist.load(Ordering::Relaxed);
        if wanted <= exist {
            return exist;
        }
        // Doubled: whoever goes on and on asks seldom, and whoever does not has little.
        let enough = wanted.next_multiple_of(STEP).min(self.bytes);
        let wish = enough.max(2 * exist).min(self.bytes);
        let commits = |to: &usize| self.arena.commit(self.offset + exist, to - exist);
        let now = [wish, enough].into_iter().find(commits).unwrap_or(exist);
        self.exist.store(now, Ordering::Relaxed);
        now
    }
}

impl<T: Send + Sync> Grow for (Stretch, T) {
    fn grow(&self, bytes: usize) -> usize {
        self.0.grow(bytes)
    }
}

impl Drop for Stretch {
    fn drop(&mut self) {
        // In a forked child the memory is not mapped and the books are a copy.
        if !self.arena.is_forked() {
            self.arena.stretches().put(self.bytes, self.offset, *self.exist.get_mut());
        }
    }
}
