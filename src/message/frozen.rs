//! A finished message, seen from its owner's side.

use super::schema::Schema;
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
    frozen: Arc<Frozen>,
    kind: u16,
    /// At most 64, and not none.
    fds: Option<Fds>,
    root: PhantomData<fn() -> T>,
}

impl<T: Schema> Message<T> {
    pub(super) fn new(frozen: Arc<Frozen>, kind: u16, fds: Option<Fds>) -> Self {
        Self { frozen, kind, fds, root: PhantomData }
    }

    #[inline]
    pub(crate) fn fds(&self) -> Option<&Fds> {
        self.fds.as_ref()
    }

    pub(crate) fn frozen(&self) -> &Arc<Frozen> {
        &self.frozen
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
        TypedReader::new(Reader::new(OwnSegments(self.frozen.clone()), options))
    }

    /// The blobs that go with it, in the order they were attached.
    #[must_use]
    pub fn blobs(&self) -> &[Blob] {
        self.frozen.blobs()
    }

    /// The segments as Cap'n Proto would write them to a stream, in order.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.frozen.segment_count()).map(|index| self.frozen.segment(index).unwrap_or_default())
    }
}

impl<T: Schema> Clone for Message<T> {
    fn clone(&self) -> Self {
        Self::new(self.frozen.clone(), self.kind, self.fds.clone())
    }
}

struct OwnSegments(Arc<Frozen>);

impl ReaderSegments for OwnSegments {
    fn get_segment(&self, index: u32) -> Option<&[u8]> {
        self.0.segment(index as usize)
    }

    fn len(&self) -> usize {
        self.0.segment_count()
    }
}
