//! Where victims come from: a process with one thread that forks them, since starting the program anew for each would take
//! longer than all they live to do.

use crate::common::peer::{Peer, say};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::io::BufRead;

/// The role: a victim for each line, whose arguments are in it. Says its number, and how it ended.
pub fn run(args: &[String]) {
    let victim = match args[0].as_str() {
        "client" => crate::victim::client,
        "server" => crate::victim::serve,
        other => panic!("no victim {other}"),
    };
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        // SAFETY: this process has one thread.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                let args: Vec<_> = line.split('\t').map(str::to_owned).collect();
                // Its end is to be its own, not this loop's.
                let _ = std::panic::catch_unwind(|| victim(&args));
                std::process::abort();
            }
            ForkResult::Parent { child } => {
                say(child);
                match waitpid(child, None).expect("wait") {
                    WaitStatus::Signaled(_, Signal::SIGKILL, _) => say("killed"),
                    other => say(format!("{other:?}")),
                }
            }
        }
    }
}

/// A victim that lives.
pub struct Victim<'a> {
    nursery: &'a mut Peer,
    pid: Pid,
}

impl<'a> Victim<'a> {
    pub fn start(nursery: &'a mut Peer, args: &[&str]) -> Self {
        nursery.tell(&args.join("\t"));
        let pid = nursery.line().parse().expect("a number");
        Self { nursery, pid: Pid::from_raw(pid) }
    }

    pub fn kill(self) {
        kill(self.pid, Signal::SIGKILL).expect("kill");
        self.wait_killed();
    }

    /// Waits until somebody has killed it.
    pub fn wait_killed(self) {
        self.nursery.must_say("killed");
    }
}
