//! A piece of an arena: [`Block`] while one hand writes it, [`Frozen`] once several of them are a message that nobody
//! writes any more. Knows where bytes lie, not what they mean.

use super::arena::{AllocError, Arena};
use super::handle::WORD;
use crate::sys::words::OwnWords;
use smallvec::SmallVec;
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

/// A zeroed, 8-aligned piece of an arena with one owner. Freed on drop.
#[derive(Debug)]
pub(crate) struct Block {
    arena: Arena,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a block is plain memory with one owner; jemalloc frees from any thread.
unsafe impl Send for Block {}
// SAFETY: through `&Block` the memory can only be named, or read by `Frozen`, which nobody writes.
unsafe impl Sync for Block {}

impl Block {
    pub(super) fn new(arena: Arena, start: NonNull<u8>, bytes: usize) -> Self {
        Self { arena, start, bytes }
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn words(&self) -> usize {
        self.bytes / WORD
    }

    /// The word of the arena at which it begins.
    pub(crate) fn offset(&self) -> u64 {
        self.arena.offset_of(self.start)
    }

    /// Turns the block into words that this process writes while others read them.
    pub(crate) fn into_words(self) -> OwnWords {
        let (start, words) = (self.start.cast(), self.words());
        let keep: Arc<dyn Any + Send + Sync> = Arc::new(self);
        // SAFETY: the block is that many aligned words, lives as long as `keep`, and was given up to this value.
        unsafe { OwnWords::new(start, words, keep) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `start` came from this arena's `alloc` with this size; a block is dropped once.
        unsafe { self.arena.free(self.start, self.bytes) };
    }
}

/// A segment: a block, of which the first words are in use.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) block: Block,
    pub(crate) used: usize,
}

/// Segments that nobody writes any more: what a loan keeps alive.
#[derive(Debug)]
pub(crate) struct Frozen {
    segments: SmallVec<[Segment; 1]>,
    /// With more than one segment: where each begins and how long it is, two words each.
    table: Option<Block>,
}

/// More would not fit a slot's count; Cap'n Proto itself draws the line at 512.
pub(crate) const MAX_SEGMENTS: usize = 512;

/// Why segments cannot become one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FreezeProblem {
    Alloc(AllocError),
    TooManySegments(usize),
}

impl Frozen {
    /// `segments` must be one or more of the same arena, each using at least one word.
    pub(crate) fn new(arena: &Arena, segments: SmallVec<[Segment; 1]>) -> Result<Self, FreezeProblem> {
        debug_assert!(segments.iter().all(|segment| segment.used > 0 && segment.block.arena.same(arena)));
        if segments.len() > MAX_SEGMENTS {
            return Err(FreezeProblem::TooManySegments(segments.len()));
        }
        let table = match segments.len() {
            1 => None,
            count => Some(Self::table(arena, &segments, count).map_err(FreezeProblem::Alloc)?),
        };
        Ok(Self { segments, table })
    }

    fn table(arena: &Arena, segments: &[Segment], count: usize) -> Result<Block, AllocError> {
        let table = arena.alloc(count * 2 * WORD, WORD)?;
        for (index, segment) in segments.iter().enumerate() {
            let entry = table.start().cast::<[u64; 2]>();
            // SAFETY: the block has room for `count` entries of two words, is 8-aligned, and nobody else has it yet.
            unsafe { entry.add(index).write([segment.block.offset(), segment.used as u64]) };
        }
        Ok(table)
    }

    pub(crate) fn arena(&self) -> Option<&Arena> {
        self.segments.first().map(|segment| &segment.block.arena)
    }

    /// What a handle has to name: the segment itself, or the table of several.
    pub(crate) fn place(&self) -> Option<(u64, u64)> {
        let first = self.segments.first()?;
        Some(match &self.table {
            None => (first.block.offset(), first.used as u64),
            Some(table) => (table.offset(), table.words() as u64),
        })
    }

    pub(crate) fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// The bytes of segment `index`, which nobody writes while `self` lives.
    pub(crate) fn segment(&self, index: usize) -> Option<&[u8]> {
        let segment = self.segments.get(index)?;
        // SAFETY: `used` words of the block are initialised (blocks come zeroed), live as long as `self`, and are
        // written by nobody: this process gave up its writer to make `self`, and no other process has ever had one.
        Some(unsafe { std::slice::from_raw_parts(segment.block.start.as_ptr(), segment.used * WORD) })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.block.bytes as u64).sum()
    }
}
