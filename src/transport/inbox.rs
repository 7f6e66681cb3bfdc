//! The receiving half of a lane: what is in the other side's ring, and the wait for it. Books what comes home; passes
//! messages on unopened.

use super::descriptor::{Descriptor, Envelope};
use super::port::Port;
use crate::ring::{Consumer, Payload};
use crate::shm::view::Home as _;
use crate::sys::futex::Spot;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::wait::{self, Notifier, Patience, Sleeper, Source};
use std::time::Instant;

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

impl Inbox {
    /// What there is already.
    #[inline]
    pub(super) fn look(&mut self, port: &Port) -> Option<Found> {
        // Read before the ring: what was published before the end must still be found.
        let open = port.is_open();
        if port.is_over() {
            return Some(Found::End);
        }
        loop {
            let opened = match self.consumer.try_pop() {
                Ok(None) if open => return None,
                Ok(None) => return Some(Found::End),
                Ok(Some(payload)) => open_slot(port, payload),
                Err(broken) => Err(broken),
            };
            self.sender.notify(|| self.consumer.producers_spot());
            match opened {
                Ok(None) => {}
                Ok(Some(envelope)) => return Some(Found::Message(envelope)),
                Err(broken) => return Some(Found::Broken(broken)),
            }
        }
    }

    /// Waits for what comes; `None` once the deadline has passed.
    #[inline]
    pub(super) fn wait(&mut self, port: &Port, deadline: Option<Instant>) -> Option<Found> {
        let mut arrival = Arrival { inbox: self, port };
        wait::wait(&mut arrival, &port.bell, deadline)
    }

    /// Books what has come home as far as no message is in the way, which only the application may take.
    #[inline]
    pub(super) fn collect(&mut self, port: &Port) -> Result<(), PeerMisbehaved> {
        while !port.is_over() {
            match self.consumer.peek()? {
                Some(payload) if Descriptor::is_returns(payload) => {}
                _ => return Ok(()),
            }
            if let Some(payload) = self.consumer.try_pop()? {
                self.sender.notify(|| self.consumer.producers_spot());
                open_slot(port, payload)?;
            }
        }
        Ok(())
    }
}

/// Books what comes home; passes a message on.
#[inline]
fn open_slot(port: &Port, payload: Payload) -> Result<Option<Envelope>, PeerMisbehaved> {
    let core = port.core();
    match Descriptor::from_words(payload)? {
        Descriptor::Message(envelope) => {
            // Its first line comes from the other CPU while the books are kept here.
            port.view().fetch(envelope.handle);
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
