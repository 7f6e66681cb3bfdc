//! A message in memory of its own that nobody can write any more: read where it lies, by its sender and its receivers
//! alike. Knows what is in the memory, not how it was made.

use super::places::listed;
use crate::shm::blob::ReceivedBlob;
use crate::shm::sealed::{self, SealedAt, SealedProblem};
use crate::shm::view::{Borrowed, Place};
use crate::sys::fork;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// See the module's own words.
pub(crate) struct Sealed {
    at: SealedAt,
    /// Keeps the memory mapped.
    loan: Arc<Borrowed>,
    places: Box<[Place]>,
    blobs: Vec<ReceivedBlob>,
    fork: u32,
}

impl Sealed {
    /// Checks memory and where a message lies in it. What has been checked stays so.
    pub(super) fn open(fd: BorrowedFd<'_>, at: SealedAt, limit: u64) -> Result<Self, SealedProblem> {
        let table = usize::from(at.segments).saturating_add(usize::from(at.blobs)).saturating_mul(2);
        let loan = Arc::new(sealed::borrow(fd, at.words, table, limit)?);
        let (places, blobs) = listed(&loan, at.segments, at.blobs, true)?;
        Ok(Self { at, loan, places, blobs, fork: fork::generation() })
    }

    pub(crate) fn at(&self) -> SealedAt {
        self.at
    }

    pub(super) fn blobs(&self) -> &[ReceivedBlob] {
        &self.blobs
    }

    pub(super) fn segment_count(&self) -> usize {
        self.places.len()
    }

    pub(super) fn segment(&self, index: usize) -> Option<&[u8]> {
        // In a forked child the memory is not mapped.
        let place = *self.places.get(index).filter(|_| self.fork == fork::generation())?;
        // SAFETY: `borrow` has found the memory sealed against writing: no process has a writable mapping of it, or can
        // get one.
        Some(unsafe { self.loan.bytes(place) })
    }
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealed").field("at", &self.at).finish_non_exhaustive()
    }
}
