//! The task that keeps a session: reads its socket, sends home what is owed, and lives until neither side needs the link.

use crate::event::upkeep::Upkeep;
use crate::sys::seqpacket::poll_readable;
use crate::transport::Core;
use crate::transport::link::Keeper;
use ::tokio::io::unix::AsyncFd;
use ::tokio::io::{Interest, Ready};
use ::tokio::runtime::Handle;
use ::tokio::sync::Notify;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Instant;

/// Where the floors below leave word for the task.
#[derive(Default)]
pub(super) struct Driver {
    words: AtomicU32,
    work: Notify,
    /// For whoever waits for channels, or the end.
    pub(super) changed: Notify,
}

const ARMED: u32 = 1;
const UNUSED: u32 = 2;
const FULL: u32 = 4;

impl Driver {
    fn leave(&self, word: u32) {
        // Partner: `take`.
        self.words.fetch_or(word, Ordering::AcqRel);
        self.work.notify_one();
    }

    fn take(&self) -> u32 {
        self.words.swap(0, Ordering::AcqRel)
    }
}

impl Keeper for Driver {
    fn on_arm(&self) {
        self.leave(ARMED);
    }

    fn on_full(&self) {
        self.leave(FULL);
    }

    fn on_end(&self) {
        self.changed.notify_waiters();
    }

    fn on_channels(&self) {
        self.changed.notify_waiters();
    }

    fn on_unused(&self) {
        self.leave(UNUSED);
    }
}

/// The runtime to drive something in.
pub(super) fn runtime() -> io::Result<Handle> {
    Handle::try_current().map_err(io::Error::other)
}

/// Drives a session that `driver` keeps already.
pub(super) fn start(core: Arc<Core>, driver: Arc<Driver>) -> io::Result<()> {
    let task = Task { core, driver, over: false };
    let socket = Socket(task.core.clone());
    let socket = if task.core.carries() {
        ready_for(socket, Interest::READABLE | Interest::WRITABLE)?
    } else {
        readable(socket)?
    };
    runtime()?.spawn(task.run(socket));
    Ok(())
}

/// Has this runtime wait until something is readable.
pub(super) fn readable<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    ready_for(inner, Interest::READABLE)
}

// What is deprecated about it is that the descriptor could change under it: those given here are owned and stay the same.
#[allow(deprecated, reason = "the other way is unsafe, and unsafe code has no place on this floor")]
fn ready_for<T: AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, interest)
}

struct Socket(Arc<Core>);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

struct Task {
    core: Arc<Core>,
    driver: Arc<Driver>,
    /// Nobody needs the link any more.
    over: bool,
}

/// Why the task goes on.
enum Wake {
    Readable,
    Writable,
    Work,
    Due,
}

impl Task {
    async fn run(mut self, socket: AsyncFd<Socket>) {
        let (mut upkeep, mut at_end, mut unused, mut full) = (Upkeep::default(), false, false, false);
        upkeep.arm(&self.core);
        while !(at_end && unused) {
            match self.wake(&socket, at_end, full && !at_end, upkeep.due()).await {
                Wake::Readable => {
                    at_end = !self.read(&socket).await;
                    // What was cleared may have been word of this as well.
                    full = full && !self.core.on_writable();
                }
                Wake::Writable => full = !self.core.on_writable(),
                Wake::Work => {
                    let words = self.driver.take();
                    if words & ARMED != 0 {
                        upkeep.arm(&self.core);
                    }
                    unused |= words & UNUSED != 0;
                    if words & FULL != 0 {
                        // Word that it is not may have come meanwhile, and been cleared.
                        full = !self.core.on_writable();
                    }
                }
                Wake::Due => upkeep.run(Instant::now()),
            }
        }
        self.over = true;
    }

    async fn wake(&self, socket: &AsyncFd<Socket>, at_end: bool, full: bool, due: Option<Instant>) -> Wake {
        let mut work = pin!(self.driver.work.notified());
        let mut sleep = pin!(async {
            match due {
                Some(at) => ::tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        });
        poll_fn(|cx| {
            if !at_end && let Poll::Ready(ready) = socket.poll_read_ready(cx) {
                // Cleared before the reading: what comes after it is news.
                if let Ok(mut ready) = ready {
                    ready.clear_ready_matching(Ready::ALL);
                }
                return Poll::Ready(Wake::Readable);
            }
            if full && let Poll::Ready(ready) = socket.poll_write_ready(cx) {
                // Likewise.
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
                return Poll::Ready(Wake::Writable);
            }
            if work.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Wake::Work);
            }
            sleep.as_mut().poll(cx).map(|()| Wake::Due)
        })
        .await
    }

    /// Reads all there is; false at the end.
    async fn read(&self, socket: &AsyncFd<Socket>) -> bool {
        loop {
            if !self.core.on_readable() {
                return false;
            }
            let more = poll_readable(&[socket.get_ref().0.as_fd()], Some(Instant::now()));
            if !more.is_ok_and(|more| more.contains(&true)) {
                return true;
            }
            // Others have their turn.
            ::tokio::task::yield_now().await;
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.over || self.core.is_forked() {
            return;
        }
        // The runtime ends before the session does.
        if let Err(error) = self.core.keep(None) {
            tracing::error!("a session has lost its runtime and has no watcher: {error}");
            self.core.close();
            // What it has lent must not be reused while the peer lives, of which nobody is told any more.
            std::mem::forget(self.core.clone());
        }
    }
}
