//! L1: who owns which shared byte. The owner's side allocates, freezes, lends and frees ([`arena`], [`block`], [`stretch`],
//! [`blob`], [`value`], [`loans`]); the borrower's side turns a peer's handles into checked memory ([`view`]). Knows no messages and no
//! sockets; memory arrives as a [`Memfd`](crate::sys::memfd::Memfd).
//!
//! One of the three rooms that may hold `unsafe`.

pub(crate) mod account;
pub(crate) mod arena;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod blob;
pub(crate) mod block;
pub(crate) mod counters;
#[cfg(feature = "rkyv")]
pub(crate) mod graph;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod handle;
mod hooks;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod inside;
#[cfg(miri)]
mod jemalloc;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod loans;
mod mallctl;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod mirror;
mod records;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod sealed;
mod stretch;
mod tcache;
#[cfg(test)]
mod tests;
pub(crate) mod value;
#[cfg(test)]
mod value_tests;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod view;

pub(crate) use tcache::forgo_in_this_thread;
#[cfg(not(miri))]
use tikv_jemalloc_sys as jemalloc;
