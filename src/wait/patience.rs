//! How long to look before going to sleep. Knows time and CPUs only.

#[cfg(not(strait_loom))]
use super::Source;
#[cfg(not(strait_loom))]
use super::deadline::Deadline;
#[cfg(not(strait_loom))]
use std::hint::spin_loop;
#[cfg(not(strait_loom))]
use std::time::Duration;
use std::time::Instant;

/// How a side of a channel waits.
///
/// ```
/// use strait::{ClientApp, Wait};
/// let app = ClientApp::new("greeter").wait(Wait::Park);
/// assert_eq!(Wait::default(), Wait::Adaptive);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// Never sleeps: the shortest way, and a whole CPU as long as it waits. On the peer's own CPU it yields that to
    /// others between looks, since there spinning only delays the one waited for.
    Spin,
    /// Spins for a while that follows what was observed (at most some tens of microseconds), then sleeps; on the peer's
    /// own CPU it yields meanwhile. Idle, it costs nothing.
    #[default]
    Adaptive,
    /// Sleeps at once when there is nothing: for whoever has more to do than CPUs to do it with.
    Park,
}

/// One waiter's patience: its strategy, what it has learnt, and how often it slept.
pub(crate) struct Patience {
    strategy: Wait,
    /// How long an adaptive waiter spins, in nanoseconds.
    #[cfg_attr(strait_loom, allow(dead_code))]
    budget: u32,
    slept: u64,
    found: u64,
    /// When the present wait began to sleep.
    asleep_since: Option<Instant>,
}

impl Patience {
    pub(crate) fn new(strategy: Wait) -> Self {
        Self { strategy, budget: BUDGET_MAX, slept: 0, found: 0, asleep_since: None }
    }

    #[cfg_attr(strait_loom, allow(dead_code))]
    pub(crate) fn strategy(&self) -> Wait {
        self.strategy
    }

    /// How often it slept, and how often it found something.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.slept, self.found)
    }

    pub(super) fn sleeps(&mut self) {
        self.slept += 1;
        if self.strategy == Wait::Adaptive && self.asleep_since.is_none() {
            self.asleep_since = Some(Instant::now());
        }
    }

    /// A wait is over. Had a full budget of spinning caught it where it slept, spin longer next time; else less.
    #[inline]
    pub(crate) fn found(&mut self) {
        self.found += 1;
        if let Some(since) = self.asleep_since.take() {
            let nearly = since.elapsed().as_nanos() < u128::from(BUDGET_MAX);
            self.budget = if nearly { BUDGET_MAX } else { (self.budget / 2).max(BUDGET_MIN) };
        }
    }

    pub(super) fn gave_up(&mut self) {
        self.asleep_since = None;
    }
}

#[cfg(not(strait_loom))]
impl Patience {
    /// The pauses between looks, as long as the strategy has patience.
    #[inline]
    pub(super) fn turns(&self, shares_cpu: bool) -> Turns {
        // Whoever else there is shares the only one.
        let shares_cpu = shares_cpu || crate::sys::cpu::is_only_one();
        Turns {
            strategy: self.strategy,
            budget: self.budget,
            shares_cpu,
            looks: if shares_cpu { 0 } else { CLOSE + PAUSES },
            since: None,
            prolonged: false,
        }
    }

    /// Spinning caught it.
    #[inline]
    pub(super) fn caught(&mut self) {
        self.budget = (self.budget * 2).min(BUDGET_MAX);
    }
}

/// Looks for an answer from a process that has yet to be woken, as long as the strategy thinks it worth while; true if it
/// came. For what happens once: nothing is learnt from it.
#[cfg(not(strait_loom))]
pub(crate) fn look_out(strategy: Wait, mut ready: impl FnMut() -> bool) -> bool {
    if strategy == Wait::Park {
        return false;
    }
    let since = Instant::now();
    loop {
        if ready() {
            return true;
        }
        if since.elapsed().as_nanos() > u128::from(LOOK_OUT) {
            return false;
        }
        // Whoever is waited for may be about to run on this very CPU.
        crate::sys::cpu::yield_now();
    }
}

/// One wait's pauses: short ones first, then dearer ones.
#[cfg(not(strait_loom))]
pub(super) struct Turns {
    strategy: Wait,
    budget: u32,
    shares_cpu: bool,
    looks: u32,
    since: Option<Instant>,
    prolonged: bool,
}

#[cfg(not(strait_loom))]
impl Turns {
    /// More of them, once, if the other side says that it is worth it.
    #[cold]
    pub(super) fn prolong(&mut self, source: &impl Source) -> bool {
        let prolongs = self.strategy == Wait::Adaptive && !self.prolonged && source.is_promised();
        if prolongs {
            self.prolonged = true;
            self.budget = PROMISED;
            self.since = None;
        }
        prolongs
    }

    /// Pauses. False: go to sleep, or the deadline is near.
    #[inline]
    pub(super) fn next(&mut self, deadline: &mut Deadline) -> bool {
        if self.strategy == Wait::Park {
            return false;
        }
        if self.looks > 0 {
            self.looks -= 1;
            // The first looks follow each other closely: an answer that is on its way is seen as it comes.
            if self.looks < PAUSES || self.since.is_some() {
                spin_loop();
            }
            return true;
        }
        self.dearer(deadline)
    }

    #[cold]
    fn dearer(&mut self, deadline: &mut Deadline) -> bool {
        match self.strategy {
            Wait::Park => false,
            Wait::Spin => {
                if self.shares_cpu {
                    crate::sys::cpu::yield_now();
                } else {
                    self.looks = PAUSES;
                }
                !deadline.has_passed()
            }
            Wait::Adaptive => {
                let now = Instant::now();
                let since = *self.since.get_or_insert(now);
                // Whoever is waited for may be about to run on this very CPU.
                crate::sys::cpu::yield_now();
                let back = Instant::now();
                // Nobody was: what is waited for is seen sooner by looking than between two such calls.
                if !self.shares_cpu && back.saturating_duration_since(now) < ALONE {
                    self.looks = BETWEEN;
                }
                back.saturating_duration_since(since).as_nanos() < u128::from(self.budget)
            }
        }
    }
}

/// Looks without a pause in between.
#[cfg(not(strait_loom))]
const CLOSE: u32 = 100;

/// Letting others run takes less than this if there are none: a system call.
#[cfg(not(strait_loom))]
const ALONE: Duration = Duration::from_micros(2);

/// Looks between pauses before anything dearer is done: about 1.5 us.
#[cfg(not(strait_loom))]
const PAUSES: u32 = 60;

/// Looks between pauses before others are let run once more: about 6 us.
#[cfg(not(strait_loom))]
const BETWEEN: u32 = 4 * PAUSES;

/// A wake across CPUs costs about this much, so spinning longer than it cannot pay on average.
const BUDGET_MAX: u32 = 25_000;
const BUDGET_MIN: u32 = 1_000;

/// For what was said to come soon: as long as four wakes.
#[cfg(not(strait_loom))]
const PROMISED: u32 = 100_000;

/// Two wakes and a log-in in between.
#[cfg(not(strait_loom))]
const LOOK_OUT: u32 = 100_000;
