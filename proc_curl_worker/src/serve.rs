//! The worker as a server app: sessions, their channels, and the requests that come through them.

use crate::engine::{Counts, Engine, Front, Origin, Told};
use crate::handler::Out;
use crate::telling;
use crate::wish::Wish;
use proc_curl::proc_curl_capnp::{curl, jar};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use strait::event::{Event, EventLoop, Token};
use strait::{Arena, Channel, Message, Received, SendError, Session, SessionServer};

/// What clients open.
pub(crate) const CHANNEL: &str = "curl";
/// What a client calls itself.
pub(crate) const CLIENT: &str = "procCurl";
/// Messages taken from one channel before others have their turn.
const TURN: usize = 32;
/// How often requests whose clients may have left them are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// See the module's own words.
pub(crate) struct Serving {
    events: EventLoop,
    engine: Engine,
    lines: Lines,
    /// By what the loop calls them.
    channels: HashMap<Token, u64>,
    sessions: HashMap<Token, (Session, u64)>,
    next: u64,
    /// Ends with its last session instead of waiting for another.
    ends_alone: bool,
    look_at: Instant,
    /// A server in the loop.
    _server: Option<Arc<SessionServer>>,
}

#[derive(Default)]
struct Lines(HashMap<u64, Line>);

/// A channel.
struct Line {
    channel: Channel<curl::Owned>,
    session: Token,
    client: u64,
    arena: Arena,
    /// Requests under way, by the number of the message that began them.
    requests: HashMap<u64, usize>,
    /// Those that have something to tell and found no room.
    blocked: HashSet<usize>,
    /// Answers to what is no request of libcurl's, which found no room.
    owed: VecDeque<(Received<curl::Owned>, Message<curl::Owned>)>,
}

/// Answers of that kind that a client may have waiting.
const OWED_MAX: usize = 64;

impl Line {
    fn note(&mut self, key: usize, sent: Result<u64, SendError>) -> Told {
        match sent {
            Ok(_) => Told::Taken,
            Err(SendError::Full | SendError::Quota(_)) => {
                self.blocked.insert(key);
                Told::Full
            }
            Err(_) => Told::Unwanted,
        }
    }

    /// Answers what is no request of libcurl's.
    fn answer(&mut self, to: Received<curl::Owned>, message: Message<curl::Owned>) {
        if self.owed.len() < OWED_MAX {
            self.owed.push_back((to, message));
        }
        self.pay();
    }

    fn pay(&mut self) {
        while let Some((to, message)) = self.owed.front() {
            if self.channel.try_reply(to, message) == Err(SendError::Full) {
                return;
            }
            self.owed.pop_front();
        }
    }
}

impl Front for Lines {
    fn tell(&mut self, line: u64, key: usize, wish: &Wish, out: &Out) -> Told {
        let (Some(line), Some(to)) = (self.0.get_mut(&line), wish.received()) else { return Told::Unwanted };
        let Ok(message) = telling::message(line.channel.create_msg(), out) else {
            line.blocked.insert(key);
            return Told::Full;
        };
        let sent = match out {
            Out::End(_) => line.channel.try_reply(to, &message),
            _ => line.channel.try_reply_more(to, &message),
        };
        line.note(key, sent)
    }

    fn tell_whole(&mut self, line: u64, key: usize, wish: &Wish, all: &[Out]) -> Told {
        let (Some(line), Some(to)) = (self.0.get_mut(&line), wish.received()) else { return Told::Unwanted };
        let Ok(message) = telling::whole(line.channel.create_msg(), all) else {
            line.blocked.insert(key);
            return Told::Full;
        };
        let sent = line.channel.try_reply(to, &message);
        line.note(key, sent)
    }

    fn forget(&mut self, line: u64, key: usize, wish: &Wish) {
        if let (Some(line), Some(request)) = (self.0.get_mut(&line), wish.received()) {
            line.requests.remove(&request.id());
            line.blocked.remove(&key);
        }
    }
}

impl Serving {
    /// Serves what comes to a server app.
    pub(crate) fn named(engine: Engine, server: SessionServer) -> anyhow::Result<Self> {
        let mut events = EventLoop::new()?;
        let server = Arc::new(server);
        events.add_server(&server)?;
        Ok(Self::new(engine, events, Some(server)))
    }

    /// Serves one session, and ends with it.
    pub(crate) fn alone(engine: Engine, session: Session) -> anyhow::Result<Self> {
        let mut serving = Self::new(engine, EventLoop::new()?, None);
        let token = serving.events.add_session(&session)?;
        serving.ends_alone = true;
        serving.begin(token, session);
        serving.channels_of(token);
        Ok(serving)
    }

    fn new(engine: Engine, events: EventLoop, server: Option<Arc<SessionServer>>) -> Self {
        Self {
            events,
            engine,
            lines: Lines::default(),
            channels: HashMap::new(),
            sessions: HashMap::new(),
            next: 1,
            ends_alone: false,
            look_at: Instant::now(),
            _server: server,
        }
    }

    /// Until the last session is over, or for good.
    pub(crate) fn run(mut self) {
        loop {
            self.engine.turn(&mut self.events, &mut self.lines);
            if self.ends_alone && self.sessions.is_empty() {
                return;
            }
            let look = (!self.engine.is_idle()).then_some(self.look_at);
            let due = [self.engine.due(), look].into_iter().flatten().min();
            if let Some(event) = self.events.wait(due) {
                self.take(event);
                // What else is there already costs libcurl's part only once.
                for _ in 0..TURN {
                    let Some(event) = self.events.wait(Some(Instant::now())) else { break };
                    self.take(event);
                }
            }
            self.look();
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Connection { token, session, .. } => {
                self.begin(token, session);
                // Those of the log-in are there already.
                self.channels_of(token);
            }
            Event::Channels { session } => self.channels_of(session),
            Event::Message { channel, .. } => self.messages(channel),
            Event::Writable { channel } => self.room(channel),
            Event::External { fd, readiness } => drop(self.engine.ready(fd, readiness)),
            // A client that sends no more still hears the rest.
            Event::Finished { .. } => {}
            Event::Closed { channel, .. } => self.hang_up(channel),
            Event::Disconnection { session, .. } => self.end(session),
            Event::Error { source, error } => {
                let known = source.is_some_and(|source| self.engine.lost(source));
                if !known {
                    eprintln!("procCurlI: {error}");
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, token: Token, session: Session) {
        self.sessions.insert(token, (session, self.next));
        self.next += 1;
    }

    fn channels_of(&mut self, token: Token) {
        let Some((session, client)) = self.sessions.get(&token) else { return };
        let (client, arena) = (*client, session.arena().clone());
        while let Ok(channel) = session.accept_channel_timeout::<curl::Owned>(Duration::ZERO) {
            let Ok(name) = self.events.add_channel(&channel) else { continue };
            let (requests, blocked, owed) = Default::default();
            let line = Line { channel, session: token, client, arena: arena.clone(), requests, blocked, owed };
            self.lines.0.insert(self.next, line);
            self.channels.insert(name, self.next);
            self.next += 1;
        }
    }

    fn messages(&mut self, channel: Token) {
        let Some(&number) = self.channels.get(&channel) else { return };
        for _ in 0..TURN {
            let Some(line) = self.lines.0.get_mut(&number) else { return };
            match line.channel.try_recv() {
                Ok(Some(message)) => self.message(number, message),
                Ok(None) => return,
                // The loop tells of the end as well.
                Err(_) => return,
            }
        }
    }

    fn message(&mut self, number: u64, message: Received<curl::Owned>) {
        let Some(line) = self.lines.0.get_mut(&number) else { return };
        let Ok(root) = message.get() else { return };
        let key_of = |line: &Line, request: u64| line.requests.get(&request).copied();
        match root.which() {
            Ok(curl::Request(_)) => {
                let (origin, id) = (Origin { client: line.client, line: number }, message.id());
                let key = self.engine.begin(origin, Wish::Received(message), line.arena.clone());
                line.requests.insert(id, key);
            }
            Ok(curl::More(Ok(more))) => {
                if let Some(key) = key_of(line, more.get_request()) {
                    self.engine.more(key, message.blobs(), more.get_last(), more.get_broken());
                }
            }
            Ok(curl::Consumed(Ok(consumed))) => {
                if let Some(key) = key_of(line, consumed.get_request()) {
                    self.engine.consumed(key, consumed.get_bytes(), consumed.get_messages());
                }
            }
            Ok(curl::Cancel(request)) => {
                if let Some(key) = key_of(line, request) {
                    self.engine.cancel(key, &mut self.lines);
                }
            }
            Ok(curl::Ask(())) => {
                let mut answer = line.channel.create_msg();
                let sessions = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
                write_statistics(&self.engine, sessions, answer.init_root().init_statistics());
                if let Ok(answer) = answer.freeze() {
                    line.answer(message, answer);
                }
            }
            Ok(curl::Jar(Ok(wanted))) => {
                let (client, number) = (line.client, wanted.get_number());
                match wanted.which() {
                    Ok(jar::Add(Ok(lines))) => {
                        let lines = lines.iter().filter_map(|line| Some(line.ok()?.to_str().ok()?.to_owned()));
                        let lines: Vec<String> = lines.take(4096).collect();
                        self.engine.jars.add(client, number, &lines);
                    }
                    Ok(jar::Clear(())) => self.engine.jars.clear(client, number),
                    _ => {}
                }
                let lines = self.engine.jars.lines(client, number);
                let mut answer = line.channel.create_msg();
                let mut list = answer.init_root().init_jar_is(u32::try_from(lines.len()).unwrap_or(0));
                for (index, text) in (0..).zip(lines) {
                    list.set(index, text);
                }
                if let Ok(answer) = answer.freeze() {
                    line.answer(message, answer);
                }
            }
            // What only a worker says, or what a later version does.
            _ => {}
        }
    }

    fn room(&mut self, channel: Token) {
        let Some(line) = self.channels.get(&channel).and_then(|number| self.lines.0.get_mut(number)) else { return };
        line.pay();
        for key in std::mem::take(&mut line.blocked) {
            self.engine.again(key);
        }
    }

    /// What no event tells of: requests whose clients have left them, and those that a quota held up.
    fn look(&mut self) {
        let now = Instant::now();
        if now < self.look_at {
            return;
        }
        self.look_at = now + LOOK;
        for key in self.engine.left(|wish, line| {
            let line = self.lines.0.get(&line);
            line.is_none_or(|line| wish.received().is_none_or(|request| line.channel.is_cancelled(request)))
        }) {
            self.engine.cancel(key, &mut self.lines);
        }
        for line in self.lines.0.values_mut() {
            line.pay();
            for key in std::mem::take(&mut line.blocked) {
                self.engine.again(key);
            }
        }
    }

    fn hang_up(&mut self, channel: Token) {
        let Some(number) = self.channels.remove(&channel) else { return };
        let _ = self.events.remove(channel);
        let Some(line) = self.lines.0.remove(&number) else { return };
        for key in line.requests.into_values() {
            self.engine.cancel(key, &mut self.lines);
        }
    }

    fn end(&mut self, session: Token) {
        let lines = &self.lines.0;
        let of = |number: &u64| lines.get(number).is_some_and(|line| line.session == session);
        let channels: Vec<_> = self.channels.iter().filter(|(_, number)| of(number)).map(|(name, _)| *name).collect();
        for channel in channels {
            self.hang_up(channel);
        }
        if let Some((_, client)) = self.sessions.remove(&session) {
            self.engine.jars.forget(client);
        }
    }
}

fn write_statistics(engine: &Engine, sessions: u32, mut to: proc_curl::proc_curl_capnp::statistics::Builder<'_>) {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let Counts { started, done, failed, cancelled, received, sent, connections } = engine.counts;
    to.set_active(count(engine.active()));
    to.set_queued(count(engine.queued()));
    to.set_paused(count(engine.paused()));
    to.set_started(started);
    to.set_done(done);
    to.set_failed(failed);
    to.set_cancelled(cancelled);
    to.set_received(received);
    to.set_sent(sent);
    to.set_connections(connections);
    to.set_sessions(sessions);
}
