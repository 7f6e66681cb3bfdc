//! A process held by descriptor: its number cannot be given to another one behind one's back.

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The process that connected, or listened at, the other end of a socket. ENOPROTOOPT before Linux 6.5.
pub(crate) fn of_peer(socket: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let mut raw: RawFd = -1;
    let mut len = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: the option is one descriptor number, and `raw` has room for it.
    let found = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut raw).cast(), &raw mut len)
    };
    Errno::result(found)?;
    // SAFETY: the kernel made it for this call, close-on-exec as all of its kind.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The process that has this number now.
pub(crate) fn of_number(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let raw = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel made it for this call; descriptors are small numbers.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as RawFd) })
}

/// Not in `libc` for every architecture.
const SO_PEERPIDFD: libc::c_int = 77;

/// Whether a connection's other end is gone.
pub(crate) fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    // Both are told without being asked for.
    let (mut polled, gone) = ([PollFd::new(socket, PollFlags::empty())], PollFlags::POLLHUP | PollFlags::POLLERR);
    poll(&mut polled, PollTimeout::ZERO).is_err() || polled[0].revents().is_none_or(|found| found.intersects(gone))
}
