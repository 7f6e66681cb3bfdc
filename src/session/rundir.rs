//! The directory where apps meet: found, made, and checked by descriptor so that nobody can swap it afterwards.

use super::error::RunDirError;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fchmod, fstat};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// An open run directory.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    pub(super) fd: OwnedFd,
}

impl RunDir {
    /// The server's: made if missing. `others` lets other users reach into it, not list it.
    pub(super) fn make(given: Option<&Path>, own_uid: u32, others: bool) -> Result<Self, RunDirError> {
        let path = locate(given, own_uid);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(RunDirError::Io { path, source });
            }
            _ => {}
        }
        let dir = Self::open(path, own_uid, OFlag::O_RDONLY)?;
        if others {
            fchmod(&dir.fd, Mode::from_bits_truncate(0o711)).map_err(|errno| dir.error(errno))?;
        }
        Ok(dir)
    }

    /// The client's: must belong to the user the server runs as.
    pub(super) fn find(given: Option<&Path>, server_uid: u32) -> Result<Self, RunDirError> {
        // Another user's directory may be reached into without being readable.
        Self::open(locate(given, server_uid), server_uid, OFlag::O_PATH)
    }

    fn open(path: PathBuf, owner: u32, how: OFlag) -> Result<Self, RunDirError> {
        let flags = how | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = match open(&path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(errno) => return Err(RunDirError::Io { path, source: errno.into() }),
        };
        let dir = Self { path, fd };
        let found = fstat(&dir.fd).map_err(|errno| dir.error(errno))?;
        if found.st_uid != owner {
            return Err(RunDirError::Owner { path: dir.path, found: found.st_uid, expected: owner });
        }
        if found.st_mode & 0o022 != 0 {
            return Err(RunDirError::Writable { path: dir.path });
        }
        Ok(dir)
    }

    /// A name in the directory, for people.
    pub(super) fn shown(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The same, for the kernel: through the descriptor that was checked, and short enough for a socket address.
    pub(super) fn reached(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    fn error(&self, source: impl Into<io::Error>) -> RunDirError {
        RunDirError::Io { path: self.path.clone(), source: source.into() }
    }
}

fn locate(given: Option<&Path>, uid: u32) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = uid == nix::unistd::geteuid().as_raw();
    given
        .map(Path::to_path_buf)
        .or_else(|| set("STRAIT_RUN_DIR"))
        // Another user's runtime directory is not this one's.
        .or_else(|| set("XDG_RUNTIME_DIR").filter(|_| own).map(|dir| dir.join("strait")))
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/strait-{uid}")))
}
