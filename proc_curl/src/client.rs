//! The handle to a worker: finds, starts or attaches to one, and to another when it is gone.

use crate::error::{Error, LaunchError};
use crate::launch;
use crate::link::{self, Link};
use crate::proc_curl_capnp::{curl, jar};
use crate::request::RequestBuilder;
use crate::source::Source;
use crate::uri::{Transport, Uri};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use strait::{Arena, ClientApp, RequestError, Trust};

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
    /// How to come to a worker.
    way: Way,
    app: ClientApp,
    /// Keeps the arena for as long as the client lives, whatever becomes of workers.
    arena: Arena,
    live: Mutex<Option<Arc<Link>>>,
    process: u32,
}

enum Way {
    /// Starts this executable, which is to meet its client at such a place.
    Start(PathBuf, Uri),
    /// One is there.
    Attach(Uri),
}

/// How a [`Client`] comes to its worker.
#[derive(Clone, Debug, Default)]
pub struct ClientBuilder {
    pub(crate) program: Option<PathBuf>,
    uri: Option<Uri>,
    pub(crate) min_version: Option<u32>,
    pub(crate) trust: Trust,
    pub(crate) arguments: Vec<String>,
    timeout: Option<Duration>,
    pub(crate) stderr_shown: bool,
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
        let way = match &self.uri {
            Some(uri) => Way::Attach(uri.clone()),
            None => {
                let program = launch::find(&self)?;
                let uri = launch::negotiate(&program, &self)?;
                Way::Start(program, uri)
            }
        };
        let app = link::app(&self, way.transport());
        let (arena, live) = (app.arena()?, Mutex::default());
        let inner = Inner { config: self, way, app, arena, live, process: std::process::id() };
        let link = inner.connect()?;
        *inner.live.lock() = Some(Arc::new(link));
        Ok(Client { inner: Arc::new(inner) })
    }

    /// How long a worker may take until it can be used.
    pub(crate) fn patience(&self) -> Duration {
        self.timeout.unwrap_or(LAUNCH)
    }
}

/// The largest message of a worker; bodies are beside them.
const HEADS_MAX: u64 = 64 << 20;
const LAUNCH: Duration = Duration::from_secs(10);

impl Way {
    fn transport(&self) -> Transport {
        match self {
            Self::Start(_, uri) | Self::Attach(uri) => uri.transport,
        }
    }
}

impl Inner {
    fn connect(&self) -> Result<Link, LaunchError> {
        match &self.way {
            Way::Start(program, uri) => Link::start(&self.config, &self.app, program, uri),
            Way::Attach(uri) => Link::attach(&self.app, uri),
        }
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
        ClientBuilder { trust: Trust::snapshot_up_to(HEADS_MAX), ..ClientBuilder::default() }
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
        if self.inner.process == std::process::id() { Ok(self.inner.arena.clone()) } else { Err(Error::ForkedProcess) }
    }

    /// A session with a worker that lives, as far as is known.
    pub(crate) fn link(&self) -> Result<Arc<Link>, Error> {
        if self.inner.process != std::process::id() {
            return Err(Error::ForkedProcess);
        }
        let mut live = self.inner.live.lock();
        if let Some(link) = live.as_ref().filter(|link| !link.is_over()) {
            return Ok(link.clone());
        }
        let link = Arc::new(self.inner.connect()?);
        *live = Some(link.clone());
        Ok(link)
    }

    /// Asks the worker something that is no request of libcurl's.
    fn ask<R>(
        &self,
        question: impl FnOnce(curl::Builder<'_>),
        read: impl FnOnce(curl::Reader<'_>) -> capnp::Result<Option<R>>,
    ) -> Result<R, Error> {
        let link = self.link()?;
        let seat = link.seat()?;
        let mut message = seat.sender().create_msg();
        question(message.init_root());
        let message = message.freeze().map_err(|error| Error::Source(std::io::Error::other(error)))?;
        let answer = seat.sender().request(&message, link::PROMPT).map_err(|error| match error {
            RequestError::Ended(ended) => link.over(ended.cause, 0),
            _ => Error::WorkerSilent,
        })?;
        let garbled = |what: String| Error::WorkerMisbehaved { what };
        let read = answer.get().and_then(read).map_err(|error| garbled(error.to_string()))?;
        read.ok_or_else(|| garbled("an answer to something else".into()))
    }

    /// The cookies of a jar, as lines of a Netscape cookie file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn cookies(&self, jar: u32) -> Result<Vec<String>, Error> {
        self.ask_jar(jar, |mut to| to.set_read(()))
    }

    /// Puts cookies into a jar: lines of a Netscape cookie file, or `Set-Cookie: ...` headers. What is neither is left out.
    ///
    /// # Errors
    /// [`Error`].
    pub fn add_cookies(&self, jar: u32, lines: &[String]) -> Result<(), Error> {
        let count = u32::try_from(lines.len()).unwrap_or(u32::MAX);
        let add = |to: jar::Builder<'_>| {
            let mut list = to.init_add(count);
            (0..count).zip(lines).for_each(|(index, line)| list.set(index, line));
        };
        self.ask_jar(jar, add).map(drop)
    }

    /// Empties a jar.
    ///
    /// # Errors
    /// [`Error`].
    pub fn clear_cookies(&self, jar: u32) -> Result<(), Error> {
        self.ask_jar(jar, |mut to| to.set_clear(())).map(drop)
    }

    fn ask_jar(&self, number: u32, say: impl FnOnce(jar::Builder<'_>)) -> Result<Vec<String>, Error> {
        let question = |root: curl::Builder<'_>| {
            let mut to = root.init_jar();
            to.set_number(number);
            say(to);
        };
        self.ask(question, |root| {
            let curl::JarIs(lines) = root.which()? else { return Ok(None) };
            let lines = lines?.iter().map(|line| Ok(String::from_utf8_lossy(line?.as_bytes()).into_owned()));
            lines.collect::<capnp::Result<_>>().map(Some)
        })
    }

    /// What the worker has done, for all of its clients.
    ///
    /// # Errors
    /// [`Error`].
    pub fn statistics(&self) -> Result<Statistics, Error> {
        self.ask(
            |mut root| root.set_ask(()),
            |root| {
                let curl::Statistics(found) = root.which()? else { return Ok(None) };
                let found = found?;
                Ok(Some(Statistics {
                    active: found.get_active(),
                    queued: found.get_queued(),
                    paused: found.get_paused(),
                    started: found.get_started(),
                    done: found.get_done(),
                    failed: found.get_failed(),
                    cancelled: found.get_cancelled(),
                    received: found.get_received(),
                    sent: found.get_sent(),
                    connections: found.get_connections(),
                    sessions: found.get_sessions(),
                }))
            },
        )
    }

    /// The worker's process, if this client started it and it lives.
    #[must_use]
    pub fn worker_pid(&self) -> Option<u32> {
        let live = self.inner.live.lock();
        let link = live.as_ref().filter(|link| !link.is_over())?;
        link.worker.as_ref().map(|worker| worker.pid)
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
