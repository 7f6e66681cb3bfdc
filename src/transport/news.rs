//! What the peer says about a channel over the socket, beside the ring: that it sends no more, which of its requests it
//! has cancelled, how many answers of this side's it did not expect, where it publishes to many. There before the channel is accepted, and bounded
//! whatever the peer says.

use super::control::StageAt;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// See the module's own words.
#[derive(Debug, Default)]
pub(super) struct News {
    finished: AtomicBool,
    unexpected: AtomicU64,
    cancelled: Mutex<BTreeSet<u64>>,
    staged: OnceLock<StageAt>,
}

/// Cancelled requests remembered; the oldest are forgotten first.
const CANCELLED_MAX: usize = 1024;

impl News {
    /// The peer sends no more.
    pub(super) fn finish(&self) {
        // Partner: `finished`.
        self.finished.store(true, Ordering::Release);
    }

    pub(super) fn finished(&self) -> bool {
        // Partner: `finish`.
        self.finished.load(Ordering::Acquire)
    }

    /// The peer wants no more answers to a request; it may not have been received yet.
    pub(super) fn cancel(&self, id: u64) {
        let mut cancelled = self.cancelled.lock();
        if cancelled.len() == CANCELLED_MAX {
            cancelled.pop_first();
        }
        cancelled.insert(id);
    }

    pub(super) fn is_cancelled(&self, id: u64) -> bool {
        self.cancelled.lock().contains(&id)
    }

    pub(super) fn any_cancelled(&self) -> bool {
        !self.cancelled.lock().is_empty()
    }

    /// The peer did not expect so many answers so far.
    pub(super) fn unexpected(&self, count: u64) {
        // A number to be told; nothing depends on it.
        self.unexpected.fetch_max(count, Ordering::Relaxed);
    }

    /// The peer publishes there; it says so once.
    pub(super) fn stage(&self, at: StageAt) {
        let _ = self.staged.set(at);
    }

    pub(super) fn staged(&self) -> Option<StageAt> {
        self.staged.get().copied()
    }

    pub(super) fn unexpected_so_far(&self) -> u64 {
        self.unexpected.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelled_requests_are_bounded() {
        let news = News::default();
        assert!(!news.is_cancelled(1));
        (1..=CANCELLED_MAX as u64 + 1).for_each(|id| news.cancel(id));
        assert!(!news.is_cancelled(1));
        assert!((2..=CANCELLED_MAX as u64 + 1).all(|id| news.is_cancelled(id)));
    }
}
