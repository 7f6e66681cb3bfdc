//! A request under way, as its client sees it.

use crate::chunk::Chunk;
use crate::error::{Error, LaunchError};
use crate::request::RequestBuilder;
use crate::response::{End, Head, Response};

/// A request that was sent and whose answer is awaited by nobody yet. Dropped, it is cancelled.
#[must_use = "dropped, it is cancelled"]
pub struct Pending {
    transfer: Transfer,
}

impl Pending {
    pub(crate) fn start(request: RequestBuilder) -> Result<Self, Error> {
        drop(request);
        Err(LaunchError::NotFound(Vec::new()).into())
    }

    /// Waits for the head of the answer.
    ///
    /// # Errors
    /// [`Error`].
    pub fn wait(mut self) -> Result<Response, Error> {
        let mut heads = Vec::new();
        loop {
            match self.transfer.next()? {
                Event::Head(head) => heads.push(head),
                Event::Chunk(_) | Event::End(_) => break,
            }
        }
        Ok(Response::new(self.transfer, heads))
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// What comes next.
pub(crate) enum Event {
    Head(Head),
    Chunk(Chunk),
    End(End),
}

pub(crate) struct Transfer {}

impl Transfer {
    pub(crate) fn next(&mut self) -> Result<Event, Error> {
        Err(Error::WorkerSilent)
    }

    pub(crate) fn keep_all(&mut self) {}
}
