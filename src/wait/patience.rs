//! How long to look before going to sleep. Knows time and CPUs only.

use std::hint::spin_loop;
#[cfg(not(strait_loom))]
use std::time::Duration;
use std::time::Instant;

/// How a side of a channel waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// Never sleeps: the shortest way, and a whole CPU as long as it waits. Confined to a single CPU it yields that to
    /// others between looks, since there spinning only delays the one waited for.
    Spin,
    /// Spins for a while that follows what was observed (at most some tens of microseconds), then sleeps. Idle, it
    /// costs nothing.
    #[default]
    Adaptive,
    /// Sleeps at once when there is nothing: for whoever has more to do than CPUs to do it with.
    Park,
}

/// One waiter's patience: its strategy, what it has learnt, and how often it slept.
pub(crate) struct Patience {
    strategy: Wait,
    /// May spinning help at all? Not on a single CPU.
    confined: bool,
    /// How long an adaptive waiter spins, in nanoseconds.
    budget: u32,
    slept: u64,
    waits: u64,
    /// When the present wait began to sleep.
    asleep_since: Option<Instant>,
}

impl Patience {
    pub(crate) fn new(strategy: Wait) -> Self {
        #[cfg(not(strait_loom))]
        let confined = crate::sys::cpu::confined_to_one();
        #[cfg(strait_loom)]
        let confined = true;
        Self { strategy, confined, budget: BUDGET_MAX, slept: 0, waits: 0, asleep_since: None }
    }

    /// How often it slept, and how often it found something.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.slept, self.waits)
    }

    #[inline]
    pub(crate) fn found_at_once(&mut self) {
        self.waits += 1;
    }

    pub(crate) fn slept(&mut self) {
        self.slept += 1;
        if self.strategy == Wait::Adaptive && self.asleep_since.is_none() {
            self.asleep_since = Some(Instant::now());
        }
    }

    /// A wait that slept is over. Had a full budget of spinning caught it, spin longer next time; else less.
    pub(crate) fn found(&mut self) {
        self.waits += 1;
        if let Some(since) = self.asleep_since.take() {
            let nearly = since.elapsed().as_nanos() < u128::from(BUDGET_MAX);
            self.budget = if nearly { BUDGET_MAX } else { (self.budget / 2).max(BUDGET_MIN) };
        }
    }

    /// Looks again and again, as long as the strategy has patience. `None`: go to sleep, or the deadline is near.
    #[cfg(not(strait_loom))]
    pub(crate) fn spin<T>(&mut self, deadline: Option<Instant>, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let pauses = match self.strategy {
            Wait::Park => return None,
            _ if self.confined => 0,
            Wait::Spin | Wait::Adaptive => PAUSES,
        };
        for _ in 0..pauses {
            spin_loop();
            if let Some(item) = look() {
                return Some(self.caught(item));
            }
        }
        match self.strategy {
            Wait::Park => None,
            Wait::Spin => self.spin_on(deadline, look),
            Wait::Adaptive => {
                let start = Instant::now();
                let budget = Duration::from_nanos(u64::from(if self.confined { 0 } else { self.budget }));
                while start.elapsed() < budget {
                    // Whoever is waited for may need this very CPU.
                    crate::sys::cpu::yield_now();
                    if let Some(item) = look() {
                        self.budget = (self.budget * 2).min(BUDGET_MAX);
                        return Some(self.caught(item));
                    }
                }
                None
            }
        }
    }

    #[cfg(not(strait_loom))]
    fn spin_on<T>(&mut self, deadline: Option<Instant>, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            for _ in 0..PAUSES {
                if self.confined {
                    crate::sys::cpu::yield_now();
                } else {
                    spin_loop();
                }
                if let Some(item) = look() {
                    return Some(self.caught(item));
                }
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return None;
            }
        }
    }

    /// The models check the sleep, not the spin.
    #[cfg(strait_loom)]
    pub(crate) fn spin<T>(&mut self, _deadline: Option<Instant>, _look: impl FnMut() -> Option<T>) -> Option<T> {
        spin_loop();
        None
    }

    #[cfg(not(strait_loom))]
    fn caught<T>(&mut self, item: T) -> T {
        self.waits += 1;
        item
    }
}

/// Looks between pauses before anything dearer is done: about 1.5 us.
#[cfg(not(strait_loom))]
const PAUSES: u32 = 60;

/// A wake across CPUs costs about this much, so spinning longer than it cannot pay on average.
const BUDGET_MAX: u32 = 25_000;
const BUDGET_MIN: u32 = 1_000;
