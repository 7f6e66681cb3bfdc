//! Small messages inside their slots and on loan: a request and its answer of the same size each, between two processes.

use crate::cache_capnp::cache;
use crate::cli::Inline;
use anyhow::{Context, ensure};
use perf_demo::cpus::{Cpus, Pin};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use strait::{Channel, ClientApp, Message, Received, ServerApp, Session, Trust};

const PATIENCE: Duration = Duration::from_secs(10);

/// Requests in a row of one kind.
const TURN: usize = 1000;

/// The longest that travels inside its slots unless an app says otherwise.
const INSIDE: usize = 88;

/// What may travel inside: as much as fits, and nothing.
const KINDS: [(&str, usize); 2] = [("inside", INSIDE), ("lent", 0)];

/// Bytes of a message without words, which is its root alone, and with one word.
const EMPTY: usize = 24;
const SHORT: usize = 32;

pub(crate) fn run(options: &Inline) -> anyhow::Result<ExitCode> {
    match &options.serve {
        Some(dir) => serve(dir)?,
        None => measure(options)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn client_app(inline_max: usize) -> ClientApp {
    ClientApp::new("perf_demo").inline_max(inline_max).channel::<cache::Owned>("cache")
}

fn server_app(name: &str, inline_max: usize, dir: &Path) -> ServerApp {
    ServerApp::new(name).run_dir(dir).inline_max(inline_max).channel::<cache::Owned>("cache")
}

// The other process: says what it is told. Ended by its parent.

fn serve(dir: &Path) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let cpus = Cpus::allowed()?;
    cpus.go_to(cpus.places(Pin::Split).1)?;
    let mut echoing = Vec::new();
    for (name, inline_max) in KINDS {
        let server = server_app(name, inline_max, dir).allow(&client_app(inline_max), Trust::snapshot()).bind()?;
        echoing.push(std::thread::spawn(move || -> anyhow::Result<()> {
            let mut channel = server.accept()?.accept_channel::<cache::Owned>()?;
            while let Ok(request) = channel.recv() {
                let answer = say(&channel, words(&request)?)?;
                channel.reply(&request, &answer)?;
            }
            Ok(())
        }));
    }
    println!("ready");
    std::io::stdout().flush()?;
    echoing.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
}

/// The words of a message; `None` where it has none.
fn words(message: &Received<cache::Owned>) -> anyhow::Result<Option<&str>> {
    Ok(match message.get()?.which()? {
        cache::NotFound(text) if message.size() > EMPTY => Some(text?.to_str()?),
        _ => None,
    })
}

fn say(channel: &Channel<cache::Owned>, words: Option<&str>) -> anyhow::Result<Message<cache::Owned>> {
    let mut builder = channel.create_msg();
    let mut root = builder.init_root();
    if let Some(words) = words {
        root.set_not_found(words);
    }
    Ok(builder.freeze()?)
}

// This process.

fn measure(options: &Inline) -> anyhow::Result<()> {
    let dir = tempfile::TempDir::with_prefix("perf_demo-")?;
    let mut server = start(dir.path())?;
    let measured = compare(options, dir.path());
    let _ = server.kill();
    server.wait()?;
    measured
}

fn start(dir: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("inline").arg("--serve").arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let mut ready = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut ready)?;
    ensure!(ready == "ready\n", "the server did not come up: {}", child.wait()?);
    Ok(child)
}

fn compare(options: &Inline, dir: &Path) -> anyhow::Result<()> {
    let cpus = Cpus::allowed()?;
    if !cpus.are_two() {
        println!("note: one CPU for both processes");
    }
    cpus.go_to(cpus.places(Pin::Split).0)?;
    let connect = |(name, inline_max)| -> anyhow::Result<(Session, Channel<cache::Owned>)> {
        let session = client_app(inline_max).connect(&server_app(name, inline_max, dir))?;
        let channel = session.open_channel("cache", PATIENCE)?;
        Ok((session, channel))
    };
    let mut kinds = KINDS.map(connect).into_iter().collect::<Result<Vec<_>, _>>()?;
    println!("bytes each way   inside p50   on loan p50   inside / on loan");
    for bytes in [EMPTY, SHORT, 40, 64, INSIDE, 96, 128, 256] {
        let text = (bytes > EMPTY).then(|| "x".repeat(bytes - SHORT + 7));
        let mut samples = [const { Vec::new() }; 2];
        // They take turns, because what a machine can do changes from minute to minute.
        for turn in 0..options.rounds.div_ceil(TURN) + 1 {
            for ((_, channel), samples) in kinds.iter_mut().zip(&mut samples) {
                for _ in 0..TURN {
                    let start = Instant::now();
                    let request = say(channel, text.as_deref())?;
                    let answer = channel.request(&request, PATIENCE)?;
                    ensure!(words(&answer)? == text.as_deref(), "another answer");
                    drop(answer);
                    // The first turn is to warm up.
                    if turn > 0 {
                        samples.push(start.elapsed());
                    }
                }
            }
        }
        let [inside, lent] = samples.map(|mut samples| {
            samples.sort_unstable();
            samples.get(samples.len() / 2).copied().unwrap_or_default()
        });
        let ratio = inside.as_secs_f64() / lent.as_secs_f64().max(1e-9);
        let note = if bytes > INSIDE { "  (on loan both)" } else { "" };
        println!("{bytes:>14} {inside:>12.0?} {lent:>13.0?} {ratio:>18.2}{note}");
    }
    Ok(())
}
