//! An answer: its heads, its body as it comes or as a whole, what is known at its end. Knows not how it comes.

use crate::chunk::{Body, Chunk};
use crate::error::Error;
use crate::options::HttpVersion;
use crate::transfer::{Event, Transfer};
use std::io::{self, Read, Write};
use std::time::Duration;

/// An answer whose head is there. Its body comes by [`chunk`](Self::chunk), as an [`io::Read`], or all at once; whatever is
/// not read holds the server up, not this process's memory. Dropped early, the rest of it is cancelled.
///
/// Calls that wait end with the request's total timeout, or when the worker dies. A response may move between threads.
///
/// ```no_run
/// fn save(client: &proc_curl::Client, to: &mut impl std::io::Write) -> Result<(), proc_curl::Error> {
///     let mut response = client.get("https://example.org/large").send()?;
///     println!("{} {:?}", response.status(), response.content_length());
///     response.copy_to(to)?;
///     println!("{:?}", response.info());
///     Ok(())
/// }
/// ```
pub struct Response {
    transfer: Transfer,
    heads: Vec<Head>,
    end: Option<End>,
    delivered: u64,
    /// Of the `io::Read`.
    reading: Option<(Chunk, u64)>,
}

/// What comes after the body.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct End {
    pub(crate) info: Info,
    pub(crate) trailers: Headers,
}

impl Response {
    /// A response of which these heads have come, the last of which is its own.
    pub(crate) fn new(transfer: Transfer, heads: Vec<Head>) -> Self {
        Self { transfer, heads, end: None, delivered: 0, reading: None }
    }

    /// The status, as in 200.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.head().status
    }

    /// The head of the answer itself.
    #[must_use]
    pub fn head(&self) -> &Head {
        const NO_HEAD: &Head = &Head::NONE;
        self.heads.last().unwrap_or(NO_HEAD)
    }

    /// All heads that came, in order: of 1xx answers, of redirects that were followed, of a proxy's CONNECT, and last the
    /// one of the answer itself.
    #[must_use]
    pub fn heads(&self) -> &[Head] {
        &self.heads
    }

    /// The header of the answer itself.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.head().headers
    }

    /// What the server says the body has, before decompression. A hint.
    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.head().content_length
    }

    /// The next piece of the body as it lies in the worker's arena, waiting for it; `None` at the end.
    ///
    /// # Errors
    /// [`Error`]; what came before is whole up to there.
    pub fn chunk(&mut self) -> Result<Option<Chunk>, Error> {
        while self.end.is_none() {
            let event = self.transfer.next()?;
            if let Some(chunk) = self.take(event) {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    /// As [`chunk`](Self::chunk), if that is known already: `None` if it is not.
    #[cfg(feature = "tokio")]
    pub(crate) fn chunk_at_once(&mut self) -> Result<Option<Option<Chunk>>, Error> {
        while self.end.is_none() {
            match self.transfer.try_next()? {
                None => return Ok(None),
                Some(event) => {
                    if let Some(chunk) = self.take(event) {
                        return Ok(Some(Some(chunk)));
                    }
                }
            }
        }
        Ok(Some(None))
    }

    /// All of the body is to be held at once.
    #[cfg(feature = "tokio")]
    pub(crate) fn keep_all(&mut self) {
        self.transfer.keep_all();
    }

    fn take(&mut self, event: Event) -> Option<Chunk> {
        match event {
            Event::Chunk(chunk) => {
                self.delivered += chunk.len();
                return Some(chunk);
            }
            Event::End(end) => self.end = Some(*end),
            // A trailer's or a late 1xx one, which says nothing about this answer.
            Event::Head(_) => {}
        }
        None
    }

    /// Writes the rest of the body; tells how many bytes that was.
    ///
    /// # Errors
    /// [`Error`], `Copy` if it is the writer's.
    pub fn copy_to(&mut self, to: &mut impl Write) -> Result<u64, Error> {
        let mut written = 0;
        while let Some(chunk) = self.next_part()? {
            written += chunk.write_to(to).map_err(Error::Copy)?;
        }
        Ok(written)
    }

    /// What is left of the body, copied into private memory.
    ///
    /// # Errors
    /// [`Error`].
    pub fn bytes(mut self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.copy_to(&mut bytes)?;
        Ok(bytes)
    }

    /// What is left of the body as text; what is not UTF-8 is replaced.
    ///
    /// # Errors
    /// [`Error`].
    pub fn text(self) -> Result<String, Error> {
        let bytes = self.bytes()?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
    }

    /// What is left of the body, left where it lies, which is in the worker's arena until this is dropped: it should be
    /// of a size that the worker can hold ([`body_max`](crate::RequestBuilder::body_max)).
    ///
    /// # Errors
    /// [`Error`].
    pub fn body(&mut self) -> Result<Body, Error> {
        self.transfer.keep_all();
        let mut body = Body::default();
        while let Some(chunk) = self.chunk()? {
            body.push(chunk);
        }
        Ok(body)
    }

    /// How much of the body has been delivered so far, in bytes.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Times, sizes and addresses, once the body has been read to its end.
    #[must_use]
    pub fn info(&self) -> Option<&Info> {
        self.end.as_ref().map(|end| &end.info)
    }

    /// What came after the body, once that has been read to its end.
    #[must_use]
    pub fn trailers(&self) -> Option<&Headers> {
        self.end.as_ref().map(|end| &end.trailers)
    }

    /// What a `read` has begun, or the next.
    fn next_part(&mut self) -> Result<Option<Chunk>, Error> {
        match self.reading.take() {
            Some((chunk, at)) => Ok(Some(chunk.starting_at(at))),
            None => self.chunk(),
        }
    }
}

impl Read for Response {
    /// Reads the body; failures of the request are `io::Error`s that hold the [`Error`].
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some((chunk, at)) = &mut self.reading {
                let count = chunk.read_at(into, *at)?;
                *at += count as u64;
                if count > 0 || into.is_empty() {
                    return Ok(count);
                }
            }
            match self.chunk().map_err(io::Error::other)? {
                Some(chunk) => self.reading = Some((chunk, 0)),
                None => {
                    self.reading = None;
                    return Ok(0);
                }
            }
        }
    }
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Response").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Head {
    /// The status, as in 200.
    pub status: u16,
    /// The words beside it; none in HTTP/2.
    pub reason: Vec<u8>,
    /// The version it came in.
    pub version: HttpVersion,
    /// Its fields.
    pub headers: Headers,
    /// What it is the head of.
    pub kind: HeadKind,
    /// What the server says the body has, before decompression.
    pub content_length: Option<u64>,
}

impl Head {
    pub(crate) const NONE: Self = Self {
        status: 0,
        reason: Vec::new(),
        version: HttpVersion::Any,
        headers: Headers(Vec::new()),
        kind: HeadKind::Final,
        content_length: None,
    };
}

/// What a head is the head of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeadKind {
    /// The answer itself.
    Final,
    /// A 1xx answer.
    Informational,
    /// An answer that something else follows: a redirect, a question for credentials, one that is retried.
    Passing,
    /// A proxy's answer to CONNECT.
    Connect,
}

/// Fields of a header, in order, repeated ones and all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub(crate) Vec<(Vec<u8>, Vec<u8>)>);

impl Headers {
    /// The first value of a name, in any case, if that is text.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut named = self.0.iter().filter(|field| field.0.eq_ignore_ascii_case(name.as_bytes()));
        named.find_map(|(_, value)| std::str::from_utf8(value).ok())
    }

    /// All values of a name, in any case, in order.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let same = move |field: &&(Vec<u8>, Vec<u8>)| field.0.eq_ignore_ascii_case(name.as_bytes());
        self.0.iter().filter(same).map(|(_, value)| value.as_slice())
    }

    /// All names and values, in order, as they came.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// How many fields there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What is known of a request at its end. Times are from the beginning of its last attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The version that was spoken.
    pub version: HttpVersion,
    /// Where the answer came from, after redirects.
    pub url: String,
    /// The last status.
    pub status: u16,
    /// The server's address.
    pub remote_address: String,
    /// The server's port.
    pub remote_port: u16,
    /// The worker's address.
    pub local_address: String,
    /// The worker's port.
    pub local_port: u16,
    /// How many redirects were followed.
    pub redirects: u32,
    /// Where a redirect would have led that was not followed.
    pub redirect_url: String,
    /// Connections opened for it: 0 if one was there already.
    pub connections: u32,
    /// How often it was tried again.
    pub retries: u32,
    /// Until the name was resolved.
    pub name_lookup: Duration,
    /// Until the connection was there.
    pub connect: Duration,
    /// Until TLS was negotiated; zero without.
    pub tls_done: Duration,
    /// Until the request was about to be sent.
    pub pre_transfer: Duration,
    /// Until the first byte of the answer.
    pub start_transfer: Duration,
    /// All redirects, before the last request began.
    pub redirecting: Duration,
    /// In all.
    pub total: Duration,
    /// Bytes of the answers' heads.
    pub head_size: u64,
    /// Bytes of the requests' heads.
    pub request_size: u64,
    /// Bytes of bodies as they came over the network.
    pub received: u64,
    /// Bytes of bodies as they were sent.
    pub sent: u64,
    /// Bytes of the body after decompression.
    pub delivered: u64,
    /// The answer's type.
    pub content_type: String,
    /// A time condition left nothing to deliver.
    pub condition_unmet: bool,
    /// A proxy's answer to CONNECT; 0 without.
    pub connect_status: u16,
}
