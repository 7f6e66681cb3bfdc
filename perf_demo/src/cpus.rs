//! Which CPU the measuring thread runs on, and how often it slept.

use anyhow::Context;
use clap::ValueEnum;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

/// Where the two processes run.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Pin {
    /// Where the kernel likes
    None,
    /// Both on one CPU
    Same,
    /// Each on a CPU of its own
    Split,
}

impl Pin {
    /// As it is spelt everywhere.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Same => "same",
            Self::Split => "split",
        }
    }
}

/// The CPUs this process was given, and what to pin its halves to.
#[derive(Clone, Debug)]
pub struct Cpus {
    allowed: Vec<usize>,
}

impl Cpus {
    /// Asked once, before anything is pinned.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn allowed() -> anyhow::Result<Self> {
        let set = sched_getaffinity(Pid::from_raw(0)).context("cannot ask which CPUs there are")?;
        Ok(Self { allowed: (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect() })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.allowed.len()
    }

    /// Whether two processes can run at once.
    #[must_use]
    pub fn are_two(&self) -> bool {
        self.allowed.len() > 1
    }

    /// A CPU each for any number of threads, all CPUs in turn.
    pub fn spread(&self) -> impl Iterator<Item = Option<usize>> {
        self.allowed.iter().copied().map(Some).cycle()
    }

    /// Where the client and the server go; `None` is anywhere.
    #[must_use]
    pub fn places(&self, pin: Pin) -> (Option<usize>, Option<usize>) {
        let first = self.allowed.first().copied();
        match pin {
            Pin::None => (None, None),
            Pin::Same => (first, first),
            Pin::Split => (first, self.allowed.get(1).copied().or(first)),
        }
    }

    /// Sends the calling thread to a CPU, or lets it go anywhere again.
    ///
    /// # Errors
    /// If the system does not let it.
    pub fn go_to(&self, place: Option<usize>) -> anyhow::Result<()> {
        let mut set = CpuSet::new();
        match place {
            Some(cpu) => set.set(cpu)?,
            None => self.allowed.iter().try_for_each(|&cpu| set.set(cpu))?,
        }
        sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot run on CPU {place:?}"))
    }
}

/// How often the calling thread has gone to sleep so far.
#[must_use]
pub fn sleeps() -> u64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.voluntary_context_switches().unsigned_abs())
}
