//! The part of a channel that outlives its two rings: what is owed to the peer, the bell that ends sleeps, and whether
//! the channel is over. Received messages hold it, and through it the session's socket: an honest reader stays known
//! to the lender for as long as it reads.

mod owed;

use super::control::{Control, Knock};
use super::descriptor::{Arrived, Envelope, Return};
use super::door::{Door, Listener};
use super::ended::{Ended, EndedError, Over};
use super::inbox::{Found, Inbox, Taken};
use super::link::{Core, Link};
use super::news::News;
use crate::shm::handle::Handle;
use crate::shm::view::{Home, View};
use crate::sys::brief::Brief;
use crate::sys::futex::Bell;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::passed::Passed;
use crate::wait::{Deadline, Rising};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use thiserror::Error;

/// See the module's own words.
pub(crate) struct Port {
    link: Link,
    number: u32,
    name: String,
    pub(crate) bell: Bell,
    state: Rising,
    /// Whether the news have any request that was cancelled.
    any_cancelled: AtomicBool,
    /// Whoever receives holds it meanwhile, which nobody else waits for; gone with the lane.
    inbox: Brief<Option<Inbox>>,
    owed: Brief<Owed>,
    /// How many handles `owed` has: read without its lock.
    owes: AtomicUsize,
    /// Handles were returned in slots that the peer may not be looking at.
    in_slots: AtomicBool,
    /// The watcher knows that there is something to look at here.
    armed: AtomicBool,
    pub(super) news: Arc<News>,
    /// Answers dropped here that nobody expected: so many in all.
    unexpected: AtomicU64,
    /// As many as the peer was told of.
    reported: AtomicU64,
    pub(super) door: Door,
}

/// What a look from outside finds next in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A message; its kind, where that is known.
    Message(u16),
    /// There was so much else that it takes another look.
    More,
    /// Nothing: whoever publishes rings, whoever ends the channel tells.
    Nothing,
    /// Nothing, and the other side has said that nothing will come.
    Finished,
    /// Nothing, and nothing will come.
    End,
}

/// Why there is no message.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum NoMessage {
    #[error("timed out")]
    TimedOut,
    #[error("the other side sends no more")]
    Finished,
    #[error(transparent)]
    Ended(#[from] Over),
}

#[derive(Default)]
struct Owed {
    /// In the order in which they are to go; one that came several times in a row once.
    handles: VecDeque<Return>,
    /// How many there are in all, each as often as it came.
    count: usize,
    /// How many at the front were there at the watcher's last look.
    stale: usize,
}

pub(super) const OPEN: u32 = 0;
/// The peer sends no more, but receives.
pub(super) const FINISHED: u32 = 1;
/// What there is may still be received; nothing new comes.
const DRAINING: u32 = 2;
/// Not even that: the peer's words are not to be read any more.
pub(super) const OVER: u32 = 3;

impl Port {
    pub(super) fn new(link: Link, number: u32, name: String, inbox: Inbox, news: Arc<News>) -> Self {
        let (finished, cancelled) = (news.finished(), news.any_cancelled());
        Self {
            link,
            number,
            name,
            bell: Bell::default(),
            state: Rising::new(if finished { FINISHED } else { OPEN }),
            any_cancelled: AtomicBool::new(cancelled),
            inbox: Brief::new(Some(inbox)),
            owed: Brief::default(),
            in_slots: AtomicBool::new(false),
            armed: AtomicBool::new(false),
            owes: AtomicUsize::new(0),
            news,
            unexpected: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            door: Door::default(),
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        self.link.core()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Ends the channel from outside: wakes whoever sleeps on it.
    pub(super) fn end(&self, over: bool) {
        // Partner: `condition`. What was published before the end stays readable.
        self.state.raise(if over { OVER } else { DRAINING });
        self.bell.ring();
        self.door.tell(Knock::ALL);
    }

    /// The peer sends no more: whoever waits for a message learns it once the ring is empty.
    pub(super) fn finish(&self) {
        // Partner: `condition`. What was published before is found first.
        self.state.raise(FINISHED);
        self.bell.ring();
        self.door.tell(Knock::FILLED);
    }

    /// Descriptors have come: whoever looked for their message without finding it, because they were not here, looks again.
    pub(super) fn passed_here(&self) {
        self.bell.ring();
        self.door.tell(Knock::FILLED);
    }

    /// How far it is with the channel: `OPEN`, `FINISHED`, `DRAINING` or `OVER`, which only rises.
    #[inline]
    pub(super) fn condition(&self) -> u32 {
        // Partner: `end`, `finish`.
        if self.core().is_forked() { OVER } else { self.state.now() }
    }

    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.condition() < DRAINING
    }

    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.condition() == OVER
    }

    /// What to report once it is not open.
    pub(crate) fn error(&self) -> EndedError {
        let cause = self.core().ended().unwrap_or(Ended::ChannelClosed);
        EndedError { peer: self.core().peer_name().to_owned(), channel: self.name.clone(), cause }
    }

    /// Ends the session for a rule the peer broke.
    #[cold]
    pub(super) fn cut_off(&self, broken: PeerMisbehaved) -> Over {
        self.core().misbehaved(broken);
        self.over()
    }

    #[cold]
    pub(crate) fn over(&self) -> Over {
        Box::new(self.error())
    }

    /// `None` once the lane is gone.
    #[inline(always)]
    pub(super) fn with_inbox<R>(&self, use_it: impl FnOnce(&mut Inbox) -> R) -> Option<R> {
        self.inbox.lock().as_mut().map(use_it)
    }

    pub(super) fn take_inbox(&self) -> Option<Inbox> {
        self.inbox.lock().take()
    }

    /// Books what has come home in slots, unless somebody is receiving, who then does so.
    #[inline]
    pub(super) fn collect(&self) {
        let collected = match self.inbox.try_lock() {
            Some(mut inbox) => inbox.as_mut().map_or(Ok(()), |inbox| inbox.collect(self)),
            None => Ok(()),
        };
        if let Err(broken) = collected {
            self.core().misbehaved(broken);
        }
    }

    // Receiving, by whoever's turn it is: one thread at a time waits in the inbox.

    /// The next message if there is one already.
    #[inline]
    pub(crate) fn try_receive(&self, into: &mut Arrived) -> Result<bool, NoMessage> {
        let found = self.with_inbox(|inbox| inbox.take(self, into)).unwrap_or(Some(Found::End));
        self.door.looked();
        match found {
            None => Ok(false),
            Some(found) => self.settle(found).map(|()| true),
        }
    }

    /// Fills `taken`, which is empty, with messages that there are already. Those that came before the end come before it.
    pub(crate) fn try_receive_many(&self, taken: &mut Taken) -> Result<(), NoMessage> {
        let found = self.with_inbox(|inbox| inbox.take_many(self, taken)).unwrap_or(Some(Found::End));
        self.door.looked();
        match found {
            None => Ok(()),
            Some(found) => self.settle(found),
        }
    }

    /// The next message, waiting until the deadline.
    #[inline(always)]
    pub(crate) fn receive(&self, into: &mut Arrived, deadline: &mut Deadline) -> Result<(), NoMessage> {
        let found = self.with_inbox(|inbox| {
            let mut again = false;
            loop {
                if let Some(found) = inbox.take(self, into) {
                    return Some(found);
                }
                // Ready with nothing but returns: that must not go on for ever.
                if (again && deadline.has_passed()) || !inbox.wait(self, deadline) {
                    return None;
                }
                again = true;
            }
        });
        if self.door.is_listened() {
            // A sleep has ended the wait at the door.
            self.door.tell(Knock::FILLED);
        }
        match found {
            Some(Some(found)) => self.settle(found),
            Some(None) => Err(NoMessage::TimedOut),
            None => self.settle(Found::End),
        }
    }

    /// Whether the peer had finished sending before it ended, and nothing worse has happened: then all was received.
    #[cold]
    fn ended_in_order(&self) -> bool {
        self.news.finished() && !self.is_over()
    }

    #[inline(always)]
    fn settle(&self, found: Found) -> Result<(), NoMessage> {
        match found {
            Found::Message => Ok(()),
            Found::Finished => Err(NoMessage::Finished),
            Found::End if self.ended_in_order() => Err(NoMessage::Finished),
            Found::End => Err(self.over().into()),
            Found::Broken(broken) => Err(self.cut_off(broken).into()),
        }
    }

    // For those who wait elsewhere.

    /// What there is to receive; if nothing, the peer knows from here on that it has to ring.
    pub(crate) fn next_or_door(&self) -> Next {
        if self.door.has_kept_back() {
            return Next::Message(0);
        }
        let mut inbox = self.inbox.try_lock();
        if inbox.is_none() {
            self.door.miss();
            inbox = self.inbox.try_lock();
        }
        // Whoever has it tells when it is free.
        let Some(mut inbox) = inbox else { return Next::Nothing };
        let next = inbox.as_mut().map_or(Ok(Next::End), |inbox| inbox.next_or_door(self));
        drop(inbox);
        next.unwrap_or_else(|broken| {
            self.core().misbehaved(broken);
            Next::End
        })
    }

    /// Has somebody told of news from now on, and of what there is. False if somebody is told already.
    pub(crate) fn listen(&self, by: Arc<dyn Listener>) -> bool {
        let listens = self.door.listen(by);
        if listens {
            self.door.tell(Knock::FILLED);
        }
        listens
    }

    pub(crate) fn unlisten(&self) {
        self.door.unlisten();
    }

    /// Whoever listens has heard all there is to hear.
    pub(crate) fn leave_door(&self) {
        if let Some(listener) = self.door.unlisten() {
            listener.on_gone();
        }
    }

    /// Whether messages were taken from the ring that are still to be received.
    pub(crate) fn set_kept_back(&self, any: bool) {
        self.door.set_kept_back(any);
    }

    /// The socket was full: the peer is rung for later.
    pub(super) fn ring_later(&self, knock: Knock) {
        self.door.ring_later(knock);
        self.arm_for_flag();
    }

    /// Somebody here waits for what nobody tells of: this side's sender for memory, or its receiver for descriptors.
    #[cold]
    pub(super) fn look_again_later(&self, knock: Knock) {
        self.door.look_again_later(knock);
        self.arm_for_flag();
    }

    // What is said beside the ring.

    /// Tells the peer that no more messages will be sent. What was sent before is in its sight by now.
    pub(crate) fn say_finished(&self) {
        if self.is_open() {
            self.core().send(&Control::Finished { number: self.number });
        }
    }

    /// Tells the peer that no more answers to a message are wanted.
    pub(crate) fn say_cancelled(&self, id: u64) {
        if self.is_open() {
            self.core().send(&Control::Cancel { number: self.number, id });
        }
    }

    /// Whether the peer wants no more answers to a message of its own.
    #[inline]
    pub(crate) fn is_cancelled(&self, id: u64) -> bool {
        // A hint; what it is about is under a lock.
        self.any_cancelled.load(Ordering::Relaxed) && self.news.is_cancelled(id)
    }

    pub(super) fn look_for_cancelled(&self) {
        // Partner: `is_cancelled`, which may learn it a moment later.
        self.any_cancelled.store(true, Ordering::Relaxed);
    }

    /// How many answers the peer did not expect, as far as it has said so.
    pub(crate) fn unexpected_there(&self) -> u64 {
        self.news.unexpected_so_far()
    }

    /// Counts an answer that nobody expected; the watcher tells the peer.
    #[cold]
    pub(crate) fn unexpected_here(&self) {
        self.unexpected.fetch_add(1, Ordering::Relaxed);
        self.arm_for_flag();
    }

    /// How many answers were unexpected so far, if the peer does not know yet.
    pub(super) fn take_unexpected(&self) -> Option<u64> {
        // Ordered by `tick` and `arm_for_flag`; only the watcher writes `reported`.
        let count = self.unexpected.load(Ordering::Relaxed);
        (self.reported.swap(count, Ordering::Relaxed) != count).then_some(count)
    }

    /// Whether the descriptors that a message says it has have come.
    #[cold]
    pub(super) fn are_here(&self, envelope: Envelope) -> Result<bool, PeerMisbehaved> {
        self.core().are_here(self.number, envelope.id(), envelope.fds().into())
    }

    /// They are waited for no longer.
    #[cold]
    pub(super) fn give_up_passed(&self, envelope: Envelope) {
        self.core().give_up_passed(self.number, envelope.id());
    }

    #[cold]
    fn take_passed(&self, envelope: Envelope) -> Passed {
        let count = envelope.fds().into();
        // In a forked child they are dead, and the lock may have been held by a thread that is not here.
        if self.core().is_forked() {
            return Passed::Lost(count);
        }
        self.core().take_passed(self.number, envelope.id(), count)
    }
}

/// Descriptors that wait for their message to be opened, and are closed if it never is. They count as under way.
pub(crate) struct Awaiting {
    port: Arc<Port>,
    envelope: Envelope,
}

impl Awaiting {
    #[cold]
    pub(crate) fn new(port: Arc<Port>, envelope: Envelope) -> Self {
        Self { port, envelope }
    }

    /// The message is opened.
    pub(crate) fn take(&self) -> Passed {
        self.port.take_passed(self.envelope)
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        // None any more if the message was opened.
        drop(self.port.take_passed(self.envelope));
    }
}

impl Home for Port {
    #[inline]
    fn view(&self) -> &View {
        self.link.view()
    }

    fn owe(&self, handle: Handle) {
        // In a forked child the books are a copy, and their lock may have been held by a thread that is not here.
        if !self.core().is_forked() {
            let mut owed = self.owed.lock();
            owed.add(Return { handle, times: 1 });
            self.count(&owed);
            drop(owed);
            self.arm();
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut owed = Vec::new();
        self.owed.get_mut().take(usize::MAX, &mut owed);
        self.link.core().port_gone(owed);
    }
}
