//! libcurl in a process of its own, used as easily as a library.
//!
//! The worker, `procCurlI`, links libcurl and TLS and runs with fewer privileges; this library links neither. Requests go
//! to it by handle through shared memory, and bodies are read where the worker wrote them.
//!
//! ```no_run
//! let client = proc_curl::Client::new()?;
//! let response = client.get("https://example.org/").send()?;
//! println!("{} {}", response.status(), response.text()?);
//! # Ok::<(), proc_curl::Error>(())
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "tokio")]
mod asynchronous;
mod chunk;
mod client;
mod code;
mod error;
mod launch;
mod link;
mod options;
mod protocols;
mod random;
mod request;
mod response;
mod source;
mod transfer;
pub mod uri;
mod wire;

/// What client and worker talk in, for the worker's use. Changes with any version.
#[doc(hidden)]
#[allow(clippy::all, missing_docs)]
pub mod proc_curl_capnp {
    include!(concat!(env!("OUT_DIR"), "/proc_curl_capnp.rs"));
}

#[cfg(feature = "tokio")]
pub use asynchronous::AsyncResponse;
pub use chunk::{Body, BodyReader, Chunk};
pub use client::{Client, ClientBuilder, Statistics};
pub use code::code_name;
pub use error::{Error, Failure, LaunchError, Stage, Why};
pub use options::{
    AddressPolicy, Auth, BadNetwork, Family, HeaderLine, HttpVersion, Network, Protocols, Proxy, Redirects, Retry,
    Schemes, Timeouts, Tls, TlsVersion,
};
pub use request::{Progress, RequestBuilder, TraceKind};
pub use response::{Head, HeadKind, Headers, Info, Response};
pub use source::{Form, Part, Source};
pub use transfer::Pending;
