//! The store-load fence between publishing work and looking for a sleeper, and who pays for it.
//!
//! Publisher: store work, fence, load "does it sleep?". Sleeper: store "I sleep", fence, load work. With both fences
//! one of the two sees the other. `membarrier` lets the sleeper run the publisher's fence for it: the publisher then
//! needs only that the compiler keeps the order. That works between processes which have both registered, as each tells
//! the other at log-in.

use super::sync::{Ordering, fence};

/// What log-in found out about the two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fence {
    /// Each side runs its own.
    Each,
    /// The sleeper may run both.
    SleeperMay,
}

impl Fence {
    /// The publisher's half: after publishing, before looking for a sleeper. Not `paid`, it is left to the sleeper.
    #[inline]
    pub(crate) fn publishers_half(paid: bool) {
        if cfg!(strait_plant = "no-fence") {
            return;
        }
        // The models know no `membarrier`, so there the publisher always pays. Partner: `own_half`.
        if paid || cfg!(strait_loom) {
            fence(Ordering::SeqCst);
        } else {
            std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// The sleeper's own half: after publishing that it sleeps, before it looks once more.
    pub(crate) fn own_half() {
        // Partner: `publishers_half`.
        fence(Ordering::SeqCst);
    }

    /// The half of every publisher that has left it to the sleeper.
    pub(crate) fn everyones_half() {
        #[cfg(not(strait_loom))]
        real::run_everywhere();
    }
}

#[cfg(not(strait_loom))]
pub(crate) use real::register;

#[cfg(not(strait_loom))]
mod real {
    use nix::libc;
    use std::sync::atomic::{AtomicU8, Ordering};

    const GLOBAL_EXPEDITED: i32 = 1 << 1;
    const REGISTER_GLOBAL_EXPEDITED: i32 = 1 << 2;

    const UNKNOWN: u8 = 0;
    const YES: u8 = 1;
    const NO: u8 = 2;

    fn membarrier(command: i32) -> bool {
        // SAFETY: membarrier takes no pointers.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) >= 0 }
    }

    /// Registers this process as one on whose CPUs others may run the fence. False where the kernel cannot.
    pub(crate) fn register() -> bool {
        // No lock, which a fork could catch held: registering twice is registering once.
        static REGISTERED: AtomicU8 = AtomicU8::new(UNKNOWN);
        match REGISTERED.load(Ordering::Relaxed) {
            UNKNOWN => {
                let registered = membarrier(REGISTER_GLOBAL_EXPEDITED);
                REGISTERED.store(if registered { YES } else { NO }, Ordering::Relaxed);
                registered
            }
            known => known == YES,
        }
    }

    /// A full fence on every CPU that runs a registered process.
    pub(super) fn run_everywhere() {
        membarrier(GLOBAL_EXPEDITED);
    }
}
