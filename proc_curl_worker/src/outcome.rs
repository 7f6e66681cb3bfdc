//! How a request ended: what libcurl knows of it, and whose fault it was. Reads from libcurl's handle, changes nothing.

use crate::guard::Guard;
use crate::handler::{Stopped, Transferring};
use crate::head::Version;
use curl::easy::Easy2;
use proc_curl::code_name;

/// The end of a request.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// `None` if it was answered.
    pub(crate) fault: Option<Fault>,
    pub(crate) info: Info,
    pub(crate) trailers: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why it failed.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) code: u32,
    pub(crate) name: &'static str,
    pub(crate) why: Why,
    pub(crate) stage: Stage,
    pub(crate) os_error: i32,
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Code,
    PolicyDenied,
    ProtocolDenied,
    BadRequest,
    Unsupported,
    Overloaded,
    FirstByteTimeout,
    IdleTimeout,
    BodyTooLarge,
    BodyBroken,
    WorkerFault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Prepare,
    Queue,
    Resolve,
    Connect,
    Tls,
    Send,
    Answer,
    Head,
    Body,
}

/// What libcurl tells of a request at its end. Times in microseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Info {
    pub(crate) version: Version,
    pub(crate) url: String,
    pub(crate) status: u16,
    pub(crate) remote: (String, u16),
    pub(crate) local: (String, u16),
    pub(crate) redirects: u32,
    pub(crate) redirect_url: String,
    pub(crate) connections: u32,
    pub(crate) retries: u32,
    pub(crate) name_lookup: u64,
    pub(crate) connect: u64,
    pub(crate) tls_done: u64,
    pub(crate) pre_transfer: u64,
    pub(crate) start_transfer: u64,
    pub(crate) redirecting: u64,
    pub(crate) total: u64,
    pub(crate) head_size: u64,
    pub(crate) request_size: u64,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) delivered: u64,
    pub(crate) content_type: String,
    pub(crate) condition_unmet: bool,
    pub(crate) connect_status: u16,
}

impl Fault {
    pub(crate) fn new(code: u32, why: Why, stage: Stage, text: impl Into<String>) -> Self {
        Self { code, name: code_name(code), why, stage, os_error: 0, text: text.into() }
    }

    /// A request that cannot be.
    pub(crate) fn bad(text: impl Into<String>) -> Self {
        Self::new(curl_sys::CURLE_BAD_FUNCTION_ARGUMENT, Why::BadRequest, Stage::Prepare, text)
    }

    /// An option that libcurl does not take.
    pub(crate) fn option(what: &str, error: &curl::Error) -> Self {
        let unsupported = matches!(error.code(), 4 | 48);
        let why = if unsupported { Why::Unsupported } else { Why::BadRequest };
        Self::new(error.code(), why, Stage::Prepare, format!("{what}: {}", error.description()))
    }

    /// What libcurl gave up with.
    pub(crate) fn of(error: &curl::Error, easy: &Easy2<Transferring>, connections: u32) -> Self {
        let handler = easy.get_ref();
        let (guard, code) = (&handler.guard, error.code());
        let stage = stage(easy, connections);
        let text = error.extra_description().unwrap_or_else(|| error.description()).to_owned();
        let mut fault = Self::new(code, Why::Code, stage, text);
        fault.os_error = easy.os_errno().unwrap_or(0);
        match (handler.stopped, code) {
            (Some(stopped), _) => fault.stopped(stopped),
            (None, 7 | 42) if guard.refused().is_some() => fault.refused(guard),
            (None, 7) if guard.os_error() != 0 => fault.os_error = guard.os_error(),
            (None, 1) => fault.why = Why::ProtocolDenied,
            (None, 3) => fault.why = Why::BadRequest,
            (None, 4 | 48) => fault.why = Why::Unsupported,
            (None, 63) => fault.why = Why::BodyTooLarge,
            _ => {}
        }
        fault
    }

    fn stopped(&mut self, stopped: Stopped) {
        let (code, why, text) = match stopped {
            Stopped::BodyTooLarge => (63, Why::BodyTooLarge, "the body is larger than allowed"),
            Stopped::BodyBroken => (26, Why::BodyBroken, "the client could not go on with the request's body"),
            Stopped::FirstByte => (28, Why::FirstByteTimeout, "no byte of an answer came in time"),
            Stopped::Idle => (28, Why::IdleTimeout, "no byte came or went for too long"),
        };
        (self.code, self.name, self.why, self.text) = (code, code_name(code), why, text.to_owned());
    }

    fn refused(&mut self, guard: &Guard) {
        let address = guard.refused().map(|address| address.to_string()).unwrap_or_default();
        (self.code, self.name, self.why, self.stage) = (7, code_name(7), Why::PolicyDenied, Stage::Connect);
        self.text = format!("the address policy does not allow {address}");
    }
}

fn micros(time: Result<std::time::Duration, curl::Error>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// How far it had come.
fn stage(easy: &Easy2<Transferring>, connections: u32) -> Stage {
    let handler = easy.get_ref();
    if handler.delivered > 0 || handler.heads.is_decided() {
        return Stage::Body;
    }
    if handler.heads.has_begun() {
        return Stage::Head;
    }
    if handler.guard.ready().is_some() {
        let waits = handler.upload.len().is_none_or(|len| handler.upload.taken() < len);
        return if waits { Stage::Send } else { Stage::Answer };
    }
    // Of these libcurl tells zero until they are over.
    match (micros(easy.namelookup_time()), micros(easy.connect_time())) {
        (0, _) if connections == 0 => Stage::Resolve,
        (_, 0) => Stage::Connect,
        _ => Stage::Tls,
    }
}

impl Info {
    pub(crate) fn of(easy: &Easy2<Transferring>, retries: u32, connections: u32) -> Self {
        let text = |text: Result<Option<&str>, curl::Error>| text.ok().flatten().unwrap_or_default().to_owned();
        let bytes = |bytes: Result<f64, curl::Error>| bytes.unwrap_or(0.0).max(0.0) as u64;
        let status = |status: Result<u32, curl::Error>| u16::try_from(status.unwrap_or(0)).unwrap_or(0);
        Self {
            version: easy.get_ref().version,
            url: text(easy.effective_url()),
            status: status(easy.response_code()),
            remote: (text(easy.primary_ip()), easy.primary_port().unwrap_or(0)),
            local: (text(easy.local_ip()), easy.local_port().unwrap_or(0)),
            redirects: easy.redirect_count().unwrap_or(0),
            redirect_url: text(easy.redirect_url()),
            connections,
            retries,
            name_lookup: micros(easy.namelookup_time()),
            connect: micros(easy.connect_time()),
            tls_done: micros(easy.appconnect_time()),
            pre_transfer: micros(easy.pretransfer_time()),
            start_transfer: micros(easy.starttransfer_time()),
            redirecting: micros(easy.redirect_time()),
            total: micros(easy.total_time()),
            head_size: easy.header_size().unwrap_or(0),
            request_size: easy.request_size().unwrap_or(0),
            received: bytes(easy.download_size()),
            sent: bytes(easy.upload_size()),
            delivered: easy.get_ref().delivered,
            content_type: text(easy.content_type()),
            condition_unmet: easy.time_condition_unmet().unwrap_or(false),
            connect_status: status(easy.http_connectcode()),
        }
    }
}
