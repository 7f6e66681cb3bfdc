//! What a forked child may not keep. Its mappings are gone (`MADV_DONTFORK`), but descriptors are inherited: a copy of
//! a session's socket would hide this process's death from the peer, a copy of a lock would outlive its server. So the
//! child gives them up before it runs anything of its own, and can tell that it is a child.

use super::brief::{Brief, Holding};
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// A descriptor that no forked child keeps.
#[derive(Debug)]
pub(crate) struct NoForkFd(Option<OwnedFd>);

/// Held while a descriptor is made: no fork comes between its making and its being known.
pub(crate) struct Making(Holding<'static, Vec<RawFd>>);

/// To be held for as long as it takes to make descriptors, which may not block.
pub(crate) fn making() -> Making {
    static HANDLERS: Once = Once::new();
    HANDLERS.call_once(|| {
        // SAFETY: the handlers are `extern "C"` functions that never unwind and use only atomics, one raw lock and
        // system calls, all of which a freshly forked child may use.
        unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
    });
    Making(OPEN.lock())
}

impl Making {
    /// Takes a descriptor: one that was made just now, or that its maker's forked children are to lose from now on.
    pub(crate) fn keep(&mut self, fd: OwnedFd) -> NoForkFd {
        self.0.push(fd.as_raw_fd());
        NoForkFd(Some(fd))
    }
}

impl NoForkFd {
    /// Leaves it to the caller, whose forked children keep it. `None` in a child, which does not have it.
    pub(crate) fn into_owned(mut self) -> Option<OwnedFd> {
        let fd = self.0.take()?;
        let mut open = OPEN.lock();
        match open.iter().position(|&raw| raw == fd.as_raw_fd()) {
            Some(index) => {
                open.swap_remove(index);
                Some(fd)
            }
            None => {
                std::mem::forget(fd);
                None
            }
        }
    }
}

impl AsFd for NoForkFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Some(fd) => fd.as_fd(),
            None => unreachable!("taken only by what consumes it"),
        }
    }
}

impl Drop for NoForkFd {
    fn drop(&mut self) {
        let Some(fd) = self.0.take() else { return };
        let mut open = OPEN.lock();
        match open.iter().position(|&raw| raw == fd.as_raw_fd()) {
            // Closed under the lock, or a fork in between would find the number in use for something else.
            Some(index) => {
                open.swap_remove(index);
                drop(fd);
            }
            // This is a child, where the number stands for nothing of this value's any more.
            None => std::mem::forget(fd),
        }
    }
}

/// Data of which every process has its own: a forked child begins with a new one, in whatever state the fork caught its
/// parent's, which is left alone.
#[derive(Debug, Default)]
pub(crate) struct PerProcess<T> {
    data: Brief<T>,
    /// Whose it is; [`RENEWING`] while it is replaced.
    generation: AtomicU32,
}

/// No process is forked from so many.
const RENEWING: u32 = u32::MAX;

impl<T: Default> PerProcess<T> {
    pub(crate) const fn new(data: T) -> Self {
        Self { data: Brief::new(data), generation: AtomicU32::new(0) }
    }

    pub(crate) fn lock(&self) -> Holding<'_, T> {
        let current = generation();
        loop {
            // Partner: the release below.
            let found = self.generation.load(Ordering::Acquire);
            if found == current {
                return self.data.lock();
            }
            let swapped =
                self.generation.compare_exchange(found, RENEWING, Ordering::Acquire, Ordering::Relaxed).is_ok();
            if found != RENEWING && swapped {
                // SAFETY: no thread of this process reaches the data before the generation says that it is new, and
                // only one gets here. What was there belongs to another process and is overwritten, not dropped;
                // whoever held the lock does not exist here.
                unsafe {
                    self.data.data_ptr().write(T::default());
                    self.data.force_unlock();
                }
                self.generation.store(current, Ordering::Release);
            } else {
                super::cpu::yield_now();
            }
        }
    }
}

/// Counts the forks between the first process and this one.
pub(crate) fn generation() -> u32 {
    // Written only in a child that has one thread: no partner needed.
    GENERATION.load(Ordering::Relaxed)
}

static GENERATION: AtomicU32 = AtomicU32::new(0);
/// A lock of plain atomics: one that parks its waiters keeps them in tables whose own locks a fork may catch held.
static OPEN: Brief<Vec<RawFd>> = Brief::new(Vec::new());

extern "C" fn before() {
    // Held across the fork, so that the child finds the list whole.
    std::mem::forget(OPEN.lock());
}

extern "C" fn after_in_parent() {
    // SAFETY: `before` locked it in this thread and forgot the guard.
    unsafe { OPEN.force_unlock() };
}

extern "C" fn after_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    // SAFETY: `before` holds the lock for this, the child's only thread, so nobody else is in the list.
    let open = unsafe { &mut *OPEN.data_ptr() };
    // What stands in for each of them is open to nothing: the numbers are in use, so that whoever still has one here
    // cannot hit upon a file of the child's own.
    // SAFETY: `open` and `dup3` are async-signal-safe and the path is a C string.
    let dead = unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
    for &fd in open.iter() {
        // SAFETY: the numbers are descriptors this child inherited; their owners here find them gone from the list
        // and leave them alone.
        unsafe {
            if dead < 0 || libc::dup3(dead, fd, libc::O_CLOEXEC) < 0 {
                libc::close(fd);
            }
        }
    }
    if dead >= 0 {
        // SAFETY: opened above, and nobody else knows it.
        unsafe { libc::close(dead) };
    }
    // `clear` frees nothing, so the child's allocator is not touched.
    open.clear();
    // SAFETY: as above: `before` forgot its hold.
    unsafe { OPEN.force_unlock() };
}
