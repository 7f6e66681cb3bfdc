//! The receiving half of a lane: what is in the other side's ring, and the wait for it. Books what comes home; passes
//! messages on unopened.

use super::descriptor::{Descriptor, Envelope};
use super::ended::Ended;
use super::link::Core;
use super::port::Port;
use crate::ring::{Consumer, Payload, area};
use crate::shm::handle::Handle;
use crate::shm::view::Home as _;
use crate::sys::barrier::Fence;
use crate::sys::futex::Spot;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::{OwnWords, PeerWords};
use crate::wait::{self, Deadline, Notifier, Patience, Sleeper, Source, Wait};
use std::sync::Arc;

/// See the module's own words.
pub(super) struct Inbox {
    pub(super) consumer: Consumer,
    pub(super) sleeper: Sleeper,
    /// To the peer's sender, which may wait for room.
    pub(super) sender: Notifier,
    pub(super) patience: Patience,
}

/// What a look at the ring can end with.
pub(super) enum Found {
    Message(Envelope),
    /// There is nothing and nothing will come.
    End,
    Broken(PeerMisbehaved),
}

/// Slots of returns that one look may book: a peer that fills them as fast as they are emptied must not keep a waiter
/// from its deadline, nor the watcher from other sessions.
const RETURNS_PER_LOOK: usize = 64;

impl Inbox {
    pub(super) fn new(own: Arc<OwnWords>, peer: Arc<PeerWords>, fence: Fence, strategy: Wait) -> Self {
        Self {
            consumer: Consumer::new(own.clone(), peer.clone()),
            sleeper: Sleeper::new(own.clone(), area::RECEIVER, peer.clone(), area::SENDER, area::RECEIVER),
            sender: Notifier::new(own, area::RECEIVER, peer, area::SENDER, fence),
            patience: Patience::new(strategy),
        }
    }

    /// What there is already.
    #[inline]
    pub(super) fn look(&mut self, port: &Port) -> Option<Found> {
        // Read before the ring: what was published before the end must still be found.
        let open = port.is_open();
        if port.is_over() {
            return Some(Found::End);
        }
        for _ in 0..RETURNS_PER_LOOK {
            let opened = match self.consumer.try_pop() {
                Ok(None) if open => return None,
                Ok(None) => return Some(Found::End),
                Ok(Some(payload)) => open_slot(port.core(), payload),
                Err(broken) => Err(broken),
            };
            self.sender.notify(|| self.consumer.producers_spot());
            match opened {
                Ok(None) => {}
                Ok(Some(envelope)) => {
                    // Its first line comes from the other CPU while the rest is done here.
                    port.view().fetch(envelope.handle);
                    return Some(Found::Message(envelope));
                }
                Err(broken) => return Some(Found::Broken(broken)),
            }
        }
        None
    }

    /// Books what has come home, and takes the handles of messages that nobody will open: one lap at most, after which
    /// the peer has filled its last slot or is still there to be asked again.
    pub(super) fn empty(&mut self, core: &Core, home: &mut Vec<Handle>) -> Result<(), PeerMisbehaved> {
        for _ in 0..self.consumer.capacity() {
            if matches!(core.ended(), Some(Ended::PeerMisbehaved(_))) {
                return Ok(());
            }
            let Some(payload) = self.consumer.try_pop()? else { return Ok(()) };
            self.sender.notify(|| self.consumer.producers_spot());
            home.extend(open_slot(core, payload)?.map(|envelope| envelope.handle));
        }
        Ok(())
    }

    /// Waits for what comes; `None` once the deadline has passed.
    #[inline]
    pub(super) fn wait(&mut self, port: &Port, deadline: &mut Deadline) -> Option<Found> {
        let mut arrival = Arrival { inbox: self, port };
        wait::wait(&mut arrival, &port.bell, deadline)
    }

    /// Books what has come home as far as no message is in the way, which only the application may take.
    #[inline]
    pub(super) fn collect(&mut self, port: &Port) -> Result<(), PeerMisbehaved> {
        for _ in 0..RETURNS_PER_LOOK {
            if port.is_over() {
                return Ok(());
            }
            match self.consumer.peek()? {
                Some(payload) if Descriptor::is_returns(payload) => {}
                _ => return Ok(()),
            }
            if let Some(payload) = self.consumer.try_pop()? {
                self.sender.notify(|| self.consumer.producers_spot());
                open_slot(port.core(), payload)?;
            }
        }
        Ok(())
    }
}

/// Books what comes home; passes a message on.
#[inline]
fn open_slot(core: &Core, payload: Payload) -> Result<Option<Envelope>, PeerMisbehaved> {
    match Descriptor::from_words(payload)? {
        Descriptor::Message(envelope) => {
            if let Some(handle) = envelope.returned {
                core.loans().give_back(handle)?;
            }
            Ok(Some(envelope))
        }
        Descriptor::Returns(home) => {
            home.into_iter().flatten().try_for_each(|handle| core.loans().give_back(handle))?;
            core.arm();
            Ok(None)
        }
    }
}

/// Waiting for a message.
struct Arrival<'a> {
    inbox: &'a mut Inbox,
    port: &'a Port,
}

impl Source for Arrival<'_> {
    type Item = Found;

    #[inline]
    fn look(&mut self) -> Option<Found> {
        self.inbox.look(self.port)
    }

    fn spot(&self) -> (Spot<'_>, u32) {
        self.inbox.consumer.spot()
    }

    #[inline]
    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper) {
        (&mut self.inbox.patience, &mut self.inbox.sleeper)
    }
}
