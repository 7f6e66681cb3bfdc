//! What all transfers of a command line share, read once: files, passwords, options that belong together.

use crate::body::{self, Data};
use crate::cli::{Cli, FormArg, Line};
use crate::fault::{FAILED_INIT, Fault, SSL_CACERT_BADFILE, SSL_CERTPROBLEM};
use proc_curl::{
    AddressPolicy, Auth, Family, HeaderLine, HttpVersion, Protocols, Proxy, Redirects, Retry, Schemes, Timeouts, Tls,
    TlsVersion,
};
use std::time::{Duration, SystemTime};

/// A transfer without -m in which nothing moves for so long ends: none can last for ever.
const IDLE: Duration = Duration::from_secs(300);
/// As in curl.
const CONNECT: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) cli: Cli,
    pub(crate) data: Option<Data>,
    pub(crate) form: Vec<FormArg>,
    pub(crate) headers: Vec<HeaderLine>,
    /// What goes into every URL's query.
    pub(crate) query: String,
    pub(crate) timeouts: Timeouts,
    pub(crate) redirects: Redirects,
    pub(crate) tls: Tls,
    pub(crate) proxy: ProxyChoice,
    pub(crate) auth: Option<Auth>,
    pub(crate) version: HttpVersion,
    pub(crate) family: Family,
    pub(crate) retry: Retry,
    pub(crate) policy: AddressPolicy,
    pub(crate) protocols: Protocols,
    pub(crate) redirect_protocols: Protocols,
    pub(crate) local_ports: Option<(u16, u16)>,
    pub(crate) condition: Option<Condition>,
    /// Cookies to send as they are.
    pub(crate) cookie: Option<String>,
    /// Lines for the jar; `None` without a jar.
    pub(crate) jar: Option<Vec<String>>,
    pub(crate) write_out: Option<String>,
}

/// Which proxy.
#[derive(Debug)]
pub(crate) enum ProxyChoice {
    /// What the environment says for each URL.
    Environment(Box<Proxy>),
    None,
    This(Box<Proxy>),
}

/// If modified since, or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition {
    pub(crate) time: SystemTime,
    pub(crate) unmodified: bool,
}

impl Settings {
    /// # Errors
    /// A file that cannot be read, or options that do not make sense.
    pub(crate) fn read(line: Line) -> Result<Self, Fault> {
        let Line { cli, data, form, .. } = line;
        let data = body::data(&data)?;
        if data.is_some() && !form.is_empty() {
            return Err(Fault::new(FAILED_INIT, "-d and -F cannot go together"));
        }
        let mut query = cli.request.url_query.iter().map(|text| url_query(text)).collect::<Result<Vec<_>, _>>()?;
        let mut data = data;
        if cli.request.get {
            query.extend(data.take().map(|data| String::from_utf8_lossy(&data.bytes).into_owned()));
        }
        let (cookie, jar) = cookies(&cli)?;
        Ok(Self {
            headers: headers(&cli)?,
            query: query.join("&"),
            timeouts: timeouts(&cli),
            redirects: redirects(&cli),
            tls: tls(&cli)?,
            proxy: proxy(&cli)?,
            auth: auth(&cli)?,
            version: version(&cli),
            family: match (cli.connection.ipv4, cli.connection.ipv6) {
                (true, _) => Family::V4,
                (false, true) => Family::V6,
                (false, false) => Family::Any,
            },
            retry: retry(&cli),
            policy: policy(&cli),
            protocols: protocols(cli.request.proto.as_deref()),
            redirect_protocols: protocols(cli.request.proto_redir.as_deref()),
            local_ports: cli.connection.local_port.as_deref().map(local_ports).transpose()?,
            condition: cli.request.time_cond.as_deref().map(condition).transpose()?,
            write_out: cli.output.write_out.as_deref().map(format).transpose()?,
            cookie,
            jar,
            data,
            form,
            cli,
        })
    }

    /// Whether the command line has a header of this name already.
    pub(crate) fn has_header(&self, name: &str) -> bool {
        self.headers.iter().any(|line| line.name.eq_ignore_ascii_case(name))
    }
}

/// A file or the text itself, as -w has it.
fn format(text: &str) -> Result<String, Fault> {
    Ok(match text.strip_prefix('@') {
        Some(file) => String::from_utf8_lossy(&body::contents(file)?).into_owned(),
        None => text.to_owned(),
    })
}

fn headers(cli: &Cli) -> Result<Vec<HeaderLine>, Fault> {
    let mut lines = Vec::new();
    for text in &cli.request.header {
        match text.strip_prefix('@') {
            Some(file) => {
                let contents = body::contents(file)?;
                lines.extend(String::from_utf8_lossy(&contents).lines().filter_map(HeaderLine::parse));
            }
            // What is no header line is left out, as curl does.
            None => lines.extend(HeaderLine::parse(text)),
        }
    }
    Ok(lines)
}

/// `+name=x` is as it stands, anything else as --data-urlencode has it.
fn url_query(text: &str) -> Result<String, Fault> {
    text.strip_prefix('+').map_or_else(|| body::urlencoded(text), |text| Ok(text.to_owned()))
}

fn timeouts(cli: &Cli) -> Timeouts {
    let options = &cli.connection;
    let total = options.max_time.filter(|time| !time.is_zero());
    let slow = options.speed_limit.or(options.speed_time.map(|_| 1));
    let low_speed = slow.map(|speed| {
        (u32::try_from(speed).unwrap_or(u32::MAX), Duration::from_secs(options.speed_time.unwrap_or(30).into()))
    });
    Timeouts {
        total,
        connect: Some(options.connect_timeout.filter(|time| !time.is_zero()).unwrap_or(CONNECT)),
        idle: total.is_none().then_some(IDLE),
        low_speed,
        ..Timeouts::default()
    }
}

fn redirects(cli: &Cli) -> Redirects {
    let options = &cli.request;
    let max = match (options.location || options.location_trusted, options.max_redirs) {
        (false, _) => 0,
        (true, max) => u32::try_from(max).unwrap_or(u32::MAX),
    };
    // A method that was asked for by name stays.
    let keep = options.request.is_some();
    Redirects {
        max,
        keep_post_301: options.post301 || keep,
        keep_post_302: options.post302 || keep,
        keep_post_303: options.post303 || keep,
        auth_elsewhere: options.location_trusted,
        auto_referer: options.referer.as_deref().is_some_and(|text| text.ends_with(";auto")),
    }
}

fn tls(cli: &Cli) -> Result<Tls, Fault> {
    let options = &cli.tls;
    let file = |code: u32, name: &str| std::fs::read(name).map_err(|why| Fault::file(code, name, why));
    let (certificate, own_password) = match options.cert.as_deref().map(split_password) {
        Some((name, password)) => (Some(file(SSL_CERTPROBLEM, &name)?), password),
        None => (None, None),
    };
    let min = match options {
        _ if options.tlsv1_3 => Some(TlsVersion::V1_3),
        _ if options.tlsv1_2 => Some(TlsVersion::V1_2),
        _ if options.tlsv1_1 => Some(TlsVersion::V1_1),
        _ if options.tlsv1 => Some(TlsVersion::V1_0),
        _ => None,
    };
    let max = match options.tls_max.as_deref() {
        None | Some("default") => None,
        Some("1.0") => Some(TlsVersion::V1_0),
        Some("1.1") => Some(TlsVersion::V1_1),
        Some("1.2") => Some(TlsVersion::V1_2),
        Some("1.3") => Some(TlsVersion::V1_3),
        Some(other) => return Err(Fault::new(FAILED_INIT, format!("--tls-max: `{other}` is no version of TLS"))),
    };
    Ok(Tls {
        insecure: options.insecure,
        authorities: options.cacert.as_deref().map(|name| file(SSL_CACERT_BADFILE, name)).transpose()?,
        certificate,
        certificate_type: options.cert_type.clone(),
        key: options.key.as_deref().map(|name| file(SSL_CERTPROBLEM, name)).transpose()?,
        key_type: options.key_type.clone(),
        key_password: options.pass.clone().or(own_password),
        min,
        max,
        pinned_key: options.pinnedpubkey.clone(),
        ciphers: options.ciphers.clone(),
        no_session_reuse: options.no_sessionid,
        ..Tls::default()
    })
}

/// `file:password`, where `\:` belongs to the file's name.
fn split_password(text: &str) -> (String, Option<String>) {
    let mut name = String::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' if chars.as_str().starts_with(':') => name.extend(chars.next()),
            ':' => return (name, Some(chars.as_str().to_owned())),
            other => name.push(other),
        }
    }
    (name, None)
}

fn proxy(cli: &Cli) -> Result<ProxyChoice, Fault> {
    let options = &cli.connection;
    let socks = [
        ("socks4", &options.socks4),
        ("socks4a", &options.socks4a),
        ("socks5", &options.socks5),
        ("socks5h", &options.socks5_hostname),
    ];
    let socks = socks.into_iter().find_map(|(scheme, host)| Some(format!("{scheme}://{}", host.as_ref()?)));
    let (user, password) = match options.proxy_user.as_deref() {
        Some(text) => {
            let (user, password) = credentials(text, "proxy user")?;
            (Some(user), Some(password))
        }
        None => (None, None),
    };
    let mut auth = Schemes {
        basic: options.proxy_basic,
        digest: options.proxy_digest,
        ntlm: options.proxy_ntlm,
        negotiate: options.proxy_negotiate,
        ..Schemes::default()
    };
    if options.proxy_anyauth {
        auth = Schemes::ANY;
    }
    let authorities = options.proxy_cacert.as_deref();
    let authorities = authorities
        .map(|name| std::fs::read(name).map_err(|why| Fault::file(SSL_CACERT_BADFILE, name, why)))
        .transpose()?;
    let proxy = Proxy {
        user,
        password,
        auth,
        no_proxy: options.noproxy.clone(),
        tunnel: options.proxytunnel,
        insecure: options.proxy_insecure,
        authorities,
        headers: options.proxy_header.iter().filter_map(|line| HeaderLine::parse(line)).collect(),
        ..Proxy::default()
    };
    Ok(match options.proxy.as_ref().or(socks.as_ref()).map(String::as_str) {
        Some("") => ProxyChoice::None,
        Some(url) => ProxyChoice::This(Box::new(Proxy { url: url.to_owned(), ..proxy })),
        None => ProxyChoice::Environment(Box::new(proxy)),
    })
}

/// User and password; the latter is asked for where it is missing.
fn credentials(text: &str, whose: &str) -> Result<(String, String), Fault> {
    if let Some((user, password)) = text.split_once(':') {
        return Ok((user.to_owned(), password.to_owned()));
    }
    let prompt = format!("Enter {whose} password for user '{text}':");
    let password = rpassword::prompt_password(prompt).map_err(|why| Fault::file(FAILED_INIT, "the password", why))?;
    Ok((text.to_owned(), password))
}

fn auth(cli: &Cli) -> Result<Option<Auth>, Fault> {
    let options = &cli.request;
    if let Some(token) = &options.oauth2_bearer {
        return Ok(Some(Auth::Bearer(token.clone())));
    }
    let Some(text) = options.user.as_deref() else { return Ok(None) };
    let (user, password) = credentials(text, "host")?;
    if let Some(provider) = &options.aws_sigv4 {
        return Ok(Some(Auth::SigV4 { provider: provider.clone(), user, password }));
    }
    let named = Schemes {
        basic: options.basic,
        digest: options.digest,
        ntlm: options.ntlm,
        negotiate: options.negotiate,
        ..Schemes::default()
    };
    let schemes = match named {
        _ if options.anyauth => Schemes::ANY,
        named if named == Schemes::default() => Schemes::BASIC,
        named => named,
    };
    Ok(Some(Auth::Password { user, password, schemes }))
}

fn version(cli: &Cli) -> HttpVersion {
    let options = &cli.connection;
    match options {
        _ if options.http1_0 => HttpVersion::Http10,
        _ if options.http1_1 => HttpVersion::Http11,
        _ if options.http2_prior_knowledge => HttpVersion::Http2PriorKnowledge,
        _ if options.http2 => HttpVersion::Http2,
        _ => HttpVersion::Any,
    }
}

fn retry(cli: &Cli) -> Retry {
    let options = &cli.connection;
    let mut retry = Retry::times(options.retry.unwrap_or(0));
    if let Some(delay) = options.retry_delay.filter(|delay| !delay.is_zero()) {
        (retry.backoff, retry.backoff_max) = (delay, delay);
    } else {
        // curl's longest.
        retry.backoff_max = Duration::from_secs(600);
    }
    retry.within = options.retry_max_time.filter(|time| !time.is_zero());
    retry
}

fn policy(cli: &Cli) -> AddressPolicy {
    let options = &cli.request;
    let policy = if options.public_only { AddressPolicy::public_only() } else { AddressPolicy::default() };
    let policy = options.deny_net.iter().fold(policy, |policy, network| policy.deny(*network));
    options.allow_net.iter().fold(policy, |policy, network| policy.allow(*network))
}

/// curl's `=https,+http,-http`: signs say what a name does to those before, `=` begins anew.
fn protocols(text: Option<&str>) -> Protocols {
    let mut allowed = Protocols::default();
    for word in text.into_iter().flat_map(|text| text.split(',')).map(str::trim) {
        let (sign, name) = match word.chars().next() {
            Some(sign @ ('=' | '+' | '-')) => (sign, &word[1..]),
            // A name alone: with those before it, and these alone if it is the first.
            _ => ('+', word),
        };
        if sign == '=' || (text.is_some_and(|text| text.starts_with(word)) && !word.starts_with(['+', '-'])) {
            allowed = Protocols { http: false, https: false };
        }
        let on = sign != '-';
        let (http, https) = match name.to_ascii_lowercase().as_str() {
            "http" => (true, false),
            "https" => (false, true),
            "all" => (true, true),
            _ => (false, false),
        };
        allowed.http = if http { on } else { allowed.http };
        allowed.https = if https { on } else { allowed.https };
    }
    allowed
}

/// `1000` or `1000-1010`: the first, and how many.
fn local_ports(text: &str) -> Result<(u16, u16), Fault> {
    let bad = || Fault::new(FAILED_INIT, format!("--local-port: `{text}` is no range of ports"));
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
    let count = last.checked_sub(first).and_then(|span| span.checked_add(1)).ok_or_else(bad)?;
    Ok((first, count))
}

fn condition(text: &str) -> Result<Condition, Fault> {
    let (text, unmodified) = text.strip_prefix('-').map_or((text, false), |text| (text, true));
    let of_file = || std::fs::metadata(text).and_then(|metadata| metadata.modified()).ok();
    let time = httpdate::parse_http_date(text).ok().or_else(of_file);
    let bad = || Fault::new(FAILED_INIT, format!("-z: `{text}` is neither an HTTP date nor a file"));
    Ok(Condition { time: time.ok_or_else(bad)?, unmodified })
}

/// What -b says to send, and what it and -c say to keep.
fn cookies(cli: &Cli) -> Result<(Option<String>, Option<Vec<String>>), Fault> {
    let options = &cli.request;
    let (plain, files): (Vec<&String>, Vec<&String>) = options.cookie.iter().partition(|text| text.contains('='));
    let mut lines = Vec::new();
    for file in &files {
        // One that is not there, or has no name, only turns the jar on.
        let text = if file.is_empty() { Vec::new() } else { body::contents(file).unwrap_or_default() };
        let text = String::from_utf8_lossy(&text).into_owned();
        lines.extend(text.lines().filter(|line| is_cookie(line, options.junk_session_cookies)).map(str::to_owned));
    }
    let has_jar = !files.is_empty() || options.cookie_jar.is_some();
    let plain = (!plain.is_empty()).then(|| plain.into_iter().cloned().collect::<Vec<_>>().join(";"));
    Ok((plain, has_jar.then_some(lines)))
}

/// Whether a line of a cookie file is a cookie, and to be kept.
fn is_cookie(line: &str, no_session: bool) -> bool {
    let comment = line.starts_with('#') && !line.starts_with("#HttpOnly_");
    let of_session = line.split('\t').nth(4).is_some_and(|expires| expires == "0");
    let unwanted = comment || (no_session && of_session);
    !line.trim().is_empty() && !unwanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_curls() {
        let allowed = |text| {
            let protocols = protocols(Some(text));
            (protocols.http, protocols.https)
        };
        assert_eq!(allowed("=https"), (false, true));
        assert_eq!(allowed("-http"), (false, true));
        assert_eq!(allowed("http"), (true, false));
        assert_eq!(allowed("http,https"), (true, true));
        assert_eq!(allowed("=all,-https"), (true, false));
        assert_eq!(allowed("=ftp"), (false, false));
    }

    #[test]
    fn cookies_of_a_session_can_be_left_out() {
        let session = "h\tFALSE\t/\tFALSE\t0\ta\tb";
        let lasting = "#HttpOnly_h\tFALSE\t/\tFALSE\t2000000000\ta\tb";
        assert!(is_cookie(session, false) && !is_cookie(session, true) && is_cookie(lasting, true));
        assert!(!is_cookie("# comment", false) && !is_cookie("", false) && is_cookie("Set-Cookie: a=b", true));
    }

    #[test]
    fn names_keep_their_colons() {
        assert_eq!(split_password("a.pem:secret:x"), ("a.pem".into(), Some("secret:x".into())));
        assert_eq!(split_password("c\\:a.pem"), ("c:a.pem".into(), None));
        assert_eq!(local_ports("1000-1010"), Ok((1_000, 11)));
        assert!(local_ports("9-1").is_err() && local_ports("x").is_err());
    }
}
