//! `--check-sandbox`: tries what a worker must not be able to do, from inside, and says what came of each.

use crate::harden::{self, Hardened};
use crate::settings::Settings;
use nix::sys::signal::kill;
use nix::unistd::getppid;
use serde_json::json;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;

/// Each by name: what it would be to succeed, or the system's word.
pub(crate) fn report(settings: &Settings) -> String {
    // What was there before: a port that is not to be connected to.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let port =
        listener.as_ref().ok().and_then(|listener| listener.local_addr().ok()).map_or(0, |address| address.port());
    let hardened = Hardened { landlock: harden::landlock(settings), seccomp: harden::seccomp(settings) };
    let tried: [(&str, io::Result<()>); 9] = [
        ("read /etc/passwd", File::open("/etc/passwd").map(drop)),
        ("create a file", File::create("/tmp/procCurl-escaped").map(drop)),
        ("list /", std::fs::read_dir("/").map(drop)),
        ("execute", Command::new("/bin/true").status().map(drop)),
        ("signal the parent", kill(getppid(), None).map_err(io::Error::from)),
        ("trace the parent", crate::raw::try_ptrace(getppid().as_raw())),
        ("make a packet socket", crate::raw::try_socket(libc::AF_PACKET, libc::SOCK_RAW)),
        ("listen", TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)),
        ("connect to a port that is not named", TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop)),
    ];
    let word = |done: &io::Result<()>| match done {
        Ok(()) => json!("allowed"),
        Err(error) => {
            json!(error.raw_os_error().map_or_else(|| error.to_string(), |number| format!("refused ({number})")))
        }
    };
    let tried: serde_json::Map<_, _> = tried.iter().map(|(name, done)| ((*name).to_owned(), word(done))).collect();
    let all = json!({
        "landlock": hardened.landlock.name(),
        "seccomp": hardened.seccomp.name(),
        "portsNamed": !settings.ports.is_empty(),
        "tried": tried,
    });
    format!("{all:#}\n")
}
