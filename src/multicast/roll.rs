//! A publisher's subscribers: their words, their floors, and the messages they may still read after the ring has moved on.

use super::Policy;
use super::error::Dismissed;
use super::standing::Standing;
use crate::channel::Channel;
use crate::message::Schema;
use crate::ring::area;
use crate::shm::block::Frozen;
use crate::shm::handle::Handle;
use crate::sys::barrier::Fence;
use crate::sys::words::{OwnWords, PeerWords};
use crate::transport::ended::Ended;
use crate::wait::Sleeper;
use std::collections::VecDeque;
use std::sync::Arc;

/// What is published, by position: as many as the ring has slots.
pub(super) type Bodies = [Option<Arc<Frozen>>];

/// One subscriber.
pub(super) struct Member<T: Schema> {
    /// Over which it subscribed. What it goes on reading it reads until this is closed, or longer.
    pub(super) channel: Channel<T>,
    pub(super) policy: Policy,
    pub(super) standing: Standing,
    pub(super) words: Arc<PeerWords>,
    /// For waiting until it has released something.
    pub(super) sleeper: Sleeper,
    own: Arc<OwnWords>,
    /// What it says it has released, in its own word.
    pub(super) said: u64,
    /// Positions below this that it may read are in `held`.
    retained: u64,
    held: VecDeque<(u64, Held)>,
}

/// A message that left the ring while it may be read.
enum Held {
    /// In the session's book, which has it until the session's socket ends.
    Lent(Handle),
    /// The session holds as much as it may. As many as the ring has slots at most.
    Kept(#[expect(dead_code, reason = "kept, not looked at")] Arc<Frozen>),
}

impl<T: Schema> Member<T> {
    /// `None` if the channel is over.
    pub(super) fn new(
        channel: Channel<T>,
        policy: Policy,
        (start, window): (u64, u64),
        ring: &Arc<OwnWords>,
    ) -> Option<Self> {
        let (own, words) = channel.port().halves()?;
        let sleeper = Sleeper::new(ring.clone(), area::SENDER, words.clone(), area::RECEIVER, area::RECEIVER);
        own.publish(area::FLOOR, start);
        let standing = Standing::new(start, window);
        Some(Self { channel, policy, standing, words, sleeper, own, said: 0, retained: start, held: VecDeque::new() })
    }

    pub(super) fn is_open(&self) -> bool {
        self.channel.port().is_open()
    }

    /// Why it is not open.
    pub(super) fn left(&self) -> Dismissed {
        Dismissed::Left(self.channel.port().core().ended().unwrap_or(Ended::ChannelClosed))
    }

    /// Whether nothing of what it was given is read any more, as far as this side has to know.
    pub(super) fn is_done(&self) -> bool {
        self.standing.reads().is_empty() || self.channel.port().core().ended().is_some()
    }

    /// How many messages are kept for it that have left the ring.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Reads how far it is. A lie ends its session.
    pub(super) fn hear(&mut self, published: u64) {
        // In this order: what is released was claimed before.
        let released = self.words.acquire(area::RELEASED);
        let claimed = self.words.acquire(area::CLAIMED);
        match self.standing.hear(released, claimed, published) {
            Ok(()) => self.said = released,
            Err(broken) => self.channel.port().core().misbehaved(broken),
        }
        while self.held.front().is_some_and(|(position, _)| *position < self.standing.released())
            && let Some((_, held)) = self.held.pop_front()
        {
            self.give_back(held);
        }
    }

    fn give_back(&self, held: Held) {
        if let Held::Lent(handle) = held {
            // Already reclaimed if the session ended meanwhile.
            let _ = self.channel.port().core().loans().give_back(handle);
        }
    }

    /// Has it begin to look at nothing below `floor`, and keeps what it may already be looking at.
    pub(super) fn raise_floor(&mut self, floor: u64, published: u64, bodies: &Bodies) {
        self.own.publish(area::FLOOR, floor);
        // Partner: the subscriber's fence between claiming and looking at the floor. One of the two sees the other.
        Fence::own_half();
        self.hear(published);
        self.retain(floor, bodies);
    }

    fn retain(&mut self, below: u64, bodies: &Bodies) {
        let reads = self.standing.reads();
        let slots = bodies.len() as u64;
        for position in reads.start.max(self.retained)..reads.end.min(below) {
            let body = bodies.get((position % slots) as usize).and_then(Option::as_ref);
            let Some(body) = body else { continue };
            let held = match self.channel.port().core().loans().lend(body) {
                Ok(handle) => Held::Lent(handle),
                Err(_) => Held::Kept(body.clone()),
            };
            self.held.push_back((position, held));
        }
        self.retained = self.retained.max(below);
    }
}
