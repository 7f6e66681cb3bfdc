//! How long a waiter looks, without a clock: by what it is asked.

use super::{Deadline, Patience, Sleeper, Source, Wait, wait};
use crate::sys::futex::{Bell, Spot};
use crate::sys::words::{OwnWords, PeerWords, shared};
use std::sync::Arc;
use std::time::Duration;

/// Where the lines of the two ends are.
const RECEIVER: usize = 16;
const SENDER: usize = 32;

/// Nothing comes before it was promised, if it ever is.
struct Promise {
    own: Arc<OwnWords>,
    peer: Arc<PeerWords>,
    patience: Patience,
    sleeper: Sleeper,
    promised: bool,
    asked: std::cell::Cell<u32>,
    looks: u32,
}

impl Promise {
    fn new(strategy: Wait, promised: bool) -> Self {
        let (own, peer) = shared(64);
        let (own, peer) = (Arc::new(own), Arc::new(peer));
        let sleeper = Sleeper::new(own.clone(), RECEIVER, peer.clone(), SENDER, RECEIVER);
        Self { own, peer, patience: Patience::new(strategy), sleeper, promised, asked: 0.into(), looks: 0 }
    }
}

impl Source for Promise {
    fn ready(&mut self) -> bool {
        self.looks += 1;
        self.promised && self.asked.get() > 0
    }

    fn spot(&self) -> (Spot<'_>, u32) {
        (self.peer.spot(0), self.own.peek(0) as u32)
    }

    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper) {
        (&mut self.patience, &mut self.sleeper)
    }

    fn is_promised(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.promised
    }
}

#[test]
fn what_is_promised_is_waited_for_awake() {
    let (bell, soon) = (Bell::default(), || Deadline::After(Duration::from_millis(20)));
    let mut promised = Promise::new(Wait::Adaptive, true);
    assert!(wait(&mut promised, &bell, &mut soon()));
    assert_eq!((promised.asked.get(), promised.patience.counts().0), (1, 0));
    let mut nothing = Promise::new(Wait::Adaptive, false);
    assert!(!wait(&mut nothing, &bell, &mut soon()));
    assert_eq!(nothing.asked.get(), 1);
    assert!(nothing.patience.counts().0 > 0);
}

#[test]
fn whoever_parks_does_not_look_for_long() {
    let bell = Bell::default();
    let mut promised = Promise::new(Wait::Park, true);
    assert!(!wait(&mut promised, &bell, &mut Deadline::After(Duration::from_millis(5))));
    assert_eq!(promised.asked.get(), 0);
    assert!(promised.looks < 10, "{}", promised.looks);
}
