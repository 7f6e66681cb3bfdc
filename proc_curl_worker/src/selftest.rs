//! Whether this libcurl can wait for descriptors from 1024 on: one that was built from source without `HAVE_POLL` waits with
//! `select`, and every connection on such a descriptor fails. Tried over a socket of this process's own, on no network.

use curl::easy::{Easy2, Handler, WriteError};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::ffi::c_int;
use std::io::{Read, Write};
use std::os::fd::RawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

/// Beyond what `select` can name.
const HIGH: RawFd = 1030;
/// Requests at a time for a libcurl that cannot: their descriptors stay below what it can name.
pub(crate) const LOW_ACTIVE: usize = 400;

/// The other end answers one request.
const ANSWER: &[u8] = b"HTTP/1.1 204 Fine\r\nConnection: close\r\n\r\n";

/// Opens its socket high up.
#[derive(Default)]
struct High {
    /// This process may have no such descriptor, so none needs to be waited for.
    none: bool,
}

impl Handler for High {
    fn write(&mut self, data: &[u8]) -> Result<usize, WriteError> {
        Ok(data.len())
    }

    fn open_socket(&mut self, _: c_int, _: c_int, _: c_int) -> Option<RawFd> {
        let made = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).ok()?;
        let high = fcntl(&made, FcntlArg::F_DUPFD_CLOEXEC(HIGH)).ok();
        self.none = high.is_none();
        high
    }
}

/// Whether it can. Takes some hundred microseconds.
pub(crate) fn waits_for_any() -> bool {
    tried().unwrap_or(false)
}

fn tried() -> anyhow::Result<bool> {
    let name = format!("procCurl-{}-{:p}", std::process::id(), &ANSWER);
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    let mut easy = Easy2::new(High::default());
    easy.url("http://self/")?;
    easy.proxy("")?;
    easy.abstract_unix_socket(name.as_bytes())?;
    easy.timeout(Duration::from_secs(5))?;
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let _ = stream.read(&mut [0; 1024])?;
        stream.write_all(ANSWER)
    });
    let done = easy.perform();
    let none = easy.get_ref().none;
    if done.is_err() {
        // Whoever answers may be waiting for a connection that was never made.
        let _ = std::os::unix::net::UnixStream::connect_addr(&SocketAddr::from_abstract_name(&name)?);
    }
    let _ = answering.join();
    Ok(none || done.is_ok())
}
