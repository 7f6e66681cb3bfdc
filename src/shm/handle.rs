//! The name of lent bytes, as it crosses: 16 bytes that mean nothing until the borrower's [`View`](super::view::View)
//! has checked them. Knows bit positions only.

/// Names `len` words at word `offset` of arena `arena`, on loan under `ticket`. Kept as it crosses, so that it is taken
/// apart only where it is looked into.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle {
    low: u64,
    high: u64,
}

/// Handles measure in these.
pub(crate) const WORD: usize = 8;

impl Handle {
    /// `len` is not 0.
    #[inline]
    pub(crate) fn new(arena: u32, offset: u64, len: u64, ticket: u32) -> Self {
        debug_assert!(offset <= MASK_36 && (1..=MASK_36).contains(&len) && arena <= MASK_24);
        Self { low: offset | u64::from(arena) << 36 | (len & 0xF) << 60, high: len >> 4 | u64::from(ticket) << 32 }
    }

    /// As two words of a slot. Both are zero for no handle, since no handle has length 0.
    #[inline]
    pub(crate) fn to_words(self) -> [u64; 2] {
        [self.low, self.high]
    }

    /// From two words of a peer's: any bits are some handle, or none.
    #[inline]
    pub(crate) fn from_words([low, high]: [u64; 2]) -> Option<Self> {
        let handle = Self { low, high };
        (handle.len() != 0).then_some(handle)
    }

    /// The owner's number for the arena: 24 bits.
    #[inline]
    pub(crate) fn arena(self) -> u32 {
        (self.low >> 36) as u32 & MASK_24
    }

    /// In words: 36 bits.
    #[inline]
    pub(crate) fn offset(self) -> u64 {
        self.low & MASK_36
    }

    /// In words, never 0: 36 bits.
    #[inline]
    pub(crate) fn len(self) -> u64 {
        (self.high & 0xFFFF_FFFF) << 4 | self.low >> 60
    }

    /// The owner's index of the loan and how often that index was used: what makes a stale return visible.
    #[inline]
    pub(crate) fn ticket(self) -> u32 {
        (self.high >> 32) as u32
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("arena", &self.arena())
            .field("offset", &self.offset())
            .field("len", &self.len())
            .field("ticket", &self.ticket())
            .finish()
    }
}

/// The largest arena number.
pub(crate) const MASK_24: u32 = (1 << 24) - 1;
/// The largest offset and length.
pub(super) const MASK_36: u64 = (1 << OFFSET_BITS) - 1;
/// What lies beyond cannot be named.
pub(crate) const BYTES_MAX: usize = WORD << OFFSET_BITS;
/// What an offset or a length in words may need.
pub(crate) const OFFSET_BITS: u32 = 36;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_survives_the_crossing_at_its_limits() {
        for (arena, offset, len, ticket) in [
            (MASK_24, MASK_36, MASK_36, u32::MAX),
            (0, 0, 1, 0),
            (0x00AB_CDEF, 0x9_8765_4321, 0x1_2345_6789, 0xDEAD_BEEF),
        ] {
            let words = Handle::new(arena, offset, len, ticket).to_words();
            let found = Handle::from_words(words).expect("a length");
            assert_eq!((found.arena(), found.offset(), found.len(), found.ticket()), (arena, offset, len, ticket));
        }
    }

    #[test]
    fn zero_words_are_no_handle() {
        assert_eq!(Handle::from_words([0, 0]), None);
        assert_eq!(Handle::from_words([MASK_36, 0xFFFF_FFFF << 32]), None);
    }
}
