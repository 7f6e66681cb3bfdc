//! A process with any number of sessions and channels, and how to come to it: what `cost` and `scale` measure.
//!
//! Two server apps, so that a session is served as it is meant to be: by threads that wait for one channel each, or by
//! one loop that waits for all of them. What becomes of a session of the first kind, its client's name says.

use crate::cache_capnp::cache;
use crate::cli::{self, WaitMode};
use crate::floor::Line;
use crate::stop::{OnStop, Stop};
use anyhow::{Context, bail, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use perf_demo::cpus::Cpus;
use perf_demo::gauge::Gauge;
use perf_demo::other::{self, Other};
use std::collections::HashMap;
use std::io::BufRead;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use strait::event::{Event, EventLoop};
use strait::{Channel, ClientApp, Message, ServerApp, Session, SessionServer, Trust, Wait};
use tempfile::TempDir;

/// Longer than anything takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of a session in the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Lot {
    /// Kept; nobody accepts its channels.
    Kept,
    /// A thread accepts its channels, and keeps them.
    Stocked,
    /// Each of its channels has a thread that answers every request.
    Answered,
    /// Each of its channels has a thread that sends back, unasked, a message for every message.
    Echoed,
    /// One loop answers, with all other sessions of this kind.
    Looped,
}

impl Lot {
    const THREADED: [Self; 4] = [Self::Kept, Self::Stocked, Self::Answered, Self::Echoed];

    fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Stocked => "stocked",
            Self::Answered => "answered",
            Self::Echoed => "echoed",
            Self::Looped => "looped",
        }
    }

    fn server(self, dir: &Path) -> ServerApp {
        let name = if self == Self::Looped { "loop" } else { "threads" };
        let app = ServerApp::new(name).run_dir(dir).channels_max(CHANNELS);
        WAITS.iter().fold(app, |app, wait| app.channel::<cache::Owned>(wait.name()))
    }

    fn client(self) -> ClientApp {
        ClientApp::new(self.name()).trust(believed()).channels_max(CHANNELS).timeout(PATIENCE)
    }
}

/// More than anybody opens.
const CHANNELS: usize = 8192;

/// Channels are called as their sides wait.
const WAITS: [WaitMode; 3] = [WaitMode::Spin, WaitMode::Adaptive, WaitMode::Park];

pub(crate) fn wait(mode: WaitMode) -> Wait {
    match mode {
        WaitMode::Spin => Wait::Spin,
        WaitMode::Adaptive => Wait::Adaptive,
        WaitMode::Park => Wait::Park,
    }
}

fn believed() -> Trust {
    // SAFETY: the other half is this very program, which writes to no message after sending it.
    unsafe { Trust::in_place() }
}

/// As many descriptors as this user may have.
pub(crate) fn allow_descriptors() -> anyhow::Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(usize::try_from(most)?)
}

// From outside.

/// The host, as its guest sees it.
pub(crate) struct Host {
    other: Other,
    line: Line,
    apps: HashMap<&'static str, ClientApp>,
    /// Dropped after the host is gone.
    dir: TempDir,
    _on_stop: OnStop,
}

impl Host {
    /// Starts one; on that CPU, if any. Being told to stop ends this process at once from then on, and the host with it.
    pub(crate) fn start(cpu: Option<usize>, stop: &Stop) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("perf_demo-").context("cannot make a directory to meet in")?;
        let (path, told) = (dir.path().to_owned(), stop.clone());
        let on_stop = stop.on_stop(move || {
            let _ = std::fs::remove_dir_all(&path);
            std::process::exit(128 + i32::from(told.signal().unwrap_or_default()));
        });
        let mut args = vec!["host".to_owned(), "--run-dir".to_owned(), dir.path().display().to_string()];
        args.extend(cpu.map(|cpu| format!("--cpu={cpu}")));
        let mut other = Other::start(args)?;
        let line_fd = other.hear()?.parse().context("no line")?;
        let line = Line::find(other.pid(), line_fd)?;
        // Each app's arena lives as long as the app does.
        let lots = Lot::THREADED.into_iter().chain([Lot::Looped]);
        let apps = lots.map(|lot| (lot.name(), lot.client())).collect();
        Ok(Self { other, line, apps, dir, _on_stop: on_stop })
    }

    pub(crate) fn gauge(&self) -> anyhow::Result<Gauge> {
        Gauge::of(self.other.pid())
    }

    pub(crate) fn session(&self, lot: Lot) -> anyhow::Result<Session> {
        let app = self.apps.get(lot.name()).context("no such app")?;
        Ok(app.connect(&lot.server(self.dir.path()))?)
    }

    /// A session of its own, and a channel in it.
    pub(crate) fn channel(&self, lot: Lot, mode: WaitMode) -> anyhow::Result<(Session, Channel<cache::Owned>)> {
        let session = self.session(lot)?;
        let channel = open(&session, mode)?;
        Ok((session, channel))
    }

    /// Measures the floor: so many samples of `floor-line`, if the two run at once.
    pub(crate) fn floor(&mut self, samples: u32, mut sample: impl FnMut(Duration)) -> anyhow::Result<()> {
        self.other.tell(&format!("pong {samples}"))?;
        for _ in 0..samples {
            sample(self.line.ping(LOOKS, || false)?);
        }
        Ok(())
    }
}

/// Looks in vain before others may run.
const LOOKS: u32 = 1 << 12;

/// Opens a channel whose sides wait like this.
pub(crate) fn open(session: &Session, mode: WaitMode) -> anyhow::Result<Channel<cache::Owned>> {
    let mut channel = session.open_channel(mode.name(), PATIENCE)?;
    channel.set_wait(wait(mode));
    Ok(channel)
}

/// A request, built, sent, answered and read.
#[inline]
pub(crate) fn ask(channel: &mut Channel<cache::Owned>) -> anyhow::Result<()> {
    let request = question(channel)?;
    let answer = channel.request(&request, PATIENCE)?;
    read(answer.get()?)
}

pub(crate) fn question(channel: &Channel<cache::Owned>) -> anyhow::Result<Message<cache::Owned>> {
    let mut request = channel.create_msg_with_capacity(64);
    request.init_root().init_get_cache_req().set_file_name(QUESTION);
    Ok(request.freeze()?)
}

#[inline]
pub(crate) fn read(answer: cache::Reader<'_>) -> anyhow::Result<()> {
    match answer.which()? {
        cache::NotFound(text) => {
            ensure!(text?.as_bytes() == ANSWER.as_bytes(), "another answer than the host gives");
            Ok(())
        }
        _ => bail!("another answer than the host gives"),
    }
}

const QUESTION: &str = "what is there?";
/// 64 bytes.
const ANSWER: &str = "what was asked for is not here, nor has it been for many a year.";

// The host itself.

/// `perf_demo host`: until its parent ends.
pub(crate) fn run(options: &cli::Host) -> anyhow::Result<ExitCode> {
    other::follow_parent()?;
    allow_descriptors()?;
    // Before there are other threads, which inherit it.
    if options.cpu.is_some() {
        Cpus::allowed()?.go_to(options.cpu)?;
    }
    let threaded =
        Lot::THREADED.iter().fold(Lot::Kept.server(&options.run_dir), |app, lot| app.allow(&lot.client(), believed()));
    let threaded = threaded.bind()?;
    let looped = Lot::Looped.server(&options.run_dir).allow(&Lot::Looped.client(), believed()).bind()?;
    spawn("accept", move || accept(&threaded))?;
    spawn("loop", move || turn(looped))?;
    let mut line = Line::create()?;
    other::ready()?;
    other::say(&line.fd().to_string())?;
    for order in std::io::stdin().lock().lines() {
        let order = order?;
        let samples = order.strip_prefix("pong ").with_context(|| format!("what is {order}"))?.parse()?;
        line.pong(samples, LOOKS, || false)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn spawn(name: &str, work: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    let work = move || {
        if let Err(error) = work() {
            eprintln!("perf_demo host: {error:#}");
        }
    };
    std::thread::Builder::new().name(name.into()).stack_size(256 << 10).spawn(work)?;
    Ok(())
}

fn accept(server: &SessionServer) -> anyhow::Result<()> {
    let mut kept = Vec::new();
    let answer = answer(server)?;
    loop {
        let session = server.accept()?;
        let lot = Lot::THREADED.into_iter().find(|lot| lot.name() == session.peer_name()).context("a stranger")?;
        if lot == Lot::Kept {
            // Gone with their clients; seen to in time, not each time.
            if kept.len() == kept.capacity() {
                kept.retain(|session: &Session| session.end().is_none());
            }
            kept.push(session);
        } else {
            let answer = answer.clone();
            spawn("session", move || serve(&session, lot, &answer))?;
        }
    }
}

fn answer(server: &SessionServer) -> anyhow::Result<Message<cache::Owned>> {
    let mut answer = server.create_msg::<cache::Owned>();
    answer.init_root().set_not_found(ANSWER);
    Ok(answer.freeze()?)
}

/// Accepts the channels of one session until it ends.
fn serve(session: &Session, lot: Lot, answer: &Message<cache::Owned>) -> anyhow::Result<()> {
    let mut stock = Vec::new();
    while let Ok(mut channel) = session.accept_channel::<cache::Owned>() {
        let mode = WAITS.into_iter().find(|wait| wait.name() == channel.name()).context("no such channel")?;
        channel.set_wait(wait(mode));
        if lot == Lot::Stocked {
            stock.push(channel);
            continue;
        }
        let answer = answer.clone();
        spawn("channel", move || {
            while let Ok(request) = channel.recv() {
                // Where it was asked is where it goes.
                let sent = if lot == Lot::Answered { channel.reply(&request, &answer) } else { channel.send(&answer) };
                if sent.is_err() {
                    break;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Serves everybody from one loop.
fn turn(server: SessionServer) -> anyhow::Result<()> {
    let answer = answer(&server)?;
    let mut events = EventLoop::new()?;
    events.add_server(&Arc::new(server))?;
    let (mut sessions, mut channels) = (HashMap::new(), HashMap::new());
    let take_in = |events: &mut EventLoop, channels: &mut HashMap<_, _>, session: &Session| -> anyhow::Result<()> {
        while let Ok(channel) = session.accept_channel_timeout::<cache::Owned>(Duration::ZERO) {
            channels.insert(events.add_channel(&channel)?, channel);
        }
        Ok(())
    };
    while let Some(event) = events.wait(None) {
        match event {
            Event::Connection { token, session, .. } => {
                take_in(&mut events, &mut channels, &session)?;
                sessions.insert(token, session);
            }
            Event::Channels { session } => {
                let Some(session) = sessions.get(&session) else { continue };
                take_in(&mut events, &mut channels, session)?;
            }
            Event::Message { channel, .. } => {
                let Some(channel) = channels.get_mut(&channel) else { continue };
                if let Some(request) = channel.try_recv()? {
                    channel.try_reply(&request, &answer)?;
                }
            }
            Event::Closed { channel, .. } => drop(channels.remove(&channel)),
            Event::Disconnection { session, .. } => drop(sessions.remove(&session)),
            _ => {}
        }
    }
    Ok(())
}
