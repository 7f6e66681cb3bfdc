//! Calls some microseconds apart: what looking for a while and then sleeping costs beside always looking, and what both
//! processes burn afterwards. The ways take turns.

use crate::cache_capnp::cache;
use crate::cli::Spacing;
use anyhow::{Context, ensure};
use perf_demo::cpus::Cpus;
use perf_demo::cpus::Pin;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use strait::{Channel, ClientApp, Message, ServerApp, Session, Trust, Wait};

const PATIENCE: Duration = Duration::from_secs(20);
/// Microseconds from an answer to the next question; back to back first.
const GAPS: [u64; 6] = [0, 3, 5, 10, 20, 100];
const WAYS: [(&str, Wait); 2] = [("spin", Wait::Spin), ("adaptive", Wait::Adaptive)];
const TEXT: &str = "forty bytes of text, and no more of it.";
const IDLE: Duration = Duration::from_millis(500);

pub(crate) fn run(options: &Spacing) -> anyhow::Result<ExitCode> {
    match &options.serve {
        Some(dir) => serve(options, dir)?,
        None => measure(options)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn server_app(dir: &Path) -> ServerApp {
    WAYS.iter().fold(ServerApp::new("adaptive").run_dir(dir), |app, (name, _)| app.channel::<cache::Owned>(*name))
}

fn client_app() -> ClientApp {
    // SAFETY: the other half is this very program, which writes to no message after sending it.
    ClientApp::new("perf_demo").trust(unsafe { Trust::in_place() })
}

/// The other process. One way at a time: whoever waits in the other would take its CPU.
fn serve(options: &Spacing, dir: &Path) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // SAFETY: as in `client_app`.
    let server = server_app(dir).allow(&client_app(), unsafe { Trust::in_place() }).bind()?;
    println!("ready");
    std::io::stdout().flush()?;
    Cpus::allowed()?.go_to(options.cpu)?;
    let session = server.accept_timeout(PATIENCE)?;
    let mut channels = Vec::new();
    for (name, wait) in WAYS {
        let mut channel: Channel<cache::Owned> = session.accept_channel_named(name, PATIENCE)?;
        channel.set_wait(wait);
        channels.push(channel);
    }
    let answer = text(&session)?;
    loop {
        for channel in &mut channels {
            // Until a notice says that it is the other's turn.
            loop {
                let Ok(question) = channel.recv() else { return Ok(()) };
                if !question.is_request() {
                    break;
                }
                channel.reply(&question, &answer)?;
            }
        }
    }
}

fn text(session: &Session) -> anyhow::Result<Message<cache::Owned>> {
    let mut builder = session.create_msg::<cache::Owned>();
    builder.init_root().set_not_found(TEXT);
    Ok(builder.freeze()?)
}

fn measure(options: &Spacing) -> anyhow::Result<()> {
    let cpus = Cpus::allowed()?;
    let (here, there) = cpus.places(if cpus.are_two() { Pin::Split } else { Pin::Same });
    if !cpus.are_two() {
        println!("MARK: one CPU only, which both processes share: nobody spins on it");
    }
    let dir = tempfile::TempDir::with_prefix("perf_demo-")?;
    let mut other = start(dir.path(), there)?;
    let measured = cpus.go_to(here).and_then(|()| ask(options, dir.path(), &other));
    let _ = other.kill();
    other.wait()?;
    measured
}

fn start(dir: &Path, cpu: Option<usize>) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("adaptive").arg("--serve").arg(dir);
    if let Some(cpu) = cpu {
        command.arg("--cpu").arg(cpu.to_string());
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut ready = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut ready)?;
    ensure!(ready == "ready\n", "the server did not come up: {}", child.wait()?);
    Ok(child)
}

fn ask(options: &Spacing, dir: &Path, other: &Child) -> anyhow::Result<()> {
    let session = client_app().connect(&server_app(dir))?;
    let mut channels = Vec::new();
    for (name, wait) in WAYS {
        let mut channel: Channel<cache::Owned> = session.open_channel(name, PATIENCE)?;
        channel.set_wait(wait);
        channels.push(channel);
    }
    let question = text(&session)?;
    let mut samples = GAPS.map(|_| WAYS.map(|_| Vec::new()));
    let (mut idle_here, mut idle_there) = (Duration::ZERO, Duration::ZERO);
    for turn in 0..options.turns {
        for (way, channel) in channels.iter_mut().enumerate() {
            for (&gap, samples) in GAPS.iter().zip(&mut samples) {
                for round in 0..options.calls + options.calls / 5 {
                    pause(Duration::from_micros(gap));
                    let start = Instant::now();
                    drop(channel.request(&question, PATIENCE)?);
                    let took = start.elapsed();
                    if round >= options.calls / 5 {
                        samples[way].push(took);
                    }
                }
            }
            // The adaptive one falls idle: nobody has anything to do.
            if way == 1 && turn == 0 {
                let before = (burnt(std::process::id())?, burnt(other.id())?);
                let _ = channel.recv_timeout(IDLE);
                idle_here = burnt(std::process::id())?.saturating_sub(before.0);
                idle_there = burnt(other.id())?.saturating_sub(before.1);
            }
            channel.send(&question)?;
        }
    }
    println!("{:>12} {:>10} {:>10} {:>10} {:>10} {:>8}", "gap us", "spin p50", "p99", "adapt. p50", "p99", "ratio");
    for (gap, samples) in GAPS.into_iter().zip(&mut samples) {
        let mut at = |way: usize, part: usize| {
            let samples = &mut samples[way];
            samples.sort_unstable();
            samples.get(samples.len() * part / 100).copied().unwrap_or_default()
        };
        let [spin, spin_99, adaptive, adaptive_99] = [at(0, 50), at(0, 99), at(1, 50), at(1, 99)];
        let ratio = adaptive.as_secs_f64() / spin.as_secs_f64().max(1e-9);
        println!("{gap:>12} {spin:>10.2?} {spin_99:>10.2?} {adaptive:>10.2?} {adaptive_99:>10.2?} {ratio:>6.2} x");
    }
    println!("idle for {IDLE:?} after calls: {idle_here:?} of CPU here, {idle_there:?} there");
    let stats = channels.iter().map(strait::Channel::wait_stats).collect::<Vec<_>>();
    println!("sleeps of the client: {} spinning, {} adaptive", stats[0].sleeps, stats[1].sleeps);
    Ok(())
}

/// Busy with something else.
fn pause(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// The CPU time of all threads of a process.
fn burnt(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat")).context("no schedstat")?;
        sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}
