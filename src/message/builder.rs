//! A message being written, in the memory it will be read from.

use super::frozen::{Body, Message};
use super::schema::Schema;
use super::segments::{ArenaSegments, FIRST_WORDS};
use crate::shm::arena::{AllocError, Arena};
use crate::shm::blob::Blob;
use crate::shm::block::{FreezeProblem, Frozen, Segments};
use crate::sys::fork::{self, NoForkFd};
use crate::sys::passed::PASSED_MAX;
use capnp::any_pointer;
use capnp::message;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use thiserror::Error;

/// Why a builder did not become a message.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FreezeError {
    /// The arena was full at some point while the message was built. It works again once messages have come back.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// Cap'n Proto messages have at most 512 segments. Give the builder its size up front.
    #[error("message of {0} segments: at most 512; give the builder a size up front")]
    TooManySegments(usize),
    /// A message takes at most 255 blobs.
    #[error("message with {0} blobs: at most 255")]
    TooManyBlobs(usize),
    /// A blob was built in another arena than the message.
    #[error("a blob was built in another arena than the message")]
    ForeignBlob,
    /// A message takes at most 64 descriptors.
    #[error("message with {0} descriptors: at most 64")]
    TooManyDescriptors(usize),
}

impl From<FreezeProblem> for FreezeError {
    fn from(problem: FreezeProblem) -> Self {
        match problem {
            FreezeProblem::Alloc(error) => Self::Alloc(error),
            FreezeProblem::Segments(count) => Self::TooManySegments(count),
            FreezeProblem::Blobs(count) => Self::TooManyBlobs(count),
            FreezeProblem::ForeignBlob => Self::ForeignBlob,
        }
    }
}

/// A message being written in shared memory: a Cap'n Proto builder whose segments are blocks of an [`Arena`].
///
/// Belongs to nobody but its writer until [`freeze`](Self::freeze) makes it a [`Message`]; dropped, it was never there.
/// Never blocks. Where the arena is full it goes on in private memory and `freeze` reports it.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use strait::{Arena, Builder, FreezeError, Message, data_len};
///
/// fn text(arena: &Arena, text: &str) -> Result<Message<hello::Owned>, Box<dyn std::error::Error>> {
///     let mut builder = Builder::<hello::Owned>::with_capacity(arena, text.len() + 64);
///     builder.init_root().init_answer(data_len(text.len())?).push_str(text);
///     Ok(builder.freeze()?)
/// }
/// # fn main() {}
/// ```
pub struct Builder<T: Schema> {
    capnp: message::Builder<ArenaSegments>,
    kind: u16,
    /// Rare, so elsewhere.
    attached: Option<Box<Attached>>,
    root: PhantomData<fn() -> T>,
}

/// What is to travel with a message.
#[derive(Default)]
struct Attached {
    blobs: Vec<Blob>,
    fds: Vec<NoForkFd>,
}

impl<T: Schema> Builder<T> {
    /// For a small message, or one of unknown size: segments double as it grows.
    #[must_use]
    pub fn new(arena: &Arena) -> Self {
        Self::with_first_segment(arena, FIRST_WORDS)
    }

    /// For a message of about `bytes` bytes, Cap'n Proto's own overhead included: all of it in one segment, which
    /// keeps large messages contiguous and saves the growing.
    #[must_use]
    pub fn with_capacity(arena: &Arena, bytes: usize) -> Self {
        // Cap'n Proto allows a segment 2^29 words; what exceeds it goes into further segments.
        let words = u32::try_from(bytes.div_ceil(8)).unwrap_or(u32::MAX).min(1 << 29);
        Self::with_first_segment(arena, words)
    }

    fn with_first_segment(arena: &Arena, words: u32) -> Self {
        let capnp = message::Builder::new(ArenaSegments::new(arena.clone(), words));
        Self { capnp, kind: 0, attached: None, root: PhantomData }
    }

    /// Begins the root struct.
    pub fn init_root(&mut self) -> T::Builder<'_> {
        self.capnp.init_root()
    }

    /// The root struct as written so far.
    ///
    /// # Errors
    /// Cap'n Proto's, if the message is not well-formed.
    pub fn get_root(&mut self) -> capnp::Result<T::Builder<'_>> {
        self.capnp.get_root()
    }

    /// Makes the root a deep copy of `value`.
    ///
    /// # Errors
    /// Cap'n Proto's, if `value` is not well-formed.
    pub fn set_root(&mut self, value: T::Reader<'_>) -> capnp::Result<()> {
        self.capnp.set_root(value)
    }

    /// Has a blob travel with the message, after those attached before: up to 255, out of the message's own arena. The
    /// receiver finds them in this order ([`Received::blobs`](crate::Received::blobs)). A message may consist of nothing
    /// else: a root that was never begun costs a few words.
    ///
    /// [`freeze`](Self::freeze) reports what cannot be. Native values travel so as well: [`Arena::share`].
    pub fn attach_blob(&mut self, blob: impl Into<Blob>) -> &mut Self {
        self.attached.get_or_insert_default().blobs.push(blob.into());
        self
    }

    /// Has a file descriptor of any kind travel with the message, after those attached before: up to 64. The message owns
    /// it from here on, and sends a copy of it each time it is sent; this process's forked children lose it. The receiver
    /// finds them in this order ([`Received::take_fds`](crate::Received::take_fds)).
    ///
    /// [`freeze`](Self::freeze) reports what cannot be.
    ///
    /// ```no_run
    /// # capnp::generated_code!(mod hello_capnp);
    /// # use hello_capnp::hello;
    /// use strait::Channel;
    ///
    /// fn lend_a_file(channel: &mut Channel<hello::Owned>) -> Result<(), Box<dyn std::error::Error>> {
    ///     let mut message = channel.create_msg();
    ///     message.init_root().set_greet("read this");
    ///     message.attach_fd(std::fs::File::open("/etc/hostname")?);
    ///     channel.send(&message.freeze()?)?;
    ///     Ok(())
    /// }
    /// # fn main() {}
    /// ```
    pub fn attach_fd(&mut self, fd: impl Into<OwnedFd>) -> &mut Self {
        // Before the lock is taken: what the caller's conversion does is its own business.
        let fd = fd.into();
        self.attach_kept_fd(fork::making().keep(fd));
        self
    }

    pub(super) fn attach_kept_fd(&mut self, fd: NoForkFd) {
        self.attached.get_or_insert_default().fds.push(fd);
    }

    /// Names the kind of message, in the application's own numbering: it travels beside the message, so that the receiver
    /// can tell kinds apart ([`Received::kind`](super::Received::kind)) without decoding. 0 unless set.
    ///
    /// ```no_run
    /// # capnp::generated_code!(mod hello_capnp);
    /// # use hello_capnp::hello;
    /// # fn f(channel: &mut strait::Channel<hello::Owned>) -> Result<(), Box<dyn std::error::Error>> {
    /// const PRICES: u16 = 7;
    /// let mut builder = channel.create_msg();
    /// builder.set_kind(PRICES);
    /// channel.send(&builder.freeze()?)?;
    /// // At the other end:
    /// if channel.recv()?.kind() == PRICES { /* ... */ }
    /// # Ok(())
    /// # }
    /// # fn main() {}
    /// ```
    pub fn set_kind(&mut self, kind: u16) -> &mut Self {
        self.kind = kind;
        self
    }

    /// Ends the writing. From here on nobody writes these bytes, and they can be sent.
    ///
    /// # Errors
    /// [`FreezeError`]; the memory is free again then.
    pub fn freeze(mut self) -> Result<Message<T>, FreezeError> {
        if self.capnp.get_segments_for_output().is_empty() {
            // Never begun: an empty root, which reads as the default.
            self.capnp.init_root::<any_pointer::Builder<'_>>();
        }
        let segments = self.capnp.into_allocator().finish()?;
        match self.attached {
            None => Ok(Message::new(Body::Lent(Frozen::new(segments)?), self.kind, None)),
            Some(attached) => freeze_with(segments, self.kind, *attached),
        }
    }
}

#[cold]
fn freeze_with<T: Schema>(segments: Segments, kind: u16, attached: Attached) -> Result<Message<T>, FreezeError> {
    let Attached { blobs, fds } = attached;
    if fds.len() > PASSED_MAX {
        return Err(FreezeError::TooManyDescriptors(fds.len()));
    }
    let frozen = if blobs.is_empty() { Frozen::new(segments)? } else { Frozen::with_blobs(segments, blobs)? };
    Ok(Message::new(Body::Lent(frozen), kind, (!fds.is_empty()).then(|| Arc::new(fds))))
}
