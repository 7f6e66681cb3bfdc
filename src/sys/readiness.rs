//! Waiting for descriptors: epoll, and the descriptors that stand for a wish to wake, a point in time, and signals. None
//! of them is kept by a forked child, whose copies would be this process's own.

use super::fork::{self, NoForkFd};
use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What a descriptor can be ready for, as a set.
///
/// ```
/// use strait::event::Readiness;
/// let both = Readiness::READABLE | Readiness::WRITABLE;
/// assert!(both.is_readable() && both.is_writable() && !both.is_hung_up());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness(u32);

impl Readiness {
    /// Reading does not block.
    pub const READABLE: Self = Self(libc::EPOLLIN as u32);
    /// Writing does not block.
    pub const WRITABLE: Self = Self(libc::EPOLLOUT as u32);

    /// Whether reading does not block: there is something, or it is at its end.
    #[must_use]
    pub fn is_readable(self) -> bool {
        self.0 & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// Whether writing does not block: there is room, or it fails.
    #[must_use]
    pub fn is_writable(self) -> bool {
        self.0 & (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }

    /// Whether the other end is gone.
    #[must_use]
    pub fn is_hung_up(self) -> bool {
        self.0 & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0
    }
}

impl std::ops::BitOr for Readiness {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A set of descriptors to wait for, each under a number.
#[derive(Debug)]
pub(crate) struct Epoll(NoForkFd);

/// What a wait found.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Ready(libc::epoll_event);

impl Ready {
    pub(crate) const NONE: Self = Self(libc::epoll_event { events: 0, u64: 0 });

    pub(crate) fn number(&self) -> u64 {
        self.0.u64
    }

    pub(crate) fn readiness(&self) -> Readiness {
        Readiness(self.0.events)
    }
}

/// How often an interest is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// As long as it holds.
    Level,
    /// Once, until it is renewed.
    Once,
}

impl Epoll {
    pub(crate) fn new() -> nix::Result<Self> {
        // SAFETY: takes no pointers; the descriptor it makes is ours.
        make(|| unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    pub(crate) fn add(&self, fd: BorrowedFd<'_>, interest: Readiness, report: Report, number: u64) -> nix::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), interest, report, number)
    }

    /// Fails with ENOENT or EBADF if the number of the descriptor is that of something else by now.
    pub(crate) fn renew(&self, raw: i32, interest: Readiness, number: u64) -> nix::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, raw, interest, Report::Once, number)
    }

    /// Reports other things of what was added, for as long as they hold.
    pub(crate) fn change(&self, fd: BorrowedFd<'_>, interest: Readiness, number: u64) -> nix::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd.as_raw_fd(), interest, Report::Level, number)
    }

    pub(crate) fn delete(&self, raw: i32) -> nix::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, raw, Readiness::default(), Report::Level, 0)
    }

    fn control(&self, what: i32, raw: i32, interest: Readiness, report: Report, number: u64) -> nix::Result<()> {
        let once = if report == Report::Once { libc::EPOLLONESHOT as u32 } else { 0 };
        let mut event = libc::epoll_event { events: interest.0 | once, u64: number };
        // SAFETY: `event` lives for the call; a bad descriptor is an error.
        Errno::result(unsafe { libc::epoll_ctl(self.0.as_fd().as_raw_fd(), what, raw, &raw mut event) }).map(drop)
    }

    /// What is ready, waiting at most so long (to the next millisecond), or for good. Interrupted, nothing.
    pub(crate) fn wait<'a>(&self, into: &'a mut [Ready], timeout: Option<Duration>) -> nix::Result<&'a [Ready]> {
        let millis = timeout.map_or(-1, |left| i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX));
        let room = i32::try_from(into.len()).unwrap_or(i32::MAX);
        // SAFETY: `Ready` is an `epoll_event`, and there is room for as many as asked for.
        let found = unsafe { libc::epoll_wait(self.0.as_fd().as_raw_fd(), into.as_mut_ptr().cast(), room, millis) };
        match Errno::result(found) {
            Err(Errno::EINTR) => Ok(&[]),
            other => Ok(into.get(..usize::try_from(other?).unwrap_or(0)).unwrap_or_default()),
        }
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Readable from the first wish until the wishes are taken.
#[derive(Debug)]
pub(crate) struct Wish(NoForkFd);

impl Wish {
    pub(crate) fn new() -> nix::Result<Self> {
        let mut making = fork::making();
        Ok(Self(making.keep(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?.into())))
    }

    pub(crate) fn make(&self) {
        let _ = nix::unistd::write(&self.0, &1_u64.to_ne_bytes());
    }

    pub(crate) fn take(&self) {
        let _ = nix::unistd::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wish {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Readable from a point in time on.
#[derive(Debug)]
pub(crate) struct Alarm(NoForkFd);

impl Alarm {
    pub(crate) fn new() -> nix::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: takes no pointers; the descriptor it makes is ours.
        make(|| unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) }).map(Self)
    }

    /// So long from now, or never.
    pub(crate) fn set(&self, left: Option<Duration>) -> nix::Result<()> {
        // Zero would be never.
        let left = left.map(|left| left.max(Duration::from_nanos(1))).unwrap_or_default();
        let at = libc::timespec {
            tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let new = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        // SAFETY: `new` lives for the call, and nothing is asked back.
        let set = unsafe { libc::timerfd_settime(self.0.as_fd().as_raw_fd(), 0, &raw const new, std::ptr::null_mut()) };
        Errno::result(set).map(drop)
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Signals that come as something to read. They are blocked in the thread that makes it, and in those it starts later,
/// until it is dropped there.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: NoForkFd,
    /// Those that were not blocked before.
    blocked: SigSet,
}

impl Signals {
    pub(crate) fn new(signals: &[i32]) -> nix::Result<Self> {
        let mut wanted = SigSet::empty();
        for &signal in signals {
            wanted.add(Signal::try_from(signal)?);
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set lives for the call; the descriptor it makes is ours.
        let fd = make(|| unsafe { libc::signalfd(-1, std::ptr::from_ref(wanted.as_ref()), flags) })?;
        let before = wanted.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let new = wanted.iter().filter(|&signal| !before.contains(signal));
        Ok(Self { fd, blocked: new.collect() })
    }

    /// The next signal, and who sent it.
    pub(crate) fn next(&self) -> nix::Result<Option<(i32, i32)>> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match nix::unistd::read(&self.fd, &mut info) {
            Ok(len) if len == info.len() => {
                let field = |at: usize| info.get(at..at + 4).and_then(|field| field.try_into().ok());
                let [signal, pid] = [0, 12].map(|at| field(at).map_or(0, i32::from_ne_bytes));
                Ok(Some((signal, pid)))
            }
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        let _ = self.blocked.thread_unblock();
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a descriptor that no forked child keeps. `call` returns one of its own, or -1.
fn make(call: impl FnOnce() -> i32) -> nix::Result<NoForkFd> {
    let mut making = fork::making();
    let raw = Errno::result(call())?;
    // SAFETY: made by `call` just now, and nobody else knows it.
    Ok(making.keep(unsafe { OwnedFd::from_raw_fd(raw) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn signals_are_read_where_the_kernel_puts_them() {
        assert_eq!(offset_of!(libc::signalfd_siginfo, ssi_signo), 0);
        assert_eq!(offset_of!(libc::signalfd_siginfo, ssi_pid), 12);
    }

    #[test]
    fn an_alarm_in_the_past_is_at_once() {
        let (epoll, alarm) = (Epoll::new().unwrap(), Alarm::new().unwrap());
        epoll.add(alarm.as_fd(), Readiness::READABLE, Report::Level, 7).unwrap();
        let mut room = [Ready::NONE; 4];
        assert_eq!(epoll.wait(&mut room, Some(Duration::ZERO)).unwrap().len(), 0);
        alarm.set(Some(Duration::ZERO)).unwrap();
        assert_eq!(epoll.wait(&mut room, None).unwrap()[0].number(), 7);
        alarm.set(None).unwrap();
        assert_eq!(epoll.wait(&mut room, Some(Duration::ZERO)).unwrap().len(), 0);
    }
}
