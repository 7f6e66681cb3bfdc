//! Options that say how to get there: network, TLS, and the worker that does both.

use super::super::units;
use clap::Args;
use std::time::Duration;

/// The way there.
#[derive(Args, Debug)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArgs {
    /// The longest a transfer may take, with retries
    #[arg(short = 'm', long, value_name = "seconds", value_parser = units::seconds)]
    pub(crate) max_time: Option<Duration>,
    /// The longest that resolving, connecting and TLS may take
    #[arg(long, value_name = "seconds", value_parser = units::seconds)]
    pub(crate) connect_timeout: Option<Duration>,
    /// End transfers slower than this, in bytes a second, for -y seconds
    #[arg(short = 'Y', long, value_name = "speed", value_parser = units::bytes)]
    pub(crate) speed_limit: Option<u64>,
    /// How long a transfer may be slower than -Y
    #[arg(short = 'y', long, value_name = "seconds")]
    pub(crate) speed_time: Option<u32>,
    /// The most bytes a second, each way: `100k`, `1M`
    #[arg(long, value_name = "speed", value_parser = units::bytes)]
    pub(crate) limit_rate: Option<u64>,
    /// How often to try again after what may pass: no connection, a timeout, 408, 429, 500, 502, 503, 504
    ///
    /// Only what can be repeated without harm, and never once a byte of a body has come. After one second, two, four…, or
    /// what the server asks for.
    #[arg(long, value_name = "num")]
    pub(crate) retry: Option<u32>,
    /// How long to wait before each
    #[arg(long, value_name = "seconds", value_parser = units::seconds)]
    pub(crate) retry_delay: Option<Duration>,
    /// How long after the first no more are begun
    #[arg(long, value_name = "seconds", value_parser = units::seconds)]
    pub(crate) retry_max_time: Option<Duration>,
    /// A refused connection may pass as well (always so here)
    #[arg(long)]
    pub(crate) retry_connrefused: bool,
    /// Go through this proxy
    ///
    /// `[scheme://][user:password@]host[:port]`: http (by default), https, socks4, socks4a, socks5, socks5h. "" for none.
    #[arg(short = 'x', long, value_name = "proxy")]
    pub(crate) proxy: Option<String>,
    /// The proxy's user and password
    #[arg(short = 'U', long, value_name = "user:password")]
    pub(crate) proxy_user: Option<String>,
    /// Log in at the proxy by Basic
    #[arg(long)]
    pub(crate) proxy_basic: bool,
    /// Log in at the proxy by Digest
    #[arg(long)]
    pub(crate) proxy_digest: bool,
    /// Log in at the proxy by NTLM
    #[arg(long)]
    pub(crate) proxy_ntlm: bool,
    /// Log in at the proxy by Negotiate
    #[arg(long)]
    pub(crate) proxy_negotiate: bool,
    /// Log in at the proxy by what it asks for
    #[arg(long)]
    pub(crate) proxy_anyauth: bool,
    /// A header line for the proxy alone
    #[arg(long, value_name = "line")]
    pub(crate) proxy_header: Vec<String>,
    /// Do not check an https proxy's certificate
    #[arg(long)]
    pub(crate) proxy_insecure: bool,
    /// The authorities to believe about an https proxy
    #[arg(long, value_name = "file")]
    pub(crate) proxy_cacert: Option<String>,
    /// CONNECT through the proxy even for http
    #[arg(short = 'p', long)]
    pub(crate) proxytunnel: bool,
    /// Hosts to reach without the proxy, with commas; * for all
    #[arg(long, value_name = "hosts")]
    pub(crate) noproxy: Option<String>,
    /// A SOCKS4 proxy
    #[arg(long, value_name = "host[:port]")]
    pub(crate) socks4: Option<String>,
    /// A SOCKS4 proxy that resolves names
    #[arg(long, value_name = "host[:port]")]
    pub(crate) socks4a: Option<String>,
    /// A SOCKS5 proxy
    #[arg(long, value_name = "host[:port]")]
    pub(crate) socks5: Option<String>,
    /// A SOCKS5 proxy that resolves names
    #[arg(long, value_name = "host[:port]")]
    pub(crate) socks5_hostname: Option<String>,
    /// What a name resolves to: `host:port:address[,address]`
    #[arg(long, value_name = "host:port:address")]
    pub(crate) resolve: Vec<String>,
    /// Connect elsewhere: `host1:port1:host2:port2`
    #[arg(long, value_name = "h1:p1:h2:p2")]
    pub(crate) connect_to: Vec<String>,
    /// Connect to this Unix socket
    #[arg(long, value_name = "path")]
    pub(crate) unix_socket: Option<String>,
    /// Leave by this interface or address
    #[arg(long, value_name = "name")]
    pub(crate) interface: Option<String>,
    /// IPv4 alone
    #[arg(short = '4', long, overrides_with = "ipv6")]
    pub(crate) ipv4: bool,
    /// IPv6 alone
    #[arg(short = '6', long)]
    pub(crate) ipv6: bool,
    /// Leave by one of these ports: `1000` or `1000-1010`
    #[arg(long, value_name = "range")]
    pub(crate) local_port: Option<String>,
    /// Probe an idle connection this often
    #[arg(long, value_name = "seconds", value_parser = units::seconds)]
    pub(crate) keepalive_time: Option<Duration>,
    /// Do not probe idle connections
    #[arg(long)]
    pub(crate) no_keepalive: bool,
    /// HTTP/1.0
    #[arg(short = '0', long = "http1.0", overrides_with_all = ["http1_1", "http2", "http2_prior_knowledge"])]
    pub(crate) http1_0: bool,
    /// HTTP/1.1
    #[arg(long = "http1.1", overrides_with_all = ["http2", "http2_prior_knowledge"])]
    pub(crate) http1_1: bool,
    /// HTTP/2 where the server has it
    #[arg(long, overrides_with = "http2_prior_knowledge")]
    pub(crate) http2: bool,
    /// HTTP/2 without asking
    #[arg(long)]
    pub(crate) http2_prior_knowledge: bool,
    /// Accept answers without a head
    #[arg(long = "http0.9")]
    pub(crate) http0_9: bool,
    /// Send small packets at once (always so)
    #[arg(long)]
    pub(crate) tcp_nodelay: bool,
}

/// Who is believed.
#[derive(Args, Debug)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsArgs {
    /// Believe whoever answers
    #[arg(short = 'k', long)]
    pub(crate) insecure: bool,
    /// The authorities to believe, in PEM
    #[arg(long, value_name = "file")]
    pub(crate) cacert: Option<String>,
    /// The client's certificate, and its key's password
    #[arg(short = 'E', long, value_name = "file[:password]")]
    pub(crate) cert: Option<String>,
    /// PEM (by default), DER or P12
    #[arg(long, value_name = "type")]
    pub(crate) cert_type: Option<String>,
    /// The client's private key, if not in --cert
    #[arg(long, value_name = "file")]
    pub(crate) key: Option<String>,
    /// PEM (by default) or DER
    #[arg(long, value_name = "type")]
    pub(crate) key_type: Option<String>,
    /// The key's password
    #[arg(long, value_name = "phrase")]
    pub(crate) pass: Option<String>,
    /// The only public keys to accept: `sha256//BASE64;…`
    #[arg(long, value_name = "hashes")]
    pub(crate) pinnedpubkey: Option<String>,
    /// Cipher suites, as OpenSSL names them
    #[arg(long, value_name = "list")]
    pub(crate) ciphers: Option<String>,
    /// TLS 1.0 or later
    #[arg(short = '1', long, visible_alias = "tlsv1.0")]
    pub(crate) tlsv1: bool,
    /// TLS 1.1 or later
    #[arg(long = "tlsv1.1")]
    pub(crate) tlsv1_1: bool,
    /// TLS 1.2 or later
    #[arg(long = "tlsv1.2")]
    pub(crate) tlsv1_2: bool,
    /// TLS 1.3 or later
    #[arg(long = "tlsv1.3")]
    pub(crate) tlsv1_3: bool,
    /// The newest version to offer: 1.0 to 1.3
    #[arg(long, value_name = "version")]
    pub(crate) tls_max: Option<String>,
    /// A handshake for every connection
    #[arg(long)]
    pub(crate) no_sessionid: bool,
}

/// The process that does the work.
#[derive(Args, Debug)]
#[command(next_help_heading = "Worker")]
pub(crate) struct WorkerArgs {
    /// The worker to start, or the URI of one that runs: `shm:///run/user/1000/x/….handle`
    #[arg(long, value_name = "program | URI", env = "PROC_CURL_WORKER", hide_env_values = true)]
    pub(crate) worker: Option<String>,
    /// The oldest worker to accept, by its minor version
    #[arg(long, value_name = "version")]
    pub(crate) worker_min_version: Option<u32>,
}
