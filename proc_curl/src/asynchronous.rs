//! Requests as futures, for applications that run on tokio. What would block does so on tokio's threads for that, and only
//! where there is something to wait for.

use crate::chunk::{Body, Chunk};
use crate::client::{Client, ClientBuilder};
use crate::error::{Error, LaunchError};
use crate::request::RequestBuilder;
use crate::response::{Head, Headers, Info, Response};
use futures_core::Stream;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::task::{JoinHandle, spawn_blocking};

impl ClientBuilder {
    /// As [`build`](Self::build), on one of the threads that tokio has for what blocks.
    ///
    /// # Errors
    /// [`LaunchError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn build_async(self) -> Result<Client, LaunchError> {
        let building = spawn_blocking(move || self.build());
        building.await.unwrap_or_else(|_| Err(io::Error::other("the runtime is shutting down").into()))
    }
}

impl RequestBuilder {
    /// Sends it and waits for the head of the answer. If the future is dropped before that, the request is cancelled, at the
    /// latest when its head comes or its time is up.
    ///
    /// A body that is a reader is read on tokio's threads for what blocks, and so may block.
    ///
    /// ```no_run
    /// # async fn fetch(client: &proc_curl::Client) -> Result<(), proc_curl::Error> {
    /// let mut response = client.get("https://example.org/").send_async().await?;
    /// while let Some(chunk) = response.chunk().await? {
    ///     println!("{} bytes", chunk.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn send_async(self) -> Result<AsyncResponse, Error> {
        let response = blocking(move || self.send()).await?;
        Ok(AsyncResponse { state: State::Here(Box::new(response)) })
    }
}

/// Runs what blocks where that does no harm.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R, Error> + Send + 'static) -> Result<R, Error> {
    spawn_blocking(work).await.unwrap_or_else(|_| Err(shutting_down()))
}

fn shutting_down() -> Error {
    Error::Copy(io::Error::other("the runtime is shutting down"))
}

/// An answer whose head is there and whose body comes as futures, or as a stream of pieces. What is not read holds the
/// server up. Dropped early, the rest of it is cancelled.
pub struct AsyncResponse {
    state: State,
}

enum State {
    Here(Box<Response>),
    /// A thread waits for its next piece.
    Away(JoinHandle<Waited>),
    /// The runtime took it down with it.
    Lost,
}

/// A response and its next piece.
type Waited = (Box<Response>, Result<Option<Chunk>, Error>);

impl AsyncResponse {
    /// The next piece of the body, as it lies in the worker's arena; `None` at the end. Dropped before it is ready, it has
    /// taken nothing: the next call goes on waiting for the same piece.
    ///
    /// # Errors
    /// [`Error`]; what came before is whole up to there.
    pub async fn chunk(&mut self) -> Result<Option<Chunk>, Error> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, Error>> {
        loop {
            match std::mem::replace(&mut self.state, State::Lost) {
                State::Here(mut response) => {
                    // What has come already needs no thread.
                    match response.chunk_at_once() {
                        Ok(None) => {
                            let waiting = spawn_blocking(move || {
                                let chunk = response.chunk();
                                (response, chunk)
                            });
                            self.state = State::Away(waiting);
                        }
                        done => {
                            self.state = State::Here(response);
                            return Poll::Ready(done.map(Option::flatten));
                        }
                    }
                }
                State::Away(mut waiting) => {
                    let Poll::Ready(done) = Pin::new(&mut waiting).poll(cx) else {
                        self.state = State::Away(waiting);
                        return Poll::Pending;
                    };
                    let Ok((response, chunk)) = done else { return Poll::Ready(Err(shutting_down())) };
                    self.state = State::Here(response);
                    return Poll::Ready(chunk);
                }
                State::Lost => return Poll::Ready(Err(shutting_down())),
            }
        }
    }

    /// What is left of the body, copied into private memory.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn bytes(mut self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            chunk.write_to(&mut bytes).map_err(Error::Copy)?;
        }
        Ok(bytes)
    }

    /// What is left of the body, left where it lies: see [`Response::body`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn body(&mut self) -> Result<Body, Error> {
        if let Some(response) = self.here_mut() {
            response.keep_all();
        }
        let mut body = Body::default();
        while let Some(chunk) = self.chunk().await? {
            body.push(chunk);
        }
        Ok(body)
    }

    /// The response itself, with its head; `None` while a piece is waited for, which a [`chunk`](Self::chunk) that was
    /// dropped has left behind.
    #[must_use]
    pub fn response(&self) -> Option<&Response> {
        match &self.state {
            State::Here(response) => Some(response),
            State::Away(_) | State::Lost => None,
        }
    }

    /// The status, as in 200; 0 where [`response`](Self::response) is `None`.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.response().map_or(0, Response::status)
    }

    /// The head of the answer itself.
    #[must_use]
    pub fn head(&self) -> Option<&Head> {
        self.response().map(Response::head)
    }

    /// The header of the answer itself.
    #[must_use]
    pub fn headers(&self) -> Option<&Headers> {
        self.response().map(Response::headers)
    }

    /// Times, sizes and addresses, once the body has been read to its end.
    #[must_use]
    pub fn info(&self) -> Option<&Info> {
        self.response().and_then(Response::info)
    }

    fn here_mut(&mut self) -> Option<&mut Response> {
        match &mut self.state {
            State::Here(response) => Some(response),
            State::Away(_) | State::Lost => None,
        }
    }
}

impl Stream for AsyncResponse {
    type Item = Result<Chunk, Error>;

    /// The pieces of the body. After a failure it goes on saying so.
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(ready!(self.get_mut().poll_chunk(cx)).transpose())
    }
}

impl std::fmt::Debug for AsyncResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncResponse").field("status", &self.status()).finish_non_exhaustive()
    }
}
