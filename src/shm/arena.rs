//! The owner's side of shared memory: one sparse stretch of memory of fixed size, cut into blocks by a jemalloc arena of its
//! own. Knows nothing of who borrows the blocks.

use super::block::{Block, Piece};
use super::handle::{BYTES_MAX, MASK_24, WORD};
use super::hooks::Hooks;
use super::jemalloc;
use super::mallctl;
use super::records;
use super::stretch::Stretches;
use super::tcache::Tcaches;
use crate::sys::fork;
use crate::sys::memfd::{PAGE, Writable};
use crate::sys::memory::{Backing, Memory};
use crate::sys::words::OwnWords;
use nix::errno::Errno;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use thiserror::Error;

/// Why an arena gave no block.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocError {
    /// The arena, its quota or the system's memory is used up. It works again once blocks have come back.
    #[error("arena full: no room for {bytes} bytes")]
    Full {
        /// How many were asked for.
        bytes: usize,
    },
    /// This process is a fork of the arena's owner.
    #[error("the arena belongs to the process this one was forked from")]
    ForkedProcess,
}

/// How an arena is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Address space, in bytes.
    pub(crate) bytes: usize,
    /// Bytes of it that may be pages at once.
    pub(crate) quota: usize,
    pub(crate) writable: Writable,
    pub(crate) backing: Backing,
}

/// Shared memory that this process owns and hands out in blocks: what messages are built in.
///
/// A clone is another handle to the same arena. The memory goes back to the system when the last handle, block,
/// message and loan is gone. Threads may share it; each has its own cache of small blocks.
///
/// Forked children do not have the memory: what they build or send fails with `ForkedProcess`, and a builder or reader
/// that was in use during the fork must not be touched there.
///
/// ```
/// use strait::{ClientApp, ServerApp};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = std::env::temp_dir().join(format!("strait-doc-{}", std::process::id()));
/// let server = ServerApp::new("doc").run_dir(&dir).arena_bytes(1 << 30).bind()?;
/// let arena = server.arena();
/// assert_eq!(arena.capacity(), 1 << 30);
/// arena.purge();
/// assert_eq!(arena.resident()?, 0);
/// # drop(server);
/// # std::fs::remove_dir(dir)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Arena(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    /// What peers know it by; never used twice in a process.
    id: u32,
    /// As `id`, and what thread caches know it by.
    serial: u64,
    memory: Arc<Memory>,
    /// Where it lies in this process, and how many bytes of it: at hand for every block.
    base: usize,
    len: usize,
    hooks: &'static Hooks,
    index: u32,
    tcaches: Arc<Tcaches>,
    stretches: Stretches,
    fork: u32,
    /// As `fork` if what is freed may stay as it is until it is used again; else no process's.
    fork_if_plain: u32,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooks")
    }
}

impl Arena {
    pub(crate) fn create(options: Options) -> io::Result<Self> {
        static SERIALS: AtomicU64 = AtomicU64::new(1);
        let serial = SERIALS.fetch_add(1, Ordering::Relaxed);
        let id = u32::try_from(serial).ok().filter(|&id| id <= MASK_24).ok_or(io::ErrorKind::QuotaExceeded)?;
        let memory = Arc::new(Memory::create(options.backing, options.bytes.min(BYTES_MAX), options.writable)?);
        let punches = options.writable == Writable::ByOwner;
        // With hooks for its records first: created with those for blocks, jemalloc would keep them in shared memory.
        let index: u32 = mallctl::exchange("arenas.create", records::table())?;
        let hooks = Hooks::new(&memory, options.quota, punches);
        let (base, len) = (memory.base().addr().get(), memory.len());
        let fork = fork::generation();
        // Whoever else sees it is not to see what was begun for it and never sent; its pages cannot be given back either.
        let scrubs = !punches && options.backing != Backing::Heap && !cfg!(strait_plant = "no-scrub");
        let fork_if_plain = if scrubs { u32::MAX } else { fork };
        let (tcaches, stretches) = (Arc::default(), Stretches::default());
        let owned = Owned { id, serial, memory, base, len, hooks, index, tcaches, stretches, fork, fork_if_plain };
        let set = |leaf: &str| format!("arena.{index}.{leaf}");
        mallctl::write(&set("extent_hooks"), hooks.table())?;
        mallctl::write(&set("muzzy_decay_ms"), 0isize)?;
        if !punches {
            // Nothing can be given back, so nothing need be tried.
            mallctl::write(&set("dirty_decay_ms"), -1isize)?;
        }
        // Pieces of different growth steps never merge: small steps keep a small arena whole. Refused (ENOENT) where
        // the application told jemalloc not to retain.
        match mallctl::write(&set("retain_grow_limit"), (owned.len / 16).max(GROW)) {
            Ok(()) | Err(Errno::ENOENT) => Ok(Self(Arc::new(owned))),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A zeroed block of `bytes` (rounded up to words), aligned to `align`, a power of two.
    pub(crate) fn alloc(&self, bytes: usize, align: usize) -> Result<Block, AllocError> {
        self.cut(bytes, align).map(|piece| Block::new(self.clone(), piece))
    }

    /// As [`alloc`](Self::alloc), with whatever the bytes held last.
    pub(super) fn alloc_unzeroed(&self, bytes: usize, align: usize) -> Result<Block, AllocError> {
        self.cut_as(bytes, align, 0).map(|piece| Block::new(self.clone(), piece))
    }

    /// As [`alloc`](Self::alloc), for callers that keep the arena and free the piece themselves.
    #[inline]
    pub(super) fn cut(&self, bytes: usize, align: usize) -> Result<Piece, AllocError> {
        self.cut_as(bytes, align, jemalloc::MALLOCX_ZERO)
    }

    #[inline]
    fn cut_as(&self, bytes: usize, align: usize, zero: i32) -> Result<Piece, AllocError> {
        let owned = &*self.0;
        if self.is_forked() {
            return Err(AllocError::ForkedProcess);
        }
        let full = AllocError::Full { bytes };
        let size = bytes.max(WORD).checked_next_multiple_of(WORD).ok_or(full)?;
        // jemalloc would walk its size classes past the end of what can exist.
        if size > owned.len {
            return Err(full);
        }
        let tcache = owned.tcaches.flag(owned.serial);
        let flags = jemalloc::MALLOCX_ARENA(owned.index as usize) | tcache | align_flag(align) | zero;
        // SAFETY: the size is not zero and the flags name an arena and a cache that live as long as `self`.
        let start = NonNull::new(unsafe { jemalloc::mallocx(size, flags) }.cast::<u8>()).ok_or(full)?;
        // Memory from anywhere else must never be lent.
        let offset = start.addr().get().wrapping_sub(owned.base);
        if offset >= owned.len {
            tracing::error!("jemalloc served arena {} from outside its memory", owned.id);
            // SAFETY: allocated just now with the same cache.
            unsafe { jemalloc::dallocx(start.as_ptr().cast(), tcache) };
            return Err(full);
        }
        Ok(Piece { start, bytes: size, align })
    }

    /// # Safety
    /// The piece must come from [`cut`](Self::cut) on this arena, be freed once and not be reached afterwards.
    #[inline]
    pub(super) unsafe fn free(&self, piece: Piece) {
        let owned = &*self.0;
        if owned.fork_if_plain != fork::generation() && !self.scrub(piece) {
            return;
        }
        let flags = owned.tcaches.flag(owned.serial) | align_flag(piece.align);
        // SAFETY: the caller's contract; size and alignment are those the piece was cut with, as jemalloc demands.
        unsafe { jemalloc::sdallocx(piece.start.as_ptr().cast(), piece.bytes, flags) };
    }

    /// Overwrites a piece that is about to be freed. False in a forked child, where the memory is not mapped and the books
    /// are a copy.
    #[cold]
    fn scrub(&self, piece: Piece) -> bool {
        let here = !self.is_forked();
        if here {
            // SAFETY: the piece was cut from this arena, and its only owner is being dropped.
            unsafe { piece.start.write_bytes(0, piece.bytes) };
        }
        here
    }

    /// The word at which a piece of this arena begins.
    #[inline]
    pub(super) fn offset_of(&self, piece: Piece) -> u64 {
        let bytes = piece.start.addr().get() - self.0.base;
        (bytes / WORD) as u64
    }

    /// Where it lies in this process.
    pub(super) fn range(&self) -> (NonNull<u8>, usize) {
        (self.0.memory.base(), self.0.memory.len())
    }

    /// The word at which words of this arena begin.
    pub(crate) fn offset_of_words(&self, words: &OwnWords) -> u64 {
        ((words.address() - self.0.base) / WORD) as u64
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id
    }

    /// Its address space in bytes: how large a message can ever get.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.len
    }

    /// What a peer is to be given to map; `None` where no descriptor is passed.
    pub(crate) fn read_only_fd(&self) -> io::Result<Option<BorrowedFd<'_>>> {
        self.0.memory.read_only_fd()
    }

    /// What a peer finds it by, where it has a name; 0 where it has none.
    pub(crate) fn token(&self) -> u64 {
        self.0.memory.token()
    }

    /// How many bytes of memory the arena holds now, in use or kept warm for reuse. One system call.
    ///
    /// # Errors
    /// The kernel's, if it cannot tell; in a forked child it cannot.
    pub fn resident(&self) -> io::Result<u64> {
        self.0.memory.resident()
    }

    /// Gives every page that is not in use back to the system, instead of keeping it warm. Small blocks freed by other
    /// threads stay in those threads' caches (at most some 100 KiB each).
    pub fn purge(&self) {
        if self.is_forked() {
            return;
        }
        self.0.tcaches.flush(self.0.serial);
        self.give_back_stretches(true);
        let _ = mallctl::order(&format!("arena.{}.purge", self.0.index));
    }

    /// Gives back what has not been used for some seconds. An idle arena does this only when told.
    pub(crate) fn decay(&self) {
        self.give_back_stretches(false);
        let _ = mallctl::order(&format!("arena.{}.decay", self.0.index));
    }

    // For what does not lie in blocks.

    pub(super) fn stretches(&self) -> &Stretches {
        &self.0.stretches
    }

    /// Address space of so many bytes, whole pages, that is nobody's yet: how far from the arena's start.
    pub(super) fn carve_far(&self, bytes: usize) -> Option<usize> {
        self.0.hooks.carve_far(bytes)
    }

    /// Makes the pages of a carved range exist, within the arena's quota.
    pub(super) fn commit(&self, offset: usize, bytes: usize) -> bool {
        self.0.hooks.commit_at(offset, bytes)
    }

    fn give_back_stretches(&self, all: bool) {
        self.0.stretches.give_back(all, |offset, bytes| self.0.hooks.decommit_at(offset, bytes));
    }

    /// Whether this process is a fork of the owner, without its memory.
    #[inline]
    pub(super) fn is_forked(&self) -> bool {
        self.0.fork != fork::generation()
    }

    /// Finds the arena again as long as somebody holds it.
    pub(crate) fn downgrade(&self) -> WeakArena {
        WeakArena(Arc::downgrade(&self.0))
    }

    #[inline]
    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// See [`Arena::downgrade`].
#[derive(Clone, Debug, Default)]
pub(crate) struct WeakArena(Weak<Owned>);

impl WeakArena {
    /// Not in a forked child, whose arena has to be its own.
    pub(crate) fn upgrade(&self) -> Option<Arena> {
        self.0.upgrade().filter(|owned| owned.fork == fork::generation()).map(Arena)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.fork != fork::generation() {
            return;
        }
        // Every block holds an `Arc` of this, so all of them are free; caches first, as jemalloc demands.
        self.tcaches.destroy();
        if let Err(errno) = mallctl::order(&format!("arena.{}.destroy", self.index)) {
            tracing::error!("arena {} cannot be destroyed: {errno}", self.id);
        }
        self.hooks.retire();
    }
}

/// Words are aligned without being asked for, and faster then.
#[inline]
fn align_flag(align: usize) -> i32 {
    if align <= WORD { 0 } else { jemalloc::MALLOCX_ALIGN(align) }
}

/// The least that jemalloc may grow an arena by when it grows in steps.
const GROW: usize = 32 * PAGE;
