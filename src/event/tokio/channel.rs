//! A channel as futures and a stream.

use crate::channel::{Channel, Polled, RecvError, RequestError, SendAs, SendError, Waiting};
use crate::message::{Builder, Message, Received, Schema};
use futures_core::Stream;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// One end of a channel for any number of tasks: all send, ask and receive through it at once.
///
/// As a stream it yields what [`recv`](Self::recv) does, until the peer has finished or the session has ended. A clone is
/// another handle to the same end; the last one dropped closes the channel.
pub struct AsyncChannel<T: Schema> {
    polled: Arc<Polled<T>>,
    /// The stream's own.
    streaming: Option<Waiting<T>>,
    told: bool,
}

impl<T: Schema> AsyncChannel<T> {
    /// Makes it a channel for tasks. Its session should be driven by the same runtime
    /// ([`AsyncSession`](super::AsyncSession)), but need not be.
    #[must_use]
    pub fn new(channel: Channel<T>) -> Self {
        Self { polled: Arc::new(Polled::new(channel)), streaming: None, told: false }
    }

    /// Begins a message in this side's arena.
    #[must_use]
    pub fn create_msg(&self) -> Builder<T> {
        self.polled.sender().create_msg()
    }

    /// Begins a message of about `bytes` bytes, in one segment.
    #[must_use]
    pub fn create_msg_with_capacity(&self, bytes: usize) -> Builder<T> {
        self.polled.sender().create_msg_with_capacity(bytes)
    }

    /// Sends a message once there is room. Returns its number.
    ///
    /// # Errors
    /// [`SendError`]; nothing was sent then, nor if the future is dropped before it is ready.
    pub async fn send(&self, message: &Message<T>) -> Result<u64, SendError> {
        self.send_as(message, SendAs::Notice).await
    }

    /// Answers a message, once and for all, once there is room.
    ///
    /// # Errors
    /// [`SendError`], `Cancelled` among them; nothing was sent then, nor if the future is dropped before it is ready.
    pub async fn reply(&self, to: &Received<T>, message: &Message<T>) -> Result<u64, SendError> {
        self.send_as(message, SendAs::ReplyTo(to)).await
    }

    /// Sends a message and waits for the answer to it. If the future is dropped after it was sent, the peer learns that no
    /// answer is wanted any more, and one that comes is dropped. For a deadline, see `tokio::time::timeout`.
    ///
    /// # Errors
    /// [`RequestError`]
    pub async fn request(&self, message: &Message<T>) -> Result<Received<T>, RequestError> {
        let id = self.send_as(message, SendAs::Request).await?;
        let mut waiting = self.polled.answer_to(id);
        poll_fn(|cx| self.polled.poll_answer(cx, &mut waiting)).await
    }

    /// The next message that answers nothing. Tasks that receive at once get one each.
    ///
    /// # Errors
    /// [`RecvError`], once everything that was sent has been received.
    pub async fn recv(&self) -> Result<Received<T>, RecvError> {
        let mut waiting = self.polled.receiving();
        poll_fn(|cx| self.polled.poll_recv(cx, &mut waiting)).await
    }

    /// The name it was opened by.
    #[must_use]
    pub fn name(&self) -> &str {
        self.polled.sender().name()
    }

    async fn send_as(&self, message: &Message<T>, purpose: SendAs<'_, T>) -> Result<u64, SendError> {
        poll_fn(|cx| self.polled.poll_send(cx, message, &purpose)).await
    }
}

impl<T: Schema> Stream for AsyncChannel<T> {
    type Item = Result<Received<T>, RecvError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { polled, streaming, told } = self.get_mut();
        if *told {
            return Poll::Ready(None);
        }
        let waiting = streaming.get_or_insert_with(|| polled.receiving());
        let received = ready!(polled.poll_recv(cx, waiting));
        *streaming = None;
        Poll::Ready(match received {
            Err(RecvError::Finished) => {
                *told = true;
                None
            }
            Err(ended @ RecvError::Ended(_)) => {
                *told = true;
                Some(Err(ended))
            }
            other => Some(other),
        })
    }
}

// Nothing in it is pinned.
impl<T: Schema> Unpin for AsyncChannel<T> {}

impl<T: Schema> Clone for AsyncChannel<T> {
    fn clone(&self) -> Self {
        Self { polled: self.polled.clone(), streaming: None, told: false }
    }
}

impl<T: Schema> std::fmt::Debug for AsyncChannel<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncChannel").field("name", &self.name()).finish_non_exhaustive()
    }
}
