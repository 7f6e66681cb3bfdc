//! The queues that are compared, each behind the same two traits. Knows no clock.

use crossbeam_queue::ArrayQueue;
use memmap2::{MmapMut, MmapOptions, MmapRaw};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use strait::ring::{processes, threads};

/// What all of them carry: 56 bytes.
pub(super) type Item = [u64; 7];

/// The end that values go in at.
pub(super) trait Push: Send {
    /// False: it is full.
    fn push(&mut self, item: Item) -> bool;
}

/// The end that values come out at.
pub(super) trait Pop: Send {
    fn pop(&mut self) -> Option<Item>;
}

impl<P: threads::Cardinality> Push for threads::Producer<Item, P>
where
    Self: Send,
{
    #[inline]
    fn push(&mut self, item: Item) -> bool {
        self.try_push(item).is_ok()
    }
}

impl<C: threads::Cardinality> Pop for threads::Consumer<Item, C>
where
    Self: Send,
{
    #[inline]
    fn pop(&mut self) -> Option<Item> {
        self.try_pop().ok()
    }
}

impl Push for processes::Producer<Item> {
    #[inline]
    fn push(&mut self, item: Item) -> bool {
        self.try_push(item).is_ok()
    }
}

impl Pop for processes::Consumer<Item> {
    #[inline]
    fn pop(&mut self) -> Option<Item> {
        self.try_pop().ok()
    }
}

impl Push for rtrb::Producer<Item> {
    #[inline]
    fn push(&mut self, item: Item) -> bool {
        rtrb::Producer::push(self, item).is_ok()
    }
}

impl Pop for rtrb::Consumer<Item> {
    #[inline]
    fn pop(&mut self) -> Option<Item> {
        rtrb::Consumer::pop(self).ok()
    }
}

impl Push for Arc<ArrayQueue<Item>> {
    #[inline]
    fn push(&mut self, item: Item) -> bool {
        ArrayQueue::push(self, item).is_ok()
    }
}

impl Pop for Arc<ArrayQueue<Item>> {
    #[inline]
    fn pop(&mut self) -> Option<Item> {
        ArrayQueue::pop(self)
    }
}

/// Dmitry Vyukov's bounded queue as he published it: a sequence number in each cell, two shared positions, an exchange at
/// each end. Several producers and consumers, in one process or in two that believe each other.
#[derive(Clone)]
pub(super) struct Vyukov {
    map: Arc<MmapRaw>,
    capacity: u64,
}

const WORD: usize = size_of::<u64>();
/// Words of a cell: a cache line.
const CELL: usize = 8;
/// The positions, apart from each other and from the cells.
const ENQUEUE: usize = 0;
const DEQUEUE: usize = 16;
const CELLS: usize = 32;

impl Vyukov {
    /// Between threads.
    pub(super) fn new(capacity: usize) -> anyhow::Result<Self> {
        let queue = Self::over(MmapMut::map_anon(bytes(capacity))?.into(), capacity);
        queue.clear();
        Ok(queue)
    }

    /// Between processes, over a file of at least [`bytes`]. Whoever made that clears it, before the other looks.
    pub(super) fn shared(file: &File, capacity: usize) -> anyhow::Result<Self> {
        Ok(Self::over(MmapOptions::new().len(bytes(capacity)).map_raw(file)?, capacity))
    }

    fn over(map: MmapRaw, capacity: usize) -> Self {
        Self { map: Arc::new(map), capacity: capacity as u64 }
    }

    pub(super) fn clear(&self) {
        for cell in 0..self.capacity {
            self.word(CELLS + cell as usize * CELL).store(cell, Ordering::Relaxed);
        }
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!((at + 1) * WORD <= self.map.len());
        // SAFETY: all callers stay within the cells, which the mapping has room for; it is aligned to pages; it is
        // reached through atomics only, by whichever process; the file, if any, is never made smaller.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(at)) }
    }

    #[inline]
    fn cell(&self, position: u64) -> usize {
        let cell =
            if self.capacity.is_power_of_two() { position & (self.capacity - 1) } else { position % self.capacity };
        CELLS + cell as usize * CELL
    }

    /// Takes a position whose cell has come to `offset` beyond it.
    #[inline]
    fn take(&self, cursor: usize, offset: u64) -> Option<(usize, u64)> {
        let cursor = self.word(cursor);
        let mut position = cursor.load(Ordering::Relaxed);
        loop {
            let cell = self.cell(position);
            let ahead = self.word(cell).load(Ordering::Acquire).wrapping_sub(position + offset).cast_signed();
            if ahead < 0 {
                return None;
            }
            if ahead > 0 {
                position = cursor.load(Ordering::Relaxed);
                continue;
            }
            match cursor.compare_exchange_weak(position, position + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some((cell, position)),
                Err(stands) => position = stands,
            }
        }
    }
}

/// How large a file a queue needs.
pub(super) fn bytes(capacity: usize) -> usize {
    (CELLS + capacity * CELL) * WORD
}

impl Push for Vyukov {
    #[inline]
    fn push(&mut self, item: Item) -> bool {
        let Some((cell, position)) = self.take(ENQUEUE, 0) else { return false };
        for (at, word) in item.into_iter().enumerate() {
            self.word(cell + 1 + at).store(word, Ordering::Relaxed);
        }
        self.word(cell).store(position + 1, Ordering::Release);
        true
    }
}

impl Pop for Vyukov {
    #[inline]
    fn pop(&mut self) -> Option<Item> {
        let (cell, position) = self.take(DEQUEUE, 1)?;
        let item = std::array::from_fn(|at| self.word(cell + 1 + at).load(Ordering::Relaxed));
        self.word(cell).store(position + self.capacity, Ordering::Release);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_is_one() -> anyhow::Result<()> {
        fn is_queue(mut producer: impl Push, mut consumer: impl Pop, capacity: u64) {
            for lap in 0..5 {
                assert_eq!(consumer.pop(), None);
                assert!((0..capacity).all(|number| producer.push([lap * 100 + number; 7])));
                assert!(!producer.push([0; 7]));
                assert!((0..capacity).all(|number| consumer.pop() == Some([lap * 100 + number; 7])));
            }
        }
        for capacity in [1, 8, 10] {
            let count = capacity as u64;
            let (producer, consumer) = threads::spsc(capacity);
            is_queue(producer, consumer, count);
            let (producer, consumer) = threads::mpmc(capacity);
            is_queue(producer, consumer, count);
            let (producer, consumer) = rtrb::RingBuffer::new(capacity);
            is_queue(producer, consumer, count);
            let queue = Arc::new(ArrayQueue::new(capacity));
            is_queue(queue.clone(), queue, count);
            if capacity > 1 {
                let queue = Vyukov::new(capacity)?;
                is_queue(queue.clone(), queue, count);
            }
        }
        Ok(())
    }
}
