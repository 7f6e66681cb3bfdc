//! Sessions and channels as futures and streams, for applications that run on tokio.
//!
//! A session's socket is read by a task of the runtime that it was made in, and by no thread of this library's. When that
//! runtime ends first, the watcher's thread takes over. Everything here has to be made inside a runtime with its I/O and
//! time drivers enabled, and may then be used from any task.
//!
//! Futures may be dropped at any point. One that sends has then sent its message or has not begun to; one that receives has
//! taken nothing; a request that was sent is cancelled, and what still answers it is dropped.
//!
//! ```no_run
//! # capnp::generated_code!(mod hello_capnp);
//! # use hello_capnp::hello;
//! use std::time::Duration;
//! use strait::event::tokio::AsyncSession;
//! use strait::{ClientApp, ServerApp};
//!
//! # fn main() {}
//! async fn greet() -> Result<(), Box<dyn std::error::Error>> {
//!     let app = ClientApp::new("greeter").channel::<hello::Owned>("main");
//!     let session = AsyncSession::connect(&app, &ServerApp::new("hello")).await?;
//!     let channel = session.open_channel::<hello::Owned>("main", Duration::from_secs(1)).await?;
//!     let mut question = channel.create_msg();
//!     question.init_root().set_greet("world");
//!     let answer = channel.request(&question.freeze()?).await?;
//!     println!("{:?}", answer.get()?);
//!     Ok(())
//! }
//! ```

mod channel;
mod driver;
mod server;
mod session;

pub use channel::AsyncChannel;
pub use server::AsyncServer;
pub use session::AsyncSession;
