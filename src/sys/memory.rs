//! What an arena's bytes are: anonymous shared memory, shared memory with a name, or memory that is not shared at all.
//! Mapped once, for its owner; knows not what lies in it.

use super::mapping::{Access, Mapping};
use super::memfd::{Memfd, PAGE, Writable};
use super::named::Named;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the arenas of an app's sessions are made of, and so how its messages reach a peer. Both sides of a session must
/// say the same.
///
/// ```no_run
/// use strait::{Backing, ClientApp, ServerApp};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // Nothing is shared: messages are copied through the socket.
/// let session = ClientApp::new("guest").backing(Backing::Heap).connect(&ServerApp::new("hello"))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backing {
    /// Anonymous memory, passed by descriptor and sealed so that it cannot shrink under a reader. It has no name, so
    /// that nothing is ever left behind.
    #[default]
    Memfd,
    /// POSIX shared memory with a name in `/dev/shm`, for peers of one user that cannot pass descriptors. It can be
    /// truncated by whoever runs as that user, which kills readers (`SIGBUS`): therefore only between peers that both
    /// chose [`Trust::in_place`](crate::Trust::in_place). Its owner removes the name; the names of owners that were
    /// killed go when the next named arena of that user is made.
    Named,
    /// Private memory: nothing is shared, the bytes of messages cross the socket and are copied. For peers that cannot
    /// share memory. Arenas have at most 1 GiB. What a process has sent and the socket has not taken when it is killed is
    /// lost. Counters need shared memory.
    Heap,
}

/// See the module's own words.
#[derive(Debug)]
pub(crate) struct Memory {
    source: Source,
    map: Mapping,
}

#[derive(Debug)]
enum Source {
    Memfd(Memfd),
    Named(Named),
    /// With how many bytes of it are in use as pages.
    Private(AtomicUsize),
}

impl Memory {
    /// Reserves `len` bytes (cut to whole pages) and maps them writable. Pages come with [`commit`](Self::commit).
    pub(crate) fn create(backing: Backing, len: usize, writable: Writable) -> io::Result<Self> {
        // Miri knows no shared memory.
        Ok(match if cfg!(miri) { Backing::Heap } else { backing } {
            Backing::Memfd => {
                let memfd = Memfd::create(c"strait-arena", len)?;
                let map = Mapping::new(&memfd, memfd.len(), Access::ReadWrite)?;
                memfd.seal(writable)?;
                Self { source: Source::Memfd(memfd), map }
            }
            Backing::Named => {
                let named = Named::create(len)?;
                let map = Mapping::new(&named, named.len(), Access::ReadWrite)?;
                Self { source: Source::Named(named), map }
            }
            Backing::Heap => {
                let map = Mapping::private(len & !(PAGE - 1))?;
                Self { source: Source::Private(AtomicUsize::new(0)), map }
            }
        })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.map.base()
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// A descriptor for a peer to map for reading; `None` where none is to be passed.
    pub(crate) fn read_only_fd(&self) -> io::Result<Option<BorrowedFd<'_>>> {
        match &self.source {
            Source::Memfd(memfd) => memfd.read_only().map(Some),
            Source::Named(_) | Source::Private(_) => Ok(None),
        }
    }

    /// What a peer finds it by, where it has a name; 0 where it has none.
    pub(crate) fn token(&self) -> u64 {
        match &self.source {
            Source::Named(named) => named.token(),
            Source::Memfd(_) | Source::Private(_) => 0,
        }
    }

    /// Makes the pages of a range exist, so that touching them cannot fail.
    pub(crate) fn commit(&self, offset: usize, len: usize) -> nix::Result<()> {
        match &self.source {
            Source::Memfd(memfd) => super::memfd::commit(memfd.as_fd(), offset, len),
            Source::Named(named) => super::memfd::commit(named.as_fd(), offset, len),
            Source::Private(used) => {
                // Only counted.
                used.fetch_add(len, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Gives the pages of a range back; they read as zero.
    pub(crate) fn punch(&self, offset: usize, len: usize) -> nix::Result<()> {
        match &self.source {
            Source::Memfd(memfd) => super::memfd::punch(memfd.as_fd(), offset, len),
            Source::Named(named) => super::memfd::punch(named.as_fd(), offset, len),
            Source::Private(used) => {
                self.map.discard(offset, len)?;
                used.fetch_sub(len, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// How many bytes of it exist as pages.
    pub(crate) fn resident(&self) -> io::Result<u64> {
        match &self.source {
            Source::Memfd(memfd) => super::memfd::resident(memfd.as_fd()),
            Source::Named(named) => super::memfd::resident(named.as_fd()),
            Source::Private(_) if !self.map.is_here() => Err(io::ErrorKind::NotFound.into()),
            Source::Private(used) => Ok(used.load(Ordering::Relaxed) as u64),
        }
    }
}
