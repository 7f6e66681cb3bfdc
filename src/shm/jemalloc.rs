//! Stands in for jemalloc under Miri, which runs no foreign code: as much of its interface as this room uses, over the same
//! hooks. Every allocation asks the hooks for a range of its own; what is freed is handed out again as it was left.

#![expect(non_snake_case, reason = "names of the crate it stands in for")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::Mutex;

type Alloc =
    unsafe extern "C" fn(*mut extent_hooks_t, *mut c_void, usize, usize, *mut bool, *mut bool, c_uint) -> *mut c_void;
type Give = unsafe extern "C" fn(*mut extent_hooks_t, *mut c_void, usize, bool, c_uint) -> bool;
type Destroy = unsafe extern "C" fn(*mut extent_hooks_t, *mut c_void, usize, bool, c_uint);
type Part = unsafe extern "C" fn(*mut extent_hooks_t, *mut c_void, usize, usize, usize, c_uint) -> bool;
type Split = unsafe extern "C" fn(*mut extent_hooks_t, *mut c_void, usize, usize, usize, bool, c_uint) -> bool;
type Merge = unsafe extern "C" fn(*mut extent_hooks_t, *mut c_void, usize, *mut c_void, usize, bool, c_uint) -> bool;

#[repr(C)]
pub(super) struct extent_hooks_t {
    pub(super) alloc: Option<Alloc>,
    pub(super) dalloc: Option<Give>,
    pub(super) destroy: Option<Destroy>,
    pub(super) commit: Option<Part>,
    pub(super) decommit: Option<Part>,
    pub(super) purge_lazy: Option<Part>,
    pub(super) purge_forced: Option<Part>,
    pub(super) split: Option<Split>,
    pub(super) merge: Option<Merge>,
}

pub(super) const MALLOCX_ZERO: c_int = 0x40;
pub(super) const MALLOCX_TCACHE_NONE: c_int = 1 << 8;

pub(super) fn MALLOCX_ARENA(arena: usize) -> c_int {
    ((arena + 1) << 20) as c_int
}

pub(super) fn MALLOCX_TCACHE(id: usize) -> c_int {
    ((id + 2) << 8) as c_int
}

pub(super) fn MALLOCX_ALIGN(align: usize) -> c_int {
    align.trailing_zeros() as c_int
}

/// An arena: its hooks, and every range it was ever given.
struct Arena {
    hooks: *mut extent_hooks_t,
    ranges: Vec<Range>,
}

struct Range {
    start: *mut c_void,
    size: usize,
    align: usize,
    free: bool,
}

// SAFETY: addresses of what this table owns, reached under its lock only.
unsafe impl Send for Arena {}

static ARENAS: Mutex<Vec<Option<Arena>>> = Mutex::new(Vec::new());

const PAGE: usize = 4096;

pub(super) unsafe fn mallocx(size: usize, flags: c_int) -> *mut c_void {
    let align = 1 << (flags & 0x3F);
    let mut arenas = ARENAS.lock().expect("nobody panics with it");
    let index = (flags >> 20) as usize - 1;
    let Some(arena) = arenas.get_mut(index).and_then(Option::as_mut) else { return ptr::null_mut() };
    let known = arena.ranges.iter_mut().find(|range| range.free && range.size >= size && range.align >= align);
    let start = match known {
        Some(range) => {
            range.free = false;
            range.start
        }
        None => {
            let (whole, align) = (size.next_multiple_of(PAGE), align.max(PAGE));
            let (mut zero, mut commit) = (false, true);
            // SAFETY: the hooks were set by `mallctl`, live for ever, and get what jemalloc would give them.
            let start = unsafe {
                let alloc = (*arena.hooks).alloc.expect("set");
                alloc(arena.hooks, ptr::null_mut(), whole, align, &raw mut zero, &raw mut commit, index as c_uint)
            };
            if start.is_null() {
                return start;
            }
            arena.ranges.push(Range { start, size: whole, align, free: false });
            start
        }
    };
    if flags & MALLOCX_ZERO != 0 {
        // SAFETY: so many bytes from there belong to this allocation alone.
        unsafe { start.cast::<u8>().write_bytes(0, size) };
    }
    start
}

pub(super) unsafe fn sdallocx(start: *mut c_void, _size: usize, flags: c_int) {
    // SAFETY: the caller's.
    unsafe { dallocx(start, flags) }
}

pub(super) unsafe fn dallocx(start: *mut c_void, _flags: c_int) {
    let mut arenas = ARENAS.lock().expect("nobody panics with it");
    let mut ranges = arenas.iter_mut().flatten().flat_map(|arena| &mut arena.ranges);
    let range = ranges.find(|range| range.start.addr() == start.addr()).expect("allocated here");
    assert!(!range.free, "freed twice");
    range.free = true;
}

pub(super) unsafe fn mallctl(
    name: *const c_char,
    old: *mut c_void,
    _old_len: *mut usize,
    new: *mut c_void,
    _new_len: usize,
) -> c_int {
    let mut arenas = ARENAS.lock().expect("nobody panics with it");
    // SAFETY: a key is a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_str().expect("plain");
    let mut parts = name.split('.');
    let (tree, index, leaf) = (parts.next(), parts.next(), parts.next());
    match (tree, index.and_then(|index| index.parse::<usize>().ok()), leaf) {
        (Some("arenas"), _, _) => {
            arenas.push(None);
            // SAFETY: the key's type is `unsigned`.
            unsafe { old.cast::<c_uint>().write((arenas.len() - 1) as c_uint) };
        }
        // No thread has a cache.
        (Some("tcache"), _, _) => return nix::libc::EAGAIN,
        (Some("arena"), Some(index), Some("extent_hooks")) => {
            // SAFETY: the key's type is a pointer to hooks.
            let hooks = unsafe { new.cast::<*mut extent_hooks_t>().read() };
            arenas[index] = Some(Arena { hooks, ranges: Vec::new() });
        }
        (Some("arena"), Some(index), Some("destroy")) => {
            let Some(Arena { hooks, ranges }) = arenas[index].take() else { return nix::libc::ENOENT };
            for range in ranges {
                assert!(range.free, "an arena is destroyed whose blocks are not free");
                // SAFETY: as in `mallocx`.
                unsafe {
                    let destroy = (*hooks).destroy.expect("set");
                    destroy(hooks, range.start, range.size, true, index as c_uint);
                }
            }
        }
        // Gives back what is free.
        (Some("arena"), Some(index), Some("purge")) => {
            let Some(arena) = arenas[index].as_mut() else { return nix::libc::ENOENT };
            for range in arena.ranges.extract_if(.., |range| range.free) {
                // SAFETY: as in `mallocx`.
                unsafe {
                    let decommit = (*arena.hooks).decommit.expect("set");
                    decommit(arena.hooks, range.start, range.size, 0, range.size, index as c_uint);
                }
            }
        }
        _ => {}
    }
    0
}
