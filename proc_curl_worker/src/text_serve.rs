//! The worker for those who write lines: over standard input and output, a Unix socket, or TCP on the loopback. Each
//! connection has a thread that reads and one that writes; everything else is the loop's.

use crate::engine::{Engine, Front, Origin, Told};
use crate::handler::Out;
use crate::text::{self, Bad, Gathered};
use crate::wish::Wish;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;
use strait::Arena;
use strait::event::{Event, EventLoop, Waker};

/// The longest line.
const LINE_MAX: u64 = 96 << 20;
/// Lines that wait for the loop.
const LINES: usize = 64;
/// Requests of one connection at a time.
const REQUESTS_MAX: usize = 1024;
/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;

/// What threads tell the loop.
enum News {
    Line(u64, String),
    /// Nothing more comes.
    End(u64),
    /// Somebody connected.
    Connection(Box<dyn Read + Send>, Box<dyn Write + Send>),
}

/// See the module's own words.
pub(crate) struct Texts {
    events: EventLoop,
    engine: Engine,
    writers: Writers,
    arena: Arena,
    news: Receiver<News>,
    tell: SyncSender<News>,
    next: u64,
    /// What a client has to say first.
    secret: Option<String>,
    ends_alone: bool,
    /// That write for those with whom all ends.
    writing: Vec<JoinHandle<()>>,
}

/// The connections, by number.
#[derive(Default)]
struct Writers {
    open: HashMap<u64, Writer>,
    /// Of which request how much was taken.
    taken: Vec<(usize, u64, u64)>,
}

struct Writer {
    lines: Sender<String>,
    requests: HashMap<usize, Asked>,
    keys: HashMap<String, usize>,
    /// It has said who it is.
    known: bool,
    /// Nothing more comes from it.
    over: bool,
}

struct Asked {
    id: Option<Value>,
    gathered: Gathered,
    bytes: u64,
    pieces: u64,
}

impl Front for Writers {
    fn tell(&mut self, line: u64, key: usize, _: &Wish, out: &Out) -> Told {
        let Some(writer) = self.open.get_mut(&line) else { return Told::Unwanted };
        let Some(asked) = writer.requests.get_mut(&key) else { return Told::Unwanted };
        if let Out::Body(_, blob) = out {
            asked.bytes += blob.len() as u64;
            asked.pieces += 1;
            self.taken.push((key, asked.bytes, asked.pieces));
        }
        let said = asked.gathered.take(asked.id.as_ref().unwrap_or(&Value::Null), out);
        let wanted = asked.id.is_some();
        let heard = said.filter(|_| wanted).is_none_or(|line| writer.lines.send(line).is_ok());
        if heard { Told::Taken } else { Told::Unwanted }
    }

    fn tell_whole(&mut self, line: u64, key: usize, wish: &Wish, all: &[Out]) -> Told {
        let told = all.iter().map(|out| self.tell(line, key, wish, out));
        told.fold(Told::Taken, |before, now| if now == Told::Taken { before } else { now })
    }

    fn forget(&mut self, line: u64, key: usize, _: &Wish) {
        if let Some(writer) = self.open.get_mut(&line) {
            writer.requests.remove(&key);
            writer.keys.retain(|_, known| *known != key);
        }
    }
}

impl Texts {
    pub(crate) fn new(engine: Engine, arena: Arena, secret: Option<String>) -> io::Result<Self> {
        let (tell, news) = sync_channel(LINES);
        let (events, writers) = (EventLoop::new()?, Writers::default());
        Ok(Self { events, engine, writers, arena, news, tell, next: 1, secret, ends_alone: false, writing: Vec::new() })
    }

    /// Serves standard input and output, and ends with them.
    pub(crate) fn run_io(mut self) -> io::Result<()> {
        self.ends_alone = true;
        self.connect(Box::new(io::stdin()), Box::new(io::stdout()))?;
        self.run();
        Ok(())
    }

    /// Serves whoever is let in.
    pub(crate) fn run_for(
        self,
        mut accept: impl FnMut() -> io::Result<(Box<dyn Read + Send>, Box<dyn Write + Send>)> + Send + 'static,
    ) -> io::Result<()> {
        let (tell, waker) = (self.tell.clone(), self.events.waker());
        std::thread::Builder::new().name("accept".into()).spawn(move || {
            loop {
                match accept() {
                    Ok((input, output)) => {
                        if tell.send(News::Connection(input, output)).is_err() {
                            return;
                        }
                        waker.wake();
                    }
                    Err(error) => {
                        eprintln!("procCurlI: {error}");
                        // Out of descriptors, most likely, which passes.
                        std::thread::sleep(std::time::Duration::from_millis(100));
                    }
                }
            }
        })?;
        self.run();
        Ok(())
    }

    fn run(mut self) {
        loop {
            self.engine.turn(&mut self.events, &mut self.writers);
            if !self.writers.taken.is_empty() {
                for (key, bytes, pieces) in std::mem::take(&mut self.writers.taken) {
                    self.engine.consumed(key, bytes, pieces);
                }
                continue;
            }
            self.writers.open.retain(|_, writer| !writer.over || !writer.requests.is_empty());
            if self.ends_alone && self.writers.open.is_empty() {
                // What was said last is still to be written.
                self.writing.drain(..).for_each(|thread| drop(thread.join()));
                return;
            }
            if let Some(event) = self.events.wait(self.engine.due()) {
                self.take(event);
                for _ in 0..32 {
                    let Some(event) = self.events.wait(Some(Instant::now())) else { break };
                    self.take(event);
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::External { fd, readiness } => drop(self.engine.ready(fd, readiness)),
            Event::Error { source: Some(source), .. } => drop(self.engine.lost(source)),
            Event::Woken => {
                for _ in 0..LINES {
                    match self.news.try_recv() {
                        Ok(News::Line(from, line)) => self.line(from, &line),
                        Ok(News::End(from)) => {
                            if let Some(writer) = self.writers.open.get_mut(&from) {
                                writer.over = true;
                            }
                        }
                        Ok(News::Connection(input, output)) => {
                            if let Err(error) = self.connect(input, output) {
                                eprintln!("procCurlI: {error}");
                            }
                        }
                        Err(_) => return,
                    }
                }
                self.events.waker().wake();
            }
            _ => {}
        }
    }

    fn connect(&mut self, input: Box<dyn Read + Send>, output: Box<dyn Write + Send>) -> io::Result<()> {
        if self.writers.open.len() >= CONNECTIONS_MAX {
            // Dropping both hangs up.
            return Ok(());
        }
        let (number, (lines, written)) = (self.next, channel::<String>());
        self.next += 1;
        let (tell, waker) = (self.tell.clone(), self.events.waker());
        let writing = std::thread::Builder::new().name("write".into()).spawn(move || write(output, &written))?;
        if self.ends_alone {
            self.writing.push(writing);
        }
        std::thread::Builder::new().name("read".into()).spawn(move || read(input, number, &tell, &waker))?;
        let known = self.secret.is_none();
        let writer = Writer { lines, requests: HashMap::new(), keys: HashMap::new(), known, over: false };
        self.writers.open.insert(number, writer);
        Ok(())
    }

    fn line(&mut self, from: u64, line: &str) {
        let Some(writer) = self.writers.open.get_mut(&from) else { return };
        let say = |line: String| drop(writer.lines.send(line));
        let call = match text::parse(line) {
            Ok(call) => call,
            Err(Bad { id, code, text }) => return say(text::error(&id, code, &text)),
        };
        let id = call.id.clone().unwrap_or_default();
        if !writer.known {
            if call.method == "hello" && call.params.get("session").and_then(Value::as_str) == self.secret.as_deref() {
                say(text::result(&id, &json!({})));
                writer.known = true;
            } else {
                say(text::error(&id, text::NO_REQUEST, "say `hello` with the session's name first"));
            }
            return;
        }
        match call.method.as_str() {
            "request" if writer.requests.len() >= REQUESTS_MAX => {
                say(text::error(&id, text::NO_REQUEST, "too many requests at a time"));
            }
            "request" => match text::wish(&call.params) {
                Ok(message) => {
                    let (origin, wish) = (Origin { client: from, line: from }, Wish::Made(Box::new(message)));
                    let key = self.engine.begin(origin, wish, self.arena.clone());
                    let asked = Asked { id: call.id, gathered: Gathered::default(), bytes: 0, pieces: 0 };
                    writer.requests.insert(key, asked);
                    writer.keys.insert(id.to_string(), key);
                }
                Err(why) => say(text::error(&id, text::BAD_PARAMETERS, &why)),
            },
            "cancel" => {
                let key = call.params.get("id").and_then(|id| writer.keys.get(&id.to_string())).copied();
                say(text::result(&id, &json!({ "cancelled": key.is_some() })));
                if let Some(key) = key {
                    self.engine.cancel(key, &mut self.writers);
                }
            }
            "statistics" => {
                let counts = self.engine.counts;
                let found = json!({
                    "active": self.engine.active(), "queued": self.engine.queued(), "started": counts.started,
                    "done": counts.done, "failed": counts.failed, "cancelled": counts.cancelled,
                    "received": counts.received, "sent": counts.sent, "connections": counts.connections,
                });
                say(text::result(&id, &found));
            }
            unknown => say(text::error(&id, text::NO_METHOD, &format!("no method `{unknown}`"))),
        }
    }
}

fn read(input: Box<dyn Read + Send>, number: u64, tell: &SyncSender<News>, waker: &Waker) {
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        let over = match input.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => true,
            // One that is longer is no line; what would come next is its rest.
            Ok(_) => line.last() != Some(&b'\n') && line.len() as u64 >= LINE_MAX,
        };
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        let sent = line.is_empty() || over || tell.send(News::Line(number, line)).is_ok();
        if over || !sent {
            let _ = tell.send(News::End(number));
            waker.wake();
            return;
        }
        waker.wake();
    }
}

fn write(mut output: Box<dyn Write + Send>, lines: &Receiver<String>) {
    while let Ok(line) = lines.recv() {
        if output.write_all(line.as_bytes()).and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}
