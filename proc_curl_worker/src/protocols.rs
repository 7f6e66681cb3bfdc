//! `--protocols`: what this worker has, for whoever is about to start it. Touches no network.

use crate::harden;
use crate::settings::{MINOR, Settings};
use proc_curl::uri::{Format, Transport};
use serde_json::{Map, Value, json};
use std::io::Write;

/// Writes to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// How fast a transport is beside the others: thousands of round trips a second, as `--measure` found them in a release build
/// (the median of three), each in the fastest format it carries.
fn transport_rate(transport: Transport) -> u32 {
    match transport {
        Transport::Shm => 46,
        Transport::Unix | Transport::Io => 19,
        Transport::Tcp => 26,
        _ => 1,
    }
}

/// The same for a format: in shared memory where it is one of handles, else over a Unix socket.
fn format_rate(format: Format) -> u32 {
    match format {
        Format::Handle => 46,
        Format::Capnp => 19,
        Format::JsonRpc => 15,
        _ => 1,
    }
}

/// What this kernel lets a worker give up, tried in this process, which has nothing more to do but print.
fn sandbox(settings: &Settings) -> Value {
    let (landlock, seccomp) = (harden::landlock(settings), harden::seccomp(settings));
    json!({ "landlock": landlock.name(), "seccomp": seccomp.name() })
}

/// One strict JSON object and a line's end.
pub(crate) fn json(settings: &Settings) -> String {
    let settings = &settings.suited_to_libcurl();
    let transport = |transport: &Transport| {
        let caps = json!({
            "fds": *transport == Transport::Shm,
            "zeroCopy": *transport == Transport::Shm,
            "streaming": matches!(transport, Transport::Shm | Transport::Unix),
        });
        (transport.name().to_owned(), json!({ "rate": transport_rate(*transport), "caps": caps }))
    };
    let served = Transport::ALL.iter().filter(|transport| settings.tcp || **transport != Transport::Tcp);
    let transports: Map<String, Value> = served.map(transport).collect();
    let format = |format: &Format| (format.name().to_owned(), json!({ "rate": format_rate(*format) }));
    let formats: Map<String, Value> = Format::ALL.iter().map(format).collect();
    let version = curl::Version::get();
    let protocols: Vec<&str> = version.protocols().filter(|name| matches!(*name, "http" | "https")).collect();
    let all = json!({
        "transports": transports,
        "formats": formats,
        "version": MINOR,
        "curl": {
            "version": version.version(),
            "protocols": protocols,
            "tls": version.ssl_version(),
            "features": {
                "tls": version.feature_ssl(),
                "http2": version.feature_http2(),
                "gzip": version.feature_libz(),
                "brotli": version.feature_brotli(),
                "zstd": version.feature_zstd(),
                "idn": version.feature_idn(),
                "ipv6": version.feature_ipv6(),
                "negotiate": version.feature_spnego(),
                "ntlm": version.feature_ntlm(),
                "asyncDns": version.feature_async_dns(),
            },
        },
        "limits": { "active": settings.limits.active, "bySelect": settings.limited_by_select },
        "sandbox": sandbox(settings),
    });
    format!("{all:#}\n")
}
