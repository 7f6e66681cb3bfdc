//! What fuzzers and their replay drive: each function takes any bytes as what a peer might have sent. Not part of what
//! ships.

use super::login::{Answer, Hello, Policy};
use crate::message::walk;
use crate::ring::{Consumer, Producer, area};
use crate::shm::arena::{Arena, Options};
use crate::shm::block::{Frozen, Segments};
use crate::shm::handle::Handle;
use crate::shm::loans::{LoanQuota, Loans};
use crate::shm::view::{Borrowed, Home, View};
use crate::sys::memfd::Writable;
use crate::sys::memory::Backing;
use crate::sys::words::shared;
use crate::transport::control::{Control, FRAME};
use crate::transport::descriptor::Descriptor;
use std::collections::VecDeque;
use std::sync::Arc;

/// The bytes as words, the last one padded.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    })
}

/// A ring both of whose peer's words are written by the input: positions stay what an oracle says, or it is a breach.
pub fn ring(bytes: &[u8]) {
    const SLOTS: u32 = 4;
    let ((own, _), (theirs, peer)) = (shared(area::words(SLOTS)), shared(area::words(SLOTS)));
    let (own, peer) = (Arc::new(own), Arc::new(peer));
    let mut producer = Producer::new(own.clone(), peer.clone());
    let mut consumer = Consumer::new(own, peer);
    let (mut filled, mut emptied) = (0_u64, 0);
    let mut input = words(bytes);
    while let (Some(what), Some(value)) = (input.next(), input.next()) {
        match what % 4 {
            // Any word of its own, as the input has it.
            0 => theirs.store((what >> 8) as usize % area::words(SLOTS), value),
            // What an honest peer would do next.
            1 => theirs.publish(area::CURSOR, filled.saturating_sub(value % 5)),
            2 => theirs.publish(area::SLOTS + (emptied % 4 * 8) as usize + 7, emptied + 1),
            _ => {}
        }
        match producer.try_push(&[value; 7], &[]) {
            Ok(Ok(())) => filled += 1,
            Ok(Err(_)) => assert!(filled >= 4),
            Err(_) => return,
        }
        match consumer.try_pop() {
            Ok(popped) => emptied += u64::from(popped.is_some()),
            Err(_) => return,
        }
    }
}

/// A log-in frame of either side, and what is thought of it.
pub fn login(bytes: &[u8]) {
    if let Ok(Ok(hello)) = Hello::from_bytes(bytes) {
        assert_eq!(Hello::from_bytes(&hello.to_bytes()), Ok(Ok(hello.clone())), "it does not survive being written");
        let policy =
            Policy { server: &hello.server, allow: &[], serves: &[], channels_max: 8, backing: hello.terms.backing };
        if let Err(refused) = policy.judge(&hello, 1, 2, || None) {
            let _ = refused.explain(&hello, 1, 2, true);
        }
    }
    for channels in [0, 1, 8] {
        if let Ok(answer @ Answer::Welcome { .. }) = Answer::from_bytes(bytes, channels) {
            assert_eq!(Answer::from_bytes(&answer.to_bytes(), channels), Ok(answer));
        }
    }
}

/// A frame after the log-in, and the payload of a slot.
pub fn control(bytes: &[u8]) {
    let mut frame = [0; FRAME];
    let len = bytes.len().min(FRAME);
    frame[..len].copy_from_slice(&bytes[..len]);
    if let Ok(control) = Control::from_bytes(&frame) {
        assert_eq!(Control::from_bytes(&control.to_bytes()), Ok(control), "it does not survive being written");
    }
    let mut input = words(bytes);
    let payload = std::array::from_fn(|_| input.next().unwrap_or(0));
    if let Ok(descriptor) = Descriptor::from_words(payload) {
        assert_eq!(Descriptor::from_words(descriptor.to_words()), Ok(descriptor));
    }
}

/// An owner's arena and a borrower's view of it, in one process.
struct Both {
    arena: Arena,
    view: Arc<View>,
}

const BYTES: usize = 1 << 20;

impl Both {
    fn new() -> Self {
        let options = Options { bytes: BYTES, quota: BYTES, writable: Writable::ByOwner, backing: Backing::Memfd };
        let arena = Arena::create(options).expect("an arena");
        let view = View::of_owner(&arena, arena.id());
        Self { arena, view }
    }
}

impl Home for Both {
    fn view(&self) -> &View {
        &self.view
    }

    fn owe(&self, _: Handle) {}
}

/// Handles of all kinds: what resolves lies inside the arena, and can be read.
pub fn handles(bytes: &[u8]) {
    let home: Arc<Both> = Arc::new(Both::new());
    let mut input = words(bytes);
    while let (Some(low), Some(high)) = (input.next(), input.next()) {
        // Of the right arena every other time, or hardly any would get far.
        let low = if high & 1 << 33 == 0 { low } else { low & !(0xFF_FFFF << 36) | u64::from(home.arena.id()) << 36 };
        let Some(handle) = Handle::from_words([low, high]) else { continue };
        let inside = handle.arena() == home.arena.id()
            && handle.offset().checked_add(handle.len()).is_some_and(|end| end <= (BYTES / 8) as u64);
        match Borrowed::new(handle, home.clone()) {
            Ok(borrowed) => {
                assert!(inside, "{handle:?}");
                let mut copy = Vec::new();
                borrowed.copy_out(borrowed.whole(), &mut copy);
                assert_eq!(copy.len() as u64, handle.len());
            }
            Err(_) => assert!(!inside, "{handle:?}"),
        }
    }
}

/// A message of any words, copied and walked as far as it goes: in one segment, or with any table.
pub fn decode(bytes: &[u8]) {
    let home: Arc<Both> = Arc::new(Both::new());
    let Some((&segments, bytes)) = bytes.split_first() else { return };
    let count = bytes.len().div_ceil(8).clamp(1, BYTES / 16);
    let block = home.arena.alloc(count * 8, 8).expect("room");
    let (offset, own) = (block.offset(), block.into_words(()));
    words(bytes).take(count).enumerate().for_each(|(index, word)| own.store(index, word));
    let segments = u16::from(segments % 4);
    if segments > 1 {
        // A table that is nearly right: entries inside the message.
        for entry in 0..usize::from(segments).min(count / 2) {
            own.store(2 * entry, offset + own.peek(2 * entry) % (count as u64 + 1));
            own.store(2 * entry + 1, own.peek(2 * entry + 1) % (count as u64 + 1));
        }
    }
    let len = if segments > 1 { 2 * u64::from(segments) } else { count as u64 };
    let handle = Handle::new(home.arena.id(), offset, len, 0);
    let Ok(borrowed) = Borrowed::new(handle, home.clone()) else { return };
    walk(borrowed, segments);
}

/// Lending and giving back as the input says: the ledger and an oracle agree.
pub fn ledger(bytes: &[u8]) {
    let home = Both::new();
    let book = Loans::new(LoanQuota { loans: 8, bytes: u64::MAX }, None, true);
    let mut pieces = Segments::new(home.arena.clone());
    let piece = pieces.add(8).expect("room");
    assert!(pieces.used(piece.start, 8));
    let Ok(message) = Frozen::new(pieces).map(Arc::new) else { return };
    let mut lent: VecDeque<Handle> = VecDeque::new();
    let mut input = words(bytes);
    while let Some(what) = input.next() {
        match what % 3 {
            0 => match book.lend(&message) {
                Ok(handle) => lent.push_back(handle),
                Err(_) => assert_eq!(lent.len(), 8),
            },
            1 if !lent.is_empty() => {
                let handle = lent.remove((what >> 8) as usize % lent.len()).expect("there");
                assert_eq!(book.give_back(handle), Ok(()));
                // One that was lent again goes by the same name.
                if !lent.contains(&handle) {
                    assert!(book.give_back(handle).is_err(), "given back twice");
                }
            }
            _ => {
                let known = lent.front().map_or([what, 1], |handle| handle.to_words());
                let bent = [known[0] ^ input.next().unwrap_or(1), known[1] ^ input.next().unwrap_or(0)];
                if let Some(handle) = Handle::from_words(bent).filter(|handle| !lent.contains(handle)) {
                    assert!(book.give_back(handle).is_err(), "{handle:?} was never lent");
                }
            }
        }
        assert_eq!(book.outstanding().0, lent.len());
    }
    assert_eq!(book.reclaim(), lent.len());
}

/// A name, and what is fed.
pub type Target = (&'static str, fn(&[u8]));

/// All of them, by name.
pub const ALL: [Target; 6] = [
    ("ring", ring),
    ("login", login),
    ("control", control),
    ("handles", handles),
    ("decode", decode),
    ("ledger", ledger),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::login::VERSION;
    use crate::session::terms::Terms;
    use std::path::Path;

    /// Splitmix64.
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// What is nearly right goes furthest.
    fn good(name: &str) -> Vec<Vec<u8>> {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let files = std::fs::read_dir(corpus).into_iter().flatten().flatten();
        let mut all: Vec<Vec<u8>> = files.filter_map(|file| std::fs::read(file.path()).ok()).collect();
        match name {
            "login" => {
                let backing = Backing::Memfd;
                let terms = Terms { features: 1, arena: 7, arena_bytes: 1 << 32, backing, token: 0 };
                let (client, server) = ("viewer".to_owned(), "cache".to_owned());
                let hello = Hello { version: VERSION, client, server, terms, channels: Vec::new() };
                let welcome = Answer::Welcome { terms, areas: Vec::new(), opens: Vec::new() };
                all.extend([hello.to_bytes().to_vec(), welcome.to_bytes().to_vec()]);
            }
            "control" => all.extend((1..=12).map(|kind: u8| [vec![kind], vec![0; FRAME - 1]].concat())),
            "decode" => {
                let mut builder = capnp::message::Builder::new_default();
                builder.set_root(capnp::text::Reader::from("some words")).expect("room");
                let segments = builder.get_segments_for_output();
                all.extend((0..4).map(|count| [&[count], segments[0]].concat()));
            }
            _ => {}
        }
        all
    }

    /// `STRAIT_FUZZ` inputs for each, `STRAIT_SEED` for the same again.
    #[test]
    fn any_bytes_are_survived() {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seed = number("STRAIT_SEED").unwrap_or(std::process::id().into());
        let count = number("STRAIT_FUZZ").unwrap_or(2_000);
        println!("STRAIT_SEED={seed}");
        let mut state = seed;
        for (name, target) in ALL {
            let good = good(name);
            good.iter().for_each(|bytes| target(bytes));
            for _ in 0..count {
                let mut bytes = match good.get((next(&mut state) % (good.len() as u64 + 1)) as usize) {
                    Some(bytes) => bytes.clone(),
                    None => (0..next(&mut state) % 600).map(|_| next(&mut state) as u8).collect(),
                };
                for _ in 0..next(&mut state) % 8 {
                    let at = (next(&mut state) % (bytes.len() as u64 + 1)) as usize;
                    match (next(&mut state) % 4, bytes.get_mut(at)) {
                        (0, Some(byte)) => *byte = next(&mut state) as u8,
                        (1, Some(byte)) => *byte ^= 1 << (next(&mut state) % 8),
                        (2, Some(byte)) => *byte = if *byte == 0 { 0xFF } else { 0 },
                        (_, _) => bytes.truncate(at),
                    }
                }
                target(&bytes);
            }
        }
    }
}
