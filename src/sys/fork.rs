//! What a forked child may not keep. Its mappings are gone (`MADV_DONTFORK`), but descriptors are inherited: a copy of
//! a session's socket would hide this process's death from the peer, a copy of a lock would outlive its server. So the
//! child closes them before it runs anything of its own, and can tell that it is a child.

use nix::libc;
use parking_lot::Mutex;
use parking_lot::lock_api::RawMutex as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// A descriptor that no forked child keeps.
#[derive(Debug)]
pub(crate) struct NoForkFd(Option<OwnedFd>);

impl NoForkFd {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        static HANDLERS: Once = Once::new();
        HANDLERS.call_once(|| {
            // SAFETY: the handlers are `extern "C"` functions that never unwind and use only atomics, one raw lock
            // and `close`, all of which a freshly forked child may use.
            unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
        });
        OPEN.lock().push(fd.as_raw_fd());
        Self(Some(fd))
    }
}

impl AsFd for NoForkFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Some(fd) => fd.as_fd(),
            None => unreachable!("taken only by drop"),
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
            // This is a child, where the number was closed and may by now be somebody else's.
            None => std::mem::forget(fd),
        }
    }
}

/// Counts the forks between the first process and this one.
pub(crate) fn generation() -> u32 {
    // Written only in a child that has one thread: no partner needed.
    GENERATION.load(Ordering::Relaxed)
}

static GENERATION: AtomicU32 = AtomicU32::new(0);
static OPEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

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
    for &fd in open.iter() {
        // SAFETY: the numbers are descriptors this child inherited; their owners here find them gone from the list
        // and leave them alone.
        unsafe { libc::close(fd) };
    }
    // `clear` frees nothing, so the child's allocator is not touched.
    open.clear();
    // SAFETY: as above: the lock is held by this thread.
    unsafe { OPEN.raw().unlock() };
}
