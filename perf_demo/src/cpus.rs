//! Which CPU the measuring thread runs on, and how often it slept.

use crate::cli::Pin;
use anyhow::Context;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

/// The CPUs this process was given, and what to pin its halves to.
#[derive(Clone, Debug)]
pub(crate) struct Cpus {
    allowed: Vec<usize>,
}

impl Cpus {
    /// Asked once, before anything is pinned.
    pub(crate) fn allowed() -> anyhow::Result<Self> {
        let set = sched_getaffinity(Pid::from_raw(0)).context("cannot ask which CPUs there are")?;
        Ok(Self { allowed: (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect() })
    }

    pub(crate) fn are_two(&self) -> bool {
        self.allowed.len() > 1
    }

    /// Where the client and the server go; `None` is anywhere.
    pub(crate) fn places(&self, pin: Pin) -> (Option<usize>, Option<usize>) {
        let first = self.allowed.first().copied();
        match pin {
            Pin::None => (None, None),
            Pin::Same => (first, first),
            Pin::Split => (first, self.allowed.get(1).copied().or(first)),
        }
    }

    /// Sends the calling thread to a CPU, or lets it go anywhere again.
    pub(crate) fn go_to(&self, place: Option<usize>) -> anyhow::Result<()> {
        let mut set = CpuSet::new();
        match place {
            Some(cpu) => set.set(cpu)?,
            None => self.allowed.iter().try_for_each(|&cpu| set.set(cpu))?,
        }
        sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on CPU {place:?}"))
    }
}

/// How often the calling thread has gone to sleep so far.
pub(crate) fn sleeps() -> u64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches().unsigned_abs())
}
