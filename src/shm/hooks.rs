//! What jemalloc asks for when an arena needs pages: address space is carved from one mapping, pages are committed by
//! `fallocate` and given back by punching holes. jemalloc keeps its own records elsewhere, in private memory.
//!
//! Hooks run under jemalloc's locks and on whichever thread frees, so they allocate nothing, take no lock and do not
//! panic. `false` means done in jemalloc's dialect.

use super::jemalloc;
use crate::sys::fork::PerProcess;
use crate::sys::memory::Memory;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// The hook table with what the hooks need right behind it: jemalloc hands the table's address to every hook.
///
/// Never freed, since jemalloc may hold the address for as long as it likes; used again for a later arena.
#[repr(C)]
pub(super) struct Hooks {
    table: jemalloc::extent_hooks_t,
    /// Null while no arena uses it: then there is nothing to give and nothing to take.
    ground: AtomicPtr<Ground>,
}

/// What an arena stands on.
struct Ground {
    memory: Arc<Memory>,
    base: usize,
    len: usize,
    /// Pages beyond this many bytes are refused.
    quota: usize,
    /// Whether pages may be given back; a memfd sealed against writing refuses holes too.
    punches: bool,
    /// Pages of address space handed out: in the low half to jemalloc, from the near end; in the high half to others, from
    /// the far end. So neither comes between what the other has, which jemalloc merges.
    carved: AtomicU64,
    committed: AtomicUsize,
    /// The system had no pages the last time it was asked.
    starved: AtomicBool,
}

/// Tables that no arena uses any more.
static RETIRED: PerProcess<Vec<&'static Hooks>> = PerProcess::new(Vec::new());

impl Hooks {
    pub(super) fn new(memory: &Arc<Memory>, quota: usize, punches: bool) -> &'static Self {
        let hooks = RETIRED.lock().pop().unwrap_or_else(|| {
            let table = jemalloc::extent_hooks_t {
                alloc: Some(alloc),
                dalloc: Some(dalloc),
                destroy: Some(destroy),
                commit: Some(commit),
                decommit: Some(decommit),
                purge_lazy: None,
                purge_forced: Some(purge_forced),
                split: Some(split),
                merge: Some(merge),
            };
            Box::leak(Box::new(Self { table, ground: AtomicPtr::new(ptr::null_mut()) }))
        });
        let (carved, committed) = (AtomicU64::new(0), AtomicUsize::new(0));
        let starved = AtomicBool::new(false);
        let (base, len) = (memory.base().as_ptr().expose_provenance(), memory.len());
        let ground = Ground { memory: memory.clone(), base, len, quota, punches, carved, committed, starved };
        // Partner: `ground`.
        hooks.ground.store(Box::into_raw(Box::new(ground)), Ordering::Release);
        hooks
    }

    pub(super) fn table(&'static self) -> *mut jemalloc::extent_hooks_t {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// To be called once the arena is destroyed.
    pub(super) fn retire(&'static self) {
        let ground = self.ground.swap(ptr::null_mut(), Ordering::AcqRel);
        if !ground.is_null() {
            // SAFETY: `new` made it from a box, the swap took it exactly once, and with the arena gone no hook is under
            // way.
            drop(unsafe { Box::from_raw(ground) });
        }
        RETIRED.lock().push(self);
    }

    fn ground(&self) -> Option<&Ground> {
        // Partner: the store in `new`.
        let ground = self.ground.load(Ordering::Acquire);
        // SAFETY: not null means not retired, so the box is alive; the arena's calls end before it is retired.
        unsafe { ground.as_ref() }
    }

    fn commit(&self, address: usize, len: usize) -> bool {
        self.ground().is_some_and(|ground| ground.commit(address, len))
    }

    fn decommit(&self, address: usize, len: usize) -> bool {
        self.ground().is_some_and(|ground| ground.decommit(address, len))
    }

    /// Takes `size` bytes of address space, whole pages, for other uses than jemalloc's: how far from the memory's start.
    pub(super) fn carve_far(&self, size: usize) -> Option<usize> {
        self.ground()?.carve_far(size)
    }

    /// As jemalloc's hooks, for what was carved off the far end.
    pub(super) fn commit_at(&self, offset: usize, len: usize) -> bool {
        self.ground().is_some_and(|ground| ground.commit(ground.base + offset, len))
    }

    /// The same.
    pub(super) fn decommit_at(&self, offset: usize, len: usize) -> bool {
        self.ground().is_some_and(|ground| ground.decommit(ground.base + offset, len))
    }
}

impl Ground {
    /// Gives jemalloc a range. Ranges are never given back, so one that could not be filled with pages is not given
    /// out: asked for a large step and refused, jemalloc asks again for just what it needs, pages included.
    fn alloc(&self, size: usize, alignment: usize, commit: bool) -> Option<usize> {
        let room = self.quota.saturating_sub(self.committed.load(Ordering::Relaxed));
        if size > room || (!commit && self.starved.load(Ordering::Relaxed)) {
            return None;
        }
        let address = self.carve(size, alignment)?;
        if commit && !self.commit(address, size) {
            // Back, unless another thread has carved behind it meanwhile; alignment may cost a little.
            let (start, end) = (address - self.base, address - self.base + size);
            let back = |carved| {
                let (near, far) = Self::ends(carved);
                (near == end).then(|| Self::carving(start, far))
            };
            let _ = self.carved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
            return None;
        }
        Some(address)
    }

    /// Takes a range of address space off what is untouched.
    fn carve(&self, size: usize, alignment: usize) -> Option<usize> {
        let carve = |carved: u64| {
            let (near, far) = Self::ends(carved);
            let start = (self.base + near).checked_next_multiple_of(alignment)? - self.base;
            let end = start.checked_add(size).filter(|&end| end <= self.len - far)?;
            Some(Self::carving(end, far))
        };
        // Only the number is shared, nothing is published by it.
        let before = self.carved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, carve);
        before.ok().and_then(carve).map(|carved| self.base + Self::ends(carved).0 - size)
    }

    /// The same from the other end.
    fn carve_far(&self, size: usize) -> Option<usize> {
        let carve = |carved: u64| {
            let (near, far) = Self::ends(carved);
            let far = far.checked_add(size).filter(|&far| far <= self.len - near)?;
            Some(Self::carving(near, far))
        };
        let before = self.carved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, carve);
        before.ok().and_then(carve).map(|carved| self.len - Self::ends(carved).1)
    }

    /// The bytes that are handed out at each end.
    fn ends(carved: u64) -> (usize, usize) {
        ((carved as u32) as usize * UNIT, (carved >> 32) as usize * UNIT)
    }

    fn carving(near: usize, far: usize) -> u64 {
        (near / UNIT) as u64 | ((far / UNIT) as u64) << 32
    }

    fn commit(&self, address: usize, len: usize) -> bool {
        let room = |committed: usize| committed.checked_add(len).filter(|&sum| sum <= self.quota);
        if self.committed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            return false;
        }
        let done = self.memory.commit(address - self.base, len).is_ok();
        self.starved.store(!done, Ordering::Relaxed);
        if !done {
            self.committed.fetch_sub(len, Ordering::Relaxed);
        }
        done
    }

    fn decommit(&self, address: usize, len: usize) -> bool {
        let done = self.punches && self.memory.punch(address - self.base, len).is_ok();
        if done {
            self.committed.fetch_sub(len, Ordering::Relaxed);
        }
        done
    }
}

/// What address space is counted in: jemalloc asks for whole pages, and the largest memory has 2^27 of these.
const UNIT: usize = 4096;

/// # Safety
/// `table` must be what [`Hooks::table`] gave to jemalloc.
unsafe fn hooks<'a>(table: *mut jemalloc::extent_hooks_t) -> &'a Hooks {
    // SAFETY: the table is the first field of a leaked, `repr(C)` `Hooks`.
    unsafe { &*table.cast::<Hooks>() }
}

unsafe extern "C" fn alloc(
    table: *mut jemalloc::extent_hooks_t,
    new_address: *mut c_void,
    size: usize,
    alignment: usize,
    zero: *mut bool,
    commit: *mut bool,
    _arena: u32,
) -> *mut c_void {
    // SAFETY: jemalloc passes our own table back.
    let hooks = unsafe { hooks(table) };
    // A wish for a particular place is never met: ranges are carved in order.
    if !new_address.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: both flags are live for the call; on entry `commit` says whether pages must exist already.
    let (zero, commit) = unsafe { (&mut *zero, *commit) };
    let Some(address) = hooks.ground().and_then(|ground| ground.alloc(size, alignment, commit)) else {
        return ptr::null_mut();
    };
    *zero = true;
    ptr::with_exposed_provenance_mut(address)
}

unsafe extern "C" fn dalloc(
    _: *mut jemalloc::extent_hooks_t,
    _: *mut c_void,
    _: usize,
    _committed: bool,
    _: u32,
) -> bool {
    // Declined: jemalloc decommits and retains the range instead.
    true
}

unsafe extern "C" fn destroy(
    table: *mut jemalloc::extent_hooks_t,
    address: *mut c_void,
    size: usize,
    _committed: bool,
    _: u32,
) {
    // SAFETY: jemalloc passes our own table back.
    unsafe { hooks(table) }.decommit(address.addr(), size);
}

unsafe extern "C" fn commit(
    table: *mut jemalloc::extent_hooks_t,
    address: *mut c_void,
    _size: usize,
    offset: usize,
    len: usize,
    _: u32,
) -> bool {
    // SAFETY: jemalloc passes our own table back.
    !unsafe { hooks(table) }.commit(address.addr() + offset, len)
}

unsafe extern "C" fn decommit(
    table: *mut jemalloc::extent_hooks_t,
    address: *mut c_void,
    _size: usize,
    offset: usize,
    len: usize,
    _: u32,
) -> bool {
    // SAFETY: jemalloc passes our own table back.
    !unsafe { hooks(table) }.decommit(address.addr() + offset, len)
}

unsafe extern "C" fn purge_forced(
    _: *mut jemalloc::extent_hooks_t,
    _: *mut c_void,
    _: usize,
    _: usize,
    _: usize,
    _: u32,
) -> bool {
    // Declined: a purged range would count as committed, and its reuse would skip `fallocate`. Left out, jemalloc
    // would purge by `madvise` behind our back.
    true
}

unsafe extern "C" fn split(
    _: *mut jemalloc::extent_hooks_t,
    _: *mut c_void,
    _: usize,
    _: usize,
    _: usize,
    _committed: bool,
    _: u32,
) -> bool {
    false
}

unsafe extern "C" fn merge(
    _: *mut jemalloc::extent_hooks_t,
    _: *mut c_void,
    _: usize,
    _: *mut c_void,
    _: usize,
    _committed: bool,
    _: u32,
) -> bool {
    // All ranges lie in one mapping.
    false
}
