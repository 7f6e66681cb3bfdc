//! One publisher and 1, 2, 4, 8 subscribers, each a process: what a message costs the publisher, and what it commits. The
//! numbers of subscribers take turns.

use crate::cache_capnp::cache;
use crate::cli::Casting;
use anyhow::{Context, ensure};
use perf_demo::cpus::Cpus;
use perf_demo::cpus::Pin;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use strait::{ClientApp, Message, Policy, Publisher, ServerApp, Session, SessionServer, Subscriber, Trust, Wait};

const PATIENCE: Duration = Duration::from_secs(20);
const SLOTS: u32 = 256;
/// Messages published in a row, for which there is always room.
const BURST: u32 = SLOTS / 2;
const MANY: [usize; 4] = [1, 2, 4, 8];
const TEXT: &str = "forty bytes of text, and no more of it.";
const LARGE: usize = 4 << 20;

pub(crate) fn run(options: &Casting) -> anyhow::Result<ExitCode> {
    match &options.serve {
        Some(dir) => follow(options, dir)?,
        None => measure(options)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn server_app(dir: &Path) -> ServerApp {
    ServerApp::new("multicast").run_dir(dir).channel::<cache::Owned>("news")
}

fn client_app() -> ClientApp {
    // SAFETY: the other half is this very program, which writes to no message after sending it.
    ClientApp::new("perf_demo").trust(unsafe { Trust::in_place() })
}

/// The other processes, which subscribe.
fn follow(options: &Casting, dir: &Path) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    Cpus::allowed()?.go_to(options.cpu)?;
    let session = client_app().connect(&server_app(dir))?;
    let mut news = Subscriber::new(session.open_channel::<cache::Owned>("news", PATIENCE)?, PATIENCE)?;
    // Of many on one CPU each has to let the others run: none of them sleeps, all yield.
    news.set_wait(if options.park { Wait::Park } else { Wait::Spin });
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        let found = if options.park { news.recv().map(Some) } else { news.try_recv() };
        match found {
            Ok(Some(message)) => drop(std::hint::black_box(message)),
            Ok(None) => std::thread::yield_now(),
            Err(_) => return Ok(()),
        }
    }
}

struct Circle {
    publisher: Publisher<cache::Owned>,
    others: Vec<Child>,
    _sessions: Vec<Session>,
}

impl Circle {
    fn gather(server: &SessionServer, dir: &Path, many: usize, park: bool, cpu: Option<usize>) -> anyhow::Result<Self> {
        let mut publisher = Publisher::new(server.arena(), SLOTS)?;
        let (mut others, mut sessions) = (Vec::new(), Vec::new());
        for _ in 0..many {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("multicast").arg("--serve").arg(dir);
            if park {
                command.arg("--park");
            }
            if let Some(cpu) = cpu {
                command.arg("--cpu").arg(cpu.to_string());
            }
            let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
            let out = child.stdout.take().context("no output")?;
            others.push(child);
            let session = server.accept_timeout(PATIENCE)?;
            publisher.add(session.accept_channel_timeout(PATIENCE)?, Policy::Block { patience: PATIENCE })?;
            sessions.push(session);
            let mut ready = String::new();
            BufReader::new(out).read_line(&mut ready)?;
            ensure!(ready == "ready\n", "a subscriber did not come up");
        }
        Ok(Self { publisher, others, _sessions: sessions })
    }

    /// Waits until everyone has read all of it.
    fn settle(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            self.publisher.collect();
            if self.publisher.subscribers().all(|one| one.behind == 0) {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "a subscriber does not follow");
            std::thread::yield_now();
        }
    }

    /// Nanoseconds that a message took, of a burst.
    fn burst(&mut self, message: &Message<cache::Owned>, park: bool) -> anyhow::Result<f64> {
        if park {
            // Long enough for all of them to fall asleep.
            std::thread::sleep(Duration::from_millis(2));
        }
        let start = Instant::now();
        for _ in 0..BURST {
            self.publisher.publish(message)?;
        }
        let took = start.elapsed();
        self.settle()?;
        Ok(took.as_secs_f64() * 1e9 / f64::from(BURST))
    }

    fn end(self) -> anyhow::Result<()> {
        drop((self.publisher, self._sessions));
        self.others.into_iter().try_for_each(|mut child| {
            child.kill()?;
            child.wait().map(drop)
        })?;
        Ok(())
    }
}

fn measure(options: &Casting) -> anyhow::Result<()> {
    let cpus = Cpus::allowed()?;
    let (here, there) = cpus.places(if cpus.are_two() { Pin::Split } else { Pin::Same });
    if !cpus.are_two() {
        println!("MARK: one CPU only, which all processes share");
    }
    cpus.go_to(here)?;
    let dir = tempfile::TempDir::with_prefix("perf_demo-")?;
    let server = server_app(dir.path()).allow(&client_app(), Trust::snapshot()).bind()?;
    println!("{BURST} messages of {} bytes in a row; all subscribers share the other CPU", TEXT.len() + 25);
    for park in [false, true] {
        let mut samples = MANY.map(|_| Vec::new());
        let mut committed = MANY.map(|_| 0);
        for _ in 0..options.rounds {
            for ((many, samples), committed) in MANY.into_iter().zip(&mut samples).zip(&mut committed) {
                let mut circle = Circle::gather(&server, dir.path(), many, park, there)?;
                let mut builder = circle.publisher.create_msg();
                builder.init_root().set_not_found(TEXT);
                let message = builder.freeze()?;
                circle.settle()?;
                for burst in 0..options.bursts + options.bursts / 10 {
                    let took = circle.burst(&message, park)?;
                    if burst >= options.bursts / 10 {
                        samples.push(took);
                    }
                }
                *committed = large(&mut circle, &server)?;
                circle.end()?;
            }
        }
        let mut one = None;
        let how = if park { "asleep at first" } else { "awake" };
        println!(
            "subscribers, {how:24} {:>10} {:>10} {:>8}  memory for {} MiB",
            "p50 ns",
            "p10 ns",
            "ratio",
            LARGE >> 20
        );
        for ((many, samples), committed) in MANY.into_iter().zip(&mut samples).zip(committed) {
            samples.sort_unstable_by(f64::total_cmp);
            let at = |part: usize| samples.get(samples.len() * part / 100).copied().unwrap_or(f64::NAN);
            let one = *one.get_or_insert(at(50));
            let mib = committed as f64 / f64::from(1 << 20);
            println!("{many:37} {:>10.1} {:>10.1} {:>6.2} x  {mib:.2} MiB", at(50), at(10), at(50) / one);
        }
    }
    Ok(())
}

/// How much more memory there is once a large message was built and published to all.
fn large(circle: &mut Circle, server: &SessionServer) -> anyhow::Result<u64> {
    let before = server.arena().resident()?;
    let mut builder = circle.publisher.create_msg();
    builder.init_root().set_not_found("x".repeat(LARGE).as_str());
    let message = builder.freeze()?;
    circle.publisher.publish(&message)?;
    circle.settle()?;
    let after = server.arena().resident()?;
    Ok(after.saturating_sub(before))
}
