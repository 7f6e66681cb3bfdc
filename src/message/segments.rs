//! The allocator behind a [`Builder`](super::Builder): Cap'n Proto's segments as blocks of an arena.
//!
//! Cap'n Proto's allocator has no way to fail. When the arena is full, segments come from the private heap instead, the
//! failure is remembered, and freezing reports it.

use crate::shm::arena::{AllocError, Arena};
use crate::shm::block::Segments;
use capnp::message::Allocator;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Words in a builder's first segment, unless it is told how much will come.
pub(crate) const FIRST_WORDS: u32 = 64;

/// Segments grow up to this many words (64 MiB): beyond, larger steps save nothing.
pub(super) const GROWTH_MAX: u32 = 8 << 20;

/// See the module's own words.
pub(super) struct ArenaSegments {
    next_words: u32,
    /// In the order Cap'n Proto numbers them.
    segments: Segments,
    spilled: Option<AllocError>,
}

impl ArenaSegments {
    pub(super) fn new(arena: Arena, first_words: u32) -> Self {
        Self { next_words: first_words.max(1), segments: Segments::new(arena), spilled: None }
    }

    /// The finished segments, or why there are none.
    pub(super) fn finish(self) -> Result<Segments, AllocError> {
        match self.spilled {
            Some(error) => Err(error),
            None => Ok(self.segments),
        }
    }

    #[cold]
    fn spill(&mut self, error: AllocError, words: u32) -> (NonNull<u8>, u32) {
        self.spilled.get_or_insert(error);
        (spill(words), words)
    }
}

// SAFETY: blocks come zeroed and 8-aligned, each is its own, and each lives in `segments` until `self` goes, which
// outlives Cap'n Proto's use of it; spilled ones live until `deallocate_segment`.
unsafe impl Allocator for ArenaSegments {
    fn allocate_segment(&mut self, minimum_size: u32) -> (NonNull<u8>, u32) {
        let minimum = minimum_size.max(1);
        if let Some(error) = self.spilled {
            return self.spill(error, minimum);
        }
        let wanted = self.next_words.max(minimum);
        let added = match self.segments.add(wanted) {
            Err(_) if wanted > minimum => self.segments.add(minimum),
            other => other,
        };
        match added {
            Ok(piece) => {
                let words = piece.words() as u32;
                self.next_words = words.saturating_mul(2).min(GROWTH_MAX);
                (piece.start, words)
            }
            Err(error) => self.spill(error, minimum),
        }
    }

    unsafe fn deallocate_segment(&mut self, start: NonNull<u8>, words: u32, used: u32) {
        // A piece of the arena stays: this is how the finished message is taken out of the builder.
        if !self.segments.used(start, used) {
            // SAFETY: not a piece of the arena, so `spill` made it, of so many words.
            unsafe { unspill(start, words) }
        }
    }
}

/// A segment of private memory, of one word or more.
#[cold]
pub(super) fn spill(words: u32) -> NonNull<u8> {
    let layout = spill_layout(words.max(1));
    // SAFETY: at least one word is asked for, so the layout is not empty.
    let start = NonNull::new(unsafe { alloc_zeroed(layout) });
    start.unwrap_or_else(|| handle_alloc_error(layout))
}

/// # Safety
/// [`spill`] must have made it, of so many words; nobody may reach it afterwards.
pub(super) unsafe fn unspill(start: NonNull<u8>, words: u32) {
    // SAFETY: the caller's contract.
    unsafe { dealloc(start.as_ptr(), spill_layout(words.max(1))) }
}

fn spill_layout(words: u32) -> Layout {
    Layout::array::<u64>(words as usize).unwrap_or_else(|_| unreachable!("2^32 words are fewer than isize::MAX bytes"))
}
