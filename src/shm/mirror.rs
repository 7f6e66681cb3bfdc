//! What stands in for a peer's arena where no memory is shared: private copies of what the peer has sent, under names of
//! this side's own, and of the rings it fills. Knows what each copy is called at home, not how it came.

use super::arena::{Arena, Options};
use super::blob::{Blob, BlobBuilder};
use super::handle::{Handle, WORD};
use super::view::View;
use crate::sys::memfd::Writable;
use crate::sys::memory::Backing;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::{OwnWords, PeerWords};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Write};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

/// See the module's own words.
#[derive(Debug)]
pub(crate) struct Mirror {
    arena: Arena,
    /// The peer's number for its arena.
    theirs: u32,
    /// Bytes that copies may have, by the size of the peer's arena.
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the word at which each begins in the peer's arena.
    areas: HashMap<u64, Arc<Area>>,
    area_bytes: u64,
    /// By ticket, with what the peer calls it.
    held: HashMap<u32, (Blob, Handle)>,
    bytes: u64,
}

/// The copy of what a peer publishes of one channel.
pub(crate) struct Area {
    pub(crate) words: OwnWords,
    start: NonNull<u64>,
    pub(crate) filling: Mutex<Filling>,
    claims: Mutex<usize>,
}

// SAFETY: `start` is only an address, of words that are reached by atomics.
unsafe impl Send for Area {}
// SAFETY: as for `Send`.
unsafe impl Sync for Area {}

/// How far a copied ring is filled.
#[derive(Debug, Default)]
pub(crate) struct Filling {
    pub(crate) filled: u64,
    /// What is on its way for the next slot.
    pub(crate) parcel: Option<Parcel>,
}

/// A message of which not all bytes are here.
#[derive(Debug)]
pub(crate) struct Parcel {
    pub(crate) slot: [u64; 7],
    bytes: BlobBuilder,
    total: usize,
}

/// Bytes of copied rings: some thousand channels.
const AREAS_MAX: u64 = 64 << 20;

impl Mirror {
    /// Stands in for a peer's arena of so many bytes.
    pub(crate) fn new(theirs: u32, bytes: u64) -> io::Result<Arc<Self>> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        // The owner counts no tables.
        let limit = (bytes as u64).saturating_add(bytes as u64 / 2);
        // Whatever the sizes that come, room for `limit` bytes of them.
        let room = bytes.saturating_mul(2).saturating_add((AREAS_MAX as usize).saturating_mul(2));
        let options =
            Options { bytes: room.saturating_mul(2), quota: room, writable: Writable::ByOwner, backing: Backing::Heap };
        let arena = Arena::create(options)?;
        Ok(Arc::new(Self { arena, theirs, limit, state: Mutex::default() }))
    }

    /// All of it, to be read like a peer's arena.
    pub(crate) fn view(self: &Arc<Self>) -> Arc<View> {
        View::of_mirror(self.clone(), &self.arena)
    }

    /// The copy of a peer's area, made if there is none yet.
    pub(crate) fn area(&self, offset: u64, words: usize) -> Result<Arc<Area>, PeerMisbehaved> {
        let mut state = self.state.lock();
        if let Some(area) = state.areas.get(&offset) {
            let same = area.words.len() == words;
            return if same { Ok(area.clone()) } else { Err(PeerMisbehaved::Frame("a ring of two sizes")) };
        }
        let bytes = words.saturating_mul(WORD);
        let block = self.arena.alloc(bytes, WORD);
        let area_bytes = state.area_bytes.saturating_add(bytes as u64);
        let (Ok(block), true) = (block, area_bytes <= AREAS_MAX) else {
            return Err(PeerMisbehaved::Frame("more rings than there is room for"));
        };
        let start = block.start().cast();
        let (filling, claims) = (Mutex::default(), Mutex::new(0));
        let area = Arc::new(Area { words: block.into_words(()), start, filling, claims });
        state.area_bytes = area_bytes;
        state.areas.insert(offset, area.clone());
        Ok(area)
    }

    /// The copy of a peer's area, if there is one.
    pub(crate) fn known_area(&self, offset: u64) -> Option<Arc<Area>> {
        self.state.lock().areas.get(&offset).cloned()
    }

    /// The copy of a peer's area, to be read; forgotten when nobody reads it any more.
    pub(crate) fn claim(self: &Arc<Self>, offset: u64, words: usize) -> Result<PeerWords, PeerMisbehaved> {
        let area = self.area(offset, words)?;
        {
            let mut claims = area.claims.lock();
            *claims = claims.saturating_add(1);
        }
        let (start, claim) = (area.start, Claim { area, mirror: Arc::downgrade(self), offset });
        // SAFETY: that many aligned words begin there, live as long as the claim's area, and are reached by atomics only.
        Ok(unsafe { PeerWords::new(start, words, Arc::new(claim)) })
    }

    /// Begins to take in what comes with a slot.
    pub(crate) fn begin(&self, slot: [u64; 7], words: u64) -> Result<Parcel, PeerMisbehaved> {
        let bytes = words.saturating_mul(WORD as u64);
        let held = self.state.lock().bytes.saturating_add(bytes);
        let limit = PeerMisbehaved::MessageTooLarge { bytes: held, limit: self.limit };
        if held > self.limit {
            return Err(limit);
        }
        let total = bytes as usize;
        let bytes = self.arena.create_blob_with_capacity(total).map_err(|_| limit)?;
        Ok(Parcel { slot, bytes, total })
    }

    /// Names what has come in, for this side's readers.
    ///
    /// `entries`: segments and blobs, where their table comes first.
    pub(crate) fn keep(
        &self,
        parcel: Parcel,
        wire: Handle,
        entries: Option<(usize, usize)>,
    ) -> Result<Handle, PeerMisbehaved> {
        if wire.arena() != self.theirs {
            return Err(PeerMisbehaved::UnknownArena { found: wire.arena(), expected: self.theirs });
        }
        let wrong = PeerMisbehaved::Frame("a table that its message does not fit");
        let mut bytes = parcel.bytes;
        let (start, total) = (bytes.offset(), (bytes.len() / WORD) as u64);
        let len = match entries {
            None => total,
            Some((segments, blobs)) => {
                let entries = segments.saturating_add(blobs);
                let words = (entries as u64).saturating_mul(2);
                let mut at = words;
                let table = bytes.get_mut(..entries.saturating_mul(2 * WORD)).ok_or(wrong)?;
                for (index, entry) in table.as_chunks_mut::<{ 2 * WORD }>().0.iter_mut().enumerate() {
                    let (offset, len) = entry.split_at_mut(WORD);
                    let len = u64::from_ne_bytes((&*len).try_into().unwrap_or_default());
                    let words = if index < segments { len } else { len.div_ceil(WORD as u64) };
                    // What is empty lies somewhere too.
                    let begins = start.saturating_add(if words == 0 { 0 } else { at });
                    offset.copy_from_slice(&begins.to_ne_bytes());
                    at = at.checked_add(words).filter(|&at| at <= total).ok_or(wrong)?;
                }
                if at != total {
                    return Err(wrong);
                }
                words
            }
        };
        if wire.len() != len || len == 0 {
            return Err(wrong);
        }
        let local = Handle::new(self.arena.id(), start, len, wire.ticket());
        let mut state = self.state.lock();
        let state = &mut *state;
        let Entry::Vacant(place) = state.held.entry(wire.ticket()) else {
            return Err(PeerMisbehaved::Frame("a loan that is held already"));
        };
        state.bytes = state.bytes.saturating_add(bytes.len() as u64);
        place.insert((bytes.freeze(), wire));
        Ok(local)
    }

    /// What the copy of something is called here; `None` if it has not come.
    pub(crate) fn local(&self, wire: Handle) -> Option<Handle> {
        let state = self.state.lock();
        let (blob, known) = state.held.get(&wire.ticket())?;
        (*known == wire).then(|| Handle::new(self.arena.id(), blob.offset(), wire.len(), wire.ticket()))
    }

    /// Frees what is read no more; says what the peer calls it.
    pub(crate) fn give_up(&self, local: Handle) -> Option<Handle> {
        let mut state = self.state.lock();
        let (blob, wire) = state.held.remove(&local.ticket())?;
        state.bytes = state.bytes.saturating_sub(blob.len() as u64);
        drop(state);
        Some(wire)
    }
}

impl Parcel {
    /// Takes the next bytes in; true once all are here.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<bool, PeerMisbehaved> {
        if bytes.len() > self.total.saturating_sub(self.bytes.len()) {
            return Err(PeerMisbehaved::Frame("more bytes than announced"));
        }
        // There is room, so this cannot fail but in a forked child, which has no session.
        let _ = self.bytes.write_all(bytes);
        Ok(self.bytes.len() == self.total)
    }
}

impl std::fmt::Debug for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Area")
    }
}

/// Somebody reads a copied area.
struct Claim {
    area: Arc<Area>,
    mirror: Weak<Mirror>,
    offset: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let last = {
            let mut claims = self.area.claims.lock();
            *claims = claims.saturating_sub(1);
            *claims == 0
        };
        let Some(mirror) = self.mirror.upgrade().filter(|_| last) else { return };
        let mut state = mirror.state.lock();
        if state.areas.get(&self.offset).is_some_and(|area| Arc::ptr_eq(area, &self.area)) {
            state.areas.remove(&self.offset);
            let bytes = self.area.words.len().saturating_mul(WORD) as u64;
            state.area_bytes = state.area_bytes.saturating_sub(bytes);
        }
    }
}
