//! How far a subscriber is, as its publisher sees it. Pure: the subscriber's words in, checked, what follows out.

use crate::sys::misbehaved::PeerMisbehaved;

/// Positions count what was published, from 0.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Standing {
    /// Where it began.
    start: u64,
    /// How far behind it may be.
    window: u64,
    /// It reads nothing below this.
    released: u64,
    /// It has looked at nothing from here on.
    claimed: u64,
    /// It may begin to look at nothing below this.
    floor: u64,
    lost: u64,
}

/// The floor of who is cut off.
pub(super) const CUT_OFF: u64 = u64::MAX;

/// The floor of everyone when the publisher is done.
pub(super) const OVER: u64 = u64::MAX - 1;

impl Standing {
    /// Of a subscriber that begins at `start` and may be `window` messages behind.
    pub(super) fn new(start: u64, window: u64) -> Self {
        Self { start, window, released: start, claimed: start, floor: start, lost: 0 }
    }

    /// Takes in what the subscriber says; before it has begun, that is less than where it begins.
    pub(super) fn hear(&mut self, released: u64, claimed: u64, published: u64) -> Result<(), PeerMisbehaved> {
        let (released, claimed) = (released.max(self.start), claimed.max(self.start));
        for (found, low, high) in [(claimed, self.claimed, published), (released, self.released, claimed)] {
            if !(low..=high).contains(&found) {
                return Err(PeerMisbehaved::CursorOutOfRange { found, low, high });
            }
        }
        (self.released, self.claimed) = (released, claimed);
        Ok(())
    }

    /// The first position that may not be published for it now.
    pub(super) fn limit(&self) -> u64 {
        self.released.max(self.floor).saturating_add(self.window)
    }

    /// The oldest messages are not for it any more: so many of those it may have. Tells the floor that it is to be told,
    /// after which it has to be heard once more.
    pub(super) fn drop_oldest(&mut self, count: u64, published: u64) -> u64 {
        let from = self.released.max(self.floor);
        self.floor = from.saturating_add(count).min(published);
        self.floor
    }

    /// To be called when it was heard after its floor was raised from `before`: what it has not claimed by now it never
    /// will.
    pub(super) fn count_lost(&mut self, before: u64) {
        self.lost += self.floor.saturating_sub(self.claimed.max(before));
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// What it may be reading.
    pub(super) fn reads(&self) -> std::ops::Range<u64> {
        self.released..self.claimed
    }

    pub(super) fn released(&self) -> u64 {
        self.released
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// How many messages it has not released.
    pub(super) fn behind(&self, published: u64) -> u64 {
        published - self.released.max(self.floor).min(published)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breach(found: u64, low: u64, high: u64) -> Result<(), PeerMisbehaved> {
        Err(PeerMisbehaved::CursorOutOfRange { found, low, high })
    }

    #[test]
    fn words_rise_within_what_was_published() {
        let mut standing = Standing::new(10, 4);
        assert_eq!(standing.limit(), 14);
        assert_eq!(standing.hear(0, 0, 12), Ok(()));
        assert_eq!(standing.hear(0, 11, 12), Ok(()));
        assert_eq!((standing.reads(), standing.limit(), standing.behind(12)), (10..11, 14, 2));
        assert_eq!(standing.hear(11, 12, 12), Ok(()));
        assert_eq!((standing.reads(), standing.limit()), (11..12, 15));
        // Past what was published, back, released before it was claimed.
        assert_eq!(standing.hear(11, 13, 12), breach(13, 12, 12));
        assert_eq!(standing.hear(11, 11, 12), breach(11, 12, 12));
        assert_eq!(standing.hear(0, 0, 12), breach(10, 12, 12));
        assert_eq!(standing.hear(10, 12, 12), breach(10, 11, 12));
        assert_eq!(standing.hear(13, 12, 12), breach(13, 11, 12));
        assert_eq!(standing.hear(u64::MAX, u64::MAX, 12), breach(u64::MAX, 12, 12));
        // A lie changes nothing.
        assert_eq!(standing.reads(), 11..12);
    }

    #[test]
    fn what_is_dropped_is_lost_unless_it_was_claimed() {
        let mut standing = Standing::new(0, 8);
        standing.hear(0, 1, 8).unwrap();
        assert_eq!(standing.drop_oldest(2, 8), 2);
        // The second was claimed meanwhile.
        standing.hear(0, 2, 8).unwrap();
        standing.count_lost(0);
        assert_eq!((standing.lost(), standing.limit(), standing.reads()), (0, 10, 0..2));
        let before = standing.floor();
        assert_eq!(standing.drop_oldest(4, 8), 6);
        standing.hear(1, 2, 8).unwrap();
        standing.count_lost(before);
        assert_eq!((standing.lost(), standing.limit(), standing.reads()), (4, 14, 1..2));
        assert_eq!(standing.drop_oldest(100, 8), 8);
    }
}
