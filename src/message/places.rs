//! Where the segments and blobs of a message lie, as its sender says: in what a handle names, or in the table it names.
//! Everything is checked before anything is read.

use crate::shm::blob::ReceivedBlob;
use crate::shm::block::MAX_SEGMENTS;
use crate::shm::view::{Borrowed, Place};
use crate::sys::misbehaved::PeerMisbehaved;
use smallvec::SmallVec;
use std::sync::Arc;

/// One segment is named by the handle itself; of several the handle names a table, which is read once.
pub(super) fn places(borrowed: &Borrowed, segments: u16) -> Result<SmallVec<[Place; 1]>, PeerMisbehaved> {
    match usize::from(segments) {
        1 => Ok(smallvec::smallvec![borrowed.whole()]),
        count @ 2..=MAX_SEGMENTS => {
            let table = table(borrowed, count).ok_or(PeerMisbehaved::SegmentCount(u32::from(segments)))?;
            table.as_chunks::<2>().0.iter().map(|&[offset, len]| borrowed.part(offset, len)).collect()
        }
        _ => Err(PeerMisbehaved::SegmentCount(u32::from(segments))),
    }
}

/// As [`places`], for a message with blobs, of which there is a table whatever the number of segments.
pub(super) fn places_beside(
    borrowed: &Borrowed,
    segments: u16,
    blobs: u8,
) -> Result<SmallVec<[Place; 1]>, PeerMisbehaved> {
    if blobs == 0 {
        return places(borrowed, segments);
    }
    let count = usize::from(segments);
    let table = table(borrowed, count.saturating_add(usize::from(blobs)))
        .ok_or(PeerMisbehaved::SegmentCount(u32::from(segments)))?;
    table.as_chunks::<2>().0.iter().take(count).map(|&[offset, len]| borrowed.part(offset, len)).collect()
}

/// The segments and blobs that a table lists, all of which share a loan. `believed`: the memory may be read where it
/// lies.
pub(super) fn listed(
    loan: &Arc<Borrowed>,
    segments: u16,
    blobs: u8,
    believed: bool,
) -> Result<(Box<[Place]>, Vec<ReceivedBlob>), PeerMisbehaved> {
    let count = usize::from(segments);
    let possible = (1..=MAX_SEGMENTS).contains(&count);
    let table = if possible { table(loan, count.saturating_add(usize::from(blobs))) } else { None };
    let table = table.ok_or(PeerMisbehaved::SegmentCount(u32::from(segments)))?;
    let mut entries = table.as_chunks::<2>().0.iter();
    let places = entries.by_ref().take(count).map(|&[offset, len]| loan.part(offset, len));
    let places = places.collect::<Result<_, _>>()?;
    let blobs = entries.map(|&entry| ReceivedBlob::new(loan, entry, believed));
    Ok((places, blobs.collect::<Result<_, _>>()?))
}

/// What the handle of a table names, read once; `None` if that is not as long as so many entries.
fn table(borrowed: &Borrowed, entries: usize) -> Option<Vec<u64>> {
    // Before anything is copied: the table may claim to be as long as the arena.
    let words = entries.saturating_mul(2);
    if borrowed.whole().words() != words {
        return None;
    }
    let mut table = Vec::with_capacity(words);
    borrowed.copy_out(borrowed.whole(), &mut table);
    Some(table)
}
