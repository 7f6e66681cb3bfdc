//! jemalloc's thread caches, one per thread and arena, made on first use and destroyed with whichever of the two ends
//! first. They must be named on every call: left to itself jemalloc mixes shared and private blocks in its own cache.

use super::jemalloc;
use super::mallctl;
use crate::sys::fork;
use parking_lot::Mutex;
use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};

/// The caches made for one arena, so that its end finds them all.
#[derive(Debug, Default)]
pub(super) struct Tcaches(Mutex<Vec<u32>>);

impl Tcaches {
    /// The flag that names the calling thread's cache for the arena `serial` (a number never used twice). Where no
    /// cache can be had (4,094 per process), the one that says to use none.
    #[inline]
    pub(super) fn flag(self: &Arc<Self>, serial: u64) -> i32 {
        let known = LAST.with(Cell::get);
        if known.0 == serial { known.1 } else { self.flag_cold(serial) }
    }

    #[cold]
    fn flag_cold(self: &Arc<Self>, serial: u64) -> i32 {
        let flag = MINE.try_with(|mine| {
            let mut mine = mine.borrow_mut();
            if mine.fork != fork::generation() {
                std::mem::take(&mut mine.held).into_iter().for_each(std::mem::forget);
                mine.fork = fork::generation();
            }
            if mine.forgone {
                return jemalloc::MALLOCX_TCACHE_NONE;
            }
            if let Some(held) = mine.held.iter().find(|held| held.serial == serial) {
                return jemalloc::MALLOCX_TCACHE(held.id as usize);
            }
            // jemalloc ties a cache to the thread's own arena, and does not look whether there was memory to make that: it
            // crashes when the cache goes.
            if mallctl::read::<u32>("thread.arena").is_err() {
                mine.forgone = true;
                return jemalloc::MALLOCX_TCACHE_NONE;
            }
            let Ok(id) = mallctl::read::<u32>("tcache.create") else {
                return jemalloc::MALLOCX_TCACHE_NONE;
            };
            self.0.lock().push(id);
            mine.held.retain(|held| held.home.strong_count() > 0);
            mine.held.push(Held { serial, id, home: Arc::downgrade(self) });
            jemalloc::MALLOCX_TCACHE(id as usize)
        });
        match flag {
            Ok(flag) => {
                LAST.with(|last| last.set((serial, flag)));
                flag
            }
            // The thread is ending and its caches are gone.
            Err(_) => jemalloc::MALLOCX_TCACHE_NONE,
        }
    }

    /// Empties the calling thread's cache for the arena.
    pub(super) fn flush(&self, serial: u64) {
        let _ = MINE.try_with(|mine| {
            if let Some(held) = mine.borrow().held.iter().find(|held| held.serial == serial) {
                let _ = mallctl::write("tcache.flush", held.id);
            }
        });
    }

    /// Destroys all of them: the arena is about to go, and nobody can be using one.
    pub(super) fn destroy(&self) {
        for id in self.0.lock().drain(..) {
            let _ = mallctl::write("tcache.destroy", id);
        }
    }
}

/// The calling thread will free only now and then: it goes without caches, and so holds no memory back.
pub(crate) fn forgo_in_this_thread() {
    MINE.with(|mine| mine.borrow_mut().forgone = true);
}

/// A cache of the calling thread.
struct Held {
    serial: u64,
    id: u32,
    home: Weak<Tcaches>,
}

#[derive(Default)]
struct Mine {
    held: Vec<Held>,
    forgone: bool,
    /// Whose caches these are.
    fork: u32,
}

impl Drop for Mine {
    fn drop(&mut self) {
        LAST.with(|last| last.set(NONE));
        // In a forked child the caches are its parent's, and so may be the lock.
        if self.fork != fork::generation() {
            std::mem::take(&mut self.held).into_iter().for_each(std::mem::forget);
            return;
        }
        for held in self.held.drain(..) {
            let Some(home) = held.home.upgrade() else { continue };
            let mut all = home.0.lock();
            // Absent if the arena's end was quicker.
            if let Some(index) = all.iter().position(|&id| id == held.id) {
                all.swap_remove(index);
                let _ = mallctl::write("tcache.destroy", held.id);
            }
        }
    }
}

const NONE: (u64, i32) = (0, 0);

thread_local! {
    /// The last answer: nearly always the right one. Needs no destructor, so it outlives `MINE`.
    static LAST: Cell<(u64, i32)> = const { Cell::new(NONE) };
    static MINE: RefCell<Mine> = RefCell::default();
}
