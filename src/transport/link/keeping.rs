//! Who reads a link's socket and looks after it: the watcher's thread, unless a loop of the application's own has taken it
//! over. Either may hand it to the other at any time; reading is one at a time, so frames keep their order.

use super::Core;
use crate::shm::handle::Handle;
use crate::transport::control::{Control, Knock, RETURNS_PER_FRAME};
use crate::transport::port::Port;
use crate::transport::watch;
use nix::errno::Errno;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// A loop that keeps a link in the watcher's place. Told things in whatever thread they happen; must not wait, nor call
/// back into the link. It calls [`Core::on_readable`] and [`Core::tick`], and holds the core until it was told that there
/// are no users and the socket is at its end.
pub(crate) trait Keeper: Send + Sync {
    /// There is work for later: tick until nothing is left.
    fn on_arm(&self);

    /// The socket takes no more now: once it does, [`Core::on_writable`] is to be called.
    fn on_full(&self);

    /// The session has ended.
    fn on_end(&self);

    /// The peer opened a channel, or answered.
    fn on_channels(&self);

    /// This side has no users any more.
    fn on_unused(&self);
}

pub(super) struct Keeping {
    /// None: the watcher.
    pub(super) keeper: Option<Arc<dyn Keeper>>,
    unused: bool,
}

impl Keeping {
    pub(super) fn of(keeper: Option<Arc<dyn Keeper>>) -> Self {
        Self { keeper, unused: false }
    }
}

impl Core {
    /// Hands the link to a keeper, or to the watcher. A keeper has to tick it at first, whatever it was told.
    ///
    /// # Errors
    /// There is another keeper (`AlreadyExists`), or no watcher and none can be started; all is as before then.
    pub(crate) fn keep(self: &Arc<Self>, by: Option<Arc<dyn Keeper>>) -> io::Result<()> {
        let mut keeping = self.keeping.lock();
        match (&keeping.keeper, &by) {
            (Some(_), Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Some(_)) => watch::release(self),
            (Some(_), None) => {
                watch::add(self, keeping.unused)?;
                watch::arm(self.token);
            }
            (None, None) => {}
        }
        // Whoever armed the old one, or will, has queued the work before: the new one's first tick finds it.
        self.armed.store(true, Ordering::Release);
        self.kept.store(by.is_some(), Ordering::Relaxed);
        keeping.keeper = by;
        Ok(())
    }

    /// Whether a keeper other than the watcher has it.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    pub(super) fn keeper(&self) -> Option<Arc<dyn Keeper>> {
        self.keeping.lock().keeper.clone()
    }

    pub(super) fn arm_keeper(&self) {
        match self.keeper() {
            None => watch::arm(self.token),
            Some(keeper) => keeper.on_arm(),
        }
    }

    /// The users of this side are gone; whoever keeps the link does so until the peer needs nothing of it any more.
    pub(super) fn linger(self: &Arc<Self>) {
        let mut keeping = self.keeping.lock();
        keeping.unused = true;
        match &keeping.keeper {
            None => watch::linger(self),
            Some(keeper) => keeper.on_unused(),
        }
        drop(keeping);
        // The peer learns that nothing of its own is read here any more.
        self.stop_sending();
    }

    /// What is known about channels has changed.
    pub(crate) fn channels_changed(&self) {
        if let Some(keeper) = self.keeper() {
            keeper.on_channels();
        }
    }

    /// For whoever is about to sleep in a call: where a loop keeps the link, that loop may be waiting for this very call, so
    /// the caller does its work. True if so.
    pub(crate) fn attend(&self) -> bool {
        let kept = self.is_kept() && !self.is_forked();
        if kept {
            self.on_readable();
            if self.armed.load(Ordering::Relaxed) {
                self.tick();
            }
        }
        kept
    }

    // What whoever keeps it does now and then.

    /// Has the watcher look after this link for a while. A load if it does already.
    #[inline]
    pub(crate) fn arm(&self) {
        // Partner: `disarm`. The work this is about was queued under a lock that the watcher takes after disarming.
        if !self.armed.load(Ordering::Relaxed) && !self.armed.swap(true, Ordering::AcqRel) {
            self.arm_keeper();
        }
    }

    pub(crate) fn disarm(&self) {
        // Partner: `arm`.
        self.armed.store(false, Ordering::Release);
    }

    /// Sends home what has been owed for a whole tick; tells whether there is more to do. Looks only at the channels
    /// that owe something.
    pub(crate) fn tick(&self) -> bool {
        if self.mirror.is_some() {
            self.settle();
        }
        let mut home = std::mem::take(&mut *self.orphans.lock());
        let numbers = std::mem::take(&mut *self.owing.lock());
        let (mut in_slots, mut owing) = (Vec::new(), false);
        for port in numbers.into_iter().filter_map(|number| self.port_of(number)) {
            owing |= port.tick(&mut home) | !self.ring_due(&port);
            let again = port.door.take_look_again();
            if again != Knock::NONE {
                port.door.tell(again);
            }
            if let Some(count) = port.take_unexpected() {
                self.send(&Control::UnexpectedReplies { number: port.number(), count });
            }
            if port.take_returned_in_slots() {
                in_slots.push(port);
            }
        }
        owing | !self.send_home(home, &in_slots)
    }

    /// Sends handles home, and names the channels whose rings have some, as far as the socket takes it; the rest, of
    /// which the peer's quota allows many, waits here and not in the queue. False if there is a rest.
    fn send_home(&self, mut home: Vec<Handle>, in_slots: &[Arc<Port>]) -> bool {
        // Whose users are gone returns nothing one by one.
        let mirror = self.mirror.as_ref().map(Weak::upgrade);
        if matches!(mirror, Some(None)) {
            home.clear();
        }
        let mut untold = in_slots.iter();
        let mut outgoing = self.outgoing.lock();
        let flushed = loop {
            let flushed = self.flush(&mut outgoing);
            if !flushed || (home.is_empty() && untold.len() == 0) {
                break flushed;
            }
            let mut handles = home.split_off(home.len().saturating_sub(RETURNS_PER_FRAME));
            if let Some(Some(mirror)) = &mirror {
                // What their owner calls them.
                handles = handles.into_iter().filter_map(|handle| mirror.give_up(handle)).collect();
            }
            let look_at = untold.next().map_or(0, |port| port.number());
            outgoing.push((&Control::Returns { look_at, handles }).into());
        };
        drop(outgoing);
        if !flushed {
            self.send_when_writable();
        }
        let all = flushed && home.is_empty() && untold.len() == 0;
        self.orphans.lock().extend(home);
        untold.for_each(|port| port.returned_in_slots());
        all
    }

    /// A channel owes something: the next tick is to look at it.
    #[cold]
    pub(in crate::transport) fn owes(&self, number: u32) {
        self.owing.lock().push(number);
        self.arm();
    }

    /// A handle that belongs to no channel goes home with the next frames.
    pub(crate) fn owe(&self, handle: Handle) {
        self.orphans.lock().push(handle);
        self.arm();
    }

    /// Rings at the peer's door for a channel: at once, or when the socket has room.
    pub(in crate::transport) fn ring(&self, port: &Port, knock: Knock) {
        if !self.try_ring(port.number(), knock) {
            port.ring_later(knock);
        }
    }

    /// Rings for what is due; true if nothing is left.
    pub(super) fn ring_due(&self, port: &Port) -> bool {
        let due = port.door.take_due();
        let rung = due == Knock::NONE || self.try_ring(port.number(), due);
        if !rung {
            port.ring_later(due);
        }
        rung
    }

    /// Not queued: there may be as many as there are channels, and a peer that is stopped reads none of them.
    fn try_ring(&self, number: u32, knock: Knock) -> bool {
        let mut outgoing = self.outgoing.lock();
        if outgoing.said_goodbye {
            return true;
        }
        let sends = self.flush(&mut outgoing);
        let doorbell = Control::Doorbell { number, knock }.to_bytes();
        sends && !matches!(self.parts.socket.send(&doorbell, &[]), Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM))
    }
}
