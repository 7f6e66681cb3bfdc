//! A channel that the peer wants to open, and that the application has not judged yet.

use super::desk::Offered;
use super::error::ChannelError;
use super::session::Session;
use crate::channel::Channel;
use crate::message::{Marks, OpenProblem, Opening, Received, Schema};
use crate::shm::view::Borrowed;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::transport::control::{Control, MetadataAt, Refusal};
use std::sync::Arc;

/// The most bytes of metadata that may go with the opening of a channel.
pub(super) const METADATA_MAX: usize = 64 << 10;

/// A channel that the peer asks for, under a name that this side does not serve by itself: accept it, or say why not.
///
/// The peer waits for the answer no longer than it chose to; a channel accepted after that is closed at once. Dropped,
/// it is rejected without a reason.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use strait::{Channel, ChannelError, Session};
///
/// fn next(session: &Session) -> Result<Option<Channel<hello::Owned>>, ChannelError> {
///     let mut offer = session.accept_offer()?;
///     let wanted = match offer.metadata::<hello::Owned>()? {
///         Some(metadata) => matches!(metadata.get().map(|root| root.which()), Ok(Ok(hello::Greet(_)))),
///         None => false,
///     };
///     if wanted {
///         return offer.accept().map(Some);
///     }
///     offer.reject("greet me first");
///     Ok(None)
/// }
/// # fn main() {}
/// ```
#[must_use = "dropped, it is rejected"]
pub struct Offer {
    session: Session,
    /// Until it is judged.
    offered: Option<Offered>,
}

impl Offer {
    pub(super) fn new(session: Session, offered: Offered) -> Self {
        Self { session, offered: Some(offered) }
    }

    /// The name that the peer opens it by.
    #[must_use]
    pub fn name(&self) -> &str {
        self.offered.as_ref().map_or("", |offered| &offered.spec.name)
    }

    /// Cap'n Proto's id of the root of its messages: compare with [`Schema::ID`].
    #[must_use]
    pub fn schema(&self) -> u64 {
        self.offered.as_ref().map_or(0, |offered| offered.spec.schema)
    }

    /// Cap'n Proto's id of the root of the metadata, if the offer came with any that was not taken yet.
    #[must_use]
    pub fn metadata_schema(&self) -> Option<u64> {
        self.offered.as_ref()?.metadata.map(|metadata| metadata.schema)
    }

    /// Takes the message that the offer came with: at most 64 KiB, read as the peer is trusted. `None` if it came
    /// without, or it was taken already.
    ///
    /// # Errors
    /// [`ChannelError::WrongSchema`] if its root is another than `M`: it can still be taken then. Any other ends the
    /// offer.
    pub fn metadata<M: Schema>(&mut self) -> Result<Option<Received<M>>, ChannelError> {
        let Some(offered) = &mut self.offered else { return Ok(None) };
        let core = self.session.core();
        if core.is_forked() {
            return Err(self.session.ended());
        }
        match offered.metadata {
            None => Ok(None),
            Some(MetadataAt { schema, .. }) if schema != M::ID => {
                let channel = offered.spec.name.clone();
                Err(ChannelError::WrongSchema { channel, ours: M::ID, theirs: schema })
            }
            Some(MetadataAt { handle, segments, .. }) => {
                offered.metadata = None;
                let home = Arc::new(self.session.link().clone());
                let opened = Borrowed::new(handle, home).map_err(OpenProblem::Peer).and_then(|borrowed| {
                    let marks = Marks::default();
                    let opening = Opening { borrowed, segments, marks };
                    let trust = self.session.trust().at_most(METADATA_MAX as u64);
                    let received = Received::<M>::open(opening, trust, &Arc::default())?;
                    let (bytes, limit) = (received.size() as u64, METADATA_MAX as u64);
                    if bytes > limit {
                        return Err(PeerMisbehaved::MessageTooLarge { bytes, limit }.into());
                    }
                    Ok(received)
                });
                match opened {
                    Ok(received) => Ok(Some(received)),
                    Err(OpenProblem::Peer(broken)) => {
                        core.misbehaved(broken);
                        Err(self.session.ended())
                    }
                    // Metadata is never sealed, so nothing of it is lost.
                    Err(OpenProblem::NoMemory(_) | OpenProblem::Lost(_)) => Err(ChannelError::NoMemory),
                }
            }
        }
    }

    /// Opens the channel. One round trip is not waited for: it can be used at once.
    ///
    /// # Errors
    /// [`ChannelError`]; the peer is told why where it is still there. With another schema than the peer's it is
    /// [`ChannelError::WrongSchema`], on both sides.
    pub fn accept<T: Schema>(mut self) -> Result<Channel<T>, ChannelError> {
        let Some(offered) = self.offered.take() else { return Err(self.session.ended()) };
        self.session.accept_offered(offered)
    }

    /// Refuses the channel and tells the peer why: at most 108 bytes of it.
    pub fn reject(mut self, reason: impl Into<String>) {
        self.refuse(reason.into());
    }

    fn refuse(&mut self, reason: String) {
        let Some(Offered { number, metadata, .. }) = self.offered.take() else { return };
        let core = self.session.core();
        if core.is_forked() {
            return;
        }
        core.send(&Control::ChannelRefused { number, refusal: Refusal::Rejected(reason) });
        if let Some(MetadataAt { handle, .. }) = metadata {
            core.owe(handle);
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.refuse(String::new());
    }
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("name", &self.name()).field("schema", &self.schema()).finish_non_exhaustive()
    }
}
