//! Raw bytes beside messages: written in place by their owner, then by nobody, read by their borrowers where they lie or
//! piece by piece. Knows neither what the bytes mean nor what they travel with.

use super::arena::{AllocError, Arena};
use super::block::Block;
use super::handle::WORD;
use super::view::{Borrowed, Place};
use crate::sys::fork;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::PeerWords;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

impl Arena {
    /// Begins a blob of `len` zeroed bytes, to be filled in place. Any size up to the arena's. Never blocks.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn create_blob(&self, len: usize) -> Result<BlobBuilder, AllocError> {
        Ok(BlobBuilder { block: self.alloc(len, ALIGN)?, len })
    }

    /// Begins an empty blob with room for `capacity` bytes, to be written to as to a file. Nothing is zeroed.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn create_blob_with_capacity(&self, capacity: usize) -> Result<BlobBuilder, AllocError> {
        Ok(BlobBuilder { block: self.alloc_unzeroed(capacity, ALIGN)?, len: 0 })
    }
}

/// Raw bytes being written in shared memory: a slice, and an [`io::Write`] that appends and grows.
///
/// Belongs to nobody but its writer until [`freeze`](Self::freeze) makes it a [`Blob`]; dropped, it was never there. A
/// blob has no other limit than its arena. In a forked child it is empty.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use std::io::Read;
/// use strait::Channel;
///
/// fn send_file(channel: &mut Channel<hello::Owned>, file: &mut impl Read, len: usize) -> Result<(), Box<dyn std::error::Error>> {
///     let mut blob = channel.arena().create_blob(len)?;
///     // Straight into shared memory.
///     file.read_exact(&mut blob)?;
///     let mut message = channel.create_msg();
///     message.init_root().set_answer("here it is");
///     message.attach_blob(blob.freeze());
///     channel.send(&message.freeze()?)?;
///     Ok(())
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct BlobBuilder {
    block: Block,
    /// Bytes written: these are initialised, and no more than the block has.
    len: usize,
}

/// Blobs begin on a cache line of their own.
const ALIGN: usize = 64;

impl BlobBuilder {
    /// How many bytes it may have without being moved.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.block.bytes()
    }

    /// Makes room for `more` bytes after those that are there, moving them if need be.
    ///
    /// # Errors
    /// [`AllocError`]; nothing has changed then.
    pub fn reserve(&mut self, more: usize) -> Result<(), AllocError> {
        let full = AllocError::Full { bytes: more };
        let needed = self.len.checked_add(more).ok_or(full)?;
        if needed <= self.capacity() {
            return Ok(());
        }
        let arena = self.block.arena();
        // Doubling keeps the moves few; near the end of the arena what is needed has to do.
        let doubled = arena.alloc_unzeroed(needed.max(self.capacity().saturating_mul(2)), ALIGN);
        let block = doubled.or_else(|_| arena.alloc_unzeroed(needed, ALIGN))?;
        // SAFETY: `len` bytes of the old block are initialised, the new one has room for them, and each has its own
        // memory. An arena that gave a block is mapped here.
        unsafe { block.start().copy_from_nonoverlapping(self.block.start(), self.len) };
        self.block = block;
        Ok(())
    }

    /// Adds bytes at its end.
    ///
    /// # Errors
    /// [`AllocError`]; nothing has changed then.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> Result<(), AllocError> {
        if self.block.arena().is_forked() {
            return Err(AllocError::ForkedProcess);
        }
        self.reserve(bytes.len())?;
        // SAFETY: `reserve` made room for so many bytes after the first `len`, this is their only owner, and `bytes` is
        // no part of them.
        unsafe { self.block.start().add(self.len).as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        // `reserve` has found that it fits.
        self.len = self.len.saturating_add(bytes.len());
        Ok(())
    }

    /// The word at which it begins, until it has to be moved.
    pub(super) fn offset(&self) -> u64 {
        self.block.offset()
    }

    /// Forgets what comes after the first `len` bytes. Shorter ones stay as they are.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Ends the writing. From here on nobody writes these bytes, and they can be sent.
    #[must_use]
    pub fn freeze(self) -> Blob {
        Blob(Arc::new(Bytes { block: self.block, len: self.len }))
    }
}

impl Deref for BlobBuilder {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.block.arena().is_forked() {
            return &[];
        }
        // SAFETY: that many bytes are initialised, live as long as the block, and this is their only owner.
        unsafe { std::slice::from_raw_parts(self.block.start().as_ptr(), self.len) }
    }
}

impl DerefMut for BlobBuilder {
    fn deref_mut(&mut self) -> &mut [u8] {
        if self.block.arena().is_forked() {
            return &mut [];
        }
        // SAFETY: as for `deref`, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.block.start().as_ptr(), self.len) }
    }
}

impl Write for BlobBuilder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend_from_slice(bytes).map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Raw bytes in shared memory that nobody writes any more.
///
/// A clone is another handle to the same bytes. They go with messages ([`Builder::attach_blob`](crate::Builder::attach_blob)),
/// any number of messages, and are freed when the last handle and the last message with them is gone and the last
/// receiver has returned what it was lent, or died. In a forked child it is empty.
#[derive(Clone, Debug)]
pub struct Blob(Arc<Bytes>);

#[derive(Debug)]
struct Bytes {
    block: Block,
    len: usize,
}

impl Blob {
    pub(super) fn arena(&self) -> &Arena {
        self.0.block.arena()
    }

    pub(super) fn offset(&self) -> u64 {
        self.0.block.offset()
    }

    pub(super) fn copy_to(&self, arena: &Arena) -> Result<Self, AllocError> {
        let mut copy = arena.create_blob_with_capacity(self.len())?;
        copy.extend_from_slice(self)?;
        Ok(copy.freeze())
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.0.block.start()
    }

    /// What it keeps from being used otherwise.
    pub(super) fn allocated(&self) -> u64 {
        self.0.block.bytes() as u64
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.arena().is_forked() {
            return &[];
        }
        // SAFETY: that many bytes are initialised, live as long as `self`, and are written by nobody: their writer was
        // given up for this, and no other process has ever had one.
        unsafe { std::slice::from_raw_parts(self.0.block.start().as_ptr(), self.0.len) }
    }
}

/// A blob as its receiver has it: in the sender's memory.
///
/// It is on loan together with the message it came with: that goes home when the [`Received`](crate::Received) and all
/// of its blobs, clones and readers are dropped. A blob is never copied as a whole before it is read, whatever the
/// [`Trust`](crate::Trust): a sender that is not believed may change the bytes at any time, so what is read twice need
/// not be the same twice.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use std::io::{self, Write};
/// use strait::Received;
///
/// fn save(message: &Received<hello::Owned>, to: &mut impl Write) -> io::Result<()> {
///     for blob in message.blobs() {
///         match blob.as_slice() {
///             Some(bytes) => to.write_all(bytes)?,
///             None => drop(io::copy(&mut blob.reader(), to)?),
///         }
///     }
///     Ok(())
/// }
/// # fn main() {}
/// ```
#[derive(Clone)]
pub struct ReceivedBlob {
    pub(super) loan: Arc<Borrowed>,
    place: Place,
    /// The word it begins at.
    offset: u64,
    len: u64,
    believed: bool,
    pub(super) fork: u32,
}

impl ReceivedBlob {
    /// Checks an entry of a message's table. `believed`: the peer was vouched for, as
    /// [`Trust::in_place`](crate::Trust::in_place) says.
    pub(crate) fn new(loan: &Arc<Borrowed>, [offset, len]: [u64; 2], believed: bool) -> Result<Self, PeerMisbehaved> {
        let place = loan.part_of_bytes(offset, len)?;
        Ok(Self { loan: loan.clone(), place, offset, len, believed, fork: fork::generation() })
    }

    /// Words that its owner goes on writing, from byte `from` of it on and as far as `bytes`, wherever the blob itself
    /// ends.
    pub(super) fn words_after(&self, from: usize, bytes: usize) -> Result<PeerWords, PeerMisbehaved> {
        let offset = self.offset.saturating_add((from / WORD) as u64);
        self.loan.words(offset, (bytes / WORD) as u64)
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes from `offset` on, as many as there are and `into` has room for; tells how many.
    ///
    /// # Errors
    /// In a forked child, which does not have the memory.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.must_be_here()?;
        let left = self.len.saturating_sub(offset);
        // What is left lies in the view, so its length is a `usize`.
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        if let (Some(into), true) = (into.get_mut(..count), count > 0) {
            self.loan.copy_bytes(self.place, offset as usize, into);
        }
        Ok(count)
    }

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if there are not as many; as for [`read_at`](Self::read_at).
    pub fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let count = self.read_at(into, offset)?;
        if count == into.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// A private copy of all of it.
    ///
    /// # Errors
    /// `OutOfMemory` if there is no memory for it; as for [`read_at`](Self::read_at).
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        self.must_be_here()?;
        let mut bytes = Vec::new();
        let len = usize::try_from(self.len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(len, 0);
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// The bytes where they lie, if their sender was vouched for ([`Trust::in_place`](crate::Trust::in_place)); `None`
    /// where it was not, and in a forked child.
    #[must_use]
    pub fn as_slice(&self) -> Option<&[u8]> {
        if !self.believed || self.must_be_here().is_err() {
            return None;
        }
        // SAFETY: made so only where the trust in this lender was vouched for: `Trust::in_place`.
        unsafe { self.loan.bytes(self.place) }.get(..usize::try_from(self.len).ok()?)
    }

    /// Reads it from its start, as a file. Holds the loan as `self` does.
    #[must_use]
    pub fn reader(&self) -> BlobReader {
        BlobReader { blob: self.clone(), at: 0 }
    }

    fn must_be_here(&self) -> io::Result<()> {
        if self.fork == fork::generation() {
            return Ok(());
        }
        Err(io::Error::other("the blob belongs to the process this one was forked from"))
    }
}

impl std::fmt::Debug for ReceivedBlob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceivedBlob").field("len", &self.len).finish_non_exhaustive()
    }
}

/// A [`ReceivedBlob`] read like a file. Never blocks.
#[derive(Clone, Debug)]
pub struct BlobReader {
    blob: ReceivedBlob,
    at: u64,
}

impl Read for BlobReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read_at(into, self.at)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.blob.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
