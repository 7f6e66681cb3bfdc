//! The publishing side.

use super::Policy;
use super::error::{AddError, Dismissed, PublishError};
use super::roll::Member;
use super::standing::{CUT_OFF, OVER};
use crate::channel::Channel;
use crate::message::{Builder, Message, Schema};
use crate::ring::{SLOTS_RANGE, area, broadcast};
use crate::shm::arena::{AllocError, Arena};
use crate::shm::block::Frozen;
use crate::shm::handle::{Handle, WORD};
use crate::sys::barrier::Fence;
use crate::sys::fork;
use crate::sys::futex::Spot;
use crate::sys::words::OwnWords;
use crate::transport::control::{AreaAt, StageAt};
use crate::transport::descriptor::{Envelope, FIRST_INSIDE};
use crate::wait::{self, Crier, Deadline, Patience, Sleeper, Source, Wait};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Publishes messages with root `T` to many subscribers, in as many sessions of the app whose arena it has.
///
/// A message is written once and named once, however many there are to read it; its memory is free again when every
/// subscriber has dropped it. A subscriber that is slow, stopped or hostile holds at most as many messages as there are
/// slots, and slows nobody down beyond what its [`Policy`] says; one that dies holds nothing. Owned by one thread at a time.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use std::time::Duration;
/// use strait::{Policy, Publisher, SessionServer, Subscriber};
///
/// fn publish(server: &SessionServer) -> Result<(), Box<dyn std::error::Error>> {
///     let mut publisher = Publisher::<hello::Owned>::new(server.arena(), 256)?;
///     let session = server.accept()?;
///     publisher.add(session.accept_channel()?, Policy::DropOldest)?;
///     let mut news = publisher.create_msg();
///     news.init_root().set_greet("all of you");
///     publisher.publish(&news.freeze()?)?;
///     Ok(())
/// }
///
/// // In another process:
/// fn follow(session: &strait::Session) -> Result<(), Box<dyn std::error::Error>> {
///     let channel = session.open_channel::<hello::Owned>("news", Duration::from_secs(1))?;
///     let mut news = Subscriber::new(channel, Duration::from_secs(1))?;
///     println!("{:?}, {} lost", news.recv()?.get()?, news.lost());
///     Ok(())
/// }
/// # fn main() {}
/// ```
pub struct Publisher<T: Schema> {
    members: Vec<Member<T>>,
    /// No members any more, who may still read.
    leaving: Vec<Member<T>>,
    dismissed: VecDeque<(String, Dismissed)>,
    arena: Arena,
    ring: Arc<OwnWords>,
    /// Where that lies.
    at: AreaAt,
    crier: Crier,
    patience: Patience,
    bodies: Box<[Option<Arc<Frozen>>]>,
    published: u64,
    /// Before this position is published the subscribers are looked at.
    look: u64,
    /// Messages below this are not needed by any member.
    freed: u64,
    fork: u32,
}

/// How a subscriber does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriberState {
    /// The name of its app.
    pub peer: String,
    /// How many messages it may still read.
    pub behind: u64,
    /// How many it has lost, as far as is known here.
    pub lost: u64,
}

/// Notes of dismissals that nobody has taken yet.
const NOTES_MAX: usize = 1024;

enum Room {
    Now,
    By(Deadline),
}

impl<T: Schema> Publisher<T> {
    /// Publishes out of an arena: [`SessionServer::arena`](crate::SessionServer::arena), or that of any session. `slots`:
    /// how many messages a subscriber may be behind; rounded up to a power of two between 2 and 65,536.
    ///
    /// # Errors
    /// [`AllocError`]: the arena has no room for the ring, which takes 64 bytes per slot.
    pub fn new(arena: &Arena, slots: u32) -> Result<Self, AllocError> {
        let (low, high) = SLOTS_RANGE.into_inner();
        let slots = slots.clamp(low, high).next_power_of_two();
        let block = arena.alloc(area::words(slots) * WORD, RING_ALIGN)?;
        let at = AreaAt { offset: block.offset(), slots };
        let ring = Arc::new(block.into_words(()));
        Ok(Self {
            members: Vec::new(),
            leaving: Vec::new(),
            dismissed: VecDeque::new(),
            arena: arena.clone(),
            crier: Crier::new(ring.clone(), area::SENDER, area::RECEIVER, Fence::SleeperMay),
            ring,
            at,
            patience: Patience::new(Wait::default()),
            bodies: std::iter::repeat_n(None, slots as usize).collect(),
            published: 0,
            look: 0,
            freed: 0,
            fork: fork::generation(),
        })
    }

    /// Begins a message in the publisher's arena.
    #[must_use]
    pub fn create_msg(&self) -> Builder<T> {
        Builder::new(&self.arena)
    }

    /// How it waits for subscribers of [`Policy::Block`] from now on.
    pub fn set_wait(&mut self, wait: Wait) {
        self.patience = Patience::new(wait);
    }

    /// Makes the other side of a channel a subscriber, which gets what is published from here on. The channel is its alone:
    /// what else was sent over it is not received.
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add(&mut self, channel: Channel<T>, policy: Policy) -> Result<(), AddError> {
        let port = channel.port().clone();
        let core = port.core();
        if !port.is_open() {
            return Err(port.error().into());
        }
        if core.view().is_none_or(|view| view.mirror().is_some()) {
            return Err(AddError::NotShared);
        }
        if !core.arena().same(&self.arena) {
            return Err(AddError::ForeignArena);
        }
        let slots = u64::from(self.at.slots);
        let window = match policy {
            Policy::Lossless { behind } => u64::from(behind).clamp(1, slots),
            Policy::Block { .. } | Policy::DropOldest => slots,
        };
        let start = self.published;
        let member = Member::new(channel, policy, (start, window), &self.ring).ok_or_else(|| port.error())?;
        self.crier.admit(core.fence());
        core.stage(&port, self.ring.clone(), StageAt { ring: self.at, start });
        self.members.push(member);
        self.look = self.published;
        Ok(())
    }

    /// Publishes a message to all subscribers there are, waiting for those whose policy says so. Tells how many messages
    /// were published before.
    ///
    /// # Errors
    /// [`PublishError`]; nobody has got it then.
    pub fn publish(&mut self, message: &Message<T>) -> Result<u64, PublishError> {
        self.publish_by(message, Room::By(Deadline::Never))
    }

    /// As [`publish`](Self::publish), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`PublishError`], `TimedOut` among them; nobody has got it then.
    pub fn publish_timeout(&mut self, message: &Message<T>, timeout: Duration) -> Result<u64, PublishError> {
        self.publish_by(message, Room::By(Deadline::After(timeout)))
    }

    /// As [`publish`](Self::publish), if nobody has to be waited for. Never blocks.
    ///
    /// # Errors
    /// [`PublishError`], `Full` among them; nobody has got it then.
    pub fn try_publish(&mut self, message: &Message<T>) -> Result<u64, PublishError> {
        self.publish_by(message, Room::Now)
    }

    #[inline]
    fn publish_by(&mut self, message: &Message<T>, room: Room) -> Result<u64, PublishError> {
        // A sealed message is one with descriptors.
        let frozen = message.frozen().ok_or(PublishError::Descriptors)?;
        if self.fork != fork::generation() {
            return Err(PublishError::ForkedProcess);
        }
        if !frozen.arena().same(&self.arena) {
            return Err(PublishError::ForeignArena);
        }
        if message.fds().is_some() {
            return Err(PublishError::Descriptors);
        }
        if self.published == self.look {
            self.make_room(room)?;
        }
        let position = self.published;
        let index = (position % u64::from(self.at.slots)) as usize;
        let (envelope, body) = match frozen.inside(FIRST_INSIDE) {
            Some(words) => (Envelope::inside(words).0, None),
            None => {
                let (offset, len) = frozen.place();
                let handle = Handle::new(self.arena.id(), offset, len, position as u32);
                // At most 512 and 255, or it would not be frozen.
                let envelope = Envelope::lent(handle, frozen.segment_count() as u16, frozen.blobs().len() as u8);
                (envelope, Some(frozen.clone()))
            }
        };
        if let Some(place) = self.bodies.get_mut(index) {
            // What was there is read by no member, and by those who may still read it otherwise it is held.
            *place = body.filter(|_| !self.members.is_empty());
        }
        let envelope = envelope.marked(0, message.kind(), None).numbered(position + 1);
        broadcast::put(&self.ring, position, envelope.words());
        self.published = position + 1;
        let waiting = self.members.iter().map(|member| &*member.words);
        self.crier.notify(waiting, || broadcast::spot(&self.ring, position));
        Ok(position)
    }

    /// How many messages were published so far.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.published
    }

    /// Looks how far the subscribers are, and frees what all of them have dropped. It is done now and then in any case, as
    /// messages are published.
    pub fn collect(&mut self) {
        if self.fork == fork::generation() {
            self.refresh();
        }
    }

    /// The subscribers there are, as they were last seen.
    pub fn subscribers(&self) -> impl Iterator<Item = SubscriberState> {
        self.members.iter().map(|member| SubscriberState {
            peer: member.channel.port().core().peer_name().to_owned(),
            behind: member.standing.behind(self.published),
            lost: member.standing.lost(),
        })
    }

    /// Which subscribers are none any more, and why, by the names of their apps; since the last call, 1024 at most.
    pub fn take_dismissed(&mut self) -> Vec<(String, Dismissed)> {
        self.dismissed.drain(..).collect()
    }

    /// Waits until all subscribers have dropped everything that was published, and ends; after `timeout` in any case. What
    /// they have not begun to read by then they do not get.
    ///
    /// # Errors
    /// [`PublishError::TimedOut`]: not all had; `ForkedProcess`.
    pub fn close(mut self, timeout: Duration) -> Result<(), PublishError> {
        let mut deadline = Deadline::After(timeout);
        if self.fork != fork::generation() {
            return Err(PublishError::ForkedProcess);
        }
        loop {
            self.refresh();
            let published = self.published;
            let behind = self.members.iter().position(|member| member.standing.behind(published) > 0);
            let Some(index) = behind else { return Ok(()) };
            if !self.wait_for(index, &mut deadline) {
                return Err(PublishError::TimedOut);
            }
        }
    }

    /// Looks at the subscribers, and makes room if one of them has none.
    #[cold]
    fn make_room(&mut self, mut room: Room) -> Result<(), PublishError> {
        loop {
            self.refresh();
            if self.look > self.published {
                return Ok(());
            }
            let full = self.members.iter().position(|member| member.standing.limit() <= self.published);
            // Or `refresh` would have found nobody in the way.
            let Some(index) = full else { return Ok(()) };
            self.make_room_for(index, &mut room)?;
        }
    }

    fn make_room_for(&mut self, index: usize, room: &mut Room) -> Result<(), PublishError> {
        let (published, slots) = (self.published, u64::from(self.at.slots));
        let Some(member) = self.members.get_mut(index) else { return Ok(()) };
        let patience = match member.policy {
            Policy::Block { patience } => patience,
            Policy::DropOldest => {
                let before = member.standing.floor();
                let floor = member.standing.drop_oldest((slots / 4).max(1), published);
                member.raise_floor(floor, published, &self.bodies);
                member.standing.count_lost(before);
                if member.held() as u64 > slots {
                    // An honest one holds no more than a lap.
                    self.dismiss(index, Dismissed::TooSlow);
                }
                return Ok(());
            }
            Policy::Lossless { .. } => {
                self.dismiss(index, Dismissed::TooSlow);
                return Ok(());
            }
        };
        let Room::By(deadline) = room else { return Err(PublishError::Full) };
        let mut enough = Deadline::After(patience);
        let dismisses = match (enough.at(), deadline.at()) {
            (Some(enough), Some(deadline)) => enough <= deadline,
            (enough, _) => enough.is_some(),
        };
        let until = if dismisses { &mut enough } else { deadline };
        match (self.wait_for(index, until), dismisses) {
            (true, _) => {}
            (false, true) => self.dismiss(index, Dismissed::TooSlow),
            (false, false) => return Err(PublishError::TimedOut),
        }
        Ok(())
    }

    /// Waits until a subscriber has released more, or is gone.
    fn wait_for(&mut self, index: usize, deadline: &mut Deadline) -> bool {
        let Some(member) = self.members.get_mut(index) else { return true };
        let port = member.channel.port().clone();
        let ready = wait::wait(&mut Release { member, patience: &mut self.patience }, &port.bell, deadline);
        if ready {
            self.patience.found();
        }
        ready
    }

    /// Hears all subscribers, lets those go who are gone, frees what nobody needs.
    fn refresh(&mut self) {
        let published = self.published;
        let mut index = 0;
        while let Some(member) = self.members.get_mut(index) {
            member.hear(published);
            if member.is_open() {
                index += 1;
            } else {
                let why = member.left();
                self.dismiss(index, why);
            }
        }
        self.leaving.retain_mut(|member| {
            member.hear(published);
            !member.is_done()
        });
        let slots = u64::from(self.at.slots);
        // Now and then in any case, for what may be freed.
        let often = published.saturating_add((slots / 4).max(1));
        self.look = self.members.iter().map(|member| member.standing.limit()).fold(often, u64::min);
        let needed = self.members.iter().map(|member| published - member.standing.behind(published));
        let needed = needed.fold(published, u64::min);
        for position in self.freed.max(published.saturating_sub(slots))..needed {
            if let Some(place) = self.bodies.get_mut((position % slots) as usize) {
                *place = None;
            }
        }
        self.freed = self.freed.max(needed);
    }

    fn dismiss(&mut self, index: usize, why: Dismissed) {
        let mut member = self.members.swap_remove(index);
        member.raise_floor(if why == Dismissed::TooSlow { CUT_OFF } else { OVER }, self.published, &self.bodies);
        if self.dismissed.len() == NOTES_MAX {
            self.dismissed.pop_front();
        }
        let port = member.channel.port();
        tracing::info!(peer = port.core().peer_name(), channel = port.name(), "subscriber dismissed: {why:?}");
        self.dismissed.push_back((port.core().peer_name().to_owned(), why));
        // It may be asleep, and wait for a message that will not be for it.
        port.core().stage(port, self.ring.clone(), StageAt { ring: self.at, start: 0 });
        if !member.is_done() {
            self.leaving.push(member);
        }
    }
}

impl<T: Schema> Drop for Publisher<T> {
    fn drop(&mut self) {
        if self.fork != fork::generation() {
            return;
        }
        for member in &mut self.members {
            member.raise_floor(OVER, self.published, &self.bodies);
        }
    }
}

impl<T: Schema> std::fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher")
            .field("published", &self.published)
            .field("subscribers", &self.members.len())
            .finish_non_exhaustive()
    }
}

/// Rings begin on a page of their own.
const RING_ALIGN: usize = 4096;

/// Waiting for a subscriber to release more.
struct Release<'a, T: Schema> {
    member: &'a mut Member<T>,
    patience: &'a mut Patience,
}

impl<T: Schema> Source for Release<'_, T> {
    fn ready(&mut self) -> bool {
        self.member.words.peek(area::RELEASED) != self.member.said || !self.member.is_open()
    }

    fn spot(&self) -> (Spot<'_>, u32) {
        (self.member.words.spot(area::RELEASED), self.member.said as u32)
    }

    fn waiter(&mut self) -> (&mut Patience, &mut Sleeper) {
        (self.patience, &mut self.member.sleeper)
    }

    fn attends(&mut self) -> bool {
        self.member.channel.port().core().attend()
    }
}
