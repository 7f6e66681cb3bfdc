//! The part of a port for those who do not wait in a call of the channel but elsewhere, for much at once: who is told that
//! there is news, and what has still to be rung for at the peer's.

use super::control::Knock;
use crate::sys::brief::Brief;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Who is told of news in a channel, in whatever thread finds it. Must not wait, nor call back into the session's socket.
pub(crate) trait Listener: Send + Sync {
    /// There may be news; to be looked for.
    fn on_knock(&self, knock: Knock);

    /// The channel is dropped: there will be no more.
    fn on_gone(&self);
}

/// See the module's own words.
#[derive(Default)]
pub(super) struct Door {
    listener: Brief<Option<Arc<dyn Listener>>>,
    /// Whether there is one: read without the lock.
    listened: AtomicBool,
    /// Somebody looked while another was receiving, who therefore has to tell.
    missed: AtomicBool,
    /// What the peer is still to be told of, once the socket takes it.
    due: AtomicU32,
    /// Messages have left the ring but not the channel.
    kept_back: AtomicBool,
    /// Whoever listens is to look again at the next tick: nobody tells of what it waits for.
    look_again: AtomicU32,
}

impl Door {
    #[inline]
    pub(super) fn is_listened(&self) -> bool {
        // A hint for the one who registered; everyone else may learn of it later.
        self.listened.load(Ordering::Relaxed)
    }

    /// Takes a listener; false if there is one.
    pub(super) fn listen(&self, by: Arc<dyn Listener>) -> bool {
        let mut listener = self.listener.lock();
        if listener.is_some() {
            return false;
        }
        *listener = Some(by);
        self.listened.store(true, Ordering::Relaxed);
        true
    }

    pub(super) fn unlisten(&self) -> Option<Arc<dyn Listener>> {
        self.listened.store(false, Ordering::Relaxed);
        self.listener.lock().take()
    }

    pub(super) fn tell(&self, knock: Knock) {
        let listener = self.listener.lock().clone();
        if let Some(listener) = listener {
            listener.on_knock(knock);
        }
    }

    /// To be called by whoever finds the inbox in use, before looking once more.
    pub(super) fn miss(&self) {
        // Partner: `looked`. Either that sees this, or this sees what came before it: the inbox free.
        self.missed.swap(true, Ordering::AcqRel);
    }

    /// To be called after the inbox was used.
    #[inline]
    pub(super) fn looked(&self) {
        if self.is_listened() {
            self.looked_at_door();
        }
    }

    #[cold]
    fn looked_at_door(&self) {
        // Partner: `miss`.
        if self.missed.swap(false, Ordering::AcqRel) {
            self.tell(Knock::FILLED);
        }
    }

    pub(super) fn ring_later(&self, knock: Knock) {
        // Taken after a `Port::tick`, which the `Port::arm_for_flag` that follows this is ordered with.
        self.due.fetch_or(knock.bits(), Ordering::Relaxed);
    }

    pub(super) fn take_due(&self) -> Knock {
        Knock::from_bits(self.due.swap(0, Ordering::Relaxed))
    }

    pub(super) fn look_again_later(&self, knock: Knock) {
        // Ordered as for `ring_later`.
        self.look_again.fetch_or(knock.bits(), Ordering::Relaxed);
    }

    pub(super) fn take_look_again(&self) -> Knock {
        Knock::from_bits(self.look_again.swap(0, Ordering::Relaxed))
    }

    pub(super) fn set_kept_back(&self, any: bool) {
        self.kept_back.store(any, Ordering::Relaxed);
    }

    pub(super) fn has_kept_back(&self) -> bool {
        self.kept_back.load(Ordering::Relaxed)
    }
}
