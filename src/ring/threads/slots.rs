//! What the handles of a ring share: slots that say by themselves whether they are filled, and two cursors. Knows how a
//! slot is filled and read, not whose turn it is.

use super::Value;
use crate::sys::sync::{AtomicU64, Ordering, PUBLISH, Witnesses};
use std::marker::PhantomData;

/// Nothing on the same pair of cache lines: CPUs fetch lines in pairs.
#[repr(align(128))]
pub(super) struct Apart(pub(super) AtomicU64);

/// Positions count up for ever; the slot of a position is found by its low bits.
pub(super) struct Slots<T> {
    /// Each slot: its sequence number, which is one more than the position it was last filled at, then its value.
    words: Vec<AtomicU64>,
    /// Where in `words` the first slot begins, so that none lies across more cache lines than it must.
    start: usize,
    /// One less than the slots there are, a power of two.
    mask: u64,
    /// How many of them may be filled at a time.
    capacity: u64,
    /// The position that the next of several producers takes. A single producer keeps its own count.
    pub(super) claimed: Apart,
    /// The position of the first slot that has not been emptied.
    pub(super) emptied: Apart,
    witnesses: Witnesses,
    _values: PhantomData<fn(T) -> T>,
}

/// How a slot was found that was to be read.
pub(super) enum Found<T> {
    Filled(T),
    /// Not filled since the lap before.
    Empty,
    /// Emptied by others, and filled anew.
    Later,
}

const WORD: usize = size_of::<u64>();
/// Words in a cache line.
const LINE: usize = 8;
/// Words between the first slot and whatever lies before it in memory; also what the start may be moved by.
const MARGIN: usize = 2 * LINE;

impl<T: Value> Slots<T> {
    /// Words that are used in a slot.
    const WORDS: usize = 1 + size_of::<T>().div_ceil(WORD);

    /// Words from slot to slot: within a cache line, or from the start of one.
    const STRIDE: usize =
        if Self::WORDS <= LINE { Self::WORDS.next_power_of_two() } else { Self::WORDS.next_multiple_of(LINE) };

    /// For at most `capacity` values at a time.
    pub(super) fn new(capacity: usize) -> Self {
        let slots = capacity.next_power_of_two();
        let len = slots.checked_mul(Self::STRIDE).and_then(|words| words.checked_add(3 * MARGIN));
        let words: Vec<_> = (0..len.expect("a ring that fits the address space")).map(|_| AtomicU64::new(0)).collect();
        // The vector never grows, so its words stay where they are.
        let to_line = words.as_ptr().addr().wrapping_neg() % (MARGIN * WORD) / WORD;
        Self {
            words,
            start: MARGIN + if cfg!(strait_loom) { 0 } else { to_line },
            mask: slots as u64 - 1,
            capacity: capacity as u64,
            claimed: Apart(AtomicU64::new(0)),
            emptied: Apart(AtomicU64::new(0)),
            witnesses: Witnesses::new(slots),
            _values: PhantomData,
        }
    }

    #[inline]
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    #[inline]
    fn slot(&self, position: u64) -> (&AtomicU64, &[AtomicU64]) {
        let at = self.start + (position & self.mask) as usize * Self::STRIDE;
        let slot = &self.words[at..at + Self::WORDS];
        (&slot[0], &slot[1..])
    }

    /// Fills the slot and says so. To be called once per position, by whoever's turn it is, after it has acquired an
    /// `emptied` beyond the position a lap before.
    #[inline]
    pub(super) fn fill(&self, position: u64, value: &T) {
        let (sequence, words) = self.slot(position);
        self.witnesses.filled(position & self.mask);
        if cfg!(strait_plant = "early-publish") {
            sequence.store(position + 1, PUBLISH);
        }
        let (whole, rest) = value.as_bytes().as_chunks::<WORD>();
        for (word, bytes) in words.iter().zip(whole) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        if !rest.is_empty() {
            let mut bytes = [0; WORD];
            bytes[..rest.len()].copy_from_slice(rest);
            words[whole.len()].store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        // Partner: the load in `read`.
        sequence.store(position + 1, PUBLISH);
    }

    /// The value of the slot, if it holds that of this position. It may be filled anew meanwhile: what was read counts
    /// only if `emptied` was at or before this position afterwards, since nobody fills a slot again before it is emptied.
    #[inline]
    pub(super) fn read(&self, position: u64) -> Found<T> {
        let (sequence, words) = self.slot(position);
        // Partner: the publication in `fill`.
        let found = sequence.load(Ordering::Acquire);
        if found != position + 1 {
            return if found > position { Found::Later } else { Found::Empty };
        }
        let mut value = T::new_zeroed();
        let (whole, rest) = value.as_mut_bytes().as_chunks_mut::<WORD>();
        let count = whole.len();
        for (bytes, word) in whole.iter_mut().zip(words) {
            *bytes = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        if !rest.is_empty() {
            let bytes = words[count].load(Ordering::Relaxed).to_ne_bytes();
            rest.copy_from_slice(&bytes[..rest.len()]);
        }
        self.witnesses.read(position & self.mask);
        Found::Filled(value)
    }

    /// Lets consumers read in vain what is being filled, which is no fault where several compete.
    #[cfg(strait_loom)]
    pub(super) fn without_witnesses(mut self) -> Self {
        self.witnesses = Witnesses::new(0);
        self
    }
}
