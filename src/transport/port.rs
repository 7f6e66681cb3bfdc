//! The part of a channel that outlives its two rings: what is owed to the peer, the bell that ends sleeps, and whether
//! the channel is over. Received messages hold it, and through it the session's socket: an honest reader stays known
//! to the lender for as long as it reads.

use super::ended::{Ended, EndedError};
use super::inbox::Inbox;
use super::link::{Core, Link};
use crate::shm::handle::Handle;
use crate::shm::view::{Home, View};
use crate::sys::brief::Brief;
use crate::sys::futex::Bell;
use crate::sys::misbehaved::PeerMisbehaved;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

/// See the module's own words.
pub(crate) struct Port {
    link: Link,
    number: u32,
    name: String,
    pub(crate) bell: Bell,
    state: AtomicU32,
    /// Whoever receives holds it meanwhile, which nobody else waits for; gone with the lane.
    inbox: Brief<Option<Inbox>>,
    owed: Brief<Owed>,
    /// How many handles `owed` has: read without its lock.
    owes: AtomicUsize,
    /// Handles were returned in slots that the peer may not be looking at.
    in_slots: AtomicBool,
    /// The watcher knows that there is something to look at here.
    armed: AtomicBool,
}

#[derive(Default)]
struct Owed {
    handles: VecDeque<Handle>,
    /// How many at the front were there at the watcher's last look.
    stale: usize,
}

/// What there is may still be received; nothing new comes.
const DRAINING: u32 = 1;
/// Not even that: the peer's words are not to be read any more.
const OVER: u32 = 2;

impl Port {
    pub(super) fn new(link: Link, number: u32, name: String, inbox: Inbox) -> Self {
        Self {
            link,
            number,
            name,
            bell: Bell::default(),
            state: AtomicU32::new(0),
            inbox: Brief::new(Some(inbox)),
            owed: Brief::default(),
            in_slots: AtomicBool::new(false),
            armed: AtomicBool::new(false),
            owes: AtomicUsize::new(0),
        }
    }

    pub(crate) fn core(&self) -> &Core {
        self.link.core()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Ends the channel from outside: wakes whoever sleeps on it.
    pub(super) fn end(&self, over: bool) {
        // Partner: `is_open`, `is_over`. What was published before the end stays readable.
        self.state.fetch_max(if over { OVER } else { DRAINING }, Ordering::AcqRel);
        self.bell.ring();
    }

    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        // Partner: `end`.
        self.state.load(Ordering::Acquire) == 0 && !self.core().is_forked()
    }

    #[inline]
    pub(super) fn is_over(&self) -> bool {
        // Partner: `end`.
        self.state.load(Ordering::Acquire) == OVER || self.core().is_forked()
    }

    /// What to report once it is not open.
    pub(crate) fn error(&self) -> EndedError {
        let cause = self.core().ended().unwrap_or(Ended::ChannelClosed);
        EndedError { peer: self.core().peer_name().to_owned(), channel: self.name.clone(), cause }
    }

    /// Ends the session for a rule the peer broke.
    #[cold]
    pub(super) fn cut_off(&self, broken: PeerMisbehaved) -> EndedError {
        self.core().misbehaved(broken);
        self.error()
    }

    /// `None` once the lane is gone.
    #[inline]
    pub(super) fn with_inbox<R>(&self, use_it: impl FnOnce(&mut Inbox) -> R) -> Option<R> {
        self.inbox.lock().as_mut().map(use_it)
    }

    pub(super) fn take_inbox(&self) -> Option<Inbox> {
        self.inbox.lock().take()
    }

    /// Books what has come home in slots, unless somebody is receiving, who then does so.
    #[inline]
    pub(super) fn collect(&self) {
        let collected = match self.inbox.try_lock() {
            Some(mut inbox) => inbox.as_mut().map_or(Ok(()), |inbox| inbox.collect(self)),
            None => Ok(()),
        };
        if let Err(broken) = collected {
            self.core().misbehaved(broken);
        }
    }

    pub(super) fn returned_in_slots(&self) {
        self.in_slots.store(true, Ordering::Relaxed);
        self.arm();
    }

    /// Has the watcher look here at its next tick. A load if it does already.
    #[inline]
    fn arm(&self) {
        // Partner: `tick`. The work this is about is under a lock, or in a flag, that `tick` looks at after disarming.
        if !self.armed.load(Ordering::Relaxed) && !self.armed.swap(true, Ordering::AcqRel) {
            self.core().owes(self.number);
        }
    }

    /// The watcher's look: takes what was owed at the last one already and is still. Tells whether anything is owed
    /// since, and has another look taken then.
    pub(super) fn tick(&self, into: &mut Vec<Handle>) -> bool {
        // Partner: `arm`.
        self.armed.swap(false, Ordering::AcqRel);
        let owing = self.take_stale(into);
        if owing {
            self.arm();
        }
        owing
    }

    /// Whether handles were returned in slots since the last call.
    pub(super) fn take_returned_in_slots(&self) -> bool {
        self.in_slots.swap(false, Ordering::Relaxed)
    }

    /// A handle for the next slot that goes the peer's way.
    #[inline]
    pub(super) fn pop_owed(&self) -> Option<Handle> {
        if self.owes() == 0 {
            return None;
        }
        let mut owed = self.owed.lock();
        owed.stale = owed.stale.saturating_sub(1);
        let handle = owed.handles.pop_front();
        self.count(&owed);
        handle
    }

    pub(super) fn push_front_owed(&self, handle: Handle) {
        let mut owed = self.owed.lock();
        owed.handles.push_front(handle);
        self.count(&owed);
    }

    /// How many handles are owed. Another thread's latest may be missing.
    #[inline]
    pub(super) fn owes(&self) -> usize {
        // A number to act on sooner or later; the handles themselves are under the lock.
        self.owes.load(Ordering::Relaxed)
    }

    fn count(&self, owed: &Owed) {
        self.owes.store(owed.handles.len(), Ordering::Relaxed);
    }

    /// Takes what was owed at the last call already and is still; tells whether anything is owed since.
    fn take_stale(&self, into: &mut Vec<Handle>) -> bool {
        let mut owed = self.owed.lock();
        let stale = owed.stale.min(owed.handles.len());
        into.extend(owed.handles.drain(..stale));
        owed.stale = owed.handles.len();
        self.count(&owed);
        owed.stale > 0
    }
}

impl Home for Port {
    #[inline]
    fn view(&self) -> &View {
        self.link.view()
    }

    fn owe(&self, handle: Handle) {
        // In a forked child the books are a copy, and their lock may have been held by a thread that is not here.
        if !self.core().is_forked() {
            let mut owed = self.owed.lock();
            owed.handles.push_back(handle);
            self.count(&owed);
            drop(owed);
            self.arm();
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let owed = std::mem::take(&mut self.owed.get_mut().handles);
        self.link.core().port_gone(owed);
    }
}
