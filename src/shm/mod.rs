//! L1: who owns which shared byte. The owner's side allocates, freezes, lends and frees ([`arena`], [`block`],
//! [`blob`], [`value`], [`loans`]); the borrower's side turns a peer's handles into checked memory ([`view`]). Knows no messages and no
//! sockets; memory arrives as a [`Memfd`](crate::sys::memfd::Memfd).
//!
//! One of the three rooms that may hold `unsafe`.

pub(crate) mod account;
pub(crate) mod arena;
pub(crate) mod blob;
pub(crate) mod block;
pub(crate) mod counters;
#[cfg(feature = "rkyv")]
pub(crate) mod graph;
pub(crate) mod handle;
mod hooks;
pub(crate) mod inside;
pub(crate) mod loans;
mod mallctl;
pub(crate) mod mirror;
mod tcache;
#[cfg(test)]
mod tests;
pub(crate) mod value;
#[cfg(test)]
mod value_tests;
pub(crate) mod view;

pub(crate) use tcache::forgo_in_this_thread;
