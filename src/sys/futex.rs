//! Sleeping on a word. A [`Spot`] is the low half of a shared word; a [`Bell`] is a private word that anyone in this
//! process can ring. A sleeper waits for either, so that whatever the peer does, its own process can wake it.

#[cfg(not(strait_loom))]
mod real {
    use crate::sys::sync::{AtomicU32, AtomicU64, Ordering};
    use nix::errno::Errno;
    use nix::libc;
    use std::time::{Duration, Instant};

    /// The futex in a shared word: its low 32 bits.
    #[derive(Clone, Copy)]
    pub(crate) struct Spot<'a>(&'a AtomicU64);

    impl<'a> Spot<'a> {
        pub(crate) fn shared(word: &'a AtomicU64) -> Self {
            Self(word)
        }

        fn address(self) -> *const u32 {
            let low_half = usize::from(cfg!(target_endian = "big"));
            self.0.as_ptr().cast::<u32>().cast_const().wrapping_add(low_half)
        }
    }

    /// A private word to ring: whoever sleeps with an older value of it wakes.
    #[derive(Default)]
    pub(crate) struct Bell(AtomicU32);

    impl Bell {
        /// Read before looking at whatever the bell announces, and hand to [`wait`].
        pub(crate) fn value(&self) -> u32 {
            // Partner: the release half of `ring`: what was announced before is visible after.
            self.0.load(Ordering::Acquire)
        }

        /// Wakes everyone who sleeps with an older value.
        pub(crate) fn ring(&self) {
            // Partner: `value`.
            self.0.fetch_add(1, Ordering::AcqRel);
            futex_wake(self.0.as_ptr(), libc::FUTEX_PRIVATE_FLAG);
        }

        /// Sleeps until it is rung, unless it was since `rung` was read, or the deadline passes. May return early.
        pub(crate) fn wait(&self, rung: u32, deadline: Option<Instant>) {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| libc::timespec {
                tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            });
            let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
            // SAFETY: the word and `timeout` are live for the length of the call.
            unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), operation, rung, timeout) };
        }
    }

    /// Wakes whoever sleeps on `spot`, in any process.
    pub(crate) fn wake(spot: Spot<'_>) {
        futex_wake(spot.address().cast_mut(), 0);
    }

    fn futex_wake(address: *mut u32, flags: i32) {
        // SAFETY: FUTEX_WAKE does not touch the word; a bad address would be an error, and this one is live.
        unsafe { libc::syscall(libc::SYS_futex, address, libc::FUTEX_WAKE | flags, i32::MAX) };
    }

    /// Sleeps until `spot` no longer holds `expected`, the bell no longer holds `rung`, somebody wakes either, or the
    /// deadline passes. May return early: look again.
    pub(crate) fn wait(spot: Spot<'_>, expected: u32, bell: &Bell, rung: u32, deadline: Option<Instant>) {
        let entry = |value: u32, address: *const u32, flags: i32| Waiter {
            value: u64::from(value),
            address: address as u64,
            flags: (FUTEX2_SIZE_U32 | flags) as u32,
            reserved: 0,
        };
        let both = [entry(expected, spot.address(), 0), entry(rung, bell.0.as_ptr(), libc::FUTEX_PRIVATE_FLAG)];
        let until = deadline.map(absolute);
        let timeout = until.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: both entries name live words for the length of the call; `until` outlives it.
        let result = unsafe {
            libc::syscall(libc::SYS_futex_waitv, both.as_ptr(), both.len(), 0, timeout, libc::CLOCK_MONOTONIC)
        };
        if result < 0 && Errno::last() == Errno::ENOSYS {
            wait_in_slices(spot, expected, deadline);
        }
    }

    /// Where `futex_waitv` is missing or forbidden: short sleeps on the shared word, the bell heard in between.
    fn wait_in_slices(spot: Spot<'_>, expected: u32, deadline: Option<Instant>) {
        const SLICE: Duration = Duration::from_millis(20);
        let left = deadline.map_or(SLICE, |at| at.saturating_duration_since(Instant::now()).min(SLICE));
        let timeout = libc::timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        // SAFETY: the word is live for the length of the call, as is `timeout`.
        unsafe {
            libc::syscall(libc::SYS_futex, spot.address(), libc::FUTEX_WAIT, expected, std::ptr::from_ref(&timeout))
        };
    }

    const FUTEX2_SIZE_U32: i32 = 2;

    #[repr(C)]
    struct Waiter {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }

    /// `Instant` hides its clock reading, so the absolute time is now plus what is left.
    fn absolute(deadline: Instant) -> libc::timespec {
        let left = deadline.saturating_duration_since(Instant::now());
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let at = now.saturating_add(left);
        libc::timespec {
            tv_sec: libc::time_t::try_from(at.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: i64::from(at.subsec_nanos()),
        }
    }
}

#[cfg(strait_loom)]
mod model {
    use crate::sys::sync::{AtomicU32, AtomicU64, Ordering};
    use loom::sync::{Condvar, Mutex};
    use std::sync::Arc;
    use std::time::Instant;

    /// The kernel's wait queue: one for all words of a model.
    #[derive(Clone)]
    pub(crate) struct Gate(Arc<(Mutex<()>, Condvar)>);

    impl Gate {
        pub(crate) fn new() -> Self {
            Self(Arc::new((Mutex::new(()), Condvar::new())))
        }
        fn open(&self) {
            let _queue = self.0.0.lock().unwrap();
            self.0.1.notify_all();
        }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Spot<'a>(&'a AtomicU64, &'a Gate);

    impl<'a> Spot<'a> {
        pub(crate) fn shared(word: &'a AtomicU64, gate: &'a Gate) -> Self {
            Self(word, gate)
        }
    }

    pub(crate) struct Bell(AtomicU32, Gate);

    impl Bell {
        pub(crate) fn new(gate: &Gate) -> Self {
            Self(AtomicU32::new(0), gate.clone())
        }
        pub(crate) fn value(&self) -> u32 {
            self.0.load(Ordering::Acquire)
        }
        pub(crate) fn ring(&self) {
            self.0.fetch_add(1, Ordering::AcqRel);
            self.1.open();
        }
    }

    pub(crate) fn wake(spot: Spot<'_>) {
        spot.1.open();
    }

    pub(crate) fn wait(spot: Spot<'_>, expected: u32, bell: &Bell, rung: u32, _deadline: Option<Instant>) {
        let queue = spot.1.0.0.lock().unwrap();
        let changed = spot.0.load(Ordering::Relaxed) as u32 != expected || bell.0.load(Ordering::Relaxed) != rung;
        if !changed {
            drop(spot.1.0.1.wait(queue).unwrap());
        }
    }
}

#[cfg(strait_loom)]
pub(crate) use model::{Bell, Gate, Spot, wait, wake};
#[cfg(not(strait_loom))]
pub(crate) use real::{Bell, Spot, wait, wake};
