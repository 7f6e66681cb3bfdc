//! L5: two named apps meet, find out who the other is, and have a session in which they open channels. Knows no slots
//! and no bytes of messages; the log-in is a pure state machine ([`login`]).

mod app;
mod client;
mod desk;
mod error;
mod login;
mod offer;
mod rundir;
mod server;
#[expect(clippy::module_inception, reason = "the room and the thing it is for")]
mod session;
mod terms;

pub use app::{ClientApp, ServerApp};
pub use error::{AcceptError, BindError, ChannelError, CloseError, ConnectError, LoginError, RunDirError, Version};
pub use offer::Offer;
pub use server::SessionServer;
pub use session::Session;
