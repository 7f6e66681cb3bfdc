//! The name of lent bytes, as it crosses: 16 bytes that mean nothing until the borrower's [`View`](super::view::View)
//! has checked them. Knows bit positions only.

/// Names `len` words at word `offset` of arena `arena`, on loan under `ticket`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    /// The owner's number for the arena: 24 bits.
    pub(crate) arena: u32,
    /// In words: 36 bits.
    pub(crate) offset: u64,
    /// In words, never 0: 36 bits.
    pub(crate) len: u64,
    /// The owner's index of the loan and how often that index was used: what makes a stale return visible.
    pub(crate) ticket: u32,
}

/// Handles measure in these.
pub(crate) const WORD: usize = 8;

impl Handle {
    /// As two words of a slot. Both are zero for no handle, since no handle has length 0.
    pub(crate) fn to_words(self) -> [u64; 2] {
        debug_assert!(self.offset <= MASK_36 && self.len <= MASK_36 && self.arena <= MASK_24);
        [
            self.offset | u64::from(self.arena) << 36 | (self.len & 0xF) << 60,
            self.len >> 4 | u64::from(self.ticket) << 32,
        ]
    }

    /// From two words of a peer's: any bits are some handle, or none.
    pub(crate) fn from_words(words: [u64; 2]) -> Option<Self> {
        let len = (words[1] & 0xFFFF_FFFF) << 4 | words[0] >> 60;
        (len != 0).then_some(Self {
            arena: (words[0] >> 36) as u32 & MASK_24,
            offset: words[0] & MASK_36,
            len,
            ticket: (words[1] >> 32) as u32,
        })
    }
}

/// The largest arena number.
pub(crate) const MASK_24: u32 = (1 << 24) - 1;
const MASK_36: u64 = (1 << OFFSET_BITS) - 1;
/// What an offset or a length in words may need.
pub(crate) const OFFSET_BITS: u32 = 36;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_survives_the_crossing_at_its_limits() {
        for handle in [
            Handle { arena: MASK_24, offset: MASK_36, len: MASK_36, ticket: u32::MAX },
            Handle { arena: 0, offset: 0, len: 1, ticket: 0 },
            Handle { arena: 0x00AB_CDEF, offset: 0x9_8765_4321, len: 0x1_2345_6789, ticket: 0xDEAD_BEEF },
        ] {
            assert_eq!(Handle::from_words(handle.to_words()), Some(handle));
        }
    }

    #[test]
    fn zero_words_are_no_handle() {
        assert_eq!(Handle::from_words([0, 0]), None);
        assert_eq!(Handle::from_words([MASK_36, 0xFFFF_FFFF << 32]), None);
    }
}
