//! What reaches a loop from elsewhere, in whatever thread it happens: tokens of sources to look at. Each is in the mail at
//! most once, whatever a peer does.

use super::slab::Token;
use crate::sys::readiness::Wish;
use crate::transport::control::Knock;
use crate::transport::door::Listener;
use crate::transport::link::Keeper;
use parking_lot::Mutex;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// See the module's own words.
#[derive(Debug)]
pub(super) struct Mail {
    letters: Mutex<Letters>,
    /// Whether there are any: read without the lock.
    any: AtomicBool,
    wish: Wish,
}

#[derive(Debug, Default)]
struct Letters {
    tokens: Vec<Token>,
    woken: bool,
    /// The loop is waiting, or may be: whoever posts makes a wish.
    asleep: bool,
}

impl Mail {
    pub(super) fn new() -> nix::Result<Arc<Self>> {
        Ok(Arc::new(Self { letters: Mutex::default(), any: AtomicBool::new(false), wish: Wish::new()? }))
    }

    fn post(&self, write: impl FnOnce(&mut Letters)) {
        let mut letters = self.letters.lock();
        write(&mut letters);
        // Under the lock, which the loop takes before it sleeps.
        self.any.store(true, Ordering::Relaxed);
        let asleep = std::mem::take(&mut letters.asleep);
        drop(letters);
        if asleep {
            self.wish.make();
        }
    }

    /// Takes what there is; true if the loop was woken as such.
    pub(super) fn take(&self, into: &mut Vec<Token>) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let mut letters = self.letters.lock();
        self.any.store(false, Ordering::Relaxed);
        into.append(&mut letters.tokens);
        std::mem::take(&mut letters.woken)
    }

    /// Says that the loop is about to wait; false if there is mail.
    pub(super) fn sleep(&self) -> bool {
        let mut letters = self.letters.lock();
        letters.asleep = letters.tokens.is_empty() && !letters.woken;
        letters.asleep
    }

    pub(super) fn get_up(&self) {
        self.letters.lock().asleep = false;
    }

    /// Readable once somebody posted to a loop that waits.
    pub(super) fn wish(&self) -> &Wish {
        &self.wish
    }
}

impl AsFd for Mail {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wish.as_fd()
    }
}

/// Ends a wait of an [`EventLoop`](super::EventLoop) from any thread: the loop tells [`Event::Woken`](super::Event::Woken),
/// once for any number of wakes. May outlive the loop.
///
/// ```
/// use strait::event::{Event, EventLoop};
///
/// # fn main() -> std::io::Result<()> {
/// let mut events = EventLoop::new()?;
/// let waker = events.waker();
/// std::thread::spawn(move || waker.wake());
/// assert!(matches!(events.wait(None), Some(Event::Woken)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Waker(pub(super) Arc<Mail>);

impl Waker {
    /// Never blocks.
    pub fn wake(&self) {
        self.0.post(|letters| letters.woken = true);
    }
}

/// Where the floors below leave word for one source.
#[derive(Debug)]
pub(super) struct Seat {
    mail: Arc<Mail>,
    token: Token,
    words: AtomicU32,
}

/// What a source is to be looked at for, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Words(u32);

impl Words {
    pub(super) const FILLED: Self = Self(1);
    pub(super) const EMPTIED: Self = Self(2);
    pub(super) const GONE: Self = Self(4);
    pub(super) const ARMED: Self = Self(8);
    pub(super) const ENDED: Self = Self(16);
    pub(super) const CHANNELS: Self = Self(32);
    pub(super) const UNUSED: Self = Self(64);
    pub(super) const FULL: Self = Self(128);

    pub(super) fn add(&mut self, words: Self) {
        self.0 |= words.0;
    }

    pub(super) fn has(self, word: Self) -> bool {
        self.0 & word.0 != 0
    }

    /// Takes a word out; tells whether it was there.
    pub(super) fn take(&mut self, word: Self) -> bool {
        let had = self.has(word);
        self.0 &= !word.0;
        had
    }
}

impl Seat {
    pub(super) fn new(mail: &Arc<Mail>, token: Token) -> Arc<Self> {
        Arc::new(Self { mail: mail.clone(), token, words: AtomicU32::new(0) })
    }

    pub(super) fn leave(&self, words: Words) {
        // Partner: `take`. Whoever finds none is the one to post.
        if self.words.fetch_or(words.0, Ordering::AcqRel) == 0 {
            self.mail.post(|letters| letters.tokens.push(self.token));
        }
    }

    pub(super) fn take(&self) -> Words {
        // Partner: `leave`. What it was left for happened before.
        Words(self.words.swap(0, Ordering::AcqRel))
    }
}

impl Listener for Seat {
    fn on_knock(&self, knock: Knock) {
        let mut words = Words::default();
        if knock.has(Knock::FILLED) {
            words.add(Words::FILLED);
        }
        if knock.has(Knock::EMPTIED) {
            words.add(Words::EMPTIED);
        }
        if words != Words::default() {
            self.leave(words);
        }
    }

    fn on_gone(&self) {
        self.leave(Words::GONE);
    }
}

impl Keeper for Seat {
    fn on_arm(&self) {
        self.leave(Words::ARMED);
    }

    fn on_full(&self) {
        self.leave(Words::FULL);
    }

    fn on_end(&self) {
        self.leave(Words::ENDED);
    }

    fn on_channels(&self) {
        self.leave(Words::CHANNELS);
    }

    fn on_unused(&self) {
        self.leave(Words::UNUSED);
    }
}
