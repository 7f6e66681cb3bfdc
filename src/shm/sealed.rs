//! Memory of a message's own that nobody can write any more, whoever made it: read where it lies without anyone's word
//! for it. It stays for as long as somebody has it open or mapped, so nothing of it is on loan.

use super::handle::{BYTES_MAX, Handle, WORD};
use super::view::{Borrowed, Home, SEALED, View, ViewError};
use crate::sys::memfd::BadMemory;
use crate::sys::misbehaved::PeerMisbehaved;
use nix::errno::Errno;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Where a message lies in sealed memory, as its sender says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SealedAt {
    /// How many words the memory has. The last are a table: where each segment and blob begins and how long it is.
    pub(crate) words: u64,
    pub(crate) segments: u16,
    pub(crate) blobs: u8,
    /// Of its root's unnamed union.
    pub(crate) tag: Option<u16>,
}

/// Why sealed memory is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SealedProblem {
    /// It is not what it has to be.
    Bad(PeerMisbehaved),
    /// This process cannot map so many bytes.
    NoMemory(usize),
}

impl From<PeerMisbehaved> for SealedProblem {
    fn from(broken: PeerMisbehaved) -> Self {
        Self::Bad(broken)
    }
}

/// Nothing goes home.
struct Unowed(Arc<View>);

impl Home for Unowed {
    fn view(&self) -> &View {
        &self.0
    }

    fn owe(&self, _: Handle) {}
}

/// Checks memory of `words` words, `limit` bytes at most, and maps it, unless it is mapped already. What is borrowed is
/// its last `table` words, by which the rest is found.
pub(crate) fn borrow(fd: BorrowedFd<'_>, words: u64, table: usize, limit: u64) -> Result<Borrowed, SealedProblem> {
    let bytes = words.saturating_mul(WORD as u64);
    let bad = |bad| SealedProblem::Bad(PeerMisbehaved::NotSealed(bad));
    let limit = limit.min(BYTES_MAX as u64);
    let view = View::map_sealed(fd, bytes, limit).map_err(|error| match error {
        ViewError::Bad(found) => bad(found),
        ViewError::Map(error) => match error.raw_os_error().map(Errno::from_raw) {
            // Passed for something other than reading.
            Some(errno @ (Errno::EPERM | Errno::EACCES)) => bad(BadMemory::Unreadable(errno)),
            _ => SealedProblem::NoMemory(usize::try_from(bytes).unwrap_or(usize::MAX)),
        },
    })?;
    let len = table as u64;
    let offset = words.checked_sub(len).filter(|_| len > 0);
    let offset = offset.ok_or(PeerMisbehaved::HandleOutOfRange { offset: 0, len, arena_words: words })?;
    Ok(Borrowed::new(Handle::new(SEALED, offset, len, 0), Arc::new(Unowed(view)))?)
}
