//! How many CPUs this process may run on, and how to let another runner have this one.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// True when spinning can only delay the one it waits for: the calling thread may run on one CPU only.
pub(crate) fn confined_to_one() -> bool {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return false;
    };
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).take(2).count() < 2
}

/// Lets whoever else is runnable on this CPU go first.
#[inline]
pub(crate) fn yield_now() {
    std::thread::yield_now();
}
