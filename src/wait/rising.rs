//! A number that only rises, and what was done before it did.

use crate::sys::sync::{AtomicU32, Ordering, RAISE};

/// See the module's own words.
pub(crate) struct Rising(AtomicU32);

impl Rising {
    pub(crate) fn new(at: u32) -> Self {
        Self(AtomicU32::new(at))
    }

    /// Raises it to `at`, unless it is there: whoever reads that also sees what was done before.
    pub(crate) fn raise(&self, at: u32) {
        // Partner: `now`.
        self.0.fetch_max(at, RAISE);
    }

    /// Read it before looking at what its raising puts an end to: what was there before the end is found then.
    #[inline]
    pub(crate) fn now(&self) -> u32 {
        // Partner: `raise`.
        self.0.load(Ordering::Acquire)
    }
}
