//! Being told to stop, by SIGINT or SIGTERM: whoever waits is woken through what it waits for, so that everything is
//! dropped as on any other end.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether it is time to stop, and whom to wake then.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// 0 or the signal.
    signal: AtomicI32,
    wake: Mutex<Vec<Wake>>,
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
                if told.0.signal.swap(signal, Ordering::AcqRel) != 0 {
                    // The second time, it is meant.
                    std::process::exit(128 + signal);
                }
                told.0.wake.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|wake| wake());
            }
        })?;
        Ok(stop)
    }

    /// The signal that said so, if one did.
    pub(crate) fn signal(&self) -> Option<u8> {
        u8::try_from(self.0.signal.load(Ordering::Acquire)).ok().filter(|&signal| signal != 0)
    }

    /// Has `wake` called when it is time; at once if it is already.
    pub(crate) fn on_stop(&self, wake: impl Fn() + Send + 'static) {
        let mut all = self.0.wake.lock().unwrap_or_else(PoisonError::into_inner);
        if self.signal().is_some() {
            wake();
        }
        all.push(Box::new(wake));
    }

    /// Forgets whom to wake beyond the first `kept`.
    pub(crate) fn forget_beyond(&self, kept: usize) {
        self.0.wake.lock().unwrap_or_else(PoisonError::into_inner).truncate(kept);
    }
}
