//! A request being put together: everything it can be told, in one place. Knows neither the wire nor the worker.

use crate::client::Client;
use crate::error::Error;
use crate::options::{
    AddressPolicy, Auth, Family, HeaderLine, HttpVersion, Protocols, Proxy, Redirects, Retry, Timeouts, Tls,
};
use crate::response::{Head, Response};
use crate::source::{Form, Source};
use crate::transfer::Pending;
use std::time::{Duration, SystemTime};

/// A request, before it is sent: made by [`Client::get`], [`Client::post`] or [`Client::request`].
///
/// Nothing is checked before [`send`](Self::send) or [`start`](Self::start); what cannot be is an error of theirs.
///
/// ```no_run
/// use proc_curl::{Auth, Client, Redirects, Retry, Schemes, Timeouts};
/// use std::time::Duration;
///
/// let client = Client::new()?;
/// let response = client
///     .get("https://example.org/")
///     .header("Accept", "text/html")
///     .auth(Auth::Password { user: "me".into(), password: "secret".into(), schemes: Schemes::ANY })
///     .redirects(Redirects::up_to(10))
///     .timeouts(Timeouts { total: Some(Duration::from_secs(20)), ..Timeouts::default() })
///     .retry(Retry::times(3))
///     .send()?;
/// println!("{}", response.text()?);
/// # Ok::<(), proc_curl::Error>(())
/// ```
#[must_use = "a request does nothing before it is sent"]
pub struct RequestBuilder {
    pub(crate) client: Client,
    pub(crate) spec: Spec,
    pub(crate) source: Source,
    pub(crate) listeners: Listeners,
}

/// A request as values; what can be sent again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spec {
    pub(crate) method: String,
    pub(crate) url: String,
    pub(crate) headers: Vec<HeaderLine>,
    pub(crate) timeouts: Timeouts,
    pub(crate) redirects: Redirects,
    pub(crate) tls: Tls,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) version: HttpVersion,
    pub(crate) auth: Option<Auth>,
    pub(crate) jar: u32,
    pub(crate) cookie: Option<String>,
    pub(crate) decompress: Option<String>,
    pub(crate) resolve: Vec<String>,
    pub(crate) connect_to: Vec<String>,
    pub(crate) unix_socket: Option<String>,
    pub(crate) interface: Option<String>,
    pub(crate) local_ports: Option<(u16, u16)>,
    pub(crate) family: Family,
    pub(crate) receive_speed: u64,
    pub(crate) send_speed: u64,
    pub(crate) range: Option<String>,
    pub(crate) resume_from: u64,
    pub(crate) protocols: Protocols,
    pub(crate) redirect_protocols: Protocols,
    pub(crate) policy: AddressPolicy,
    pub(crate) body_max: u64,
    pub(crate) retry: Retry,
    pub(crate) idempotent: Option<bool>,
    pub(crate) progress_every: Option<Duration>,
    pub(crate) trace: bool,
    pub(crate) window: u32,
    pub(crate) fresh_connection: bool,
    pub(crate) close_connection: bool,
    pub(crate) path_as_is: bool,
    pub(crate) http09: bool,
    pub(crate) expect: Option<Duration>,
    pub(crate) target: Option<String>,
    pub(crate) ignore_content_length: bool,
    pub(crate) modified: Option<(i64, bool)>,
    pub(crate) raw_transfer: bool,
    pub(crate) keep_alive: Option<Duration>,
}

/// Who is told of what happens meanwhile, by the thread that waits.
#[derive(Default)]
pub(crate) struct Listeners {
    pub(crate) progress: Option<OnProgress>,
    pub(crate) head: Option<OnHead>,
    pub(crate) trace: Option<OnTrace>,
}

type OnProgress = Box<dyn FnMut(&Progress) + Send>;
type OnHead = Box<dyn FnMut(&Head) + Send>;
type OnTrace = Box<dyn FnMut(TraceKind, &[u8]) + Send>;

/// How far a request has come, in bytes of bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Received so far.
    pub received: u64,
    /// To be received in all, if that is known.
    pub to_receive: Option<u64>,
    /// Sent so far.
    pub sent: u64,
    /// To be sent in all, if that is known.
    pub to_send: Option<u64>,
}

/// What a line of a trace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceKind {
    /// libcurl's own words.
    Text,
    /// Header that came.
    HeadIn,
    /// Header that was sent.
    HeadOut,
}

impl RequestBuilder {
    pub(crate) fn new(client: Client, method: &str, url: &str) -> Self {
        let spec = Spec { method: method.to_owned(), url: url.to_owned(), ..Spec::default() };
        Self { client, spec, source: Source::None, listeners: Listeners::default() }
    }

    /// Sends it and waits for the head of the answer.
    ///
    /// # Errors
    /// [`Error`].
    pub fn send(self) -> Result<Response, Error> {
        self.start()?.wait()
    }

    /// Sends it and does not wait: any number of requests can be under way at once. A body that is a reader is read by
    /// whoever waits for the answer.
    ///
    /// # Errors
    /// [`Error`]: there is no worker, or no memory for the request.
    pub fn start(self) -> Result<Pending, Error> {
        Pending::start(self)
    }

    /// The body to send. Changes no method: see [`Client::post`].
    pub fn body(mut self, body: impl Into<Source>) -> Self {
        self.source = body.into();
        self
    }

    /// A JSON body with its `Content-Type`.
    pub fn json(self, text: impl Into<String>) -> Self {
        self.header("Content-Type", "application/json").header("Accept", "application/json").body(text.into())
    }

    /// A form as the body, with its `Content-Type`.
    pub fn form(self, form: Form) -> Self {
        let boundary = format!("------------------------{}", crate::random::name());
        let source = form.into_source(&boundary);
        self.header("Content-Type", format!("multipart/form-data; boundary={boundary}")).body(source)
    }

    /// Adds a line to the header; an empty value is sent as such.
    pub fn header(self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.header_line(HeaderLine { name: name.into(), value: Some(value.into()) })
    }

    /// Sends nothing of this name, not even what libcurl would of its own accord.
    pub fn without_header(self, name: impl Into<String>) -> Self {
        self.header_line(HeaderLine { name: name.into(), value: None })
    }

    /// Adds a line to the header, of either kind.
    pub fn header_line(mut self, line: HeaderLine) -> Self {
        self.spec.headers.push(line);
        self
    }

    /// How long what may take.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.spec.timeouts = timeouts;
        self
    }

    /// How long it may take from beginning to end.
    pub fn timeout(mut self, total: Duration) -> Self {
        self.spec.timeouts.total = Some(total);
        self
    }

    /// Which redirects to follow. None unless told otherwise.
    pub fn redirects(mut self, redirects: Redirects) -> Self {
        self.spec.redirects = redirects;
        self
    }

    /// What of TLS is not as usual.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.spec.tls = tls;
        self
    }

    /// Goes through a proxy. Through none unless told otherwise, whatever the environment says; for that see
    /// [`Proxy::from_environment`].
    pub fn proxy(mut self, proxy: Option<Proxy>) -> Self {
        self.spec.proxy = proxy;
        self
    }

    /// The version of HTTP to speak.
    pub fn version(mut self, version: HttpVersion) -> Self {
        self.spec.version = version;
        self
    }

    /// How it says who it comes from. Not sent to other hosts that it is redirected to.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.spec.auth = Some(auth);
        self
    }

    /// Sends and keeps cookies, in the jar of this number (from 1), which all requests of this client share that name it.
    pub fn cookie_jar(mut self, jar: u32) -> Self {
        self.spec.jar = jar;
        self
    }

    /// Sends cookies of its own, as in `a=1; b=2`.
    pub fn cookie(mut self, cookies: impl Into<String>) -> Self {
        self.spec.cookie = Some(cookies.into());
        self
    }

    /// Asks for all encodings that the worker can undo, and undoes them.
    pub fn decompress(self) -> Self {
        self.decompress_only("")
    }

    /// Asks for these encodings, as in `gzip, br`, and undoes them.
    pub fn decompress_only(mut self, encodings: impl Into<String>) -> Self {
        self.spec.decompress = Some(encodings.into());
        self
    }

    /// Says where a host is: curl's `host:port:address[,address]`.
    pub fn resolve(mut self, line: impl Into<String>) -> Self {
        self.spec.resolve.push(line.into());
        self
    }

    /// Connects elsewhere than the URL says: curl's `host1:port1:host2:port2`.
    pub fn connect_to(mut self, line: impl Into<String>) -> Self {
        self.spec.connect_to.push(line.into());
        self
    }

    /// Connects to a Unix socket; `@name` is an abstract one.
    pub fn unix_socket(mut self, path: impl Into<String>) -> Self {
        self.spec.unix_socket = Some(path.into());
        self
    }

    /// Connects from this interface, address or host: curl's `if!name`, `host!name`.
    pub fn interface(mut self, interface: impl Into<String>) -> Self {
        self.spec.interface = Some(interface.into());
        self
    }

    /// Connects from one of `count` ports from `first` on.
    pub fn local_ports(mut self, first: u16, count: u16) -> Self {
        self.spec.local_ports = Some((first, count));
        self
    }

    /// Which kind of address to connect to.
    pub fn family(mut self, family: Family) -> Self {
        self.spec.family = family;
        self
    }

    /// At most so many bytes in a second, either way; 0 is no limit.
    pub fn speed(mut self, receive: u64, send: u64) -> Self {
        (self.spec.receive_speed, self.spec.send_speed) = (receive, send);
        self
    }

    /// Asks for a part: curl's `0-499`, `-500`, `9500-`.
    pub fn range(mut self, range: impl Into<String>) -> Self {
        self.spec.range = Some(range.into());
        self
    }

    /// Leaves out the first so many bytes; a server that cannot is an error.
    pub fn resume_from(mut self, bytes: u64) -> Self {
        self.spec.resume_from = bytes;
        self
    }

    /// Which protocols it may begin with. HTTP and HTTPS unless told otherwise.
    pub fn protocols(mut self, protocols: Protocols) -> Self {
        self.spec.protocols = protocols;
        self
    }

    /// Which protocols it may be redirected to. HTTP and HTTPS unless told otherwise.
    pub fn redirect_protocols(mut self, protocols: Protocols) -> Self {
        self.spec.redirect_protocols = protocols;
        self
    }

    /// Which addresses it may connect to.
    pub fn address_policy(mut self, policy: AddressPolicy) -> Self {
        self.spec.policy = policy;
        self
    }

    /// The largest body to accept, in bytes after decompression.
    pub fn body_max(mut self, bytes: u64) -> Self {
        self.spec.body_max = bytes;
        self
    }

    /// When and how often to try again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.spec.retry = retry;
        self
    }

    /// Whether it may be made twice: so it is for GET, HEAD, OPTIONS, TRACE, PUT and DELETE unless told otherwise. Counts for
    /// retries, and when the worker dies.
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.spec.idempotent = Some(idempotent);
        self
    }

    /// Is told how far it has come, at most so often, by the thread that waits for the answer or reads it.
    pub fn on_progress(mut self, every: Duration, listener: impl FnMut(&Progress) + Send + 'static) -> Self {
        self.spec.progress_every = Some(every);
        self.listeners.progress = Some(Box::new(listener));
        self
    }

    /// Is told of each head as it comes: those of 1xx answers, of redirects, and the last.
    pub fn on_head(mut self, listener: impl FnMut(&Head) + Send + 'static) -> Self {
        self.listeners.head = Some(Box::new(listener));
        self
    }

    /// Is told what libcurl does and what goes over the wire, as `curl -v` shows it, bodies left out.
    pub fn on_trace(mut self, listener: impl FnMut(TraceKind, &[u8]) + Send + 'static) -> Self {
        self.spec.trace = true;
        self.listeners.trace = Some(Box::new(listener));
        self
    }

    /// How much of the answer's body may be in the worker's memory to begin with, in bytes: 128 KiB unless told otherwise.
    /// It grows for readers that keep up.
    pub fn window(mut self, bytes: u32) -> Self {
        self.spec.window = bytes;
        self
    }

    /// Opens a connection of its own.
    pub fn fresh_connection(mut self) -> Self {
        self.spec.fresh_connection = true;
        self
    }

    /// Closes its connection afterwards.
    pub fn close_connection(mut self) -> Self {
        self.spec.close_connection = true;
        self
    }

    /// Leaves `/../` in the path as it is.
    pub fn path_as_is(mut self) -> Self {
        self.spec.path_as_is = true;
        self
    }

    /// Accepts answers without a head.
    pub fn http09(mut self) -> Self {
        self.spec.http09 = true;
        self
    }

    /// How long to wait for `100 Continue` before sending the body. A second unless told otherwise.
    pub fn expect_timeout(mut self, wait: Duration) -> Self {
        self.spec.expect = Some(wait);
        self
    }

    /// What to ask for instead of the URL's path, as in `OPTIONS *`.
    pub fn request_target(mut self, target: impl Into<String>) -> Self {
        self.spec.target = Some(target.into());
        self
    }

    /// The body goes as far as the connection, whatever `Content-Length` says.
    pub fn ignore_content_length(mut self) -> Self {
        self.spec.ignore_content_length = true;
        self
    }

    /// Asks for what has changed since then.
    pub fn if_modified_since(mut self, time: SystemTime) -> Self {
        self.spec.modified = Some((seconds(time), false));
        self
    }

    /// Asks for what has not changed since then.
    pub fn if_unmodified_since(mut self, time: SystemTime) -> Self {
        self.spec.modified = Some((seconds(time), true));
        self
    }

    /// Leaves chunked bodies as they came.
    pub fn raw_transfer(mut self) -> Self {
        self.spec.raw_transfer = true;
        self
    }

    /// Probes an idle connection so often.
    pub fn keep_alive(mut self, every: Duration) -> Self {
        self.spec.keep_alive = Some(every);
        self
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Spec {
    /// Whether it may be made twice.
    pub(crate) fn is_idempotent(&self) -> bool {
        const IDEMPOTENT: [&str; 6] = ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"];
        self.idempotent.unwrap_or_else(|| IDEMPOTENT.contains(&self.method.as_str()))
    }
}

impl std::fmt::Debug for RequestBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("RequestBuilder");
        shown.field("method", &self.spec.method).field("url", &self.spec.url).finish_non_exhaustive()
    }
}
