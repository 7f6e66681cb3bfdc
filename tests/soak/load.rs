//! What clients do in a soak: everything that sessions are for, checked, again and again.

use crate::common::apps::{trust, words};
use crate::common::{PATIENCE, eventually};
use crate::host::{APPS, app, finished, written};
use crate::rng::Rng;
use crate::{BELIEFS, Hello, named};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use strait::event::{Event, EventLoop};
use strait::{Arena, Channel, ClientApp, Ended, Message, Received, RequestError, Session, Wait};

/// What is done in a session, by name.
type Work = (&'static str, fn(&Session, &mut Channel<Hello>, &mut Rng));

pub const WORKS: [Work; 8] = [
    ("small requests", |_, channel, rng| (0..50).for_each(|_| echo(channel, rng.below(80)))),
    ("requests of any size", |_, channel, rng| {
        let size = any_size(rng, 20);
        echo(channel, size);
    }),
    ("messages one way", one_way),
    ("streams of answers", stream),
    ("blobs", blobs),
    ("descriptors", descriptors),
    ("more channels", more_channels),
    ("requests given up", given_up),
];

/// As many of each magnitude, less than `1 << bits`.
fn any_size(rng: &mut Rng, bits: u64) -> u64 {
    let bits = rng.below(bits) + 1;
    rng.below(1 << bits)
}

fn question(arena: &Arena, text: &str) -> Message<Hello> {
    finished(written(arena, text))
}

/// Text of a length, which tells when it is damaged.
fn text(seed: u64, len: u64) -> String {
    (0..len).map(|at| char::from(b'a' + ((seed ^ at ^ at >> 7) % 26) as u8)).collect()
}

fn echo(channel: &mut Channel<Hello>, size: u64) {
    let text = text(size, size);
    let question = question(channel.arena(), &format!("echo {text}"));
    let answer = channel.request(&question, PATIENCE).expect("answer");
    assert!(words(&answer) == text, "another answer");
}

fn one_way(_: &Session, channel: &mut Channel<Hello>, rng: &mut Rng) {
    let size = any_size(rng, 14);
    let note = question(channel.arena(), &format!("note {}", text(1, size)));
    (0..200).for_each(|_| _ = channel.send(&note).expect("send"));
    echo(channel, 1);
}

fn stream(_: &Session, channel: &mut Channel<Hello>, rng: &mut Rng) {
    let count = 1 + rng.below(60);
    let question = question(channel.arena(), &format!("stream {count}"));
    let id = channel.send(&question).expect("send");
    for left in (0..count).rev() {
        let answer = channel.recv_timeout(PATIENCE).expect("answer");
        assert_eq!((words(&answer), answer.in_reply_to()), (left.to_string(), Some(id)));
    }
}

fn blobs(_: &Session, channel: &mut Channel<Hello>, rng: &mut Rng) {
    let mut message = written(channel.arena(), "echo blobs");
    let sent: Vec<_> = (0..1 + rng.below(3))
        .map(|_| {
            let mut blob = channel.arena().create_blob(1 + any_size(rng, 19) as usize).expect("room");
            let seed = rng.next();
            blob.iter_mut().enumerate().for_each(|(at, byte)| *byte = (seed ^ at as u64) as u8);
            blob.freeze()
        })
        .collect();
    sent.iter().for_each(|blob| _ = message.attach_blob(blob.clone()));
    let answer = channel.request(&finished(message), PATIENCE).expect("answer");
    let back = answer.blobs().iter().map(|blob| blob.to_vec().expect("memory"));
    assert!(back.eq(sent.iter().map(|blob| blob.to_vec())), "other bytes");
}

fn descriptors(_: &Session, channel: &mut Channel<Hello>, rng: &mut Rng) {
    let mut message = written(channel.arena(), "echo descriptors");
    let count = 1 + rng.below(4);
    for index in 0..count {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        write!(writer, "pipe {index}").expect("room");
        message.attach_fd(OwnedFd::from(reader));
    }
    let mut answer = channel.request(&finished(message), PATIENCE).expect("answer");
    let back = answer.take_fds().expect("all there");
    assert_eq!(back.len() as u64, count);
    for (index, fd) in back.into_iter().enumerate() {
        let mut found = String::new();
        std::fs::File::from(fd).read_to_string(&mut found).expect("a pipe");
        assert_eq!(found, format!("pipe {index}"));
    }
}

fn more_channels(session: &Session, _: &mut Channel<Hello>, rng: &mut Rng) {
    let mut more: Vec<_> = (0..1 + rng.below(3)).map(|_| open(session, "main")).collect();
    more.iter_mut().for_each(|channel| echo(channel, 10));
    if rng.below(2) == 0 {
        more.reverse();
    }
}

/// Their answers come all the same, and are dropped.
fn given_up(_: &Session, channel: &mut Channel<Hello>, _: &mut Rng) {
    let question = question(channel.arena(), "echo too late");
    for _ in 0..10 {
        match channel.request(&question, Duration::ZERO) {
            Ok(_) | Err(RequestError::TimedOut) => {}
            Err(other) => panic!("{other}"),
        }
    }
    echo(channel, 3);
}

pub fn open(session: &Session, name: &str) -> Channel<Hello> {
    session.open_channel(name, PATIENCE).expect("channel")
}

/// A client of one of the apps: the app it is, and whom it calls on.
pub fn connect(place: &str, which: usize, client: &ClientApp) -> Session {
    let (name, backing) = APPS[which];
    client.clone().backing(backing).connect(&app(place, name, backing)).expect("connect")
}

pub fn client(rng: &mut Rng) -> ClientApp {
    let wait = rng.pick(&[Wait::Adaptive, Wait::Park, Wait::Spin]);
    named(rng.pick(&BELIEFS)).trust(trust(rng.pick(&BELIEFS))).wait(wait)
}

/// One of the works, of those that are wanted (`STRAIT_WORKS`, with commas).
fn any_work(rng: &mut Rng) -> usize {
    static WANTED: OnceLock<Vec<usize>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let names = std::env::var("STRAIT_WORKS").ok();
        let is_wanted = |name: &str| names.as_ref().is_none_or(|names| names.split(',').any(|wanted| wanted == name));
        (0..WORKS.len()).filter(|&index| is_wanted(WORKS[index].0)).collect()
    });
    rng.pick(wanted)
}

/// Works in a session that lasts.
pub fn steady(session: &Session, channel: &mut Channel<Hello>, rng: &mut Rng, until: Instant, done: &mut [u64]) {
    while Instant::now() < until {
        let index = any_work(rng);
        (WORKS[index].1)(session, channel, rng);
        done[index] += 1;
    }
}

/// Comes and goes, in every way there is; tells how often.
pub fn reconnect(place: &str, rng: &mut Rng, until: Instant, done: &mut [u64]) -> u64 {
    let shared = client(rng);
    let mut sessions = 0;
    while Instant::now() < until {
        // Clones share an arena, others have one of their own.
        let app = if rng.below(2) == 0 { shared.clone() } else { client(rng) };
        let which = rng.below(APPS.len() as u64) as usize;
        let session = connect(place, which, &app);
        let mut channel = open(&session, "main");
        for _ in 0..rng.below(4) {
            let index = any_work(rng);
            (WORKS[index].1)(&session, &mut channel, rng);
            done[index] += 1;
        }
        match rng.below(5) {
            0 => drop((session, channel)),
            1 => drop((channel, session)),
            2 => session.close(),
            3 => channel.close(PATIENCE).expect("drained"),
            _ => match session.close_timeout(PATIENCE) {
                Ok(()) => assert_eq!(session.end(), Some(Ended::Closed)),
                Err(other) => panic!("{other}"),
            },
        }
        sessions += 1;
    }
    sessions
}

/// Several threads ask over the halves of one channel; tells how often.
pub fn split(session: &Session, until: Instant) -> u64 {
    let (sender, receiver) = open(session, "split").split();
    let threads = std::thread::scope(|scope| {
        let ask = |number: u64| {
            let (sender, mut asked) = (sender.clone(), 0);
            move || {
                while Instant::now() < until {
                    let text = text(number, 10 * number + asked % 50);
                    let question = question(sender.arena(), &format!("echo {text}"));
                    assert_eq!(words(&sender.request(&question, PATIENCE).expect("answer")), text);
                    let many = question_of_many(sender.arena(), number);
                    let mut answers = sender.request_stream(&many, PATIENCE).expect("send");
                    (0..number).for_each(|_| drop(answers.recv_timeout(PATIENCE).expect("answer")));
                    asked += 1;
                }
                asked
            }
        };
        let threads: Vec<_> = (1..=3).map(|number| scope.spawn(ask(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("thread")).collect::<Vec<u64>>()
    });
    drop((sender, receiver));
    threads.into_iter().sum()
}

fn question_of_many(arena: &Arena, count: u64) -> Message<Hello> {
    question(arena, &format!("stream {count}"))
}

/// A session in a loop of its own.
pub struct Looped {
    events: EventLoop,
    _session: Session,
    channel: Channel<Hello>,
}

impl Looped {
    pub fn new(session: Session) -> Self {
        let (mut events, channel) = (EventLoop::new().expect("loop"), open(&session, "main"));
        events.add_session(&session).expect("session");
        events.add_channel(&channel).expect("channel");
        Self { events, _session: session, channel }
    }

    pub fn arena(&self) -> &Arena {
        self.channel.arena()
    }

    /// Keeps some questions under way; tells how many were answered.
    pub fn ask(&mut self, until: Instant) -> u64 {
        let (mut asked, mut answered) = (0, 0);
        while answered < asked || Instant::now() < until {
            while asked < answered + 8 && Instant::now() < until {
                let question = question(self.channel.arena(), &format!("echo {asked}"));
                self.channel.try_send(&question).expect("room");
                asked += 1;
            }
            match self.events.wait(Some(Instant::now() + PATIENCE)).expect("an event") {
                Event::Message { .. } => {
                    let answer: Received<Hello> = self.channel.try_recv().expect("open").expect("told");
                    assert_eq!(words(&answer), answered.to_string());
                    answered += 1;
                }
                // Of the answer to the opening.
                Event::Channels { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        answered
    }

    /// Nobody reads the socket of a session in a loop but the loop.
    pub fn settle(&mut self) {
        eventually("nothing is on loan", || {
            let event = self.events.wait(Some(Instant::now()));
            assert!(event.is_none(), "{event:?}");
            (self._session.on_loan() == (0, 0)).then_some(())
        });
    }
}

/// The role of a client that is killed. Arguments: where, and a seed. Says so when it has begun.
pub fn casualty(args: &[String]) {
    let mut rng = Rng::new(args[1].parse().expect("seed"));
    crate::common::peer::say("begun");
    let never = Instant::now() + Duration::from_secs(3600);
    reconnect(&args[0], &mut rng, never, &mut [0; WORKS.len()]);
}
