//! What the seven payload words of a slot mean. Pure: words in, a checked value out.
//!
//! | word | message | returns | message inside |
//! |---|---|---|---|
//! | 0 | kind 1, flags in bits 8..16, segments in 16..32, blobs in 32..40, file descriptors in 40..48, the application's kind in 48..64 | kind 2; in 16..32, 32..48, 48..64, how many times more each goes home | as a message, but kind 3, and how many words it has in 16..32 |
//! | 1 | message id | handle | message id |
//! | 2 | id replied to, or 0 | handle | id replied to, or 0 |
//! | 3, 4 | handle | handle, two words each | the message |
//! | 5, 6 | a returned handle, or 0 | handle or 0 | the message |
//!
//! What does not fit of a message inside is in the slots after this one, seven words in each.
//!
//! A sealed message is kind 4, and otherwise as a message up to word 2; word 3 is how many words its memory has, word 4 the
//! tag of its root in bits 0..16, if bit 16 says that it has one.

use crate::ring::Payload;
use crate::shm::handle::Handle;
use crate::shm::inside::{INSIDE_WORDS, Inside};
use crate::shm::sealed::SealedAt;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::passed::Fds;

/// A slot's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    Message(Envelope),
    /// Nothing but handles that go home.
    Returns([Option<Return>; RETURNS]),
}

/// A handle that goes home as often as it came, or a part of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Return {
    pub(crate) handle: Handle,
    /// From 1 to [`TIMES_MAX`].
    pub(crate) times: u32,
}

/// The most returns of one handle at once.
pub(crate) const TIMES_MAX: u32 = 1 << TIMES_BITS;
const TIMES_BITS: u32 = 16;

/// A message on its way, unopened: the words of its slot as they cross, taken apart only where they are looked into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Envelope(Payload);

/// A message to be sent: its envelope, what does not fit into that of a message inside, and what goes through the socket.
#[derive(Clone, Copy)]
pub(crate) struct Parcel<'a> {
    pub(crate) envelope: Envelope,
    pub(crate) rest: &'a [u64],
    pub(crate) fds: Option<&'a Fds>,
}

/// A message that came, unopened. Large, so it stays where it was first put.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) envelope: Envelope,
    /// All of it, if it came inside its slots.
    pub(crate) inside: Option<Inside>,
}

/// What a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message on loan.
    Lent,
    /// A message inside, or its beginning.
    Inside,
    /// A message in memory of its own.
    Sealed,
    /// Handles that go home.
    Returns,
}

/// Words of a message inside that its first slot has room for.
pub(crate) const FIRST_INSIDE: usize = 4;

/// Flag of an answer: more answers to the same message follow.
pub(crate) const MORE: u8 = 1;

/// Flag of a message whose sender waits for an answer; and of an answer to such a message.
pub(crate) const ASKS: u8 = 2;

/// Handles that fit a slot of nothing else.
pub(crate) const RETURNS: usize = 3;

const MESSAGE: u64 = 1;
const RETURNED: u64 = 2;
const INSIDE: u64 = 3;
const SEALED: u64 = 4;
const HAS_TAG: u64 = 1 << 16;

impl Parcel<'_> {
    /// The same with its number, which counts the messages of a direction, from 1.
    #[inline]
    pub(crate) fn numbered(self, id: u64) -> Self {
        Self { envelope: self.envelope.numbered(id), ..self }
    }
}

impl Envelope {
    /// Of a message on loan.
    #[inline]
    pub(crate) fn lent(handle: Handle, segments: u16, blobs: u8) -> Self {
        let [low, high] = handle.to_words();
        Self([MESSAGE | u64::from(segments) << 16 | u64::from(blobs) << 32, 0, 0, low, high, 0, 0])
    }

    /// Of a message of one segment that travels in its slots, and the words that do not fit the first.
    #[inline]
    pub(crate) fn inside(words: &[u64]) -> (Self, &[u64]) {
        debug_assert!((1..=INSIDE_WORDS).contains(&words.len()));
        let head = INSIDE | (words.len() as u64) << 16;
        if let Some((&[a, b, c, d], rest)) = words.split_first_chunk::<FIRST_INSIDE>() {
            return (Self([head, 0, 0, a, b, c, d]), rest);
        }
        let word = |index| words.get(index).copied().unwrap_or(0);
        (Self([head, 0, 0, word(0), word(1), word(2), word(3)]), &[])
    }

    /// Of a message in sealed memory, which is passed with it.
    #[cold]
    pub(crate) fn sealed(at: SealedAt) -> Self {
        let SealedAt { words, segments, blobs, tag } = at;
        let tag = tag.map_or(0, |tag| HAS_TAG | u64::from(tag));
        Self([SEALED | u64::from(segments) << 16 | u64::from(blobs) << 32, 0, 0, words, tag, 0, 0])
    }

    /// The same with how many file descriptors come through the socket.
    #[inline]
    pub(crate) fn passing(mut self, fds: u8) -> Self {
        self.0[0] |= u64::from(fds) << 40;
        self
    }

    /// The same with what it is for: flags, the application's kind, and what it answers.
    #[inline]
    pub(crate) fn marked(mut self, flags: u8, kind: u16, in_reply_to: Option<u64>) -> Self {
        self.0[0] |= u64::from(flags) << 8 | u64::from(kind) << 48;
        self.0[2] = in_reply_to.unwrap_or(0);
        self
    }

    #[inline]
    pub(crate) fn numbered(mut self, id: u64) -> Self {
        self.0[1] = id;
        self
    }

    /// The same with a handle of the receiver's that goes home with it, unless the message itself takes its place.
    #[inline]
    pub(crate) fn returning(mut self, returned: Option<Handle>) -> Self {
        debug_assert!(returned.is_none() || self.carries_returns());
        if let Some([low, high]) = returned.map(Handle::to_words) {
            (self.0[5], self.0[6]) = (low, high);
        }
        self
    }

    /// The same under the other names that its handles have where nothing is shared. Of a message on loan only.
    pub(crate) fn renamed(mut self, handle: Handle, returned: Option<Handle>) -> Self {
        debug_assert!(self.carries_returns());
        [self.0[3], self.0[4]] = handle.to_words();
        [self.0[5], self.0[6]] = returned.map_or([0, 0], Handle::to_words);
        self
    }

    #[inline]
    pub(crate) fn carries_returns(&self) -> bool {
        self.0[0] & 0xFF == MESSAGE
    }

    #[inline]
    pub(crate) fn returned(&self) -> Option<Handle> {
        if self.carries_returns() { Handle::from_words([self.0[5], self.0[6]]) } else { None }
    }

    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.0[1]
    }

    /// The other direction's message that this one answers.
    #[inline]
    pub(crate) fn in_reply_to(&self) -> Option<u64> {
        (self.0[2] != 0).then_some(self.0[2])
    }

    /// [`MORE`], [`ASKS`].
    #[inline]
    pub(crate) fn flags(&self) -> u8 {
        (self.0[0] >> 8) as u8
    }

    /// What the application calls this kind of message.
    #[inline]
    pub(crate) fn kind(&self) -> u16 {
        (self.0[0] >> 48) as u16
    }

    #[inline]
    pub(crate) fn segments(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    #[inline]
    pub(crate) fn blobs(&self) -> u8 {
        (self.0[0] >> 32) as u8
    }

    #[inline]
    pub(crate) fn fds(&self) -> u8 {
        (self.0[0] >> 40) as u8
    }

    /// Whether it is on loan, one segment, and nothing else.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.0[0] & 0x0000_FFFF_FFFF_00FF == MESSAGE | 1 << 16
    }

    /// Whether anything travels with it.
    #[inline]
    pub(crate) fn has_more(&self) -> bool {
        self.0[0] >> 32 & 0xFFFF != 0
    }

    /// `None` only for a handle of nothing, which [`Descriptor::from_words`] refuses.
    #[inline]
    pub(crate) fn lent_as(&self) -> Option<Handle> {
        if self.carries_returns() { Handle::from_words([self.0[3], self.0[4]]) } else { None }
    }

    /// Of a sealed message: where it lies in its memory.
    #[cold]
    pub(crate) fn sealed_at(&self) -> Option<SealedAt> {
        let [head, _, _, words, tag, ..] = self.0;
        let tag = (tag & HAS_TAG != 0).then_some(tag as u16);
        let at = SealedAt { words, segments: self.segments(), blobs: self.blobs(), tag };
        (head & 0xFF == SEALED).then_some(at)
    }

    #[inline]
    pub(crate) fn words(&self) -> &Payload {
        &self.0
    }

    /// The words of a peer's slot, to be [`check`](Self::check)ed.
    #[inline]
    pub(crate) fn words_mut(&mut self) -> &mut Payload {
        &mut self.0
    }

    /// What a peer's words are. Bits without a meaning here are left to later versions.
    #[inline]
    pub(crate) fn check(&self) -> Result<Kind, PeerMisbehaved> {
        match self.0[0] & 0xFF {
            MESSAGE if self.lent_as().is_some() => Ok(Kind::Lent),
            INSIDE if (1..=INSIDE_WORDS).contains(&usize::from(self.segments())) && !self.has_more() => {
                Ok(Kind::Inside)
            }
            INSIDE => Err(PeerMisbehaved::InsideLength(self.segments())),
            RETURNED if self.returns().iter().any(Option::is_some) => Ok(Kind::Returns),
            SEALED if self.fds() > 0 => Ok(Kind::Sealed),
            MESSAGE | RETURNED | SEALED => Err(PeerMisbehaved::NoHandle),
            kind => Err(PeerMisbehaved::UnknownSlotKind(kind as u8)),
        }
    }

    /// Of a slot of nothing else: what goes home.
    #[expect(clippy::arithmetic_side_effects, reason = "shifts by up to 48 bits, and one more than what 16 bits hold")]
    pub(crate) fn returns(&self) -> [Option<Return>; RETURNS] {
        let [head, a, b, c, d, e, f] = self.0;
        [([a, b], 1), ([c, d], 2), ([e, f], 3)].map(|(words, at)| {
            let times = (head >> (at * TIMES_BITS)) as u32 % TIMES_MAX + 1;
            Handle::from_words(words).map(|handle| Return { handle, times })
        })
    }

    /// Room for what it says is inside, with the words that are in its first slot.
    #[inline]
    pub(crate) fn open_inside(&self) -> Inside {
        let [_, _, _, first @ ..] = self.0;
        let mut inside = Inside::new(usize::from(self.segments()));
        inside.words_mut().iter_mut().zip(first).for_each(|(word, found)| *word = found);
        inside
    }
}

impl Descriptor {
    #[inline]
    #[expect(clippy::arithmetic_side_effects, reason = "of this side's own counts, from 1 to 2^16")]
    pub(crate) fn to_words(self) -> Payload {
        match self {
            Self::Message(Envelope(words)) => words,
            Self::Returns(home) => {
                let mut words = [RETURNED, 0, 0, 0, 0, 0, 0];
                let [head, rest @ ..] = &mut words;
                let places = rest.as_chunks_mut::<2>().0.iter_mut().zip(home).zip(1..);
                for ((place, back), at) in places {
                    if let Some(Return { handle, times }) = back {
                        *place = handle.to_words();
                        *head |= u64::from(times - 1) << (at * TIMES_BITS);
                    }
                }
                words
            }
        }
    }

    /// Whether there are only handles in a slot.
    #[inline]
    pub(crate) fn is_returns(payload: &Payload) -> bool {
        payload[0] & 0xFF == RETURNED
    }

    /// What the application calls this kind of message.
    #[inline]
    pub(crate) fn kind_of(payload: &Payload) -> u16 {
        (payload[0] >> 48) as u16
    }

    /// Reads a peer's words. Bits without a meaning here are left to later versions.
    pub(crate) fn from_words(payload: Payload) -> Result<Self, PeerMisbehaved> {
        let envelope = Envelope(payload);
        match envelope.check()? {
            Kind::Lent | Kind::Inside | Kind::Sealed => Ok(Self::Message(envelope)),
            Kind::Returns => Ok(Self::Returns(envelope.returns())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(offset: u64) -> Handle {
        Handle::new(3, offset, 9, 77)
    }

    #[test]
    fn what_is_written_is_read() {
        let plain = Envelope::lent(handle(1), 512, 255).passing(64).numbered(5);
        let full = plain.marked(MORE | ASKS, u16::MAX, Some(4)).returning(Some(handle(2)));
        let (inside, rest) = Envelope::inside(&[1, 2, 3]);
        assert!(rest.is_empty());
        let inside = inside.marked(ASKS, 7, None).numbered(6);
        let (long, rest) = Envelope::inside(&[1, 2, 3, 4, 5, 6]);
        assert_eq!(rest, [5, 6]);
        let at = SealedAt { words: u64::MAX, segments: 512, blobs: 255, tag: Some(u16::MAX) };
        let sealed = Envelope::sealed(at).passing(1).marked(MORE, 7, Some(2)).numbered(8);
        for descriptor in [
            Descriptor::Message(plain),
            Descriptor::Message(full),
            Descriptor::Message(inside),
            Descriptor::Message(long),
            Descriptor::Message(sealed),
            Descriptor::Returns([Some(Return { handle: handle(1), times: 1 }), None, None]),
            Descriptor::Returns([1, 2, 3].map(|n| Some(Return { handle: handle(n.into()), times: n }))),
            Descriptor::Returns([4, 5, 6].map(|n| Some(Return { handle: handle(n), times: TIMES_MAX }))),
        ] {
            assert_eq!(Descriptor::from_words(descriptor.to_words()), Ok(descriptor));
        }
        assert_eq!((full.id(), full.in_reply_to(), full.segments(), full.blobs()), (5, Some(4), 512, 255));
        assert_eq!((full.flags(), full.kind(), full.returned()), (MORE | ASKS, u16::MAX, Some(handle(2))));
        assert_eq!((full.lent_as(), plain.returned(), plain.in_reply_to()), (Some(handle(1)), None, None));
        assert_eq!((inside.lent_as(), inside.returned()), (None, None));
        assert_eq!(inside.open_inside().words(), [1, 2, 3]);
        assert_eq!(long.open_inside().words()[..4], [1, 2, 3, 4]);
        assert_eq!((sealed.sealed_at(), sealed.returned(), sealed.lent_as()), (Some(at), None, None));
        assert_eq!((plain.sealed_at(), inside.sealed_at()), (None, None));
        for tag in [None, Some(0)] {
            let at = SealedAt { words: 1, segments: 1, blobs: 0, tag };
            assert_eq!(Envelope::sealed(at).sealed_at(), Some(at));
        }
    }

    #[test]
    fn unknown_kinds_and_empty_handles_are_misbehaviour() {
        for kind in (0..=255).filter(|kind| ![MESSAGE, RETURNED, INSIDE, SEALED].contains(kind)) {
            let found = Descriptor::from_words([kind, 1, 0, 1, 1, 0, 0]);
            assert_eq!(found, Err(PeerMisbehaved::UnknownSlotKind(kind as u8)));
        }
        for kind in [MESSAGE, RETURNED] {
            assert_eq!(Descriptor::from_words([kind, 0, 0, 0, 0, 0, 0]), Err(PeerMisbehaved::NoHandle));
        }
        // Sealed memory comes as a descriptor.
        assert_eq!(Descriptor::from_words([SEALED | 1 << 16, 1, 0, 9, 0, 0, 0]), Err(PeerMisbehaved::NoHandle));
        for words in [0, INSIDE_WORDS as u64 + 1, 0xFFFF] {
            let found = Descriptor::from_words([INSIDE | words << 16, 1, 0, 1, 1, 0, 0]);
            assert_eq!(found, Err(PeerMisbehaved::InsideLength(words as u16)));
        }
        for beside in [1 << 32, 1 << 40] {
            let found = Descriptor::from_words([INSIDE | 1 << 16 | beside, 1, 0, 1, 1, 0, 0]);
            assert_eq!(found, Err(PeerMisbehaved::InsideLength(1)));
        }
    }
}
