//! The receiving half of a lane: what is in the other side's ring, and the wait for it. Books what comes home; passes
//! messages on unopened.

use super::control::Knock;
use super::descriptor::{Arrived, Descriptor, Envelope, FIRST_INSIDE, Kind, RETURNS, Return};
use super::ended::Ended;
use super::link::Core;
use super::port::{self, Next, Port};
use crate::ring::{Consumer, area};
use crate::shm::handle::Handle;
use crate::shm::view::Home as _;
use crate::sys::barrier::Fence;
use crate::sys::futex::Spot;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::{OwnWords, PeerWords};
use crate::wait::{self, Deadline, Notifier, Patience, Roused, Sleeper, Source, Wait};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// See the module's own words.
pub(super) struct Inbox {
    pub(super) consumer: Consumer,
    pub(super) sleeper: Sleeper,
    /// To the peer's sender, which may wait for room.
    pub(super) sender: Notifier,
    pub(super) patience: Patience,
    /// Taken from its slot, and not complete before its descriptors are here.
    held: Option<Envelope>,
    /// How long the next message may wait for its descriptors, once it does. An honest peer has sent them before it.
    until: Option<Instant>,
}

/// Messages that were taken together.
pub(crate) type Taken = SmallVec<[Arrived; TAKEN_MAX]>;

/// As many as are taken together.
pub(crate) const TAKEN_MAX: usize = 64;

/// A peer whose socket is full, or that the kernel allows no more descriptors, takes its time.
const HELD_MAX: Duration = Duration::from_secs(5);

/// What a look at the ring can end with.
pub(super) enum Found {
    Message,
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
            held: None,
            until: None,
        }
    }

    /// Takes what there is already; a message into `into`.
    #[inline(always)]
    pub(super) fn take(&mut self, port: &Port, into: &mut Arrived) -> Option<Found> {
        // Read before the ring: what was published before the end must still be found.
        let condition = port.condition();
        if condition == port::OVER {
            return Some(Found::End);
        }
        if self.held.is_some() {
            return self.take_held(port, into, condition == port::OPEN);
        }
        for _ in 0..RETURNS_PER_TURN {
            let kind = match self.take_slot(into) {
                Ok(Some(kind)) => kind,
                Ok(None) if condition == port::OPEN => return None,
                Ok(None) if condition == port::FINISHED => return Some(Found::Finished),
                Ok(None) => return Some(Found::End),
                Err(broken) => return Some(Found::Broken(broken)),
            };
            self.emptied(port);
            if let Err(broken) = open_slot(port, &into.envelope, kind) {
                return Some(Found::Broken(broken));
            }
            if kind == Kind::Returns {
                continue;
            }
            if into.envelope.fds() > 0 {
                self.held = Some(into.envelope);
                return self.take_held(port, into, condition == port::OPEN);
            }
            self.patience.found();
            return Some(Found::Message);
        }
        None
    }

    /// Fills `into`, which is empty, with messages that there are already, and has one word for their sender for all of
    /// them; what else there is to say comes when there are none.
    pub(super) fn take_many(&mut self, port: &Port, into: &mut Taken) -> Option<Found> {
        if port.condition() != port::OPEN || self.held.is_some() {
            return self.put_one(port, into);
        }
        let (mut emptied, mut broken) = (false, None);
        for _ in 0..TAKEN_MAX + RETURNS_PER_TURN {
            if into.len() == TAKEN_MAX {
                break;
            }
            let mut arrived = Arrived::default();
            let opened = match self.read_slot(&mut arrived) {
                Ok(None) => break,
                Ok(Some((kind, slots))) => {
                    self.consumer.advance_unsaid(slots);
                    emptied = true;
                    open_slot(port, &arrived.envelope, kind).map(|()| kind)
                }
                Err(error) => Err(error),
            };
            match opened {
                Ok(Kind::Returns) => {}
                Ok(_) if arrived.envelope.fds() > 0 => {
                    // Its turn comes with the next call, in which its descriptors are looked for.
                    self.held = Some(arrived.envelope);
                    break;
                }
                Ok(_) => {
                    self.patience.found();
                    into.push(arrived);
                }
                Err(error) => {
                    broken = Some(Found::Broken(error));
                    break;
                }
            }
        }
        if emptied {
            self.consumer.say_emptied();
            self.emptied(port);
        }
        if broken.is_some() {
            // Nothing of a peer that has just lied is believed.
            into.clear();
        } else if into.is_empty() && self.held.is_some() {
            return self.put_one(port, into);
        }
        broken
    }

    fn put_one(&mut self, port: &Port, into: &mut Taken) -> Option<Found> {
        let mut arrived = Arrived::default();
        match self.take(port, &mut arrived)? {
            Found::Message => {
                into.push(arrived);
                None
            }
            other => Some(other),
        }
    }

    /// Takes the next slot, with those that belong to it.
    #[inline(always)]
    fn take_slot(&mut self, into: &mut Arrived) -> Result<Option<Kind>, PeerMisbehaved> {
        let Some((kind, slots)) = self.read_slot(into)? else { return Ok(None) };
        self.consumer.advance(slots);
        Ok(Some(kind))
    }

    /// Reads the next slot, with those that belong to it; tells how many it is to advance by.
    #[inline(always)]
    fn read_slot(&mut self, into: &mut Arrived) -> Result<Option<(Kind, u64)>, PeerMisbehaved> {
        if !self.consumer.read_next(into.envelope.words_mut())? {
            return Ok(None);
        }
        let kind = into.envelope.check()?;
        let slots = if kind == Kind::Inside { self.read_inside(into)? } else { 1 };
        Ok(Some((kind, slots)))
    }

    #[inline]
    fn read_inside(&self, into: &mut Arrived) -> Result<u64, PeerMisbehaved> {
        let mut inside = into.envelope.open_inside();
        let slots = match inside.words_mut().get_mut(FIRST_INSIDE..) {
            Some(rest) => self.consumer.read_rest(rest)?,
            None => 1,
        };
        into.inside = Some(inside);
        Ok(slots)
    }

    /// `open`: descriptors may still come. What has come of them is kept where the message will be opened.
    #[cold]
    fn take_held(&mut self, port: &Port, into: &mut Arrived, open: bool) -> Option<Found> {
        let envelope = self.held?;
        match port.are_here(envelope) {
            Ok(false) if open && self.in_time() => {
                port.look_again_later(Knock::FILLED);
                None
            }
            Ok(here) => {
                if !here {
                    port.give_up_passed(envelope);
                }
                (self.held, self.until) = (None, None);
                self.patience.found();
                *into = Arrived { envelope, inside: None };
                Some(Found::Message)
            }
            Err(broken) => Some(Found::Broken(broken)),
        }
    }

    /// Books what has come home, and takes the handles of messages that nobody will open: one lap at most, after which
    /// the peer has filled its last slot or is still there to be asked again.
    pub(super) fn empty(&mut self, core: &Core, home: &mut Vec<Handle>) -> Result<(), PeerMisbehaved> {
        home.extend(self.held.take().and_then(|envelope| envelope.lent_as()));
        for _ in 0..self.consumer.capacity() {
            if matches!(core.ended(), Some(Ended::PeerMisbehaved(_))) {
                return Ok(());
            }
            let mut arrived = Arrived::default();
            let Some(kind) = self.take_slot(&mut arrived)? else { return Ok(()) };
            // A sender at the door learns of the end, which is near, by other means.
            let _ = self.sender.notify(|| self.consumer.producers_spot());
            let envelope = arrived.envelope;
            if kind == Kind::Returns {
                give_back(core, envelope.returns())?;
                continue;
            }
            home.extend(envelope.lent_as());
            envelope.returned().map_or(Ok(()), |handle| core.loans().give_back(handle))?;
        }
        Ok(())
    }

    /// Tells the peer's sender, if it waits, that there is room.
    #[inline]
    fn emptied(&mut self, port: &Port) {
        if self.sender.notify(|| self.consumer.producers_spot()) == Roused::AtDoor {
            port.core().ring(port, Knock::EMPTIED);
        }
        port.core().carry(port.number());
    }

    /// What comes next, for whoever then waits at the door if there is nothing.
    pub(super) fn next_or_door(&mut self, port: &Port) -> Result<Next, PeerMisbehaved> {
        // Read before the ring: what was published before the end must still be found.
        let condition = port.condition();
        if condition == port::OVER {
            return Ok(Next::End);
        }
        if let Some(next) = self.next(port)? {
            return Ok(next);
        }
        match condition {
            port::OPEN => {}
            port::FINISHED => return Ok(Next::Finished),
            _ => return Ok(Next::End),
        }
        self.sleeper.go_to_door();
        // What was published before anyone could see that this end is there.
        let next = self.next(port)?;
        if next.is_some() {
            self.sleeper.get_up();
        }
        Ok(next.unwrap_or(Next::Nothing))
    }

    fn next(&mut self, port: &Port) -> Result<Option<Next>, PeerMisbehaved> {
        self.collect(port)?;
        let (envelope, kind) = match (self.held, self.consumer.peek()?) {
            (Some(held), _) => (held, held.kind()),
            (None, None) => return Ok(None),
            (None, Some(payload)) if Descriptor::is_returns(payload) => return Ok(Some(Next::More)),
            (None, Some(payload)) => {
                let kind = Descriptor::kind_of(payload);
                match Descriptor::from_words(*payload)? {
                    Descriptor::Message(envelope) if envelope.fds() > 0 => (envelope, kind),
                    _ => return Ok(Some(Next::Message(kind))),
                }
            }
        };
        // Nothing to take before its descriptors are here, or will not come; whoever brings them tells.
        let complete = port.condition() != port::OPEN || port.are_here(envelope)? || !self.in_time();
        if !complete {
            port.look_again_later(Knock::FILLED);
        }
        Ok(complete.then_some(Next::Message(kind)))
    }

    /// Whether the next message may wait for its descriptors any longer.
    fn in_time(&mut self) -> bool {
        let now = Instant::now();
        now < *self.until.get_or_insert(now.checked_add(HELD_MAX).unwrap_or(now))
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
            let mut arrived = Arrived::default();
            if let Some(kind) = self.take_slot(&mut arrived)? {
                self.emptied(port);
                open_slot(port, &arrived.envelope, kind)?;
            }
        }
        Ok(())
    }
}

/// Books what comes home.
#[inline(always)]
fn open_slot(port: &Port, envelope: &Envelope, kind: Kind) -> Result<(), PeerMisbehaved> {
    match kind {
        Kind::Inside | Kind::Sealed => return Ok(()),
        Kind::Returns => return give_back(port.core(), envelope.returns()),
        Kind::Lent => {}
    }
    // Its first line comes from the other CPU while the rest is done here.
    if let Some(handle) = envelope.lent_as() {
        port.view().fetch(handle);
    }
    match envelope.returned() {
        Some(handle) => port.core().loans().give_back(handle),
        None => Ok(()),
    }
}

#[cold]
fn give_back(core: &Core, home: [Option<Return>; RETURNS]) -> Result<(), PeerMisbehaved> {
    let give_back = |Return { handle, times }| core.loans().give_back_times(handle, times);
    home.into_iter().flatten().try_for_each(give_back)?;
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
        let over = self.port.condition() != port::OPEN;
        match self.inbox.held {
            None => self.inbox.consumer.is_ready() || over,
            Some(envelope) => over || self.port.are_here(envelope) != Ok(false) || !self.inbox.in_time(),
        }
    }

    fn spot(&self) -> (Spot<'_>, u32) {
        match self.inbox.held {
            None => self.inbox.consumer.spot(),
            // The bell tells.
            Some(_) => self.inbox.consumer.quiet_spot(),
        }
    }

    #[inline]
    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper) {
        (&mut self.inbox.patience, &mut self.inbox.sleeper)
    }

    fn is_promised(&self) -> bool {
        self.inbox.consumer.is_promised()
    }

    fn attends(&mut self) -> bool {
        // Nobody rings when descriptors have not come in time.
        self.port.core().attend() || self.inbox.held.is_some()
    }
}
