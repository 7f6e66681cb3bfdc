//! What it takes to meet: from nothing to the first answer, beside a bare socket over which one piece of memory is passed
//! and mapped; what a session commits; and whether thousands of idle sessions slow a busy one down.

use crate::cache_capnp::cache;
use crate::cli::Opening;
use anyhow::{Context, bail, ensure};
use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, getsockopt, listen, recvmsg, sendmsg, socket, sockopt,
};
use perf_demo::cpus::{Cpus, Pin};
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use strait::{Channel, ClientApp, Message, Received, ServerApp, Session, Trust};

/// Address space of a client's memory, strait's and the bare socket's.
const MEMORY: usize = 4 << 30;
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two turns.
const BREATHER: Duration = Duration::from_millis(1);
/// Rounds before those that count.
const WARM_UP: usize = 20;

pub(crate) fn run(options: &Opening) -> anyhow::Result<ExitCode> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    match &options.serve {
        Some(dir) => serve(dir)?,
        None => measure(options)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn client_app() -> ClientApp {
    ClientApp::new("perf_demo").arena_bytes(MEMORY).channel::<cache::Owned>("cache")
}

fn server_app(dir: &Path) -> ServerApp {
    ServerApp::new("opening").run_dir(dir).channel::<cache::Owned>("cache")
}

// The other process.

/// Answers the first request of every session, and does with the session what that asked for. Ended by its parent.
fn serve(dir: &Path) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let server = server_app(dir).allow(&client_app(), Trust::snapshot()).bind()?;
    let bare = bare_socket()?;
    bind(bare.as_raw_fd(), &UnixAddr::new(&dir.join("bare"))?)?;
    listen(&bare, Backlog::new(128)?)?;
    println!("ready");
    std::io::stdout().flush()?;
    std::thread::spawn(move || while answer_bare(&bare).is_ok() {});
    let (mut held, cpus) = (Vec::new(), Cpus::allowed()?);
    loop {
        let session = server.accept()?;
        let mut channel = session.accept_channel::<cache::Owned>()?;
        let Ok(request) = channel.recv() else { continue };
        match said(&request)?.as_str() {
            "once" => drop(answer(&mut channel, &request, "")),
            "hold" => {
                answer(&mut channel, &request, "")?;
                drop(request);
                held.push((session, channel));
            }
            "resident" => answer(&mut channel, &request, &server.arena().resident()?.to_string())?,
            "serve" => {
                answer(&mut channel, &request, "")?;
                drop(request);
                let cpus = cpus.clone();
                std::thread::spawn(move || {
                    // Where it runs decides more than what is measured: not on its client's CPU by chance.
                    let _ = cpus.go_to(cpus.places(Pin::Split).1);
                    while let Ok(request) = channel.recv() {
                        if answer(&mut channel, &request, "").is_err() {
                            return;
                        }
                    }
                });
            }
            other => bail!("what is {other}"),
        }
        // Gone with their clients.
        held.retain(|(session, _): &(Session, _)| session.end().is_none());
    }
}

fn said(message: &Received<cache::Owned>) -> anyhow::Result<String> {
    match message.get()?.which()? {
        cache::NotFound(text) => Ok(text?.to_string()?),
        _ => bail!("neither a request nor an answer of this kind"),
    }
}

fn line(channel: &Channel<cache::Owned>, text: &str) -> anyhow::Result<Message<cache::Owned>> {
    let mut builder = channel.create_msg();
    builder.init_root().set_not_found(text);
    Ok(builder.freeze()?)
}

fn answer(channel: &mut Channel<cache::Owned>, to: &Received<cache::Owned>, text: &str) -> anyhow::Result<()> {
    let message = line(channel, text)?;
    channel.reply(to, &message)?;
    Ok(())
}

fn bare_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

/// Who are you, what do you have, here is your answer.
fn answer_bare(listener: &OwnedFd) -> anyhow::Result<()> {
    let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 made it for this call.
    let client = unsafe { OwnedFd::from_raw_fd(raw) };
    getsockopt(&client, sockopt::PeerCredentials)?;
    let (mut frame, mut space) = ([0; 1024], nix::cmsg_space!([RawFd; 1]));
    let mut parts = [IoSliceMut::new(&mut frame)];
    let found = recvmsg::<()>(client.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let memory = found.cmsgs()?.find_map(|control| match control {
        // SAFETY: the kernel made it for this call.
        ControlMessageOwned::ScmRights(fds) => fds.first().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => None,
    });
    let _map = MmapOptions::new().len(MEMORY).map_raw_read_only(&File::from(memory.context("no memory")?))?;
    sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(&[0; 1024])], &[], MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

// This process.

fn measure(options: &Opening) -> anyhow::Result<()> {
    let dir = tempfile::TempDir::with_prefix("perf_demo-")?;
    let mut server = start(dir.path())?;
    let measured = open(options, dir.path()).and_then(|()| crowd(options, dir.path()));
    let _ = server.kill();
    server.wait()?;
    measured
}

fn start(dir: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("open").arg("--serve").arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut ready = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut ready)?;
    ensure!(ready == "ready\n", "the server did not come up: {}", child.wait()?);
    Ok(child)
}

fn open(options: &Opening, dir: &Path) -> anyhow::Result<()> {
    let (server, app) = (server_app(dir), client_app());
    let (_first, _channel) = meet(&app, &server, "hold")?;
    let memory = memory()?;
    let mut samples = [const { Vec::new() }; 4];
    // They take turns, because what a machine can do changes from minute to minute.
    for round in 0..options.rounds + WARM_UP {
        let mut turn = |kind: usize, what: &mut dyn FnMut() -> anyhow::Result<()>| -> anyhow::Result<()> {
            // What the turn before has left to do for both processes is not to be this one's to wait for.
            std::thread::sleep(BREATHER);
            let start = Instant::now();
            what()?;
            let took = start.elapsed();
            if round >= WARM_UP {
                samples[kind].push(took);
            }
            Ok(())
        };
        turn(0, &mut || meet_bare(dir, memory.as_raw_fd()))?;
        turn(1, &mut || meet_bare(dir, self::memory()?.as_raw_fd()))?;
        // Its end does not count: the bare socket's does, but is a close.
        let mut met = None;
        turn(2, &mut || {
            met = Some(meet(&app, &server, "once")?);
            Ok(())
        })?;
        drop(met.take());
        turn(3, &mut || {
            met = Some(meet(&client_app(), &server, "once")?);
            Ok(())
        })?;
        drop(met);
    }
    let [before, each, further, first] = &mut samples;
    let floor = report("bare: connect, credentials, one memfd", before, None);
    let floor_each = report("bare, with a memfd made each time", each, None);
    report("a session, connect to first answer", further, Some(floor));
    report("an app's first session", first, Some(floor_each));
    commits(&app, &server)
}

/// What each of many sessions keeps committed, in both arenas.
fn commits(app: &ClientApp, server: &ServerApp) -> anyhow::Result<()> {
    const SESSIONS: u64 = 100;
    let theirs = || -> anyhow::Result<u64> {
        let (_session, mut channel) = connect_to(app, server)?;
        let question = line(&channel, "resident")?;
        Ok(said(&channel.request(&question, PATIENCE)?)?.parse()?)
    };
    let (session, _channel) = meet(app, server, "hold")?;
    let before = (session.arena().resident()?, theirs()?);
    let _held = (0..SESSIONS).map(|_| meet(app, server, "hold")).collect::<anyhow::Result<Vec<_>>>()?;
    let after = (session.arena().resident()?, theirs()?);
    let each = |before: u64, after: u64| after.saturating_sub(before) / SESSIONS / 1024;
    println!("a session commits {} KiB here, {} KiB there", each(before.0, after.0), each(before.1, after.1));
    Ok(())
}

/// A busy session alone, and among idle ones, in turns.
fn crowd(options: &Opening, dir: &Path) -> anyhow::Result<()> {
    let (server, app) = (server_app(dir), client_app());
    let (_session, mut channel) = meet(&app, &server, "serve")?;
    let question = line(&channel, "anything")?;
    let cpus = Cpus::allowed()?;
    let mut ask = |samples: &mut Vec<Duration>| -> anyhow::Result<Duration> {
        cpus.go_to(cpus.places(Pin::Split).0)?;
        let mut turn = Vec::with_capacity(options.requests);
        for round in 0..options.requests {
            let start = Instant::now();
            drop(channel.request(&question, PATIENCE)?);
            if round >= options.requests / 10 {
                turn.push(start.elapsed());
            }
        }
        cpus.go_to(None)?;
        turn.sort_unstable();
        samples.extend_from_slice(&turn);
        Ok(turn.get(turn.len() / 2).copied().unwrap_or_default())
    };
    let (mut alone, mut among) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let before = ask(&mut alone)?;
        let start = Instant::now();
        let idle = (0..options.idle).map(|_| meet(&app, &server, "hold")).collect::<anyhow::Result<Vec<_>>>()?;
        let took = start.elapsed();
        let beside = ask(&mut among)?;
        drop(idle);
        // A machine that is slower in every turn from some turn on moved its CPUs; one that is slower beside others is not.
        let after = ask(&mut alone)?;
        println!(
            "{} sessions opened in {took:.1?}; p50 before {before:.1?}, beside {beside:.1?}, after {after:.1?}",
            options.idle
        );
    }
    let floor = report("a request, one session", &mut alone, None);
    report(&format!("a request beside {} idle sessions", options.idle), &mut among, Some(floor));
    Ok(())
}

fn report(what: &str, samples: &mut [Duration], floor: Option<Duration>) -> Duration {
    samples.sort_unstable();
    let at = |part: usize| samples.get(samples.len() * part / 100).copied().unwrap_or_default();
    let times = floor.map(|floor| format!("  {:.2} x", at(50).as_secs_f64() / floor.as_secs_f64().max(1e-9)));
    println!("{what:40} p50 {:>9.1?}  p90 {:>9.1?}{}", at(50), at(90), times.unwrap_or_default());
    at(50)
}

fn connect_to(app: &ClientApp, server: &ServerApp) -> anyhow::Result<(Session, Channel<cache::Owned>)> {
    let session = app.connect(server)?;
    let channel = session.open_channel("cache", PATIENCE)?;
    Ok((session, channel))
}

/// From nothing to the first answer.
fn meet(app: &ClientApp, server: &ServerApp, what: &str) -> anyhow::Result<(Session, Channel<cache::Owned>)> {
    let (session, mut channel) = connect_to(app, server)?;
    let question = line(&channel, what)?;
    channel.request(&question, PATIENCE)?;
    Ok((session, channel))
}

fn memory() -> anyhow::Result<File> {
    let file = File::from(memfd_create(c"perf_demo-bare", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(MEMORY as u64)?;
    let _map: MmapRaw = MmapOptions::new().len(MEMORY).map_raw(&file)?;
    Ok(file)
}

fn meet_bare(dir: &Path, memory: RawFd) -> anyhow::Result<()> {
    let server = bare_socket()?;
    connect(server.as_raw_fd(), &UnixAddr::new(&dir.join("bare"))?)?;
    getsockopt(&server, sockopt::PeerCredentials)?;
    let rights = [memory];
    let control = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(server.as_raw_fd(), &[IoSlice::new(&[0; 1024])], &control, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut answer = [0; 1024];
    let mut parts = [IoSliceMut::new(&mut answer)];
    let found = recvmsg::<()>(server.as_raw_fd(), &mut parts, None, MsgFlags::empty())?;
    ensure!(found.bytes == 1024, "the bare server is gone");
    Ok(())
}
