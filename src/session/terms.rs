//! What each side tells of itself in the log-in: features, its arena, and what that is made of.

use super::login::{FRAME, Refused};
use crate::message::Trust;
use crate::shm::arena::Arena;
use crate::shm::mirror::Mirror;
use crate::shm::view::{View, ViewError};
use crate::sys::barrier::{self, Fence};
use crate::sys::fork::NoForkFd;
use crate::sys::memfd::BadMemory;
use crate::sys::memory::Backing;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::transport::control::{Reader, Writer};
use std::sync::Arc;

/// What each side tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) features: u64,
    pub(super) arena: u32,
    pub(super) arena_bytes: u64,
    pub(super) backing: Backing,
    /// Names the memory of a backing that has names; 0 otherwise.
    pub(super) token: u64,
}

impl Terms {
    /// What this process tells of itself and an arena.
    pub(super) fn of(arena: &Arena, backing: Backing) -> Self {
        let features = if barrier::register() { FEATURE_MEMBARRIER } else { 0 };
        let (token, arena_bytes) = (arena.token(), arena.capacity() as u64);
        Self { features, arena: arena.id(), arena_bytes, backing, token }
    }

    /// Maps what a peer has announced and passed; `None` if it passed what it has not announced, or the reverse.
    pub(super) fn view(self, fd: Option<NoForkFd>, uid: u32, limit: u64) -> Result<Option<Arc<View>>, ViewError> {
        let Self { arena, arena_bytes, backing, token, .. } = self;
        match (backing, fd) {
            (Backing::Memfd, Some(fd)) => View::map(fd, arena, arena_bytes, limit).map(Some),
            (Backing::Named, None) => View::map_named(uid, token, arena, arena_bytes, limit).map(Some),
            (Backing::Heap, None) if arena_bytes > limit => {
                Err(BadMemory::TooLarge { announced: arena_bytes, limit }.into())
            }
            (Backing::Heap, None) => Ok(Some(Mirror::new(arena, arena_bytes)?.view())),
            _ => Ok(None),
        }
    }

    /// Who may pay for the fence: the sleeper, if both have registered.
    pub(super) fn fence(self, theirs: Self) -> Fence {
        if self.features & theirs.features & FEATURE_MEMBARRIER != 0 { Fence::SleeperMay } else { Fence::Each }
    }
}

/// Whether what a peer's memory is made of suits this side.
pub(super) fn backing_suits(own: Backing, theirs: Backing, trust: Trust) -> Result<(), Refused> {
    if own != theirs {
        return Err(Refused::OtherBacking(own));
    }
    // Whoever cannot be believed in place could shrink it under a reader.
    if theirs == Backing::Named && !trust.is_in_place() {
        return Err(Refused::NamedNeedsTrust);
    }
    Ok(())
}

pub(super) fn terms_out(out: &mut Writer<FRAME>, terms: Terms) {
    out.u64(terms.features).u32(terms.arena).u64(terms.arena_bytes);
}

pub(super) fn terms_in(from: &mut Reader<'_>, frame: &[u8]) -> Result<Terms, PeerMisbehaved> {
    let (features, arena, arena_bytes) = (from.u64(), from.u32(), from.u64());
    let mut end = Reader { bytes: frame.get(BACKING_AT..).unwrap_or_default() };
    let (backing, token) = (backing_of(end.u32())?, end.u64());
    Ok(Terms { features, arena, arena_bytes, backing, token })
}

/// Where both frames say what the sender's memory is made of.
const BACKING_AT: usize = FRAME - 12;

pub(super) fn backing_out(out: &mut Writer<FRAME>, terms: Terms) {
    out.at = BACKING_AT;
    out.u32(backing_number(terms.backing)).u64(terms.token);
}

pub(super) fn backing_number(backing: Backing) -> u32 {
    match backing {
        Backing::Memfd => 0,
        Backing::Named => 1,
        Backing::Heap => 2,
    }
}

pub(super) fn backing_of(number: u32) -> Result<Backing, PeerMisbehaved> {
    [Backing::Memfd, Backing::Named, Backing::Heap]
        .into_iter()
        .find(|&backing| backing_number(backing) == number)
        .ok_or(PeerMisbehaved::Frame("unknown backing"))
}

/// The process has registered for `membarrier`: see `sys::barrier`.
const FEATURE_MEMBARRIER: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_to_be_of_one_kind_and_a_name_of_a_friend() {
        // SAFETY: nothing is read.
        let (doubtful, believed) = (Trust::snapshot(), unsafe { Trust::in_place() });
        for own in [Backing::Memfd, Backing::Named, Backing::Heap] {
            assert_eq!(backing_suits(own, own, believed), Ok(()));
            for theirs in [Backing::Memfd, Backing::Named, Backing::Heap].into_iter().filter(|&theirs| theirs != own) {
                assert_eq!(backing_suits(own, theirs, believed), Err(Refused::OtherBacking(own)));
            }
        }
        assert_eq!(backing_suits(Backing::Named, Backing::Named, doubtful), Err(Refused::NamedNeedsTrust));
        assert_eq!(backing_suits(Backing::Heap, Backing::Heap, doubtful), Ok(()));
    }
}
