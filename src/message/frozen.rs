//! A finished message, seen from its owner's side.

use super::schema::Schema;
use super::sealed::Sealed;
use crate::shm::blob::Blob;
use crate::shm::block::Frozen;
use crate::sys::passed::Fds;
use capnp::message::{Reader, ReaderOptions, ReaderSegments, TypedReader};
use std::marker::PhantomData;
use std::sync::Arc;

/// A finished message in shared memory, which nobody writes any more.
///
/// May be sent any number of times, over any number of channels and sessions that share its arena: what crosses is its
/// name. A clone is another handle to the same bytes. They are freed when the last handle is gone and the last receiver
/// has returned what it was lent, or died.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use strait::{Channel, Message, SendError};
///
/// fn broadcast(news: &Message<hello::Owned>, to: &mut [Channel<hello::Owned>]) -> Result<(), SendError> {
///     to.iter_mut().try_for_each(|channel| channel.send(news).map(drop))
/// }
/// # fn main() {}
/// ```
#[derive(Debug)]
pub struct Message<T: Schema> {
    body: Body,
    kind: u16,
    /// At most 64, and not none. The first is the memory of a sealed message.
    fds: Option<Fds>,
    root: PhantomData<fn() -> T>,
}

/// Where a message's bytes are, and what keeps them.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// In an arena, to be lent.
    Lent(Arc<Frozen>),
    /// In memory of its own, to be passed.
    Sealed(Arc<Sealed>),
}

impl Body {
    fn segment(&self, index: usize) -> Option<&[u8]> {
        match self {
            Self::Lent(frozen) => frozen.segment(index),
            Self::Sealed(sealed) => sealed.segment(index),
        }
    }

    fn segment_count(&self) -> usize {
        match self {
            Self::Lent(frozen) => frozen.segment_count(),
            Self::Sealed(sealed) => sealed.segment_count(),
        }
    }
}

impl<T: Schema> Message<T> {
    pub(super) fn new(body: Body, kind: u16, fds: Option<Fds>) -> Self {
        Self { body, kind, fds, root: PhantomData }
    }

    #[inline]
    pub(crate) fn fds(&self) -> Option<&Fds> {
        self.fds.as_ref()
    }

    #[inline]
    pub(crate) fn body(&self) -> &Body {
        &self.body
    }

    /// What is lent; `None` of a sealed message.
    pub(crate) fn frozen(&self) -> Option<&Arc<Frozen>> {
        match &self.body {
            Body::Lent(frozen) => Some(frozen),
            Body::Sealed(_) => None,
        }
    }

    /// Whether it lies in memory of its own ([`SealedBuilder`](crate::SealedBuilder)).
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        matches!(self.body, Body::Sealed(_))
    }

    /// What its builder called this kind of message ([`Builder::set_kind`](super::Builder::set_kind)), or 0.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// Reads it on the owner's side.
    #[must_use]
    pub fn reader(&self) -> TypedReader<impl ReaderSegments, T> {
        // Its own writing is believed: no limits.
        let options = ReaderOptions { traversal_limit_in_words: None, nesting_limit: i32::MAX };
        TypedReader::new(Reader::new(OwnSegments(self.body.clone()), options))
    }

    /// The blobs that were attached to it, in that order. Those of a sealed message are part of it: none here.
    #[must_use]
    pub fn blobs(&self) -> &[Blob] {
        match &self.body {
            Body::Lent(frozen) => frozen.blobs(),
            Body::Sealed(_) => &[],
        }
    }

    /// The segments as Cap'n Proto would write them to a stream, in order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.body.segment_count()).map(|index| self.body.segment(index).unwrap_or_default())
    }
}

impl<T: Schema> Clone for Message<T> {
    fn clone(&self) -> Self {
        Self::new(self.body.clone(), self.kind, self.fds.clone())
    }
}

struct OwnSegments(Body);

impl ReaderSegments for OwnSegments {
    fn get_segment(&self, index: u32) -> Option<&[u8]> {
        self.0.segment(index as usize)
    }

    fn len(&self) -> usize {
        self.0.segment_count()
    }
}
