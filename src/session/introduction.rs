//! Channels that are opened as soon as there is a session, each with metadata that is written anew for it.

use super::app::ChannelSpec;
use super::error::ChannelError;
use super::offer::METADATA_MAX;
use super::session::Session;
use crate::message::{Builder, FreezeError, Schema};
use crate::transport::control::MetadataAt;
use std::sync::Arc;

/// A channel and what is said with it.
#[derive(Clone)]
pub(super) struct Introduction {
    pub(super) spec: ChannelSpec,
    lend: Arc<Lend>,
}

/// Writes the metadata in a session's arena and lends it to the peer.
type Lend = dyn Fn(&Session) -> Result<MetadataAt, ChannelError> + Send + Sync;

impl Introduction {
    pub(super) fn new<T: Schema, M: Schema>(
        name: String,
        write: impl Fn(M::Builder<'_>) + Send + Sync + 'static,
    ) -> Self {
        let lend = move |session: &Session| {
            let mut builder = Builder::<M>::new(session.arena());
            write(builder.init_root());
            match builder.freeze() {
                Ok(metadata) => session.lend_metadata(&metadata),
                Err(FreezeError::Alloc(_)) => Err(ChannelError::NoMemory),
                // Of which only a message with more segments than metadata has bytes is left.
                Err(_) => Err(ChannelError::MetadataTooLarge { bytes: usize::MAX, limit: METADATA_MAX }),
            }
        };
        Self { spec: ChannelSpec { name, schema: T::ID }, lend: Arc::new(lend) }
    }

    pub(super) fn lend(&self, session: &Session) -> Result<MetadataAt, ChannelError> {
        (self.lend)(session)
    }
}

impl std::fmt::Debug for Introduction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Introduction").field(&self.spec).finish()
    }
}
