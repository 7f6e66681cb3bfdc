//! The command line, and what follows from it for the process.

use crate::engine::Limits;
use crate::selftest;
use crate::setup::House;
use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proc_curl::uri::Uri;
use std::ffi::OsString;
use std::path::PathBuf;

/// The minor version; the major one is in the executable's name.
pub(crate) const MINOR: u32 = 1;

pub(crate) const HELP: &str = "\
procCurlI: libcurl in a process of its own, for programs that use proc_curl

usage: procCurlI [OPTION...] URI
       procCurlI --protocols

URI is where to meet, {transport}://{place}/{session}.{format}:
  shm:///DIR/NAME.handle      a socket in DIR, messages and bodies by handle
  shm://-/NAME.handle         the same, over the socket that is standard input
  unix:///DIR/NAME.capnp      a socket in DIR, messages and bodies as bytes
  unix:///DIR/NAME.jsonrpc    a socket in DIR, JSON-RPC 2.0 in lines
  tcp://ADDRESS:PORT/NAME.jsonrpc   the same on the loopback, with --tcp
  io://NAME.jsonrpc           the same on standard input and output

options:
  --protocols             print what this worker has, as JSON, and end
  --cacert FILE           the authorities to believe instead of the system's
  --max-active N          requests under way at a time (4096)
  --max-queued N          requests of one client that wait (65536)
  --max-connections N     connections in all (0: no limit of its own)
  --max-host-connections N  connections to one host (0: no limit of its own)
  --max-idle N            idle connections that are kept (256)
  --max-streams N         HTTP/2 streams in one connection (100)
  --agent TEXT            what is sent as User-Agent
  --tcp                   tcp:// is served
  --connect-port N        connect to this port and those named so alone; may be repeated
  --uid N                 who to become instead of root (65534, nobody)
  --stay-root             stay root
  --no-landlock           leave files and ports open
  --no-seccomp            leave system calls open
  --seccomp-trap          end with SIGSYS at a system call that is not allowed, to find out which
  --check-sandbox         try what is not allowed, say what came of it as JSON, and end
  --measure               measure the rates that --protocols tells, on this machine, and end
  --help                  print this, and end
";

/// What it was told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) authorities: Option<PathBuf>,
    pub(crate) limits: Limits,
    pub(crate) agent: String,
    /// The largest message of a client, in bytes; bodies beside it do not count.
    pub(crate) request_max: u64,
    pub(crate) tcp: bool,
    /// The only ports to connect to; any if there is none.
    pub(crate) ports: Vec<u16>,
    pub(crate) uid: Option<u32>,
    pub(crate) stay_root: bool,
    pub(crate) landlock: bool,
    pub(crate) seccomp: bool,
    pub(crate) trap: bool,
    /// Its libcurl cannot wait for descriptors from 1024 on.
    pub(crate) limited_by_select: bool,
    /// Where its socket is.
    pub(crate) own_dir: Option<PathBuf>,
}

/// What it was started for.
#[derive(Debug)]
pub(crate) enum Asked {
    Help,
    Protocols(Settings),
    CheckSandbox(Settings),
    Measure,
    Serve(Settings, Uri),
}

/// Where systems keep their authorities.
const AUTHORITIES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl Settings {
    fn new() -> Self {
        let limits = Limits {
            active: 4096,
            queued: 65_536,
            connections: 0,
            host_connections: 0,
            idle_connections: 256,
            streams: 100,
        };
        let authorities = AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists());
        let agent = format!("procCurl/1.{MINOR}");
        Self {
            authorities,
            limits,
            agent,
            request_max: 64 << 20,
            tcp: false,
            ports: Vec::new(),
            uid: None,
            stay_root: false,
            landlock: true,
            seccomp: true,
            trap: false,
            limited_by_select: false,
            own_dir: None,
        }
    }

    /// Reads the command line. The URI is the last argument.
    pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Asked> {
        let mut settings = Self::new();
        let mut arguments = arguments
            .map(|argument| argument.into_string().map_err(|odd| anyhow::anyhow!("`{}` is not UTF-8", odd.display())));
        let mut asked: Option<fn(Settings) -> Asked> = None;
        while let Some(argument) = arguments.next().transpose()? {
            let mut value = || -> anyhow::Result<String> {
                arguments.next().transpose()?.with_context(|| format!("{argument} wants a value"))
            };
            let mut number = || -> anyhow::Result<usize> {
                let text = value()?;
                text.parse().with_context(|| format!("{argument} {text}"))
            };
            match argument.as_str() {
                "--help" | "-h" => return Ok(Asked::Help),
                "--measure" => return Ok(Asked::Measure),
                "--protocols" => asked = Some(Asked::Protocols),
                "--cacert" => settings.authorities = Some(value()?.into()),
                "--agent" => settings.agent = value()?,
                "--max-active" => settings.limits.active = number()?.max(1),
                "--max-queued" => settings.limits.queued = number()?,
                "--max-connections" => settings.limits.connections = number()?,
                "--max-host-connections" => settings.limits.host_connections = number()?,
                "--max-idle" => settings.limits.idle_connections = number()?,
                "--max-streams" => settings.limits.streams = number()?,
                "--tcp" => settings.tcp = true,
                "--connect-port" => settings.ports.push(u16::try_from(number()?).context("no port")?),
                "--uid" => settings.uid = Some(u32::try_from(number()?).context("no user")?),
                "--stay-root" => settings.stay_root = true,
                "--no-landlock" => settings.landlock = false,
                "--no-seccomp" => settings.seccomp = false,
                "--seccomp-trap" => settings.trap = true,
                "--check-sandbox" => asked = Some(Asked::CheckSandbox),
                uri if !uri.starts_with("--") => {
                    if let Some(more) = arguments.next() {
                        bail!("`{}` comes after the URI, which is the last argument", more?);
                    }
                    return Ok(Asked::Serve(settings, uri.parse()?));
                }
                unknown => bail!("unknown option {unknown}"),
            }
        }
        asked.map(|asked| asked(settings)).context("no URI to meet at; see --help")
    }

    /// With so many requests at a time as this libcurl can wait for.
    pub(crate) fn suited_to_libcurl(&self) -> Self {
        let mut settings = self.clone();
        if !selftest::waits_for_any() {
            settings.limits.active = settings.limits.active.min(selftest::LOW_ACTIVE);
            settings.limited_by_select = true;
        }
        settings
    }

    pub(crate) fn house(&self) -> House {
        House { authorities: self.authorities.clone(), agent: self.agent.clone() }
    }
}

/// As many descriptors as this process may have: each connection is one.
pub(crate) fn take_descriptors() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
