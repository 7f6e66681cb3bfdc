//! Being told to stop, by SIGINT or SIGTERM: whoever waits is woken through what it waits for, so that everything is
//! dropped as on any other end.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether it is time to stop, and whom to wake then.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// 0 or the signal.
    signal: AtomicI32,
    wake: Mutex<HashMap<u64, Wake>>,
    next: AtomicU64,
}

type Wake = Box<dyn Fn() + Send>;

impl Stop {
    /// Begins to listen for signals.
    pub(crate) fn watch() -> anyhow::Result<Self> {
        let stop = Self::default();
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let told = stop.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                let again = told.0.signal.swap(signal, Ordering::AcqRel) != 0;
                // Whoever types it a second time means it. SIGTERM may come as often as a dying parent has threads.
                if again && signal == SIGINT {
                    std::process::exit(128 + signal);
                }
                told.0.wake.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|wake| wake());
            }
        })?;
        Ok(stop)
    }

    /// The signal that said so, if one did.
    pub(crate) fn signal(&self) -> Option<u8> {
        u8::try_from(self.0.signal.load(Ordering::Acquire)).ok().filter(|&signal| signal != 0)
    }

    /// Has `wake` called when it is time, as long as the answer lives; at once if it is time already.
    #[must_use]
    pub(crate) fn on_stop(&self, wake: impl Fn() + Send + 'static) -> OnStop {
        let mut all = self.0.wake.lock().unwrap_or_else(PoisonError::into_inner);
        if self.signal().is_some() {
            wake();
        }
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        all.insert(number, Box::new(wake));
        OnStop { stop: self.clone(), number }
    }

    /// A socket whose waiters, on both sides, wake when it is time.
    pub(crate) fn closes(&self, stream: &UnixStream) -> std::io::Result<OnStop> {
        let stream = stream.try_clone()?;
        Ok(self.on_stop(move || drop(stream.shutdown(Shutdown::Both))))
    }
}

/// Keeps what [`Stop::on_stop`] was given; forgets it when dropped.
pub(crate) struct OnStop {
    stop: Stop,
    number: u64,
}

impl Drop for OnStop {
    fn drop(&mut self) {
        let forgotten = self.stop.0.wake.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
        // What it kept open is closed out of the lock.
        drop(forgotten);
    }
}
