//! A file whose lock says that its owner lives. The kernel drops the lock with the process, so nothing has to be swept.

use super::fork::{self, NoForkFd};
use super::uninterrupted;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A held lock. Dropped, the file goes before the lock does.
#[derive(Debug)]
pub(crate) struct LockFile {
    _file: NoForkFd,
    dir: OwnedFd,
    name: String,
    fork: u32,
}

impl LockFile {
    /// Takes the lock; `None` if a living process has it.
    pub(crate) fn acquire(dir: BorrowedFd<'_>, name: &str) -> nix::Result<Option<Self>> {
        let flags = OFlag::O_CREAT | OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        loop {
            let file = {
                let mut making = fork::making();
                making.keep(uninterrupted(|| openat(dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR))?)
            };
            // SAFETY: flock takes a descriptor and no pointers.
            match Errno::result(unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
                Ok(_) => {}
                Err(Errno::EWOULDBLOCK) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno),
            }
            // The owner before may have removed the file between the open and the lock.
            let held = fstat(&file)?;
            let current = fstatat(dir, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW);
            if current.is_ok_and(|current| same_file(&held, &current)) {
                let dir = dir
                    .try_clone_to_owned()
                    .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
                let fork = fork::generation();
                return Ok(Some(Self { _file: file, dir, name: name.to_owned(), fork }));
            }
        }
    }
}

fn same_file(one: &FileStat, other: &FileStat) -> bool {
    one.st_dev == other.st_dev && one.st_ino == other.st_ino
}

impl LockFile {
    /// Not in a forked child.
    pub(crate) fn is_held(&self) -> bool {
        self.fork == fork::generation()
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // While the lock is held, the name is ours.
        if self.is_held() {
            let _ = unlinkat(&self.dir, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}
