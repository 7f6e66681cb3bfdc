//! Pieces of a response's body, as they lie in the worker's arena, and the news that they are no longer needed.

use std::io::{self, Read, Write};
use std::sync::Arc;
use strait::ReceivedBlob;

/// A piece of a response's body, on loan from the worker until it is dropped.
///
/// The worker is not believed, so it could change these bytes at any time: what is read twice need not be the same
/// twice. Nothing is copied before it is read.
#[derive(Debug)]
pub struct Chunk {
    blob: ReceivedBlob,
    /// Where this piece of it begins.
    from: u64,
    /// Told when it is dropped.
    _spent: Option<Spent>,
}

/// Where word goes that a piece has been dropped.
pub(crate) trait Ledger: Send + Sync {
    fn spent(&self, bytes: u64);
}

/// One piece's entry there.
struct Spent {
    ledger: Arc<dyn Ledger>,
    bytes: u64,
}

impl Drop for Spent {
    fn drop(&mut self) {
        self.ledger.spent(self.bytes);
    }
}

impl std::fmt::Debug for Spent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spent")
    }
}

impl Chunk {
    pub(crate) fn new(blob: ReceivedBlob, ledger: Option<Arc<dyn Ledger>>) -> Self {
        let bytes = blob.len();
        Self { blob, from: 0, _spent: ledger.map(|ledger| Spent { ledger, bytes }) }
    }

    /// What is left of it from `at` on.
    pub(crate) fn starting_at(mut self, at: u64) -> Self {
        self.from = self.from.saturating_add(at).min(self.blob.len());
        self
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.blob.len() - self.from
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes from `offset` on, as many as there are and `into` has room for; tells how many.
    ///
    /// # Errors
    /// In a forked child, which does not have the memory.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.blob.read_at(into, self.from.saturating_add(offset))
    }

    /// The bytes where they lie, if the worker was vouched for
    /// ([`ClientBuilder::trust`](crate::ClientBuilder::trust)); `None` otherwise.
    #[must_use]
    pub fn as_slice(&self) -> Option<&[u8]> {
        self.blob.as_slice()?.get(usize::try_from(self.from).ok()?..)
    }

    /// Writes all of it; tells how many bytes that was.
    ///
    /// # Errors
    /// The writer's, and as for [`read_at`](Self::read_at).
    pub fn write_to(&self, to: &mut impl Write) -> io::Result<u64> {
        if let Some(bytes) = self.as_slice() {
            to.write_all(bytes)?;
            return Ok(bytes.len() as u64);
        }
        let mut buffer = [0; COPY];
        let mut at = 0;
        while at < self.len() {
            let count = self.read_at(&mut buffer, at)?;
            to.write_all(buffer.get(..count).unwrap_or_default())?;
            at += count as u64;
        }
        Ok(at)
    }

    /// A private copy of it.
    ///
    /// # Errors
    /// `OutOfMemory` if there is no memory for it; as for [`read_at`](Self::read_at).
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let len = usize::try_from(self.len()).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.resize(len, 0);
        self.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// What is copied at a time: stays in the first cache.
const COPY: usize = 16 << 10;

/// A body in one piece or several, on loan from the worker until it is dropped. See [`Chunk`] for how far it is to be
/// believed.
#[derive(Debug, Default)]
pub struct Body {
    chunks: Vec<Chunk>,
    len: u64,
}

impl Body {
    pub(crate) fn push(&mut self, chunk: Chunk) {
        self.len += chunk.len();
        self.chunks.push(chunk);
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its pieces, in order.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Reads it from its start, as a file.
    #[must_use]
    pub fn reader(&self) -> BodyReader<'_> {
        BodyReader { rest: &self.chunks, at: 0 }
    }

    /// A private copy of it.
    ///
    /// # Errors
    /// As [`Chunk::to_vec`].
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let len = usize::try_from(self.len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.chunks.iter().try_for_each(|chunk| chunk.write_to(&mut bytes).map(drop))?;
        Ok(bytes)
    }
}

/// A [`Body`] read like a file. Never blocks.
#[derive(Debug)]
pub struct BodyReader<'a> {
    rest: &'a [Chunk],
    at: u64,
}

impl Read for BodyReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some((chunk, rest)) = self.rest.split_first() {
            let count = chunk.read_at(into, self.at)?;
            self.at += count as u64;
            if count > 0 || into.is_empty() {
                return Ok(count);
            }
            (self.rest, self.at) = (rest, 0);
        }
        Ok(0)
    }
}
