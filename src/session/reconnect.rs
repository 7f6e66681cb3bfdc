//! Connecting again and again, less and less often. No thread: whoever calls is who waits.

use super::app::{ClientApp, ServerApp};
use super::error::{ConnectError, LoginError};
use super::session::Session;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

impl ClientApp {
    /// Attempts to connect, one per call of `next`, each after a pause that grows from 10 ms to 2 s and is somewhat random,
    /// so that the clients of a server that was restarted do not come all at once. Ends when `timeout` has passed, or
    /// after an error that trying again does not mend.
    ///
    /// After a session the pauses begin anew, and `timeout` does as well: call `next` again once the session has ended.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use strait::{ClientApp, ServerApp, Session};
    ///
    /// fn serve(session: &Session) {
    ///     // ... until it ends.
    /// }
    ///
    /// let app = ClientApp::new("viewer");
    /// for attempt in app.reconnect(&ServerApp::new("cache"), Duration::from_secs(60)) {
    ///     match attempt {
    ///         Ok(session) => serve(&session),
    ///         Err(error) => eprintln!("not yet: {error}"),
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn reconnect(&self, server: &ServerApp, timeout: Duration) -> Reconnect {
        Reconnect { client: self.clone(), server: server.clone(), timeout, backoff: Backoff::default(), until: None }
    }

    /// Connects as soon as the server is there, at most `timeout`: the attempts of [`reconnect`](Self::reconnect), with
    /// the first session or the last error.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect_retrying(&self, server: &ServerApp, timeout: Duration) -> Result<Session, ConnectError> {
        let mut last = ConnectError::TimedOut;
        for attempt in self.reconnect(server, timeout) {
            match attempt {
                Ok(session) => return Ok(session),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Attempts to connect: see [`ClientApp::reconnect`].
#[derive(Debug)]
pub struct Reconnect {
    client: ClientApp,
    server: ServerApp,
    timeout: Duration,
    backoff: Backoff,
    /// Since the last session, or the first attempt.
    until: Option<Until>,
}

/// When attempts end.
#[derive(Clone, Copy, Debug)]
enum Until {
    Deadline(Option<Instant>),
    Over,
}

impl Reconnect {
    /// How long the next attempt waits before it is made.
    #[must_use]
    pub fn pause(&self) -> Duration {
        self.backoff.pause
    }
}

impl Iterator for Reconnect {
    type Item = Result<Session, ConnectError>;

    fn next(&mut self) -> Option<Self::Item> {
        let now = Instant::now();
        let deadline = match *self.until.get_or_insert_with(|| Until::Deadline(now.checked_add(self.timeout))) {
            Until::Deadline(deadline) => deadline,
            Until::Over => return None,
        };
        let left = deadline.map(|at| at.saturating_duration_since(now));
        if left.is_some_and(|left| left < self.backoff.pause || (left.is_zero() && self.backoff.has_failed())) {
            self.until = Some(Until::Over);
            return None;
        }
        std::thread::sleep(self.backoff.pause);
        let outcome = self.client.connect(&self.server);
        match &outcome {
            Ok(_) => (self.backoff, self.until) = (Backoff::default(), None),
            Err(error) if error.may_pass() => self.backoff.failed(RandomState::new().hash_one(0)),
            Err(_) => self.until = Some(Until::Over),
        }
        Some(outcome)
    }
}

impl ConnectError {
    /// Whether trying again later may help: the server is not there, is being restarted, or is out of something.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::TimedOut | Self::Disconnected | Self::Io(_) | Self::Alloc(_) => true,
            Self::Refused(refused) => {
                matches!(refused, LoginError::Busy | LoginError::TooManySessions { .. } | LoginError::TooManyChannels)
            }
            Self::BadName(_) | Self::RunDir(_) | Self::WrongServer { .. } => false,
            Self::View(_) | Self::PeerMisbehaved(_) => false,
        }
    }
}

/// How long to pause: none before the first attempt, then between half and the whole of a step that doubles. Pure.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
    pause: Duration,
}

const FIRST_STEP: Duration = Duration::from_millis(10);
const LAST_STEP: Duration = Duration::from_secs(2);

impl Backoff {
    fn failed(&mut self, random: u64) {
        let step = FIRST_STEP.saturating_mul(1 << self.failures.min(16)).min(LAST_STEP);
        self.failures = self.failures.saturating_add(1);
        let part = (random % 1024) as u32;
        self.pause = step / 2 + step / 2 * part / 1024;
    }

    fn has_failed(&self) -> bool {
        self.failures > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause, Duration::ZERO);
        let mut step = FIRST_STEP;
        for failure in 0..100_u64 {
            backoff.failed(failure.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            assert!((step / 2..=step).contains(&backoff.pause), "{:?} of {step:?}", backoff.pause);
            step = (step * 2).min(LAST_STEP);
        }
        let (mut low, mut high) = (Backoff::default(), Backoff::default());
        low.failed(0);
        high.failed(1023);
        assert!(low.pause < high.pause, "somewhat random");
    }
}
