//! One URL: asks for it, puts what comes where it belongs, and says how that went.

use crate::body;
use crate::cli::{OutputArgs, Slot, Target};
use crate::fault::{FAILED_INIT, Fault, HTTP_RETURNED_ERROR, WRITE_ERROR};
use crate::glob;
use crate::meter::Meter;
use crate::settings::{ProxyChoice, Settings};
use crate::sink::{self, Habits, Sink};
use crate::voice::Voice;
use crate::writeout::{self, Report};
use proc_curl::{Client, Head, Headers, HttpVersion, Proxy, RequestBuilder, Response, Source, TraceKind};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often the worker tells how far a transfer is.
const PROGRESS: Duration = Duration::from_millis(250);

/// The jar of this program's only session.
pub(crate) const JAR: u32 = 1;

/// What all transfers use.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) client: Client,
    pub(crate) voice: Arc<Voice>,
    pub(crate) meter: Arc<Meter>,
    /// Where -D goes.
    pub(crate) heads: Option<Mutex<Sink>>,
    /// What to remove if the program is interrupted.
    pub(crate) unfinished: Arc<Mutex<Vec<std::path::PathBuf>>>,
}

/// One URL's place in the command line.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) number: u64,
    pub(crate) url: String,
    /// What its patterns stand for.
    pub(crate) values: Vec<String>,
    pub(crate) slot: Slot,
}

/// Runs a transfer to its end and says so; returns the exit code.
pub(crate) fn run(context: &Context, job: &Job) -> u32 {
    let mut report = Report { url: job.url.clone(), number: job.number, ..Report::default() };
    context.meter.begin(job.number);
    let result = Transfer::new(context, job).and_then(|transfer| transfer.run(&mut report));
    context.meter.end(job.number, result.is_ok().then_some((report.info.received, report.info.sent)));
    let output = &context.settings.cli.output;
    if let Err(fault) = result {
        report.exit = fault.code;
        if !output.silent || output.show_error {
            context.voice.line(&format!("shmcurl: ({}) {}", fault.code, fault.text));
        }
        report.error = Some(fault.text);
    }
    if let Some(format) = &context.settings.write_out {
        let said = writeout::say(format, &report);
        let mut stdout = std::io::stdout().lock();
        // A closed standard output is a failure of the body's, if there was one.
        let _ = stdout.write_all(said.stdout.as_bytes()).and_then(|()| stdout.flush());
        if !said.stderr.is_empty() {
            context.voice.say(said.stderr.as_bytes());
        }
    }
    report.exit
}

struct Transfer<'a> {
    context: &'a Context,
    settings: &'a Settings,
    job: &'a Job,
    url: String,
    sink: Sink,
    /// Where the body goes on.
    offset: u64,
}

impl<'a> Transfer<'a> {
    fn new(context: &'a Context, job: &'a Job) -> Result<Self, Fault> {
        let settings = &context.settings;
        let url = url(settings, job);
        let output = &settings.cli.output;
        let resumes = settings.cli.request.continue_at.is_some() && job.slot.upload.is_none();
        let sink = sink(output, job, &url, resumes)?;
        let offset = match settings.cli.request.continue_at.as_deref() {
            None => 0,
            Some("-") => sink.existing(),
            Some(text) => text.parse().map_err(|_| Fault::new(FAILED_INIT, format!("-C: `{text}` is no offset")))?,
        };
        Ok(Self { context, settings, job, url, sink, offset })
    }

    fn run(mut self, report: &mut Report) -> Result<(), Fault> {
        report.method = self.method();
        let mut response = match self.request()?.send() {
            Ok(response) => response,
            Err(error) => return Err(self.failed(&error, report)),
        };
        report.heads = response.heads().to_vec();
        self.take_name(&response);
        self.tell_heads(response.heads())?;
        let status = response.status();
        let refused = status >= 400 && (self.settings.cli.output.fail || self.settings.cli.output.fail_with_body);
        if refused && self.settings.cli.output.fail {
            return Err(http_error(status));
        }
        self.take_body(&mut response, report)?;
        if refused {
            return Err(http_error(status));
        }
        Ok(())
    }

    fn take_body(&mut self, response: &mut Response, report: &mut Report) -> Result<(), Fault> {
        let copied = self.copy(response);
        report.file = self.sink.path().map(|path| path.display().to_string());
        if let Err(fault) = copied {
            match fault {
                Stopped::Failed(error) => return Err(self.failed(&error, report)),
                Stopped::Write(fault) => {
                    self.clean_up();
                    return Err(fault);
                }
            }
        }
        report.info = response.info().cloned().unwrap_or_default();
        if let Some(trailers) = response.trailers().filter(|trailers| !trailers.is_empty()) {
            self.tell(&lines(trailers))?;
        }
        if let Some(path) = self.sink.path() {
            self.forget(path);
        }
        if self.settings.cli.output.remote_time {
            let said = response.headers().get("last-modified").and_then(|text| httpdate::parse_http_date(text).ok());
            let set = said.map_or(Ok(()), |time| self.sink.set_time(time));
            set.map_err(|why| Fault::file(WRITE_ERROR, "the file's time", why))?;
        }
        Ok(())
    }

    fn copy(&mut self, response: &mut Response) -> Result<(), Stopped> {
        let write = |why: std::io::Error| Stopped::Write(Fault::file(WRITE_ERROR, "Failed writing body", why));
        // A body that is only asked about is not written, and a file for nothing is made only if all went well.
        if self.settings.cli.request.head {
            while response.chunk().map_err(Stopped::from)?.is_some() {}
        }
        let at_once = self.settings.cli.output.no_buffer || self.sink.is_stdout();
        while let Some(chunk) = response.chunk().map_err(Stopped::from)? {
            if matches!(self.sink, Sink::Wanted(_)) {
                self.sink.open().map_err(write)?;
                self.remember();
            }
            chunk.write_to(&mut self.sink).map_err(|why| match why.kind() {
                std::io::ErrorKind::BrokenPipe => write(std::io::Error::other("nobody reads it")),
                _ => write(why),
            })?;
            if at_once {
                self.sink.flush().map_err(write)?;
            }
        }
        self.sink.open().map_err(write)
    }

    /// What is known of a transfer that failed, and its fault.
    fn failed(&mut self, error: &proc_curl::Error, report: &mut Report) -> Fault {
        if let Some(failure) = error.failure() {
            report.info = failure.info.clone();
            if report.heads.is_empty() {
                report.heads = failure.heads.clone();
                // The fault that ended it is told, not one that follows from it.
                let _ = self.tell_heads(&failure.heads);
            }
            if self.settings.cli.output.verbose {
                let text = format!("* failed {}: {} {:?}", failure.stage, failure.name, failure.why);
                self.context.voice.line(&text);
            }
        }
        self.clean_up();
        Fault::from(error)
    }

    fn clean_up(&self) {
        if self.settings.cli.output.remove_on_error {
            self.sink.remove();
        }
        if let Some(path) = self.sink.path() {
            self.forget(path);
        }
    }

    fn remember(&self) {
        if let (true, Some(path)) = (self.settings.cli.output.remove_on_error, self.sink.path()) {
            self.context.unfinished.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
        }
    }

    fn forget(&self, path: &Path) {
        self.context.unfinished.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| other != path);
    }

    fn take_name(&mut self, response: &Response) {
        let wanted =
            self.settings.cli.output.remote_header_name && is_remote(&self.settings.cli.output, &self.job.slot);
        let said = response.headers().get("content-disposition").filter(|_| wanted);
        if let Some(name) = said.and_then(sink::disposition_name) {
            self.sink.rename(&name);
        }
    }

    fn tell_heads(&mut self, heads: &[Head]) -> Result<(), Fault> {
        for head in heads {
            self.tell(&text_of(head))?;
        }
        Ok(())
    }

    /// Writes head lines where -i, -I and -D want them.
    fn tell(&mut self, text: &[u8]) -> Result<(), Fault> {
        let write = |why: std::io::Error| Fault::file(WRITE_ERROR, "Failed writing received data", why);
        if let Some(heads) = &self.context.heads {
            heads.lock().unwrap_or_else(PoisonError::into_inner).write_all(text).map_err(write)?;
        }
        if self.settings.cli.output.include || self.settings.cli.request.head {
            self.sink.write_all(text).map_err(write)?;
        }
        Ok(())
    }

    fn method(&self) -> String {
        let request = &self.settings.cli.request;
        let meant = match self.settings {
            _ if request.head => "HEAD",
            _ if self.job.slot.upload.is_some() => "PUT",
            settings if settings.data.is_some() || !settings.form.is_empty() => "POST",
            _ => "GET",
        };
        request.request.clone().unwrap_or_else(|| meant.to_owned())
    }

    fn request(&self) -> Result<RequestBuilder, Fault> {
        let settings = self.settings;
        let (request, connection) = (&settings.cli.request, &settings.cli.connection);
        let method = self.method();
        let mut builder = self.context.client.request(&method, &self.url);
        builder = builder
            .timeouts(settings.timeouts.clone())
            .redirects(settings.redirects.clone())
            .tls(settings.tls.clone())
            .proxy(self.proxy())
            .version(settings.version)
            .family(settings.family)
            .retry(settings.retry.clone())
            .protocols(settings.protocols)
            .redirect_protocols(settings.redirect_protocols)
            .address_policy(settings.policy.clone());
        builder = self.headers(builder, &method);
        builder = self.with_body(builder)?;
        let all = |builder: RequestBuilder, lines: &[String], add: fn(RequestBuilder, String) -> RequestBuilder| {
            lines.iter().fold(builder, |builder, line| add(builder, line.clone()))
        };
        builder = all(builder, &connection.resolve, RequestBuilder::resolve);
        builder = all(builder, &connection.connect_to, RequestBuilder::connect_to);
        if let Some(auth) = &settings.auth {
            builder = builder.auth(auth.clone());
        }
        if let Some(cookie) = &settings.cookie {
            builder = builder.cookie(cookie.clone());
        }
        if settings.jar.is_some() {
            builder = builder.cookie_jar(JAR);
        }
        if request.compressed {
            builder = builder.decompress();
        }
        if let Some(path) = &connection.unix_socket {
            builder = builder.unix_socket(path.clone());
        }
        if let Some(interface) = &connection.interface {
            builder = builder.interface(interface.clone());
        }
        if let Some((first, count)) = settings.local_ports {
            builder = builder.local_ports(first, count);
        }
        if let Some(speed) = connection.limit_rate {
            builder = builder.speed(speed, speed);
        }
        if let Some(range) = &request.range {
            builder = builder.range(range.clone());
        }
        if self.offset > 0 && self.job.slot.upload.is_none() {
            builder = builder.resume_from(self.offset);
        }
        if let Some(bytes) = settings.cli.output.max_filesize.filter(|bytes| *bytes > 0) {
            builder = builder.body_max(bytes);
        }
        if let Some(condition) = settings.condition {
            builder = match condition.unmodified {
                false => builder.if_modified_since(condition.time),
                true => builder.if_unmodified_since(condition.time),
            };
        }
        if let Some(target) = &request.request_target {
            builder = builder.request_target(target.clone());
        }
        if let Some(wait) = request.expect100_timeout {
            builder = builder.expect_timeout(wait);
        }
        if let Some(every) = connection.keepalive_time.filter(|_| !connection.no_keepalive) {
            builder = builder.keep_alive(every);
        }
        for (wanted, set) in [
            (request.path_as_is, RequestBuilder::path_as_is as fn(RequestBuilder) -> RequestBuilder),
            (request.raw, RequestBuilder::raw_transfer),
            (request.ignore_content_length, RequestBuilder::ignore_content_length),
            (connection.http0_9, RequestBuilder::http09),
        ] {
            builder = if wanted { set(builder) } else { builder };
        }
        Ok(self.listening(builder))
    }

    fn headers(&self, mut builder: RequestBuilder, method: &str) -> RequestBuilder {
        let (settings, request) = (self.settings, &self.settings.cli.request);
        for line in &settings.headers {
            builder = builder.header_line(line.clone());
        }
        let own = concat!("shmcurl/", env!("CARGO_PKG_VERSION"));
        if !settings.has_header("user-agent") {
            builder = match request.user_agent.as_deref() {
                Some("") => builder.without_header("User-Agent"),
                agent => builder.header("User-Agent", agent.unwrap_or(own)),
            };
        }
        if let Some(text) = &request.referer {
            let text = text.strip_suffix(";auto").unwrap_or(text);
            if !text.is_empty() {
                builder = builder.header("Referer", text);
            }
        }
        let is_json = settings.data.as_ref().is_some_and(|data| data.is_json);
        if is_json && !settings.has_header("accept") {
            builder = builder.header("Accept", "application/json");
        }
        if settings.data.is_some() && !settings.has_header("content-type") {
            if is_json {
                builder = builder.header("Content-Type", "application/json");
            } else if method != "POST" {
                // libcurl says so of POST alone.
                builder = builder.header("Content-Type", "application/x-www-form-urlencoded");
            }
        }
        builder
    }

    fn with_body(&self, builder: RequestBuilder) -> Result<RequestBuilder, Fault> {
        if let Some(file) = &self.job.slot.upload {
            let builder = match body::file_size(file).filter(|_| self.offset > 0) {
                Some(size) if size > self.offset => {
                    builder.header("Content-Range", format!("bytes {}-{}/{size}", self.offset, size - 1))
                }
                _ => builder,
            };
            return Ok(builder.body(body::file(file, self.offset)?));
        }
        if !self.settings.form.is_empty() {
            return Ok(builder.form(body::form(&self.settings.form)?));
        }
        Ok(match &self.settings.data {
            Some(data) => builder.body(Source::Bytes(data.bytes.clone())),
            None => builder,
        })
    }

    fn proxy(&self) -> Option<Proxy> {
        match &self.settings.proxy {
            ProxyChoice::None => None,
            ProxyChoice::This(proxy) => Some((**proxy).clone()),
            ProxyChoice::Environment(options) => {
                let found = Proxy::from_environment(&self.url)?;
                let no_proxy = options.no_proxy.clone().or(found.no_proxy);
                Some(Proxy { url: found.url, no_proxy, ..(**options).clone() })
            }
        }
    }

    fn listening(&self, mut builder: RequestBuilder) -> RequestBuilder {
        if self.settings.cli.output.verbose {
            let voice = self.context.voice.clone();
            builder = builder.on_trace(move |kind, text| {
                let mark = match kind {
                    TraceKind::HeadIn => "< ",
                    TraceKind::HeadOut => "> ",
                    _ => "* ",
                };
                for line in text.split_inclusive(|byte| *byte == b'\n') {
                    let line = String::from_utf8_lossy(line);
                    voice.line(&format!("{mark}{}", line.trim_end_matches(['\r', '\n'])));
                }
            });
        }
        if self.context.meter.is_shown() {
            let (meter, id) = (self.context.meter.clone(), self.job.number);
            builder = builder.on_progress(PROGRESS, move |progress| meter.update(id, progress));
        }
        builder
    }
}

/// Why a body did not get where it should.
enum Stopped {
    Failed(proc_curl::Error),
    Write(Fault),
}

impl From<proc_curl::Error> for Stopped {
    fn from(error: proc_curl::Error) -> Self {
        Self::Failed(error)
    }
}

fn http_error(status: u16) -> Fault {
    Fault::new(HTTP_RETURNED_ERROR, format!("The requested URL returned error: {status}"))
}

/// A URL as it is asked for: with a scheme, what -G and --url-query add, and an upload's name.
fn url(settings: &Settings, job: &Job) -> String {
    let mut url = match job.url.contains("://") {
        true => job.url.clone(),
        false => format!("{}://{}", settings.cli.request.proto_default, job.url),
    };
    let upload = job.slot.upload.as_deref().filter(|file| !matches!(*file, "-" | "."));
    if let Some(name) = upload.and_then(|file| Path::new(file).file_name()).filter(|_| url.ends_with('/')) {
        url.push_str(&body::percent_encoded(name.as_encoded_bytes()));
    }
    if !settings.query.is_empty() {
        let (address, fragment) = url.split_at(url.find('#').unwrap_or(url.len()));
        let sign = if address.contains('?') { '&' } else { '?' };
        url = format!("{address}{sign}{}{fragment}", settings.query);
    }
    url
}

fn is_remote(output: &OutputArgs, slot: &Slot) -> bool {
    slot.output == Some(Target::Remote) || (slot.output.is_none() && output.remote_name_all)
}

fn sink(output: &OutputArgs, job: &Job, url: &str, append: bool) -> Result<Sink, Fault> {
    let habits = Habits {
        dir: output.output_dir.clone().map(Into::into),
        create_dirs: output.create_dirs,
        keep_others: output.no_clobber && !output.clobber,
    };
    if is_remote(output, &job.slot) {
        let none = || Fault::new(WRITE_ERROR, "Remote file name has no length");
        return Ok(Sink::file(&sink::remote_name(url).ok_or_else(none)?, append, &habits));
    }
    Ok(match &job.slot.output {
        Some(Target::Named(name)) => Sink::file(&glob::file_name(name, &job.values), append, &habits),
        _ => Sink::Stdout,
    })
}

/// A head as HTTP/1.1 writes it.
fn text_of(head: &Head) -> Vec<u8> {
    let version = match head.version {
        HttpVersion::Http10 => "1.0",
        HttpVersion::Http2 | HttpVersion::Http2Tls | HttpVersion::Http2PriorKnowledge => "2",
        HttpVersion::Http3 => "3",
        _ => "1.1",
    };
    let mut text = format!("HTTP/{version} {} ", head.status).into_bytes();
    text.extend_from_slice(&head.reason);
    text.extend_from_slice(b"\r\n");
    text.extend_from_slice(&lines(&head.headers));
    text.extend_from_slice(b"\r\n");
    text
}

fn lines(headers: &Headers) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in headers.iter() {
        text.extend_from_slice(name);
        text.extend_from_slice(b": ");
        text.extend_from_slice(value);
        text.extend_from_slice(b"\r\n");
    }
    text
}
