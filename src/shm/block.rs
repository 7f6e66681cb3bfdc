//! Pieces of an arena: a [`Block`] has one owner who writes it, [`Segments`] are what a message is built in, [`Frozen`]
//! are those that nobody writes any more. Knows where bytes lie, not what they mean.

use super::arena::{AllocError, Arena};
use super::blob::Blob;
use super::handle::WORD;
use crate::sys::words::OwnWords;
use smallvec::SmallVec;
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

/// Where a piece of an arena lies. A name, not an owner.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) start: NonNull<u8>,
    pub(super) bytes: usize,
    /// jemalloc rounds sizes by alignment, so it has to hear of both again when the piece is freed.
    pub(super) align: usize,
}

impl Piece {
    #[inline]
    pub(crate) fn words(self) -> usize {
        self.bytes / WORD
    }
}

/// A zeroed, 8-aligned piece of an arena with one owner. Freed on drop.
#[derive(Debug)]
pub(crate) struct Block {
    arena: Arena,
    piece: Piece,
}

// SAFETY: a block is plain memory with one owner; jemalloc frees from any thread.
unsafe impl Send for Block {}
// SAFETY: through `&Block` the memory can only be named.
unsafe impl Sync for Block {}

impl Block {
    pub(super) fn new(arena: Arena, piece: Piece) -> Self {
        Self { arena, piece }
    }

    /// The word of the arena at which it begins.
    pub(crate) fn offset(&self) -> u64 {
        self.arena.offset_of(self.piece)
    }

    pub(super) fn arena(&self) -> &Arena {
        &self.arena
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.piece.start
    }

    /// How many bytes it has.
    pub(super) fn bytes(&self) -> usize {
        self.piece.bytes
    }

    /// Turns the block into words that this process writes while others read them; `with` is dropped when they are freed.
    pub(crate) fn into_words(self, with: impl Any + Send + Sync) -> OwnWords {
        let (start, words) = (self.piece.start.cast(), self.piece.words());
        let keep: Arc<dyn Any + Send + Sync> = Arc::new((self, with));
        // SAFETY: the block is that many aligned words, lives as long as `keep`, and was given up to this value.
        unsafe { OwnWords::new(start, words, keep) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the piece came from this arena, and its only owner is being dropped.
        unsafe { self.arena.free(self.piece) };
    }
}

/// Pieces of one arena that are being written, each from its start. Freed on drop.
#[derive(Debug)]
pub(crate) struct Segments {
    arena: Arena,
    pieces: SmallVec<[Segment; 1]>,
}

/// One of them. Small, because it moves with its message: Cap'n Proto counts words in 32 bits.
#[derive(Clone, Copy, Debug)]
struct Segment {
    start: NonNull<u8>,
    words: u32,
    /// How many of them are in use.
    used: u32,
}

impl Segment {
    #[inline]
    fn piece(self) -> Piece {
        Piece { start: self.start, bytes: self.words as usize * WORD, align: WORD }
    }

    #[inline]
    fn bytes(self) -> u64 {
        u64::from(self.words) * WORD as u64
    }
}

// SAFETY: as for `Block`.
unsafe impl Send for Segments {}
// SAFETY: as for `Block`; `Frozen` reads what nobody writes any more.
unsafe impl Sync for Segments {}

impl Segments {
    pub(crate) fn new(arena: Arena) -> Self {
        Self { arena, pieces: SmallVec::new() }
    }

    /// Adds a zeroed piece of `words` words.
    #[inline]
    pub(crate) fn add(&mut self, words: u32) -> Result<Piece, AllocError> {
        let words = words.max(1);
        let piece = self.arena.cut(words as usize * WORD, WORD)?;
        self.pieces.push(Segment { start: piece.start, words, used: 0 });
        Ok(piece)
    }

    /// Notes how many words from `start` are in use; false if no piece begins there.
    #[inline]
    pub(crate) fn used(&mut self, start: NonNull<u8>, words: u32) -> bool {
        let found = self.pieces.iter_mut().find(|segment| segment.start == start);
        // A segment that nothing was put into still has its first, zero word: no name is of nothing.
        found.map(|segment| segment.used = words.max(1)).is_some()
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        for segment in &self.pieces {
            // SAFETY: `add` cut this piece from this arena, and its only owner is being dropped.
            unsafe { self.arena.free(segment.piece()) };
        }
    }
}

/// Segments that nobody writes any more, and the blobs that go with them: what a loan keeps alive.
#[derive(Debug)]
pub(crate) struct Frozen {
    segments: Segments,
    /// What a handle has to name, in words: the segment itself, or the table of several.
    place: (u64, u64),
    /// What it keeps from being used otherwise.
    bytes: u64,
    /// With more than one segment, or any blob.
    rest: Option<Box<Rest>>,
}

/// What few messages have.
#[derive(Debug)]
struct Rest {
    /// Where each segment and blob begins and how long it is, two words each. Segments first, in words; then blobs, in
    /// bytes.
    table: Block,
    blobs: Box<[Blob]>,
}

/// More would not fit a slot's count; Cap'n Proto itself draws the line at 512.
pub(crate) const MAX_SEGMENTS: usize = 512;

/// More would not fit a slot's count.
pub(crate) const MAX_BLOBS: usize = 255;

/// Why segments cannot become one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FreezeProblem {
    Alloc(AllocError),
    Segments(usize),
    Blobs(usize),
    /// A blob lies in another arena.
    ForeignBlob,
}

impl Frozen {
    /// `segments` must be one or more, each using at least one word.
    #[inline]
    pub(crate) fn new(segments: Segments) -> Result<Arc<Self>, FreezeProblem> {
        debug_assert!(segments.pieces.iter().all(|segment| segment.used > 0));
        match segments.pieces.as_slice() {
            &[segment] => {
                let place = (segments.arena.offset_of(segment.piece()), u64::from(segment.used));
                Ok(Arc::new(Self { segments, place, bytes: segment.bytes(), rest: None }))
            }
            _ => Self::with_blobs(segments, Vec::new()),
        }
    }

    /// As [`new`](Self::new), with blobs.
    #[cold]
    pub(crate) fn with_blobs(segments: Segments, blobs: Vec<Blob>) -> Result<Arc<Self>, FreezeProblem> {
        match segments.pieces.len() {
            1..=MAX_SEGMENTS => {}
            count => return Err(FreezeProblem::Segments(count)),
        }
        if blobs.len() > MAX_BLOBS {
            return Err(FreezeProblem::Blobs(blobs.len()));
        }
        if !blobs.iter().all(|blob| blob.arena().same(&segments.arena)) {
            return Err(FreezeProblem::ForeignBlob);
        }
        let table = Self::table(&segments, &blobs).map_err(FreezeProblem::Alloc)?;
        let place = (table.offset(), table.piece.words() as u64);
        let bytes = segments.pieces.iter().map(|segment| segment.bytes()).chain(blobs.iter().map(Blob::allocated));
        let bytes = bytes.fold(0, u64::saturating_add);
        Ok(Arc::new(Self { segments, place, bytes, rest: Some(Box::new(Rest { table, blobs: blobs.into() })) }))
    }

    fn table(segments: &Segments, blobs: &[Blob]) -> Result<Block, AllocError> {
        let table = segments.arena.alloc((segments.pieces.len() + blobs.len()) * 2 * WORD, WORD)?;
        let place = |segment: &Segment| [segments.arena.offset_of(segment.piece()), u64::from(segment.used)];
        let pieces = segments.pieces.iter().map(place);
        let bytes = blobs.iter().map(|blob| [blob.offset(), blob.len() as u64]);
        for (index, words) in pieces.chain(bytes).enumerate() {
            let entry = table.piece.start.cast::<[u64; 2]>();
            // SAFETY: the block has room for an entry of two words per piece and per blob, is 8-aligned, and nobody else
            // has it yet.
            unsafe { entry.add(index).write(words) };
        }
        Ok(table)
    }

    /// The same bytes, blobs included, in another arena.
    pub(crate) fn copy_to(&self, arena: &Arena) -> Result<Arc<Self>, FreezeProblem> {
        let mut segments = Segments::new(arena.clone());
        for bytes in (0..self.segment_count()).map(|index| self.segment(index)) {
            let bytes = bytes.ok_or(FreezeProblem::Alloc(AllocError::ForkedProcess))?;
            // Cap'n Proto's segments have at most 2^29 words.
            let words = (bytes.len() / WORD) as u32;
            let piece = segments.add(words).map_err(FreezeProblem::Alloc)?;
            // SAFETY: the piece was cut for so many words just now, and nobody else has it.
            unsafe { piece.start.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
            segments.used(piece.start, words);
        }
        if self.blobs().is_empty() {
            return Self::new(segments);
        }
        let blobs = self.blobs().iter().map(|blob| blob.copy_to(arena));
        Self::with_blobs(segments, blobs.collect::<Result<_, _>>().map_err(FreezeProblem::Alloc)?)
    }

    #[inline]
    pub(crate) fn arena(&self) -> &Arena {
        &self.segments.arena
    }

    /// What a handle has to name, in words: the segment itself, or the table of several.
    #[inline]
    pub(crate) fn place(&self) -> (u64, u64) {
        self.place
    }

    #[inline]
    pub(crate) fn segment_count(&self) -> usize {
        self.segments.pieces.len()
    }

    /// Its words, if it is one segment of at most so many and nothing else.
    #[inline]
    pub(crate) fn inside(&self, limit: usize) -> Option<&[u64]> {
        let used = self.segments.pieces.first()?.used as usize;
        if used > limit || self.rest.is_some() { None } else { self.words(0) }
    }

    /// The bytes of segment `index`, which nobody writes while `self` lives.
    pub(crate) fn segment(&self, index: usize) -> Option<&[u8]> {
        let words = self.words(index)?;
        // SAFETY: initialised words are initialised bytes, and bytes need no alignment.
        Some(unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) })
    }

    #[inline]
    fn words(&self, index: usize) -> Option<&[u64]> {
        let &Segment { start, used, .. } =
            self.segments.pieces.get(index).filter(|_| !self.segments.arena.is_forked())?;
        // SAFETY: `used` words of the piece are aligned and initialised (pieces come zeroed), live as long as `self`, and
        // are written by nobody: this process gave up its writer to make `self`, and no other process has ever had one.
        Some(unsafe { std::slice::from_raw_parts(start.cast().as_ptr(), used as usize) })
    }

    #[inline]
    pub(crate) fn blobs(&self) -> &[Blob] {
        self.rest.as_ref().map_or(&[], |rest| &rest.blobs)
    }

    // Where memory is not shared.

    /// How many bytes it is all in all: the table if there is one, the segments, the blobs, each in whole words.
    pub(crate) fn carried_bytes(&self) -> usize {
        self.parts().map(|part| part.len().next_multiple_of(WORD)).sum()
    }

    /// Copies at most `max` of these bytes, whole words, from byte `from` on; tells how many.
    pub(crate) fn carry(&self, from: usize, max: usize, into: &mut Vec<u8>) -> usize {
        let (before, end) = (into.len(), into.len() + max / WORD * WORD);
        let mut skip = from;
        for part in self.parts() {
            let whole = part.len().next_multiple_of(WORD);
            if skip < whole {
                let bytes = part.get(skip..).unwrap_or_default();
                into.extend_from_slice(bytes.get(..end - into.len()).unwrap_or(bytes));
                into.resize(into.len().next_multiple_of(WORD), 0);
            }
            skip = skip.saturating_sub(whole);
        }
        into.len() - before
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let here = !self.segments.arena.is_forked();
        // SAFETY: a table's block is written in full before there is a `Frozen`, and by nobody after that.
        let table = self.rest.iter().filter(move |_| here).map(|rest| unsafe {
            std::slice::from_raw_parts(rest.table.piece.start.as_ptr().cast_const(), rest.table.piece.bytes)
        });
        let segments = (0..self.segments.pieces.len()).filter_map(|index| self.segment(index));
        table.chain(segments).chain(self.blobs().iter().map(|blob| &**blob))
    }

    /// What it keeps from being used otherwise.
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}
