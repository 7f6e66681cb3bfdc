//! The receiving half of a split channel, and what it expects of particular tags.

use super::error::{ExpectError, RecvError};
use super::routes::{Matches, Place};
use super::shared::{PeerFinished, Shared};
use crate::message::{Received, Schema};
use crate::wait::Deadline;
use std::sync::Arc;
use std::time::Duration;

/// The receiving half of a split [`Channel`](crate::Channel): every message that answers no request and that nobody
/// expects by its tag, in order. An iterator, which ends when the peer has finished sending.
///
/// Up to 4096 messages are kept for those who have not taken theirs yet, in all: here, in [`Expected`] and in
/// [`Replies`](crate::Replies). Beyond that nothing more is taken from the peer, which finds its ring full, and whoever
/// waits for a message that may be behind it waits for them; a wait that ends so says [`RecvError::Backlog`].
///
/// Dropped, what it had goes home unread, and so does what comes for it from then on. Requests under way still get their
/// answers. The channel closes with the last of its senders, receiver, expectations and streams.
pub struct Receiver<T: Schema> {
    shared: Arc<Shared<T>>,
    told: bool,
}

impl<T: Schema> Receiver<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared, told: false }
    }

    /// The next message, waiting as long as it takes.
    ///
    /// # Errors
    /// [`RecvError`]: `Finished` or `Ended` once everything that was sent has been received.
    pub fn recv(&mut self) -> Result<Received<T>, RecvError> {
        self.recv_by(Deadline::Never)
    }

    /// The next message, waiting at most `timeout`.
    ///
    /// # Errors
    /// [`RecvError`], `TimedOut` among them.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Received<T>, RecvError> {
        self.recv_by(Deadline::After(timeout))
    }

    /// The next message if there is one already. Never blocks.
    ///
    /// # Errors
    /// [`RecvError`], once everything that was sent has been received.
    pub fn try_recv(&mut self) -> Result<Option<Received<T>>, RecvError> {
        let found = self.shared.try_at(Place::Receiver).transpose();
        found.map(|found| self.shared.received(found, PeerFinished::InOrder)).transpose()
    }

    /// Has all messages whose root's unnamed union is at `tag` go to a place of their own, those among them that have
    /// come and not been received yet. The tag is the member's place in the order of the schema's `@` numbers, from 0.
    ///
    /// ```no_run
    /// # capnp::generated_code!(mod hello_capnp);
    /// # use hello_capnp::hello;
    /// use strait::Receiver;
    ///
    /// /// `Hello` is a union of `greet` and `answer`.
    /// const ANSWER: u16 = 1;
    ///
    /// fn sort(receiver: Receiver<hello::Owned>) -> Result<(), strait::ExpectError> {
    ///     let answers = receiver.expect(ANSWER)?;
    ///     std::thread::spawn(move || answers.for_each(|answer| println!("{answer:?}")));
    ///     receiver.for_each(|greeting| println!("{greeting:?}"));
    ///     Ok(())
    /// }
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// [`ExpectError`].
    pub fn expect(&self, tag: u16) -> Result<Expected<T>, ExpectError> {
        Expected::new(&self.shared, tag, Matches::Always)
    }

    /// As [`expect`](Self::expect), for one message: the next, or the first that has come. Those after it go where they
    /// would have gone.
    ///
    /// # Errors
    /// [`ExpectError`].
    pub fn expect_once(&self, tag: u16) -> Result<Expected<T>, ExpectError> {
        Expected::new(&self.shared, tag, Matches::Once)
    }

    /// The name the channel was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.side.port().name()
    }

    #[cfg(feature = "tokio")]
    pub(super) fn shared(&self) -> &Arc<Shared<T>> {
        &self.shared
    }

    fn recv_by(&mut self, mut deadline: Deadline) -> Result<Received<T>, RecvError> {
        let found = self.shared.wait_at(Place::Receiver, &mut deadline);
        self.shared.received(found, PeerFinished::InOrder)
    }
}

impl<T: Schema> Iterator for Receiver<T> {
    type Item = Result<Received<T>, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        let received = self.recv();
        next(received, &mut self.told)
    }
}

impl<T: Schema> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.leave(Place::Receiver);
    }
}

impl<T: Schema> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// The messages with one tag, in order: see [`Receiver::expect`]. May be in another thread than the receiver.
///
/// Dropped, it is cancelled: what it had not given out yet goes back to the receiver, in order. An iterator, which ends
/// when the peer has finished sending or the one message that was expected has come.
#[must_use = "dropping it cancels the expectation"]
pub struct Expected<T: Schema> {
    shared: Arc<Shared<T>>,
    key: u64,
    told: bool,
}

impl<T: Schema> Expected<T> {
    fn new(shared: &Arc<Shared<T>>, tag: u16, matches: Matches) -> Result<Self, ExpectError> {
        let key = shared.expect(tag, matches)?;
        Ok(Self { shared: shared.clone(), key, told: false })
    }

    /// The next message, waiting as long as it takes.
    ///
    /// # Errors
    /// [`RecvError`]: `Finished` once nothing more comes here.
    pub fn recv(&mut self) -> Result<Received<T>, RecvError> {
        self.recv_by(Deadline::Never)
    }

    /// The next message, waiting at most `timeout`.
    ///
    /// # Errors
    /// [`RecvError`], `TimedOut` among them.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Received<T>, RecvError> {
        self.recv_by(Deadline::After(timeout))
    }

    /// The next message if there is one already. Never blocks.
    ///
    /// # Errors
    /// [`RecvError`], as [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Result<Option<Received<T>>, RecvError> {
        let found = self.shared.try_at(Place::Expectation(self.key)).transpose();
        found.map(|found| self.shared.received(found, PeerFinished::InOrder)).transpose()
    }

    fn recv_by(&mut self, mut deadline: Deadline) -> Result<Received<T>, RecvError> {
        let found = self.shared.wait_at(Place::Expectation(self.key), &mut deadline);
        self.shared.received(found, PeerFinished::InOrder)
    }
}

impl<T: Schema> Iterator for Expected<T> {
    type Item = Result<Received<T>, RecvError>;

    fn next(&mut self) -> Option<Self::Item> {
        let received = self.recv();
        next(received, &mut self.told)
    }
}

impl<T: Schema> Drop for Expected<T> {
    fn drop(&mut self) {
        self.shared.leave(Place::Expectation(self.key));
    }
}

impl<T: Schema> std::fmt::Debug for Expected<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expected").finish_non_exhaustive()
    }
}

/// What an iterator makes of what was received: an orderly end is its end, any other is told once.
pub(super) fn next<T: Schema>(
    received: Result<Received<T>, RecvError>,
    told: &mut bool,
) -> Option<Result<Received<T>, RecvError>> {
    match received {
        Err(RecvError::Finished) => None,
        Err(RecvError::Ended(_)) if std::mem::replace(told, true) => None,
        other => Some(other),
    }
}
