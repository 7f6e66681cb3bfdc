//! Which CPU a thread is on, how many there are, and how to let another runner have it.

use std::sync::atomic::{AtomicU32, Ordering};

/// The CPU the calling thread is on. A hint: it may have moved by the time this returns.
#[inline]
pub(crate) fn current() -> u64 {
    // SAFETY: sched_getcpu takes no arguments and touches no memory of ours.
    let cpu = unsafe { nix::libc::sched_getcpu() };
    u64::try_from(cpu).unwrap_or(u64::MAX - 1)
}

/// Whether the machine has but one. Asked once.
#[inline]
pub(crate) fn is_only_one() -> bool {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    match COUNT.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: sysconf takes a number.
            let count = unsafe { nix::libc::sysconf(nix::libc::_SC_NPROCESSORS_ONLN) };
            COUNT.store(u32::try_from(count).unwrap_or(1).max(1), Ordering::Relaxed);
            count <= 1
        }
        count => count == 1,
    }
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
