//! Anonymous shared memory that dies with its last holder, sealed so that it can never shrink under a reader.

use super::fork::{self, NoForkFd};
use super::uninterrupted;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use thiserror::Error;

/// What a memfd handed over by a peer must be; each variant is a way it was not.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadMemory {
    /// It is not a memfd of ordinary pages.
    #[error("not a memfd of ordinary pages")]
    Kind,
    /// It could still be truncated, grown or resealed.
    #[error("not sealed against shrinking, growing and resealing")]
    Seals,
    /// It could still be written.
    #[error("not sealed against writing")]
    Writable,
    /// Pages of it do not exist: whoever read them would pay for them.
    #[error("only {found} of {announced} bytes exist")]
    Holes {
        /// How many bytes exist as pages.
        found: u64,
        /// How many were announced.
        announced: u64,
    },
    /// It is not as large as announced.
    #[error("{found} bytes where {announced} were announced")]
    Size {
        /// How many it has.
        found: u64,
        /// How many were announced.
        announced: u64,
    },
    /// It is larger than this side accepts, or has no size at all.
    #[error("{announced} bytes announced, at most {limit} accepted")]
    TooLarge {
        /// How many were announced.
        announced: u64,
        /// How many this side accepts.
        limit: u64,
    },
    /// It has a name, and belongs to somebody else or may be written by others.
    #[error("belongs to user {found} with mode {mode:o}")]
    Owner {
        /// Whose it is.
        found: u32,
        /// Its permissions.
        mode: u32,
    },
    /// The kernel would not tell.
    #[error("cannot be examined: {0}")]
    Unreadable(Errno),
}

/// Whether the owner may write through new mappings and give pages back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writable {
    /// The owner maps and punches at will.
    ByOwner,
    /// Nobody maps it writable any more: for peers of another user. Pages cannot be given back either.
    NoMore,
}

/// Which file the kernel says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(stat: &FileStat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// A memfd of fixed size.
#[derive(Debug)]
pub(crate) struct Memfd {
    fd: NoForkFd,
    len: usize,
    /// The same memory, opened for reading only; once a peer is to have it.
    reader: OnceLock<NoForkFd>,
}

impl Memfd {
    /// Creates a sparse one, sealed against every change of size. `len` is clamped to the process's file size limit,
    /// beyond which the kernel kills.
    pub(crate) fn create(name: &CStr, len: usize) -> io::Result<Self> {
        let len = len.min(file_size_limit()?) & !(PAGE - 1);
        let fd = new(name)?;
        let size = i64::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        uninterrupted(|| ftruncate(&fd, size))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self { fd, len, reader: OnceLock::new() })
    }

    /// Closes the set of seals. With [`Writable::NoMore`] existing writable mappings stay, new ones are refused.
    pub(crate) fn seal(&self, writable: Writable) -> io::Result<()> {
        let mut seals = SealFlag::F_SEAL_SEAL;
        if writable == Writable::NoMore {
            seals |= SealFlag::F_SEAL_FUTURE_WRITE;
        }
        fcntl(self, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(())
    }

    /// Which file a peer sent, and its length, if it is what it has to be: this is the check that makes SIGBUS impossible.
    pub(crate) fn check(fd: BorrowedFd<'_>, announced: u64, limit: u64) -> Result<(FileId, usize), BadMemory> {
        let Facts { len, id, .. } = examine(fd, announced, limit)?;
        Ok((id, len))
    }

    /// A descriptor of the same memory that can only be mapped for reading. Opened once: every session passes it.
    pub(crate) fn read_only(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(reader) = self.reader.get() {
            return Ok(reader.as_fd());
        }
        let opened = reopen_read_only(self.as_fd())?;
        // Another thread may have been quicker.
        Ok(self.reader.get_or_init(|| opened).as_fd())
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What is known of memory that a peer sent.
struct Facts {
    len: usize,
    id: FileId,
    seals: SealFlag,
    resident: u64,
}

/// Checks what all memory of a peer has to be: nothing that can shrink under its reader.
fn examine(fd: BorrowedFd<'_>, announced: u64, limit: u64) -> Result<Facts, BadMemory> {
    if announced == 0 || announced > limit {
        return Err(BadMemory::TooLarge { announced, limit });
    }
    let len = usize::try_from(announced).map_err(|_| BadMemory::TooLarge { announced, limit })?;
    if !tmpfs(fd)? {
        return Err(BadMemory::Kind);
    }
    let seals = SealFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|_| BadMemory::Kind)?);
    if !seals.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL) {
        return Err(BadMemory::Seals);
    }
    let stat = fstat(fd).map_err(BadMemory::Unreadable)?;
    if u64::try_from(stat.st_size) != Ok(announced) {
        return Err(BadMemory::Size { found: stat.st_size.unsigned_abs(), announced });
    }
    Ok(Facts { len, id: FileId::of(&stat), seals, resident: stat.st_blocks.unsigned_abs().saturating_mul(512) })
}

/// Checks memory that nobody is to be able to change any more, and that is there already, all of it: only then can it be
/// read where it lies without anybody's word for it. Tells how long it is and which file.
pub(crate) fn check_sealed(fd: BorrowedFd<'_>, announced: u64, limit: u64) -> Result<(usize, FileId), BadMemory> {
    let Facts { len, id, seals, resident } = examine(fd, announced, limit)?;
    if !seals.contains(SealFlag::F_SEAL_WRITE) && !cfg!(strait_plant = "no-seal") {
        return Err(BadMemory::Writable);
    }
    if resident < announced {
        return Err(BadMemory::Holes { found: resident, announced });
    }
    Ok((len, id))
}

/// An empty one without seals.
pub(super) fn new(name: &CStr) -> io::Result<NoForkFd> {
    // MFD_NOEXEC_SEAL, which nix does not name yet; kernels before 6.3 refuse it.
    let no_exec = MFdFlags::from_bits_retain(8);
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = {
        let mut making = fork::making();
        making.keep(match memfd_create(name, flags | no_exec) {
            Err(Errno::EINVAL) => memfd_create(name, flags)?,
            other => other?,
        })
    };
    // The inode's own mode decides who may re-open it through /proc/self/fd for writing.
    fchmod(&fd, Mode::S_IRUSR)?;
    Ok(fd)
}

/// A descriptor of the same memory that can only be mapped for reading.
pub(super) fn reopen_read_only(fd: BorrowedFd<'_>) -> io::Result<NoForkFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut making = fork::making();
    Ok(making.keep(open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?))
}

/// How large a file this process may make; beyond it the kernel kills.
pub(super) fn file_size_limit() -> io::Result<usize> {
    let (soft, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
    Ok(usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Whether a file is memory.
pub(super) fn tmpfs(fd: BorrowedFd<'_>) -> Result<bool, BadMemory> {
    Ok(fstatfs(fd).map_err(BadMemory::Unreadable)?.filesystem_type() == TMPFS_MAGIC)
}

/// Makes the pages of a range exist, so that touching them cannot fail.
pub(super) fn commit(fd: BorrowedFd<'_>, offset: usize, len: usize) -> nix::Result<()> {
    allocate(fd, FallocateFlags::empty(), offset, len)
}

/// Gives the pages of a range back; they read as zero.
pub(super) fn punch(fd: BorrowedFd<'_>, offset: usize, len: usize) -> nix::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    allocate(fd, flags, offset, len)
}

fn allocate(fd: BorrowedFd<'_>, flags: FallocateFlags, offset: usize, len: usize) -> nix::Result<()> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let len = i64::try_from(len).map_err(|_| Errno::EINVAL)?;
    uninterrupted(|| fallocate(fd, flags, offset, len))
}

/// How many bytes of it exist as pages.
pub(super) fn resident(fd: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(fstat(fd)?.st_blocks.unsigned_abs() * 512)
}

/// The unit of mapping. Sizes are cut to whole pages of the largest kind in common use.
pub(crate) const PAGE: usize = 64 * 1024;
