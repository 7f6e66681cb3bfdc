//! Requests as messages, and what messages from a worker say. The one place in the client that knows the schema; what a
//! worker says is checked here and nowhere else.

use crate::error::{Failure, Stage, Why};
use crate::options::{Auth, Family, HeaderLine, HttpVersion, Network, Protocols, Proxy, Schemes, Tls, TlsVersion};
use crate::proc_curl_capnp::{self as schema, curl};
use crate::request::{Progress, Spec, TraceKind};
use crate::response::{End, Head, HeadKind, Headers, Info};
use std::time::Duration;

/// What a message of a worker says. Blobs are beside it.
#[derive(Debug)]
pub(crate) enum Said {
    Head(Head),
    /// Where in the body its first byte belongs.
    Body(u64),
    Progress(Progress),
    /// How much of the request's body may be sent.
    Room(u64),
    Done(End),
    Failed(Box<Failure>),
    Whole(Vec<Head>, End),
    Trace(TraceKind, Vec<u8>),
}

/// Milliseconds, and not none where there is some.
fn millis(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1))
}

fn millis32(time: Option<Duration>) -> u32 {
    u32::try_from(millis(time)).unwrap_or(u32::MAX)
}

/// What is to be said of the body in the request itself.
pub(crate) enum BodyIs<'a> {
    None,
    Inline(&'a [u8]),
    Blobs,
    Stream(Option<u64>),
}

/// Writes a request.
pub(crate) fn write_request(spec: &Spec, body: &BodyIs<'_>, mut to: schema::request::Builder<'_>) {
    to.set_method(&spec.method);
    to.set_url(&spec.url);
    write_lines(&spec.headers, |count| to.reborrow().init_headers(count));
    match body {
        BodyIs::None => to.reborrow().get_body().set_none(()),
        BodyIs::Inline(bytes) => to.reborrow().get_body().set_inline(bytes),
        BodyIs::Blobs => to.reborrow().get_body().set_blobs(()),
        BodyIs::Stream(len) => {
            let len = len.map_or(-1, |len| i64::try_from(len).unwrap_or(i64::MAX));
            to.reborrow().get_body().set_stream(len);
        }
    }
    let mut timeouts = to.reborrow().init_timeouts();
    timeouts.set_total(millis(spec.timeouts.total));
    timeouts.set_connect(millis(spec.timeouts.connect));
    timeouts.set_first_byte(millis(spec.timeouts.first_byte));
    timeouts.set_idle(millis(spec.timeouts.idle));
    if let Some((bytes, time)) = spec.timeouts.low_speed {
        timeouts.set_low_speed_bytes(bytes);
        timeouts.set_low_speed_seconds(u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1));
    }
    let mut redirects = to.reborrow().init_redirects();
    redirects.set_max(spec.redirects.max);
    redirects.set_keep_post301(spec.redirects.keep_post_301);
    redirects.set_keep_post302(spec.redirects.keep_post_302);
    redirects.set_keep_post303(spec.redirects.keep_post_303);
    redirects.set_auth_elsewhere(spec.redirects.auth_elsewhere);
    redirects.set_auto_referer(spec.redirects.auto_referer);
    if spec.tls != Tls::default() {
        write_tls(&spec.tls, to.reborrow().init_tls());
    }
    if let Some(proxy) = &spec.proxy {
        write_proxy(proxy, to.reborrow().init_proxy());
    }
    to.set_version(write_version(spec.version));
    if let Some(auth) = &spec.auth {
        write_auth(auth, to.reborrow().init_auth());
    }
    to.set_jar(spec.jar);
    set_some(spec.cookie.as_deref(), |text| to.set_cookie(text));
    if let Some(encodings) = &spec.decompress {
        to.set_decompress(true);
        to.set_encodings(encodings);
    }
    write_texts(&spec.resolve, |count| to.reborrow().init_resolve(count));
    write_texts(&spec.connect_to, |count| to.reborrow().init_connect_to(count));
    set_some(spec.unix_socket.as_deref(), |text| to.set_unix_socket(text));
    set_some(spec.interface.as_deref(), |text| to.set_interface(text));
    if let Some((first, count)) = spec.local_ports {
        to.set_local_port(first);
        to.set_local_ports(count);
    }
    to.set_family(match spec.family {
        Family::Any => schema::Family::Any,
        Family::V4 => schema::Family::V4,
        Family::V6 => schema::Family::V6,
    });
    to.set_receive_speed(spec.receive_speed);
    to.set_send_speed(spec.send_speed);
    set_some(spec.range.as_deref(), |text| to.set_range(text));
    to.set_resume_from(spec.resume_from);
    write_protocols(spec.protocols, to.reborrow().init_protocols());
    write_protocols(spec.redirect_protocols, to.reborrow().init_redirect_protocols());
    if !spec.policy.is_empty() {
        let mut policy = to.reborrow().init_policy();
        let texts = |networks: &[Network]| networks.iter().map(Network::to_string).collect::<Vec<_>>();
        write_texts(&texts(&spec.policy.allow), |count| policy.reborrow().init_allow(count));
        write_texts(&texts(&spec.policy.deny), |count| policy.reborrow().init_deny(count));
    }
    to.set_body_max(spec.body_max);
    if spec.retry.times > 0 && spec.is_idempotent() {
        let mut retry = to.reborrow().init_retry();
        retry.set_times(spec.retry.times);
        retry.set_backoff(millis32(Some(spec.retry.backoff)));
        retry.set_backoff_max(millis32(Some(spec.retry.backoff_max)));
        retry.set_ignore_retry_after(spec.retry.ignore_retry_after);
        retry.set_within(millis(spec.retry.within));
    }
    to.set_progress(millis32(spec.progress_every));
    to.set_trace(spec.trace);
    to.set_window(spec.window);
    to.set_fresh_connection(spec.fresh_connection);
    to.set_keep_connection(!spec.close_connection);
    to.set_path_as_is(spec.path_as_is);
    to.set_http09(spec.http09);
    if let Some(wait) = spec.expect {
        to.set_expect_ms(millis32(Some(wait)));
    }
    set_some(spec.target.as_deref(), |text| to.set_request_target(text));
    to.set_ignore_content_length(spec.ignore_content_length);
    if let Some((since, unmodified)) = spec.modified {
        to.set_if_modified(since);
        to.set_if_unmodified(unmodified);
    }
    to.set_transfer_decoding(!spec.raw_transfer);
    to.set_keep_alive_ms(millis32(spec.keep_alive));
}

fn set_some(value: Option<&str>, set: impl FnOnce(&str)) {
    if let Some(value) = value {
        set(value);
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn write_texts<'a>(texts: &[String], init: impl FnOnce(u32) -> capnp::text_list::Builder<'a>) {
    if texts.is_empty() {
        return;
    }
    let mut list = init(count(texts.len()));
    for (index, text) in (0..).zip(texts) {
        list.set(index, text);
    }
}

fn write_lines<'a>(
    lines: &[HeaderLine],
    init: impl FnOnce(u32) -> capnp::struct_list::Builder<'a, schema::header_line::Owned>,
) {
    if lines.is_empty() {
        return;
    }
    let mut list = init(count(lines.len()));
    for (index, line) in (0..).zip(lines) {
        let mut to = list.reborrow().get(index);
        to.set_name(&line.name);
        match &line.value {
            Some(value) => to.set_value(value),
            None => to.set_remove(true),
        }
    }
}

fn write_tls(tls: &Tls, mut to: schema::tls::Builder<'_>) {
    let version = |version: Option<TlsVersion>| match version {
        None => schema::TlsVersion::Any,
        Some(TlsVersion::V1_0) => schema::TlsVersion::Tls10,
        Some(TlsVersion::V1_1) => schema::TlsVersion::Tls11,
        Some(TlsVersion::V1_2) => schema::TlsVersion::Tls12,
        Some(TlsVersion::V1_3) => schema::TlsVersion::Tls13,
    };
    to.set_insecure_peer(tls.insecure);
    to.set_insecure_host(tls.insecure || tls.any_host);
    to.set_authorities(tls.authorities.as_deref().unwrap_or_default());
    to.set_certificate(tls.certificate.as_deref().unwrap_or_default());
    set_some(tls.certificate_type.as_deref(), |text| to.set_certificate_type(text));
    to.set_key(tls.key.as_deref().unwrap_or_default());
    set_some(tls.key_type.as_deref(), |text| to.set_key_type(text));
    set_some(tls.key_password.as_deref(), |text| to.set_key_password(text));
    to.set_min(version(tls.min));
    to.set_max(version(tls.max));
    set_some(tls.pinned_key.as_deref(), |text| to.set_pinned_key(text));
    set_some(tls.ciphers.as_deref(), |text| to.set_ciphers(text));
    to.set_no_session_reuse(tls.no_session_reuse);
}

fn write_proxy(proxy: &Proxy, mut to: schema::proxy::Builder<'_>) {
    to.set_url(&proxy.url);
    set_some(proxy.user.as_deref(), |text| to.set_user(text));
    set_some(proxy.password.as_deref(), |text| to.set_password(text));
    write_schemes(proxy.auth, to.reborrow().init_auth());
    set_some(proxy.no_proxy.as_deref(), |text| to.set_no_proxy(text));
    to.set_tunnel(proxy.tunnel);
    to.set_insecure(proxy.insecure);
    to.set_authorities(proxy.authorities.as_deref().unwrap_or_default());
    write_lines(&proxy.headers, |count| to.reborrow().init_headers(count));
}

fn write_schemes(schemes: Schemes, mut to: schema::schemes::Builder<'_>) {
    to.set_basic(schemes.basic);
    to.set_digest(schemes.digest);
    to.set_bearer(schemes.bearer);
    to.set_negotiate(schemes.negotiate);
    to.set_ntlm(schemes.ntlm);
}

fn write_auth(auth: &Auth, mut to: schema::auth::Builder<'_>) {
    to.set_present(true);
    match auth {
        Auth::Password { user, password, schemes } => {
            to.set_user(user);
            to.set_password(password);
            write_schemes(*schemes, to.init_schemes());
        }
        Auth::Bearer(token) => {
            to.set_bearer(token);
            write_schemes(Schemes { basic: false, bearer: true, ..Schemes::BASIC }, to.init_schemes());
        }
        Auth::SigV4 { provider, user, password } => {
            to.set_user(user);
            to.set_password(password);
            to.set_sigv4(provider);
        }
    }
}

fn write_version(version: HttpVersion) -> schema::HttpVersion {
    match version {
        HttpVersion::Any | HttpVersion::Http09 | HttpVersion::Http3 => schema::HttpVersion::Any,
        HttpVersion::Http10 => schema::HttpVersion::Http10,
        HttpVersion::Http11 => schema::HttpVersion::Http11,
        HttpVersion::Http2 => schema::HttpVersion::Http2,
        HttpVersion::Http2Tls => schema::HttpVersion::Http2Tls,
        HttpVersion::Http2PriorKnowledge => schema::HttpVersion::Http2PriorKnowledge,
    }
}

fn write_protocols(protocols: Protocols, mut to: schema::protocols::Builder<'_>) {
    to.set_http(protocols.http);
    to.set_https(protocols.https);
}

/// What a message says; `None` if it is none that answers a request.
pub(crate) fn read(message: curl::Reader<'_>) -> capnp::Result<Option<Said>> {
    Ok(Some(match message.which()? {
        curl::Head(head) => Said::Head(read_head(head?)?),
        curl::Body(body) => Said::Body(body?.get_offset()),
        curl::Progress(progress) => {
            let progress = progress?;
            let known = |bytes: i64| u64::try_from(bytes).ok();
            Said::Progress(Progress {
                received: progress.get_received(),
                to_receive: known(progress.get_to_receive()),
                sent: progress.get_sent(),
                to_send: known(progress.get_to_send()),
            })
        }
        curl::Room(bytes) => Said::Room(bytes),
        curl::Done(done) => Said::Done(read_done(done?)?),
        curl::Failed(failed) => Said::Failed(Box::new(read_failed(failed?)?)),
        curl::Whole(whole) => {
            let whole = whole?;
            let heads = whole.get_heads()?.iter().map(read_head).collect::<capnp::Result<_>>()?;
            Said::Whole(heads, read_done(whole.get_done()?)?)
        }
        curl::Trace(trace) => {
            let trace = trace?;
            let kind = match trace.get_kind() {
                Ok(schema::trace::Kind::HeadIn) => TraceKind::HeadIn,
                Ok(schema::trace::Kind::HeadOut) => TraceKind::HeadOut,
                _ => TraceKind::Text,
            };
            Said::Trace(kind, trace.get_text()?.to_vec())
        }
        _ => return Ok(None),
    }))
}

fn read_head(head: schema::head::Reader<'_>) -> capnp::Result<Head> {
    Ok(Head {
        status: head.get_status(),
        reason: head.get_reason()?.to_vec(),
        version: read_version(head.get_version()),
        headers: read_fields(head.get_fields()?)?,
        kind: match head.get_kind()? {
            schema::head::Kind::Final => HeadKind::Final,
            schema::head::Kind::Informational => HeadKind::Informational,
            schema::head::Kind::Passing => HeadKind::Passing,
            schema::head::Kind::Connect => HeadKind::Connect,
        },
        content_length: u64::try_from(head.get_content_length()).ok(),
    })
}

fn read_fields(fields: capnp::struct_list::Reader<'_, schema::field::Owned>) -> capnp::Result<Headers> {
    let field = |field: schema::field::Reader<'_>| Ok((field.get_name()?.to_vec(), field.get_value()?.to_vec()));
    Ok(Headers(fields.iter().map(field).collect::<capnp::Result<_>>()?))
}

fn read_version(version: Result<schema::HttpVersion, capnp::NotInSchema>) -> HttpVersion {
    match version {
        Ok(schema::HttpVersion::Http09) => HttpVersion::Http09,
        Ok(schema::HttpVersion::Http10) => HttpVersion::Http10,
        Ok(schema::HttpVersion::Http11) => HttpVersion::Http11,
        Ok(schema::HttpVersion::Http2 | schema::HttpVersion::Http2Tls | schema::HttpVersion::Http2PriorKnowledge) => {
            HttpVersion::Http2
        }
        Ok(schema::HttpVersion::Http3) => HttpVersion::Http3,
        Ok(schema::HttpVersion::Any) | Err(_) => HttpVersion::Any,
    }
}

fn read_done(done: schema::done::Reader<'_>) -> capnp::Result<End> {
    Ok(End { info: read_info(done.get_info()?)?, trailers: read_fields(done.get_trailers()?)? })
}

/// Text of the worker's, whatever it is made of.
fn text(text: capnp::text::Reader<'_>) -> String {
    String::from_utf8_lossy(text.as_bytes()).into_owned()
}

fn read_info(info: schema::info::Reader<'_>) -> capnp::Result<Info> {
    let micros = Duration::from_micros;
    Ok(Info {
        version: read_version(info.get_version()),
        url: text(info.get_url()?),
        status: info.get_status(),
        remote_address: text(info.get_remote_address()?),
        remote_port: info.get_remote_port(),
        local_address: text(info.get_local_address()?),
        local_port: info.get_local_port(),
        redirects: info.get_redirects(),
        redirect_url: text(info.get_redirect_url()?),
        connections: info.get_connections(),
        retries: info.get_retries(),
        name_lookup: micros(info.get_name_lookup()),
        connect: micros(info.get_connect()),
        tls_done: micros(info.get_tls_done()),
        pre_transfer: micros(info.get_pre_transfer()),
        start_transfer: micros(info.get_start_transfer()),
        redirecting: micros(info.get_redirecting()),
        total: micros(info.get_total()),
        head_size: info.get_head_size(),
        request_size: info.get_request_size(),
        received: info.get_received(),
        sent: info.get_sent(),
        delivered: info.get_delivered(),
        content_type: text(info.get_content_type()?),
        condition_unmet: info.get_condition_unmet(),
        connect_status: info.get_connect_status(),
    })
}

fn read_failed(failed: schema::failed::Reader<'_>) -> capnp::Result<Failure> {
    use schema::{Stage as ItsStage, failed::Why as ItsWhy};
    let stage = match failed.get_stage() {
        Ok(ItsStage::Prepare) | Err(_) => Stage::Prepare,
        Ok(ItsStage::Queue) => Stage::Queue,
        Ok(ItsStage::Resolve) => Stage::Resolve,
        Ok(ItsStage::Connect) => Stage::Connect,
        Ok(ItsStage::Tls) => Stage::Tls,
        Ok(ItsStage::Send) => Stage::Send,
        Ok(ItsStage::Answer) => Stage::Answer,
        Ok(ItsStage::Head) => Stage::Head,
        Ok(ItsStage::Body) => Stage::Body,
    };
    let why = match failed.get_why() {
        Ok(ItsWhy::Code) | Err(_) => Why::Code,
        Ok(ItsWhy::PolicyDenied) => Why::PolicyDenied,
        Ok(ItsWhy::ProtocolDenied) => Why::ProtocolDenied,
        Ok(ItsWhy::BadRequest) => Why::BadRequest,
        Ok(ItsWhy::Unsupported) => Why::Unsupported,
        Ok(ItsWhy::Cancelled) => Why::Cancelled,
        Ok(ItsWhy::Overloaded) => Why::Overloaded,
        Ok(ItsWhy::FirstByteTimeout) => Why::FirstByteTimeout,
        Ok(ItsWhy::IdleTimeout) => Why::IdleTimeout,
        Ok(ItsWhy::BodyTooLarge) => Why::BodyTooLarge,
        Ok(ItsWhy::BodyBroken) => Why::BodyBroken,
        Ok(ItsWhy::WorkerFault) => Why::WorkerFault,
    };
    let os_error = failed.get_os_error();
    Ok(Failure {
        code: failed.get_code(),
        name: text(failed.get_name()?),
        why,
        stage,
        os_error: (os_error != 0).then_some(os_error),
        text: text(failed.get_text()?),
        bytes: 0,
        heads: Vec::new(),
        info: read_info(failed.get_info()?)?,
    })
}
