//! L3: Cap'n Proto over blocks. A [`Builder`] writes segments in the sender's arena, a [`Message`] is one that nobody
//! writes any more, a [`Received`] is one read where it lies, or from a copy where the lender is not believed. Knows no
//! rings and no sessions.
//!
//! One of the three rooms that may hold `unsafe`.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod builder;
mod copying;
mod frozen;
mod places;
mod received;
mod schema;
mod sealed;
mod sealing;
mod segments;
mod trust;
mod union;

pub use builder::{Builder, FreezeError};
pub use copying::CopyError;
pub(crate) use frozen::Body;
pub use frozen::Message;
pub use received::Received;
#[cfg(any(fuzzing, test))]
pub(crate) use received::walk;
pub(crate) use received::{Marks, OpenProblem, Opening, Shelf};
pub use schema::{DataTooLong, Schema, data_len};
pub(crate) use sealed::Sealed;
pub use sealing::{SealError, SealedBuilder};
pub(crate) use segments::FIRST_WORDS;
pub use trust::Trust;
pub(crate) use union::Union;
