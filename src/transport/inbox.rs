//! The receiving half of a lane: what is in the other side's ring, and the wait for it. Books what comes home; passes
//! messages on unopened.

use super::descriptor::{Descriptor, Envelope, RETURNS};
use super::ended::Ended;
use super::link::Core;
use super::port::{self, Port};
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
    /// There is nothing, and the other side has said that nothing will come.
    Finished,
    /// There is nothing and nothing will come.
    End,
    Broken(PeerMisbehaved),
}

/// Slots of returns that are booked at a time: a peer that fills them as fast as they are emptied must not keep a waiter
/// from its deadline, nor the watcher from other sessions.
const RETURNS_PER_TURN: usize = 64;

impl Inbox {
    pub(super) fn new(own: Arc<OwnWords>, peer: Arc<PeerWords>, fence: Fence, strategy: Wait) -> Self {
        Self {
            consumer: Consumer::new(own.clone(), peer.clone()),
            sleeper: Sleeper::new(own.clone(), area::RECEIVER, peer.clone(), area::SENDER, area::RECEIVER),
            sender: Notifier::new(own, area::RECEIVER, peer, area::SENDER, fence),
            patience: Patience::new(strategy),
        }
    }

    /// Takes what there is already.
    // Into its two callers, so that the envelope goes from the slot to where it is wanted without a stop in between.
    #[inline(always)]
    pub(super) fn take(&mut self, port: &Port) -> Option<Found> {
        // Read before the ring: what was published before the end must still be found.
        let condition = port.condition();
        if condition == port::OVER {
            return Some(Found::End);
        }
        for _ in 0..RETURNS_PER_TURN {
            let opened = match self.consumer.try_pop() {
                Ok(None) if condition == port::OPEN => return None,
                Ok(None) if condition == port::FINISHED => return Some(Found::Finished),
                Ok(None) => return Some(Found::End),
                Ok(Some(payload)) => {
                    self.sender.notify(|| self.consumer.producers_spot());
                    port.core().carry(port.number());
                    open_slot(port, payload)
                }
                Err(broken) => Err(broken),
            };
            match opened {
                Ok(None) => {}
                Ok(Some(envelope)) => {
                    self.patience.found();
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
            match Descriptor::from_words(payload)? {
                Descriptor::Message(envelope, returned) => {
                    home.push(envelope.handle);
                    returned.map_or(Ok(()), |handle| core.loans().give_back(handle))?;
                }
                Descriptor::Returns(returned) => give_back(core, returned)?,
            }
        }
        Ok(())
    }

    /// Waits until there is something to take; false once the deadline has passed.
    pub(super) fn wait(&mut self, port: &Port, deadline: &mut Deadline) -> bool {
        wait::wait(&mut Arrival { inbox: self, port }, &port.bell, deadline)
    }

    /// Books what has come home as far as no message is in the way, which only the application may take.
    #[inline]
    pub(super) fn collect(&mut self, port: &Port) -> Result<(), PeerMisbehaved> {
        for _ in 0..RETURNS_PER_TURN {
            if port.is_over() {
                return Ok(());
            }
            match self.consumer.peek()? {
                Some(payload) if Descriptor::is_returns(payload) => {}
                _ => return Ok(()),
            }
            if let Some(payload) = self.consumer.try_pop()? {
                self.sender.notify(|| self.consumer.producers_spot());
                port.core().carry(port.number());
                open_slot(port, payload)?;
            }
        }
        Ok(())
    }
}

/// Books what comes home; passes a message on.
#[inline(always)]
fn open_slot(port: &Port, payload: Payload) -> Result<Option<Envelope>, PeerMisbehaved> {
    match Descriptor::from_words(payload)? {
        Descriptor::Message(envelope, returned) => {
            // Its first line comes from the other CPU while the rest is done here.
            port.view().fetch(envelope.handle);
            if let Some(handle) = returned {
                port.core().loans().give_back(handle)?;
            }
            Ok(Some(envelope))
        }
        Descriptor::Returns(home) => give_back(port.core(), home).map(|()| None),
    }
}

#[cold]
fn give_back(core: &Core, home: [Option<Handle>; RETURNS]) -> Result<(), PeerMisbehaved> {
    home.into_iter().flatten().try_for_each(|handle| core.loans().give_back(handle))?;
    core.arm();
    Ok(())
}

/// Waiting for a message.
struct Arrival<'a> {
    inbox: &'a mut Inbox,
    port: &'a Port,
}

impl Source for Arrival<'_> {
    #[inline]
    fn ready(&mut self) -> bool {
        self.inbox.consumer.is_ready() || self.port.condition() != port::OPEN
    }

    fn spot(&self) -> (Spot<'_>, u32) {
        self.inbox.consumer.spot()
    }

    #[inline]
    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper) {
        (&mut self.inbox.patience, &mut self.inbox.sleeper)
    }
}
