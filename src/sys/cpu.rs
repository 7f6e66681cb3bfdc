//! Which CPU a thread is on, and how to let another runner have it.

/// The CPU the calling thread is on. A hint: it may have moved by the time this returns.
#[inline]
pub(crate) fn current() -> u64 {
    // SAFETY: sched_getcpu takes no arguments and touches no memory of ours.
    let cpu = unsafe { nix::libc::sched_getcpu() };
    u64::try_from(cpu).unwrap_or(u64::MAX - 1)
}

/// Lets whoever else is runnable on this CPU go first.
#[inline]
pub(crate) fn yield_now() {
    std::thread::yield_now();
}
