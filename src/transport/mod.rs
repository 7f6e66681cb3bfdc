//! L3: everything that moves between the two processes of a session, and nothing about what it means. A [`Lane`] carries
//! slots through shared memory; a [`Link`] is the session's socket with the two arenas, the loans and the news of death;
//! the watcher reads sockets when the application does not. Knows no messages, schemas or log-in.

#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod carriage;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod control;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod descriptor;
pub(crate) mod door;
pub(crate) mod ended;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod inbox;
pub(crate) mod lane;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod link;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod news;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod passage;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
pub(crate) mod port;
mod watch;

pub(crate) use inbox::{TAKEN_MAX, Taken};
pub(crate) use lane::{Lane, LaneError};
pub(crate) use link::{Clerk, Core, Keeper, Link};
pub(crate) use port::NoMessage;
