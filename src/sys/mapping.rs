//! An address range over memory, unmapped on drop. Knows not what lies in it.

use super::fork;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

/// Who may write the range, decided once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// Under Miri, which maps nothing, memory comes from the heap.
fn heap_layout(len: NonZeroUsize) -> Layout {
    Layout::from_size_align(len.get(), 4096).unwrap_or(Layout::new::<u64>())
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
    /// Maps the first `len` bytes of `memory`, shared.
    pub(crate) fn new(memory: &impl AsFd, len: usize, access: Access) -> io::Result<Self> {
        Self::part(memory, 0, len, access)
    }

    /// Maps `len` bytes of `memory` from a whole page on, shared.
    pub(super) fn part(memory: &impl AsFd, offset: usize, len: usize, access: Access) -> io::Result<Self> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = match access {
            Access::ReadOnly => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let base = unsafe { mmap(None, len, protection, flags, memory, offset) }?;
        let mapping = Self::keep(base, len)?;
        // A core dump reads every page, which makes memory of the holes: of a sparse arena, more than there is.
        // SAFETY: the range was mapped just now; DONTDUMP changes nothing in it.
        unsafe { madvise(mapping.base, mapping.len.get(), MmapAdvise::MADV_DONTDUMP) }?;
        Ok(mapping)
    }

    /// Reserves `len` bytes that nobody else ever sees, writable; pages come as they are touched.
    pub(crate) fn private(len: usize) -> io::Result<Self> {
        let len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        if cfg!(miri) {
            // SAFETY: the length is not zero.
            let base = NonNull::new(unsafe { alloc_zeroed(heap_layout(len)) }).ok_or(io::ErrorKind::OutOfMemory)?;
            return Ok(Self { base: base.cast(), len, fork: fork::generation() });
        }
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let base = unsafe { mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        Self::keep(base, len)
    }

    fn keep(base: NonNull<c_void>, len: NonZeroUsize) -> io::Result<Self> {
        let mapping = Self { base, len, fork: fork::generation() };
        // SAFETY: the range was mapped just now; DONTFORK changes nothing in this process.
        unsafe { madvise(mapping.base, mapping.len.get(), MmapAdvise::MADV_DONTFORK) }?;
        Ok(mapping)
    }

    /// Gives the pages of a part back, which must be private and whole pages; they read as zero from then on.
    pub(super) fn discard(&self, offset: usize, len: usize) -> nix::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len.get()) {
            return Err(nix::errno::Errno::EINVAL);
        }
        if cfg!(miri) {
            // SAFETY: as below.
            unsafe { self.base().byte_add(offset).write_bytes(0, len) };
            return Ok(());
        }
        // SAFETY: the part lies in the range, whose users ask for this only where nothing is kept.
        unsafe { madvise(self.base.byte_add(offset), len, MmapAdvise::MADV_DONTNEED) }
    }

    /// Whether this is the process that mapped it, and not a fork without it.
    pub(super) fn is_here(&self) -> bool {
        self.fork == fork::generation()
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base.cast()
    }

    pub(crate) fn len(&self) -> usize {
        self.len.get()
    }
}

/// Takes `len` bytes of private memory at a multiple of `align`, both whole pages, for whoever manages its own: zeros.
/// Forked children inherit it.
pub(crate) fn take_private(len: usize, align: usize) -> Option<NonNull<u8>> {
    let reserve = |len: usize| {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: no address is asked for, so no existing mapping is touched.
        unsafe { mmap_anonymous(None, NonZeroUsize::new(len)?, protection, flags) }.ok()
    };
    let mut base: NonNull<u8> = reserve(len)?.cast();
    if !base.addr().get().is_multiple_of(align) {
        // As large a range as surely has an aligned part; the rest goes back.
        // SAFETY: reserved just now, and nobody knows of it.
        unsafe { give_back(base, len) };
        let wide: NonNull<u8> = reserve(len.checked_add(align)?)?.cast();
        let ahead = wide.addr().get().next_multiple_of(align) - wide.addr().get();
        // SAFETY: three parts of the range that was reserved just now; the middle one stays.
        unsafe {
            base = wide.add(ahead);
            give_back(wide, ahead);
            give_back(base.add(len), align - ahead);
        }
    }
    Some(base)
}

/// Gives such memory back, or part of it; false if the kernel would not have it.
///
/// # Safety
/// Nobody may reach it any more.
pub(crate) unsafe fn give_back(base: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the caller's contract.
    len == 0 || unsafe { munmap(base.cast(), len) }.is_ok()
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // A forked child does not have the range; what it has there now, if anything, is its own.
        if cfg!(miri) {
            // SAFETY: `private` made it, of this layout: nothing else is mapped under Miri.
            unsafe { dealloc(self.base().as_ptr(), heap_layout(self.len)) };
        } else if self.is_here() {
            // SAFETY: the range is ours and nobody keeps a pointer into it past this value.
            let _ = unsafe { munmap(self.base, self.len.get()) };
        }
    }
}
