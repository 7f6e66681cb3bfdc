//! A message being written in memory of its own, to be sealed.

use super::frozen::{Body, Message};
use super::schema::Schema;
use super::sealed::Sealed;
use super::segments::{FIRST_WORDS, GROWTH_MAX, spill, unspill};
use super::union::Union;
use crate::shm::block::{MAX_BLOBS, MAX_SEGMENTS};
use crate::shm::handle::{BYTES_MAX, WORD};
use crate::shm::sealed::{SealedAt, SealedProblem};
use crate::sys::fork::{self, NoForkFd};
use crate::sys::mapping::Mapping;
use crate::sys::passed::PASSED_MAX;
use crate::sys::unsealed::Unsealed;
use capnp::any_pointer;
use capnp::message::{self, Allocator};
use parking_lot::Mutex;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use thiserror::Error;

/// Why there is no sealed message. Nothing is left of the attempt.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SealError {
    /// There is no memory or descriptor for it, or this process may not make memory of that size, or may not open it anew
    /// for reading (`/proc` is not there).
    #[error("cannot make the memory of a sealed message")]
    Io(#[from] io::Error),
    /// Cap'n Proto messages have at most 512 segments. Give the builder its size up front.
    #[error("message of {0} segments: at most 512; give the builder a size up front")]
    TooManySegments(usize),
    /// A message takes at most 255 blobs.
    #[error("message with more than 255 blobs")]
    TooManyBlobs,
    /// A sealed message takes at most 63 descriptors beside its own.
    #[error("sealed message with {0} descriptors: at most 63")]
    TooManyDescriptors(usize),
    /// This process is a fork of the one that began the message.
    #[error("the message belongs to the process this one was forked from")]
    ForkedProcess,
}

/// A message being written in memory of its own, which [`seal`](Self::seal) makes unwritable for everyone, for good.
///
/// A sealed message is read where it lies by receivers that do not believe its sender: they check the seals and need no
/// copy and no `unsafe` ([`Trust`](crate::Trust) does not matter). It can be sent any number of times over channels of any
/// session, whatever arena that has, and sent on by whoever receives it, without a copy
/// ([`Channel::forward`](crate::Channel::forward)). Nothing of it is on loan, and no quota of loans counts it: the memory
/// is there for as long as somebody, sender or receiver, has it.
///
/// It costs some ten system calls, fresh memory and, in each process that has it, a file descriptor and a mapping. So it is
/// for what is large, and sent often or kept for long; anything else is faster copied ([`Trust::snapshot`](crate::Trust::snapshot)).
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use strait::{Channel, SealedBuilder};
///
/// fn publish(to: &mut [Channel<hello::Owned>], map: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
///     let mut builder = SealedBuilder::<hello::Owned>::new()?;
///     builder.init_root().set_answer("the map");
///     builder.add_blob(map.len())?.copy_from_slice(map);
///     let message = builder.seal()?;
///     for channel in to {
///         channel.send(&message)?;
///     }
///     Ok(())
/// }
/// # fn main() {}
/// ```
pub struct SealedBuilder<T: Schema> {
    capnp: message::Builder<Segments>,
    memory: Arc<Mutex<Unsealed>>,
    blobs: Vec<Part>,
    fds: Vec<NoForkFd>,
    kind: u16,
    fork: u32,
    root: PhantomData<fn() -> T>,
}

/// A part of the memory, as long as it is written.
struct Part {
    /// Where it begins in the memory, in bytes.
    start: usize,
    map: Mapping,
    /// Bytes in use, from its start.
    used: usize,
}

impl Part {
    fn add(memory: &Mutex<Unsealed>, bytes: usize, used: usize) -> io::Result<Self> {
        // The kernel would try, and take all the memory there is.
        if bytes > BYTES_MAX {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let (start, map) = memory.lock().add(bytes)?;
        Ok(Self { start, map, used })
    }

    fn word(&self) -> u64 {
        (self.start / WORD) as u64
    }
}

impl<T: Schema> SealedBuilder<T> {
    /// For a small structure, or one of unknown size: segments double as it grows.
    ///
    /// # Errors
    /// [`SealError::Io`].
    pub fn new() -> Result<Self, SealError> {
        Self::with_capacity((FIRST_WORDS as usize).saturating_mul(WORD))
    }

    /// For a structure of about `bytes` bytes, blobs not counted: all of it in one segment.
    ///
    /// # Errors
    /// [`SealError::Io`]. Whether there is memory for it, sealing tells.
    pub fn with_capacity(bytes: usize) -> Result<Self, SealError> {
        let memory = Arc::new(Mutex::new(Unsealed::create()?));
        let next_words = u32::try_from(bytes.div_ceil(WORD)).unwrap_or(u32::MAX).min(SEGMENT_MAX);
        let segments = Segments { memory: memory.clone(), next_words, parts: Vec::new(), spilled: None };
        Ok(Self {
            capnp: message::Builder::new(segments),
            memory,
            blobs: Vec::new(),
            fds: Vec::new(),
            kind: 0,
            fork: fork::generation(),
            root: PhantomData,
        })
    }

    /// Begins the root struct.
    pub fn init_root(&mut self) -> T::Builder<'_> {
        self.capnp.init_root()
    }

    /// The root struct as written so far.
    ///
    /// # Errors
    /// Cap'n Proto's, if the message is not well-formed.
    pub fn get_root(&mut self) -> capnp::Result<T::Builder<'_>> {
        self.capnp.get_root()
    }

    /// Makes the root a deep copy of `value`.
    ///
    /// # Errors
    /// Cap'n Proto's, if `value` is not well-formed.
    pub fn set_root(&mut self, value: T::Reader<'_>) -> capnp::Result<()> {
        self.capnp.set_root(value)
    }

    /// Adds `len` zeroed bytes beside the structure, to be filled in place: a blob, after those added before, up to 255.
    /// The receiver finds them in this order ([`Received::blobs`](crate::Received::blobs)), as slices
    /// ([`ReceivedBlob::as_slice`](crate::ReceivedBlob::as_slice)).
    ///
    /// # Errors
    /// [`SealError`]; nothing has changed then.
    pub fn add_blob(&mut self, len: usize) -> Result<&mut [u8], SealError> {
        if self.fork != fork::generation() {
            return Err(SealError::ForkedProcess);
        }
        if self.blobs.len() >= MAX_BLOBS {
            return Err(SealError::TooManyBlobs);
        }
        let part = Part::add(&self.memory, len, len)?;
        let start = part.map.base();
        self.blobs.push(part);
        // SAFETY: so many bytes, zeroed, were mapped just now for this blob alone; the slice borrows `self`, which keeps the
        // mapping and hands them out no second time.
        Ok(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) })
    }

    /// Has a file descriptor travel with the message, as [`Builder::attach_fd`](crate::Builder::attach_fd): up to 63.
    pub fn attach_fd(&mut self, fd: impl Into<OwnedFd>) -> &mut Self {
        let fd = fd.into();
        self.fds.push(fork::making().keep(fd));
        self
    }

    /// Names the kind of message: see [`Builder::set_kind`](crate::Builder::set_kind).
    pub fn set_kind(&mut self, kind: u16) -> &mut Self {
        self.kind = kind;
        self
    }

    /// Ends the writing, for everyone and for good: from here on the kernel refuses it.
    ///
    /// # Errors
    /// [`SealError`]; the memory is free again then.
    pub fn seal(mut self) -> Result<Message<T>, SealError> {
        if self.fork != fork::generation() {
            return Err(SealError::ForkedProcess);
        }
        if self.fds.len() >= PASSED_MAX {
            return Err(SealError::TooManyDescriptors(self.fds.len()));
        }
        if self.capnp.get_segments_for_output().is_empty() {
            // Never begun: an empty root, which reads as the default.
            self.capnp.init_root::<any_pointer::Builder<'_>>();
        }
        let Segments { parts: segments, spilled, .. } = self.capnp.into_allocator();
        if let Some(error) = spilled {
            return Err(error.into());
        }
        let (segment_count, blob_count) = (segments.len(), self.blobs.len());
        if segment_count > MAX_SEGMENTS {
            return Err(SealError::TooManySegments(segment_count));
        }
        // The memory ends where its last part does, with a table of what is in it.
        let end = |part: &Part| part.start.saturating_add(part.used.next_multiple_of(WORD).max(WORD));
        let end = segments.iter().chain(&self.blobs).map(end).max().unwrap_or(0);
        let lists = segments.iter().map(|part| [part.word(), (part.used / WORD) as u64]);
        let lists = lists.chain(self.blobs.iter().map(|part| [part.word(), part.used as u64]));
        let table: Vec<u8> = lists.flatten().flat_map(u64::to_ne_bytes).collect();
        let words = (end.saturating_add(table.len()) / WORD) as u64;
        // Unmapped before it is sealed.
        drop((segments, self.blobs));
        let Some(memory) = Arc::into_inner(self.memory) else { unreachable!("the allocator's share went above") };
        let reader = memory.into_inner().seal(end, &table)?;
        // At most 512 and 255, as just checked.
        let mut at = SealedAt { words, segments: segment_count as u16, blobs: blob_count as u8, tag: None };
        let open = |at| Sealed::open(reader.as_fd(), at, u64::MAX).map_err(own);
        if let Some(union) = Union::of::<T>() {
            let sealed = open(at)?;
            at.tag = union.tag_of(|index| sealed.segment(index));
        }
        let sealed = Arc::new(open(at)?);
        let fds = std::iter::once(reader).chain(self.fds).collect();
        Ok(Message::new(Body::Sealed(sealed), self.kind, Some(Arc::new(fds))))
    }
}

/// Its maker's own memory is what it has to be; mapping it may fail.
#[cold]
fn own(problem: SealedProblem) -> SealError {
    match problem {
        SealedProblem::Bad(broken) => io::Error::other(broken).into(),
        SealedProblem::NoMemory(_) => io::Error::from(io::ErrorKind::OutOfMemory).into(),
    }
}

/// Cap'n Proto allows a segment so many words.
const SEGMENT_MAX: u32 = 1 << 29;

/// Cap'n Proto's allocator over the memory. As in [`segments`](super::segments), what finds no room goes on in private
/// memory, and sealing reports it.
struct Segments {
    memory: Arc<Mutex<Unsealed>>,
    next_words: u32,
    /// In the order Cap'n Proto numbers them.
    parts: Vec<Part>,
    spilled: Option<io::Error>,
}

impl Segments {
    fn add(&mut self, words: u32) -> io::Result<(NonNull<u8>, u32)> {
        // An unused segment still has its first, zero word: no entry is of nothing.
        let part = Part::add(&self.memory, (words as usize).saturating_mul(WORD), WORD)?;
        let start = part.map.base();
        let whole = u32::try_from(part.map.len() / WORD).unwrap_or(u32::MAX).min(SEGMENT_MAX);
        self.parts.push(part);
        Ok((start, whole))
    }
}

// SAFETY: parts come zeroed and page-aligned, each is its own, and each stays mapped in `parts` until `self` goes, which
// outlives Cap'n Proto's use of it; spilled ones live until `deallocate_segment`.
unsafe impl Allocator for Segments {
    fn allocate_segment(&mut self, minimum_size: u32) -> (NonNull<u8>, u32) {
        let minimum = minimum_size.max(1);
        if self.spilled.is_none() {
            let wanted = self.next_words.max(minimum);
            let added = self.add(wanted).or_else(|error| if wanted > minimum { self.add(minimum) } else { Err(error) });
            match added {
                Ok((start, words)) => {
                    self.next_words = words.saturating_mul(2).min(GROWTH_MAX);
                    return (start, words);
                }
                Err(error) => self.spilled = Some(error),
            }
        }
        (spill(minimum), minimum)
    }

    unsafe fn deallocate_segment(&mut self, start: NonNull<u8>, words: u32, used: u32) {
        match self.parts.iter_mut().find(|part| part.map.base() == start) {
            // Stays: this is how the finished message is taken out of the builder.
            Some(part) => part.used = (used.max(1) as usize).saturating_mul(WORD),
            // SAFETY: not a part of the memory, so `spill` made it, of so many words.
            None => unsafe { unspill(start, words) },
        }
    }
}
