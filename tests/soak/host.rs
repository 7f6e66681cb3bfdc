//! The server of a soak: three apps in one process, of which two are served by threads and one by an event loop. Does what
//! its clients ask for in words.

use crate::common::apps::{trust, words};
use crate::common::peer::{hear, say};
use crate::{BELIEFS, Hello, named};
use std::collections::HashMap;
use std::io::Read;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;
use strait::event::{Event, EventLoop, LoopError, Token, Waker};
use strait::{AcceptError, Arena, Backing, Builder, Channel, ChannelError, Message, Received, RecvError, SendError};
use strait::{ServerApp, Session, SessionServer};

/// The apps that meet in one directory, and what their memory is.
pub const APPS: [(&str, Backing); 3] =
    [("threads", Backing::Memfd), ("heap", Backing::Heap), ("looped", Backing::Memfd)];

pub fn app(place: &str, name: &str, backing: Backing) -> ServerApp {
    let app = ServerApp::new(name).run_dir(place).backing(backing).channel::<Hello>("main");
    let app = app.channel::<Hello>("split");
    BELIEFS.iter().fold(app, |app, name| app.allow(&named(name), trust(name)))
}

/// Runs until told `stop`. Says `ready`, and what its arenas hold when asked `held`.
pub fn run(args: &[String]) {
    // Threads are not waited for one by one: what goes wrong in any is the end.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        hook(what);
        std::process::abort();
    }));
    let servers = APPS.map(|(name, backing)| Arc::new(app(&args[0], name, backing).bind().expect("bind")));
    let [threads, heap, looped] = servers.clone();
    let accepting = [threads, heap].map(|server| thread::spawn(move || accept(&server)));
    let (give, take) = mpsc::channel();
    let looping = thread::spawn(move || serve_in_loop(looped, &give));
    let waker = take.recv().expect("a loop");
    say("ready");
    loop {
        match hear().as_str() {
            "held" => say(servers.iter().map(|server| held(server.arena())).sum::<u64>()),
            "stop" | "" => break,
            other => panic!("what is {other}"),
        }
    }
    servers.iter().for_each(|server| server.close());
    waker.wake();
    accepting.into_iter().chain([looping]).for_each(|thread| thread.join().expect("thread"));
}

/// What an arena holds that is in use.
pub fn held(arena: &Arena) -> u64 {
    arena.purge();
    arena.resident().expect("fstat")
}

fn accept(server: &SessionServer) {
    loop {
        match server.accept() {
            Ok(session) => drop(thread::spawn(move || serve(&session))),
            // Killed while it logged in.
            Err(AcceptError::Disconnected) => {}
            Err(AcceptError::Closed) => return,
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn serve(session: &Session) {
    loop {
        match session.accept_channel::<Hello>() {
            Ok(channel) if channel.name() == "split" => drop(thread::spawn(|| oblige_split(channel))),
            Ok(channel) => drop(thread::spawn(|| oblige(channel))),
            Err(ChannelError::Ended { .. }) => return,
            Err(other) => panic!("{other}"),
        }
    }
}

fn oblige(mut channel: Channel<Hello>) {
    loop {
        let received = match channel.recv() {
            Ok(received) => received,
            Err(RecvError::Ended(_) | RecvError::Finished) => return,
            Err(other) => panic!("{other}"),
        };
        let arena = channel.arena().clone();
        let more_or_last = |to: &_, message: &_, more| {
            if more { channel.reply_more(to, message) } else { channel.reply(to, message) }
        };
        match answer(&arena, received, more_or_last) {
            Ok(()) => {}
            Err(SendError::Ended(_)) => return,
            Err(other) => panic!("{other}"),
        }
    }
}

/// Two threads answer what a third receives.
fn oblige_split(channel: Channel<Hello>) {
    let (sender, mut receiver) = channel.split();
    let (give, take) = mpsc::sync_channel::<Received<Hello>>(4);
    let take = std::sync::Mutex::new(take);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let next = || take.lock().expect("queue").recv();
                while let Ok(received) = next() {
                    let more_or_last = |to: &_, message: &_, more| {
                        if more { sender.reply_more(to, message) } else { sender.reply(to, message) }
                    };
                    match answer(sender.arena(), received, more_or_last) {
                        Ok(()) | Err(SendError::Ended(_) | SendError::Cancelled) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
        while let Ok(received) = receiver.recv() {
            give.send(received).expect("threads");
        }
        drop(give);
    });
}

type Outcome = Result<u64, SendError>;

/// Answers as the words say, through `reply`, whose last argument is whether more answers follow.
fn answer(
    arena: &Arena,
    mut received: Received<Hello>,
    mut reply: impl FnMut(&Received<Hello>, &Message<Hello>, bool) -> Outcome,
) -> Result<(), SendError> {
    let fds = received.take_fds().expect("all there");
    let said = words(&received);
    match said.split_once(' ').unwrap_or((&said, "")) {
        ("note", _) => Ok(()),
        ("stream", count) => {
            let count: u32 = count.parse().expect("a number");
            let said = |left: u32| written(arena, &left.to_string());
            (0..count).rev().try_for_each(|left| reply(&received, &finished(said(left)), left > 0).map(drop))
        }
        ("echo", rest) => {
            let mut answer = written(arena, rest);
            for blob in received.blobs() {
                let mut copy = arena.create_blob(blob.len() as usize).expect("room");
                blob.reader().read_exact(&mut copy).expect("whole");
                answer.attach_blob(copy.freeze());
            }
            fds.into_iter().for_each(|fd| _ = answer.attach_fd(fd));
            reply(&received, &finished(answer), false).map(drop)
        }
        other => panic!("what is {other:?}"),
    }
}

/// A message begun with these words.
pub fn written(arena: &Arena, words: &str) -> Builder<Hello> {
    let mut builder = Builder::<Hello>::with_capacity(arena, words.len() + 64);
    builder.init_root().set_greet(words);
    builder
}

pub fn finished(builder: Builder<Hello>) -> Message<Hello> {
    builder.freeze().expect("room")
}

/// Serves in one thread until the server is closed and the loop woken.
fn serve_in_loop(server: Arc<SessionServer>, ready: &mpsc::Sender<Waker>) {
    let mut events = EventLoop::new().expect("loop");
    events.add_server(&server).expect("server");
    ready.send(events.waker()).expect("main thread");
    let (mut sessions, mut channels) = (HashMap::new(), HashMap::new());
    loop {
        match events.wait(None).expect("no deadline") {
            Event::Connection { token, session, .. } => {
                take_channels(&mut events, &session, &mut channels);
                sessions.insert(token, session);
            }
            Event::Channels { session } => {
                let session = sessions.get(&session).expect("it has not ended");
                take_channels(&mut events, session, &mut channels);
            }
            Event::Message { channel, .. } => {
                let Some(channel) = channels.get_mut(&channel) else { continue };
                let Ok(Some(received)) = channel.try_recv() else { continue };
                let arena = channel.arena().clone();
                let more_or_last = |to: &_, message: &_, more| {
                    if more { channel.reply_more(to, message) } else { channel.reply(to, message) }
                };
                match answer(&arena, received, more_or_last) {
                    Ok(()) | Err(SendError::Ended(_)) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            Event::Closed { channel, .. } => drop(channels.remove(&channel)),
            Event::Disconnection { session, .. } => drop(sessions.remove(&session)),
            // It is closed soon. And killed while it logged in.
            Event::Finished { .. } => {}
            Event::Error { error: LoopError::Accept(AcceptError::Disconnected), .. } => {}
            Event::Woken => return,
            other => panic!("{other:?}"),
        }
    }
}

fn take_channels(events: &mut EventLoop, session: &Session, channels: &mut HashMap<Token, Channel<Hello>>) {
    loop {
        match session.accept_channel_timeout::<Hello>(Duration::ZERO) {
            Ok(channel) => drop(channels.insert(events.add_channel(&channel).expect("channel"), channel)),
            Err(ChannelError::Ended { .. } | ChannelError::TimedOut) => return,
            Err(other) => panic!("{other}"),
        }
    }
}
