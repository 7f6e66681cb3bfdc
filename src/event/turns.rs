//! The loop's inside: what the kernel, the mail and the clock have, and one source's turn after the other.

use super::Event;
use super::error::LoopError;
use super::event_loop::{ALARM, EventLoop, MAIL, session_source};
use super::mail::{Seat, Words};
use super::slab::Token;
use super::source::{ChannelSource, Found, SessionSource, What};
use crate::session::{AcceptError, Session, SessionServer};
use crate::sys::fork;
use crate::sys::readiness::{Readiness, Ready, Report};
use crate::transport::port::Next;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Events told between looks at the kernel, if there are so many.
const TURNS: u32 = 64;

impl EventLoop {
    pub(super) fn wait_inside(&mut self, deadline: Option<Instant>) -> Option<Event> {
        if self.fork != fork::generation() {
            return Some(Event::Error { source: None, error: LoopError::ForkedProcess });
        }
        let mut looked = false;
        loop {
            self.read_mail();
            if std::mem::take(&mut self.woken) {
                return Some(Event::Woken);
            }
            if self.queue.is_empty() || self.turns >= TURNS {
                // Also with sources left that have told nothing for so long.
                if looked && deadline.is_some_and(|at| at <= Instant::now()) {
                    return None;
                }
                if let Err(errno) = self.look_at_kernel(deadline) {
                    return Some(Event::Error { source: None, error: LoopError::Io(errno.into()) });
                }
                looked = true;
                continue;
            }
            if let Some(event) = self.queue.pop_front().and_then(|token| self.turn_of(token)) {
                return Some(event);
            }
        }
    }

    fn read_mail(&mut self) {
        let mut letters = std::mem::take(&mut self.letters);
        self.woken |= self.mail.take(&mut letters);
        letters.drain(..).for_each(|token| self.enqueue(token));
        self.letters = letters;
    }

    pub(super) fn enqueue(&mut self, token: Token) {
        if let Some(source) = self.sources.get_mut(token)
            && !std::mem::replace(&mut source.queued, true)
        {
            self.queue.push_back(token);
        }
    }

    /// Finds out what is ready and what is due; waits for it if there is nothing else to do.
    fn look_at_kernel(&mut self, deadline: Option<Instant>) -> nix::Result<()> {
        self.turns = 0;
        self.renew_told();
        let waits = self.queue.is_empty() && self.mail.sleep();
        let timeout = if waits {
            let until = deadline.into_iter().chain(self.due()).min();
            until.map(|at| at.saturating_duration_since(Instant::now()))
        } else {
            Some(Duration::ZERO)
        };
        let mut room = [Ready::NONE; 64];
        let found = self.epoll.wait(&mut room, timeout);
        self.mail.get_up();
        for ready in found? {
            match ready.number() {
                MAIL => self.mail.wish().take(),
                ALARM => {}
                number => self.on_ready(Token(number), ready.readiness()),
            }
        }
        if let Some(due) = self.due() {
            let now = Instant::now();
            if due <= now {
                self.upkeep.run(now);
                while let Some(&(at, token)) = self.timers.first().filter(|(at, _)| *at <= now) {
                    self.timers.remove(&(at, token));
                    self.enqueue(token);
                }
            }
        }
        Ok(())
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at).into_iter().chain(self.upkeep.due()).min()
    }

    fn on_ready(&mut self, token: Token, readiness: Readiness) {
        let Some(source) = self.sources.get_mut(token) else { return };
        match &mut source.what {
            What::Session(session) => {
                if session.full && readiness.is_writable() && session.core.on_writable() {
                    session.full = false;
                    let _ = self.epoll.change(session.core.as_fd(), Readiness::READABLE, token.0);
                }
                if readiness.is_readable() && !session.core.on_readable() {
                    let _ = self.epoll.delete(session.core.as_fd().as_raw_fd());
                    session.at_end = true;
                    self.enqueue(token);
                }
                return;
            }
            What::Foreign(foreign) => foreign.found = Found::Ready(readiness),
            What::Channel(_) | What::Server(_) | What::Signals(_) | What::Timer(_) => {}
        }
        self.enqueue(token);
    }

    /// Descriptors that were told are heard of again.
    fn renew_told(&mut self) {
        let mut told = std::mem::take(&mut self.told);
        for token in told.drain(..) {
            let Some(What::Foreign(foreign)) = self.sources.get_mut(token).map(|source| &mut source.what) else {
                continue;
            };
            foreign.found = Found::Nothing;
            if self.epoll.renew(foreign.raw, foreign.interest, token.0).is_err() {
                self.foreign.remove(&foreign.raw);
                self.mark_closed(token);
            }
        }
        self.told = told;
    }

    pub(super) fn mark_closed(&mut self, token: Token) {
        if let Some(What::Foreign(foreign)) = self.sources.get_mut(token).map(|source| &mut source.what) {
            foreign.found = Found::Closed;
            self.enqueue(token);
        }
    }

    /// One source's turn: it tells one thing at most, and comes back if it may have more.
    fn turn_of(&mut self, token: Token) -> Option<Event> {
        self.turns += 1;
        let source = self.sources.get_mut(token)?;
        source.queued = false;
        let (event, again) = match &mut source.what {
            What::Channel(channel) => {
                let (event, again) = turn_of_channel(token, channel);
                if channel.words.has(Words::GONE) {
                    self.sources.remove(token);
                    return None;
                }
                (event, again)
            }
            What::Session(session) => {
                let words = session.seat.take();
                if words.has(Words::ARMED) {
                    self.upkeep.arm(&session.core);
                }
                if words.has(Words::FULL) && !session.full && !session.at_end {
                    let both = Readiness::READABLE | Readiness::WRITABLE;
                    session.full = self.epoll.change(session.core.as_fd(), both, token.0).is_ok();
                }
                session.unused |= words.has(Words::UNUSED);
                if session.unused && session.at_end {
                    // Dropped here: what was lent is nobody's any more.
                    self.sources.remove(token);
                    return None;
                }
                (turn_of_session(token, session, words), false)
            }
            What::Foreign(foreign) => match std::mem::replace(&mut foreign.found, Found::Told) {
                Found::Ready(readiness) => {
                    self.told.push(token);
                    (Some(Event::External { fd: token, readiness }), false)
                }
                Found::Closed => {
                    self.sources.remove(token);
                    let error = LoopError::ClosedDescriptor;
                    return Some(Event::Error { source: Some(token), error });
                }
                as_it_was @ (Found::Nothing | Found::Told) => {
                    foreign.found = as_it_was;
                    (None, false)
                }
            },
            What::Server(server) => {
                let server = server.clone();
                return self.turn_of_server(token, &server);
            }
            What::Signals(signals) => match signals.next() {
                Ok(Some((signal, pid))) => (Some(Event::Signal { signals: token, signal, pid }), true),
                Ok(None) => (None, false),
                Err(errno) => (Some(Event::Error { source: Some(token), error: LoopError::Io(errno.into()) }), false),
            },
            What::Timer(_) => {
                self.sources.remove(token);
                (Some(Event::Timer { timer: token }), false)
            }
        };
        if again {
            self.enqueue(token);
        }
        event
    }

    fn turn_of_server(&mut self, token: Token, server: &SessionServer) -> Option<Event> {
        let (mail, mut seat) = (&self.mail, None);
        // Its token comes first, because the session begins with its keeper.
        let reserved = self.sources.insert_with(|token| {
            seat = Some(Seat::new(mail, token));
            What::Timer(Instant::now()).into()
        });
        let accepted = server.try_accept_for(|| seat.clone().map(|seat| seat as _));
        let again = !matches!(accepted, Ok(None) | Err(AcceptError::Closed));
        let event = match (accepted, seat) {
            (Ok(Some(session)), Some(seat)) => Some(self.accepted(token, reserved, session, seat)),
            (Ok(_), _) => {
                self.sources.remove(reserved);
                None
            }
            (Err(error), _) => {
                self.sources.remove(reserved);
                if matches!(error, AcceptError::Closed) {
                    let _ = self.remove(token);
                }
                Some(Event::Error { source: Some(token), error: error.into() })
            }
        };
        if again {
            self.enqueue(token);
        }
        event
    }

    fn accepted(&mut self, server: Token, token: Token, session: Session, seat: Arc<Seat>) -> Event {
        let core = session.core().clone();
        if let Some(source) = self.sources.get_mut(token) {
            source.what = session_source(&session, seat);
        }
        match self.epoll.add(core.as_fd(), Readiness::READABLE, Report::Level, token.0) {
            Ok(()) => Event::Connection { server, token, session },
            Err(errno) => {
                // The watcher serves what the loop cannot.
                session.close();
                drop(session);
                let _ = core.keep(None);
                self.sources.remove(token);
                Event::Error { source: Some(server), error: LoopError::Io(errno.into()) }
            }
        }
    }
}

fn turn_of_channel(token: Token, channel: &mut ChannelSource) -> (Option<Event>, bool) {
    channel.words.add(channel.seat.take());
    let Some(port) = channel.port.upgrade() else { return (None, false) };
    if channel.words.has(Words::GONE) || channel.closed {
        return (None, false);
    }
    if channel.words.take(Words::EMPTIED) && port.is_open() {
        return (Some(Event::Writable { channel: token }), channel.words.has(Words::FILLED));
    }
    if !channel.words.has(Words::FILLED) {
        return (None, false);
    }
    match port.next_or_door() {
        Next::Message(kind) => (Some(Event::Message { channel: token, kind }), true),
        Next::More => (None, true),
        Next::Nothing => {
            channel.words.take(Words::FILLED);
            (None, false)
        }
        Next::Finished => {
            channel.words.take(Words::FILLED);
            let told = std::mem::replace(&mut channel.finished, true);
            ((!told).then_some(Event::Finished { channel: token }), false)
        }
        Next::End => {
            channel.closed = true;
            (Some(Event::Closed { channel: token, cause: port.error().cause }), false)
        }
    }
}

fn turn_of_session(token: Token, session: &mut SessionSource, words: Words) -> Option<Event> {
    if session.unused {
        return None;
    }
    if words.has(Words::ENDED) && !session.ended {
        session.ended = true;
        return session.core.ended().map(|cause| Event::Disconnection { session: token, cause });
    }
    (words.has(Words::CHANNELS) && !session.ended).then_some(Event::Channels { session: token })
}
