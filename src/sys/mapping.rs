//! An address range over a memfd, unmapped on drop. Knows not what lies in it.

use super::fork;
use super::memfd::Memfd;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// Who may write the range, decided once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// A mapped range. Forked children do not inherit it.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<c_void>,
    len: NonZeroUsize,
    fork: u32,
}

// SAFETY: the range is plain memory, valid from any thread until drop; what may be done with it is its users' concern.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `memfd`, shared.
    pub(crate) fn new(memfd: &Memfd, len: usize, access: Access) -> io::Result<Self> {
        let len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = match access {
            Access::ReadOnly => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let base = unsafe { mmap(None, len, protection, flags, memfd, 0) }?;
        let mapping = Self { base, len, fork: fork::generation() };
        // SAFETY: the range was mapped just now; DONTFORK changes nothing in this process.
        unsafe { madvise(mapping.base, mapping.len.get(), MmapAdvise::MADV_DONTFORK) }?;
        Ok(mapping)
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base.cast()
    }

    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // A forked child does not have the range; what it has there now, if anything, is its own.
        if self.fork == fork::generation() {
            // SAFETY: the range is ours and nobody keeps a pointer into it past this value.
            let _ = unsafe { munmap(self.base, self.len.get()) };
        }
    }
}
