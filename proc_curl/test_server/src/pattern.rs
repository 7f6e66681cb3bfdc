//! The bytes of bodies of any size: they repeat with a period that divides no buffer size, so that a chunk lost, doubled
//! or moved shows.

use bytes::Bytes;
use std::sync::OnceLock;

/// Prime.
const PERIOD: usize = 65_521;
/// Periods in the block that bodies are cut from.
const TIMES: usize = 16;

fn block() -> &'static [u8] {
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCK.get_or_init(|| {
        let byte = |at: usize| ((at as u32).wrapping_mul(2_654_435_761) >> 24) as u8;
        (0..PERIOD * TIMES).map(|at| byte(at % PERIOD)).collect()
    })
}

/// The longest run of the pattern from `offset` that lies in one piece, `most` bytes of it at most. Copies nothing.
pub fn piece(offset: u64, most: u64) -> Bytes {
    let at = (offset % PERIOD as u64) as usize;
    let end = (block().len() as u64).min((at as u64).saturating_add(most)) as usize;
    Bytes::from_static(&block()[at..end])
}

/// The pattern's bytes from `offset` on.
pub fn bytes(offset: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        out.extend_from_slice(&piece(offset + out.len() as u64, (len - out.len()) as u64));
    }
    out
}

/// Whether `found` is what the pattern has at `offset`.
pub fn matches(mut offset: u64, mut found: &[u8]) -> bool {
    while !found.is_empty() {
        let expected = piece(offset, found.len() as u64);
        let (head, rest) = found.split_at(expected.len());
        if head != &expected[..] {
            return false;
        }
        offset += head.len() as u64;
        found = rest;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join() {
        let whole = bytes(0, 200_000);
        assert_eq!(bytes(70_000, 1_000), whole[70_000..71_000]);
        assert!(matches(123, &whole[123..]));
        assert!(!matches(124, &whole[123..]));
    }
}
