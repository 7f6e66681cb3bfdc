//! The client half: one connection to a server, and how rounds of each technique are run over it. What is measured when
//! is [`crate::group`]'s business.

use crate::classic::{self, Incoming, Known, Pipe};
use crate::cli::{self, Measure, Technique, WaitMode};
use crate::control::{Control, Order, Settled, Way, Welcome};
use crate::floor::{self, Line};
use crate::payload::{Expected, Source};
use crate::report::Tally;
use crate::server::{CONTROL, ECHO, STREAM, reached};
use crate::shm::Mount;
use crate::stop::{OnStop, Stop};
use crate::{group, report};
use anyhow::{Context, bail};
use nix::errno::Errno;
use perf_demo::cpus::{self, Cpus};
use perf_demo::gauge::Gauge;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// `perf_demo client`.
pub(crate) fn run(options: &cli::Client, stop: &Stop) -> anyhow::Result<ExitCode> {
    measure(&options.measure, &options.place.dir(), stop)
}

/// Measures what was asked for against the server at `dir`, and reports.
pub(crate) fn measure(options: &Measure, dir: &Path, stop: &Stop) -> anyhow::Result<ExitCode> {
    let mut report = report::Report::new(options)?;
    let mut client = Client::connect(dir, stop)?;
    if let Err(error) = group::run_all(options, &mut client, &mut report) {
        return Err(client.explain(error));
    }
    report.finish()
}

/// The two files that rounds alternate between.
pub(crate) type Files = [Expected; 2];

/// A connection to a server, with all the ways to it.
pub(crate) struct Client {
    dir: File,
    path: PathBuf,
    control: Control,
    line: Line,
    in_place: Option<Mount>,
    snapshot: Option<Mount>,
    stream: Option<Pipe>,
    echo: Option<Pipe>,
    incoming: Incoming,
    known: Vec<Known>,
    settled: Settled,
    given: Vec<Source>,
    server: u32,
    cpus: Cpus,
    stop: Stop,
    echoes: u64,
    _on_stop: OnStop,
}

impl Client {
    pub(crate) fn connect(path: &Path, stop: &Stop) -> anyhow::Result<Self> {
        let dir = File::open(path).with_context(|| format!("no server at {}", path.display()))?;
        let stream = come(&dir, CONTROL).with_context(|| format!("no server at {}", path.display()))?;
        let on_stop = stop.closes(&stream)?;
        let mut control = Control::new(stream);
        let welcome: Welcome = control.hear()?.context("the server is gone")?;
        let line = Line::find(welcome.pid, welcome.line_fd)?;
        Ok(Self {
            line,
            given: welcome.files,
            server: welcome.pid,
            dir,
            path: path.to_owned(),
            control,
            in_place: None,
            snapshot: None,
            stream: None,
            echo: None,
            incoming: Incoming::default(),
            known: Vec::new(),
            settled: Settled { wait: WaitMode::Park, cpu: None, patience: 1 },
            cpus: Cpus::allowed()?,
            stop: stop.clone(),
            echoes: 0,
            _on_stop: on_stop,
        })
    }

    /// The files the server was given.
    pub(crate) fn given(&self) -> &[Source] {
        &self.given
    }

    /// Of this process and the server's.
    pub(crate) fn gauges(&self) -> anyhow::Result<[Gauge; 2]> {
        Ok([Gauge::own()?, Gauge::of(self.server)?])
    }

    pub(crate) fn cpus(&self) -> &Cpus {
        &self.cpus
    }

    pub(crate) fn hold(&mut self, source: &Source, fresh: bool) -> anyhow::Result<()> {
        self.known.clear();
        self.tell(Order::Hold { source: source.clone(), fresh })
    }

    /// From here on both sides wait and run like this.
    pub(crate) fn settle(&mut self, settled: Settled, own_cpu: Option<usize>) -> anyhow::Result<()> {
        self.cpus.go_to(own_cpu)?;
        self.tell(Order::Settle { settled })?;
        self.settled = settled;
        [&mut self.in_place, &mut self.snapshot].into_iter().flatten().for_each(|mount| mount.settle(settled.wait));
        if let Some(pipe) = &mut self.stream {
            pipe.settle(settled.wait, settled.patience);
        }
        Ok(())
    }

    /// Frees what only this technique needs, if it is much: a buffer, or a view of the server's memory.
    pub(crate) fn release(&mut self, technique: Technique) -> anyhow::Result<()> {
        let way = match technique {
            Technique::Shm => Way::InPlace,
            Technique::Snapshot => Way::Snapshot,
            Technique::Classic | Technique::Bare => {
                self.incoming.release();
                return Ok(());
            }
            Technique::FloorLine | Technique::FloorSocket => return Ok(()),
        };
        *self.slot(way) = None;
        self.tell(Order::Close { way })
    }

    /// Fetches both files and looks at every byte; whether all were right. Leaves everything warm.
    pub(crate) fn verify(&mut self, technique: Technique, files: &Files) -> anyhow::Result<bool> {
        self.prepare(technique)?;
        if technique == Technique::Bare && self.known.is_empty() {
            self.order(Technique::Classic, 2)?;
            for file in files {
                let total = classic::exchange(stream(&self.stream)?, &mut self.incoming, file)?;
                self.known.push(Known::learn(&self.incoming, total, file)?);
            }
        }
        if technique.is_floor() {
            return Ok(true);
        }
        self.order(technique, 2)?;
        let mut right = true;
        for (index, file) in files.iter().enumerate() {
            right &= match technique {
                Technique::Shm | Technique::Snapshot => {
                    let answer = self.mount(technique)?.exchange(file)?;
                    file.all_matches(answer.get()?)?
                }
                Technique::Classic => {
                    let total = classic::exchange(stream(&self.stream)?, &mut self.incoming, file)?;
                    file.all_matches(self.incoming.decode(total)?.get_root()?)?
                }
                _ => {
                    let known = self.known.get(index).context("not learnt")?;
                    classic::exchange_bare(stream(&self.stream)?, &mut self.incoming, known)?;
                    file.all_matches(self.incoming.decode(known.total())?.get_root()?)?
                }
            };
        }
        Ok(right)
    }

    /// Runs a block of rounds, the first `warm` of them uncounted.
    pub(crate) fn block(
        &mut self,
        technique: Technique,
        files: &Files,
        (warm, rounds): (u32, u32),
        tally: &mut Tally,
    ) -> anyhow::Result<()> {
        self.prepare(technique)?;
        self.order(technique, warm + rounds)?;
        let files = files.iter().zip(0..).cycle();
        match technique {
            Technique::Shm | Technique::Snapshot => {
                let mount = self.mount(technique)?;
                let mut before = mount.sleeps();
                let mut files = files;
                for round in 0..warm + rounds {
                    if round == warm {
                        before = mount.sleeps();
                    }
                    let (file, _) = files.next().context("two files")?;
                    tally.round(round >= warm, mount.ask(file)?);
                }
                let after = mount.sleeps();
                tally.slept(after.0 - before.0, after.1 - before.1);
                Ok(())
            }
            Technique::Classic => {
                let (pipe, incoming) = (stream(&self.stream)?, &mut self.incoming);
                counted(tally, warm, files.take((warm + rounds) as usize), |(file, _)| {
                    classic::ask(pipe, incoming, file)
                })
            }
            Technique::Bare => {
                let (pipe, incoming, known) = (stream(&self.stream)?, &mut self.incoming, &self.known);
                counted(tally, warm, files.take((warm + rounds) as usize), |(file, index): (_, usize)| {
                    classic::ask_bare(pipe, incoming, file, known.get(index).context("not learnt")?)
                })
            }
            Technique::FloorSocket => {
                let pipe = self.echo.as_ref().context("no echo")?;
                let first = self.echoes;
                self.echoes += u64::from(warm + rounds);
                counted(tally, warm, first..self.echoes, |number| floor::call(pipe, number))
            }
            Technique::FloorLine => {
                let (control, stop) = (&self.control, &self.stop);
                let is_over = || stop.signal().is_some() || control.is_gone();
                for round in 0..warm + rounds {
                    let took = self.line.ping(self.settled.patience, is_over)?;
                    tally.round(round >= warm, (took, true));
                }
                Ok(())
            }
        }
    }

    /// Tells why, as far as the server or the user knows more than what was noticed here.
    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        match self.control.last_words() {
            Some(why) if self.stop.signal().is_none() && !error.is::<cli::Usage>() => error.context(why),
            _ => error,
        }
    }

    fn prepare(&mut self, technique: Technique) -> anyhow::Result<()> {
        if let Some(signal) = self.stop.signal() {
            bail!("stopped by signal {signal}");
        }
        match technique {
            Technique::Shm => self.open_session(Way::InPlace),
            Technique::Snapshot => self.open_session(Way::Snapshot),
            Technique::Classic | Technique::Bare if self.stream.is_none() => {
                let mut pipe = Pipe::large(self.open_socket(Way::Stream, STREAM)?, &self.stop)?;
                pipe.settle(self.settled.wait, self.settled.patience);
                self.stream = Some(pipe);
                Ok(())
            }
            Technique::FloorSocket if self.echo.is_none() => {
                self.echo = Some(Pipe::plain(self.open_socket(Way::Echo, ECHO)?, &self.stop)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn open_session(&mut self, way: Way) -> anyhow::Result<()> {
        if self.slot(way).is_none() {
            self.control.say(&Order::Open { way })?;
            let mut mount = Mount::connect(way, &self.path, &self.stop)?;
            mount.settle(self.settled.wait);
            *self.slot(way) = Some(mount);
            self.control.done()?;
        }
        Ok(())
    }

    fn open_socket(&mut self, way: Way, name: &str) -> anyhow::Result<UnixStream> {
        self.control.say(&Order::Open { way })?;
        let stream = come(&self.dir, name)?;
        self.control.done()?;
        Ok(stream)
    }

    fn tell(&mut self, order: Order) -> anyhow::Result<()> {
        self.control.say(&order)?;
        self.control.done()
    }

    /// Orders a block. Nobody answers: the rounds do.
    fn order(&mut self, technique: Technique, rounds: u32) -> anyhow::Result<()> {
        if self.settled.wait == WaitMode::Spin {
            self.line.order(technique, rounds);
            Ok(())
        } else {
            self.control.say(&Order::Block { technique, rounds })
        }
    }

    fn mount(&mut self, technique: Technique) -> anyhow::Result<&mut Mount> {
        let way = if technique == Technique::Shm { Way::InPlace } else { Way::Snapshot };
        self.slot(way).as_mut().context("no session")
    }

    fn slot(&mut self, way: Way) -> &mut Option<Mount> {
        if way == Way::InPlace { &mut self.in_place } else { &mut self.snapshot }
    }
}

fn stream(pipe: &Option<Pipe>) -> anyhow::Result<&Pipe> {
    pipe.as_ref().context("no stream")
}

/// Runs rounds over sockets, whose sleeps the kernel counts.
fn counted<T>(
    tally: &mut Tally,
    warm: u32,
    rounds: impl Iterator<Item = T>,
    mut round: impl FnMut(T) -> anyhow::Result<(Duration, bool)>,
) -> anyhow::Result<()> {
    let mut before = cpus::sleeps();
    let mut timed = 0;
    for (number, what) in (0..).zip(rounds) {
        if number == warm {
            before = cpus::sleeps();
        }
        tally.round(number >= warm, round(what)?);
        timed += u64::from(number >= warm);
    }
    tally.slept(cpus::sleeps() - before, timed);
    Ok(())
}

/// Connects to one of the server's sockets.
fn come(dir: &File, name: &str) -> anyhow::Result<UnixStream> {
    match UnixStream::connect(reached(dir, name)) {
        Err(error) if error.raw_os_error() == Some(Errno::ECONNREFUSED as i32) => bail!("nobody listens"),
        other => Ok(other?),
    }
}
