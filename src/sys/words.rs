//! Runs of 64-bit words that one process writes and others read: the only way anything above this floor touches
//! memory that another process can see change. Knows no layout.
//!
//! On a read-only mapping Rust vouches for relaxed loads only, so an acquiring load is spelt as a relaxed load followed
//! by an acquire fence.

#[cfg(not(strait_loom))]
#[expect(
    clippy::indexing_slicing,
    reason = "indices are this side's own; a wrong one stops here instead of reaching beyond"
)]
mod real {
    use crate::sys::futex::Spot;
    use crate::sys::sync::{AtomicU64, Ordering, PUBLISH, fence};
    use std::any::Any;
    use std::ptr::NonNull;
    use std::sync::Arc;

    /// What keeps the words mapped.
    pub(crate) type Keep = Arc<dyn Any + Send + Sync>;

    /// What keeps words mapped of which not all pages need exist.
    pub(crate) trait Grow: Send + Sync {
        /// Makes the first so many bytes exist, if there is memory; tells how many do. Called by one thread at a time.
        fn grow(&self, bytes: usize) -> usize;
    }

    struct Run {
        base: NonNull<AtomicU64>,
        len: usize,
        kept: Kept,
    }

    enum Kept {
        /// All of them exist.
        Whole {
            _by: Keep,
        },
        Growing(Arc<dyn Grow>),
    }

    // SAFETY: `Run` only gives out `&AtomicU64`, which is `Sync`, and the memory stays mapped while `kept` lives, in
    // whichever thread that is.
    unsafe impl Send for Run {}
    // SAFETY: as for `Send`: all access is atomic.
    unsafe impl Sync for Run {}

    impl Run {
        #[inline]
        fn words(&self) -> &[AtomicU64] {
            // SAFETY: the constructors' contract: `len` aligned words from `base` stay mapped while `kept` lives, and
            // nothing but atomics touches them.
            unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
        }
    }

    /// Words this process alone writes.
    pub(crate) struct OwnWords(Run);

    impl OwnWords {
        /// # Safety
        /// From `base`, `len` 8-aligned words must stay mapped writable while `keep` lives and be reached, in this
        /// process, only atomically.
        pub(crate) unsafe fn new(base: NonNull<u64>, len: usize, keep: Keep) -> Self {
            Self(Run { base: base.cast(), len, kept: Kept::Whole { _by: keep } })
        }

        /// As [`new`](Self::new), for words of which only some [exist](Self::exist).
        ///
        /// # Safety
        /// As for [`new`](Self::new).
        pub(crate) unsafe fn growing(base: NonNull<u64>, len: usize, keep: Arc<dyn Grow>) -> Self {
            Self(Run { base: base.cast(), len, kept: Kept::Growing(keep) })
        }

        /// Has the first `wanted` words exist, if there is memory; tells how many do. Nobody may reach the others: that
        /// could fail where nothing can be done about it. Called by one thread at a time: whoever fills them.
        pub(crate) fn exist(&self, wanted: usize) -> usize {
            match &self.0.kept {
                Kept::Whole { .. } => self.0.len,
                Kept::Growing(keep) => (keep.grow(wanted * size_of::<u64>()) / size_of::<u64>()).min(self.0.len),
            }
        }

        pub(crate) fn len(&self) -> usize {
            self.0.len
        }

        /// Where they lie in this process.
        pub(crate) fn address(&self) -> usize {
            self.0.base.addr().get()
        }

        /// Stores without publishing: readers may look only after a later [`publish`](Self::publish).
        #[inline]
        pub(crate) fn store(&self, index: usize, value: u64) {
            self.0.words()[index].store(value, Ordering::Relaxed);
        }

        /// As [`store`](Self::store), several in a row.
        #[inline]
        pub(crate) fn store_run(&self, index: usize, values: &[u64]) {
            let words = &self.0.words()[index..][..values.len()];
            words.iter().zip(values).for_each(|(word, &value)| word.store(value, Ordering::Relaxed));
        }

        /// What this process stored last.
        pub(crate) fn peek(&self, index: usize) -> u64 {
            self.0.words()[index].load(Ordering::Relaxed)
        }

        /// Stores so that whoever acquires this value also sees every store made before it.
        #[inline]
        pub(crate) fn publish(&self, index: usize, value: u64) {
            // Partner: `PeerWords::acquire`.
            self.0.words()[index].store(value, PUBLISH);
        }

        /// Where readers of this word sleep.
        #[inline]
        pub(crate) fn spot(&self, index: usize) -> Spot<'_> {
            Spot::shared(&self.0.words()[index])
        }
    }

    /// Words another process writes. Every value is hearsay: read once, check, keep the copy.
    pub(crate) struct PeerWords(Run);

    impl PeerWords {
        /// # Safety
        /// From `base`, `len` 8-aligned words must stay mapped readable while `keep` lives, and this process must
        /// reach them only atomically.
        pub(crate) unsafe fn new(base: NonNull<u64>, len: usize, keep: Keep) -> Self {
            Self(Run { base: base.cast(), len, kept: Kept::Whole { _by: keep } })
        }

        pub(crate) fn len(&self) -> usize {
            self.0.len
        }

        /// Where they lie in this process.
        pub(crate) fn address(&self) -> usize {
            self.0.base.addr().get()
        }

        /// Loads without ordering: for words that publish nothing, or that an earlier acquire already covers.
        #[inline]
        pub(crate) fn peek(&self, index: usize) -> u64 {
            self.0.words()[index].load(Ordering::Relaxed)
        }

        /// As [`peek`](Self::peek), several in a row, each once.
        #[inline]
        pub(crate) fn peek_run(&self, index: usize, values: &mut [u64]) {
            let words = &self.0.words()[index..][..values.len()];
            values.iter_mut().zip(words).for_each(|(value, word)| *value = word.load(Ordering::Relaxed));
        }

        /// Loads so that what the writer stored before publishing this value is visible.
        #[inline]
        pub(crate) fn acquire(&self, index: usize) -> u64 {
            let value = self.0.words()[index].load(Ordering::Relaxed);
            // Partner: `OwnWords::publish` in the other process.
            fence(Ordering::Acquire);
            value
        }

        /// Where to sleep until the word changes.
        #[inline]
        pub(crate) fn spot(&self, index: usize) -> Spot<'_> {
            Spot::shared(&self.0.words()[index])
        }
    }
}

#[cfg(strait_loom)]
mod model {
    use crate::sys::futex::{Gate, Spot};
    use crate::sys::sync::{AtomicU64, Ordering, PUBLISH, fence};
    use std::sync::Arc;

    struct Run {
        words: Arc<Vec<AtomicU64>>,
        gate: Gate,
    }

    pub(crate) struct OwnWords(Run);
    pub(crate) struct PeerWords(Run);

    /// The same words seen from both processes.
    pub(crate) fn shared(len: usize, gate: &Gate) -> (OwnWords, PeerWords) {
        let words = Arc::new((0..len).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        (OwnWords(Run { words: words.clone(), gate: gate.clone() }), PeerWords(Run { words, gate: gate.clone() }))
    }

    impl OwnWords {
        pub(crate) fn len(&self) -> usize {
            self.0.words.len()
        }
        pub(crate) fn exist(&self, _: usize) -> usize {
            self.len()
        }
        pub(crate) fn store(&self, index: usize, value: u64) {
            self.0.words[index].store(value, Ordering::Relaxed);
        }
        pub(crate) fn store_run(&self, index: usize, values: &[u64]) {
            values.iter().zip(index..).for_each(|(&value, index)| self.store(index, value));
        }
        pub(crate) fn publish(&self, index: usize, value: u64) {
            self.0.words[index].store(value, PUBLISH);
        }
        pub(crate) fn spot(&self, index: usize) -> Spot<'_> {
            Spot::shared(&self.0.words[index], &self.0.gate)
        }
    }

    impl PeerWords {
        pub(crate) fn len(&self) -> usize {
            self.0.words.len()
        }
        pub(crate) fn peek(&self, index: usize) -> u64 {
            self.0.words[index].load(Ordering::Relaxed)
        }
        pub(crate) fn peek_run(&self, index: usize, values: &mut [u64]) {
            values.iter_mut().zip(index..).for_each(|(value, index)| *value = self.peek(index));
        }
        pub(crate) fn acquire(&self, index: usize) -> u64 {
            let value = self.0.words[index].load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            value
        }
        pub(crate) fn spot(&self, index: usize) -> Spot<'_> {
            Spot::shared(&self.0.words[index], &self.0.gate)
        }
    }
}

/// The same words seen from both processes, in one.
#[cfg(all(any(fuzzing, test), not(strait_loom)))]
pub(crate) fn shared(len: usize) -> (OwnWords, PeerWords) {
    let words: Box<[std::sync::atomic::AtomicU64]> = (0..len).map(|_| 0.into()).collect();
    let keep = std::sync::Arc::new(words);
    let base = std::ptr::NonNull::from(&keep[0]).cast::<u64>();
    // SAFETY: the box holds `len` words for as long as `keep`, and atomics may be reached from anywhere.
    unsafe { (OwnWords::new(base, len, keep.clone()), PeerWords::new(base, len, keep)) }
}

/// Private memory of which only so many bytes may come to exist.
#[cfg(all(test, not(strait_loom)))]
pub(crate) struct Scarce {
    pub(crate) limit: std::sync::atomic::AtomicUsize,
    exist: std::sync::atomic::AtomicUsize,
    words: Box<[std::sync::atomic::AtomicU64]>,
}

#[cfg(all(test, not(strait_loom)))]
impl Scarce {
    /// As [`shared`], of which at first so many bytes may exist.
    pub(crate) fn new(len: usize, limit: usize) -> (std::sync::Arc<Self>, OwnWords, PeerWords) {
        let words: Box<[_]> = (0..len).map(|_| 0.into()).collect();
        let scarce = std::sync::Arc::new(Self { limit: limit.into(), exist: 0.into(), words });
        let base = std::ptr::NonNull::from(&scarce.words[0]).cast::<u64>();
        // SAFETY: as in `shared`.
        let (own, seen) =
            unsafe { (OwnWords::growing(base, len, scarce.clone()), PeerWords::new(base, len, scarce.clone())) };
        (scarce, own, seen)
    }
}

#[cfg(all(test, not(strait_loom)))]
impl Grow for Scarce {
    fn grow(&self, bytes: usize) -> usize {
        use std::sync::atomic::Ordering::Relaxed;
        if bytes <= self.limit.load(Relaxed) {
            self.exist.fetch_max(bytes, Relaxed);
        }
        self.exist.load(Relaxed)
    }
}

#[cfg(strait_loom)]
pub(crate) use model::{OwnWords, PeerWords, shared};
#[cfg(not(strait_loom))]
pub(crate) use real::{Grow, OwnWords, PeerWords};
