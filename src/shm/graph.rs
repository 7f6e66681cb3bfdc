//! Whole object graphs as native values: archives of `rkyv`'s, written straight into a blob, checked once by each
//! borrower, then read where they lie.

use super::arena::{AllocError, Arena};
use super::blob::{BlobBuilder, ReceivedBlob};
use super::value::{Kind, Loaned, START, Shared, ValueError, digest, name};
use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::api::{access_with_context, root_position};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{Error, Failure};
use rkyv::ser::allocator::ArenaHandle;
use rkyv::ser::writer::IoWriter;
use rkyv::validation::Validator;
use rkyv::validation::archive::ArchiveValidator;
use rkyv::validation::shared::SharedValidator;
use rkyv::{Archive, Serialize};
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// Why a graph was not put into shared memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The arena has no room for it.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// It cannot be archived, or the arena became full on the way.
    #[error("cannot be archived")]
    Archive(#[source] Error),
}

/// What writes an archive into an arena.
pub type GraphWriter<'a> = HighSerializer<IoWriter<BlobBuilder>, ArenaHandle<'a>, Error>;

impl Arena {
    /// Archives a graph of values (`Vec`, `String`, `HashMap`, `Option`, `Box`, structs of these) straight into shared
    /// memory. Receivers read it there, in its archived form, without decoding.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use strait::rkyv::{self, Archive, Serialize};
    ///
    /// #[derive(Archive, Serialize)]
    /// struct Catalogue {
    ///     names: Vec<String>,
    ///     prices: HashMap<String, Option<u32>>,
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = std::env::temp_dir().join(format!("strait-graph-{}", std::process::id()));
    /// # let server = strait::ServerApp::new("doc").run_dir(&dir).bind()?;
    /// let catalogue = Catalogue { names: vec!["tea".into()], prices: [("tea".into(), Some(3))].into() };
    /// let shared = server.arena().share_graph(&catalogue)?;
    /// assert_eq!(shared.names[0], "tea");
    /// // builder.attach_blob(&shared);
    /// // message.blobs()[0].graph::<Catalogue>()?.prices.get("tea")
    /// # drop((shared, server));
    /// # std::fs::remove_dir(dir)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`GraphError`].
    pub fn share_graph<T>(&self, value: &T) -> Result<Shared<T::Archived>, GraphError>
    where
        T: Archive + for<'a> Serialize<GraphWriter<'a>>,
    {
        const { assert!(align_of::<T::Archived>() <= START) };
        let mut blob = self.create_blob(START)?;
        blob.reserve(size_of::<T::Archived>())?;
        let written = rkyv::api::high::to_bytes_in(value, IoWriter::new(blob)).map_err(GraphError::Archive)?;
        let mut blob = written.into_inner();
        let len = blob.len().saturating_sub(START);
        name(&mut blob, Kind::Graph, digest::<T::Archived>(), len as u64);
        let blob = blob.freeze();
        let root = START + root_position::<T::Archived>(len);
        let root = blob.get(root..).ok_or(AllocError::ForkedProcess)?;
        let value = NonNull::from(root).cast::<T::Archived>();
        // SAFETY: `rkyv` wrote the root last, aligned from the blob's start, which is aligned to `START`.
        Ok(unsafe { Shared::new(blob, value) })
    }
}

impl ReceivedBlob {
    /// The graph that its sender [shared](Arena::share_graph), in its archived form. Checked here, once, in a time that
    /// grows with its size; a sender that was vouched for is read in its own memory from then on, of anyone else's graph
    /// this makes a private copy first. A graph of more than 128 objects inside each other is refused.
    ///
    /// # Errors
    /// [`ValueError`].
    pub fn graph<T>(&self) -> Result<Loaned<T::Archived>, ValueError>
    where
        T: Archive,
        T::Archived: for<'a> CheckBytes<HighValidator<'a, Failure>>,
    {
        let expected = std::any::type_name::<T>();
        let header = self.header(Kind::Graph, digest::<T::Archived>(), expected)?;
        Loaned::new(self, header.bytes, |bytes| {
            if bytes.len() < size_of::<T::Archived>() {
                return Err(ValueError::Size { expected, bytes: header.bytes });
            }
            // Checking goes down into objects by calling itself.
            let archive = ArchiveValidator::with_max_depth(bytes, NonZeroUsize::new(DEPTH_MAX));
            let mut validator = Validator::new(archive, SharedValidator::new());
            access_with_context::<T::Archived, _, Failure>(bytes, &mut validator)
                .map_err(|_| ValueError::Invalid { expected })
        })
    }
}

/// How far objects may lie inside each other.
const DEPTH_MAX: usize = 128;
