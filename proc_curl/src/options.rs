//! What a request can be told besides where it goes: plain values with their defaults. Knows neither the wire nor libcurl.

use std::net::IpAddr;
use std::time::Duration;

/// How long what may take. The shortest that applies always wins; nothing here extends anything else.
///
/// `None` is no limit of its own; a request without a total one can wait for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the beginning to the end, with all redirects and retries. 300 seconds unless told otherwise.
    pub total: Option<Duration>,
    /// For name, connection and TLS handshake. 30 seconds unless told otherwise.
    pub connect: Option<Duration>,
    /// From the request's end to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// Without a byte in either direction, while nobody on this side holds it up.
    pub idle: Option<Duration>,
    /// Less than so many bytes in a second, for so long (in whole seconds).
    pub low_speed: Option<(u32, Duration)>,
}

impl Default for Timeouts {
    fn default() -> Self {
        let (total, connect) = (Some(Duration::from_secs(300)), Some(Duration::from_secs(30)));
        Self { total, connect, first_byte: None, idle: None, low_speed: None }
    }
}

/// Which redirects are followed. None unless told otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirects {
    /// How many in a row; 0 follows none, and the answer is the redirect itself.
    pub max: u32,
    /// A POST stays a POST when redirected by 301; it becomes a GET otherwise, as browsers have it.
    pub keep_post_301: bool,
    /// As [`keep_post_301`](Self::keep_post_301), for 302.
    pub keep_post_302: bool,
    /// As [`keep_post_301`](Self::keep_post_301), for 303.
    pub keep_post_303: bool,
    /// Credentials go to other hosts as well. They do not otherwise.
    pub auth_elsewhere: bool,
    /// A redirected request says where it comes from (`Referer`).
    pub auto_referer: bool,
}

impl Redirects {
    /// Follows up to so many in a row.
    #[must_use]
    pub fn up_to(max: u32) -> Self {
        Self { max, ..Self::default() }
    }
}

/// What of TLS is not as usual. Certificates and keys are contents, never names of files: the worker opens none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whoever answers is believed, whatever its certificate says.
    pub insecure: bool,
    /// A trusted certificate is enough, whatever host it is for.
    pub any_host: bool,
    /// The authorities to believe instead of the worker's own, in PEM.
    pub authorities: Option<Vec<u8>>,
    /// The client's certificate.
    pub certificate: Option<Vec<u8>>,
    /// `PEM` unless said otherwise; `DER`, `P12`.
    pub certificate_type: Option<String>,
    /// The client's private key.
    pub key: Option<Vec<u8>>,
    /// `PEM` unless said otherwise; `DER`.
    pub key_type: Option<String>,
    /// What the key is encrypted with.
    pub key_password: Option<String>,
    /// The oldest version to accept.
    pub min: Option<TlsVersion>,
    /// The newest version to offer.
    pub max: Option<TlsVersion>,
    /// The only public keys to accept: curl's `sha256//BASE64;sha256//...`.
    pub pinned_key: Option<String>,
    /// Cipher suites, as OpenSSL lists them.
    pub ciphers: Option<String>,
    /// Every connection makes a handshake of its own.
    pub no_session_reuse: bool,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.0.
    V1_0,
    /// TLS 1.1.
    V1_1,
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// A proxy. The worker uses none that it was not told of: its environment says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// `http://`, `https://`, `socks4://`, `socks4a://`, `socks5://` or `socks5h://`, host and port; credentials may be in
    /// it.
    pub url: String,
    /// The user to log in as.
    pub user: Option<String>,
    /// That user's password.
    pub password: Option<String>,
    /// How it may log in. Basic if none is named.
    pub auth: Schemes,
    /// Hosts to be reached without it, separated by commas; `*` for all.
    pub no_proxy: Option<String>,
    /// CONNECT even for plain HTTP.
    pub tunnel: bool,
    /// An HTTPS proxy's certificate is not checked.
    pub insecure: bool,
    /// The authorities to believe about an HTTPS proxy, in PEM.
    pub authorities: Option<Vec<u8>>,
    /// Header lines for the proxy alone.
    pub headers: Vec<HeaderLine>,
}

impl Proxy {
    /// The proxy at this URL.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// What `http_proxy`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` in this process's environment say about a URL, as curl
    /// reads them.
    #[must_use]
    pub fn from_environment(url: &str) -> Option<Self> {
        let https = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        // `HTTP_PROXY` can be somebody's request header under CGI, so only its small form counts.
        let own: &[&str] = if https { &["https_proxy", "HTTPS_PROXY"] } else { &["http_proxy"] };
        let said =
            |names: &[&str]| names.iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty());
        let url = said(own).or_else(|| said(&["all_proxy", "ALL_PROXY"]))?;
        Some(Self { url, no_proxy: said(&["no_proxy", "NO_PROXY"]), ..Self::default() })
    }
}

/// Ways to log in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schemes {
    /// Basic: the password goes along with the request.
    pub basic: bool,
    /// Digest.
    pub digest: bool,
    /// Bearer: a token.
    pub bearer: bool,
    /// Negotiate, where the worker has it.
    pub negotiate: bool,
    /// NTLM, where the worker has it.
    pub ntlm: bool,
}

impl Schemes {
    /// Basic alone.
    pub const BASIC: Self = Self { basic: true, digest: false, bearer: false, negotiate: false, ntlm: false };
    /// Digest alone.
    pub const DIGEST: Self = Self { digest: true, basic: false, ..Self::BASIC };
    /// Whatever the server asks for.
    pub const ANY: Self = Self { basic: true, digest: true, bearer: false, negotiate: true, ntlm: true };
}

/// How a request says who it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Auth {
    /// A user and a password, by whichever of these the server asks for.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
        /// Those that may be used.
        schemes: Schemes,
    },
    /// An OAuth 2.0 token.
    Bearer(String),
    /// A signature of the request.
    SigV4 {
        /// libcurl's `provider1[:provider2[:region[:service]]]`, as in `aws:amz`.
        provider: String,
        /// The key's name.
        user: String,
        /// The secret key.
        password: String,
    },
}

/// A version of HTTP to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HttpVersion {
    /// HTTP/2 where TLS negotiates it, HTTP/1.1 otherwise.
    #[default]
    Any,
    /// HTTP/0.9, in answers only.
    Http09,
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2, over plain connections by an upgrade.
    Http2,
    /// HTTP/2 over TLS, else HTTP/1.1.
    Http2Tls,
    /// HTTP/2 without asking first.
    Http2PriorKnowledge,
    /// HTTP/3, in answers only.
    Http3,
}

/// Which addresses may be connected to, judged when a connection is made: whatever a name resolves to then, and whatever
/// a redirect leads to. Not to be had together with a proxy or a Unix socket, where the address is not seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    /// If there is something in it, only these.
    pub allow: Vec<Network>,
    /// Never these.
    pub deny: Vec<Network>,
}

impl AddressPolicy {
    /// Everything but what is not for everyone: loopback, private, link-local and shared networks (where clouds keep
    /// their metadata), multicast, reserved and documentation ranges, and IPv6 forms of them.
    #[must_use]
    pub fn public_only() -> Self {
        let deny = NOT_PUBLIC.iter().filter_map(|network| network.parse().ok()).collect();
        Self { allow: Vec::new(), deny }
    }

    /// Refuses one more.
    #[must_use]
    pub fn deny(mut self, network: Network) -> Self {
        self.deny.push(network);
        self
    }

    /// Lets in this and what else was let in so, and nothing else.
    #[must_use]
    pub fn allow(mut self, network: Network) -> Self {
        self.allow.push(network);
        self
    }

    /// Whether it refuses an address. IPv4 addresses written as IPv6 ones are judged as what they are.
    #[must_use]
    pub fn refuses(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let has = |networks: &[Network]| networks.iter().any(|network| network.contains(address));
        has(&self.deny) || (!self.allow.is_empty() && !has(&self.allow))
    }

    /// Whether it says anything at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

const NOT_PUBLIC: [&str; 25] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    "::/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "fc00::/7",
    "fe80::/9",
    "ff00::/8",
];

/// A network: an address and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                same(u128::from(ours.to_bits()) << 96, u128::from(theirs.to_bits()) << 96, self.bits)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => same(ours.to_bits(), theirs.to_bits(), self.bits),
            _ => false,
        }
    }
}

fn same(ours: u128, theirs: u128, bits: u8) -> bool {
    (ours ^ theirs).leading_zeros() >= u32::from(bits)
}

/// Text that is no network: neither `address/bits` nor an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no network: neither ADDRESS/BITS nor an address")]
pub struct BadNetwork(pub String);

impl std::str::FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let bad = || BadNetwork(text.to_owned());
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(all), str::parse).map_err(|_| bad())?;
        if bits > all { Err(bad()) } else { Ok(Self { address, bits }) }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// When and how often a request is made again: after failures that may pass (no connection, a timeout other than the
/// total one, 408, 429, 500, 502, 503, 504), if it is idempotent and nothing of an answer's body has been delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often at most; 0 never.
    pub times: u32,
    /// The pause before the first, doubled for each after it.
    pub backoff: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// What the server says about it (`Retry-After`) does not count.
    pub ignore_retry_after: bool,
    /// None begins after so long.
    pub within: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        let (backoff, backoff_max) = (Duration::from_secs(1), Duration::from_secs(60));
        Self { times: 0, backoff, backoff_max, ignore_retry_after: false, within: None }
    }
}

impl Retry {
    /// Up to so many times.
    #[must_use]
    pub fn times(times: u32) -> Self {
        Self { times, ..Self::default() }
    }
}

/// A line of a request's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderLine {
    /// Its name.
    pub name: String,
    /// What to send under it; `None` sends nothing, not even what libcurl would of its own accord.
    pub value: Option<Vec<u8>>,
}

impl HeaderLine {
    /// A line as curl's `-H` takes it: `Name: value`, `Name:` for nothing of this name, `Name;` for one without a value.
    /// `None` if it is none of these.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        if let Some((name, value)) = line.split_once(':') {
            let value = value.trim_matches([' ', '\t']);
            let value = (!value.is_empty()).then(|| value.as_bytes().to_vec());
            return Some(Self { name: name.trim_end().to_owned(), value });
        }
        let name = line.trim_end().strip_suffix(';')?;
        Some(Self { name: name.to_owned(), value: Some(Vec::new()) })
    }
}

/// Which kind of address to connect to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Whichever answers first.
    #[default]
    Any,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

/// The protocols that are allowed. Both unless told otherwise; the worker knows no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// HTTP without TLS.
    pub http: bool,
    /// HTTP over TLS.
    pub https: bool,
}

impl Default for Protocols {
    fn default() -> Self {
        Self { http: true, https: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_what_they_name() {
        let network: Network = "10.1.0.0/16".parse().expect("a network");
        assert!(network.contains([10, 1, 255, 1].into()));
        assert!(!network.contains([10, 2, 0, 1].into()));
        let all: Network = "::/0".parse().expect("a network");
        assert!(all.contains("2001:db8::1".parse().expect("an address")) && !all.contains([1, 2, 3, 4].into()));
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/-1", "::/129", "host", "10.0.0.0/"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_public_is_refused_in_every_form() {
        let policy = AddressPolicy::public_only();
        assert_eq!(policy.deny.len(), NOT_PUBLIC.len());
        let private = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1", "fec0::1"];
        for address in private {
            assert!(policy.refuses(address.parse().expect("an address")), "{address}");
        }
        for address in ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(!policy.refuses(address.parse().expect("an address")), "{address}");
        }
        let only = AddressPolicy::default().allow("127.0.0.0/8".parse().expect("a network"));
        assert!(!only.refuses([127, 0, 0, 9].into()) && only.refuses([8, 8, 8, 8].into()));
    }

    #[test]
    fn header_lines_are_curls() {
        let line = |text| HeaderLine::parse(text).map(|line| (line.name, line.value));
        assert_eq!(line("A: b"), Some(("A".into(), Some(b"b".to_vec()))));
        assert_eq!(line("A:"), Some(("A".into(), None)));
        assert_eq!(line("A;"), Some(("A".into(), Some(Vec::new()))));
        assert_eq!(line("A"), None);
    }
}
