//! Messages copied into another arena: where that of the original is not seen, or is not one's own. Knows what belongs
//! to a message, not where it goes.

use super::builder::{Builder, FreezeError};
use super::frozen::{Body, Message};
use super::received::Received;
use super::schema::Schema;
use crate::shm::arena::{AllocError, Arena};
use crate::sys::fork::{self, NoForkFd};
use crate::sys::passed::DescriptorsLost;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use thiserror::Error;

/// Why a received message was not copied. Nothing is left of the attempt.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CopyError {
    /// It is not well-formed, or larger to walk than what is copied may be.
    #[error(transparent)]
    Malformed(#[from] capnp::Error),
    /// The arena has no room for it.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// Its descriptors did not arrive.
    #[error(transparent)]
    Descriptors(#[from] DescriptorsLost),
    /// Its descriptors cannot be duplicated, or this is a forked child.
    #[error("cannot copy what is attached to the message")]
    Io(#[source] io::Error),
}

impl From<AllocError> for CopyError {
    fn from(error: AllocError) -> Self {
        Self::Freeze(error.into())
    }
}

impl<T: Schema> Message<T> {
    /// The same message in another arena, byte by byte, with its blobs: for sessions whose peer does not see the arena it
    /// was built in ([`SendError::ForeignArena`](crate::SendError::ForeignArena)). Descriptors are shared. Never blocks. A
    /// sealed message is seen by everyone: what this gives is the same one.
    ///
    /// ```no_run
    /// # capnp::generated_code!(mod hello_capnp);
    /// # use hello_capnp::hello;
    /// use strait::{Channel, Message, SendError};
    ///
    /// /// To peers of this user by name, to a peer of another user in a copy.
    /// fn send_any(channel: &mut Channel<hello::Owned>, news: &Message<hello::Owned>) -> Result<u64, Box<dyn std::error::Error>> {
    ///     match channel.send(news) {
    ///         Err(SendError::ForeignArena) => Ok(channel.send(&news.copy_to(channel.arena())?)?),
    ///         other => Ok(other?),
    ///     }
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// [`FreezeError`], if that arena has no room.
    pub fn copy_to(&self, arena: &Arena) -> Result<Self, FreezeError> {
        let Body::Lent(frozen) = self.body() else { return Ok(self.clone()) };
        Ok(Self::new(Body::Lent(frozen.copy_to(arena)?), self.kind(), self.fds().cloned()))
    }
}

impl<T: Schema> Received<T> {
    /// A builder with a deep copy of the root, to be changed and sent on. What is attached to the message stays with it.
    ///
    /// # Errors
    /// Cap'n Proto's, if the message is not well-formed. Whether the arena had room, freezing tells.
    pub fn to_builder(&self, arena: &Arena) -> capnp::Result<Builder<T>> {
        // A copy has no far pointers and no gaps, so it fits.
        let mut builder = Builder::with_capacity(arena, self.size());
        builder.set_kind(self.kind());
        builder.set_root(self.get()?)?;
        Ok(builder)
    }

    /// A copy of the message in this side's own arena, with its blobs, and with its descriptors if those were not taken.
    ///
    /// Of a blob whose sender is not believed the copy may be a mixture of what it was at different times, and as large
    /// as the sender's arena: look at [`len`](crate::ReceivedBlob::len) first.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn copy_to(&self, arena: &Arena) -> Result<Message<T>, CopyError> {
        let mut builder = self.to_builder(arena)?;
        for blob in self.blobs() {
            // Its sender's arena is mapped here, so its length is a `usize`.
            let mut copy = arena.create_blob(usize::try_from(blob.len()).unwrap_or(usize::MAX))?;
            blob.read_exact_at(&mut copy, 0).map_err(CopyError::Io)?;
            builder.attach_blob(copy.freeze());
        }
        for fd in self.fds()? {
            builder.attach_kept_fd(duplicate(fd)?);
        }
        Ok(builder.freeze()?)
    }

    /// A sealed message once more, by reference: no byte of it is copied, and whoever it is sent to has the very memory
    /// that its first sender made, with its descriptors if those were not taken. `None` of any other message.
    ///
    /// # Errors
    /// [`CopyError`]: of the descriptors beside it.
    pub fn by_reference(&self) -> Result<Option<Message<T>>, CopyError> {
        let Some((sealed, memory)) = self.sealed() else { return Ok(None) };
        let beside = self.fds()?;
        let fds = if beside.is_empty() {
            memory.clone()
        } else {
            Arc::new(memory.iter().chain(beside).map(duplicate).collect::<Result<_, _>>()?)
        };
        Ok(Some(Message::new(Body::Sealed(sealed.clone()), self.kind(), Some(fds))))
    }
}

fn duplicate(fd: &NoForkFd) -> Result<NoForkFd, CopyError> {
    // No fork comes between its making and its being known.
    let mut making = fork::making();
    Ok(making.keep(fd.as_fd().try_clone_to_owned().map_err(CopyError::Io)?))
}
