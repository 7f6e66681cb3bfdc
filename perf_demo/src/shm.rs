//! strait: the two techniques that differ only in whether the server is believed.

use crate::cache_capnp::cache;
use crate::classic::requested;
use crate::cli::WaitMode;
use crate::control::Way;
use crate::payload::Expected;
use crate::store::Store;
use anyhow::Context;
use std::path::Path;
use std::time::{Duration, Instant};
use strait::{Channel, ClientApp, Received, ServerApp, Session, Trust, Wait};

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
    pub(crate) session: Session,
    channel: Option<Channel<cache::Owned>>,
}

impl Mount {
    pub(crate) fn new(session: Session) -> Self {
        Self { session, channel: None }
    }

    /// Closes the channel, and with it frees the buffer that copies were made in.
    pub(crate) fn release(&mut self) {
        self.channel = None;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.channel.is_some()
    }

    /// The client opens a channel.
    pub(crate) fn open(&mut self) -> anyhow::Result<()> {
        self.release();
        self.channel = Some(self.session.open_channel(CHANNEL, TIMEOUT)?);
        Ok(())
    }

    /// The server accepts it.
    pub(crate) fn accept(&mut self) -> anyhow::Result<()> {
        self.release();
        self.channel = Some(self.session.accept_channel_timeout(TIMEOUT)?);
        Ok(())
    }

    pub(crate) fn settle(&mut self, wait: WaitMode) {
        if let Some(channel) = &mut self.channel {
            channel.set_wait(match wait {
                WaitMode::Spin => Wait::Spin,
                WaitMode::Adaptive => Wait::Adaptive,
                WaitMode::Park => Wait::Park,
            });
        }
    }

    /// How often it slept, and how often it received.
    pub(crate) fn sleeps(&self) -> (u64, u64) {
        self.channel.as_ref().map_or((0, 0), |channel| {
            let stats = channel.wait_stats();
            (stats.sleeps, stats.receives)
        })
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
        let channel = self.channel.as_mut().context("no channel is open")?;
        let mut request = channel.create_msg_with_capacity(REQUEST + file.name.len());
        request.init_root().init_get_cache_req().set_file_name(&file.name);
        Ok(channel.request(&request.freeze()?, TIMEOUT)?)
    }

    /// The server's half of a round.
    #[inline]
    pub(crate) fn serve(&mut self, store: &Store) -> anyhow::Result<()> {
        let channel = self.channel.as_mut().context("no channel is open")?;
        let request = channel.recv()?;
        let answer = store.answer(requested(request.get()?)?)?;
        channel.reply(&request, &answer)?;
        Ok(())
    }
}

/// What a request takes besides the name.
const REQUEST: usize = 64;
