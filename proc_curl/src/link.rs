//! A session with a worker, and the channels in it that requests share.

use crate::client::ClientBuilder;
use crate::error::{Error, LaunchError};
use crate::launch::{self, Worker};
use crate::proc_curl_capnp::curl;
use crate::uri::{Place, Transport, Uri};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use parking_lot::Mutex;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use strait::{Backing, ClientApp, Ended, Receiver, Sender, ServerApp, Session};

/// What the channels are called.
const CHANNEL: &str = "curl";
/// What a client calls itself.
const CLIENT: &str = "procCurl";
/// What a worker calls itself to whoever started it.
const WORKER: &str = "procCurlI";
/// Requests in one channel. It keeps 4096 messages for them, and a worker has no more than sixteen under way for each.
const SHARED_BY: usize = 240;
/// How long a worker has for what it does by itself at once.
pub(crate) const PROMPT: Duration = Duration::from_secs(10);

/// A session in use.
pub(crate) struct Link {
    pub(crate) session: Session,
    pub(crate) worker: Option<Arc<Worker>>,
    lines: Mutex<Vec<Arc<Line>>>,
}

/// A channel, which requests share.
pub(crate) struct Line {
    pub(crate) sender: Sender<curl::Owned>,
    /// What comes there is nobody's.
    _receiver: Mutex<Receiver<curl::Owned>>,
    under_way: AtomicUsize,
}

/// A request's place in a channel.
pub(crate) struct Seat(Arc<Line>);

impl Seat {
    pub(crate) fn sender(&self) -> &Sender<curl::Owned> {
        &self.0.sender
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The app that all sessions of a client belong to, so that they share an arena.
pub(crate) fn app(config: &ClientBuilder, transport: Transport) -> ClientApp {
    let backing = if transport == Transport::Shm { Backing::Memfd } else { Backing::Heap };
    ClientApp::new(CLIENT)
        .channel::<curl::Owned>(CHANNEL)
        .trust(config.trust)
        .timeout(config.patience())
        .backing(backing)
}

impl Link {
    /// A session with a worker that is started for it.
    pub(crate) fn start(
        config: &ClientBuilder,
        app: &ClientApp,
        program: &Path,
        uri: &Uri,
    ) -> Result<Self, LaunchError> {
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let (ours, theirs) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC).map_err(io::Error::from)?;
        let worker = launch::spawn(program, uri, theirs, config)?;
        match app.connect_over(ours, &ServerApp::new(WORKER)) {
            Ok(session) => Ok(Self::new(session, Some(worker))),
            // The socket is closed by now, so the worker ends, if it has not.
            Err(source) => Err(match worker.exit(Duration::from_secs(1)) {
                Some(exit) if !exit.success() => LaunchError::Exited { exit, stderr: worker.stderr() },
                _ => LaunchError::LogIn { source, stderr: worker.stderr() },
            }),
        }
    }

    /// A session with a worker that runs already.
    pub(crate) fn attach(app: &ClientApp, uri: &Uri) -> Result<Self, LaunchError> {
        let Place::Dir(dir) = &uri.place else {
            let why = "only a worker that has a directory can be attached to";
            return Err(crate::uri::BadUri { uri: uri.to_string(), why }.into());
        };
        let server = ServerApp::new(uri.session.clone()).run_dir(dir);
        let log_in = |source| LaunchError::LogIn { source, stderr: String::new() };
        Ok(Self::new(app.connect(&server).map_err(log_in)?, None))
    }

    fn new(session: Session, worker: Option<Arc<Worker>>) -> Self {
        Self { session, worker, lines: Mutex::default() }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.session.end().is_some()
    }

    /// A place for a request, in a channel that has one.
    pub(crate) fn seat(&self) -> Result<Seat, LaunchError> {
        let mut lines = self.lines.lock();
        let free = lines.iter().find(|line| line.under_way.load(Ordering::Relaxed) < SHARED_BY);
        let line = match free {
            Some(line) => line.clone(),
            None => {
                let channel = self.session.open_channel::<curl::Owned>(CHANNEL, PROMPT)?;
                let (sender, receiver) = channel.split();
                let line = Line { sender, _receiver: Mutex::new(receiver), under_way: AtomicUsize::new(0) };
                lines.push(Arc::new(line));
                lines.last().cloned().ok_or_else(|| io::Error::other("no channel"))?
            }
        };
        // Under the lock of `lines`, and it is only ever lowered otherwise.
        line.under_way.fetch_add(1, Ordering::Relaxed);
        Ok(Seat(line))
    }

    /// What to say of a request that ended with the session, `bytes` into its body.
    pub(crate) fn over(&self, cause: Ended, bytes: u64) -> Error {
        match cause {
            Ended::ForkedProcess => Error::ForkedProcess,
            Ended::PeerMisbehaved(broken) => Error::WorkerMisbehaved { what: broken.to_string() },
            Ended::Accused => Error::WorkerMisbehaved { what: "it says that this side broke the protocol".into() },
            _ => {
                let exit = self.worker.as_ref().and_then(|worker| worker.exit(Duration::from_secs(1)));
                let stderr = self.worker.as_ref().map(|worker| worker.stderr()).unwrap_or_default();
                Error::WorkerDied { exit, stderr, bytes }
            }
        }
    }
}
