//! One-way streams: what a message costs when nobody waits for an answer, beside a bare ring of one-line slots between the
//! same two processes. The rows take turns, because what a machine can do changes from minute to minute.

mod bare;

use crate::cache_capnp::cache;
use crate::cli::Streaming;
use anyhow::{Context, bail, ensure};
use bare::{Page, Ring};
use perf_demo::cpus::Cpus;
use perf_demo::cpus::Pin;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use strait::{Channel, ClientApp, Message, Receiver, Sender, ServerApp, Session, Trust, Wait};

const PATIENCE: Duration = Duration::from_secs(10);
/// As many as a channel has unless told otherwise.
const SLOTS: u32 = 256;
/// Messages handed over at a time where they are sent in batches.
const BATCH: usize = 64;
/// Text that makes a message of eight words.
const TEXT: &str = "forty bytes of text, and no more of it.";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Bare,
    Batched,
    BatchedInside,
    BatchedLent,
    Singly,
    Built,
    Inside,
    Threads(u32),
}

const ROWS: [Row; 10] = [
    Row::Bare,
    Row::BatchedInside,
    Row::Batched,
    Row::BatchedLent,
    Row::Inside,
    Row::Singly,
    Row::Built,
    Row::Threads(1),
    Row::Threads(2),
    Row::Threads(4),
];

impl Row {
    fn name(self) -> String {
        match self {
            Self::Bare => "bare ring, one line a message".into(),
            Self::Batched => format!("prebuilt, 64 bytes, in batches of {BATCH}"),
            Self::BatchedInside => format!("prebuilt, 24 bytes in one slot, in batches of {BATCH}"),
            Self::BatchedLent => format!("prebuilt, 1 KiB on loan, in batches of {BATCH}"),
            Self::Singly => "prebuilt, 64 bytes, one by one".into(),
            Self::Built => "64 bytes built, sent, received, decoded each time".into(),
            Self::Inside => "prebuilt, 24 bytes in one slot, one by one".into(),
            Self::Threads(1) => "prebuilt, split channel, 1 sender thread".into(),
            Self::Threads(count) => format!("prebuilt, split channel, {count} sender threads"),
        }
    }

    fn code(self) -> u64 {
        ROWS.iter().position(|row| *row == self).unwrap_or_default() as u64
    }
}

pub(crate) fn run(options: &Streaming) -> anyhow::Result<ExitCode> {
    match &options.serve {
        Some(dir) => receive(options, dir)?,
        None => measure(options)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn server_app(dir: &Path) -> ServerApp {
    ServerApp::new("stream").run_dir(dir).slots(SLOTS).channel::<cache::Owned>("one").channel::<cache::Owned>("many")
}

fn client_app() -> ClientApp {
    // SAFETY: the other half is this very program, which writes to no message after sending it.
    ClientApp::new("perf_demo").slots(SLOTS).wait(Wait::Spin).trust(unsafe { Trust::in_place() })
}

// The other process, which receives.

fn receive(options: &Streaming, dir: &Path) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let page = Page::find(options.page.context("no page")?)?;
    // SAFETY: as in `client_app`.
    let server = server_app(dir).wait(Wait::Spin).allow(&client_app(), unsafe { Trust::in_place() }).bind()?;
    println!("ready");
    std::io::stdout().flush()?;
    Cpus::allowed()?.go_to(options.cpu)?;
    let session = server.accept_timeout(PATIENCE)?;
    let mut channel: Channel<cache::Owned> = session.accept_channel_named("one", PATIENCE)?;
    let mut many: Channel<cache::Owned> = session.accept_channel_named("many", PATIENCE)?;
    let mut ring = Ring::consumer(&page);
    while let Some((code, count)) = page.next_order() {
        let row = *ROWS.get(usize::try_from(code)?).context("no such row")?;
        match row {
            Row::Bare => {
                (0..count).for_each(|_| {
                    black_box(ring.pop());
                });
            }
            Row::Batched | Row::BatchedInside | Row::BatchedLent => take_batches(&mut channel, count)?,
            Row::Singly | Row::Inside => (0..count).try_for_each(|_| channel.recv().map(drop))?,
            Row::Built => (0..count).try_for_each(|_| decode(&mut channel))?,
            Row::Threads(_) => (0..count).try_for_each(|_| many.recv().map(drop))?,
        }
        page.say_done();
    }
    Ok(())
}

fn take_batches(channel: &mut Channel<cache::Owned>, count: u64) -> anyhow::Result<()> {
    let mut left = count;
    while left > 0 {
        left = left.saturating_sub(channel.recv_each(PATIENCE, |message| {
            black_box(message);
        })?);
    }
    Ok(())
}

fn decode(channel: &mut Channel<cache::Owned>) -> anyhow::Result<()> {
    let message = channel.recv()?;
    match message.get()?.which()? {
        cache::NotFound(text) => ensure!(text?.as_bytes() == TEXT.as_bytes(), "another text"),
        _ => bail!("another message"),
    }
    Ok(())
}

// This process, which sends.

fn measure(options: &Streaming) -> anyhow::Result<()> {
    let cpus = Cpus::allowed()?;
    let (here, there) = cpus.places(if cpus.are_two() { Pin::Split } else { Pin::Same });
    if !cpus.are_two() {
        println!("MARK: one CPU only, which both processes share: these figures are of its scheduler");
    }
    let dir = tempfile::TempDir::with_prefix("perf_demo-")?;
    let page = Page::create()?;
    let mut other = start(dir.path(), &page, there)?;
    let measured = cpus.go_to(here).and_then(|()| send(options, dir.path(), &page));
    let _ = other.kill();
    other.wait()?;
    measured
}

fn start(dir: &Path, page: &Page, cpu: Option<usize>) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("stream").arg("--serve").arg(dir).arg("--page").arg(page.fd().to_string());
    if let Some(cpu) = cpu {
        command.arg("--cpu").arg(cpu.to_string());
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut ready = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut ready)?;
    ensure!(ready == "ready\n", "the receiver did not come up: {}", child.wait()?);
    Ok(child)
}

/// Everything there is to send through.
struct Outlets<'a> {
    ring: Ring<'a>,
    channel: Channel<cache::Owned>,
    many: (Sender<cache::Owned>, Receiver<cache::Owned>),
    lent: Message<cache::Owned>,
    long: Message<cache::Owned>,
    inside: Message<cache::Owned>,
}

fn send(options: &Streaming, dir: &Path, page: &Page) -> anyhow::Result<()> {
    let session: Session = client_app().connect(&server_app(dir))?;
    let channel: Channel<cache::Owned> = session.open_channel("one", PATIENCE)?;
    let many: Channel<cache::Owned> = session.open_channel("many", PATIENCE)?;
    let inside = channel.create_msg().freeze()?;
    let mut outlets = Outlets {
        ring: Ring::producer(page),
        lent: build(&channel, TEXT)?,
        long: build(&channel, &TEXT.repeat(26))?,
        inside,
        channel,
        many: many.split(),
    };
    let mut times = ROWS.map(|_| Vec::new());
    for turn in 0..=options.turns {
        let wanted = |row: Row| row == Row::Bare || row.name().contains(&options.only);
        for (row, times) in ROWS.into_iter().zip(&mut times).filter(|(row, _)| wanted(*row)) {
            let start = Instant::now();
            page.order(row.code(), options.messages);
            outlets.send(row, options.messages)?;
            page.wait_done(PATIENCE)?;
            // The first of each is not counted.
            if turn > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e9 / options.messages as f64);
            }
        }
    }
    report(&mut times);
    Ok(())
}

fn build(channel: &Channel<cache::Owned>, text: &str) -> anyhow::Result<Message<cache::Owned>> {
    // In one segment, whatever its size.
    let mut builder = channel.create_msg_with_capacity(text.len() + 64);
    builder.init_root().set_not_found(text);
    Ok(builder.freeze()?)
}

impl Outlets<'_> {
    fn send(&mut self, row: Row, count: u64) -> anyhow::Result<()> {
        match row {
            Row::Bare => (0..count).for_each(|number| self.ring.push([number; 7])),
            Row::Batched => send_batches(&mut self.channel, &self.lent, count)?,
            Row::BatchedInside => send_batches(&mut self.channel, &self.inside, count)?,
            Row::BatchedLent => send_batches(&mut self.channel, &self.long, count)?,
            Row::Singly => (0..count).try_for_each(|_| self.channel.send(&self.lent).map(drop))?,
            Row::Inside => (0..count).try_for_each(|_| self.channel.send(&self.inside).map(drop))?,
            Row::Built => {
                for _ in 0..count {
                    let message = build(&self.channel, TEXT)?;
                    self.channel.send(&message)?;
                }
            }
            Row::Threads(threads) => self.send_by(u64::from(threads), count)?,
        }
        Ok(())
    }

    /// All on this side's CPU.
    fn send_by(&self, threads: u64, count: u64) -> anyhow::Result<()> {
        let parts = (0..threads).map(|index| count * (index + 1) / threads - count * index / threads);
        std::thread::scope(|scope| {
            let senders: Vec<_> = parts
                .map(|part| {
                    let (sender, message) = (self.many.0.clone(), self.lent.clone());
                    scope.spawn(move || (0..part).try_for_each(|_| sender.send(&message).map(drop)))
                })
                .collect();
            for sender in senders {
                sender.join().map_err(|_| anyhow::anyhow!("a sender died"))??;
            }
            Ok(())
        })
    }
}

fn send_batches(
    channel: &mut Channel<cache::Owned>,
    message: &Message<cache::Owned>,
    count: u64,
) -> anyhow::Result<()> {
    let mut left = count;
    while left > 0 {
        let batch = usize::try_from(left)?.min(BATCH);
        left -= channel.send_all(std::iter::repeat_n(message, batch))?;
    }
    Ok(())
}

fn report(times: &mut [Vec<f64>]) {
    let mut bare = None;
    println!("{:50} {:>10} {:>10} {:>12} {:>8}", "one way, ns a message", "p50", "best", "M messages/s", "rate");
    for (row, times) in ROWS.into_iter().zip(times).filter(|(_, times)| !times.is_empty()) {
        times.sort_unstable_by(f64::total_cmp);
        let at = |index: usize| times.get(index).copied().unwrap_or(f64::NAN);
        let (p50, best) = (at(times.len() / 2), at(0));
        let bare = *bare.get_or_insert(p50);
        println!("{:50} {p50:>10.1} {best:>10.1} {:>12.1} {:>6.2} x", row.name(), 1e3 / p50, bare / p50);
    }
}
