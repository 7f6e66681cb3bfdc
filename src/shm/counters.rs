//! Counters: words in shared memory that their owner goes on writing while borrowers read them. All access is atomic,
//! and only of words, so that no borrower needs to believe the owner.

use super::arena::{AllocError, Arena};
use super::blob::{Blob, ReceivedBlob};
use super::value::{FORKED, Kind, START, ValueError, digest, name};
use crate::sys::fork;
use crate::sys::sync::AtomicU64;
use crate::sys::words::PeerWords;
use zerocopy::{FromZeros, IntoBytes};

impl Arena {
    /// Puts counters into shared memory: a struct of `AtomicU64`, all zero at first. This process alone writes them, for
    /// as long as it likes; receivers see each change at once, without a message.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use strait::zerocopy::{FromBytes, IntoBytes};
    ///
    /// #[derive(FromBytes, IntoBytes)]
    /// #[repr(C)]
    /// struct Stats {
    ///     hits: AtomicU64,
    ///     misses: AtomicU64,
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = std::env::temp_dir().join(format!("strait-counters-{}", std::process::id()));
    /// # let server = strait::ServerApp::new("doc").run_dir(&dir).bind()?;
    /// let stats = server.arena().share_counters::<Stats>()?;
    /// stats.of(|stats| &stats.hits).fetch_add(1, Ordering::Relaxed);
    /// // builder.attach_blob(&stats);
    /// // message.blobs()[0].counters::<Stats>()?.load(|stats| &stats.hits)
    /// # assert_eq!(stats.of(|stats| &stats.hits).load(Ordering::Relaxed), 1);
    /// # drop((stats, server));
    /// # std::fs::remove_dir(dir)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn share_counters<C: FromZeros + IntoBytes>(&self) -> Result<Counters<C>, AllocError> {
        const { assert!(size_of::<C>() > 0 && size_of::<C>().is_multiple_of(size_of::<u64>())) };
        let mut blob = self.create_blob(START + size_of::<C>())?;
        name(&mut blob, Kind::Counters, digest::<C>(), size_of::<C>() as u64);
        // The counters follow the blob's bytes in its block: nobody makes a slice of them.
        blob.truncate(START);
        let plan = C::new_box_zeroed().map_err(|_| AllocError::Full { bytes: size_of::<C>() })?;
        Ok(Counters { blob: blob.freeze(), plan })
    }
}

/// Counters in shared memory, as their owner has them.
///
/// They go with messages as a [`Blob`] does ([`Builder::attach_blob`](crate::Builder::attach_blob)), and are freed after
/// this and the last loan.
#[derive(Debug)]
pub struct Counters<C> {
    blob: Blob,
    /// Never counts: shows where each counter lies.
    plan: Box<C>,
}

impl<C> Counters<C> {
    /// One of them, to be written by any thread. A borrower's [`load`](LoanedCounters::load) acquires: what was stored
    /// before a store with `Release` is seen with it.
    ///
    /// # Panics
    /// If `field` answers with anything but a counter of the struct it is given, and in a forked child, which does not
    /// have the memory.
    pub fn of(&self, field: impl FnOnce(&C) -> &AtomicU64) -> &AtomicU64 {
        assert!(!self.blob.arena().is_forked(), "{FORKED}");
        let at = START + index_of(&*self.plan, field) * size_of::<u64>();
        // SAFETY: the block has `size_of::<C>()` zeroed bytes from `START` on, 8-aligned, that the index lies in; they
        // are reached only atomically, here and by borrowers, and live as long as the blob.
        unsafe { self.blob.start().byte_add(at).cast::<AtomicU64>().as_ref() }
    }
}

impl<C> From<&Counters<C>> for Blob {
    fn from(counters: &Counters<C>) -> Self {
        counters.blob.clone()
    }
}

impl ReceivedBlob {
    /// The counters that its sender [shared](Arena::share_counters), whatever the [`Trust`](crate::Trust).
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn counters<C: FromZeros + IntoBytes>(&self) -> Result<LoanedCounters<C>, ValueError> {
        let expected = std::any::type_name::<C>();
        let header = self.header(Kind::Counters, digest::<C>(), expected)?;
        let size = ValueError::Size { expected, bytes: header.bytes };
        if header.bytes != size_of::<C>() as u64 {
            return Err(size);
        }
        if self.loan.is_copy() {
            return Err(ValueError::NotShared);
        }
        let words = self.words_after(START, size_of::<C>()).map_err(|_| size)?;
        let plan = C::new_box_zeroed().map_err(|_| ValueError::NoMemory { bytes: header.bytes })?;
        Ok(LoanedCounters { words, plan, fork: fork::generation() })
    }
}

/// Counters of a peer, which goes on counting. On loan together with the message they came with.
pub struct LoanedCounters<C> {
    words: PeerWords,
    plan: Box<C>,
    fork: u32,
}

impl<C> LoanedCounters<C> {
    /// What one of them is now. A peer that is not believed can count as it likes.
    ///
    /// # Panics
    /// As [`Counters::of`].
    pub fn load(&self, field: impl FnOnce(&C) -> &AtomicU64) -> u64 {
        assert!(self.fork == fork::generation(), "{FORKED}");
        // Partner: the owner's store, where that releases.
        self.words.acquire(index_of(&*self.plan, field))
    }
}

impl<C> std::fmt::Debug for LoanedCounters<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoanedCounters")
    }
}

/// Which word a counter is.
fn index_of<C>(plan: &C, field: impl FnOnce(&C) -> &AtomicU64) -> usize {
    let counter = std::ptr::from_ref(field(plan)).addr();
    let at = counter.wrapping_sub(std::ptr::from_ref(plan).addr());
    assert!(at < size_of::<C>() && at.is_multiple_of(size_of::<u64>()), "not a counter of this struct");
    at / size_of::<u64>()
}
