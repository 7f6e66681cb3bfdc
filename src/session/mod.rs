//! L5: two named apps meet, find out who the other is, and have a session in which they open channels. Knows no slots
//! and no bytes of messages; the log-in is a pure state machine ([`login`]).

mod app;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod client;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod desk;
mod error;
mod introduction;
mod lobby;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod login;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod offer;
mod options;
mod reconnect;
mod rundir;
#[cfg(any(fuzzing, test))]
pub mod seams;
mod server;
#[expect(clippy::module_inception, reason = "the room and the thing it is for")]
mod session;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod terms;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod welcome;
#[cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]
mod worker;

pub use app::{ClientApp, ServerApp};
pub use error::{AcceptError, BindError, ChannelError, CloseError, ConnectError, LoginError, RunDirError, Version};
pub use offer::Offer;
pub use reconnect::Reconnect;
pub use server::SessionServer;
pub use session::Session;
