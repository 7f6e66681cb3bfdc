//! The atomics that cross between processes, so that the model checker can put its own in their place. It also names
//! the one ordering that publication rests on, because a planted weakening of it must be caught by the models.

#[cfg(strait_loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(strait_loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// How the end of what was published is told to those who still read it. Its partner is the acquire in
/// [`Rising::now`](crate::wait::Rising::now).
pub(crate) const RAISE: Ordering =
    if cfg!(strait_plant = "relaxed-end") { Ordering::Relaxed } else { Ordering::AcqRel };

/// How a word that makes earlier stores visible is stored. Its partner is the acquire fence in
/// [`PeerWords::acquire`](super::words::PeerWords::acquire).
pub(crate) const PUBLISH: Ordering =
    if cfg!(strait_plant = "relaxed-publish") { Ordering::Relaxed } else { Ordering::Release };

/// Where values were written and read, for the model checker: it then demands that whoever writes one anew is ordered
/// behind those that read it. Nothing in what ships.
#[cfg(not(strait_loom))]
pub(crate) struct Witnesses;

#[cfg(not(strait_loom))]
impl Witnesses {
    pub(crate) fn new(_: usize) -> Self {
        Self
    }
    #[inline(always)]
    pub(crate) fn filled(&self, _: u64) {}
    #[inline(always)]
    pub(crate) fn read(&self, _: u64) {}
}

#[cfg(strait_loom)]
pub(crate) struct Witnesses(Vec<loom::cell::UnsafeCell<()>>);

// SAFETY: the cells hold nothing; what the checker notes about each access it notes from any thread.
#[cfg(strait_loom)]
unsafe impl Sync for Witnesses {}

#[cfg(strait_loom)]
impl Witnesses {
    /// With 0, nothing is witnessed.
    pub(crate) fn new(places: usize) -> Self {
        Self((0..places).map(|_| loom::cell::UnsafeCell::new(())).collect())
    }
    pub(crate) fn filled(&self, place: u64) {
        if let Some(cell) = self.0.get(place as usize) {
            cell.with_mut(|_| ());
        }
    }
    pub(crate) fn read(&self, place: u64) {
        if let Some(cell) = self.0.get(place as usize) {
            cell.with(|_| ());
        }
    }
}
