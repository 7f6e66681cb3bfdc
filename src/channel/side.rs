//! What both forms of a channel do with messages: lend and address them, borrow and open them. Knows no waiting.

use super::conversation::Answers;
use super::error::{SendError, Unopened};
use crate::message::{
    Body, Builder, Marks, Message, OpenProblem, Opening, Received, Schema, Sealed, Shelf, Trust, Union,
};
use crate::shm::arena::Arena;
use crate::shm::handle::{Handle, WORD};
use crate::shm::inside::Inside;
use crate::shm::loans::LendProblem;
use crate::shm::view::{Borrowed, Home};
use crate::sys::misbehaved::PeerMisbehaved;
use crate::transport::Lane;
use crate::transport::descriptor::{ASKS, Arrived, Envelope, MORE, Parcel};
use crate::transport::ended::EndedError;
use crate::transport::port::{Awaiting, Port};
use smallvec::SmallVec;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// See the module's own words.
pub(super) struct Side<T: Schema> {
    port: Arc<Port>,
    trust: Trust,
    shelf: Arc<Shelf>,
    /// Messages of up to so many words travel inside their slots.
    inside: usize,
    /// What no other channel of this process has.
    serial: u32,
    root: PhantomData<fn() -> T>,
}

/// A message that came and waits to be opened. Goes home unread if it is dropped.
pub(super) struct Kept {
    pub(super) envelope: Envelope,
    /// One of these two has it, or it is sealed and comes as a descriptor.
    borrowed: Option<Borrowed>,
    inside: Option<Inside>,
    awaiting: Option<Box<Awaiting>>,
}

/// What a message is sent for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purpose {
    in_reply_to: Option<u64>,
    flags: u8,
}

impl Purpose {
    /// To be told, whoever answers.
    pub(super) const NOTICE: Self = Self { in_reply_to: None, flags: 0 };
    /// To be answered.
    pub(super) const REQUEST: Self = Self { in_reply_to: None, flags: ASKS };
}

/// Messages that are sent together.
pub(super) type Batch<'m> = SmallVec<[Parcel<'m>; BATCH_MAX]>;

/// As many as are sent together.
pub(super) const BATCH_MAX: usize = 64;

/// Whether an answer is the last to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Last,
    MoreFollow,
}

impl<T: Schema> Side<T> {
    pub(super) fn new(lane: &Lane, trust: Trust, inline_max: usize) -> Self {
        // From 1: what came with no channel says 0.
        static SERIALS: AtomicU32 = AtomicU32::new(1);
        let serial = SERIALS.fetch_add(1, Ordering::Relaxed);
        let inside = lane.inside_max().min(inline_max / WORD);
        Self { port: lane.port().clone(), trust, shelf: Arc::default(), inside, serial, root: PhantomData }
    }

    #[inline]
    pub(super) fn port(&self) -> &Arc<Port> {
        &self.port
    }

    pub(super) fn arena(&self) -> &Arena {
        self.port.core().arena()
    }

    pub(super) fn create_msg(&self) -> Builder<T> {
        Builder::new(self.arena())
    }

    pub(super) fn create_msg_with_capacity(&self, bytes: usize) -> Builder<T> {
        Builder::with_capacity(self.arena(), bytes)
    }

    /// To answer a message; of another channel's message the peer would take the answer for a breach.
    #[inline]
    pub(super) fn answer(&self, to: &Received<T>, reply: Reply) -> Result<Purpose, SendError> {
        if to.channel() != self.serial {
            return Err(SendError::NotReceivedHere);
        }
        if self.port.is_cancelled(to.id()) {
            return Err(SendError::Cancelled);
        }
        let more = if reply == Reply::MoreFollow { MORE } else { 0 };
        Ok(Purpose { in_reply_to: Some(to.id()), flags: more | if to.is_request() { ASKS } else { 0 } })
    }

    pub(super) fn is_cancelled(&self, request: &Received<T>) -> bool {
        request.channel() == self.serial && self.port.is_cancelled(request.id())
    }

    /// Lends a message to the peer, or puts it inside if it is that small, and addresses it, all but its number.
    #[inline(always)]
    pub(super) fn parcel<'a>(&self, message: &'a Message<T>, purpose: Purpose) -> Result<Parcel<'a>, SendError> {
        let core = self.port.core();
        let frozen = match message.body() {
            Body::Lent(frozen) => frozen,
            Body::Sealed(sealed) => return self.sealed_parcel(message, sealed, purpose),
        };
        if !frozen.arena().same(core.arena()) {
            return Err(SendError::ForeignArena);
        }
        if !self.port.is_open() {
            return Err(SendError::Ended(self.port.error()));
        }
        let fds = message.fds();
        let (envelope, rest) = match frozen.inside(self.inside).filter(|_| fds.is_none()) {
            Some(words) => Envelope::inside(words),
            None => {
                let handle = core.loans().lend(frozen).map_err(|problem| self.not_lent(problem))?;
                // At most 512, 255 and 64, or it would not be frozen.
                let envelope = Envelope::lent(handle, frozen.segment_count() as u16, frozen.blobs().len() as u8);
                (envelope.passing(fds.map_or(0, |fds| fds.len() as u8)), [].as_slice())
            }
        };
        let envelope = envelope.marked(purpose.flags, message.kind(), purpose.in_reply_to);
        Ok(Parcel { envelope, rest, fds })
    }

    /// As [`parcel`](Self::parcel), for what is to be told to nobody in particular: as many as `into` takes, under one lock.
    /// Stops before what cannot be sent with the rest; an error is about the first.
    pub(super) fn parcels<'m>(&self, messages: &[&'m Message<T>], into: &mut Batch<'m>) -> Result<(), SendError> {
        let core = self.port.core();
        if !self.port.is_open() {
            return Err(SendError::Ended(self.port.error()));
        }
        let mut lender = None;
        for message in
            messages.iter().take_while(|message| message.fds().is_none()).take(BATCH_MAX.saturating_sub(into.len()))
        {
            // A sealed message has a descriptor, and so is sent by itself.
            let Some(frozen) = message.frozen() else { break };
            let lent = if !frozen.arena().same(core.arena()) {
                Err(SendError::ForeignArena)
            } else if let Some(words) = frozen.inside(self.inside) {
                Ok(Envelope::inside(words))
            } else {
                let lender = lender.get_or_insert_with(|| core.loans().lender());
                let handle = lender.lend(frozen).map_err(|problem| self.not_lent(problem));
                let envelope =
                    |handle| Envelope::lent(handle, frozen.segment_count() as u16, frozen.blobs().len() as u8);
                handle.map(|handle| (envelope(handle), [].as_slice()))
            };
            match lent {
                Ok((envelope, rest)) => {
                    let Purpose { in_reply_to, flags } = Purpose::NOTICE;
                    let envelope = envelope.marked(flags, message.kind(), in_reply_to);
                    into.push(Parcel { envelope, rest, fds: None });
                }
                Err(error) if into.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Addresses a sealed message, which any session may have.
    #[cold]
    fn sealed_parcel<'a>(
        &self,
        message: &'a Message<T>,
        sealed: &Sealed,
        purpose: Purpose,
    ) -> Result<Parcel<'a>, SendError> {
        if !self.port.is_open() {
            return Err(SendError::Ended(self.port.error()));
        }
        let fds = message.fds();
        // At most 64.
        let envelope = Envelope::sealed(sealed.at()).passing(fds.map_or(0, |fds| fds.len() as u8));
        let envelope = envelope.marked(purpose.flags, message.kind(), purpose.in_reply_to);
        Ok(Parcel { envelope, rest: &[], fds })
    }

    #[cold]
    fn not_lent(&self, problem: LendProblem) -> SendError {
        match problem {
            LendProblem::Quota(exceeded) => SendError::Quota(exceeded),
            LendProblem::Over => SendError::Ended(self.port.error()),
        }
    }

    /// What was not sent is not on loan either.
    #[cold]
    pub(super) fn unlend(&self, envelope: Envelope, error: SendError) -> SendError {
        if let Some(handle) = envelope.lent_as() {
            // Already reclaimed if the session ended meanwhile.
            let _ = self.port.core().loans().give_back(handle);
        }
        error
    }

    /// Borrows what came, so that it goes home whatever happens to it.
    #[inline]
    pub(super) fn keep(&self, arrived: Arrived) -> Result<Kept, EndedError> {
        let Arrived { envelope, inside } = arrived;
        match envelope.lent_as().map(|handle| self.borrow(handle)).transpose() {
            Ok(borrowed) => Ok(Kept { envelope, borrowed, inside, awaiting: self.awaiting(&envelope) }),
            Err(broken) => Err(self.cut_off(broken)),
        }
    }

    #[inline(always)]
    fn borrow(&self, handle: Handle) -> Result<Borrowed, PeerMisbehaved> {
        Borrowed::new(handle, self.port.clone())
    }

    #[inline]
    fn awaiting(&self, envelope: &Envelope) -> Option<Box<Awaiting>> {
        (envelope.fds() > 0).then(|| Box::new(Awaiting::new(self.port.clone(), *envelope)))
    }

    /// Opens what was kept.
    pub(super) fn open_kept(&self, kept: Kept) -> Result<Received<T>, Unopened> {
        match kept.borrowed {
            Some(borrowed) => self.open_borrowed(&kept.envelope, borrowed, kept.awaiting),
            None => self.open(&mut Arrived { envelope: kept.envelope, inside: kept.inside }),
        }
    }

    /// Opens what has just come.
    #[inline(always)]
    pub(super) fn open(&self, arrived: &mut Arrived) -> Result<Received<T>, Unopened> {
        let envelope = &arrived.envelope;
        if let Some(inside) = arrived.inside.take() {
            return Ok(Received::inside(inside, self.marks(envelope), self.trust));
        }
        let Some(handle) = envelope.lent_as() else {
            return self.open_sealed(envelope);
        };
        match self.borrow(handle) {
            Ok(borrowed) if envelope.is_plain() && self.trust.copy_limit().is_none() => {
                Ok(Received::in_place(borrowed, self.marks(envelope)))
            }
            Ok(borrowed) => self.open_borrowed(envelope, borrowed, self.awaiting(envelope)),
            Err(broken) => Err(self.cut_off(broken).into()),
        }
    }

    /// Opens what came elsewhere, in one slot, with nothing that travelled beside it.
    pub(super) fn open_from(&self, envelope: &Envelope, home: Arc<dyn Home>) -> Result<Received<T>, Unopened> {
        match envelope.lent_as() {
            None => self.open(&mut Arrived { envelope: *envelope, inside: Some(envelope.open_inside()) }),
            Some(handle) => match Borrowed::new(handle, home) {
                Ok(borrowed) => self.open_borrowed(envelope, borrowed, None),
                Err(broken) => Err(self.cut_off(broken).into()),
            },
        }
    }

    /// As [`open`](Self::open), with what an earlier message was borrowed by, if there is such; its handle is then owed by
    /// the caller.
    #[inline]
    pub(super) fn open_again(
        &self,
        arrived: &mut Arrived,
        spare: Option<Borrowed>,
    ) -> Result<(Received<T>, Option<Handle>), Unopened> {
        let envelope = &arrived.envelope;
        let plain = envelope.is_plain() && self.trust.copy_limit().is_none();
        let (Some(mut borrowed), Some(handle), true) = (spare, envelope.lent_as(), plain) else {
            return Ok((self.open(arrived)?, None));
        };
        match borrowed.exchange(handle) {
            Ok(before) => Ok((Received::in_place(borrowed, self.marks(envelope)), Some(before))),
            Err(broken) => Err(self.cut_off(broken).into()),
        }
    }

    #[cold]
    fn open_sealed(&self, envelope: &Envelope) -> Result<Received<T>, Unopened> {
        let Some(at) = envelope.sealed_at() else {
            return Err(self.cut_off(PeerMisbehaved::NoHandle).into());
        };
        let passed = Awaiting::new(self.port.clone(), *envelope).take();
        let limit = self.port.core().memory_max();
        let opened = Received::open_sealed(at, limit, passed, self.marks(envelope), self.trust);
        opened.map_err(|problem| self.unopened(problem))
    }

    #[inline(never)]
    fn open_borrowed(
        &self,
        envelope: &Envelope,
        borrowed: Borrowed,
        awaiting: Option<Box<Awaiting>>,
    ) -> Result<Received<T>, Unopened> {
        let opening = Opening { borrowed, segments: envelope.segments(), marks: self.marks(envelope) };
        let opened = if envelope.has_more() {
            let passed = awaiting.map(|awaiting| awaiting.take());
            Received::open_with(opening, envelope.blobs(), passed, self.trust, &self.shelf)
        } else {
            Received::open(opening, self.trust, &self.shelf)
        };
        opened.map_err(|problem| self.unopened(problem))
    }

    #[cold]
    fn unopened(&self, problem: OpenProblem) -> Unopened {
        match problem {
            OpenProblem::Peer(broken) => self.cut_off(broken).into(),
            OpenProblem::NoMemory(bytes) => Unopened::NoMemory(bytes),
            OpenProblem::Lost(lost) => Unopened::Lost(lost),
        }
    }

    #[inline(always)]
    fn marks(&self, envelope: &Envelope) -> Marks {
        let (in_reply_to, is) = (envelope.in_reply_to().unwrap_or(0), |flag| envelope.flags() & flag != 0);
        let (asks, more) = (is(ASKS) && in_reply_to == 0, is(MORE) && in_reply_to != 0);
        Marks { id: envelope.id(), in_reply_to, channel: self.serial, kind: envelope.kind(), asks, more }
    }

    #[cold]
    pub(super) fn cut_off(&self, broken: PeerMisbehaved) -> EndedError {
        self.port.core().misbehaved(broken);
        self.port.error()
    }
}

impl Answers {
    /// What a message says of itself if it is an answer.
    #[inline]
    pub(super) fn of(envelope: &Envelope) -> Option<Self> {
        envelope.in_reply_to().map(|to| Self { to, more: envelope.flags() & MORE != 0 })
    }
}

impl Kept {
    /// `None` if it has none, or is none: whoever opens it learns that.
    pub(super) fn tag(&self, union: Union) -> Option<u16> {
        match (&self.borrowed, &self.inside) {
            (Some(borrowed), _) => union.tag(borrowed, self.envelope.segments(), self.envelope.blobs()).ok().flatten(),
            (None, Some(inside)) => union.tag_inside(inside.words()),
            (None, None) => self.envelope.sealed_at()?.tag,
        }
    }
}
