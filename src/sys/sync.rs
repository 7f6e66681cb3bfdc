//! The atomics that cross between processes, so that the model checker can put its own in their place. It also names
//! the one ordering that publication rests on, because a planted weakening of it must be caught by the models.

#[cfg(strait_loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(strait_loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// How a word that makes earlier stores visible is stored. Its partner is the acquire fence in
/// [`PeerWords::acquire`](super::words::PeerWords::acquire).
pub(crate) const PUBLISH: Ordering =
    if cfg!(strait_plant = "relaxed-publish") { Ordering::Relaxed } else { Ordering::Release };
