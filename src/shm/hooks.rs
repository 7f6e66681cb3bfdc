//! What jemalloc asks for when an arena needs pages: address space is carved from one mapping, pages are committed by
//! `fallocate` and given back by punching holes. jemalloc keeps its own records elsewhere, in private memory.
//!
//! Hooks run under jemalloc's locks and on whichever thread frees, so they allocate nothing, take no lock and cannot
//! panic. `false` means done in jemalloc's dialect.

use crate::sys::memfd::Memfd;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use tikv_jemalloc_sys as jemalloc;

/// The hook table with what the hooks need right behind it: jemalloc hands the table's address to every hook.
#[repr(C)]
pub(super) struct Hooks {
    table: jemalloc::extent_hooks_t,
    memfd: AtomicPtr<Memfd>,
    base: AtomicUsize,
    len: usize,
    /// First byte of address space never handed to jemalloc.
    carved: AtomicUsize,
    committed: AtomicUsize,
    /// Pages beyond this many bytes are refused.
    quota: usize,
    /// Whether pages may be given back; a memfd sealed against writing refuses holes too.
    punches: AtomicBool,
}

impl Hooks {
    /// Leaked on purpose: jemalloc may call hooks from its own threads at any time, also late.
    pub(super) fn leak(memfd: &Arc<Memfd>, base: usize, len: usize, quota: usize, punches: bool) -> &'static Self {
        Box::leak(Box::new(Self {
            table: jemalloc::extent_hooks_t {
                alloc: Some(alloc),
                dalloc: Some(dalloc),
                destroy: Some(destroy),
                commit: Some(commit),
                decommit: Some(decommit),
                purge_lazy: None,
                purge_forced: Some(purge_forced),
                split: Some(split),
                merge: Some(merge),
            },
            memfd: AtomicPtr::new(Arc::into_raw(memfd.clone()).cast_mut()),
            base: AtomicUsize::new(base),
            len,
            carved: AtomicUsize::new(0),
            committed: AtomicUsize::new(0),
            quota,
            punches: AtomicBool::new(punches),
        }))
    }

    pub(super) fn table(&'static self) -> *mut jemalloc::extent_hooks_t {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// After the arena is destroyed: whatever late call comes finds nothing to do.
    pub(super) fn retire(&self) {
        self.punches.store(false, Ordering::Relaxed);
        self.base.store(0, Ordering::Relaxed);
        let memfd = self.memfd.swap(ptr::null_mut(), Ordering::AcqRel);
        if !memfd.is_null() {
            // SAFETY: `leak` made this pointer from an `Arc` and the swap took it exactly once; the arena is gone, so
            // no hook is under way.
            drop(unsafe { Arc::from_raw(memfd) });
        }
    }

    fn memfd(&self) -> Option<&Memfd> {
        // Partner: the swap in `retire`.
        let memfd = self.memfd.load(Ordering::Acquire);
        // SAFETY: non-null means not retired, so the `Arc` that `leak` stored keeps it alive.
        unsafe { memfd.as_ref() }
    }

    /// Takes a range of address space off the untouched end. Never given back: jemalloc retains what it has.
    fn carve(&self, size: usize, alignment: usize) -> Option<usize> {
        let base = self.base.load(Ordering::Relaxed);
        let carve = |carved: usize| {
            let start = (base + carved).checked_next_multiple_of(alignment)? - base;
            start.checked_add(size).filter(|&end| base != 0 && end <= self.len)
        };
        // Only the number is shared, nothing is published by it.
        let end = self.carved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, carve);
        end.ok().and_then(carve).map(|end| base + end - size)
    }

    fn commit(&self, address: usize, len: usize) -> bool {
        let Some(memfd) = self.memfd() else { return false };
        let room = |committed: usize| committed.checked_add(len).filter(|&sum| sum <= self.quota);
        if self.committed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_err() {
            return false;
        }
        let done = memfd.commit(address - self.base.load(Ordering::Relaxed), len).is_ok();
        if !done {
            self.committed.fetch_sub(len, Ordering::Relaxed);
        }
        done
    }

    fn decommit(&self, address: usize, len: usize) -> bool {
        let (Some(memfd), true) = (self.memfd(), self.punches.load(Ordering::Relaxed)) else {
            return false;
        };
        let done = memfd.punch(address - self.base.load(Ordering::Relaxed), len).is_ok();
        if done {
            self.committed.fetch_sub(len, Ordering::Relaxed);
        }
        done
    }
}

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
    let Some(address) = hooks.carve(size, alignment) else {
        return ptr::null_mut();
    };
    // SAFETY: both flags are live for the call; on entry `commit` says whether pages must exist already.
    unsafe {
        if *commit && !hooks.commit(address, size) {
            return ptr::null_mut();
        }
        *zero = true;
    }
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
