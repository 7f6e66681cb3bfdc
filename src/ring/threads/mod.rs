//! Rings between threads, for one or several producers and one or several consumers.
//!
//! [`spsc`], [`mpsc`], [`spmc`] and [`mpmc`] make a ring and give its two ends. How many may use an end is in its type:
//! `Producer<T, Multi>` can be cloned, `Producer<T, Single>` cannot, and so for consumers. Each handle belongs to one
//! thread at a time and is moved or cloned into others.
//!
//! ```
//! use strait::ring::threads::{Empty, Full, mpsc};
//!
//! let (mut one, mut consumer) = mpsc::<u64>(2);
//! let mut other = one.clone();
//! std::thread::scope(|scope| {
//!     scope.spawn(move || one.try_push(7));
//!     scope.spawn(move || other.try_push(8));
//! });
//! let sum = consumer.try_pop()? + consumer.try_pop()?;
//! assert_eq!((sum, consumer.try_pop()), (15, Err(Empty)));
//! # Ok::<(), Empty>(())
//! ```
//!
//! Nothing here waits: a full ring is [`Full`], one without anything to take is [`Empty`], at once. Who wants to sleep
//! meanwhile has to be woken by something else; a [`Channel`](crate::Channel) does that.
//!
//! # What it costs
//! A value and the number that says that it is there lie in one cache line up to 56 bytes, and this line is all that has to
//! cross from CPU to CPU per value. A single producer and a single consumer run no atomic read-modify-write; one of several
//! runs one per call, so several values per call ([`Producer::push_slice`], [`Consumer::pop_slice`]) cost little more than
//! one. Slots are written by producers alone; a producer reads where the consumers are when its last knowledge of that
//! says that the ring is full.
//!
//! # When a thread stops in the middle
//! A consumer holds nothing: it may be stopped, or end, at any instruction, and others take what it would have taken. One
//! of several producers that is stopped between taking a slot and filling it (some ten instructions) holds up what was
//! pushed after it: consumers find the ring empty, and producers find it full when they come around, until it runs again.
//! Nobody waits for it inside a call. A single producer holds up nobody.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "no other process has a say: positions are counted one by one and cut to a slot by a mask"
)]

#[cfg(all(test, strait_loom))]
mod models;
mod slots;
#[cfg(all(test, not(strait_loom)))]
mod tests;

use crate::sys::sync::{AtomicU64, Ordering, fence};
use slots::{Found, Slots};
use std::fmt;
use std::hint::spin_loop;
use std::marker::PhantomData;
use std::sync::{Arc, Weak};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What a ring carries: plain values, copied in and out. Whatever has these traits is one; those of `zerocopy` are derived.
///
/// A consumer may read a slot just as it is filled anew, and throws away what it read: therefore any bytes have to be a
/// value, as they are for numbers, arrays and structs of them, and not for a `bool` or a reference.
///
/// ```
/// use strait::zerocopy::{FromBytes, Immutable, IntoBytes};
///
/// #[derive(Clone, Copy, FromBytes, Immutable, IntoBytes)]
/// #[repr(C)]
/// struct Tick {
///     at: u64,
///     price: f64,
/// }
///
/// let (mut producer, mut consumer) = strait::ring::threads::spsc(10);
/// producer.try_push(Tick { at: 1, price: 0.5 })?;
/// assert_eq!(consumer.try_pop().map(|tick| tick.price), Ok(0.5));
/// # Ok::<(), strait::ring::threads::Full>(())
/// ```
pub trait Value: Copy + Send + FromBytes + IntoBytes + Immutable {}

impl<T: Copy + Send + FromBytes + IntoBytes + Immutable> Value for T {}

/// As many values as the ring has room for have been pushed and not been popped. Nothing was pushed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the ring is full")]
pub struct Full;

/// There is nothing to pop: everything pushed has been popped, or is still being written by its producer.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the ring is empty")]
pub struct Empty;

/// One handle at this end. See the [module](self).
#[derive(Clone, Copy, Debug)]
pub enum Single {}

/// Any number of handles at this end. See the [module](self).
#[derive(Clone, Copy, Debug)]
pub enum Multi {}

/// [`Single`] or [`Multi`].
pub trait Cardinality: turns::Turns {}
impl Cardinality for Single {}
impl Cardinality for Multi {}

mod turns {
    use super::{AtomicU64, Multi, Ordering, Single};

    /// How handles at an end agree on whose turn it is.
    pub trait Turns {
        /// Takes `count` positions from `at` on for filling, if that is still where the next producer begins; else tells
        /// where that is. Publishes nothing: what a producer needs to know it has acquired from `emptied`.
        fn claim(claimed: &AtomicU64, at: u64, count: u64) -> Result<(), u64>;

        /// Says that `count` positions from `at` on have been read, if nobody has said so before; else tells how far
        /// others are. Releases them: the loads that read them come first.
        fn empty(emptied: &AtomicU64, at: u64, count: u64) -> Result<(), u64>;
    }

    /// Partner of the load in `Producer::room`.
    const EMPTY: Ordering = if cfg!(strait_plant = "relaxed-cursor") { Ordering::Relaxed } else { Ordering::Release };

    impl Turns for Single {
        #[inline]
        fn claim(_: &AtomicU64, _: u64, _: u64) -> Result<(), u64> {
            Ok(())
        }

        #[inline]
        fn empty(emptied: &AtomicU64, at: u64, count: u64) -> Result<(), u64> {
            emptied.store(at + count, EMPTY);
            Ok(())
        }
    }

    impl Turns for Multi {
        #[inline]
        fn claim(claimed: &AtomicU64, at: u64, count: u64) -> Result<(), u64> {
            if cfg!(strait_plant = "shared-claim") {
                claimed.store(at + count, Ordering::Relaxed);
                return Ok(());
            }
            claimed.compare_exchange(at, at + count, Ordering::Relaxed, Ordering::Relaxed).map(drop)
        }

        #[inline]
        fn empty(emptied: &AtomicU64, at: u64, count: u64) -> Result<(), u64> {
            if cfg!(strait_plant = "shared-take") {
                return Single::empty(emptied, at, count);
            }
            // Every consumer's exchange continues what the ones before released, so a producer that acquires the last
            // has acquired all.
            emptied.compare_exchange(at, at + count, EMPTY, Ordering::Relaxed).map(drop)
        }
    }
}

/// One producer, one consumer. Room for `capacity` values.
///
/// ```
/// use strait::ring::threads::{Full, spsc};
///
/// let (mut producer, mut consumer) = spsc::<[u64; 7]>(1);
/// producer.try_push([1; 7])?;
/// assert_eq!(producer.try_push([2; 7]), Err(Full));
/// assert_eq!(consumer.try_pop(), Ok([1; 7]));
/// # Ok::<(), Full>(())
/// ```
///
/// # Panics
/// If `capacity` is 0, or more than fits memory. So for the other kinds.
pub fn spsc<T: Value>(capacity: usize) -> (Producer<T, Single>, Consumer<T, Single>) {
    ends(capacity)
}

/// Several producers, one consumer: values of one producer arrive in order. Room for `capacity` values.
///
/// # Panics
/// As for [`spsc`].
pub fn mpsc<T: Value>(capacity: usize) -> (Producer<T, Multi>, Consumer<T, Single>) {
    ends(capacity)
}

/// One producer, several consumers: each value goes to one of them. Room for `capacity` values.
///
/// # Panics
/// As for [`spsc`].
pub fn spmc<T: Value>(capacity: usize) -> (Producer<T, Single>, Consumer<T, Multi>) {
    ends(capacity)
}

/// Several producers, several consumers. Room for `capacity` values.
///
/// # Panics
/// As for [`spsc`].
pub fn mpmc<T: Value>(capacity: usize) -> (Producer<T, Multi>, Consumer<T, Multi>) {
    ends(capacity)
}

fn ends<T: Value, P: Cardinality, C: Cardinality>(capacity: usize) -> (Producer<T, P>, Consumer<T, C>) {
    assert!(capacity > 0, "a ring of no slots carries nothing");
    around(Arc::new(Slots::new(capacity)))
}

fn around<T: Value, P: Cardinality, C: Cardinality>(slots: Arc<Slots<T>>) -> (Producer<T, P>, Consumer<T, C>) {
    let (producers, consumers) = (Arc::new(()), Arc::new(()));
    let (to_producers, to_consumers) = (Arc::downgrade(&producers), Arc::downgrade(&consumers));
    let producer = Producer {
        slots: slots.clone(),
        next: 0,
        emptied: 0,
        here: producers,
        there: to_consumers,
        _cardinality: PhantomData,
    };
    (producer, Consumer { slots, next: 0, here: consumers, there: to_producers, _cardinality: PhantomData })
}

/// The end of a ring that values go in at: the only one ([`Single`]), or one of several ([`Multi`]), which can be cloned.
///
/// Made by [`spsc`], [`mpsc`], [`spmc`] and [`mpmc`]. Belongs to one thread at a time.
pub struct Producer<T, P = Single> {
    slots: Arc<Slots<T>>,
    /// The position to fill next. One of several producers believes so, and is told better.
    next: u64,
    /// The last `emptied` that was seen.
    emptied: u64,
    here: Arc<()>,
    there: Weak<()>,
    _cardinality: PhantomData<P>,
}

impl<T: Value, P: Cardinality> Producer<T, P> {
    /// Pushes one value. Never blocks.
    ///
    /// # Errors
    /// [`Full`].
    #[inline]
    pub fn try_push(&mut self, value: T) -> Result<(), Full> {
        let mut contention = Contention::default();
        loop {
            if self.room(1) == 0 {
                return Err(Full);
            }
            match P::claim(&self.slots.claimed.0, self.next, 1) {
                Ok(()) => break,
                Err(stands) => self.next = contention.met(stands),
            }
        }
        self.slots.fill(self.next, &value);
        self.next += 1;
        Ok(())
    }

    /// Pushes as many of `values` as there is room for, from the first on and next to each other, and tells how many. Never
    /// blocks.
    ///
    /// ```
    /// let (mut producer, mut consumer) = strait::ring::threads::mpmc::<u32>(3);
    /// assert_eq!(producer.push_slice(&[1, 2, 3, 4]), 3);
    /// let mut found = [0; 2];
    /// assert_eq!((consumer.pop_slice(&mut found), found), (2, [1, 2]));
    /// ```
    #[inline]
    pub fn push_slice(&mut self, values: &[T]) -> usize {
        let mut contention = Contention::default();
        let count = loop {
            let count = self.room(values.len() as u64).min(values.len() as u64);
            if count == 0 {
                return 0;
            }
            match P::claim(&self.slots.claimed.0, self.next, count) {
                Ok(()) => break count as usize,
                Err(stands) => self.next = contention.met(stands),
            }
        };
        for value in &values[..count] {
            self.slots.fill(self.next, value);
            self.next += 1;
        }
        count
    }

    /// How many slots are free from `next` on; looked up if fewer than `wanted` were when last seen. None, if others have
    /// gone on: then there are none for them either.
    #[inline]
    fn room(&mut self, wanted: u64) -> u64 {
        let room = (self.emptied + self.slots.capacity()).saturating_sub(self.next);
        if room >= wanted {
            return room;
        }
        // Partner: `Turns::empty`: consumers have read what these slots held before they are filled anew.
        self.emptied = self.slots.emptied.0.load(Ordering::Acquire);
        (self.emptied + self.slots.capacity()).saturating_sub(self.next)
    }

    /// How many values the ring has room for.
    pub fn capacity(&self) -> usize {
        self.slots.capacity() as usize
    }

    /// Whether all consumers are gone: nobody will pop what is pushed.
    pub fn is_abandoned(&self) -> bool {
        is_gone(&self.there)
    }
}

impl<T> Clone for Producer<T, Multi> {
    fn clone(&self) -> Self {
        Self {
            slots: self.slots.clone(),
            next: self.next,
            emptied: self.emptied,
            here: self.here.clone(),
            there: self.there.clone(),
            _cardinality: PhantomData,
        }
    }
}

impl<T, P> fmt::Debug for Producer<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("next", &self.next).finish_non_exhaustive()
    }
}

/// The end of a ring that values come out at: the only one ([`Single`]), or one of several ([`Multi`]), which can be
/// cloned.
///
/// Made by [`spsc`], [`mpsc`], [`spmc`] and [`mpmc`]. Belongs to one thread at a time.
pub struct Consumer<T, C = Single> {
    slots: Arc<Slots<T>>,
    /// The position to empty next. One of several consumers believes so, and is told better.
    next: u64,
    here: Arc<()>,
    there: Weak<()>,
    _cardinality: PhantomData<C>,
}

impl<T: Value, C: Cardinality> Consumer<T, C> {
    /// Pops one value. Never blocks.
    ///
    /// # Errors
    /// [`Empty`].
    #[inline]
    pub fn try_pop(&mut self) -> Result<T, Empty> {
        let mut contention = Contention::default();
        loop {
            match self.slots.read(self.next) {
                Found::Filled(value) => match C::empty(&self.slots.emptied.0, self.next, 1) {
                    Ok(()) => {
                        let value = if cfg!(strait_plant = "late-read") { self.late(value) } else { value };
                        self.next += 1;
                        return Ok(value);
                    }
                    Err(stands) => self.next = contention.met(stands),
                },
                // Nobody can have emptied what is not filled, so there is nothing behind it either.
                Found::Empty => return Err(Empty),
                Found::Later => self.next = self.slots.emptied.0.load(Ordering::Relaxed),
            }
        }
    }

    /// Pops into `values`, from its first on, as many values as there are and have room in it, and tells how many. Never
    /// blocks.
    #[inline]
    pub fn pop_slice(&mut self, values: &mut [T]) -> usize {
        let mut contention = Contention::default();
        loop {
            let mut count = 0;
            let mut overtaken = false;
            for place in &mut *values {
                match self.slots.read(self.next + count) {
                    Found::Filled(value) => *place = value,
                    Found::Empty => break,
                    Found::Later => {
                        overtaken = true;
                        break;
                    }
                }
                count += 1;
            }
            if overtaken {
                self.next = self.slots.emptied.0.load(Ordering::Relaxed);
                continue;
            }
            if count == 0 {
                return 0;
            }
            match C::empty(&self.slots.emptied.0, self.next, count) {
                Ok(()) => {
                    self.next += count;
                    return count as usize;
                }
                Err(stands) => self.next = contention.met(stands),
            }
        }
    }

    /// How many values the ring has room for.
    pub fn capacity(&self) -> usize {
        self.slots.capacity() as usize
    }

    /// Whether all producers are gone: what can be popped after this was said is the last.
    pub fn is_abandoned(&self) -> bool {
        is_gone(&self.there)
    }

    /// A planted bug: reads after others may write.
    #[cold]
    fn late(&self, value: T) -> T {
        match self.slots.read(self.next) {
            Found::Filled(value) => value,
            Found::Empty | Found::Later => value,
        }
    }
}

impl<T> Clone for Consumer<T, Multi> {
    fn clone(&self) -> Self {
        Self {
            slots: self.slots.clone(),
            next: self.next,
            here: self.here.clone(),
            there: self.there.clone(),
            _cardinality: PhantomData,
        }
    }
}

impl<T, C> fmt::Debug for Consumer<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("next", &self.next).finish_non_exhaustive()
    }
}

/// How often a call came second. Each time it stays away from the cursor for longer, so that whoever has that cursor's line
/// can do more with it before it moves on.
#[derive(Default)]
struct Contention(u32);

impl Contention {
    /// Hands through where the cursor stands, after a while that depends.
    #[inline]
    fn met(&mut self, stands: u64) -> u64 {
        // The first time, the exchange that failed has fetched the line: the next may well succeed.
        for _ in 0..self.0 {
            spin_loop();
        }
        self.0 = (2 * self.0).clamp(1, PAUSES_MAX);
        stands
    }
}

/// Some 0.8 us, at 25 ns a pause.
const PAUSES_MAX: u32 = 32;

fn is_gone(end: &Weak<()>) -> bool {
    let gone = end.strong_count() == 0;
    // Partner: the release with which an `Arc` is dropped: what its handle did before is visible after.
    fence(Ordering::Acquire);
    gone
}
