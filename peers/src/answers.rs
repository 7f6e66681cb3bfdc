//! What is asked and what must come: two answers of the same size, whose ends differ.

/// What a request says: which of the two answers, and filling, 64 bytes in all.
pub(crate) type Request = [u64; 8];

pub(crate) fn request(which: u64) -> Request {
    [which, 1, 2, 3, 4, 5, 6, 7]
}

/// A request as bytes.
pub(crate) fn to_bytes(request: &Request) -> [u8; 64] {
    let mut bytes = [0; 64];
    for (slot, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(request) {
        *slot = word.to_ne_bytes();
    }
    bytes
}

/// Which answer a request wants.
pub(crate) fn wanted(request: &[u8]) -> u64 {
    request.first_chunk().map_or(0, |word| u64::from_ne_bytes(*word))
}

/// The most bytes in one piece where pieces are needed: a `Data` of Cap'n Proto holds less than 2^29.
pub(crate) const PIECE: usize = 256 << 20;

/// What a server holds.
pub(crate) struct Answers([Vec<u8>; 2]);

impl Answers {
    pub(crate) fn new(bytes: usize) -> Self {
        Self([0, 1].map(|which| {
            // Every byte is written, so that all of it is memory.
            let mut answer = vec![0x5a ^ which as u8; bytes];
            write_ends(&mut answer, which);
            answer
        }))
    }

    pub(crate) fn get(&self, which: u64) -> &[u8] {
        &self.0[(which & 1) as usize]
    }
}

fn ends(which: u64) -> [[u8; 8]; 2] {
    let first = 0x1122_3344_5566_7788 ^ which;
    [first.to_ne_bytes(), (!first).to_ne_bytes()]
}

/// Makes the first and the last eight bytes what they must be.
pub(crate) fn write_ends(answer: &mut [u8], which: u64) {
    let [first, last] = ends(which);
    if let Some(slot) = answer.first_chunk_mut() {
        *slot = first;
    }
    if let Some(slot) = answer.last_chunk_mut() {
        *slot = last;
    }
}

/// Whether the ends of an answer, in the first and the last of its pieces, are what they must be.
#[inline]
pub(crate) fn are_right(first: &[u8], last: &[u8], which: u64) -> bool {
    let [begin, end] = ends(which);
    first.first_chunk() == Some(&begin) && last.last_chunk() == Some(&end)
}
