//! Native values from one side to the other, honest and not.

use super::arena::{Arena, Options};
use super::blob::{Blob, ReceivedBlob};
use super::block::{Frozen, Segments};
use super::handle::Handle;
use super::loans::{LoanQuota, Loans};
use super::value::{Kind, START, ValueError, begin, digest, name};
use super::view::{Borrowed, Home, View};
use crate::sys::memfd::Writable;
use crate::sys::memory::Backing;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

const MIB: usize = 1 << 20;

fn arena() -> Arena {
    let (bytes, quota) = (64 * MIB, 64 * MIB);
    Arena::create(Options { bytes, quota, writable: Writable::ByOwner, backing: Backing::Memfd }).unwrap()
}

/// What a borrower returns goes straight back into the owner's book.
struct Shelf(Arc<View>, Loans);

impl Home for Shelf {
    fn view(&self) -> &View {
        &self.0
    }
    fn owe(&self, handle: Handle) {
        self.1.give_back(handle).unwrap();
    }
}

/// Lends a blob and borrows it, as the two sides of a session do.
fn cross(arena: &Arena, blob: impl Into<Blob>, believed: bool) -> ReceivedBlob {
    let view = View::of_owner(arena, arena.id());
    let mut segments = Segments::new(arena.clone());
    let piece = segments.add(1).unwrap();
    assert!(segments.used(piece.start, 1));
    let Ok(frozen) = Frozen::with_blobs(segments, vec![blob.into()]) else { panic!("not frozen") };
    let shelf = Arc::new(Shelf(view, Loans::new(LoanQuota { loans: 1, bytes: u64::MAX }, None, true)));
    let lent = shelf.1.lend(&frozen).unwrap();
    let loan = Arc::new(Borrowed::new(lent, shelf).unwrap());
    let mut table = Vec::new();
    loan.copy_out(loan.whole(), &mut table);
    ReceivedBlob::new(&loan, [table[2], table[3]], believed).unwrap()
}

#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(u8)]
enum Colour {
    #[expect(dead_code, reason = "valid all the same")]
    Red = 1,
    Blue = 7,
}

#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(C)]
struct Sample {
    at: u64,
    value: f32,
    valid: bool,
    colour: Colour,
    rest: [u8; 2],
}

const SAMPLE: Sample = Sample { at: 77, value: 1.5, valid: true, colour: Colour::Blue, rest: [3, 4] };

mod elsewhere {
    #[derive(super::Immutable, super::IntoBytes, super::KnownLayout, super::TryFromBytes)]
    #[repr(C)]
    pub(super) struct Sample(u64, u64);
}

#[test]
fn plain_values_cross_by_reference() {
    let arena = arena();
    for believed in [true, false] {
        let sample = arena.share(&SAMPLE).unwrap();
        let received = cross(&arena, &sample, believed).value::<Sample>().unwrap();
        assert_eq!((*received, *sample.clone(), received.is_in_place()), (SAMPLE, SAMPLE, believed));
        let text = arena.share("text of any length: ä").unwrap();
        assert_eq!(&*cross(&arena, &text, believed).value::<str>().unwrap(), "text of any length: ä");
        let empty = arena.share("").unwrap();
        assert_eq!(&*cross(&arena, &empty, believed).value::<str>().unwrap(), "");
        let numbers = arena.share_slice::<u32>(1000, |all| (0..).zip(all).for_each(|(n, to)| *to = n)).unwrap();
        let received = cross(&arena, &numbers, believed).value::<[u32]>().unwrap();
        assert!(received.iter().copied().eq(0..1000));
        let samples = arena.share(&[SAMPLE; 100][..]).unwrap();
        assert_eq!(*cross(&arena, samples, believed).value::<[Sample]>().unwrap(), [SAMPLE; 100]);
        assert_eq!(*cross(&arena, arena.share(&[1_u8; 3][..]).unwrap(), believed).value::<[u8]>().unwrap(), [1; 3]);
    }
}

#[test]
fn a_value_lives_as_long_as_it_is_read() {
    let arena = arena();
    for believed in [true, false] {
        let received = cross(&arena, arena.share(&SAMPLE).unwrap(), believed);
        let loaned = received.value::<Sample>().unwrap();
        drop(received);
        arena.purge();
        // Read in place it is not free yet, whoever owns it.
        assert_eq!(arena.resident().unwrap() > 0, believed);
        let loaned = std::thread::spawn(move || (*loaned, loaned).1).join().unwrap();
        assert_eq!(*loaned, SAMPLE);
        drop(loaned);
        arena.purge();
        assert_eq!(arena.resident().unwrap(), 0);
    }
}

#[test]
fn what_is_no_value_of_the_type_is_refused() {
    let arena = arena();
    for believed in [true, false] {
        let error = |blob: Blob| cross(&arena, blob, believed).value::<Sample>().map(|_| ()).unwrap_err();
        let other = |blob: Blob| assert!(matches!(error(blob), ValueError::OtherType { .. }));
        other(arena.share("text").unwrap().into());
        other(arena.share(&[SAMPLE][..]).unwrap().into());
        other(arena.share(&17_u64).unwrap().into());
        // Of the same name and size, but another type: nothing can tell, and nothing is unsound.
        let double: &[u64; 2] = &[77, 1];
        assert_eq!(digest::<Sample>(), digest::<elsewhere::Sample>());
        // Raw bytes, long and short.
        for len in [0, 1, START - 1, START, 4096] {
            assert_eq!(error(arena.create_blob(len).unwrap().freeze()), ValueError::OtherKind);
        }
        let planted = |claimed: u64, bytes: &[u8]| {
            let mut blob = begin(&arena, bytes.len(), Kind::Plain, digest::<Sample>()).unwrap();
            blob[START..].copy_from_slice(bytes);
            name(&mut blob, Kind::Plain, digest::<Sample>(), claimed);
            blob.freeze()
        };
        let good = SAMPLE.as_bytes();
        assert_eq!(cross(&arena, planted(16, good), believed).value::<Sample>().as_deref(), Ok(&SAMPLE));
        for claimed in [0, 8, 15, 17, u64::MAX, u64::MAX - 63, 1 << 40] {
            assert!(matches!(error(planted(claimed, good)), ValueError::Size { .. }), "{claimed}");
        }
        assert!(matches!(error(planted(8, double.as_bytes())), ValueError::Size { .. }));
        // Every byte that matters, with every value: 12 is the `bool`, 13 the enum.
        for (at, valid) in [(12, &[0, 1][..]), (13, &[1, 7])] {
            for value in 0..=255 {
                let mut bent: [u8; 16] = good.try_into().unwrap();
                bent[at] = value;
                let read = cross(&arena, planted(16, &bent), believed).value::<Sample>().map(drop);
                let invalid = Err(ValueError::Invalid { expected: std::any::type_name::<Sample>() });
                assert_eq!(read, if valid.contains(&value) { Ok(()) } else { invalid });
            }
        }
        let text = |bytes: &[u8]| {
            let mut blob = begin(&arena, bytes.len(), Kind::Plain, digest::<str>()).unwrap();
            blob[START..].copy_from_slice(bytes);
            cross(&arena, blob.freeze(), believed).value::<str>().map(|text| text.len())
        };
        assert_eq!(text(b"fine"), Ok(4));
        assert_eq!(text(b"\xFF\xFE"), Err(ValueError::Invalid { expected: "str" }));
        let odd = {
            let mut blob = begin(&arena, 7, Kind::Plain, digest::<[u32]>()).unwrap();
            blob[START..].fill(1);
            cross(&arena, blob.freeze(), believed).value::<[u32]>().map(|numbers| numbers.len())
        };
        assert!(matches!(odd, Err(ValueError::Size { .. })));
    }
}

#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Stats {
    hits: AtomicU64,
    misses: [AtomicU64; 3],
}

#[test]
fn counters_go_on_counting() {
    let arena = arena();
    let stats = arena.share_counters::<Stats>().unwrap();
    for believed in [true, false] {
        let received = cross(&arena, &stats, believed);
        let seen = received.counters::<Stats>().unwrap();
        let before = seen.load(|stats| &stats.hits);
        stats.of(|stats| &stats.hits).fetch_add(5, Ordering::Relaxed);
        stats.of(|stats| &stats.misses[2]).store(9, Ordering::Release);
        assert_eq!((seen.load(|stats| &stats.hits), seen.load(|stats| &stats.misses[2])), (before + 5, 9));
        assert_eq!(seen.load(|stats| &stats.misses[1]), 0);
        // What counts is no part of the blob's bytes.
        assert_eq!(received.len(), START as u64);
        assert!(matches!(received.value::<[u64]>().map(drop), Err(ValueError::OtherKind)));
        assert!(matches!(
            cross(&arena, &stats, believed).counters::<[AtomicU64; 4]>().map(drop).unwrap_err(),
            ValueError::OtherType { .. }
        ));
    }
    static ELSEWHERE: AtomicU64 = AtomicU64::new(0);
    let seen = cross(&arena, &stats, false).counters::<Stats>().unwrap();
    let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| seen.load(|_| &ELSEWHERE)));
    assert!(outside.is_err(), "a counter from elsewhere was found");
}

#[test]
fn counters_beyond_the_arena_are_refused() {
    let arena = arena();
    // A header that claims counters where the memory ends.
    let mut blob = arena.create_blob(START).unwrap();
    name(&mut blob, Kind::Counters, digest::<[AtomicU64; MIB]>(), 8 * MIB as u64);
    let (all, blob) = (arena.capacity() as u64, cross(&arena, blob.freeze(), false));
    let there = blob.counters::<[AtomicU64; MIB]>().map(drop);
    assert!(there.is_ok(), "{all} bytes are enough");
    let mut blob = arena.create_blob(START).unwrap();
    name(&mut blob, Kind::Counters, digest::<[AtomicU64; 16 * MIB]>(), 128 * MIB as u64);
    let refused = cross(&arena, blob.freeze(), false).counters::<[AtomicU64; 16 * MIB]>().map(drop);
    assert!(matches!(refused, Err(ValueError::Size { .. })));
}

#[test]
fn paths_do_not_count_in_names() {
    assert_ne!(digest::<u32>(), digest::<u64>());
    assert_ne!(digest::<[u32]>(), digest::<[u32; 1]>());
    assert_eq!(digest::<Option<Sample>>(), digest::<Option<elsewhere::Sample>>());
    assert_ne!(digest::<Option<Sample>>(), digest::<Result<Sample, Sample>>());
}

#[test]
fn blobs_and_values_are_told_apart() {
    let arena = arena();
    let mut blob = arena.create_blob_with_capacity(10).unwrap();
    blob.write_all(&[1; 200]).unwrap();
    assert_eq!(cross(&arena, blob.freeze(), true).value::<[u8]>().map(drop), Err(ValueError::OtherKind));
}

#[cfg(feature = "rkyv")]
mod graphs {
    use super::*;
    use rkyv::{Archive, Serialize};
    use std::collections::HashMap;

    #[derive(Archive, Serialize)]
    struct Catalogue {
        names: Vec<String>,
        prices: HashMap<String, Option<u32>>,
        first: Option<Box<Item>>,
        big: Vec<(u64, char, bool)>,
    }

    #[derive(Archive, Serialize)]
    enum Item {
        #[expect(dead_code, reason = "valid all the same")]
        Nothing,
        Thing {
            weight: f64,
            tags: Vec<Box<str>>,
        },
    }

    fn catalogue(size: usize) -> Catalogue {
        let names: Vec<_> = (0..size).map(|index| format!("name number {index}")).collect();
        Catalogue {
            prices: names.iter().enumerate().map(|(n, name)| (name.clone(), (n % 3 > 0).then_some(n as u32))).collect(),
            first: Some(Box::new(Item::Thing { weight: 2.5, tags: vec!["a".into(), "long enough for a heap".into()] })),
            big: (0..size as u64).map(|n| (n << 40, 'ß', n % 2 == 0)).collect(),
            names,
        }
    }

    fn check(archived: &ArchivedCatalogue, size: usize) {
        assert_eq!((archived.names.len(), archived.prices.len(), archived.big.len()), (size, size, size));
        for index in 0..size {
            let name = format!("name number {index}");
            assert_eq!(archived.names[index], *name);
            let price = archived.prices.get(name.as_str()).unwrap().as_ref().map(|price| price.to_native());
            assert_eq!(price, (index % 3 > 0).then_some(index as u32));
        }
        let Some(ArchivedItem::Thing { weight, tags }) = archived.first.as_deref() else { panic!("no thing") };
        assert_eq!((weight.to_native(), &*tags[1]), (2.5, "long enough for a heap"));
    }

    #[test]
    fn graphs_cross_by_reference() {
        let arena = arena();
        for believed in [true, false] {
            for size in [0, 1, 50, 3000] {
                let shared = arena.share_graph(&catalogue(size)).unwrap();
                check(&shared, size);
                let received = cross(&arena, &shared, believed).graph::<Catalogue>().unwrap();
                check(&received, size);
                assert_eq!(received.is_in_place(), believed);
            }
        }
    }

    #[test]
    fn an_arena_that_is_too_small_says_so() {
        let (bytes, quota) = (64 * MIB, 4 * MIB);
        let options = Options { bytes, quota, writable: Writable::ByOwner, backing: Backing::Memfd };
        let arena = Arena::create(options).unwrap();
        assert!(arena.share_graph(&vec![7_u64; MIB]).is_err());
        drop(arena.share_graph(&vec![7_u64; 1000]).unwrap());
    }

    #[test]
    fn garbage_is_refused_or_read_safely() {
        let arena = arena();
        let shared: Blob = arena.share_graph(&catalogue(4)).unwrap().into();
        let mut random = 0x1234_5678_9ABC_DEF1_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % below
        };
        let mut refused = 0;
        for round in 0..6000 {
            let mut bent = arena.create_blob(shared.len()).unwrap();
            bent.copy_from_slice(&shared);
            for _ in 0..=next(4) {
                let at = START + next(shared.len() - START);
                bent[at] = if round % 2 == 0 { next(256) as u8 } else { bent[at] ^ 1 << next(8) };
            }
            // Some are shorter than they claim, or claim to be.
            if round % 10 == 0 {
                let len = next(shared.len()) as u64;
                name(&mut bent, Kind::Graph, digest::<ArchivedCatalogue>(), len);
            }
            match cross(&arena, bent.freeze(), round % 3 == 0).graph::<Catalogue>() {
                Ok(graph) => {
                    // Whatever it says, reading all of it is safe.
                    let letters: usize = graph.names.iter().map(|name| name.chars().count()).sum();
                    let prices = graph.prices.iter().map(|(name, price)| name.len() + usize::from(price.is_some()));
                    let big = graph.big.iter().filter(|item| item.2).count();
                    std::hint::black_box((letters, prices.sum::<usize>(), big, graph.first.is_some()));
                }
                Err(ValueError::Invalid { .. } | ValueError::Size { .. }) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert!(refused > 1000, "{refused}");
    }

    #[derive(Archive, Serialize)]
    #[rkyv(serialize_bounds(__S: rkyv::ser::Writer, <__S as rkyv::rancor::Fallible>::Error: rkyv::rancor::Source))]
    #[rkyv(bytecheck(bounds(__C: rkyv::validation::ArchiveContext, <__C as rkyv::rancor::Fallible>::Error: rkyv::rancor::Source)))]
    struct Chain(#[rkyv(omit_bounds)] Option<Box<Chain>>);

    #[test]
    fn a_graph_that_is_too_deep_is_refused() {
        let arena = arena();
        let chain = |depth: usize| (0..depth).fold(Chain(None), |rest, _| Chain(Some(Box::new(rest))));
        let shallow = arena.share_graph(&chain(100)).unwrap();
        assert!(cross(&arena, &shallow, false).graph::<Chain>().is_ok());
        let deep = arena.share_graph(&chain(1000)).unwrap();
        let refused = cross(&arena, &deep, false).graph::<Chain>().map(drop);
        assert!(matches!(refused, Err(ValueError::Invalid { .. })));
    }

    #[test]
    fn graphs_and_plain_values_are_told_apart() {
        let arena = arena();
        let graph = arena.share_graph(&7_u32).unwrap();
        assert_eq!(cross(&arena, &graph, true).value::<u32>().map(drop), Err(ValueError::OtherKind));
        let other = cross(&arena, &graph, true).graph::<u64>().map(drop);
        assert!(matches!(other, Err(ValueError::OtherType { .. })));
    }
}
