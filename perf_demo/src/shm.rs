//! strait: the two techniques that differ only in whether the server is believed.

use crate::cache_capnp::cache;
use crate::classic::requested;
use crate::cli::WaitMode;
use crate::control::Way;
use crate::payload::Expected;
use crate::stop::{OnStop, Stop};
use crate::store::Store;
use std::path::Path;
use std::time::{Duration, Instant};
use strait::{Channel, ClientApp, Received, ServerApp, Session, SessionServer, Trust, Wait};

/// Longer than any round can take.
const TIMEOUT: Duration = Duration::from_secs(60);

const CHANNEL: &str = "cache";

/// The server app as both halves describe it.
pub(crate) fn server_app(dir: &Path) -> ServerApp {
    ServerApp::new("perf_demo").run_dir(dir).channel::<cache::Owned>(CHANNEL)
}

/// The client app of a way, which is let in with the trust that it has in the server.
pub(crate) fn client_app(way: Way) -> (ClientApp, Trust) {
    let trust = match way {
        // SAFETY: the other half is this very program, which writes to no message after sending it.
        Way::InPlace => unsafe { Trust::in_place() },
        Way::Snapshot | Way::Stream | Way::Echo => Trust::snapshot(),
    };
    let name = if way == Way::InPlace { "perf_demo-shm" } else { "perf_demo-snapshot" };
    (ClientApp::new(name).trust(trust), trust)
}

/// A session with the channel that requests go through.
pub(crate) struct Mount {
    /// Before the session: a channel keeps it.
    channel: Channel<cache::Owned>,
    _session: Session,
    _on_stop: OnStop,
}

impl Mount {
    /// The client's.
    pub(crate) fn connect(way: Way, dir: &Path, stop: &Stop) -> anyhow::Result<Self> {
        let session = client_app(way).0.connect(&server_app(dir))?;
        let channel = session.open_channel(CHANNEL, TIMEOUT)?;
        Ok(Self::new(session, channel, stop))
    }

    /// The server's.
    pub(crate) fn accept(sessions: &SessionServer, stop: &Stop) -> anyhow::Result<Self> {
        let session = sessions.accept_timeout(TIMEOUT)?;
        let channel = session.accept_channel_timeout(TIMEOUT)?;
        Ok(Self::new(session, channel, stop))
    }

    fn new(session: Session, channel: Channel<cache::Owned>, stop: &Stop) -> Self {
        let closes = session.clone();
        let on_stop = stop.on_stop(move || closes.close());
        Self { channel, _session: session, _on_stop: on_stop }
    }

    pub(crate) fn settle(&mut self, wait: WaitMode) {
        self.channel.set_wait(match wait {
            WaitMode::Spin => Wait::Spin,
            WaitMode::Adaptive => Wait::Adaptive,
            WaitMode::Park => Wait::Park,
        });
    }

    /// How often it slept, and how often it received.
    pub(crate) fn sleeps(&self) -> (u64, u64) {
        let stats = self.channel.wait_stats();
        (stats.sleeps, stats.receives)
    }

    /// The client's half of a round: its time, and whether the ends were right.
    #[inline]
    pub(crate) fn ask(&mut self, file: &Expected) -> anyhow::Result<(Duration, bool)> {
        let start = Instant::now();
        let answer = self.exchange(file)?;
        let right = file.ends_match(answer.get()?)?;
        Ok((start.elapsed(), right))
    }

    /// Asks for a file.
    #[inline]
    pub(crate) fn exchange(&mut self, file: &Expected) -> anyhow::Result<Received<cache::Owned>> {
        let mut request = self.channel.create_msg_with_capacity(REQUEST + file.name.len());
        request.init_root().init_get_cache_req().set_file_name(&file.name);
        Ok(self.channel.request(&request.freeze()?, TIMEOUT)?)
    }

    /// The server's half of a round.
    #[inline]
    pub(crate) fn serve(&mut self, store: &Store) -> anyhow::Result<()> {
        let request = self.channel.recv()?;
        let answer = store.answer(requested(request.get()?)?)?;
        self.channel.reply(&request, &answer)?;
        Ok(())
    }
}

/// What a request takes besides the name.
const REQUEST: usize = 64;
