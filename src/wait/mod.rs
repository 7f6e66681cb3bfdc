//! L2: how one side waits for the other, and wakes it. Knows no rings: what is waited for is a closure, where to sleep a
//! [`Spot`], and that a side sleeps is one published word.
//!
//! A waiter looks, spins a little, says that it sleeps, pays the fence, looks once more and sleeps. A notifier publishes
//! work, pays its share of the fence, and makes a system call only if the other said that it sleeps. One of the two
//! therefore sees the other: no wake is lost. A [`Bell`] rung by this process itself (the peer died, the session was
//! closed) ends a sleep as well.

mod patience;

pub(crate) use patience::Patience;
pub use patience::Wait;

use crate::sys::barrier::Fence;
use crate::sys::futex::{self, Bell, Spot};
use crate::sys::words::{OwnWords, PeerWords};
use std::sync::Arc;
use std::time::Instant;

/// The word that says whether its writer sleeps.
pub(crate) struct Sleeper {
    own: Arc<OwnWords>,
    word: usize,
    fence: Fence,
}

const AWAKE: u64 = 0;
/// Asleep in a futex. Other values are kept for other ways to sleep; a notifier answers those it knows.
const IN_FUTEX: u64 = 1;

impl Sleeper {
    pub(crate) fn new(own: Arc<OwnWords>, word: usize, fence: Fence) -> Self {
        Self { own, word, fence }
    }

    /// Says that this side is about to sleep, so that whoever publishes work from here on wakes it.
    fn lie_down(&self) {
        self.own.store(self.word, IN_FUTEX);
        self.fence.sleeper();
    }

    fn get_up(&self) {
        self.own.store(self.word, AWAKE);
    }
}

/// The other side's [`Sleeper`], as seen from here.
pub(crate) struct Notifier {
    peer: Arc<PeerWords>,
    word: usize,
    fence: Fence,
}

impl Notifier {
    pub(crate) fn new(peer: Arc<PeerWords>, word: usize, fence: Fence) -> Self {
        Self { peer, word, fence }
    }

    /// To be called after publishing. Wakes the other side if it sleeps; tells whether it did.
    #[inline]
    pub(crate) fn notify<'a>(&self, spot: impl FnOnce() -> Spot<'a>) -> bool {
        self.fence.publisher();
        // A value this version does not know is the peer's loss: it asked for a wake nobody can give.
        let asleep = self.peer.peek(self.word) == IN_FUTEX;
        if asleep {
            futex::wake(spot());
        }
        asleep
    }
}

/// What a wait is made of: how to look, and where to sleep.
pub(crate) trait Source {
    /// What there is once the wait is over.
    type Item;

    /// Looks. `Some` ends the wait.
    fn look(&mut self) -> Option<Self::Item>;

    /// Where to sleep, and what that word holds as long as there is nothing to find.
    fn spot(&self) -> (Spot<'_>, u32);
}

/// Waits until `source` has something or the deadline passes (`None`).
///
/// `bell` must be rung by whatever else can make `look` answer.
#[inline]
pub(crate) fn wait<S: Source>(
    source: &mut S,
    patience: &mut Patience,
    sleeper: &Sleeper,
    bell: &Bell,
    deadline: Option<Instant>,
) -> Option<S::Item> {
    match source.look() {
        Some(item) => {
            patience.found_at_once();
            Some(item)
        }
        None => wait_longer(source, patience, sleeper, bell, deadline),
    }
}

fn wait_longer<S: Source>(
    source: &mut S,
    patience: &mut Patience,
    sleeper: &Sleeper,
    bell: &Bell,
    deadline: Option<Instant>,
) -> Option<S::Item> {
    if let Some(item) = patience.spin(deadline, || source.look()) {
        return Some(item);
    }
    loop {
        // Before the look: whoever rings after it wakes us, whoever rang before is seen by it.
        let rung = bell.value();
        sleeper.lie_down();
        if let Some(item) = source.look() {
            sleeper.get_up();
            patience.found();
            return Some(item);
        }
        if deadline.is_some_and(|at| Instant::now() >= at) {
            sleeper.get_up();
            return None;
        }
        let (spot, empty) = source.spot();
        patience.slept();
        futex::wait(spot, empty, bell, rung, deadline);
        sleeper.get_up();
        if let Some(item) = source.look() {
            patience.found();
            return Some(item);
        }
    }
}
