//! The answers to a request that may have any number of them.

use super::error::RecvError;
use super::receiver::next;
use super::routes::Place;
use super::shared::{PeerFinished, Shared};
use crate::message::{Received, Schema};
use crate::wait::Deadline;
use std::sync::Arc;
use std::time::Duration;

/// The answers to a request made by [`Sender::request_stream`](crate::Sender::request_stream), in order.
///
/// After the one that the peer marked as the last comes [`RecvError::Finished`]; as an iterator it ends there. Dropped
/// before, it cancels the request: the peer learns so, and answers that are on their way are dropped.
///
/// Answers that nobody takes are kept, up to 4096 messages for the whole channel; beyond that nothing more is received
/// over it, by anyone, until some are taken.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use std::time::Duration;
/// use strait::{Message, Sender};
///
/// fn follow(sender: &Sender<hello::Owned>, topic: &Message<hello::Owned>) -> Result<(), Box<dyn std::error::Error>> {
///     for news in sender.request_stream(topic, Duration::from_secs(1))?.take(10) {
///         println!("{:?}", news?.get()?);
///     }
///     // Had there been more, the peer would know now that nobody wants it.
///     Ok(())
/// }
/// # fn main() {}
/// ```
#[must_use = "dropping it cancels the request"]
pub struct Replies<T: Schema> {
    shared: Arc<Shared<T>>,
    id: u64,
    told: bool,
}

impl<T: Schema> Replies<T> {
    pub(super) fn new(shared: Arc<Shared<T>>, id: u64) -> Self {
        Self { shared, id, told: false }
    }

    /// The next answer, waiting as long as it takes.
    ///
    /// # Errors
    /// [`RecvError`]: `Finished` after the last. If the peer finishes sending before the last, `Ended` says so.
    pub fn recv(&mut self) -> Result<Received<T>, RecvError> {
        self.recv_by(Deadline::Never)
    }

    /// As [`recv`](Self::recv), waiting at most `timeout`.
    ///
    /// # Errors
    /// [`RecvError`], `TimedOut` among them.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Received<T>, RecvError> {
        self.recv_by(Deadline::After(timeout))
    }

    /// The next answer if there is one already. Never blocks.
    ///
    /// # Errors
    /// [`RecvError`], as [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Result<Option<Received<T>>, RecvError> {
        let found = self.shared.try_at(Place::Request(self.id)).transpose();
        found.map(|found| self.shared.received(found, PeerFinished::TooSoon)).transpose()
    }

    /// The number of the request.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    fn recv_by(&mut self, mut deadline: Deadline) -> Result<Received<T>, RecvError> {
        let found = self.shared.wait_at(Place::Request(self.id), &mut deadline);
        self.shared.received(found, PeerFinished::TooSoon)
    }
}

impl<T: Schema> Iterator for Replies<T> {
    type Item = Result<Received<T>, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        let received = self.recv();
        next(received, &mut self.told)
    }
}

impl<T: Schema> Drop for Replies<T> {
    fn drop(&mut self) {
        if self.shared.leave(Place::Request(self.id)) {
            self.shared.side.port().say_cancelled(self.id);
        }
    }
}

impl<T: Schema> std::fmt::Debug for Replies<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replies").field("id", &self.id).finish_non_exhaustive()
    }
}
