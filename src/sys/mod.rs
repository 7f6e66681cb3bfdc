//! L0: the operating system, spoken to once. Everything here wraps one kernel facility and knows nothing of what it
//! is used for: no rings, no messages, no sessions.
//!
//! One of the three rooms that may hold `unsafe` (with `shm` and `message`; see `docs/unsafe.md`).

pub(crate) mod barrier;
#[cfg(not(strait_loom))]
pub(crate) mod brief;
#[cfg(not(strait_loom))]
pub(crate) mod cpu;
#[cfg(not(strait_loom))]
pub(crate) mod fork;
pub(crate) mod futex;
#[cfg(not(strait_loom))]
pub(crate) mod lent;
#[cfg(not(strait_loom))]
pub(crate) mod lockfile;
#[cfg(not(strait_loom))]
pub(crate) mod mapping;
#[cfg(not(strait_loom))]
pub(crate) mod memfd;
#[cfg(not(strait_loom))]
pub(crate) mod memory;
pub(crate) mod misbehaved;
#[cfg(not(strait_loom))]
pub(crate) mod named;
#[cfg(not(strait_loom))]
pub(crate) mod passed;
#[cfg(not(strait_loom))]
pub(crate) mod pidfd;
#[cfg(not(strait_loom))]
pub(crate) mod readiness;
#[cfg(not(strait_loom))]
pub(crate) mod seqpacket;
pub(crate) mod sync;
#[cfg(not(strait_loom))]
pub(crate) mod unsealed;
pub(crate) mod words;

/// Makes a call again as long as signals interrupt it, which they do only to calls that have done nothing yet.
#[cfg(not(strait_loom))]
fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other,
        }
    }
}
