//! Web servers and proxies on loopback that HTTP clients are tested against: HTTP/1.1 and HTTP/2, with TLS whose
//! certificates are good, expired, of another host, of nobody or to be shown by both sides; servers that break the rules of
//! HTTP; proxies for HTTP and SOCKS5. Everything listens on 127.0.0.1, at ports the kernel chooses.
//!
//! What each path answers is said in `answers.rs`, and of servers that break rules in `raw.rs`.
//!
//! ```
//! let server = curl_test_server::TestServer::start();
//! assert!(server.url("/echo").starts_with("http://127.0.0.1:"));
//! assert_eq!(server.hits("/echo"), 0);
//! ```

#![forbid(unsafe_code)]

mod answers;
mod auth;
mod body;
pub mod pattern;
mod proxy;
mod raw;
mod serve;
mod socks;
mod state;
mod tls;
mod worker;

use self::state::State;
pub use self::state::Upload;
use self::tls::Authority;
pub use self::worker::{children, lives, nightly, resident, resident_at_most, ticks, worker};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Runtime;

/// What all proxies and guarded paths that take one user take: name and password.
pub const USER: (&str, &str) = ("user", "secret");

/// Where each server listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// HTTP/1.1, and HTTP/2 for clients that begin with it.
    pub http: SocketAddr,
    /// HTTP/2 and HTTP/1.1 over TLS, as `localhost`, `127.0.0.1` and `test.example`.
    pub https: SocketAddr,
    /// HTTP/1.1 over TLS.
    pub https1: SocketAddr,
    /// Its certificate is past.
    pub expired: SocketAddr,
    /// Its certificate is `elsewhere.example`'s.
    pub wrong_host: SocketAddr,
    /// Its certificate is signed by itself.
    pub self_signed: SocketAddr,
    /// Lets in only clients with a certificate of the authority.
    pub mutual: SocketAddr,
    /// Breaks the rules of HTTP.
    pub raw: SocketAddr,
    /// Accepts connections and says nothing.
    pub silent: SocketAddr,
    /// Completes no connection: its backlog is full.
    pub full: SocketAddr,
    /// Nobody listens.
    pub closed: SocketAddr,
    /// A proxy for plain requests and `CONNECT`.
    pub proxy: SocketAddr,
    /// The same, for [`USER`] only.
    pub proxy_auth: SocketAddr,
    /// The same over TLS, as `localhost`.
    pub proxy_tls: SocketAddr,
    /// SOCKS5.
    pub socks: SocketAddr,
    /// The same, for [`USER`] only.
    pub socks_auth: SocketAddr,
}

/// The servers, until dropped.
pub struct TestServer {
    /// Where they listen.
    pub at: Addresses,
    state: Arc<State>,
    authority: Authority,
    unix: PathBuf,
    // Fields below live as long as the servers.
    _filling: Vec<TcpStream>,
    _dir: tempfile::TempDir,
    runtime: Option<Runtime>,
}

impl TestServer {
    /// Starts them on two threads of their own.
    ///
    /// # Panics
    /// If loopback, memory or threads cannot be had.
    pub fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let _inside = runtime.enter();
        let state = Arc::new(State::default());
        let authority = Authority::new();
        let tls = |identity, http2, clients| Some(authority.acceptor(identity, http2, clients));
        let dir = tempfile::tempdir().expect("directory");
        let unix = dir.path().join("http.sock");
        serve::unix(&unix, &state);
        let (full, filling) = serve::full();
        let at = Addresses {
            http: serve::web(&state, None),
            https: serve::web(&state, tls(&authority.good, true, false)),
            https1: serve::web(&state, tls(&authority.good, false, false)),
            expired: serve::web(&state, tls(&authority.expired, true, false)),
            wrong_host: serve::web(&state, tls(&authority.wrong_host, true, false)),
            self_signed: serve::web(&state, tls(&authority.self_signed, true, false)),
            mutual: serve::web(&state, tls(&authority.good, true, true)),
            raw: serve::raw(&state),
            silent: serve::silent(&state),
            full,
            closed: serve::closed(),
            proxy: proxy::start(&state, None, None),
            proxy_auth: proxy::start(&state, Some(USER), None),
            proxy_tls: proxy::start(&state, None, tls(&authority.good, false, false)),
            socks: socks::start(&state, None),
            socks_auth: socks::start(&state, Some(USER)),
        };
        drop(_inside);
        Self { at, state, authority, unix, _filling: filling, _dir: dir, runtime: Some(runtime) }
    }

    /// `path` at the plain web server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at.http)
    }

    /// `path` at the web server with TLS, by name.
    pub fn tls(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.at.https.port())
    }

    /// `path` at the server that breaks rules.
    pub fn raw(&self, path: &str) -> String {
        format!("http://{}{path}", self.at.raw)
    }

    /// A Unix socket at which the plain web server listens too.
    pub fn unix(&self) -> &Path {
        &self.unix
    }

    /// The authority's certificate, in PEM.
    pub fn authority(&self) -> &str {
        &self.authority.pem
    }

    /// A client's certificate and its key, in PEM.
    pub fn client(&self) -> (String, String) {
        self.authority.client.pem()
    }

    /// How many requests for `path`, without its query, the web servers have seen.
    pub fn hits(&self, path: &str) -> u64 {
        self.state.hits(path)
    }

    /// Waits until there were `count` requests for `path`; says whether there were.
    pub fn wait_for_hits(&self, path: &str, count: u64, limit: Duration) -> bool {
        self.state.wait_for_hits(path, count, limit)
    }

    /// How many connections there have been to the servers that are no proxies.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// How many of them are still there.
    pub fn open(&self) -> u64 {
        self.state.open.load(Ordering::Relaxed)
    }

    /// What came in at `/upload`, in the order it ended.
    pub fn uploads(&self) -> Vec<Upload> {
        self.state.uploads()
    }

    /// What proxies were asked for: `http GET URL`, `http CONNECT HOST:PORT`, `socks HOST:PORT`.
    pub fn asked_of_proxies(&self) -> Vec<String> {
        self.state.all_asked()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // What hangs by intention is not waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
