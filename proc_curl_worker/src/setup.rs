//! A request put into libcurl's options. One table, in the order of the schema.

use crate::outcome::Fault;
use crate::raw::{self, Number, Text};
use crate::wish::Handle;
use curl::easy::{HttpVersion as Speaks, IpResolve, List, PostRedirections, SslVersion, TimeCondition};
use proc_curl::proc_curl_capnp::{
    Family, HttpVersion, TlsVersion, auth, header_line, proxy, redirects, request, schemes, tls,
};
use std::time::Duration;

/// What the worker itself has to say.
#[derive(Clone, Debug, Default)]
pub(crate) struct House {
    /// The authorities to believe, if not libcurl's own.
    pub(crate) authorities: Option<std::path::PathBuf>,
    /// What is sent as `User-Agent` unless the request says so.
    pub(crate) agent: String,
}

/// libcurl's answer to one option, by name.
fn set(what: &str, result: Result<(), curl::Error>) -> Result<(), Fault> {
    result.map_err(|error| Fault::option(what, &error))
}

/// Text that libcurl takes as a C string and that ends no line.
fn plain<'a>(what: &str, text: capnp::text::Reader<'a>) -> Result<&'a str, Fault> {
    let text = text.to_str().map_err(|_| Fault::bad(format!("{what} is not UTF-8")))?;
    if text.bytes().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
        return Err(Fault::bad(format!("{what} has a line break or a zero byte")));
    }
    Ok(text)
}

fn given<'a>(what: &str, text: capnp::Result<capnp::text::Reader<'a>>) -> Result<Option<&'a str>, Fault> {
    let text = plain(what, text?)?;
    Ok((!text.is_empty()).then_some(text))
}

fn bytes(data: capnp::Result<&[u8]>) -> Result<Option<&[u8]>, Fault> {
    let data = data?;
    Ok((!data.is_empty()).then_some(data))
}

/// Sets everything but the time that is left.
pub(crate) fn set_up(easy: &mut Handle, request: request::Reader<'_>, house: &House) -> Result<(), Fault> {
    let url = plain("the URL", request.get_url()?)?;
    set("URL", easy.url(url))?;
    set_method(easy, request)?;
    set_headers(easy, request, house)?;
    let timeouts = request.get_timeouts()?;
    if timeouts.get_connect() > 0 {
        set("connect timeout", easy.connect_timeout(Duration::from_millis(timeouts.get_connect())))?;
    }
    if timeouts.get_low_speed_bytes() > 0 {
        set("low speed", easy.low_speed_limit(timeouts.get_low_speed_bytes()))?;
        let time = Duration::from_secs(timeouts.get_low_speed_seconds().into());
        set("low speed", easy.low_speed_time(time))?;
    }
    set_redirects(easy, request.get_redirects()?)?;
    if let Some(path) = &house.authorities {
        set("authorities", easy.cainfo(path))?;
    }
    if request.has_tls() {
        set_tls(easy, request.get_tls()?)?;
    }
    set_proxy(easy, request.get_proxy()?)?;
    set_version(easy, request.get_version()?)?;
    set_auth(easy, request.get_auth()?)?;
    if let Some(cookie) = given("a cookie", request.get_cookie())? {
        set("cookie", easy.cookie(cookie))?;
    }
    if request.get_decompress() {
        let encodings = plain("the encodings", request.get_encodings()?)?;
        set("encodings", easy.accept_encoding(encodings))?;
    }
    set_places(easy, request)?;
    set("receive speed", easy.max_recv_speed(request.get_receive_speed()))?;
    set("send speed", easy.max_send_speed(request.get_send_speed()))?;
    if let Some(range) = given("the range", request.get_range())? {
        set("range", easy.range(range))?;
    }
    if request.get_resume_from() > 0 {
        set("resume", easy.resume_from(request.get_resume_from()))?;
    }
    let bits = |protocols: proc_curl::proc_curl_capnp::protocols::Reader<'_>| {
        // CURLPROTO_HTTP and CURLPROTO_HTTPS. None at all would be libcurl's "all".
        match (protocols.get_http(), protocols.get_https()) {
            (false, false) => Err(Fault::bad("no protocol is allowed")),
            (http, https) => Ok(i64::from(http) | i64::from(https) << 1),
        }
    };
    set("protocols", raw::set_number(easy, Number::Protocols, bits(request.get_protocols()?)?))?;
    let redirected = bits(request.get_redirect_protocols()?)?;
    set("protocols of redirects", raw::set_number(easy, Number::RedirectProtocols, redirected))?;
    set_rest(easy, request)
}

fn set_method(easy: &mut Handle, request: request::Reader<'_>) -> Result<(), Fault> {
    let method = plain("the method", request.get_method()?)?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if method.is_empty() || !method.bytes().all(token) {
        return Err(Fault::bad(format!("`{}` is no method", method.escape_default())));
    }
    let has_body = !matches!(request.get_body().which(), Ok(request::body::None(())));
    let len = easy.get_ref().upload.len();
    match (method, has_body) {
        ("GET", false) => set("method", easy.get(true)),
        ("HEAD", false) => set("method", easy.nobody(true)),
        ("POST", _) => {
            set("method", easy.post(true))?;
            // Without a size libcurl sends chunks, if told to: `set_headers`.
            len.map_or(Ok(()), |len| set("body size", easy.post_field_size(len)))
        }
        (_, false) if method != "PUT" => set("method", easy.custom_request(method)),
        _ => {
            set("method", easy.upload(true))?;
            if method != "PUT" {
                set("method", easy.custom_request(method))?;
            }
            len.map_or(Ok(()), |len| set("body size", easy.in_filesize(len)))
        }
    }?;
    if len.is_none_or(|len| len > 64 << 10) {
        set("upload buffer", easy.upload_buffer_size(512 << 10))?;
    }
    Ok(())
}

fn line(line: header_line::Reader<'_>) -> Result<Vec<u8>, Fault> {
    let name = plain("a header's name", line.get_name()?)?;
    let (value, bad) = (line.get_value()?, |byte: &u8| matches!(byte, 0 | b'\r' | b'\n'));
    if name.is_empty() || name.contains([':', ';', ' ']) || value.iter().any(bad) {
        return Err(Fault::bad(format!("`{}` is no header", name.escape_default())));
    }
    let value = value.trim_ascii();
    Ok(match (line.get_remove(), value) {
        (true, _) => format!("{name}:").into_bytes(),
        (false, b"") => format!("{name};").into_bytes(),
        (false, value) => [format!("{name}: ").as_bytes(), value].concat(),
    })
}

fn list(lines: impl Iterator<Item = Result<Vec<u8>, Fault>>) -> Result<List, Fault> {
    let mut list = List::new();
    for line in lines {
        let line = String::from_utf8(line?).map_err(|_| Fault::bad("a header's value is not UTF-8"))?;
        set("header", list.append(&line))?;
    }
    Ok(list)
}

fn set_headers(easy: &mut Handle, request: request::Reader<'_>, house: &House) -> Result<(), Fault> {
    let headers = request.get_headers()?;
    let names = |wanted: &str| {
        headers
            .iter()
            .any(|line| line.get_name().is_ok_and(|name| name.as_bytes().eq_ignore_ascii_case(wanted.as_bytes())))
    };
    if !names("user-agent") {
        set("user agent", easy.useragent(&house.agent))?;
    }
    let chunked = easy.get_ref().upload.len().is_none() && !names("transfer-encoding") && !names("content-length");
    let more = chunked.then(|| Ok(b"Transfer-Encoding: chunked".to_vec()));
    set("headers", easy.http_headers(list(headers.iter().map(line).chain(more))?))
}

fn set_redirects(easy: &mut Handle, redirects: redirects::Reader<'_>) -> Result<(), Fault> {
    set("redirects", easy.follow_location(redirects.get_max() > 0))?;
    // To libcurl an answer to a question for credentials is one as well, so where none are followed there is no limit to set.
    if redirects.get_max() > 0 {
        set("redirects", easy.max_redirections(redirects.get_max().min(i32::MAX as u32)))?;
    }
    let mut keep = PostRedirections::new();
    keep.redirect_301(redirects.get_keep_post301());
    keep.redirect_302(redirects.get_keep_post302());
    keep.redirect_303(redirects.get_keep_post303());
    set("redirects", easy.post_redirections(&keep))?;
    set("redirects", easy.unrestricted_auth(redirects.get_auth_elsewhere()))?;
    set("referer", easy.autoreferer(redirects.get_auto_referer()))
}

fn set_tls(easy: &mut Handle, tls: tls::Reader<'_>) -> Result<(), Fault> {
    set("TLS", easy.ssl_verify_peer(!tls.get_insecure_peer()))?;
    set("TLS", easy.ssl_verify_host(!tls.get_insecure_host()))?;
    if let Some(pem) = bytes(tls.get_authorities())? {
        set("authorities", easy.ssl_cainfo_blob(pem))?;
    }
    if let Some(certificate) = bytes(tls.get_certificate())? {
        set("certificate", easy.ssl_cert_blob(certificate))?;
    }
    if let Some(kind) = given("the certificate's type", tls.get_certificate_type())? {
        set("certificate", easy.ssl_cert_type(kind))?;
    }
    if let Some(key) = bytes(tls.get_key())? {
        set("key", easy.ssl_key_blob(key))?;
    }
    if let Some(kind) = given("the key's type", tls.get_key_type())? {
        set("key", easy.ssl_key_type(kind))?;
    }
    if let Some(password) = given("the key's password", tls.get_key_password())? {
        set("key", easy.key_password(password))?;
    }
    let version = |version| match version {
        TlsVersion::Any => SslVersion::Default,
        TlsVersion::Tls10 => SslVersion::Tlsv10,
        TlsVersion::Tls11 => SslVersion::Tlsv11,
        TlsVersion::Tls12 => SslVersion::Tlsv12,
        TlsVersion::Tls13 => SslVersion::Tlsv13,
    };
    let (min, max) = (tls.get_min()?, tls.get_max()?);
    if (min, max) != (TlsVersion::Any, TlsVersion::Any) {
        set("TLS version", easy.ssl_min_max_version(version(min), version(max)))?;
    }
    if let Some(key) = given("the pinned key", tls.get_pinned_key())? {
        // Anything else would be the name of a file.
        if !key.split(';').all(|key| key.starts_with("sha256//")) {
            return Err(Fault::bad("a pinned key is `sha256//` and the key's digest in base64"));
        }
        set("pinned key", easy.pinned_public_key(key))?;
    }
    if let Some(ciphers) = given("the ciphers", tls.get_ciphers())? {
        set("ciphers", easy.ssl_cipher_list(ciphers))?;
    }
    set("TLS sessions", easy.ssl_sessionid_cache(!tls.get_no_session_reuse()))
}

/// libcurl's bits. Basic if none is named.
fn auth_bits(schemes: schemes::Reader<'_>) -> i64 {
    let bit = |wanted: bool, bit: u32| i64::from(wanted) << bit;
    let bits = bit(schemes.get_basic(), 0)
        | bit(schemes.get_digest(), 1)
        | bit(schemes.get_negotiate(), 2)
        | bit(schemes.get_ntlm(), 3)
        | bit(schemes.get_bearer(), 6);
    if bits == 0 { 1 } else { bits }
}

fn set_proxy(easy: &mut Handle, proxy: proxy::Reader<'_>) -> Result<(), Fault> {
    // An empty one keeps libcurl from looking into the environment.
    let url = plain("the proxy", proxy.get_url()?)?;
    set("proxy", easy.proxy(url))?;
    set("proxy", easy.noproxy(plain("the proxy's exceptions", proxy.get_no_proxy()?)?))?;
    if url.is_empty() {
        return Ok(());
    }
    if let Some(user) = given("the proxy's user", proxy.get_user())? {
        set("proxy user", easy.proxy_username(user))?;
    }
    if let Some(password) = given("the proxy's password", proxy.get_password())? {
        set("proxy password", easy.proxy_password(password))?;
    }
    set("proxy authentication", raw::set_number(easy, Number::ProxyAuth, auth_bits(proxy.get_auth()?)))?;
    set("proxy tunnel", easy.http_proxy_tunnel(proxy.get_tunnel()))?;
    if proxy.get_insecure() {
        set("proxy TLS", easy.proxy_ssl_verify_peer(false))?;
        set("proxy TLS", easy.proxy_ssl_verify_host(false))?;
    }
    if let Some(pem) = bytes(proxy.get_authorities())? {
        set("proxy authorities", easy.proxy_ssl_cainfo_blob(pem))?;
    }
    set("proxy headers", easy.proxy_headers(list(proxy.get_headers()?.iter().map(line))?))
}

fn set_version(easy: &mut Handle, version: HttpVersion) -> Result<(), Fault> {
    set(
        "HTTP version",
        match version {
            // HTTP/2 where TLS negotiates it.
            HttpVersion::Any | HttpVersion::Http2Tls => easy.http_version(Speaks::V2TLS).or(Ok(())),
            HttpVersion::Http10 => easy.http_version(Speaks::V10),
            HttpVersion::Http11 => easy.http_version(Speaks::V11),
            HttpVersion::Http2 => easy.http_version(Speaks::V2),
            HttpVersion::Http2PriorKnowledge => easy.http_version(Speaks::V2PriorKnowledge),
            HttpVersion::Http09 | HttpVersion::Http3 => return Err(Fault::bad("no version to ask for")),
        },
    )
}

fn set_auth(easy: &mut Handle, auth: auth::Reader<'_>) -> Result<(), Fault> {
    if !auth.get_present() {
        return Ok(());
    }
    if let Some(token) = given("the token", auth.get_bearer())? {
        set("token", raw::set_text(easy, Text::Bearer, token))?;
        return set("authentication", raw::set_number(easy, Number::HttpAuth, 1 << 6));
    }
    set("user", easy.username(plain("the user", auth.get_user()?)?))?;
    set("password", easy.password(plain("the password", auth.get_password()?)?))?;
    match given("the signature's provider", auth.get_sigv4())? {
        Some(provider) => set("signature", easy.aws_sigv4(provider)),
        None => set("authentication", raw::set_number(easy, Number::HttpAuth, auth_bits(auth.get_schemes()?))),
    }
}

fn set_places(easy: &mut Handle, request: request::Reader<'_>) -> Result<(), Fault> {
    let texts = |what: &str, texts: capnp::text_list::Reader<'_>| {
        let mut list = List::new();
        for text in texts.iter() {
            set(what, list.append(plain(what, text?)?))?;
        }
        Ok::<_, Fault>(list)
    };
    if request.has_resolve() {
        set("resolve", easy.resolve(texts("an address", request.get_resolve()?)?))?;
    }
    if request.has_connect_to() {
        set("connect to", easy.connect_to(texts("a place to connect to", request.get_connect_to()?)?))?;
    }
    if let Some(path) = given("the socket", request.get_unix_socket())? {
        set(
            "Unix socket",
            match path.strip_prefix('@') {
                Some(name) => easy.abstract_unix_socket(name.as_bytes()),
                None => easy.unix_socket(path),
            },
        )?;
    }
    if let Some(interface) = given("the interface", request.get_interface())? {
        set("interface", easy.interface(interface))?;
    }
    if request.get_local_port() > 0 {
        set("local port", easy.set_local_port(request.get_local_port()))?;
        set("local port", easy.local_port_range(request.get_local_ports().max(1)))?;
    }
    set(
        "address family",
        easy.ip_resolve(match request.get_family()? {
            Family::Any => IpResolve::Any,
            Family::V4 => IpResolve::V4,
            Family::V6 => IpResolve::V6,
        }),
    )
}

fn set_rest(easy: &mut Handle, request: request::Reader<'_>) -> Result<(), Fault> {
    set("progress", easy.progress(request.get_progress() > 0))?;
    set("trace", easy.verbose(request.get_trace()))?;
    set("connection", easy.fresh_connect(request.get_fresh_connection()))?;
    set("connection", easy.forbid_reuse(!request.get_keep_connection()))?;
    set("path", easy.path_as_is(request.get_path_as_is()))?;
    set("HTTP/0.9", easy.http_09_allowed(request.get_http09()))?;
    set("expect", easy.expect_100_timeout(Duration::from_millis(request.get_expect_ms().into())))?;
    if let Some(target) = given("the target", request.get_request_target())? {
        set("target", raw::set_text(easy, Text::RequestTarget, target))?;
    }
    set("content length", easy.ignore_content_length(request.get_ignore_content_length()))?;
    if request.get_if_modified() != 0 {
        let unmodified = request.get_if_unmodified();
        let condition = if unmodified { TimeCondition::IfUnmodifiedSince } else { TimeCondition::IfModifiedSince };
        set("condition", easy.time_condition(condition))?;
        set("condition", easy.time_value(request.get_if_modified()))?;
    }
    set("transfer decoding", easy.http_transfer_decoding(request.get_transfer_decoding()))?;
    if request.get_keep_alive_ms() > 0 {
        let every = Duration::from_millis(request.get_keep_alive_ms().into()).max(Duration::from_secs(1));
        set("keep-alive", easy.tcp_keepalive(true))?;
        set("keep-alive", easy.tcp_keepidle(every))?;
        set("keep-alive", easy.tcp_keepintvl(every))?;
    }
    set("no delay", easy.tcp_nodelay(true))?;
    // Many requests to one host share a connection where HTTP/2 lets them.
    set("multiplexing", easy.pipewait(true))?;
    // Large reads pay, even where libcurl hands on 16 KiB at a time.
    set("buffer", easy.buffer_size(512 << 10))
}
