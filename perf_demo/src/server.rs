//! The server half: holds files, and answers one client at a time in whatever way that orders.

use crate::classic::{self, Incoming, Pipe};
use crate::cli::{Serve, Technique, WaitMode};
use crate::control::{Answer, Control, Order, Settled, Way, Welcome};
use crate::floor::{self, Line};
use crate::payload::{Source, Twin};
use crate::shm::{Mount, client_app, server_app};
use crate::stop::Stop;
use crate::store::Store;
use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use perf_demo::cpus::Cpus;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use strait::SessionServer;

/// The sockets beside strait's own, by file name.
pub(crate) const CONTROL: &str = "perf_demo-control";
pub(crate) const STREAM: &str = "perf_demo-stream";
pub(crate) const ECHO: &str = "perf_demo-echo";

/// How long a client may take to come where it said it would.
const COMING: Duration = Duration::from_secs(10);

/// A name in the run directory, short enough for a socket's address whatever the directory is called.
pub(crate) fn reached(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Serves until told to stop.
pub(crate) fn run(options: &Serve, stop: &Stop) -> anyhow::Result<ExitCode> {
    if let Some(parent) = options.child_of {
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM)?;
        if nix::unistd::getppid().as_raw() != parent {
            bail!("the process that started this one is gone");
        }
    }
    let sources = options.files.file.iter().map(|path| Source::file(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let place = Place::take(&options.place.dir())?;
    let store = Store::new(place.sessions.arena().clone(), sources)?;
    let server = Server { cpus: Cpus::allowed()?, place, store, stop: stop.clone() };
    // Whoever started this reads it as the sign that it can come.
    println!("serving at {0}; now: perf_demo client --run-dir {0}", server.place.path.display());
    std::io::stdout().flush()?;
    server.serve(options.child_of.is_some())?;
    Ok(ExitCode::SUCCESS)
}

/// The names this server has taken; gone when this is dropped.
struct Place {
    control: UnixListener,
    stream: UnixListener,
    echo: UnixListener,
    /// Dropped last but for the directory: its lock is what says that the other names are ours.
    sessions: SessionServer,
    dir: File,
    path: PathBuf,
}

impl Place {
    fn take(path: &Path) -> anyhow::Result<Self> {
        let mut app = server_app(path);
        for way in [Way::InPlace, Way::Snapshot] {
            let (client, trust) = client_app(way);
            app = app.allow(&client, trust);
        }
        let sessions = app.bind()?;
        let dir = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let listen = |name| {
            let at = reached(&dir, name);
            // Left by a server that was killed: the lock says that it is dead.
            let _ = std::fs::remove_file(&at);
            UnixListener::bind(&at).with_context(|| format!("cannot listen at {}", path.join(name).display()))
        };
        let (control, stream, echo) = (listen(CONTROL)?, listen(STREAM)?, listen(ECHO)?);
        Ok(Self { control, stream, echo, sessions, dir, path: path.to_owned() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for name in [CONTROL, STREAM, ECHO] {
            let _ = std::fs::remove_file(reached(&self.dir, name));
        }
    }
}

struct Server {
    place: Place,
    store: Store,
    cpus: Cpus,
    stop: Stop,
}

impl Server {
    fn serve(mut self, once: bool) -> anyhow::Result<()> {
        let (wake, woken) = UnixStream::pair()?;
        let _on_stop = self.stop.closes(&wake)?;
        loop {
            if !is_ready(&self.place.control, Some(&woken), None)? || self.stop.signal().is_some() {
                break;
            }
            let (stream, _) = self.place.control.accept()?;
            if let Err(error) = self.serve_one(stream) {
                // One client's trouble is not the next one's.
                eprintln!("perf_demo serve: {error:#}");
            }
            self.store.clear();
            self.cpus.go_to(None)?;
            if once || self.stop.signal().is_some() {
                break;
            }
        }
        let path = self.place.path.clone();
        drop(self);
        // Only if nothing else is in it.
        let _ = std::fs::remove_dir(path);
        Ok(())
    }

    fn serve_one(&mut self, stream: UnixStream) -> anyhow::Result<()> {
        let _on_stop = self.stop.closes(&stream)?;
        let mut control = Control::new(stream);
        let line = Line::create()?;
        let welcome = Welcome { pid: std::process::id(), line_fd: line.fd(), files: self.store.given() };
        control.say(&welcome)?;
        let settled = Settled { wait: WaitMode::Park, cpu: None, patience: 1 };
        let mut desk = Desk {
            server: self,
            control,
            line,
            in_place: None,
            snapshot: None,
            stream: None,
            echo: None,
            incoming: Incoming::default(),
            settled,
        };
        let outcome = desk.serve();
        if desk.server.stop.signal().is_some() {
            return Ok(());
        }
        if let Err(error) = &outcome {
            let _ = desk.control.say(&Answer::Failed(format!("{error:#}")));
        }
        outcome
    }
}

/// What the server has for one client.
struct Desk<'a> {
    server: &'a mut Server,
    control: Control,
    line: Line,
    in_place: Option<Mount>,
    snapshot: Option<Mount>,
    stream: Option<Pipe>,
    echo: Option<Pipe>,
    incoming: Incoming,
    settled: Settled,
}

impl Desk<'_> {
    fn serve(&mut self) -> anyhow::Result<()> {
        while let Some(order) = self.next_order()? {
            match order {
                Order::Block { technique, rounds } => {
                    self.block(technique, rounds).with_context(|| format!("serving {}", technique.name()))?;
                    continue;
                }
                Order::Hold { source, fresh } => self.server.store.hold(&source, fresh)?,
                Order::Open { way } => self.open(way)?,
                Order::Close { way } => self.close(way),
                Order::Settle { settled } => self.settle(settled)?,
            }
            self.control.say(&Answer::Done)?;
        }
        Ok(())
    }

    /// A spinning server looks for blocks in the mailbox, and for all else where a look in vain costs a system call
    /// only now and then.
    fn next_order(&mut self) -> anyhow::Result<Option<Order>> {
        if self.settled.wait == WaitMode::Spin {
            let control = self.control.stream();
            let is_called = || is_ready(control, None, Some(PollTimeout::ZERO)).unwrap_or(true);
            if let Some((technique, rounds)) = self.line.next_order(self.settled.patience, is_called)? {
                return Ok(Some(Order::Block { technique, rounds }));
            }
        }
        self.control.hear()
    }

    fn open(&mut self, way: Way) -> anyhow::Result<()> {
        let Server { place, stop, .. } = &*self.server;
        match way {
            Way::InPlace | Way::Snapshot => {
                let mut mount = Mount::accept(&place.sessions, stop)?;
                mount.settle(self.settled.wait);
                *self.slot(way) = Some(mount);
            }
            Way::Stream => {
                let mut pipe = Pipe::large(come(&place.stream)?, stop)?;
                pipe.settle(self.settled.wait, self.settled.patience);
                self.stream = Some(pipe);
            }
            Way::Echo => self.echo = Some(Pipe::plain(come(&place.echo)?, stop)?),
        }
        Ok(())
    }

    fn close(&mut self, way: Way) {
        match way {
            Way::InPlace | Way::Snapshot => *self.slot(way) = None,
            Way::Stream => self.stream = None,
            Way::Echo => self.echo = None,
        }
    }

    fn slot(&mut self, way: Way) -> &mut Option<Mount> {
        if way == Way::InPlace { &mut self.in_place } else { &mut self.snapshot }
    }

    fn settle(&mut self, settled: Settled) -> anyhow::Result<()> {
        // Nothing but this server's own patience with itself.
        let settled = Settled { patience: settled.patience.max(1), ..settled };
        self.server.cpus.go_to(settled.cpu)?;
        [&mut self.in_place, &mut self.snapshot].into_iter().flatten().for_each(|mount| mount.settle(settled.wait));
        if let Some(pipe) = &mut self.stream {
            pipe.settle(settled.wait, settled.patience);
        }
        self.settled = settled;
        Ok(())
    }

    fn block(&mut self, technique: Technique, rounds: u32) -> anyhow::Result<()> {
        let store = &self.server.store;
        let missing = "rounds were ordered before a way to them was opened";
        match technique {
            Technique::Shm | Technique::Snapshot => {
                let mount = if technique == Technique::Shm { &mut self.in_place } else { &mut self.snapshot };
                let mount = mount.as_mut().context(missing)?;
                (0..rounds).try_for_each(|_| mount.serve(store))
            }
            Technique::Classic => {
                let pipe = self.stream.as_ref().context(missing)?;
                (0..rounds).try_for_each(|_| {
                    let total = self.incoming.receive(pipe)?;
                    let request = self.incoming.decode(total)?;
                    let answer = store.answer(classic::requested(request.get_root()?)?)?;
                    Ok(classic::send(pipe, answer.segments())?)
                })
            }
            Technique::Bare => {
                let pipe = self.stream.as_ref().context(missing)?;
                let mut known = Vec::with_capacity(2);
                for twin in Twin::BOTH {
                    known.push((classic::request(store.name(twin)?).len(), store.answer_for(twin)?));
                }
                (0..rounds).zip((0..2).cycle()).try_for_each(|(_, which): (u32, usize)| {
                    let (request, answer) = &known[which];
                    self.incoming.receive_bare(pipe, *request)?;
                    Ok(classic::send(pipe, answer.segments())?)
                })
            }
            Technique::FloorLine => {
                let (control, stop) = (&self.control, &self.server.stop);
                let is_over = || stop.signal().is_some() || control.is_gone();
                self.line.pong(rounds, self.settled.patience, is_over)
            }
            Technique::FloorSocket => {
                let pipe = self.echo.as_ref().context(missing)?;
                (0..rounds).try_for_each(|_| floor::echo(pipe))
            }
        }
    }
}

/// The client's connection, which is under way.
fn come(listener: &UnixListener) -> anyhow::Result<UnixStream> {
    if !is_ready(listener, None, Some(PollTimeout::try_from(COMING)?))? {
        bail!("the client did not come");
    }
    Ok(listener.accept()?.0)
}

/// Whether there is something at `what`; waits until there is, or `or` says something, or the time is over.
fn is_ready(what: &impl AsFd, or: Option<&UnixStream>, timeout: Option<PollTimeout>) -> anyhow::Result<bool> {
    let mut fds = vec![PollFd::new(what.as_fd(), PollFlags::POLLIN)];
    fds.extend(or.map(|or| PollFd::new(or.as_fd(), PollFlags::POLLIN)));
    loop {
        match poll(&mut fds, timeout.unwrap_or(PollTimeout::NONE)) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(fds[0].any().unwrap_or(true)),
        }
    }
}
