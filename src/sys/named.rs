//! Shared memory with a name, for peers that meet by path and cannot pass descriptors. Cannot be sealed, so readers
//! depend on its owner's good behaviour. The owner holds a lock on it for as long as it lives: a name whose lock is free
//! was left by the dead.

use super::fork::{self, NoForkFd};
use super::memfd::{BadMemory, FileId, PAGE, tmpfs};
use super::uninterrupted;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use shared_memory::{ShmemConf, ShmemError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Shared memory of fixed size that this process made, locked, and will unlink.
#[derive(Debug)]
pub(crate) struct Named {
    fd: NoForkFd,
    token: u64,
    len: usize,
    fork: u32,
}

/// Where POSIX shared memory has its names.
const DIRECTORY: &str = "/dev/shm";

/// Names of memory that are tried before it is given up.
const TRIES: usize = 16;

impl Named {
    /// Creates a sparse one under a name nobody has, and removes what dead owners of this user left.
    pub(crate) fn create(len: usize) -> io::Result<Self> {
        remove_stale();
        let (soft, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
        let len = len.min(usize::try_from(soft).unwrap_or(usize::MAX)) & !(PAGE - 1);
        for _ in 0..TRIES {
            // Keyed anew each time; that the name is free is the kernel's word.
            let token = RandomState::new().hash_one(std::process::id()).max(1);
            if let Some(fd) = Self::take_name(token, len)? {
                return Ok(Self { fd, token, len, fork: fork::generation() });
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// `None` if somebody else has the name, or took it for a dead owner's before it was locked.
    fn take_name(token: u64, len: usize) -> io::Result<Option<NoForkFd>> {
        let name = name(nix::unistd::geteuid().as_raw(), token);
        // No fork comes between: a child would keep what the crate below has open meanwhile.
        let mut making = fork::making();
        match ShmemConf::new().os_id(&name).size(len).create() {
            Err(ShmemError::MappingIdExists) => return Ok(None),
            Err(ShmemError::MapCreateFailed(code) | ShmemError::UnknownOsError(code)) => {
                return Err(io::Error::from_raw_os_error(code as i32));
            }
            Err(other) => return Err(io::Error::other(other)),
            // It maps at once and has no descriptor to give: opened anew below, and removed by `Drop`.
            Ok(mut made) => {
                made.set_owner(false);
            }
        }
        let opened = uninterrupted(|| shm_open(name.as_str(), OFlag::O_RDWR, Mode::empty())).map(|fd| making.keep(fd));
        drop(making);
        let fd = match opened {
            Err(Errno::ENOENT) => return Ok(None),
            other => other?,
        };
        Ok((lock(fd.as_fd())? && is_named(&name, fd.as_fd())).then_some(fd))
    }

    /// Opens a peer's for reading, if it is what it has to be. Nothing keeps its owner from truncating it later.
    pub(crate) fn open(
        uid: u32,
        token: u64,
        announced: u64,
        limit: u64,
    ) -> Result<(NoForkFd, usize, FileId), BadMemory> {
        if announced == 0 || announced > limit {
            return Err(BadMemory::TooLarge { announced, limit });
        }
        let len = usize::try_from(announced).map_err(|_| BadMemory::TooLarge { announced, limit })?;
        let fd = {
            let mut making = fork::making();
            // Whatever the name stands for: a pipe would wait for its other end.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
            let opened = uninterrupted(|| shm_open(name(uid, token).as_str(), flags, Mode::empty()));
            making.keep(opened.map_err(BadMemory::Unreadable)?)
        };
        let found = fstat(&fd).map_err(BadMemory::Unreadable)?;
        if found.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() || !tmpfs(fd.as_fd())? {
            return Err(BadMemory::Kind);
        }
        if found.st_uid != uid || found.st_mode & 0o022 != 0 {
            return Err(BadMemory::Owner { found: found.st_uid, mode: found.st_mode & 0o777 });
        }
        if u64::try_from(found.st_size) != Ok(announced) {
            return Err(BadMemory::Size { found: found.st_size.unsigned_abs(), announced });
        }
        Ok((fd, len, FileId::of(&found)))
    }

    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl AsFd for Named {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // In a forked child it is still the parent's.
        if self.fork == fork::generation() {
            let _ = shm_unlink(name(nix::unistd::geteuid().as_raw(), self.token).as_str());
        }
    }
}

fn name(uid: u32, token: u64) -> String {
    format!("/{}{token:016x}", prefix(uid))
}

fn prefix(uid: u32) -> String {
    format!("strait-{uid}-")
}

/// Takes the lock that says that an owner lives; false if somebody has it.
fn lock(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: flock takes a descriptor and no pointers.
    match Errno::result(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(Errno::EWOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a name still stands for this file.
fn is_named(name: &str, fd: BorrowedFd<'_>) -> bool {
    let identity = |file: FileStat| (file.st_dev, file.st_ino);
    let here = nix::sys::stat::lstat(format!("{DIRECTORY}{name}").as_str());
    matches!((here, fstat(fd)), (Ok(here), Ok(held)) if identity(here) == identity(held))
}

/// Removes the names that killed owners of this user left.
fn remove_stale() {
    let uid = nix::unistd::geteuid().as_raw();
    let Ok(all) = std::fs::read_dir(DIRECTORY) else { return };
    let names = all.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for found in names.filter(|name| name.starts_with(&prefix(uid))) {
        let name = format!("/{found}");
        let fd = {
            let mut making = fork::making();
            // Not what a link points to, and never waiting for a pipe's other end.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
            let Ok(fd) = uninterrupted(|| shm_open(name.as_str(), flags, Mode::empty())) else { continue };
            making.keep(fd)
        };
        if lock(fd.as_fd()).unwrap_or(false) && is_named(&name, fd.as_fd()) {
            tracing::info!("removing shared memory {name}, whose owner is dead");
            let _ = shm_unlink(name.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    const LEN: usize = 4 * PAGE;

    fn path(token: u64) -> PathBuf {
        format!("{DIRECTORY}{}", name(nix::unistd::geteuid().as_raw(), token)).into()
    }

    fn open(token: u64, announced: u64) -> Result<usize, BadMemory> {
        Named::open(nix::unistd::geteuid().as_raw(), token, announced, LEN as u64).map(|(_, len, _)| len)
    }

    #[test]
    fn a_name_lives_as_long_as_its_owner() {
        let named = Named::create(LEN).unwrap();
        let (token, path) = (named.token(), path(named.token()));
        assert!(path.exists());
        // Its lock is held: nobody takes it for a dead owner's.
        remove_stale();
        assert!(path.exists());
        assert_eq!(open(token, LEN as u64), Ok(LEN));
        drop(named);
        assert!(!path.exists());
        assert_eq!(open(token, LEN as u64), Err(BadMemory::Unreadable(Errno::ENOENT)));
    }

    #[test]
    fn what_the_dead_left_is_removed() {
        let token = RandomState::new().hash_one(1);
        File::create(path(token)).unwrap();
        let named = Named::create(LEN).unwrap();
        assert!(!path(token).exists());
        assert!(path(named.token()).exists());
    }

    #[test]
    fn what_is_not_as_announced_is_not_opened() {
        let named = Named::create(LEN).unwrap();
        let (token, len) = (named.token(), LEN as u64);
        assert_eq!(open(token, len - 8), Err(BadMemory::Size { found: len, announced: len - 8 }));
        assert_eq!(open(token, len + 8), Err(BadMemory::TooLarge { announced: len + 8, limit: len }));
        assert_eq!(open(token, 0), Err(BadMemory::TooLarge { announced: 0, limit: len }));
        assert!(matches!(open(token ^ 1, len), Err(BadMemory::Unreadable(Errno::ENOENT))));
        fs::set_permissions(path(token), Permissions::from_mode(0o620)).unwrap();
        let own = nix::unistd::geteuid().as_raw();
        assert_eq!(open(token, len), Err(BadMemory::Owner { found: own, mode: 0o620 }));
        fs::set_permissions(path(token), Permissions::from_mode(0o600)).unwrap();
        assert_eq!(open(token, len), Ok(LEN));
        // Somebody else's file under the name that was announced.
        if own == 0 {
            std::os::unix::fs::chown(path(token), Some(65534), None).unwrap();
            assert_eq!(open(token, len), Err(BadMemory::Owner { found: 65534, mode: 0o600 }));
        }
        let directory = RandomState::new().hash_one(2);
        fs::create_dir(path(directory)).unwrap();
        let found = open(directory, len);
        fs::remove_dir(path(directory)).unwrap();
        assert_eq!(found, Err(BadMemory::Kind));
    }
}
