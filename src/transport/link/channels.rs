//! The channels of a link: their memory, which stays until neither side looks at it, and what is left in them when they
//! close. Knows numbers and areas, not names or schemas.

use super::Core;
use super::closing::{Closing, Phase, Who};
use super::passing::Arrived;
use crate::ring;
use crate::shm::account::Account;
use crate::shm::arena::{AllocError, Arena};
use crate::shm::handle::WORD;
use crate::shm::view::View;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::passed::Passed;
use crate::sys::words::{OwnWords, PeerWords};
use crate::transport::control::{AreaAt, Control, Knock};
use crate::transport::inbox::Inbox;
use crate::transport::news::News;
use crate::transport::passage::Arrivals;
use crate::transport::port::Port;
use crate::wait::Wait;
use std::sync::{Arc, Weak};

/// A channel as the link knows it.
pub(super) struct Entry {
    /// This side's half, until both have left.
    area: Arc<OwnWords>,
    pub(super) port: Weak<Port>,
    pub(super) news: Arc<News>,
    /// The other side's half, while this side looks at it.
    pub(super) theirs: Weak<PeerWords>,
    /// With what was closed here, until the other side has filled its last slot.
    pub(super) closing: Closing<Inbox>,
    /// Descriptors of messages that were not received yet.
    pub(super) arrivals: Arrivals<Arrived>,
    /// This side's ring that many read, the other side among them, for as long as that may look.
    pub(super) stage: Option<Arc<OwnWords>>,
}

impl Entry {
    pub(super) fn new(area: Arc<OwnWords>) -> Self {
        Self {
            area,
            port: Weak::new(),
            news: Arc::default(),
            theirs: Weak::new(),
            closing: Closing::default(),
            arrivals: Arrivals::default(),
            stage: None,
        }
    }

    /// Whether the other side has emptied all that was filled here, as far as can be seen now.
    fn is_emptied(&self) -> bool {
        // Where both have closed, each empties the other's half by itself and may be done with its own.
        self.closing.here().min(self.closing.there()) > Phase::Open
            || self.theirs.upgrade().is_none_or(|theirs| ring::is_emptied(&self.area, &theirs))
    }
}

impl Core {
    /// Those alive now. Collected first, whatever is done with them: a port that is dropped comes back for the lock.
    pub(super) fn ports(&self) -> Vec<Arc<Port>> {
        self.channels.lock().values().filter_map(|entry| entry.port.upgrade()).collect()
    }

    /// This side's half of a channel that is open here.
    pub(super) fn area_of(&self, number: u32) -> Option<Arc<OwnWords>> {
        self.channels
            .lock()
            .get(&number)
            .filter(|entry| entry.closing.here() == Phase::Open)
            .map(|entry| entry.area.clone())
    }

    pub(super) fn port_of(&self, number: u32) -> Option<Arc<Port>> {
        self.channels.lock().get(&number)?.port.upgrade()
    }

    /// Notes a channel that both sides know of from now on.
    pub(crate) fn add_channel(&self, number: u32, area: Arc<OwnWords>) -> Result<(), PeerMisbehaved> {
        let mut channels = self.channels.lock();
        if channels.contains_key(&number) {
            return Err(PeerMisbehaved::ChannelNumber(number));
        }
        channels.insert(number, Entry::new(area));
        Ok(())
    }

    /// The peer has refused it, and never looked at this side's half.
    pub(crate) fn forget_channel(&self, number: u32) {
        let entry = self.channels.lock().remove(&number);
        drop(entry);
    }

    pub(crate) fn channel_count(&self) -> usize {
        self.channels.lock().len()
    }

    /// Whether the peer has received all that was sent, and returned all it was lent, as far as can be seen now.
    pub(crate) fn is_drained(&self) -> bool {
        self.ports().iter().for_each(|port| port.collect());
        let channels = self.channels.lock();
        channels.values().all(Entry::is_emptied) && self.loans.outstanding().0 == 0
    }

    /// The other side fills no more slots.
    pub(super) fn closed_there(&self, number: u32) -> Result<(), PeerMisbehaved> {
        let mut channels = self.channels.lock();
        let entry = channels.get_mut(&number).ok_or(PeerMisbehaved::ChannelNumber(number))?;
        let inbox = entry.closing.closed_there();
        let port = entry.port.upgrade();
        drop(channels);
        if let Some(port) = port {
            port.end(false);
            self.wake_passers();
        }
        if let Some(inbox) = inbox {
            self.leave(number, inbox);
        }
        Ok(())
    }

    /// The other side has emptied this side's slots for the last time, all of them. Whoever closes second says only this.
    pub(super) fn left_there(&self, number: u32) -> Result<(), PeerMisbehaved> {
        let closed_here = self.channels.lock().get(&number).is_some_and(|entry| entry.closing.may_leave());
        if !closed_here {
            return Err(PeerMisbehaved::ChannelNumber(number));
        }
        self.closed_there(number)?;
        self.left(number, Who::There);
        Ok(())
    }

    /// The peer rings for a channel: perhaps one that is closed by now, or that nobody listens to.
    pub(super) fn rung(&self, number: u32, knock: Knock) {
        if let Some(port) = self.port_of(number) {
            port.door.tell(knock);
        }
    }

    /// Notes what the peer says about a channel, whether it has a port yet or not.
    pub(super) fn tell(&self, number: u32, note: impl FnOnce(&News)) -> Result<Option<Arc<Port>>, PeerMisbehaved> {
        let channels = self.channels.lock();
        let entry = channels.get(&number).ok_or(PeerMisbehaved::ChannelNumber(number))?;
        // Noted under the lock under which a port is made: one of the two sees the other.
        note(&entry.news);
        Ok(entry.port.upgrade())
    }

    /// The other side sends no more; it still receives.
    pub(super) fn finished_there(&self, number: u32) -> Result<(), PeerMisbehaved> {
        self.tell(number, News::finish)?.inspect(|port| port.finish());
        Ok(())
    }

    /// The other side wants no more answers to a message.
    pub(super) fn cancelled_there(&self, number: u32, id: u64) -> Result<(), PeerMisbehaved> {
        self.tell(number, |news| news.cancel(id))?.inspect(|port| port.look_for_cancelled());
        Ok(())
    }

    /// Nobody will receive what is left in a closed channel: it goes home unread.
    fn empty(&self, mut inbox: Inbox) -> Option<Inbox> {
        let mut home = Vec::new();
        match inbox.empty(self, &mut home) {
            Ok(()) => {
                self.orphans.lock().extend(home);
                self.arm();
                Some(inbox)
            }
            Err(broken) => {
                self.misbehaved(broken);
                None
            }
        }
    }

    /// Closes a channel that was opened for somebody who no longer waits.
    pub(crate) fn close_unused(&self, number: u32, theirs: Arc<PeerWords>) {
        let own = self.channels.lock().get(&number).map(|entry| entry.area.clone());
        if let Some(own) = own {
            self.closed_here(number, Inbox::new(own, theirs, self.fence(), Wait::Park));
        }
    }

    /// This side's application is done with the channel.
    pub(in crate::transport) fn closed_here(&self, number: u32, inbox: Inbox) {
        // Emptied now, and once more when the other side has closed as well.
        let inbox = self.empty(inbox);
        let mut channels = self.channels.lock();
        let Some(entry) = channels.get_mut(&number) else { return };
        let tell = entry.closing.close();
        let unwanted = entry.arrivals.take_all();
        drop(channels);
        if self.mirror.is_some() {
            self.copied.lock().retain(|_, known| known.number != number);
        }
        self.took(unwanted.iter().map(Passed::sent).sum());
        if tell {
            self.send(&Control::ChannelClosed { number });
        }
        // Or the peer was cut off.
        let Some(inbox) = inbox else { return };
        // Only now, so that nobody says that this side has left before it was said to have closed.
        let mut channels = self.channels.lock();
        let inbox = match channels.get_mut(&number) {
            Some(entry) => entry.closing.said(inbox),
            None => Some(inbox),
        };
        drop(channels);
        if let Some(inbox) = inbox {
            self.leave(number, inbox);
        }
    }

    /// Both have filled their last slots: empties the other side's for the last time.
    fn leave(&self, number: u32, inbox: Inbox) {
        drop(self.empty(inbox));
        self.send(&Control::ChannelLeft { number });
        self.left(number, Who::Here);
    }

    /// One side has left. Once both have, the channel is over, and counts no longer in either.
    fn left(&self, number: u32, who: Who) {
        let mut channels = self.channels.lock();
        let Some(entry) = channels.get_mut(&number) else { return };
        let over = entry.closing.left(who);
        let entry = if over { channels.remove(&number) } else { None };
        // What it frees takes its time: not under the lock.
        drop(channels);
        drop(entry);
    }

    /// This side has no users any more, and has said its last word: what is left in closed channels the peer takes back by
    /// itself.
    pub(super) fn abandon_inboxes(&self) {
        let mut channels = self.channels.lock();
        let inboxes: Vec<_> = channels.values_mut().filter_map(|entry| entry.closing.abandon()).collect();
        drop(channels);
        drop(inboxes);
    }
}

/// Why there is no memory for a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CutProblem {
    Alloc(AllocError),
    /// The peer's user has as many channels as it may.
    TooMany,
}

/// Cuts the memory for one side's half of a channel, which counts as a channel of the peer's user for as long as that
/// memory is in use.
pub(crate) fn cut_area(
    arena: &Arena,
    slots: u32,
    account: Option<&Arc<Account>>,
) -> Result<(Arc<OwnWords>, AreaAt), CutProblem> {
    let counted = match account {
        None => None,
        Some(account) => Some(account.channel().ok_or(CutProblem::TooMany)?),
    };
    let (own, offset) = arena.words(ring::area::words(slots), counted).map_err(CutProblem::Alloc)?;
    Ok((Arc::new(own), AreaAt { offset, slots }))
}

/// Checks the peer's half of a channel.
pub(crate) fn view_area(view: &Arc<View>, at: AreaAt) -> Result<Arc<PeerWords>, PeerMisbehaved> {
    let possible = ring::SLOTS_RANGE.contains(&at.slots) && at.slots.is_power_of_two();
    if !possible || !at.offset.is_multiple_of((AREA_ALIGN / WORD) as u64) {
        return Err(PeerMisbehaved::Frame("impossible ring"));
    }
    view.words(at.offset, ring::area::words(at.slots) as u64).map(Arc::new)
}

/// Rings begin on a page of their own.
const AREA_ALIGN: usize = 4096;
