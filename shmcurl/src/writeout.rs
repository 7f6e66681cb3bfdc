//! What -w says of a transfer: a format with variables. Pure.

use proc_curl::{Head, HttpVersion, Info};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Everything that is known of a transfer when it is over.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) method: String,
    pub(crate) url: String,
    /// Which of the command line's URLs it was, from 0.
    pub(crate) number: u64,
    pub(crate) file: Option<String>,
    pub(crate) heads: Vec<Head>,
    pub(crate) info: Info,
    pub(crate) exit: u32,
    pub(crate) error: Option<String>,
}

/// What a format adds up to, by where it goes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    fn to(&mut self, on_stderr: bool) -> &mut String {
        if on_stderr { &mut self.stderr } else { &mut self.stdout }
    }
}

pub(crate) fn say(format: &str, report: &Report) -> Said {
    let mut said = Said::default();
    let mut on_stderr = false;
    let mut rest = format;
    while let Some(char) = rest.chars().next() {
        let (text, length) = match char {
            '%' if rest.starts_with("%%") => ("%".to_owned(), 2),
            '%' if rest.starts_with("%{") || rest.starts_with("%header{") => match rest.find('}') {
                Some(end) => {
                    let name = &rest[rest.find('{').map_or(end, |at| at + 1)..end];
                    let text = match (rest.starts_with("%header{"), name) {
                        (true, name) => header(report, name),
                        (false, "stdout" | "stderr") => {
                            on_stderr = name == "stderr";
                            String::new()
                        }
                        // What follows is for failures.
                        (false, "onerror") if report.exit == 0 => return said,
                        (false, "onerror") => String::new(),
                        (false, name) => variable(report, name).map_or_else(|| format!("%{{{name}}}"), shown),
                    };
                    (text, end + 1)
                }
                None => ("%".to_owned(), 1),
            },
            '\\' => match rest[1..].chars().next() {
                Some('n') => ("\n".to_owned(), 2),
                Some('r') => ("\r".to_owned(), 2),
                Some('t') => ("\t".to_owned(), 2),
                Some(other) => (format!("\\{other}"), 1 + other.len_utf8()),
                None => ("\\".to_owned(), 1),
            },
            other => (other.to_string(), other.len_utf8()),
        };
        said.to(on_stderr).push_str(&text);
        rest = &rest[length..];
    }
    said
}

/// As text: strings without quotes, numbers as they are, nothing for nothing.
fn shown(value: Value) -> String {
    match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        // As JSON, a floating number has no fixed number of places.
        Value::Number(number) if number.is_f64() => format!("{:.6}", number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

/// The variables that %{json} lists as well.
const NAMES: [&str; 39] = [
    "content_type",
    "errormsg",
    "exitcode",
    "filename_effective",
    "http_code",
    "http_connect",
    "http_version",
    "local_ip",
    "local_port",
    "method",
    "num_connects",
    "num_headers",
    "num_redirects",
    "num_retries",
    "redirect_url",
    "referer",
    "remote_ip",
    "remote_port",
    "response_code",
    "scheme",
    "size_delivered",
    "size_download",
    "size_header",
    "size_request",
    "size_upload",
    "speed_download",
    "speed_upload",
    "ssl_verify_result",
    "time_appconnect",
    "time_connect",
    "time_namelookup",
    "time_pretransfer",
    "time_redirect",
    "time_starttransfer",
    "time_total",
    "url",
    "url_effective",
    "urlnum",
    "curl_version",
];

fn variable(report: &Report, name: &str) -> Option<Value> {
    let info = &report.info;
    let seconds = |time: Duration| json!(time.as_secs_f64());
    let optional = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    Some(match name {
        "content_type" => optional(&info.content_type),
        "curl_version" => json!(concat!("shmcurl/", env!("CARGO_PKG_VERSION"))),
        "errormsg" => json!(report.error),
        "exitcode" => json!(report.exit),
        "filename_effective" => json!(report.file),
        "header_json" => json(&headers(report)),
        "http_code" | "response_code" => three(status(report)),
        "http_connect" => three(info.connect_status),
        "http_version" => json!(version(report)),
        "json" => json(&Value::Object(
            NAMES.iter().filter_map(|name| Some(((*name).to_owned(), for_json(report, name)?))).collect(),
        )),
        "local_ip" => json!(info.local_address),
        "local_port" => json!(info.local_port),
        "method" => json!(report.method),
        "num_connects" => json!(info.connections),
        "num_headers" => json!(report.heads.last().map_or(0, |head| head.headers.len())),
        "num_redirects" => json!(info.redirects),
        "num_retries" => json!(info.retries),
        "redirect_url" => optional(&info.redirect_url),
        "referer" => Value::Null,
        "remote_ip" => json!(info.remote_address),
        "remote_port" => json!(info.remote_port),
        "scheme" => json!(scheme(if info.url.is_empty() { &report.url } else { &info.url })),
        "size_delivered" => json!(info.delivered),
        "size_download" => json!(info.received),
        "size_header" => json!(info.head_size),
        "size_request" => json!(info.request_size),
        "size_upload" => json!(info.sent),
        "speed_download" => json!(speed(info.received, info.total)),
        "speed_upload" => json!(speed(info.sent, info.total)),
        // A certificate that is not in order is a failure of its own here.
        "ssl_verify_result" => json!(0),
        "time_appconnect" => seconds(info.tls_done),
        "time_connect" => seconds(info.connect),
        "time_namelookup" => seconds(info.name_lookup),
        "time_pretransfer" => seconds(info.pre_transfer),
        "time_redirect" => seconds(info.redirecting),
        "time_starttransfer" => seconds(info.start_transfer),
        "time_total" => seconds(info.total),
        "url" => json!(report.url),
        "url_effective" => json!(if info.url.is_empty() { &report.url } else { &info.url }),
        "urlnum" => json!(report.number),
        _ => return None,
    })
}

/// Where the two differ, a number rather than text.
fn for_json(report: &Report, name: &str) -> Option<Value> {
    match name {
        "http_code" | "response_code" => Some(json!(status(report))),
        "http_connect" => Some(json!(report.info.connect_status)),
        name => variable(report, name),
    }
}

fn json(value: &Value) -> Value {
    Value::String(value.to_string())
}

fn status(report: &Report) -> u16 {
    match report.info.status {
        0 => report.heads.last().map_or(0, |head| head.status),
        status => status,
    }
}

/// A status in three places, as curl says it.
fn three(status: u16) -> Value {
    json!(format!("{status:03}"))
}

fn version(report: &Report) -> &'static str {
    match report.heads.last().map_or(report.info.version, |head| head.version) {
        HttpVersion::Http09 => "0.9",
        HttpVersion::Http10 => "1.0",
        HttpVersion::Http11 => "1.1",
        HttpVersion::Http2 | HttpVersion::Http2Tls | HttpVersion::Http2PriorKnowledge => "2",
        HttpVersion::Http3 => "3",
        _ => "0",
    }
}

fn scheme(url: &str) -> String {
    url.split_once("://").map_or_else(String::new, |(scheme, _)| scheme.to_ascii_lowercase())
}

/// Bytes in a second.
pub(crate) fn speed(bytes: u64, time: Duration) -> u64 {
    let micros = time.as_micros().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000 / micros).unwrap_or(u64::MAX)
}

fn header(report: &Report, name: &str) -> String {
    let first = report.heads.last().and_then(|head| head.headers.all(name).next());
    first.map_or_else(String::new, |value| String::from_utf8_lossy(value).into_owned())
}

/// Names in small letters, each with all of its values.
fn headers(report: &Report) -> Value {
    let mut all = Map::new();
    for (name, value) in report.heads.last().into_iter().flat_map(|head| head.headers.iter()) {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let value = json!(String::from_utf8_lossy(value));
        match all.entry(name).or_insert_with(|| json!([])) {
            Value::Array(values) => values.push(value),
            _ => unreachable!("only lists are put in"),
        }
    }
    Value::Object(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut info = Info::default();
        (info.status, info.received, info.total) = (206, 1_000, Duration::from_millis(500));
        info.url = "HTTPS://h/x".into();
        Report { method: "GET".into(), url: "https://h/".into(), info, ..Report::default() }
    }

    fn stdout(format: &str) -> String {
        say(format, &report()).stdout
    }

    #[test]
    fn variables_are_curls() {
        assert_eq!(stdout("%{http_code} %{size_download} %{speed_download}\\n"), "206 1000 2000\n");
        assert_eq!(stdout("%{time_total} %{scheme} %{num_connects}"), "0.500000 https 0");
        assert_eq!(stdout("100%% %{nonsense} %x \\q %{open"), "100% %{nonsense} %x \\q %{open");
        assert_eq!(stdout("%{content_type}|%header{x-none}|%{http_connect}"), "||000");
    }

    #[test]
    fn parts_go_elsewhere_or_nowhere() {
        let said = say("a%{stderr}b%{stdout}c%{onerror}d", &report());
        assert_eq!(said, Said { stdout: "ac".into(), stderr: "b".into() });
        let failed = Report { exit: 7, error: Some("no".into()), ..report() };
        assert_eq!(say("%{onerror}%{exitcode} %{errormsg}", &failed).stdout, "7 no");
    }

    #[test]
    fn json_is_json() {
        let value: Value = serde_json::from_str(&stdout("%{json}")).expect("JSON");
        assert_eq!((&value["http_code"], &value["url"]), (&json!(206), &json!("https://h/")));
        assert_eq!(value.as_object().map(Map::len), Some(NAMES.len()));
        assert_eq!(stdout("%{header_json}"), "{}");
    }
}
