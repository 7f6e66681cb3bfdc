//! What the two sides tell each other about sleeping, and which of them pays for the fence in between.
//!
//! Each end of a ring has a line of its own, which only it writes: whether it sleeps, on which CPU it last waited, and
//! whether it runs a fence after each publication itself. The line changes rarely, so looking at it is nearly free.

use crate::sys::barrier::Fence;
use crate::sys::futex::{self, Spot};
use crate::sys::words::{OwnWords, PeerWords};
use std::sync::Arc;

/// Not 0 while its writer sleeps: how, in the low byte; above it, how often it has gone to sleep that way.
const SLEEPS: usize = 0;
/// One more than the CPU its writer last waited on.
const CPU: usize = 1;
/// Not 0 while its writer may leave the fence to whoever sleeps.
const LEAVES_FENCE: usize = 2;

const AWAKE: u64 = 0;
/// Asleep in a futex. Other values are kept for other ways to sleep; a notifier answers those it knows.
const IN_FUTEX: u64 = 1;
/// Waits for the doorbell, together with much else. Each generation is rung for once.
const AT_DOOR: u64 = 2;
const HOW: u64 = 0xFF;
const GENERATION: u32 = 8;

/// How a notifier found the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Roused {
    /// It looks by itself, or has been told already.
    Awake,
    /// In a futex, and was woken.
    Asleep,
    /// It wants to be rung for, which is up to whoever knows where.
    AtDoor,
}

/// The waiting half of an end.
pub(crate) struct Sleeper {
    own: Arc<OwnWords>,
    peer: Arc<PeerWords>,
    /// This end's line in `own`.
    line: usize,
    /// The line in `peer` of the end that is waited for.
    theirs: usize,
    /// The line in `peer` of the end that waits most: where it last waited tells where the peer runs.
    whereabouts: usize,
    /// What `CPU` says now.
    cpu: u64,
    /// How often it has waited for the doorbell.
    generation: u64,
}

impl Sleeper {
    pub(crate) fn new(
        own: Arc<OwnWords>,
        line: usize,
        peer: Arc<PeerWords>,
        theirs: usize,
        whereabouts: usize,
    ) -> Self {
        Self { own, peer, line, theirs, whereabouts, cpu: 0, generation: 0 }
    }

    /// Says that this end is about to sleep, so that whoever publishes work from here on wakes it.
    pub(super) fn lie_down(&self) {
        self.say(IN_FUTEX);
    }

    /// Says that this end waits for the doorbell: whoever publishes work from here on rings, once. To be followed by
    /// a look, which sees what was published before.
    pub(crate) fn go_to_door(&mut self) {
        // Wraps after more waits than anyone lives through.
        self.generation = (self.generation + 1) << GENERATION >> GENERATION;
        self.say(AT_DOOR | self.generation << GENERATION);
    }

    fn say(&self, how: u64) {
        self.own.store(self.line + SLEEPS, how);
        Fence::own_half();
        // Acquired: a notifier that fences again may have published without a fence before it said so, and then the
        // look that follows sees that.
        if self.peer.acquire(self.theirs + LEAVES_FENCE) != 0 {
            Fence::everyones_half();
        }
    }

    pub(crate) fn get_up(&self) {
        self.own.store(self.line + SLEEPS, AWAKE);
    }

    /// Whether the peer last waited on this very CPU: then spinning only keeps it from running.
    pub(super) fn shares_cpu_with_peer(&mut self) -> bool {
        let here = current_cpu() + 1;
        if here != self.cpu {
            self.cpu = here;
            self.own.store(self.line + CPU, here);
        }
        self.peer.peek(self.whereabouts + CPU) == here
    }
}

/// The waking half of an end.
pub(crate) struct Notifier {
    share: Share,
    peer: Arc<PeerWords>,
    theirs: usize,
    /// The last wait for the doorbell that was answered, as the other said it.
    answered: u64,
}

/// The waking half of an end that many wait for, all in a futex, all on the same word.
#[cfg(not(strait_loom))]
pub(crate) struct Crier {
    share: Share,
    theirs: usize,
}

/// Who pays for the fence, as the waking half of an end sees it.
struct Share {
    own: Arc<OwnWords>,
    line: usize,
    fence: Fence,
    /// Whether every publication is followed by a fence, whatever log-in allows.
    fences: bool,
    /// Publications since anyone was last found asleep.
    quiet: u32,
}

/// So many publications without a sleeper, and the fence is left to whoever sleeps next.
const QUIET: u32 = 64;

impl Notifier {
    pub(crate) fn new(own: Arc<OwnWords>, line: usize, peer: Arc<PeerWords>, theirs: usize, fence: Fence) -> Self {
        Self { share: Share::new(own, line, fence), peer, theirs, answered: AWAKE }
    }

    /// To be called after publishing. Wakes the other side if it sleeps in a futex; tells how it was found.
    #[inline]
    pub(crate) fn notify<'a>(&mut self, spot: impl FnOnce() -> Spot<'a>) -> Roused {
        Fence::publishers_half(self.share.fences);
        let says = self.peer.peek(self.theirs + SLEEPS);
        if says != AWAKE {
            return self.rouse(says, spot());
        }
        if self.share.fences {
            self.share.settle(false);
        }
        Roused::Awake
    }

    #[cold]
    fn rouse(&mut self, says: u64, spot: Spot<'_>) -> Roused {
        let roused = match says & HOW {
            IN_FUTEX => Roused::Asleep,
            AT_DOOR if says != self.answered => Roused::AtDoor,
            // Rung for already. Or a value this version does not know, which is the peer's loss: it asked for a wake
            // nobody can give.
            _ => Roused::Awake,
        };
        if roused != Roused::Awake || self.share.fences {
            self.share.settle(roused != Roused::Awake);
        }
        match roused {
            Roused::Asleep => futex::wake(spot),
            Roused::AtDoor => self.answered = says,
            Roused::Awake => {}
        }
        roused
    }
}

#[cfg(not(strait_loom))]
impl Crier {
    /// `theirs`: the line of whoever waits, in the words of each.
    pub(crate) fn new(own: Arc<OwnWords>, line: usize, theirs: usize, fence: Fence) -> Self {
        Self { share: Share::new(own, line, fence), theirs }
    }

    /// Everyone who may wait from now on has to have registered for `membarrier` if each publication is not to be
    /// followed by a fence.
    pub(crate) fn admit(&mut self, fence: Fence) {
        if fence == Fence::Each && self.share.fence != Fence::Each {
            self.share.settle(true);
            self.share.fence = Fence::Each;
        }
    }

    /// To be called after publishing: wakes those who sleep, all by one system call. Tells whether anyone did.
    #[inline]
    pub(crate) fn notify<'a, 'b>(
        &mut self,
        mut all: impl Iterator<Item = &'a PeerWords>,
        spot: impl FnOnce() -> Spot<'b>,
    ) -> bool {
        Fence::publishers_half(self.share.fences);
        let asleep = all.any(|one| one.peek(self.theirs + SLEEPS) & HOW == IN_FUTEX);
        if asleep || self.share.fences {
            self.share.settle(asleep);
        }
        if asleep {
            futex::wake(spot());
        }
        asleep
    }
}

impl Share {
    fn new(own: Arc<OwnWords>, line: usize, fence: Fence) -> Self {
        Self { own, line, fence, fences: true, quiet: 0 }
    }

    /// The fence is paid by whoever meets it less often: a sleeper's is dear, but a busy ring sees none.
    fn settle(&mut self, asleep: bool) {
        if asleep {
            self.quiet = 0;
            if !self.fences {
                // Published, so that a sleeper who relies on it also sees what went without a fence before.
                self.own.publish(self.line + LEAVES_FENCE, 0);
                self.fences = true;
            }
        } else if self.fence == Fence::SleeperMay {
            self.quiet += 1;
            if self.quiet >= QUIET {
                self.quiet = 0;
                self.fences = false;
                self.own.store(self.line + LEAVES_FENCE, 1);
                // Between saying so and the first publication that relies on it: a sleeper that has not seen the word
                // had said that it sleeps before this, and is seen.
                Fence::own_half();
            }
        }
    }
}

/// For whoever publishes in the other side's place, to be called after that: whether this side's end of this line waits
/// for the doorbell and was not told since.
#[cfg(not(strait_loom))]
pub(crate) fn waits_at_door(own: &OwnWords, line: usize, told: &mut u64) -> bool {
    // Partner: `Sleeper::say`, whose look comes after its fence.
    Fence::own_half();
    let says = own.peek(line + SLEEPS);
    let waits = says & HOW == AT_DOOR && says != *told;
    if waits {
        *told = says;
    }
    waits
}

#[cfg(not(strait_loom))]
fn current_cpu() -> u64 {
    crate::sys::cpu::current()
}

#[cfg(strait_loom)]
fn current_cpu() -> u64 {
    0
}
