//! What a server remembers of its visitors, for tests to ask.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Barrier;

/// A body that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Bytes.
    pub size: u64,
    /// Whether they were those of [`crate::pattern`] from 0 on.
    pub is_pattern: bool,
    /// Whether it ended as HTTP says, rather than with the connection.
    pub complete: bool,
}

#[derive(Default)]
pub(crate) struct State {
    // Counters, read only by tests that waited for an answer or poll: no other memory hangs on them.
    pub(crate) connections: AtomicU64,
    pub(crate) open: AtomicU64,
    hits: Mutex<HashMap<String, u64>>,
    news: Condvar,
    uploads: Mutex<Vec<Upload>>,
    gates: Mutex<HashMap<String, Arc<Barrier>>>,
    asked: Mutex<Vec<String>>,
}

impl State {
    /// Counts a request and says how many there have been to that path.
    pub(crate) fn hit(&self, path: &str) -> u64 {
        let mut hits = self.hits.lock().expect("state");
        let count = hits.entry(path.to_owned()).or_default();
        *count += 1;
        self.news.notify_all();
        *count
    }

    pub(crate) fn hits(&self, path: &str) -> u64 {
        self.hits.lock().expect("state").get(path).copied().unwrap_or(0)
    }

    pub(crate) fn wait_for_hits(&self, path: &str, count: u64, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut hits = self.hits.lock().expect("state");
        while hits.get(path).copied().unwrap_or(0) < count {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            hits = self.news.wait_timeout(hits, left).expect("state").0;
        }
        true
    }

    pub(crate) fn uploaded(&self, upload: Upload) {
        self.uploads.lock().expect("state").push(upload);
    }

    pub(crate) fn uploads(&self) -> Vec<Upload> {
        self.uploads.lock().expect("state").clone()
    }

    /// Where `count` requests that name `key` wait for each other.
    pub(crate) fn gate(&self, key: &str, count: usize) -> Arc<Barrier> {
        let mut gates = self.gates.lock().expect("state");
        gates.entry(format!("{key} {count}")).or_insert_with(|| Arc::new(Barrier::new(count))).clone()
    }

    /// A proxy was asked for `target`.
    pub(crate) fn asked(&self, target: String) {
        self.asked.lock().expect("state").push(target);
    }

    pub(crate) fn all_asked(&self) -> Vec<String> {
        self.asked.lock().expect("state").clone()
    }
}

/// A connection that counts while it lives.
pub(crate) struct Connection(Arc<State>);

impl Connection {
    pub(crate) fn new(state: &Arc<State>) -> Self {
        state.connections.fetch_add(1, Ordering::Relaxed);
        state.open.fetch_add(1, Ordering::Relaxed);
        Self(state.clone())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
