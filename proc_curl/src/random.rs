//! Names that nobody guesses.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::Read;

/// 128 random bits in hexadecimal digits.
pub(crate) fn name() -> String {
    let mut bytes = [0; 16];
    if File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).is_err() {
        // Without /dev: the standard library's own randomness, which the kernel gives it.
        let (high, low) = bytes.split_at_mut(8);
        high.copy_from_slice(&RandomState::new().hash_one(1).to_ne_bytes());
        low.copy_from_slice(&RandomState::new().hash_one(2).to_ne_bytes());
    }
    format!("{:032x}", u128::from_ne_bytes(bytes))
}
