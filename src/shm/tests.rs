//! Both sides of shared memory in one process: an arena, its books, and a view of it.

use super::arena::{AllocError, Arena, Options};
use super::block::{Frozen, Segments};
use super::handle::{Handle, MASK_24, MASK_36};
use super::loans::{LendProblem, LoanQuota, Loans};
use super::view::{Borrowed, Home, Place, View, ViewError};
use crate::sys::memfd::{BadMemory, Writable};
use crate::sys::memory::Backing;
use crate::sys::misbehaved::PeerMisbehaved;
use parking_lot::Mutex;
use std::sync::Arc;

const MIB: usize = 1 << 20;

fn arena(bytes: usize, quota: usize) -> Arena {
    Arena::create(Options { bytes, quota, writable: Writable::ByOwner, backing: Backing::Memfd }).unwrap()
}

fn message(arena: &Arena, segments: &[u32]) -> Arc<Frozen> {
    let mut pieces = Segments::new(arena.clone());
    for &words in segments {
        let piece = pieces.add(words).unwrap();
        assert!(pieces.used(piece.start, words));
    }
    Frozen::new(pieces).unwrap_or_else(|problem| panic!("{problem:?}"))
}

fn loans(loans: usize, bytes: u64) -> Loans {
    Loans::new(LoanQuota { loans, bytes }, None, true)
}

#[test]
fn a_handle_comes_home_once_and_as_it_was() {
    let arena = arena(64 * MIB, 64 * MIB);
    let message = message(&arena, &[8]);
    let book = Loans::new(LoanQuota { loans: 10, bytes: u64::MAX }, None, false);
    let (first, second) = (book.lend(&message).unwrap(), book.lend(&message).unwrap());
    assert_ne!(first, second);
    let (number, offset, len, ticket) = (first.arena(), first.offset(), first.len(), first.ticket());
    for bent in [
        Handle::new(number, offset + 1, len, ticket),
        Handle::new(number, offset, len + 1, ticket),
        Handle::new(number ^ 1, offset, len, ticket),
        Handle::new(number, offset, len, ticket ^ 1 << 31),
        Handle::new(number, offset, len, 77),
    ] {
        assert_eq!(book.give_back(bent), Err(PeerMisbehaved::NotOnLoan));
    }
    assert_eq!(book.give_back(first), Ok(()));
    assert_eq!(book.give_back(first), Err(PeerMisbehaved::NotOnLoan));
    // The place in the book is used again; the old name for it is not.
    let third = book.lend(&message).unwrap();
    assert_eq!(book.give_back(first), Err(PeerMisbehaved::NotOnLoan));
    assert_eq!(book.outstanding(), (2, 2 * message.bytes()));
    assert_eq!((book.give_back(third), book.give_back(second)), (Ok(()), Ok(())));
    assert_eq!(book.outstanding(), (0, 0));
}

#[test]
fn what_is_lent_again_goes_by_one_name_and_comes_home_as_often() {
    let arena = arena(64 * MIB, 64 * MIB);
    let (book, one, other) = (loans(10, u64::MAX), message(&arena, &[8]), message(&arena, &[8]));
    let first = book.lend(&one).unwrap();
    assert_eq!((book.lend(&one), book.lend(&one)), (Ok(first), Ok(first)));
    // After another it has a new name: only the last is looked at.
    let second = book.lend(&other).unwrap();
    let third = book.lend(&one).unwrap();
    assert!(first != second && first != third);
    assert_eq!(book.outstanding(), (5, 4 * one.bytes() + other.bytes()));
    assert_eq!(book.give_back_times(first, 4), Err(PeerMisbehaved::NotOnLoan));
    assert_eq!(book.give_back_times(first, 2), Ok(()));
    assert_eq!(book.give_back_times(first, 2), Err(PeerMisbehaved::NotOnLoan));
    assert_eq!(book.give_back(first), Ok(()));
    assert_eq!(book.give_back(first), Err(PeerMisbehaved::NotOnLoan));
    // Once it is all home the name is not used again.
    assert_eq!(book.give_back(third), Ok(()));
    assert_ne!(book.lend(&one), Ok(third));
    assert_eq!(book.outstanding(), (2, one.bytes() + other.bytes()));
    assert_eq!(book.reclaim(), 2);
}

#[test]
fn a_borrower_holds_no_more_than_its_quota_and_nothing_once_gone() {
    let arena = arena(64 * MIB, 64 * MIB);
    let message = message(&arena, &[128]);
    let by_count = loans(2, u64::MAX);
    let lent = [by_count.lend(&message).unwrap(), by_count.lend(&message).unwrap()];
    assert!(matches!(by_count.lend(&message), Err(LendProblem::Quota(exceeded)) if exceeded.loans == 2));
    by_count.give_back(lent[0]).unwrap();
    assert!(by_count.lend(&message).is_ok());
    let by_bytes = loans(10, 1024);
    by_bytes.lend(&message).unwrap();
    assert!(matches!(by_bytes.lend(&message), Err(LendProblem::Quota(exceeded)) if exceeded.bytes == 1024));
    assert_eq!(by_bytes.reclaim(), 1);
    assert_eq!(by_bytes.lend(&message), Err(LendProblem::Over));
    assert_eq!(by_bytes.outstanding(), (0, 0));
}

#[test]
fn memory_comes_zeroed_and_goes_back_to_the_system() {
    let arena = arena(512 * MIB, 512 * MIB);
    for round in 0..3 {
        let messages: Vec<_> = (0..40_u32)
            .map(|index| {
                let message = message(&arena, &[1 + index * 5000, 3]);
                assert!(message.segment(0).unwrap().iter().all(|&byte| byte == 0), "round {round}");
                let start = message.segment(0).unwrap().as_ptr().cast_mut();
                // SAFETY: the test is the block's only user; it plays the writer that the message no longer has.
                unsafe { start.write_bytes(0xEE, message.segment(0).unwrap().len()) };
                message
            })
            .collect();
        assert!(arena.resident().unwrap() > 20 * MIB as u64);
        drop(messages);
        if round == 1 {
            arena.purge();
            assert_eq!(arena.resident().unwrap(), 0);
        }
    }
}

#[test]
fn a_full_arena_says_so_and_works_again() {
    for full in [arena(64 * MIB, 8 * MIB), arena(8 * MIB, 64 * MIB)] {
        let mut pieces = Vec::new();
        let refused = loop {
            let mut next = Segments::new(full.clone());
            match next.add(64 * 1024) {
                Ok(_) => pieces.push(next),
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, AllocError::Full { bytes: 512 * 1024 });
        assert!(pieces.len() > 5, "{}", pieces.len());
        pieces.clear();
        assert!(Segments::new(full.clone()).add(64 * 1024).is_ok());
    }
}

#[test]
fn threads_share_an_arena_and_leave_nothing_in_it() {
    let arena = arena(1024 * MIB, 1024 * MIB);
    let passed_on = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let work = |thread: u32| {
            let (arena, passed_on) = (&arena, &passed_on);
            move || {
                for index in 0..3000_u32 {
                    let kept = message(arena, &[1 + (index * 37 + thread) % 9000]);
                    let mut passed_on = passed_on.lock();
                    passed_on.push(kept);
                    // Freed by whichever thread comes by.
                    if passed_on.len() > 64 {
                        passed_on.drain(..32);
                    }
                }
            }
        };
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(work(thread))).collect();
        // Joined one by one: a scope alone does not wait until a thread has cleared its caches.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    passed_on.lock().clear();
    arena.purge();
    assert_eq!(arena.resident().unwrap(), 0);
}

/// Remembers what came home.
struct Shelf(Arc<View>, Mutex<Vec<Handle>>);

impl Home for Shelf {
    fn view(&self) -> &View {
        &self.0
    }
    fn owe(&self, handle: Handle) {
        self.1.lock().push(handle);
    }
}

#[test]
fn a_view_resolves_what_lies_inside_and_nothing_else() {
    let arena = arena(64 * MIB, 64 * MIB);
    let bytes = arena.capacity() as u64;
    let view = View::of_owner(&arena, 7);
    let home = Arc::new(Shelf(view, Mutex::default()));
    let words = bytes / 8;
    let resolve = |arena, offset, len| {
        Borrowed::new(Handle::new(arena, offset, len, 3), home.clone()).map(|borrowed| borrowed.whole().words())
    };
    assert_eq!(resolve(7, 0, 1), Ok(1));
    assert_eq!(resolve(7, words - 1, 1), Ok(1));
    assert_eq!(resolve(7, 0, words), Ok(words as usize));
    for (offset, len) in [(words, 1), (words - 1, 2), (0, words + 1), (MASK_36, 2), (2, MASK_36)] {
        let expected = PeerMisbehaved::HandleOutOfRange { offset, len, arena_words: words };
        assert_eq!(resolve(7, offset, len), Err(expected));
    }
    // What a table names may be any words at all.
    let whole = Borrowed::new(Handle::new(7, 0, 1, 3), home.clone()).unwrap();
    for (offset, len) in [(words, 1), (u64::MAX, 2), (2, u64::MAX), (0, 0)] {
        let expected = PeerMisbehaved::HandleOutOfRange { offset, len, arena_words: words };
        assert_eq!(whole.part(offset, len).map(Place::words), Err(expected));
    }
    drop(whole);
    assert_eq!(resolve(MASK_24, 0, 1), Err(PeerMisbehaved::UnknownArena { found: MASK_24, expected: 7 }));
    assert_eq!(home.1.lock().len(), 4, "what was resolved came home once");
}

#[test]
fn a_borrower_reads_what_the_owner_wrote() {
    let arena = arena(64 * MIB, 64 * MIB);
    let message = message(&arena, &[4]);
    let start = message.segment(0).unwrap().as_ptr().cast_mut().cast::<u64>();
    // SAFETY: the test is the block's only user; it plays the writer that the message no longer has.
    (0..4).for_each(|index| unsafe { start.add(index).write(index as u64 + 10) });
    let view = View::of_owner(&arena, arena.id());
    let lent = loans(1, u64::MAX).lend(&message).unwrap();
    let borrowed = Borrowed::new(lent, Arc::new(Shelf(view, Mutex::default()))).unwrap();
    let mut copy = Vec::new();
    borrowed.copy_out(borrowed.whole(), &mut copy);
    assert_eq!(copy, [10, 11, 12, 13]);
}

#[test]
#[cfg_attr(miri, ignore = "maps a memfd")]
fn memory_that_is_not_as_announced_is_not_mapped() {
    let arena = arena(64 * MIB, 64 * MIB);
    let bytes = arena.capacity() as u64;
    let map = |announced, limit| View::map(arena.read_only_fd().unwrap().unwrap(), 1, announced, limit).map(drop);
    assert!(map(bytes, bytes).is_ok());
    let found = |result: Result<(), ViewError>| match result {
        Err(ViewError::Bad(bad)) => bad,
        other => panic!("{other:?}"),
    };
    assert_eq!(found(map(bytes - 8, bytes)), BadMemory::Size { found: bytes, announced: bytes - 8 });
    assert_eq!(found(map(bytes, bytes - 1)), BadMemory::TooLarge { announced: bytes, limit: bytes - 1 });
    assert_eq!(found(map(0, bytes)), BadMemory::TooLarge { announced: 0, limit: bytes });
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let size = file.metadata().unwrap().len();
    assert_eq!(found(View::map(file, 1, size, size).map(drop)), BadMemory::Kind);
}

#[test]
fn aligned_pieces_go_back_where_they_came_from() {
    for words in (1..600).step_by(7) {
        let arena = arena(64 * MIB, 64 * MIB);
        let blocks: Vec<_> = (0..8).map(|_| arena.alloc(words * 8, 4096).unwrap()).collect();
        assert!(blocks.iter().all(|block| block.offset() % 512 == 0));
        drop(blocks);
        // Freed into the wrong size class, they would now overlap, and the arena's end would not survive it.
        let again: Vec<_> = (0..64).map(|_| arena.alloc(words * 8, 8).unwrap()).collect();
        let mut offsets: Vec<_> = again.iter().map(|block| block.offset()).collect();
        offsets.sort_unstable();
        assert!(offsets.windows(2).all(|pair| pair[1] - pair[0] >= words as u64));
        drop(again);
        arena.purge();
        assert_eq!(arena.resident().unwrap(), 0);
    }
}

#[test]
fn words_come_to_exist_as_they_are_reached() {
    let arena = arena(64 * MIB, 64 * MIB);
    const WORDS: usize = 2096;
    let (own, at) = arena.words(WORDS, ()).unwrap();
    assert_eq!((arena.resident().unwrap(), at % 512, own.len()), (4096, 0, WORDS));
    // At the far end, out of jemalloc's way.
    assert_eq!(at, arena.capacity() as u64 / 8 - 5 * 512);
    assert_eq!((own.exist(0), own.exist(512), own.exist(513)), (512, 512, 1024));
    assert_eq!((arena.resident().unwrap(), own.exist(WORDS), arena.resident().unwrap()), (8192, WORDS, 5 * 4096));
    (0..WORDS).for_each(|index| own.store(index, 1));
    let (other, elsewhere) = arena.words(WORDS, ()).unwrap();
    assert_eq!(elsewhere, at - 5 * 512);
    drop(own);
    // Used again, and as new.
    let (own, again) = arena.words(WORDS, ()).unwrap();
    assert_eq!((again, own.exist(0)), (at, WORDS));
    assert!((0..WORDS).all(|index| own.peek(index) == 0));
    drop((own, other));
    // What was not used since the last time goes back, whatever else falls free meanwhile.
    arena.decay();
    let (own, _) = arena.words(WORDS, ()).unwrap();
    arena.decay();
    assert_eq!(arena.resident().unwrap(), own.exist(0) as u64 * 8);
    drop(own);
    arena.purge();
    assert_eq!(arena.resident().unwrap(), 0);
    let (own, _) = arena.words(WORDS, ()).unwrap();
    assert_eq!((own.exist(0), arena.resident().unwrap()), (512, 4096));
}

#[test]
fn words_keep_to_the_quota_and_the_end_of_the_arena() {
    let small = arena(64 * MIB, 3 * 4096);
    let (first, _) = small.words(2096, ()).unwrap();
    let (second, _) = small.words(1, ()).unwrap();
    assert_eq!((first.exist(513), first.exist(1025)), (1024, 1024));
    assert_eq!(small.words(2, ()).map(drop), Err(AllocError::Full { bytes: 16 }));
    drop(second);
    assert_eq!(first.exist(1025), 1024, "what lies idle counts until it is given back");
    small.purge();
    assert_eq!(first.exist(1025), 1536);
    // 64 KiB, all of it: blocks and words meet in the middle.
    let tiny = arena(65_536, MIB);
    let held: Vec<_> = std::iter::from_fn(|| tiny.words(512, ()).ok()).collect();
    assert_eq!(held.len(), 16);
    assert!(tiny.alloc(8, 8).is_err());
    let mut places: Vec<_> = held.iter().map(|(_, at)| *at).collect();
    places.sort_unstable();
    assert!(places.iter().zip((0..).step_by(512)).all(|(&place, expected)| place == expected), "{places:?}");
}

#[test]
fn refused_attempts_use_nothing_up() {
    let arena = arena(128 * MIB, 32 * MIB);
    let fill = || {
        let mut held = Vec::new();
        while let Ok(block) = arena.alloc(MIB, 8) {
            held.push(block);
        }
        held
    };
    let first = fill();
    for _ in 0..200 {
        assert!(arena.alloc(MIB, 8).is_err());
    }
    let count = first.len();
    assert!(count >= 24, "{count}");
    drop(first);
    arena.purge();
    assert!(arena.alloc(16 * MIB, 8).is_ok(), "a large block after many refusals");
    assert!(fill().len() >= count);
}
