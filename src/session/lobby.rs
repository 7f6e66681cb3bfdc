//! Where clients are between connecting and their first words: who has come, who has said something, who took too long.
//! One descriptor tells when to look. Never waits, and knows nothing of what is said.

use super::error::AcceptError;
use super::login::FRAME;
use crate::sys::fork;
use crate::sys::readiness::{Alarm, Epoll, Readiness, Ready, Report, Wish};
use crate::sys::seqpacket::{Listener, Packet, SeqPacket};
use nix::errno::Errno;
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// See the module's own words.
#[derive(Debug)]
pub(super) struct Lobby {
    listener: Listener,
    /// The listener, the alarm, the wish to stop, and whoever is inside.
    epoll: Epoll,
    alarm: Alarm,
    stop: Wish,
    closed: AtomicBool,
    fork: u32,
    inside: Mutex<Inside>,
}

#[derive(Debug)]
struct Inside {
    waiting: Vec<Waiting>,
    numbers: u64,
    listens: bool,
    /// When to try again after there were no descriptors.
    breather: Option<Instant>,
    alarm_at: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    socket: SeqPacket,
    until: Instant,
}

/// A client's first words.
pub(super) struct FirstWords {
    pub(super) socket: SeqPacket,
    /// One more byte than a frame, so that a longer one shows.
    pub(super) frame: [u8; FRAME + 1],
    pub(super) packet: Packet,
}

/// How long a client may take over its first words.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Clients that may be connected without having logged in; more wait in the kernel's queue.
const WAITING_MAX: usize = 64;

/// How long to leave the listener alone when no descriptor is to be had.
const BREATHER: Duration = Duration::from_millis(50);

/// The numbers of what is no client.
const LISTENER: u64 = 0;
const ALARM: u64 = 1;
const STOP: u64 = 2;

impl Lobby {
    pub(super) fn new(listener: Listener) -> nix::Result<Self> {
        let (epoll, alarm, stop) = (Epoll::new()?, Alarm::new()?, Wish::new()?);
        epoll.add(listener.as_fd(), Readiness::READABLE, Report::Level, LISTENER)?;
        epoll.add(alarm.as_fd(), Readiness::READABLE, Report::Level, ALARM)?;
        epoll.add(stop.as_fd(), Readiness::READABLE, Report::Level, STOP)?;
        let inside = Inside { waiting: Vec::new(), numbers: STOP, listens: true, breather: None, alarm_at: None };
        let (closed, fork) = (AtomicBool::new(false), fork::generation());
        Ok(Self { listener, epoll, alarm, stop, closed, fork, inside: Mutex::new(inside) })
    }

    /// From now on, [`next`](Self::next) says that it is closed.
    pub(super) fn close(&self) {
        // A forked child has no lobby.
        if self.fork != fork::generation() {
            return;
        }
        // Partner: `next`.
        self.closed.store(true, Ordering::Release);
        self.stop.make();
    }

    /// Lets in who has come, and finds somebody who has said something.
    pub(super) fn next(&self) -> Result<Option<FirstWords>, AcceptError> {
        // Partner: `close`.
        if self.closed.load(Ordering::Acquire) {
            return Err(AcceptError::Closed);
        }
        let mut inside = self.inside.lock();
        let found = self.let_in(&mut inside).and_then(|()| self.hear(&mut inside));
        self.settle(&mut inside)?;
        found
    }

    /// Takes who has connected from the kernel's queue.
    fn let_in(&self, inside: &mut Inside) -> Result<(), AcceptError> {
        inside.breather = inside.breather.filter(|&until| until > Instant::now());
        while inside.breather.is_none() && inside.waiting.len() < WAITING_MAX {
            match self.listener.accept() {
                Ok(Some(socket)) => {
                    inside.numbers += 1;
                    let number = inside.numbers;
                    self.epoll
                        .add(socket.as_fd(), Readiness::READABLE, Report::Level, number)
                        .map_err(io::Error::from)?;
                    inside.waiting.push(Waiting { number, socket, until: Instant::now() + LOGIN_TIMEOUT });
                }
                Ok(None) => return Ok(()),
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    tracing::warn!("no descriptors for another client: waiting");
                    inside.breather = Some(Instant::now() + BREATHER);
                }
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    fn hear(&self, inside: &mut Inside) -> Result<Option<FirstWords>, AcceptError> {
        let now = Instant::now();
        if let Some(index) = inside.waiting.iter().position(|client| client.until <= now) {
            inside.waiting.swap_remove(index);
            return Err(AcceptError::LoginTimedOut);
        }
        let mut room = [Ready::NONE; 16];
        let ready = self.epoll.wait(&mut room, Some(Duration::ZERO)).map_err(io::Error::from)?;
        for number in ready.iter().map(Ready::number) {
            let Some(index) = inside.waiting.iter().position(|client| client.number == number) else { continue };
            let client = inside.waiting.swap_remove(index);
            let mut frame = [0; FRAME + 1];
            match client.socket.recv(&mut frame) {
                Ok(None) => inside.waiting.push(client),
                Ok(Some(packet)) => {
                    let Waiting { socket, .. } = client;
                    self.epoll.delete(socket.as_fd().as_raw_fd()).map_err(io::Error::from)?;
                    return Ok(Some(FirstWords { socket, frame, packet }));
                }
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(None)
    }

    /// Sees to it that the descriptor tells what is to be looked at next, and nothing else.
    fn settle(&self, inside: &mut Inside) -> io::Result<()> {
        let listens = inside.breather.is_none() && inside.waiting.len() < WAITING_MAX;
        if listens != inside.listens {
            if listens {
                self.epoll.add(self.listener.as_fd(), Readiness::READABLE, Report::Level, LISTENER)?;
            } else {
                self.epoll.delete(self.listener.as_fd().as_raw_fd())?;
            }
            inside.listens = listens;
        }
        let first_out = inside.waiting.iter().map(|client| client.until).min();
        let alarm_at = first_out.into_iter().chain(inside.breather).min();
        if alarm_at != inside.alarm_at {
            self.alarm.set(alarm_at.map(|at| at.saturating_duration_since(Instant::now())))?;
            inside.alarm_at = alarm_at;
        }
        Ok(())
    }
}

impl AsFd for Lobby {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
