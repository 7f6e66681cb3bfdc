//! The borrower's side: a peer's arena mapped read-only, and the one function that turns a peer's [`Handle`] into
//! memory. Knows bounds, not meaning; whatever lies inside them may still change under the reader.

use super::arena::Arena;
use super::handle::{Handle, WORD};
use super::mirror::Mirror;
use crate::sys::cpu;
use crate::sys::fork::PerProcess;
use crate::sys::mapping::{Access, Mapping};
use crate::sys::memfd::{BadMemory, FileId, Memfd, check_sealed};
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::named::Named;
use crate::sys::sync::{AtomicU64, Ordering};
use crate::sys::words::PeerWords;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};
use thiserror::Error;

/// A peer's arena could not be mapped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ViewError {
    /// It is not what an arena has to be.
    #[error("the peer's memory is unusable: {0}")]
    Bad(#[from] BadMemory),
    /// This process cannot map it.
    #[error("cannot map the peer's memory")]
    Map(#[from] io::Error),
}

/// A peer's whole arena, readable.
#[derive(Debug)]
pub(crate) struct View {
    base: NonNull<u8>,
    len: usize,
    arena: u32,
    of: Of,
}

/// What a view is of, and what keeps it.
#[derive(Debug)]
enum Of {
    Shared {
        _map: Mapping,
        key: Key,
    },
    Copies(Arc<Mirror>),
    /// Kept by it.
    #[cfg(any(fuzzing, test))]
    Owners(#[expect(dead_code, reason = "keeps the memory")] Arena),
}

// SAFETY: a view is an address range that stays readable from any thread for as long as `of`; what may be done with it
// is its users' concern.
unsafe impl Send for View {}
// SAFETY: as for `Send`.
unsafe impl Sync for View {}

/// Whose memory it is, as the kernel says, what the peer calls it, and whether it was found sealed. A mapping keeps its
/// file, and Linux, since before it had `futex_waitv`, gives no two files of a tmpfs the same 64 bits in one boot.
type Key = (FileId, u32, Seal);

/// Whether memory can shrink under a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seal {
    Sealed,
    Open,
}

/// The views of this process: sessions with one arena share one mapping of it, since address space is not endless.
static VIEWS: PerProcess<BTreeMap<Key, Weak<View>>> = PerProcess::new(BTreeMap::new());

impl View {
    /// Checks what a peer sent, and only then maps it, unless it is mapped already.
    pub(crate) fn map(fd: impl AsFd, arena: u32, announced: u64, limit: u64) -> Result<Arc<Self>, ViewError> {
        let (file, len) = Memfd::check(fd.as_fd(), announced, limit)?;
        Self::of(&fd, (file, arena, Seal::Sealed), len)
    }

    /// As [`map`](Self::map), of memory that has a name.
    pub(crate) fn map_named(
        uid: u32,
        token: u64,
        arena: u32,
        announced: u64,
        limit: u64,
    ) -> Result<Arc<Self>, ViewError> {
        let (memory, len, file) = Named::open(uid, token, announced, limit)?;
        Self::of(&memory, (file, arena, Seal::Open), len)
    }

    /// As [`map`](Self::map), of memory that nobody can write any more; see [`sealed`](super::sealed).
    pub(super) fn map_sealed(fd: BorrowedFd<'_>, announced: u64, limit: u64) -> Result<Arc<Self>, ViewError> {
        let (len, file) = check_sealed(fd, announced, limit)?;
        Self::of(&fd, (file, SEALED, Seal::Sealed), len)
    }

    fn of(memory: &impl AsFd, key: Key, len: usize) -> Result<Arc<Self>, ViewError> {
        let (_, arena, _) = key;
        let known = VIEWS.lock().get(&key).and_then(Weak::upgrade);
        if let Some(view) = known {
            return Ok(view);
        }
        // The descriptor is not needed beyond this: the mapping keeps the memory.
        let map = Mapping::new(memory, len, Access::ReadOnly)?;
        let (base, len) = (map.base(), map.len());
        let made = Arc::new(Self { base, len, arena, of: Of::Shared { _map: map, key } });
        let mut views = VIEWS.lock();
        // Another thread may have been quicker.
        let quicker = views.get(&key).and_then(Weak::upgrade);
        if quicker.is_none() {
            views.insert(key, Arc::downgrade(&made));
        }
        // Before either view can be dropped, which takes the lock.
        drop(views);
        Ok(quicker.unwrap_or(made))
    }

    /// An owner's arena as its borrower has it, for tests: the same memory, mapped once more where there is any mapping.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn of_owner(arena: &Arena, number: u32) -> Arc<Self> {
        let (base, len) = arena.range();
        if cfg!(miri) {
            return Arc::new(Self { base, len, arena: number, of: Of::Owners(arena.clone()) });
        }
        let fd = arena.read_only_fd().expect("a descriptor").expect("a memfd has one");
        Self::map(fd, number, len as u64, len as u64).expect("a view")
    }

    /// All of what stands in for a peer's arena, which lies in `arena`.
    pub(super) fn of_mirror(mirror: Arc<Mirror>, arena: &Arena) -> Arc<Self> {
        let (base, len) = arena.range();
        Arc::new(Self { base, len, arena: arena.id(), of: Of::Copies(mirror) })
    }

    /// What stands in for the peer's arena where that is not shared.
    pub(crate) fn mirror(&self) -> Option<&Arc<Mirror>> {
        match &self.of {
            Of::Copies(mirror) => Some(mirror),
            _ => None,
        }
    }

    #[inline]
    fn borrow(&self, handle: Handle) -> Result<Place, PeerMisbehaved> {
        if handle.arena() != self.arena {
            return Err(PeerMisbehaved::UnknownArena { found: handle.arena(), expected: self.arena });
        }
        self.check(handle.offset(), handle.len())
    }

    /// A run of words that the peer goes on writing.
    pub(crate) fn words(self: &Arc<Self>, offset: u64, len: u64) -> Result<PeerWords, PeerMisbehaved> {
        if let Of::Copies(mirror) = &self.of {
            return mirror.claim(offset, usize::try_from(len).unwrap_or(usize::MAX));
        }
        let place = self.check(offset, len)?;
        // SAFETY: `check` vouches for the range, the view keeps it mapped, and this process reaches a peer's live
        // words through `PeerWords` only.
        Ok(unsafe { PeerWords::new(place.start.cast(), place.len, self.clone()) })
    }

    /// Begins to fetch what a handle names, before anyone has time to look at it.
    #[inline]
    pub(crate) fn fetch(&self, handle: Handle) {
        if let Ok(place) = self.check(handle.offset(), handle.len()) {
            cpu::fetch(place.start.as_ptr());
        }
    }

    #[inline]
    fn check(&self, offset: u64, len: u64) -> Result<Place, PeerMisbehaved> {
        let arena_words = (self.len / WORD) as u64;
        match offset.checked_add(len) {
            Some(end) if len > 0 && (end <= arena_words || cfg!(strait_plant = "no-bounds")) => {
                // SAFETY: the range was just found to lie inside the mapping.
                let start = unsafe { self.base.cast::<u64>().add(offset as usize) }.cast();
                Ok(Place { start, len: len as usize })
            }
            _ => Err(PeerMisbehaved::HandleOutOfRange { offset, len, arena_words }),
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let Of::Shared { key, .. } = &self.of else { return };
        let mut views = VIEWS.lock();
        // Not if another view of the same memory has taken the place.
        if views.get(key).is_some_and(|view| view.strong_count() == 0) {
            views.remove(key);
        }
    }
}

/// What sealed memory is called in its handles, which never cross: the number of no arena of this library's.
pub(super) const SEALED: u32 = 0;

/// Where a borrowed handle goes when it is no longer read.
pub(crate) trait Home: Send + Sync {
    /// The view that handles from there are resolved in: always the same one, alive as long as `self`.
    fn view(&self) -> &View;

    /// Called once, from any thread, without blocking.
    fn owe(&self, handle: Handle);
}

/// Words inside the view they were checked against, and as long-lived as that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a place is an address in a view, which may be read from any thread.
unsafe impl Send for Place {}
// SAFETY: as for `Send`.
unsafe impl Sync for Place {}

impl Place {
    pub(crate) fn words(self) -> usize {
        self.len
    }
}

/// Memory on loan from a peer: checked to exist, not to stay as it is. Goes home on drop.
pub(crate) struct Borrowed {
    /// Where the words lie that `handle` names.
    start: NonNull<u8>,
    handle: Handle,
    home: Arc<dyn Home>,
}

// SAFETY: as for `Place`; the rest is a number and a home that any thread may use.
unsafe impl Send for Borrowed {}
// SAFETY: as for `Send`.
unsafe impl Sync for Borrowed {}

impl Borrowed {
    /// Resolves a peer's handle: the only way from one to memory.
    #[inline]
    pub(crate) fn new(handle: Handle, home: Arc<dyn Home>) -> Result<Self, PeerMisbehaved> {
        let start = home.view().borrow(handle)?.start;
        Ok(Self { start, handle, home })
    }

    /// Resolves another handle from the same home, and gives up this one: it is the caller's to send home.
    #[inline]
    pub(crate) fn exchange(&mut self, handle: Handle) -> Result<Handle, PeerMisbehaved> {
        self.start = self.home.view().borrow(handle)?.start;
        Ok(std::mem::replace(&mut self.handle, handle))
    }

    /// What the handle itself names.
    #[inline]
    pub(crate) fn whole(&self) -> Place {
        Place { start: self.start, len: self.handle.len() as usize }
    }

    /// Another part of the same arena that the peer names, as a segment table does.
    pub(crate) fn part(&self, offset: u64, len: u64) -> Result<Place, PeerMisbehaved> {
        self.home.view().check(offset, len)
    }

    /// Whether it lies in a private copy, which its sender does not see.
    pub(super) fn is_copy(&self) -> bool {
        self.home.view().mirror().is_some()
    }

    /// Words of the same arena that the peer goes on writing, for as long as this loan.
    pub(super) fn words(self: &Arc<Self>, offset: u64, len: u64) -> Result<PeerWords, PeerMisbehaved> {
        let place = self.part(offset, len)?;
        // SAFETY: `part` vouches for the range, the loan keeps the view and so the mapping, and this process reaches a
        // peer's live words through `PeerWords` only.
        Ok(unsafe { PeerWords::new(place.start.cast(), place.len, self.clone()) })
    }

    /// As [`part`](Self::part), for what is measured in bytes. What is empty lies somewhere too.
    pub(super) fn part_of_bytes(&self, offset: u64, bytes: u64) -> Result<Place, PeerMisbehaved> {
        self.part(offset, bytes.div_ceil(WORD as u64).max(1))
    }

    /// Copies bytes of a place of this loan's view, from byte `from`, word by word. `into` must not reach past its end.
    pub(super) fn copy_bytes(&self, place: Place, from: usize, into: &mut [u8]) {
        // SAFETY: as for `copy_out`.
        let words = unsafe { std::slice::from_raw_parts(place.start.cast::<AtomicU64>().as_ptr(), place.len) };
        let mut words = words.iter().skip(from / WORD).map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
        let ahead = from % WORD;
        let (head, rest) = into.split_at_mut(into.len().min(ahead.wrapping_neg() % WORD));
        if let Some(word) = if head.is_empty() { None } else { words.next() } {
            head.iter_mut().zip(word.iter().skip(ahead)).for_each(|(into, byte)| *into = *byte);
        }
        let (whole, tail) = rest.as_chunks_mut::<WORD>();
        whole.iter_mut().zip(&mut words).for_each(|(into, word)| *into = word);
        if let Some(word) = if tail.is_empty() { None } else { words.next() } {
            tail.iter_mut().zip(word).for_each(|(into, byte)| *into = byte);
        }
    }

    /// Copies a place of this loan's view word by word into private memory, each word read exactly once.
    pub(crate) fn copy_out(&self, place: Place, into: &mut Vec<u64>) {
        // SAFETY: the place lies in the view, which stays mapped; atomics allow for a peer that writes meanwhile.
        let words = unsafe { std::slice::from_raw_parts(place.start.cast::<AtomicU64>().as_ptr(), place.len) };
        into.extend(words.iter().map(|word| word.load(Ordering::Relaxed)));
    }

    /// One word of a place of this loan's view, as it is now; `None` outside the place.
    pub(crate) fn word(&self, place: Place, index: u64) -> Option<u64> {
        let index = usize::try_from(index).ok().filter(|&index| index < place.len)?;
        // SAFETY: the place lies in the view, which stays mapped, and the index in the place; an atomic allows for a peer
        // that writes meanwhile.
        let word = unsafe { place.start.cast::<AtomicU64>().add(index).as_ref() };
        Some(word.load(Ordering::Relaxed))
    }

    /// The bytes of a place of this loan's view, where they lie.
    ///
    /// # Safety
    /// The peer must not write them while the slice lives: see [`Trust::in_place`](crate::Trust::in_place).
    #[inline]
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "the place lies in a mapping, whose bytes are counted in a `usize`"
    )]
    pub(crate) unsafe fn bytes(&self, place: Place) -> &[u8] {
        // SAFETY: the place lies in the view, which `home` keeps mapped while `self` lives; the caller vouches for the
        // peer.
        unsafe { std::slice::from_raw_parts(place.start.as_ptr(), place.len * WORD) }
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.home.owe(self.handle);
    }
}
