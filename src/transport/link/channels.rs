//! The channels of a link: their memory, which stays until neither side looks at it, and what is left in them when they
//! close. Knows numbers and areas, not names or schemas.

use super::Core;
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

/// A channel as the link knows it. Its memory stays until neither side looks at it.
pub(super) struct Entry {
    area: Arc<OwnWords>,
    pub(super) port: Weak<Port>,
    pub(super) news: Arc<News>,
    /// The other side's half, while this side looks at it.
    pub(super) theirs: Weak<PeerWords>,
    pub(super) closed_here: bool,
    pub(super) closed_there: bool,
    /// Descriptors of messages that were not received yet.
    pub(super) arrivals: Arrivals<Arrived>,
    /// What was closed here, until the other side has filled its last slot.
    inbox: Option<Inbox>,
}

impl Entry {
    pub(super) fn new(area: Arc<OwnWords>) -> Self {
        Self {
            area,
            port: Weak::new(),
            news: Arc::default(),
            theirs: Weak::new(),
            closed_here: false,
            closed_there: false,
            arrivals: Arrivals::default(),
            inbox: None,
        }
    }
}

impl Core {
    /// Those alive now. Collected first, whatever is done with them: a port that is dropped comes back for the lock.
    pub(super) fn ports(&self) -> Vec<Arc<Port>> {
        self.channels.lock().values().filter_map(|entry| entry.port.upgrade()).collect()
    }

    /// This side's half of a channel that is open here.
    pub(super) fn area_of(&self, number: u32) -> Option<Arc<OwnWords>> {
        self.channels.lock().get(&number).filter(|entry| !entry.closed_here).map(|entry| entry.area.clone())
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
        // What nobody looks at any more was emptied when both sides had closed it.
        let emptied =
            |entry: &Entry| entry.theirs.upgrade().is_none_or(|theirs| ring::is_emptied(&entry.area, &theirs));
        channels.values().all(emptied) && self.loans.outstanding().0 == 0
    }

    pub(super) fn closed_there(&self, number: u32) -> Result<(), PeerMisbehaved> {
        let mut channels = self.channels.lock();
        let entry = channels.get_mut(&number).ok_or(PeerMisbehaved::ChannelNumber(number))?;
        entry.closed_there = true;
        let port = entry.port.upgrade();
        let gone = if entry.closed_here { channels.remove(&number) } else { None };
        drop(channels);
        if let Some(port) = port {
            port.end(false);
            self.wake_passers();
        }
        if let Some(inbox) = gone.and_then(|entry| entry.inbox) {
            self.empty(inbox);
        }
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
            self.closed_here(number, Some(Inbox::new(own, theirs, self.fence(), Wait::Park)));
        }
    }

    /// This side neither fills nor empties slots of the channel any more.
    pub(in crate::transport) fn closed_here(&self, number: u32, inbox: Option<Inbox>) {
        // Emptied now, and once more when the other side has closed as well.
        let inbox = inbox.and_then(|inbox| self.empty(inbox));
        let mut channels = self.channels.lock();
        let Some(entry) = channels.get_mut(&number) else { return };
        entry.closed_here = true;
        entry.inbox = inbox;
        let unwanted = entry.arrivals.take_all();
        let gone = if entry.closed_there { channels.remove(&number) } else { None };
        drop(channels);
        if let Some(inbox) = gone.and_then(|entry| entry.inbox) {
            self.empty(inbox);
        }
        if self.mirror.is_some() {
            self.copied.lock().retain(|_, known| *known != number);
        }
        self.took(unwanted.iter().map(Passed::sent).sum());
        self.send(&Control::ChannelClosed { number });
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
    let block = arena.alloc(ring::area::words(slots) * WORD, AREA_ALIGN).map_err(CutProblem::Alloc)?;
    let offset = block.offset();
    Ok((Arc::new(block.into_words(counted)), AreaAt { offset, slots }))
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
