//! The other process of a case: this very program in a role, spoken to by lines.

use super::AS_ROLE;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

/// A process in a role. Killed on drop, so that a failing case leaves none.
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    pub fn start(role: &str, args: &[&str]) -> Self {
        Self::start_as(role, args, None)
    }

    /// As another user and group, if given.
    pub fn start_as(role: &str, args: &[&str], ids: Option<(u32, u32)>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        command.arg(AS_ROLE).arg(role).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some((uid, gid)) = ids {
            command.uid(uid).gid(gid);
        }
        Self::of(command)
    }

    /// Any program that speaks in lines.
    pub fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("own program");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it says.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("pipe");
        assert!(line.ends_with('\n'), "the peer is gone: {:?}", self.child.wait());
        line.trim_end().to_owned()
    }

    #[track_caller]
    pub fn must_say(&mut self, expected: &str) {
        assert_eq!(self.line(), expected);
    }

    pub fn tell(&mut self, line: &str) {
        if writeln!(self.input.as_mut().expect("not hung up"), "{line}").is_err() {
            panic!("the peer is gone: {:?}", self.child.wait());
        }
    }

    /// Waits for its end, which must be a good one: its own census is part of that.
    pub fn finish(mut self) {
        self.input = None;
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "the peer failed: {status}");
    }

    /// Waits for its end, whatever that is.
    pub fn end(mut self) -> ExitStatus {
        self.child.wait().expect("wait")
    }

    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.wait_killed();
    }

    /// Waits until somebody has killed it.
    pub fn wait_killed(mut self) {
        assert_eq!(self.child.wait().expect("wait").signal(), Some(9), "it was dead before");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a role: says a line to the case.
pub fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// In a role: the case's next line; empty once it has hung up.
pub fn hear() -> String {
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    line.trim_end().to_owned()
}
