//! Anonymous memory that is written once: grown part by part, then sealed, so that nobody can write it any more, its
//! maker included. Knows not what lies in it.

use super::fork::NoForkFd;
use super::mapping::{Access, Mapping};
use super::memfd::{self, file_size_limit, reopen_read_only};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::uio::pwrite;
use nix::unistd::{SysconfVar, ftruncate, sysconf};
use std::io;
use std::os::fd::AsFd;

/// See the module's own words.
#[derive(Debug)]
pub(crate) struct Unsealed {
    fd: NoForkFd,
    len: usize,
    page: usize,
}

impl Unsealed {
    pub(crate) fn create() -> io::Result<Self> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|page| usize::try_from(page).ok());
        let page = page.filter(|page| page.is_power_of_two()).ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { fd: memfd::new(c"strait-sealed")?, len: 0, page })
    }

    /// Adds a part of `bytes` zeroed bytes, rounded up to whole pages, which exist from here on, and maps it. Tells where
    /// in the memory it begins.
    pub(crate) fn add(&mut self, bytes: usize) -> io::Result<(usize, Mapping)> {
        let bytes = bytes.max(1).checked_next_multiple_of(self.page).ok_or(io::ErrorKind::OutOfMemory)?;
        let start = self.len;
        self.must_fit(start, bytes)?;
        memfd::commit(self.fd.as_fd(), start, bytes)?;
        self.len = start + bytes;
        Ok((start, Mapping::part(&self.fd, start, bytes, Access::ReadWrite)?))
    }

    /// Cuts it to `len` bytes, has `end` follow them, and seals it. Its parts must be unmapped by now. What is left is a
    /// descriptor that can only be mapped for reading.
    pub(crate) fn seal(self, len: usize, end: &[u8]) -> io::Result<NoForkFd> {
        self.must_fit(len, end.len())?;
        ftruncate(&self.fd, i64::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?)?;
        let mut done = 0;
        while let Some(rest) = end.get(done..).filter(|rest| !rest.is_empty()) {
            let at = i64::try_from(len + done).map_err(|_| io::ErrorKind::InvalidInput)?;
            match pwrite(&self.fd, rest, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let reader = reopen_read_only(self.fd.as_fd())?;
        // Refused while anybody has it mapped writable.
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&self.fd, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(reader)
    }

    /// Beyond the limit the kernel does not refuse, it kills.
    fn must_fit(&self, start: usize, bytes: usize) -> io::Result<()> {
        let limit = file_size_limit()?;
        match start.checked_add(bytes) {
            Some(end) if end <= limit => Ok(()),
            _ => Err(Errno::EFBIG.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::memfd::{BadMemory, check_sealed};

    fn seals(fd: &NoForkFd) -> SealFlag {
        SealFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GET_SEALS).unwrap())
    }

    #[test]
    fn nobody_writes_what_is_sealed() {
        let mut memory = Unsealed::create().unwrap();
        let (first, map) = memory.add(10).unwrap();
        let (second, other) = memory.add(100_000).unwrap();
        assert_eq!((first, second, other.len() >= 100_000), (0, map.len(), true));
        let writer = memory.fd.as_fd().try_clone_to_owned().unwrap();
        // SAFETY: mapped writable just now, and nobody else has it.
        unsafe { other.base().write(7) };
        drop((map, other));
        let reader = memory.seal(second + 8, b"the end!").unwrap();
        assert!(seals(&reader).contains(SealFlag::F_SEAL_WRITE));
        let len = (second + 16) as u64;
        assert_eq!(check_sealed(reader.as_fd(), len, len).unwrap().0, second + 16);
        for fd in [reader.as_fd(), writer.as_fd()] {
            assert!(Mapping::new(&fd, 8, Access::ReadWrite).is_err());
        }
        assert_eq!(pwrite(&writer, b"x", 0), Err(Errno::EPERM));
        let map = Mapping::new(&reader, second + 16, Access::ReadOnly).unwrap();
        // SAFETY: mapped, and nobody can write it.
        let bytes = unsafe { std::slice::from_raw_parts(map.base().as_ptr(), second + 16) };
        assert_eq!((bytes[second], &bytes[second + 8..]), (7, &b"the end!"[..]));
    }

    #[test]
    fn nothing_is_sealed_while_it_can_be_written() {
        let mut memory = Unsealed::create().unwrap();
        let (_, map) = memory.add(1).unwrap();
        let refused = memory.seal(8, &[]).map(drop).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::EBUSY as i32));
        drop(map);
    }

    /// Each way in which memory is not sealed: what a peer may send.
    #[test]
    fn what_is_not_sealed_is_told_apart() {
        let make = |seals: SealFlag, pages: bool| {
            let fd = memfd::new(c"test").unwrap();
            ftruncate(&fd, 8192).unwrap();
            if pages {
                memfd::commit(fd.as_fd(), 0, 8192).unwrap();
            }
            fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
            fd
        };
        let fixed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        let found = |fd: &NoForkFd, announced, limit| check_sealed(fd.as_fd(), announced, limit).map(|(len, _)| len);
        let sealed = make(fixed | SealFlag::F_SEAL_WRITE, true);
        assert_eq!(found(&sealed, 8192, 8192), Ok(8192));
        assert_eq!(found(&sealed, 8192, 8191), Err(BadMemory::TooLarge { announced: 8192, limit: 8191 }));
        assert_eq!(found(&sealed, 0, 8192), Err(BadMemory::TooLarge { announced: 0, limit: 8192 }));
        assert_eq!(found(&sealed, 4096, 8192), Err(BadMemory::Size { found: 8192, announced: 4096 }));
        assert_eq!(found(&make(fixed, true), 8192, 8192), Err(BadMemory::Writable));
        // New mappings are refused, but one that is there already goes on writing.
        let future = make(fixed | SealFlag::F_SEAL_FUTURE_WRITE, true);
        assert_eq!(found(&future, 8192, 8192), Err(BadMemory::Writable));
        assert_eq!(found(&make(SealFlag::F_SEAL_WRITE, true), 8192, 8192), Err(BadMemory::Seals));
        let holes = make(fixed | SealFlag::F_SEAL_WRITE, false);
        assert_eq!(found(&holes, 8192, 8192), Err(BadMemory::Holes { found: 0, announced: 8192 }));
    }
}
