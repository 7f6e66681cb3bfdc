//! The plain run: a server of its own, as a second process in a private directory, and the client here.

use crate::cli::Measure;
use crate::client;
use crate::payload::Source;
use crate::stop::Stop;
use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use tempfile::TempDir;

/// Starts a server, measures, and waits for the server's end.
pub(crate) fn run(options: &Measure, files: &[PathBuf], stop: &Stop) -> anyhow::Result<ExitCode> {
    for path in files {
        // The server would say the same, but nobody could tell its exit from a crash.
        Source::file(path)?;
    }
    beside_server(files, |dir| client::measure(options, dir, stop))
}

/// Starts a server, does some work as its client, and waits for the server's end.
pub(crate) fn beside_server<T>(files: &[PathBuf], work: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let dir = TempDir::with_prefix("perf_demo-").context("cannot make a directory to meet in")?;
    // Dropped before the directory is, and after the client has gone.
    let server = Server::start(dir.path(), files)?;
    match work(dir.path()) {
        Ok(done) => server.finish().map(|()| done),
        Err(error) => {
            // What went wrong is here; the server may still be waiting for a client.
            server.abandon();
            Err(error)
        }
    }
}

/// The second process.
struct Server {
    process: Child,
    out: BufReader<ChildStdout>,
}

/// How long a server may take to end once its client has gone.
const ENDING: u16 = 10_000;

impl Server {
    fn start(dir: &Path, files: &[PathBuf]) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(own);
        command.arg("serve").arg("--run-dir").arg(dir).arg("--child-of").arg(std::process::id().to_string());
        for path in files {
            command.arg("--file").arg(path);
        }
        let mut process =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start the server")?;
        let out = BufReader::new(process.stdout.take().context("the server has no output")?);
        let mut server = Self { process, out };
        let mut ready = String::new();
        if server.out.read_line(&mut ready)? == 0 {
            bail!("the server did not come up: {}", server.process.wait()?);
        }
        Ok(server)
    }

    /// Waits for its end, which its client's going has brought about.
    fn finish(mut self) -> anyhow::Result<()> {
        self.end();
        let status = self.process.wait()?;
        if !status.success() {
            bail!("the server ended with {status}");
        }
        Ok(())
    }

    /// Ends it without waiting for it to see that its client is gone.
    fn abandon(mut self) {
        if let Ok(pid) = i32::try_from(self.process.id()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        self.end();
    }

    /// Its output closes when it ends; a server that does not is ended.
    fn end(&mut self) {
        let mut fds = [PollFd::new(self.out.get_ref().as_fd(), PollFlags::POLLIN)];
        while let Err(nix::errno::Errno::EINTR) = poll(&mut fds, PollTimeout::from(ENDING)) {}
        if !fds[0].any().unwrap_or(false) {
            let _ = self.process.kill();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            self.end();
            let _ = self.process.wait();
        }
    }
}
