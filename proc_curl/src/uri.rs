//! Where a worker and its client meet: `{transport}://{place}/{session}.{format}`, the worker's last argument. Pure.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// A URI to meet at.
///
/// ```
/// use proc_curl::uri::{Format, Place, Uri};
///
/// let uri: Uri = "shm:///run/user/1000/strait/6f1c9e.handle".parse()?;
/// assert_eq!(uri.session, "6f1c9e");
/// assert_eq!(uri.format, Format::Handle);
/// assert_eq!(uri.to_string(), "shm:///run/user/1000/strait/6f1c9e.handle");
/// # Ok::<(), proc_curl::uri::BadUri>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Uri {
    /// How bytes go.
    pub transport: Transport,
    /// Where they go to.
    pub place: Place,
    /// Which of several at this place.
    pub session: String,
    /// What they mean.
    pub format: Format,
}

/// How a client and its worker reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// Shared memory.
    Shm,
    /// Unix sockets.
    Unix,
    /// The worker's standard input and output.
    Io,
    /// TCP on the loopback.
    Tcp,
}

/// What is said between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Format {
    /// Cap'n Proto messages by handle, bodies where they lie.
    Handle,
    /// Cap'n Proto messages as bytes.
    Capnp,
    /// JSON-RPC 2.0, a line each.
    JsonRpc,
}

/// The part of a [`Uri`] between transport and session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Place {
    /// A directory, in which the session's socket has the session's name.
    Dir(PathBuf),
    /// Written `-`: a connected socket that is the worker's standard input.
    Inherited,
    /// Nothing: the transport needs no place.
    None,
    /// An address on the loopback.
    Address(SocketAddr),
}

/// Text that is no [`Uri`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{uri}` is no URI of a worker: {why}")]
pub struct BadUri {
    /// The text.
    pub uri: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Uri {
    /// Whether a transport can carry a format.
    #[must_use]
    pub fn fits(transport: Transport, format: Format) -> bool {
        match transport {
            Transport::Shm => format == Format::Handle,
            Transport::Unix => format != Format::Handle,
            Transport::Io | Transport::Tcp => format == Format::JsonRpc,
        }
    }
}

impl FromStr for Uri {
    type Err = BadUri;

    fn from_str(text: &str) -> Result<Self, BadUri> {
        let bad = |why| BadUri { uri: text.to_owned(), why };
        let (transport, rest) = text.split_once("://").ok_or_else(|| bad("no `://`"))?;
        let transport: Transport = transport.parse().map_err(|_| bad("unknown transport"))?;
        let (place, name) = match (rest.rsplit_once('/'), transport) {
            (Some(parts), _) => parts,
            (None, Transport::Io) => ("", rest),
            (None, _) => return Err(bad("no `/` before the session")),
        };
        let (session, format) = name.rsplit_once('.').ok_or_else(|| bad("no format after the session"))?;
        let format: Format = format.parse().map_err(|_| bad("unknown format"))?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if session.is_empty() || session.len() > 64 || session.starts_with('.') || !session.bytes().all(plain) {
            return Err(bad("the session's name is 1 to 64 of `A-Z a-z 0-9 . _ -`, the first no dot"));
        }
        if !Self::fits(transport, format) {
            return Err(bad("this transport does not carry this format"));
        }
        let place = match (transport, place) {
            (Transport::Io, "") => Place::None,
            (Transport::Io, _) => return Err(bad("standard input and output have no place")),
            (Transport::Shm | Transport::Unix, "-") => Place::Inherited,
            (Transport::Shm | Transport::Unix, dir) if dir.starts_with('/') => Place::Dir(dir.into()),
            (Transport::Shm | Transport::Unix, _) => return Err(bad("the directory is not absolute")),
            (Transport::Tcp, address) => match address.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() => Place::Address(address),
                Ok(_) => return Err(bad("only addresses on the loopback")),
                Err(_) => return Err(bad("no address and port")),
            },
        };
        Ok(Self { transport, place, session: session.to_owned(), format })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.transport)?;
        match &self.place {
            Place::Dir(dir) => write!(f, "{}/", dir.display())?,
            Place::Inherited => f.write_str("-/")?,
            Place::None => {}
            Place::Address(address) => write!(f, "{address}/")?,
        }
        write!(f, "{}.{}", self.session, self.format)
    }
}

/// A name that stands for nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("unknown name")]
pub struct UnknownName;

macro_rules! named {
    ($kind:ident: $($value:ident = $name:literal),+) => {
        impl $kind {
            /// All there are, the fastest first.
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// What it is called.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $name),+
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $kind {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                match text {
                    $($name => Ok(Self::$value),)+
                    _ => Err(UnknownName),
                }
            }
        }
    };
}

named!(Transport: Shm = "shm", Unix = "unix", Io = "io", Tcp = "tcp");
named!(Format: Handle = "handle", Capnp = "capnp", JsonRpc = "jsonrpc");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_read_as_they_are_written() {
        for good in [
            "shm:///run/user/1000/app/6f1c9e.handle",
            "shm://-/x.handle",
            "unix:///tmp/a.b.capnp",
            "unix:///tmp/s.jsonrpc",
            "io://x.jsonrpc",
            "tcp://127.0.0.1:7001/6f1c.jsonrpc",
            "tcp://[::1]:7001/6f1c.jsonrpc",
        ] {
            assert_eq!(good.parse::<Uri>().map(|uri| uri.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_met_at_is_refused() {
        for bad in [
            "",
            "shm",
            "shm://",
            "shm:///dir/",
            "shm:///dir/x",
            "shm:///dir/x.grpc",
            "shm:///dir/x.jsonrpc",
            "pigeon:///dir/x.handle",
            "shm://dir/x.handle",
            "shm:///dir/.x.handle",
            "shm:///dir/a b.handle",
            "tcp://192.0.2.1:80/x.jsonrpc",
            "tcp://localhost:80/x.jsonrpc",
            "tcp:///x.jsonrpc",
            "io://place/x.jsonrpc",
            "io://x.capnp",
            "unix:///tmp/x.handle",
        ] {
            assert!(bad.parse::<Uri>().is_err(), "{bad}");
        }
    }
}
