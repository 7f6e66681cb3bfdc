//! Native values: plain structs, slices and text as the bytes of a blob, with what says which type they are before them.
//! Written once by their owner, checked once by each borrower, then read through a reference. Knows no messages.

use super::arena::{AllocError, Arena};
use super::blob::{Blob, BlobBuilder, ReceivedBlob};
use super::view::Borrowed;
use crate::sys::fork;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use thiserror::Error;
use zerocopy::error::TryCastError;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

/// Why what came with a message cannot be read as a value of the type asked for. The session goes on.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueError {
    /// It is not of the kind asked for: raw bytes, or another kind of value.
    #[error("not a value of this kind")]
    OtherKind,
    /// It is a value of another type.
    #[error("not a `{expected}`")]
    OtherType {
        /// The type asked for.
        expected: &'static str,
    },
    /// It has not as many bytes as a value of this type.
    #[error("{bytes} bytes are no `{expected}`")]
    Size {
        /// The type asked for.
        expected: &'static str,
        /// How many there are.
        bytes: u64,
    },
    /// Its bytes are no value of this type: a `bool` of 2, text that is not UTF-8, a reference that leads nowhere.
    #[error("its bytes are no valid `{expected}`")]
    Invalid {
        /// The type asked for.
        expected: &'static str,
    },
    /// There is no private memory for a copy of so many bytes.
    #[error("no memory to copy a value of {bytes} bytes")]
    NoMemory {
        /// How many it has.
        bytes: u64,
    },
    /// Counters go on changing in shared memory, and this session has none.
    #[error("counters need shared memory")]
    NotShared,
    /// This process is a fork of the one that received it.
    #[error("the value belongs to the process this one was forked from")]
    ForkedProcess,
}

impl Arena {
    /// Puts a plain value into shared memory: a struct, a slice, or text. Costs one copy; in return each receiver reads
    /// it through a reference, without decoding. Never blocks.
    ///
    /// What a type has to be is said by the traits of `zerocopy`, which are derived: fixed layout, no padding, no
    /// pointers. Both programs must mean the same type: they compare its name (without its path) and its size.
    ///
    /// ```
    /// use strait::zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};
    ///
    /// #[derive(IntoBytes, TryFromBytes, KnownLayout, Immutable)]
    /// #[repr(C)]
    /// struct Sample {
    ///     at: u64,
    ///     value: f32,
    ///     valid: bool,
    ///     _rest: [u8; 3],
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = std::env::temp_dir().join(format!("strait-value-{}", std::process::id()));
    /// # let server = strait::ServerApp::new("doc").run_dir(&dir).bind()?;
    /// let sample = server.arena().share(&Sample { at: 1, value: 0.5, valid: true, _rest: [0; 3] })?;
    /// let text = server.arena().share("any length")?;
    /// assert_eq!((sample.at, text.len()), (1, 10));
    /// // builder.attach_blob(&sample).attach_blob(&text);
    /// // message.blobs()[0].value::<Sample>()?.value
    /// # drop((sample, text, server));
    /// # std::fs::remove_dir(dir)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AllocError`].
    ///
    /// # Panics
    /// If the type wants more than 64-byte alignment.
    pub fn share<T>(&self, value: &T) -> Result<Shared<T>, AllocError>
    where
        T: IntoBytes + TryFromBytes + KnownLayout + Immutable + ?Sized,
    {
        assert!(align_of_val(value) <= START, "values are aligned to {START} bytes");
        let bytes = value.as_bytes();
        let mut blob = begin(self, bytes.len(), Kind::Plain, digest::<T>())?;
        blob.get_mut(START..).unwrap_or_default().copy_from_slice(bytes);
        finish(blob)
    }

    /// Puts a slice of `len` items into shared memory, filled in place: they start as zeros.
    ///
    /// # Errors
    /// [`AllocError`].
    ///
    /// # Panics
    /// If the type wants more than 64-byte alignment.
    pub fn share_slice<T>(&self, len: usize, fill: impl FnOnce(&mut [T])) -> Result<Shared<[T]>, AllocError>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        const { assert!(align_of::<T>() <= START) };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(AllocError::Full { bytes: usize::MAX })?;
        let mut blob = begin(self, bytes, Kind::Plain, digest::<[T]>())?;
        if let Ok(items) = <[T]>::mut_from_bytes_with_elems(blob.get_mut(START..).unwrap_or_default(), len) {
            fill(items);
        }
        finish(blob)
    }
}

/// A value in shared memory that nobody writes any more, as its owner has it.
///
/// A clone is another handle to the same bytes. It goes with messages as a [`Blob`] does
/// ([`Builder::attach_blob`](crate::Builder::attach_blob)), any number of them, and is freed after the last handle and
/// the last loan.
///
/// # Panics
/// Reading it in a forked child, which does not have the memory.
#[derive(Debug)]
pub struct Shared<T: ?Sized> {
    blob: Blob,
    value: NonNull<T>,
}

// SAFETY: it only ever gives out `&T`, from whichever thread; the memory is as good in one as in another.
unsafe impl<T: Sync + ?Sized> Send for Shared<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Sync + ?Sized> Sync for Shared<T> {}

impl<T: ?Sized> Shared<T> {
    /// # Safety
    /// `value` must be valid in the bytes of `blob`.
    pub(super) unsafe fn new(blob: Blob, value: NonNull<T>) -> Self {
        Self { blob, value }
    }
}

impl<T: ?Sized> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        assert!(!self.blob.arena().is_forked(), "{FORKED}");
        // SAFETY: `new`'s contract; nobody writes a blob, and the arena is mapped in this process.
        unsafe { self.value.as_ref() }
    }
}

impl<T: ?Sized> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { blob: self.blob.clone(), value: self.value }
    }
}

impl<T: ?Sized> From<&Shared<T>> for Blob {
    fn from(shared: &Shared<T>) -> Self {
        shared.blob.clone()
    }
}

impl<T: ?Sized> From<Shared<T>> for Blob {
    fn from(shared: Shared<T>) -> Self {
        shared.blob
    }
}

impl ReceivedBlob {
    /// The plain value that its sender [shared](Arena::share). Checked here, once: a sender that was vouched for
    /// ([`Trust::in_place`](crate::Trust::in_place)) is read in its own memory from then on, of anyone else's value this
    /// makes a private copy first.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn value<T>(&self) -> Result<Loaned<T>, ValueError>
    where
        T: TryFromBytes + KnownLayout + Immutable + ?Sized,
    {
        let expected = std::any::type_name::<T>();
        let header = self.header(Kind::Plain, digest::<T>(), expected)?;
        Loaned::new(self, header.bytes, |bytes| match T::try_ref_from_bytes(bytes) {
            Ok(value) => Ok(value),
            Err(TryCastError::Validity(_)) => Err(ValueError::Invalid { expected }),
            Err(TryCastError::Size(_) | TryCastError::Alignment(_)) => {
                Err(ValueError::Size { expected, bytes: bytes.len() as u64 })
            }
        })
    }

    /// What says what the bytes are, read once.
    pub(super) fn header(&self, kind: Kind, digest: u64, expected: &'static str) -> Result<Header, ValueError> {
        if self.fork != fork::generation() {
            return Err(ValueError::ForkedProcess);
        }
        let mut bytes = [0; size_of::<Header>()];
        if self.read_exact_at(&mut bytes, 0).is_err() || self.len() < START as u64 {
            return Err(ValueError::OtherKind);
        }
        let header: Header = zerocopy::transmute!(bytes);
        if (header.magic, header.kind) != (MAGIC, kind as u32) {
            return Err(ValueError::OtherKind);
        }
        if header.digest != digest {
            return Err(ValueError::OtherType { expected });
        }
        Ok(header)
    }
}

/// A value from a peer: in the sender's memory, or in a private copy of it.
///
/// Read in place it is on loan together with the message it came with, which goes home when everything that came with it
/// is dropped.
///
/// # Panics
/// Reading it in a forked child, which does not have the memory.
#[derive(Debug)]
pub struct Loaned<T: ?Sized> {
    value: NonNull<T>,
    bytes: Bytes,
    fork: u32,
}

#[derive(Debug)]
enum Bytes {
    InPlace {
        _loan: Loan,
    },
    /// Only the value's place in it is ever looked at.
    Copied {
        _lines: Vec<Line>,
    },
}

/// Keeps a loan.
struct Loan(#[expect(dead_code, reason = "held, not read")] Arc<Borrowed>);

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Loan")
    }
}

/// What copies are aligned by, as values in an arena are.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Line([u64; 8]);

// SAFETY: it only ever gives out `&T`, from whichever thread, and drops none; the loan may be ended by any thread.
unsafe impl<T: Sync + ?Sized> Send for Loaned<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Sync + ?Sized> Sync for Loaned<T> {}

impl<T: ?Sized> Loaned<T> {
    /// Reads the `len` bytes after a value's header as `check` does.
    pub(super) fn new(
        blob: &ReceivedBlob,
        len: u64,
        check: impl FnOnce(&[u8]) -> Result<&T, ValueError>,
    ) -> Result<Self, ValueError> {
        let expected = std::any::type_name::<T>();
        let size = ValueError::Size { expected, bytes: len };
        // The blob itself was found to lie in the peer's arena.
        let end = len.checked_add(START as u64).filter(|&end| end <= blob.len()).ok_or(size.clone())?;
        let (len, end) = (usize::try_from(len).map_err(|_| size.clone())?, usize::try_from(end).map_err(|_| size)?);
        let fork = fork::generation();
        if let Some(all) = blob.as_slice() {
            let value = check(all.get(START..end).unwrap_or_default())?;
            return Ok(Self { value: value.into(), bytes: Bytes::InPlace { _loan: Loan(blob.loan.clone()) }, fork });
        }
        let no_memory = ValueError::NoMemory { bytes: len as u64 };
        let count = len.div_ceil(size_of::<Line>()).max(1);
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).map_err(|_| no_memory)?;
        lines.resize(count, Line([0; 8]));
        let copy = lines.as_mut_slice().as_mut_bytes().get_mut(..len).unwrap_or_default();
        blob.read_exact_at(copy, START as u64).map_err(|_| ValueError::ForkedProcess)?;
        let copy = lines.as_slice().as_bytes().get(..len).unwrap_or_default();
        let value = NonNull::from(check(copy)?);
        // Moving the vector moves none of its lines.
        Ok(Self { value, bytes: Bytes::Copied { _lines: lines }, fork })
    }

    /// Whether it is read in its sender's memory.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        matches!(self.bytes, Bytes::InPlace { .. })
    }
}

impl<T: ?Sized> Deref for Loaned<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        assert!(self.fork == fork::generation(), "{FORKED}");
        // SAFETY: found valid by `new`, in lines that are never written again, or in a loan whose lender was vouched
        // for; `bytes` keeps either.
        unsafe { self.value.as_ref() }
    }
}

pub(super) const FORKED: &str = "the value belongs to the process this one was forked from";

/// Where a value begins in its blob. What is before it has a cache line of its own, since the value may go on changing.
pub(super) const START: usize = 64;

/// What a value's blob begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    magic: u32,
    kind: u32,
    digest: u64,
    pub(super) bytes: u64,
}

const MAGIC: u32 = u32::from_le_bytes(*b"valu");

/// How a value's bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Plain = 1,
    /// Words that their owner goes on writing.
    Counters = 2,
    /// An archive of `rkyv`'s.
    #[cfg(feature = "rkyv")]
    Graph = 3,
}

/// A blob for a value of `bytes` zeroed bytes.
pub(super) fn begin(arena: &Arena, bytes: usize, kind: Kind, digest: u64) -> Result<BlobBuilder, AllocError> {
    let len = bytes.checked_add(START).ok_or(AllocError::Full { bytes })?;
    let mut blob = arena.create_blob(len)?;
    name(&mut blob, kind, digest, bytes as u64);
    Ok(blob)
}

/// Says what follows.
pub(super) fn name(blob: &mut BlobBuilder, kind: Kind, digest: u64, bytes: u64) {
    let header = Header { magic: MAGIC, kind: kind as u32, digest, bytes };
    if let Some(place) = blob.get_mut(..size_of::<Header>()) {
        place.copy_from_slice(header.as_bytes());
    }
}

fn finish<T>(blob: BlobBuilder) -> Result<Shared<T>, AllocError>
where
    T: TryFromBytes + KnownLayout + Immutable + ?Sized,
{
    let blob = blob.freeze();
    let bytes = blob.get(START..).ok_or(AllocError::ForkedProcess)?;
    match T::try_ref_from_bytes(bytes).map(NonNull::from) {
        // SAFETY: found in the blob just now.
        Ok(value) => Ok(unsafe { Shared::new(blob, value) }),
        Err(_) => unreachable!("a value's own bytes, at its own alignment"),
    }
}

/// A digest of a type's name without the paths in it, which differ between programs that share a source file.
pub(crate) fn digest<T: ?Sized>() -> u64 {
    let name = std::any::type_name::<T>().as_bytes();
    let part_of_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut rest = name;
    while let Some(first) = rest.first() {
        let word = rest.iter().take_while(|byte| part_of_word(byte)).count();
        let (this, after) = rest.split_at(word.max(1).min(rest.len()));
        let is_path = word > 0 && after.starts_with(b"::");
        if is_path || (word == 0 && *first == b':') {
            rest = after;
            continue;
        }
        hash = this.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        rest = after;
    }
    hash
}
