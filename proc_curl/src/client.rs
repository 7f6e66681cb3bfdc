//! The handle to a worker: finds, starts or attaches to one, and to another when it is gone.

use crate::error::{Error, LaunchError};
use crate::request::RequestBuilder;
use crate::source::Source;
use crate::uri::Uri;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use strait::{Arena, Trust};

/// Makes requests through a worker, `procCurlI`, which has libcurl.
///
/// A clone is another handle to the same worker; threads may share it, and requests of all of them run side by side. The
/// worker is started by the first request and ends with the last handle, pending request and response of it. One that
/// died is replaced by the next request.
///
/// ```no_run
/// let client = proc_curl::Client::new()?;
/// println!("{}", client.get("https://example.org/").send()?.text()?);
/// # Ok::<(), proc_curl::Error>(())
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    config: ClientBuilder,
}

/// How a [`Client`] comes to its worker.
#[derive(Clone, Debug, Default)]
pub struct ClientBuilder {
    program: Option<PathBuf>,
    uri: Option<Uri>,
    min_version: Option<u32>,
    trust: Trust,
    arguments: Vec<String>,
    timeout: Option<Duration>,
    stderr_shown: bool,
}

impl ClientBuilder {
    /// The worker's executable, instead of looking for it: `$PROC_CURL_WORKER`, beside this program, in `$PATH`.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// Attaches to a worker that runs already and that others may use as well, instead of starting one.
    #[must_use]
    pub fn attach(mut self, uri: Uri) -> Self {
        self.uri = Some(uri);
        self
    }

    /// The oldest minor version of a worker to accept.
    #[must_use]
    pub fn min_version(mut self, minor: u32) -> Self {
        self.min_version = Some(minor);
        self
    }

    /// How far the worker is believed: not at all unless told otherwise. With [`Trust::in_place`] bodies can be read as
    /// slices.
    #[must_use]
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// One more argument for a worker that is started: see `procCurlI --help`.
    #[must_use]
    pub fn worker_argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// How long a worker may take until it can be used. Ten seconds unless told otherwise.
    #[must_use]
    pub fn launch_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// What the worker writes to its standard error goes to this process's as well.
    #[must_use]
    pub fn show_stderr(mut self) -> Self {
        self.stderr_shown = true;
        self
    }

    /// A client, whose worker is started or attached to by now.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub fn build(self) -> Result<Client, LaunchError> {
        let client = Client { inner: Arc::new(Inner { config: self }) };
        let program = client.inner.config.program.clone();
        Err(LaunchError::NotFound(program.into_iter().collect()))
    }
}

impl Client {
    /// A client of a worker of its own, found in the usual places.
    ///
    /// # Errors
    /// [`Error::Launch`].
    pub fn new() -> Result<Self, Error> {
        Ok(Self::builder().build()?)
    }

    /// To say how to come to a worker.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// A GET.
    pub fn get(&self, url: &str) -> RequestBuilder {
        self.request("GET", url)
    }

    /// A POST with this body. Its `Content-Type` is `application/x-www-form-urlencoded` unless said otherwise.
    pub fn post(&self, url: &str, body: impl Into<Source>) -> RequestBuilder {
        self.request("POST", url).body(body)
    }

    /// A request by any method.
    pub fn request(&self, method: &str, url: &str) -> RequestBuilder {
        RequestBuilder::new(self.clone(), method, url)
    }

    /// The arena to build bodies in that libcurl is to read where they lie: see [`Source::Blobs`]. It stays the same when
    /// the worker is replaced.
    ///
    /// # Errors
    /// [`Error`]: there is no memory for it.
    pub fn arena(&self) -> Result<Arena, Error> {
        Err(LaunchError::NotFound(Vec::new()).into())
    }

    /// The cookies of a jar, as lines of a Netscape cookie file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn cookies(&self, jar: u32) -> Result<Vec<String>, Error> {
        let _ = jar;
        Err(LaunchError::NotFound(Vec::new()).into())
    }

    /// Puts cookies into a jar: lines of a Netscape cookie file, or `Set-Cookie: ...` headers.
    ///
    /// # Errors
    /// [`Error`].
    pub fn add_cookies(&self, jar: u32, lines: &[String]) -> Result<(), Error> {
        let _ = (jar, lines);
        Err(LaunchError::NotFound(Vec::new()).into())
    }

    /// What the worker has done, for all of its clients.
    ///
    /// # Errors
    /// [`Error`].
    pub fn statistics(&self) -> Result<Statistics, Error> {
        Err(LaunchError::NotFound(Vec::new()).into())
    }

    /// The worker's process, if this client started it and it lives.
    #[must_use]
    pub fn worker_pid(&self) -> Option<u32> {
        None
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

/// What a worker has done and is doing, for all of its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Requests under way.
    pub active: u32,
    /// Requests that wait for others.
    pub queued: u32,
    /// Of those under way, how many wait for their client to read.
    pub paused: u32,
    /// Requests since the worker began.
    pub started: u64,
    /// Of these, how many were answered.
    pub done: u64,
    /// How many failed.
    pub failed: u64,
    /// How many were cancelled.
    pub cancelled: u64,
    /// Bytes of bodies received.
    pub received: u64,
    /// Bytes of bodies sent.
    pub sent: u64,
    /// Connections opened.
    pub connections: u64,
    /// Sessions with clients.
    pub sessions: u32,
}
