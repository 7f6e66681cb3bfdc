//! L5: two named apps meet, find out who the other is, and have a session in which they open channels. Knows no slots
//! and no bytes of messages; the log-in is a pure state machine ([`login`]).

mod app;
mod client;
mod desk;
mod error;
mod lobby;
mod login;
mod offer;
mod options;
mod reconnect;
mod rundir;
#[cfg(any(fuzzing, test))]
pub mod seams;
mod server;
#[expect(clippy::module_inception, reason = "the room and the thing it is for")]
mod session;
mod terms;
mod welcome;
mod worker;

pub use app::{ClientApp, ServerApp};
pub use error::{AcceptError, BindError, ChannelError, CloseError, ConnectError, LoginError, RunDirError, Version};
pub use offer::Offer;
pub use reconnect::Reconnect;
pub use server::SessionServer;
pub use session::Session;
