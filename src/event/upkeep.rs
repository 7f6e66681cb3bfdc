//! What sessions need now and then, as the watcher does it for others: what is owed goes home after a while, and idle arenas
//! give memory back. Knows when, not who waits.

use crate::shm::arena::WeakArena;
use crate::transport::Core;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long a returned handle may wait for a slot that goes its way.
const TICK: Duration = Duration::from_millis(10);

/// How often, and how many times, an arena that fell idle is told to give memory back.
const COOL: Duration = Duration::from_secs(1);
const COOLINGS: u32 = 15;

/// See the module's own words.
#[derive(Default)]
pub(super) struct Upkeep {
    /// Each once: a core is armed once until it is disarmed.
    armed: Vec<Weak<Core>>,
    next_tick: Option<Instant>,
    /// By number. Many sessions share one.
    cooling: HashMap<u32, (WeakArena, u32)>,
    next_cooling: Option<Instant>,
}

impl Upkeep {
    /// A core has work for later.
    pub(super) fn arm(&mut self, core: &Arc<Core>) {
        self.armed.push(Arc::downgrade(core));
        let arena = core.arena();
        self.cooling.entry(arena.id()).or_insert_with(|| (arena.downgrade(), 0)).1 = COOLINGS;
        if self.next_tick.is_none() || self.next_cooling.is_none() {
            let now = Instant::now();
            self.next_tick.get_or_insert(now + TICK);
            self.next_cooling.get_or_insert(now + COOL);
        }
    }

    /// When to call [`run`](Self::run); never if there is nothing to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next_tick.into_iter().chain(self.next_cooling).min()
    }

    pub(super) fn run(&mut self, now: Instant) {
        if self.next_tick.is_some_and(|at| at <= now) {
            let armed = std::mem::take(&mut self.armed);
            self.armed = armed.into_iter().filter(still_busy).collect();
            self.next_tick = (!self.armed.is_empty()).then(|| now + TICK);
        }
        if self.next_cooling.is_some_and(|at| at <= now) {
            self.cooling.retain(|_, (arena, left)| {
                *left -= 1;
                let arena = arena.upgrade();
                arena.iter().for_each(|arena| arena.decay());
                *left > 0 && arena.is_some()
            });
            self.next_cooling = (!self.cooling.is_empty()).then(|| now + COOL);
        }
    }
}

fn still_busy(core: &Weak<Core>) -> bool {
    let Some(core) = core.upgrade() else { return false };
    if core.tick() {
        return true;
    }
    core.disarm();
    // Whoever queued work before that disarming saw the core armed, so look once more; if need be it arms anew.
    if core.tick() {
        core.arm();
    }
    false
}
