//! libcurl's sockets and its timer, as an event loop takes them. libcurl says what it waits for in the midst of a call; it
//! is noted then and seen to afterwards.

use crate::raw;
use curl::multi::{Events, Multi};
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use strait::event::{EventLoop, Readiness, Token};

/// See the module's own words.
pub(crate) struct Sockets {
    notes: Arc<Mutex<Notes>>,
    watched: HashMap<RawFd, (Token, Wanted)>,
    names: HashMap<Token, RawFd>,
}

/// What libcurl has said since it was last looked at.
#[derive(Default)]
struct Notes {
    sockets: Vec<(RawFd, Wanted)>,
    due: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    input: bool,
    output: bool,
}

impl Wanted {
    const NOTHING: Self = Self { input: false, output: false };

    fn readiness(self) -> Readiness {
        match (self.input, self.output) {
            (true, true) => Readiness::READABLE | Readiness::WRITABLE,
            (false, true) => Readiness::WRITABLE,
            _ => Readiness::READABLE,
        }
    }
}

impl Sockets {
    pub(crate) fn new(multi: &mut Multi) -> Result<Self, curl::MultiError> {
        let notes: Arc<Mutex<Notes>> = Arc::default();
        let noted = notes.clone();
        multi.socket_function(move |socket, events, _| {
            let wanted = if events.remove() {
                Wanted::NOTHING
            } else {
                Wanted { input: events.input(), output: events.output() }
            };
            noted.lock().unwrap_or_else(PoisonError::into_inner).sockets.push((socket, wanted));
        })?;
        let noted = notes.clone();
        multi.timer_function(move |timeout| {
            let due = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
            noted.lock().unwrap_or_else(PoisonError::into_inner).due = due;
            true
        })?;
        Ok(Self { notes, watched: HashMap::new(), names: HashMap::new() })
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When libcurl wants to be called.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.notes().due
    }

    /// Calls libcurl if it is time.
    pub(crate) fn tick(&self, multi: &Multi, now: Instant) {
        let mut notes = self.notes();
        if notes.due.is_some_and(|due| due <= now) {
            notes.due = None;
            // libcurl notes things in the midst of it.
            drop(notes);
            let _ = multi.timeout();
        }
    }

    /// Tells libcurl that a descriptor of the loop's is ready. False if it is none of libcurl's.
    pub(crate) fn ready(&self, multi: &Multi, fd: Token, readiness: Readiness) -> bool {
        let Some(socket) = self.names.get(&fd) else { return false };
        let mut events = Events::new();
        events.input(readiness.is_readable() || readiness.is_hung_up()).output(readiness.is_writable());
        let _ = multi.action(*socket, &events);
        true
    }

    /// A descriptor failed in the loop, mostly because libcurl closed it before it said so: it is forgotten there. False if
    /// it is none of libcurl's.
    pub(crate) fn lost(&mut self, fd: Token) -> bool {
        let socket = self.names.remove(&fd);
        socket.is_some_and(|socket| self.watched.remove(&socket).is_some())
    }

    /// Has the loop wait for what libcurl waits for.
    pub(crate) fn watch(&mut self, events: &mut EventLoop) {
        let noted = std::mem::take(&mut self.notes().sockets);
        if noted.is_empty() {
            return;
        }
        // What was said last of a socket counts; that it was removed before says that the number is another socket's now.
        let mut last: HashMap<RawFd, (Wanted, bool)> = HashMap::with_capacity(noted.len());
        for (socket, wanted) in noted {
            let entry = last.entry(socket).or_default();
            *entry = (wanted, entry.1 || wanted == Wanted::NOTHING);
        }
        for (socket, (wanted, anew)) in last {
            match self.watched.get(&socket) {
                Some((_, known)) if *known == wanted && !anew => continue,
                Some(&(token, _)) => {
                    // It fails for one that was closed, and is forgotten all the same.
                    let _ = events.remove(token);
                    self.watched.remove(&socket);
                    self.names.remove(&token);
                }
                None => {}
            }
            if wanted == Wanted::NOTHING {
                continue;
            }
            match events.add_fd(&raw::borrow(socket), wanted.readiness()) {
                Ok(token) => {
                    self.watched.insert(socket, (token, wanted));
                    self.names.insert(token, socket);
                }
                Err(error) => eprintln!("procCurlI: cannot wait for a socket: {error}"),
            }
        }
    }
}
