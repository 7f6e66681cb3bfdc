//! The other process of a measurement: this same program, which lives as long as its parent.

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// How long the other process may take to end, in milliseconds.
const ENDING: u16 = 2_000;

/// What it says when it can be asked.
const READY: &str = "ready";

/// The other process, from outside. Killed when dropped.
pub struct Other {
    process: Child,
    /// Until it is to end.
    input: Option<ChildStdin>,
    out: BufReader<ChildStdout>,
}

impl Other {
    /// Starts this program with `args`, and waits until it says that it is ready.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        let mut process = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = process.stdin.take();
        let out = BufReader::new(process.stdout.take().context("no pipe")?);
        let mut other = Self { process, input, out };
        match other.hear()? {
            line if line == READY => Ok(other),
            line => bail!("the other process did not come up: {line}"),
        }
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Tells it something, in one line.
    ///
    /// # Errors
    /// If it is gone.
    pub fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("it was told to end")?;
        input.write_all(format!("{line}\n").as_bytes()).context("the other process is gone")
    }

    /// Closes its input and waits for its end, a moment at most.
    pub fn finish(mut self) {
        self.input = None;
        let mut fds = [PollFd::new(self.out.get_ref().as_fd(), PollFlags::POLLIN)];
        // Its output closes when it ends, and it has no more to say.
        let _ = poll(&mut fds, PollTimeout::from(ENDING));
    }

    /// Waits for a line of its.
    ///
    /// # Errors
    /// If it is gone.
    pub fn hear(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.out.read_line(&mut line)? == 0 {
            bail!("the other process is gone: {}", self.process.wait()?);
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// In the other process: from here on it dies with its parent.
///
/// # Errors
/// If the parent is gone already.
pub fn follow_parent() -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw() == 1 {
        bail!("the process that started this one is gone");
    }
    Ok(())
}

/// In the other process: says that it can be asked.
///
/// # Errors
/// If nobody hears it.
pub fn ready() -> anyhow::Result<()> {
    say(READY)
}

/// In the other process: says a line to its parent.
///
/// # Errors
/// If nobody hears it.
pub fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
