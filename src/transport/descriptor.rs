//! What the seven payload words of a slot mean. Pure: words in, a checked value out.
//!
//! | word | message | returns |
//! |---|---|---|
//! | 0 | kind 1, flags in bits 8..16, segments in 16..32, blobs in 32..40, file descriptors in 40..48, the application's kind in 48..64 | kind 2 |
//! | 1 | message id | handle |
//! | 2 | id replied to, or 0 | handle |
//! | 3, 4 | handle | handle, two words each |
//! | 5, 6 | a returned handle, or 0 | handle or 0 |

use crate::ring::Payload;
use crate::shm::handle::Handle;
use crate::sys::misbehaved::PeerMisbehaved;

/// A slot's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Descriptor {
    /// A message, and a handle of the receiver's that goes home with it.
    Message(Envelope, Option<Handle>),
    /// Nothing but handles that go home.
    Returns([Option<Handle>; RETURNS]),
}

/// A message on its way, unopened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// Counts the messages of a direction, from 1.
    pub(crate) id: u64,
    /// The other direction's message that this one answers.
    pub(crate) in_reply_to: Option<u64>,
    pub(crate) handle: Handle,
    pub(crate) segments: u16,
    pub(crate) blobs: u8,
    /// File descriptors that come through the socket.
    pub(crate) fds: u8,
    /// [`MORE`], [`ASKS`].
    pub(crate) flags: u8,
    /// What the application calls this kind of message.
    pub(crate) kind: u16,
}

impl Envelope {
    /// Whether anything travels with the message.
    #[inline]
    pub(crate) fn has_more(&self) -> bool {
        self.blobs | self.fds != 0
    }
}

/// Flag of an answer: more answers to the same message follow.
pub(crate) const MORE: u8 = 1;

/// Flag of a message whose sender waits for an answer; and of an answer to such a message.
pub(crate) const ASKS: u8 = 2;

/// Handles that fit a slot of nothing else.
pub(crate) const RETURNS: usize = 3;

const MESSAGE: u64 = 1;
const RETURNED: u64 = 2;

impl Descriptor {
    #[inline]
    pub(crate) fn to_words(self) -> Payload {
        let words = |handle: Option<Handle>| handle.map_or([0, 0], Handle::to_words);
        match self {
            Self::Message(envelope, returned) => {
                let [handle_low, handle_high] = envelope.handle.to_words();
                let [returned_low, returned_high] = words(returned);
                [
                    MESSAGE
                        | u64::from(envelope.flags) << 8
                        | u64::from(envelope.segments) << 16
                        | u64::from(envelope.blobs) << 32
                        | u64::from(envelope.fds) << 40
                        | u64::from(envelope.kind) << 48,
                    envelope.id,
                    envelope.in_reply_to.unwrap_or(0),
                    handle_low,
                    handle_high,
                    returned_low,
                    returned_high,
                ]
            }
            Self::Returns([first, second, third]) => {
                let ([a, b], [c, d], [e, f]) = (words(first), words(second), words(third));
                [RETURNED, a, b, c, d, e, f]
            }
        }
    }

    /// Whether there are only handles in a slot.
    #[inline]
    pub(crate) fn is_returns(payload: &Payload) -> bool {
        payload[0] & 0xFF == RETURNED
    }

    /// Reads a peer's words. Bits without a meaning here are left to later versions.
    #[inline]
    pub(crate) fn from_words(payload: Payload) -> Result<Self, PeerMisbehaved> {
        let [head, a, b, c, d, e, f] = payload;
        match head & 0xFF {
            MESSAGE => {
                let envelope = Envelope {
                    id: a,
                    in_reply_to: (b != 0).then_some(b),
                    handle: Handle::from_words([c, d]).ok_or(PeerMisbehaved::NoHandle)?,
                    segments: (head >> 16) as u16,
                    blobs: (head >> 32) as u8,
                    flags: (head >> 8) as u8,
                    kind: (head >> 48) as u16,
                    fds: (head >> 40) as u8,
                };
                Ok(Self::Message(envelope, Handle::from_words([e, f])))
            }
            RETURNED => {
                let home = [[a, b], [c, d], [e, f]].map(Handle::from_words);
                if home.iter().all(Option::is_none) { Err(PeerMisbehaved::NoHandle) } else { Ok(Self::Returns(home)) }
            }
            kind => Err(PeerMisbehaved::UnknownSlotKind(kind as u8)),
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
        let envelope = Envelope {
            id: 5,
            in_reply_to: Some(4),
            handle: handle(1),
            segments: 512,
            blobs: 255,
            fds: 64,
            flags: MORE | ASKS,
            kind: u16::MAX,
        };
        let plain = Envelope { in_reply_to: None, ..envelope };
        for descriptor in [
            Descriptor::Message(envelope, Some(handle(2))),
            Descriptor::Message(plain, None),
            Descriptor::Returns([Some(handle(1)), None, None]),
            Descriptor::Returns([1, 2, 3].map(|n| Some(handle(n)))),
        ] {
            assert_eq!(Descriptor::from_words(descriptor.to_words()), Ok(descriptor));
        }
    }

    #[test]
    fn unknown_kinds_and_empty_handles_are_misbehaviour() {
        for kind in (0..=255).filter(|kind| ![MESSAGE, RETURNED].contains(kind)) {
            let found = Descriptor::from_words([kind, 1, 0, 1, 1, 0, 0]);
            assert_eq!(found, Err(PeerMisbehaved::UnknownSlotKind(kind as u8)));
        }
        for kind in [MESSAGE, RETURNED] {
            assert_eq!(Descriptor::from_words([kind, 0, 0, 0, 0, 0, 0]), Err(PeerMisbehaved::NoHandle));
        }
    }
}
