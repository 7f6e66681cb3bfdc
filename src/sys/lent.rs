//! Memory of words that is handed over by descriptor alone: this process's own, for another to read, and another's. Knows
//! no layout.

use super::fork;
use super::mapping::{Access, Mapping};
use super::memfd::{BadMemory, Memfd, Writable};
use super::memory::{Backing, Memory};
use super::words::{OwnWords, PeerWords};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

const WORD: usize = size_of::<u64>();

/// Written by this process alone.
#[derive(Debug)]
pub(crate) struct Lent(Arc<Memory>);

impl Lent {
    /// Room for so many words, which exist from the start: storing them cannot fail.
    pub(crate) fn create(words: usize) -> io::Result<Self> {
        let bytes = words.checked_mul(WORD).ok_or(io::ErrorKind::InvalidInput)?;
        let len = bytes.checked_next_multiple_of(super::memfd::PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let memory = Memory::create(Backing::Memfd, len, Writable::ByOwner)?;
        if memory.len() < bytes {
            // The process may not make files as large as that.
            return Err(Errno::EFBIG.into());
        }
        memory.commit(0, bytes)?;
        Ok(Self(Arc::new(memory)))
    }

    /// For the process that is to read it.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.read_only_fd()?.ok_or(Errno::EBADF)?.try_clone_to_owned()
    }

    /// A part of it; `None` where it does not reach.
    pub(crate) fn words(&self, part: Range<usize>) -> Option<OwnWords> {
        let (base, len) = locate(self.0.base(), self.0.len(), part)?;
        // SAFETY: the words lie in the mapping by `locate`, which the `Arc` keeps; they are aligned, since the mapping
        // is; and nothing in this process reaches them but the words made here.
        Some(unsafe { OwnWords::new(base, len, self.0.clone()) })
    }
}

/// Written by another process.
#[derive(Debug)]
pub(crate) struct Shown(Arc<Mapping>);

impl Shown {
    /// Maps what a descriptor is of, if nobody can make it smaller and it has at most `limit` bytes.
    pub(crate) fn map(fd: OwnedFd, limit: u64) -> Result<io::Result<Self>, BadMemory> {
        let fd = fork::making().keep(fd);
        let found = fstat(&fd).map_err(BadMemory::Unreadable)?.st_size.unsigned_abs();
        let (_, len) = Memfd::check(fd.as_fd(), found, limit)?;
        Ok(Mapping::new(&fd, len, Access::ReadOnly).map(|mapping| Self(Arc::new(mapping))))
    }

    /// A part of it; `None` where it does not reach.
    pub(crate) fn words(&self, part: Range<usize>) -> Option<PeerWords> {
        let (base, len) = locate(self.0.base(), self.0.len(), part)?;
        // SAFETY: as for `Lent::words`; the memory is sealed, so that it stays as large.
        Some(unsafe { PeerWords::new(base, len, self.0.clone()) })
    }
}

fn locate(base: NonNull<u8>, bytes: usize, part: Range<usize>) -> Option<(NonNull<u64>, usize)> {
    let len = part.end.checked_sub(part.start)?;
    if part.end > bytes / WORD {
        return None;
    }
    // SAFETY: the part begins inside the mapping, by the check.
    Some((unsafe { base.byte_add(part.start * WORD) }.cast(), len))
}
