//! Where jemalloc keeps its records of an arena: private memory that goes with the arena. Left to itself jemalloc keeps
//! the address space, 2 MiB of it, for ever.
//!
//! As the hooks in [`hooks`](super::hooks), these run under jemalloc's locks. `false` means done in jemalloc's dialect.

use super::jemalloc;
use crate::sys::mapping;
use std::ffi::c_void;
use std::ptr::{self, NonNull};

struct Table(jemalloc::extent_hooks_t);

// SAFETY: a table of functions, which nobody writes.
unsafe impl Sync for Table {}

static TABLE: Table = Table(jemalloc::extent_hooks_t {
    alloc: Some(alloc),
    dalloc: Some(dalloc),
    destroy: None,
    commit: None,
    decommit: None,
    purge_lazy: None,
    purge_forced: None,
    split: None,
    merge: None,
});

pub(super) fn table() -> *mut jemalloc::extent_hooks_t {
    ptr::from_ref(&TABLE.0).cast_mut()
}

unsafe extern "C" fn alloc(
    _: *mut jemalloc::extent_hooks_t,
    new_address: *mut c_void,
    size: usize,
    alignment: usize,
    zero: *mut bool,
    commit: *mut bool,
    _: u32,
) -> *mut c_void {
    if !new_address.is_null() {
        return ptr::null_mut();
    }
    let Some(base) = mapping::take_private(size, alignment) else { return ptr::null_mut() };
    // SAFETY: both flags are live for the call.
    unsafe { (*zero, *commit) = (true, true) };
    base.as_ptr().cast()
}

unsafe extern "C" fn dalloc(
    _: *mut jemalloc::extent_hooks_t,
    address: *mut c_void,
    size: usize,
    _: bool,
    _: u32,
) -> bool {
    // SAFETY: `alloc` took just this range, which jemalloc gives back with the last of what it kept there.
    NonNull::new(address).is_none_or(|address| !unsafe { mapping::give_back(address.cast(), size) })
}
