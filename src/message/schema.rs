//! What a Cap'n Proto type has to offer to be the root of a message, and the one limit of Cap'n Proto that has to be
//! checked before it is reached.

use capnp::traits::{HasTypeId, Owned};
use thiserror::Error;

/// A Cap'n Proto struct that can be the root of a channel's messages: every struct that `capnpc` generates, by its
/// `Owned` type.
///
/// The 64-bit id from the schema file is what the two sides of a channel compare. Cap'n Proto lets a struct grow
/// without changing its id, so programs with an older and a newer version of a schema understand each other.
pub trait Schema: Owned + 'static {
    /// The struct's id in its schema file.
    const ID: u64;
}

impl<T: Owned + 'static> Schema for T
where
    T::Reader<'static>: HasTypeId,
{
    const ID: u64 = <T::Reader<'static> as HasTypeId>::TYPE_ID;
}

/// More bytes than one `Data` or `Text` can hold: 2^29 - 1.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{len} bytes do not fit one Data: Cap'n Proto holds at most {}; use a list of them", DATA_MAX)]
pub struct DataTooLong {
    /// How many bytes there were.
    pub len: usize,
}

/// The most bytes one `Data` or `Text` holds.
const DATA_MAX: u32 = (1 << 29) - 1;

/// A length as Cap'n Proto's `init_…` functions take it, checked: beyond the limit they panic.
///
/// ```
/// # fn main() -> Result<(), strait::DataTooLong> {
/// let bytes = [7_u8; 300];
/// let len: u32 = strait::data_len(bytes.len())?;
/// // part.init_data(len).copy_from_slice(&bytes);
/// # assert_eq!(len, 300);
/// assert!(strait::data_len(1 << 29).is_err());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`DataTooLong`] from 2^29 bytes upwards. The message itself has no such limit: spread the bytes over a list.
pub fn data_len(len: usize) -> Result<u32, DataTooLong> {
    u32::try_from(len).ok().filter(|&len| len <= DATA_MAX).ok_or(DataTooLong { len })
}
