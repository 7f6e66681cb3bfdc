//! Which CPU a thread is on, and how to let another runner have it.

/// The CPU the calling thread is on. A hint: it may have moved by the time this returns.
#[inline]
pub(crate) fn current() -> u64 {
    // SAFETY: sched_getcpu takes no arguments and touches no memory of ours.
    let cpu = unsafe { nix::libc::sched_getcpu() };
    u64::try_from(cpu).unwrap_or(u64::MAX - 1)
}

/// Has the CPU fetch a line that will be read soon. A hint: any address will do.
#[inline]
pub(crate) fn fetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch of any address, mapped or not, has no effect but on the cache.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Lets whoever else is runnable on this CPU go first.
#[inline]
pub(crate) fn yield_now() {
    std::thread::yield_now();
}
