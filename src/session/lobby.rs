//! Where clients are between connecting and their first words: who has come, who has said something, who took too long.
//! One descriptor tells when to look. Never waits, and knows nothing of what is said.

use super::app::ServerApp;
use super::error::AcceptError;
use super::login::FRAME;
use super::welcome::turn_away;
use crate::sys::fork;
use crate::sys::readiness::{Alarm, Epoll, Readiness, Ready, Report, Wish};
use crate::sys::seqpacket::{Credentials, Listener, Packet, SeqPacket};
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
    /// Users on the allow-list.
    listed: Vec<u32>,
    /// How long a client may take over its first words.
    patience: Duration,
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
    peer: Credentials,
    crowd: Crowd,
    until: Instant,
    /// The descriptor tells when it does.
    told_of: bool,
}

/// Who shares places to wait in: each user of the allow-list has its own, so that nobody's silence keeps another out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crowd {
    User(u32),
    /// Everybody else.
    Strangers,
}

/// The crowd, if any, of which one more waits than may. In order of arrival, only the last can have made one.
fn crowded(waiting: &[Waiting]) -> Option<Crowd> {
    let last = waiting.last()?.crowd;
    (waiting.iter().filter(|client| client.crowd == last).count() > PLACES).then_some(last)
}

/// A client's first words.
pub(super) struct FirstWords {
    pub(super) socket: SeqPacket,
    pub(super) peer: Credentials,
    /// One more byte than a frame, so that a longer one shows.
    pub(super) frame: [u8; FRAME + 1],
    pub(super) packet: Packet,
}

/// Longer than anybody waits.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// Clients of one crowd that may be connected without having logged in.
const PLACES: usize = 16;

/// How long to leave the listener alone when no descriptor is to be had.
const BREATHER: Duration = Duration::from_millis(50);

/// The numbers of what is no client.
const LISTENER: u64 = 0;
const ALARM: u64 = 1;
const STOP: u64 = 2;

impl Lobby {
    pub(super) fn new(listener: Listener, app: &ServerApp) -> nix::Result<Self> {
        let (epoll, alarm, stop) = (Epoll::new()?, Alarm::new()?, Wish::new()?);
        epoll.add(listener.as_fd(), Readiness::READABLE, Report::Level, LISTENER)?;
        epoll.add(alarm.as_fd(), Readiness::READABLE, Report::Level, ALARM)?;
        epoll.add(stop.as_fd(), Readiness::READABLE, Report::Level, STOP)?;
        let inside = Inside { waiting: Vec::new(), numbers: STOP, listens: true, breather: None, alarm_at: None };
        let (closed, fork) = (AtomicBool::new(false), fork::generation());
        let listed = app.allow.iter().map(|allowed| allowed.uid).collect();
        Ok(Self {
            listener,
            epoll,
            alarm,
            stop,
            closed,
            fork,
            inside: Mutex::new(inside),
            listed,
            patience: app.login_timeout,
        })
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
        let found = self.find(&mut inside);
        self.settle(&mut inside)?;
        found
    }

    fn find(&self, inside: &mut Inside) -> Result<Option<FirstWords>, AcceptError> {
        let now = Instant::now();
        inside.breather = inside.breather.filter(|&until| until > now);
        if let Some(index) = inside.waiting.iter().position(|client| client.until <= now) {
            inside.waiting.remove(index);
            return Err(AcceptError::LoginTimedOut);
        }
        // Most have said all they have to say by the time they are let in.
        while self.let_in(inside)? {
            if let Some(said) = self.hear(inside, inside.waiting.len().saturating_sub(1))? {
                return Ok(Some(said));
            }
        }
        let mut room = [Ready::NONE; 16];
        let ready = self.epoll.wait(&mut room, Some(Duration::ZERO)).map_err(io::Error::from)?;
        for number in ready.iter().map(Ready::number) {
            let Some(index) = inside.waiting.iter().position(|client| client.number == number) else { continue };
            if let Some(said) = self.hear(inside, index)? {
                return Ok(Some(said));
            }
        }
        // Nobody has said anything, and one of too many has to go: whoever had the most time to.
        let crowd = crowded(&inside.waiting);
        if let Some(index) = inside.waiting.iter().position(|client| Some(client.crowd) == crowd) {
            turn_away(&inside.waiting.remove(index).socket);
            return Err(AcceptError::LoginCrowdedOut);
        }
        Ok(None)
    }

    /// Takes the next who has connected from the kernel's queue, unless somebody is one too many. False if there is none.
    fn let_in(&self, inside: &mut Inside) -> Result<bool, AcceptError> {
        if inside.breather.is_some() || crowded(&inside.waiting).is_some() {
            return Ok(false);
        }
        match self.listener.accept() {
            Ok(Some(socket)) => {
                inside.numbers += 1;
                let number = inside.numbers;
                let peer = socket.peer().map_err(io::Error::from)?;
                let crowd = if self.listed.contains(&peer.uid) { Crowd::User(peer.uid) } else { Crowd::Strangers };
                let now = Instant::now();
                let until = now.checked_add(self.patience).unwrap_or(now + FOR_EVER);
                inside.waiting.push(Waiting { number, socket, peer, crowd, until, told_of: false });
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                tracing::warn!("no descriptors for another client: waiting");
                inside.breather = Some(Instant::now() + BREATHER);
                Ok(false)
            }
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }

    fn hear(&self, inside: &mut Inside, index: usize) -> Result<Option<FirstWords>, AcceptError> {
        let client = inside.waiting.remove(index);
        let mut frame = [0; FRAME + 1];
        match client.socket.recv(&mut frame) {
            Ok(None) => inside.waiting.insert(index, client),
            Ok(Some(packet)) => {
                let Waiting { socket, peer, told_of, .. } = client;
                if told_of {
                    self.epoll.delete(socket.as_fd().as_raw_fd()).map_err(io::Error::from)?;
                }
                return Ok(Some(FirstWords { socket, peer, frame, packet }));
            }
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        Ok(None)
    }

    /// Sees to it that the descriptor tells what is to be looked at next, and nothing else.
    fn settle(&self, inside: &mut Inside) -> io::Result<()> {
        while let Some(index) = inside.waiting.iter().position(|client| !client.told_of) {
            let client = inside.waiting.remove(index);
            self.epoll.add(client.socket.as_fd(), Readiness::READABLE, Report::Level, client.number)?;
            inside.waiting.insert(index, Waiting { told_of: true, ..client });
        }
        let listens = inside.breather.is_none() && crowded(&inside.waiting).is_none();
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
