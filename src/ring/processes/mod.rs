//! A ring each way between two processes, over memory handed over by descriptor: no session is needed, though one can
//! carry the descriptors.
//!
//! Each process makes its [`Side`], hands that side's descriptor to the other in whatever way (with a message, over a
//! socket of its own, across `exec`), and [joins](Side::join) it with the one it gets. Both then have a [`Producer`] for the
//! one direction and a [`Consumer`] for the other; who needs one direction drops the other half.
//!
//! ```
//! use strait::ring::processes::Side;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Here both sides are in one process, which works as well.
//! let (ours, theirs) = (Side::<u64>::create(10)?, Side::<u64>::create(10)?);
//! let (to_them, to_us) = (ours.descriptor()?, theirs.descriptor()?);
//! let (mut producer, _) = ours.join(to_us)?;
//! let (_, mut consumer) = theirs.join(to_them)?;
//! producer.try_push(7)?;
//! assert_eq!(consumer.try_pop()?, 7);
//! # Ok(())
//! # }
//! ```
//!
//! Each side writes its own memory and reads the other's, so neither can corrupt the other; what cannot be is an error, and
//! the ring is then of no more use. Nothing here waits, and nothing here learns that the other process has died: a ring whose
//! producer is gone yields what was pushed and is empty from then on, one whose consumer is gone becomes full. There is
//! nothing to repair or remove; the memory ends with its last holder.
//!
//! A value of up to 56 bytes crosses in one cache line. Neither side makes a system call or an atomic read-modify-write.

#[cfg(test)]
mod tests;

use super::threads::Value;
use super::{PAYLOAD, Payload, SLOTS_RANGE, area};
use crate::shm::value::digest;
use crate::sys::fork;
use crate::sys::lent::{Lent, Shown};
use crate::sys::memfd::BadMemory;
use crate::sys::misbehaved::PeerMisbehaved;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::{fmt, io};
use thiserror::Error;
use zerocopy::IntoBytes;

/// What a side's memory begins with, in words; then its area, as that of a channel.
mod header {
    pub(super) const MAGIC: usize = 0;
    pub(super) const SLOTS: usize = 1;
    pub(super) const VALUE_BYTES: usize = 2;
    pub(super) const VALUE_TYPE: usize = 3;
    pub(super) const WORDS: usize = 16;
}

const MAGIC: u64 = u64::from_le_bytes(*b"strring1");

/// The largest memory a side has: that of the most slots, in the units in which memory is made.
const BYTES_MAX: u64 = 5 << 20;

/// This process's side of a pair of rings, not joined yet. See the [module](self).
pub struct Side<T> {
    memory: Lent,
    capacity: u64,
    slots: usize,
    process: u32,
    _values: PhantomData<fn(T) -> T>,
}

impl<T: Value> Side<T> {
    /// Makes this side's memory, with room for `capacity` values on their way to the other side. Makes five system calls.
    ///
    /// # Errors
    /// What the system says: no memory, no descriptor. [`InvalidInput`](io::ErrorKind::InvalidInput) if `capacity` is 0 or
    /// more than 65,536.
    pub fn create(capacity: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>() <= size_of::<Payload>(), "values between processes have at most 56 bytes") };
        let (least, most) = SLOTS_RANGE.into_inner();
        if capacity == 0 || capacity > most as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let slots = capacity.next_power_of_two().max(least as usize);
        let memory = Lent::create(header::WORDS.saturating_add(area::words(slots as u32)))?;
        let words = memory.words(0..header::WORDS).ok_or(io::ErrorKind::InvalidInput)?;
        words.store(header::SLOTS, slots as u64);
        words.store(header::VALUE_BYTES, size_of::<T>() as u64);
        words.store(header::VALUE_TYPE, digest::<T>());
        words.publish(header::MAGIC, MAGIC);
        Ok(Self { memory, capacity: capacity as u64, slots, process: fork::generation(), _values: PhantomData })
    }

    /// A descriptor of this side's memory for the other process, which can only read through it.
    ///
    /// # Errors
    /// What the system says: no descriptor. Also in a forked child, which does not have the memory.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        if self.process != fork::generation() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.memory.descriptor()
    }

    /// Joins this side with the other's descriptor, which is closed. Both sides must mean the same type: its name (without
    /// its path) and its size are compared. Neither waits for the other.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn join(self, theirs: OwnedFd) -> Result<(Producer<T>, Consumer<T>), JoinError> {
        if self.process != fork::generation() {
            return Err(JoinError::ForkedProcess);
        }
        let theirs = Shown::map(theirs, BYTES_MAX)?.map_err(JoinError::Io)?;
        let words = theirs.words(0..header::WORDS).ok_or(JoinError::NotASide)?;
        if words.acquire(header::MAGIC) != MAGIC {
            return Err(JoinError::NotASide);
        }
        let value = (words.peek(header::VALUE_BYTES), words.peek(header::VALUE_TYPE));
        if value != (size_of::<T>() as u64, digest::<T>()) {
            return Err(JoinError::OtherType { expected: std::any::type_name::<T>() });
        }
        let found = words.peek(header::SLOTS);
        let slots = u32::try_from(found).ok().filter(|slots| SLOTS_RANGE.contains(slots) && slots.is_power_of_two());
        let slots = slots.ok_or(JoinError::Slots { found })?;
        let part = |slots| header::WORDS..header::WORDS.saturating_add(area::words(slots));
        let theirs = Arc::new(theirs.words(part(slots)).ok_or(JoinError::Slots { found })?);
        let own = Arc::new(self.memory.words(part(self.slots as u32)).ok_or(JoinError::NotASide)?);
        let producer = super::Producer::new(own.clone(), theirs.clone()).limited(self.capacity);
        let consumer = super::Consumer::new(own, theirs);
        let process = self.process;
        Ok((
            Producer { ring: producer, process, _values: PhantomData },
            Consumer { ring: consumer, process, _values: PhantomData },
        ))
    }
}

impl<T> fmt::Debug for Side<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Side").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// Why two sides could not be joined.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JoinError {
    /// It could not be mapped.
    #[error("the other side's memory cannot be mapped")]
    Io(#[source] io::Error),
    /// It is not memory of which nobody can take away.
    #[error("the other side's memory is refused")]
    Memory(#[from] BadMemory),
    /// It was not made by [`Side::create`], or by a version that this one does not understand.
    #[error("not the memory of a ring's side")]
    NotASide,
    /// It carries values of another type.
    #[error("does not carry `{expected}`")]
    OtherType {
        /// This side's type.
        expected: &'static str,
    },
    /// It says that it has more slots than fit it, or a number that no ring has.
    #[error("claims {found} slots")]
    Slots {
        /// What it says.
        found: u64,
    },
    /// This process is a fork of the one that made the side.
    #[error("the side belongs to the process this one was forked from")]
    ForkedProcess,
}

/// Why nothing was pushed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PushError {
    /// The ring has no room; the consumer is slower, or gone.
    #[error("the ring is full")]
    Full,
    /// The other process broke a rule. The ring is of no more use.
    #[error(transparent)]
    PeerMisbehaved(#[from] PeerMisbehaved),
    /// This process is a fork of the one that joined the ring.
    #[error("the ring belongs to the process this one was forked from")]
    ForkedProcess,
}

/// Why nothing was popped.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PopError {
    /// There is nothing in the ring; the producer is slower, or gone.
    #[error("the ring is empty")]
    Empty,
    /// The other process broke a rule. The ring is of no more use.
    #[error(transparent)]
    PeerMisbehaved(#[from] PeerMisbehaved),
    /// This process is a fork of the one that joined the ring.
    #[error("the ring belongs to the process this one was forked from")]
    ForkedProcess,
}

/// Where values go in. Made by [`Side::join`]; belongs to one thread at a time.
pub struct Producer<T> {
    ring: super::Producer,
    process: u32,
    _values: PhantomData<fn(T) -> T>,
}

impl<T: Value> Producer<T> {
    /// Pushes one value. Never blocks.
    ///
    /// # Errors
    /// [`PushError`].
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "`Side::create` does not compile for larger values")]
    pub fn try_push(&mut self, value: T) -> Result<(), PushError> {
        if self.process != fork::generation() {
            return Err(PushError::ForkedProcess);
        }
        let mut payload: Payload = [0; PAYLOAD];
        payload.as_mut_bytes()[..size_of::<T>()].copy_from_slice(value.as_bytes());
        self.ring.try_push(&payload, &[])?.map_err(|super::Full| PushError::Full)
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

/// Where values come out. Made by [`Side::join`]; belongs to one thread at a time.
///
/// What comes out is what the other process says: any bytes are a value of such a type, and none is to be believed further
/// than that process.
pub struct Consumer<T> {
    ring: super::Consumer,
    process: u32,
    _values: PhantomData<fn(T) -> T>,
}

impl<T: Value> Consumer<T> {
    /// Pops one value. Never blocks.
    ///
    /// # Errors
    /// [`PopError`].
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "`Side::create` does not compile for larger values")]
    pub fn try_pop(&mut self) -> Result<T, PopError> {
        if self.process != fork::generation() {
            return Err(PopError::ForkedProcess);
        }
        let mut payload: Payload = [0; PAYLOAD];
        if !self.ring.read_next(&mut payload)? {
            return Err(PopError::Empty);
        }
        self.ring.advance(1);
        let mut value = T::new_zeroed();
        value.as_mut_bytes().copy_from_slice(&payload.as_bytes()[..size_of::<T>()]);
        Ok(value)
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}
