//! procCurlI: libcurl as a server app of `proc_curl`. See `--help`, and `docs/proc_curl.md`.

#![deny(unsafe_code)]

mod engine;
mod escape;
mod fair;
mod guard;
mod handler;
mod harden;
mod head;
mod jar;
mod measure;
mod outcome;
mod protocols;
#[allow(unsafe_code, reason = "all of it is there")]
mod raw;
mod retry;
mod selftest;
mod serve;
mod settings;
mod setup;
mod sockets;
mod telling;
mod text;
mod text_serve;
mod upload;
mod wish;

use crate::engine::Engine;
use crate::serve::{CHANNEL, CLIENT, Serving};
use crate::settings::{Asked, Settings};
use crate::text_serve::Texts;
use anyhow::{Context, bail};
use proc_curl::proc_curl_capnp::curl as curl_schema;
use proc_curl::uri::{Format, Place, Transport, Uri};
use std::fs::DirBuilder;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use strait::{Backing, ClientApp, ServerApp, Trust};

fn main() -> ExitCode {
    let done = match Settings::parse(std::env::args_os().skip(1)) {
        Ok(Asked::Help) => protocols::print(settings::HELP),
        Ok(Asked::Protocols(settings)) => protocols::print(&protocols::json(&settings)),
        Ok(Asked::Measure) => measure::report().and_then(|report| protocols::print(&report)),
        Ok(Asked::CheckSandbox(settings)) => {
            harden::basics();
            protocols::print(&escape::report(&settings))
        }
        Ok(Asked::Serve(settings, uri)) => serve(&settings, &uri),
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("procCurlI: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How long a client that was given this worker may take to log in.
const LOGIN: Duration = Duration::from_secs(30);

fn serve(settings: &Settings, uri: &Uri) -> anyhow::Result<()> {
    harden::basics();
    curl::init();
    settings::take_descriptors();
    let settings = &settings.suited_to_libcurl();
    match (uri.format, &uri.place) {
        (Format::JsonRpc, _) => serve_lines(settings, uri),
        (_, Place::Inherited) => serve_one(settings, uri),
        (_, Place::Dir(dir)) => serve_all(settings, uri, dir),
        _ => bail!("{uri}: not served"),
    }
}

fn backing(uri: &Uri) -> Backing {
    if uri.transport == Transport::Shm { Backing::Memfd } else { Backing::Heap }
}

/// Whoever started this.
fn serve_one(settings: &Settings, uri: &Uri) -> anyhow::Result<()> {
    harden::end_with_parent();
    // Before there are threads, to which it does not apply.
    harden::landlock(settings);
    let app = ServerApp::new("procCurlI").channel::<curl_schema::Owned>(CHANNEL).backing(backing(uri));
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let session = app.accept_over(socket, Trust::snapshot_up_to(settings.request_max), LOGIN)?;
    // Only after the log-in, in which it has to be the user that it was started by.
    harden::leave_root(settings)?;
    harden::end_with_parent();
    harden::seccomp(settings);
    Serving::alone(Engine::new(settings.house(), settings.limits)?, session)?.run();
    Ok(())
}

/// Whoever comes.
fn serve_all(settings: &Settings, uri: &Uri, dir: &Path) -> anyhow::Result<()> {
    let app = ServerApp::new(uri.session.clone())
        .run_dir(dir)
        .channel::<curl_schema::Owned>(CHANNEL)
        .backing(backing(uri))
        .allow(&ClientApp::new(CLIENT), Trust::snapshot_up_to(settings.request_max));
    let server = app.bind().with_context(|| format!("cannot bind {uri}"))?;
    harden::landlock(&Settings { own_dir: Some(dir.to_owned()), ..settings.clone() });
    harden::seccomp(settings);
    Serving::named(Engine::new(settings.house(), settings.limits)?, server)?.run();
    Ok(())
}

/// Whoever writes lines.
fn serve_lines(settings: &Settings, uri: &Uri) -> anyhow::Result<()> {
    let path = |dir: &Path| dir.join(format!("{}.sock", uri.session));
    let unix = match &uri.place {
        Place::Dir(dir) => Some(bind(dir, &path(dir)).with_context(|| format!("cannot bind {uri}"))?),
        _ => None,
    };
    let tcp = match &uri.place {
        Place::Address(_) if !settings.tcp => bail!("{uri}: tcp is served with --tcp only"),
        Place::Address(address) => Some(TcpListener::bind(address).with_context(|| format!("cannot bind {uri}"))?),
        _ => None,
    };
    harden::landlock(settings);
    harden::leave_root(settings)?;
    harden::seccomp(settings);
    let arena = ClientApp::new(CLIENT).arena()?;
    // Who may connect to a port is not known, so a client over TCP has to know the session's name.
    let secret = tcp.is_some().then(|| uri.session.clone());
    let texts = Texts::new(Engine::new(settings.house(), settings.limits)?, arena, secret)?;
    match (unix, tcp) {
        (Some(listener), _) => texts.run_for(move || {
            let (stream, _) = listener.accept()?;
            Ok((Box::new(stream.try_clone()?), Box::new(stream)))
        })?,
        (_, Some(listener)) => texts.run_for(move || {
            let (stream, _) = listener.accept()?;
            Ok((Box::new(stream.try_clone()?), Box::new(stream)))
        })?,
        _ => texts.run_io()?,
    }
    Ok(())
}

/// A socket in a directory that is this user's alone.
fn bind(dir: &Path, path: &Path) -> anyhow::Result<UnixListener> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    let about = std::fs::symlink_metadata(dir)?;
    if !about.is_dir() || about.uid() != nix::unistd::geteuid().as_raw() || about.mode() & 0o077 != 0 {
        bail!("{} is not a directory of this user's alone", dir.display());
    }
    if UnixStream::connect(path).is_ok() {
        bail!("{} is served already", path.display());
    }
    let _ = std::fs::remove_file(path);
    Ok(UnixListener::bind(path)?)
}
