//! Sessions and channels under tokio: many requests at once, futures dropped at any point, streams, ends.

mod common;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/rng.rs"]
mod rng;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, SHORT, client, server};
use common::obliging::obliging_server;
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, obliging};
use futures_util::StreamExt;
use hello_capnp::hello;
use rng::Rng;
use std::future::Future;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use strait::event::tokio::{AsyncChannel, AsyncServer, AsyncSession};
use strait::{Ended, Message, Received, RecvError, RequestError, SendError, Trust};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

fn main() -> ExitCode {
    let cases = [
        Case::new("a_thousand_requests_on_fifty_channels", thousand),
        Case::new("one_thread_is_enough", one_thread),
        Case::new("dropped_futures_lose_nothing", dropped),
        Case::new("a_stream_ends_with_its_sender", stream),
        Case::new("death_ends_every_wait", death),
        Case::new("sessions_outlive_their_runtime", outlive),
        Case::new("descriptors_after_their_message", late_descriptors),
    ];
    let roles: &[common::Role] = &[("obliging", obliging::run), ("echo", echo), ("counter", counter)];
    common::main(&cases, roles)
}

fn many_threads() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

fn greet(channel: &AsyncChannel<hello::Owned>, words: &str) -> Message<hello::Owned> {
    let mut builder = channel.create_msg();
    builder.init_root().set_greet(words);
    builder.freeze().expect("room")
}

fn words(received: &Received<hello::Owned>) -> String {
    common::apps::words(received)
}

/// No thread of the library's own.
fn no_watcher() {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
    for task in tasks.filter_map(Result::ok) {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        assert_ne!(name.trim(), "strait-watch");
    }
}

async fn connect(place: &Place) -> AsyncSession {
    let app = client().channel::<hello::Owned>("main");
    AsyncSession::connect(&app, &place.server()).await.expect("connect")
}

/// Answers everything in every channel of every session with the same words, until the case hangs up.
fn echo(args: &[String]) {
    let runtime = many_threads();
    let app = server(&args[0]).allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
    let bound = Arc::new(app.bind().expect("bind"));
    let stop = bound.clone();
    let serving = runtime.spawn(async move {
        let server = AsyncServer::new(bound).expect("server");
        say("ready");
        let mut sessions = JoinSet::new();
        while let Ok(session) = server.accept().await {
            sessions.spawn(serve(session));
        }
        while let Some(served) = sessions.join_next().await {
            served.expect("session");
        }
    });
    hear();
    no_watcher();
    stop.close();
    drop(stop);
    runtime.block_on(serving).expect("serving");
}

async fn serve(session: AsyncSession) {
    let mut channels = JoinSet::new();
    while let Ok(channel) = session.accept_channel::<hello::Owned>().await {
        channels.spawn(async move {
            while let Ok(question) = channel.recv().await {
                match channel.reply(&question, &greet(&channel, &words(&question))).await {
                    Ok(_) | Err(SendError::Ended(_) | SendError::Cancelled) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        });
    }
    drop(session);
    while let Some(served) = channels.join_next().await {
        served.expect("channel");
    }
}

const CHANNELS: usize = 50;
const REQUESTS: usize = 1_000;

fn thousand() {
    let place = Place::new();
    let mut peer = Peer::start("echo", &[place.text()]);
    peer.must_say("ready");
    let runtime = many_threads();
    runtime.block_on(async {
        let session = connect(&place).await;
        let mut channels = Vec::new();
        for _ in 0..CHANNELS {
            channels.push(session.open_channel::<hello::Owned>("main", PATIENCE).await.expect("channel"));
        }
        let mut asking = JoinSet::new();
        for index in 0..REQUESTS {
            let channel = channels[index % CHANNELS].clone();
            asking.spawn(async move {
                for time in 0..5 {
                    let question = format!("{index} {time}");
                    let answer = channel.request(&greet(&channel, &question)).await.expect("answer");
                    assert_eq!(words(&answer), question);
                }
            });
        }
        while let Some(asked) = asking.join_next().await {
            asked.expect("answered");
        }
        no_watcher();
        // The last answers go home with nothing to ride on.
        let nothing_lent = async {
            while session.session().on_loan() != (0, 0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, nothing_lent).await.expect("everything comes home");
        peer.tell("stop");
        drop((channels, session));
        // Its own census is part of that, and its session ends only when this one does.
        tokio::task::spawn_blocking(move || peer.finish()).await.expect("a good end");
    });
    drop(runtime);
    place.must_be_empty();
}

fn one_thread() {
    let place = Place::new();
    let mut peer = Peer::start("echo", &[place.text()]);
    peer.must_say("ready");
    let runtime = Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let session = connect(&place).await;
        let channel = session.open_channel::<hello::Owned>("main", PATIENCE).await.expect("channel");
        for index in 0..200 {
            let (first, second) = (greet(&channel, &format!("a {index}")), greet(&channel, &format!("b {index}")));
            let (first, second) = tokio::join!(channel.request(&first), channel.request(&second));
            assert_eq!(words(&first.expect("answer")), format!("a {index}"));
            assert_eq!(words(&second.expect("answer")), format!("b {index}"));
        }
        no_watcher();
        session.session().close();
        assert_eq!(session.ended().await, Ended::Closed);
        peer.tell("stop");
        drop((channel, session));
        tokio::task::spawn_blocking(move || peer.finish()).await.expect("a good end");
    });
}

/// Polls a future so often and gives it up then.
struct Fickle<F> {
    future: F,
    polls: u64,
}

impl<F: Future + Unpin> Future for Fickle<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        let polled = Pin::new(&mut self.future).poll(cx).map(Some);
        if polled.is_pending() {
            if self.polls == 0 {
                return Poll::Ready(None);
            }
            cx.waker().wake_by_ref();
        }
        polled
    }
}

async fn fickle<F: Future>(rng: &AtomicU64, future: F) -> Option<F::Output> {
    let polls = Rng::new(rng.fetch_add(1, Ordering::Relaxed)).below(4);
    Fickle { future: pin!(future), polls }.await
}

const NOTES: u64 = 500;
const TALKERS: u64 = 6;

/// Receives notes, each sender's in order, with futures that are dropped at any point; says how many of whom.
fn counter(args: &[String]) {
    let runtime = many_threads();
    runtime.block_on(async {
        let app = server(&args[0]).slots(8).allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
        let server = AsyncServer::new(Arc::new(app.bind().expect("bind"))).expect("server");
        say("ready");
        let session = server.accept().await.expect("client");
        let channel = session.accept_channel::<hello::Owned>().await.expect("channel");
        let rng = AtomicU64::new(7);
        let mut heard = [0_u64; TALKERS as usize];
        loop {
            let received = match fickle(&rng, channel.recv()).await {
                None => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Some(Ok(received)) => received,
                Some(Err(RecvError::Finished | RecvError::Ended(_))) => break,
                Some(Err(other)) => panic!("{other}"),
            };
            let said = words(&received);
            if said == "how many" {
                let text = format!("{heard:?}");
                match channel.reply(&received, &greet(&channel, &text)).await {
                    Ok(_) | Err(SendError::Cancelled) => {}
                    Err(other) => panic!("{other}"),
                }
                continue;
            }
            let (who, number) = said.split_once(' ').expect("two");
            let (who, number) = (who.parse::<usize>().expect("who"), number.parse::<u64>().expect("number"));
            assert_eq!(number, heard[who], "in order, each once");
            heard[who] += 1;
            // Answered in vain, as often as not.
            if number.is_multiple_of(3) {
                let answer = greet(&channel, &said);
                let _ = fickle(&rng, channel.reply(&received, &answer)).await;
            }
        }
    });
}

fn dropped() {
    let place = Place::new();
    let mut peer = Peer::start("counter", &[place.text()]);
    peer.must_say("ready");
    let runtime = many_threads();
    runtime.block_on(async {
        let app = client().slots(8).channel::<hello::Owned>("main");
        let session = AsyncSession::connect(&app, &place.server()).await.expect("connect");
        let channel = session.open_channel::<hello::Owned>("main", PATIENCE).await.expect("channel");
        let rng = Arc::new(AtomicU64::new(1_000_000));
        let mut talking = JoinSet::new();
        for who in 0..TALKERS {
            let (channel, rng) = (channel.clone(), rng.clone());
            talking.spawn(async move {
                let (mut next, mut given_up) = (0, 0_u64);
                while next < NOTES {
                    let note = greet(&channel, &format!("{who} {next}"));
                    // A request may be given up before or after it was sent: only the peer knows, so those who ask do
                    // not count.
                    match fickle(&rng, channel.send(&note)).await {
                        Some(sent) => {
                            sent.expect("open");
                            next += 1;
                        }
                        None => {
                            given_up += 1;
                            tokio::task::yield_now().await;
                        }
                    }
                }
                given_up
            });
        }
        let mut given_up = 0;
        while let Some(talked) = talking.join_next().await {
            given_up += talked.expect("talker");
        }
        println!("note: {given_up} sends given up, {} made", NOTES * TALKERS);
        let asked = greet(&channel, "how many");
        let mut tries = 0;
        let answer = loop {
            tries += 1;
            match fickle(&rng, channel.request(&asked)).await {
                Some(answer) => break answer.expect("answer"),
                None => tokio::task::yield_now().await,
            }
            if tries > 500 {
                break channel.request(&asked).await.expect("answer");
            }
        };
        assert_eq!(words(&answer), format!("{:?}", [NOTES; TALKERS as usize]));
        drop(answer);
        let nothing_lent = async {
            while session.session().on_loan() != (0, 0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, nothing_lent).await.expect("everything comes home");
        drop((channel, session));
        tokio::task::spawn_blocking(move || peer.finish()).await.expect("a good end");
    });
}

fn stream() {
    let place = Place::new();
    let runtime = many_threads();
    runtime.block_on(async {
        let app = place.server().allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main");
        let server = AsyncServer::new(Arc::new(app.bind().expect("bind"))).expect("server");
        let (accepted, session) = tokio::join!(server.accept(), connect(&place));
        let accepted = accepted.expect("accept");
        let sending = session.open_channel::<hello::Owned>("main", PATIENCE).await.expect("channel");
        let channel = accepted.accept_channel::<hello::Owned>().await.expect("channel");
        let sender = tokio::spawn(async move {
            for number in 0..1_000 {
                sending.send(&greet(&sending, &number.to_string())).await.expect("send");
            }
            drop(sending);
            session
        });
        let all: Vec<_> = channel.map(|received| received.map(|received| words(&received))).collect().await;
        let (last, notes) = all.split_last().expect("some");
        assert!(matches!(last, Err(RecvError::Ended(_))) || last.is_ok(), "{last:?}");
        let notes: Vec<_> = notes.iter().map(|note| note.clone().expect("in order")).collect();
        assert!(notes.len() >= 999);
        assert!(notes.iter().enumerate().all(|(number, note)| *note == number.to_string()));
        drop(sender.await.expect("sender"));
        assert_eq!(accepted.ended().await, Ended::PeerClosed);
    });
}

fn death() {
    let place = Place::new();
    let peer = obliging_server(&place, "snapshot");
    let runtime = many_threads();
    runtime.block_on(async {
        let session = connect(&place).await;
        let channel = session.open_channel::<hello::Owned>("main", PATIENCE).await.expect("channel");
        let mut waiting = JoinSet::new();
        for _ in 0..20 {
            let (asking, receiving) = (channel.clone(), channel.clone());
            waiting.spawn(async move {
                let never = greet(&asking, "note");
                matches!(asking.request(&never).await, Err(RequestError::Ended(_)))
            });
            waiting.spawn(async move { matches!(receiving.recv().await, Err(RecvError::Ended(_))) });
        }
        let accepting = session.clone();
        waiting.spawn(async move { accepting.accept_channel::<hello::Owned>().await.is_err() });
        tokio::task::yield_now().await;
        peer.kill();
        assert_eq!(session.ended().await, Ended::PeerDied);
        while let Some(ended) = waiting.join_next().await {
            assert!(ended.expect("waiter"));
        }
    });
}

fn outlive() {
    obliging::with_server("snapshot", |place, _| {
        let runtime = many_threads();
        let (session, channel) = runtime.block_on(async {
            let session = connect(place).await;
            let channel = session.open_channel::<hello::Owned>("main", PATIENCE).await.expect("channel");
            let answer = channel.request(&greet(&channel, "echo before")).await.expect("answer");
            assert_eq!(words(&answer), "before");
            (session, channel)
        });
        drop(runtime);
        // The watcher has it now.
        let mut later = session.session().open_channel::<hello::Owned>("main", PATIENCE).expect("channel");
        assert_eq!(common::apps::ask(&mut later, "echo after"), "after");
        drop(later);
        // And the channel works in another runtime.
        let other = Builder::new_current_thread().enable_all().build().expect("runtime");
        other.block_on(async {
            let answer = channel.request(&greet(&channel, "echo again")).await.expect("answer");
            assert_eq!(words(&answer), "again");
        });
        drop((channel, session));
    });
}

/// A slot that is seen before its descriptors, and another behind it: the thread that everything runs in is not kept.
fn late_descriptors() {
    let place = Place::new();
    let raw_app = strait::ClientApp::new("raw");
    let app = place.server().allow(&raw_app, Trust::snapshot()).channel::<hello::Owned>("main");
    let bound = Arc::new(app.bind().expect("bind"));
    let runtime = Builder::new_current_thread().enable_all().build().expect("runtime");
    let dir = place.path().to_owned();
    let hostile = std::thread::spawn(move || raw::Raw::login(&dir));
    runtime.block_on(async {
        let server = AsyncServer::new(bound).expect("server");
        let session = server.accept().await.expect("session");
        let channel = session.accept_channel::<hello::Owned>().await.expect("channel");
        let mut raw = hostile.join().expect("thread");
        for _ in 0..3 {
            let mut payload = raw.lane.compose("with a descriptor");
            let number = raw.lane.sent;
            payload[0] |= 1 << 40;
            raw.lane.put(payload);
            raw.lane.say("behind it");
            assert!(raw.socket.say(&raw::Frame::control(10, 1).u32(8, 1)));
            assert!(tokio::time::timeout(SHORT, channel.recv()).await.is_err(), "it is not complete");
            let null = std::fs::File::open("/dev/null").expect("null");
            let frame = raw::Frame::control(7, 1).u64(8, number).u32(16, 1);
            assert!(raw.socket.send(&frame.0, &[null.as_fd()]));
            for expected in [1, 0] {
                let mut received = channel.recv().await.expect("there");
                assert_eq!(received.take_fds().expect("here").len(), expected);
            }
        }
        drop(raw);
        assert!(matches!(channel.recv().await, Err(RecvError::Ended(ended)) if ended.cause == Ended::PeerDied));
    });
}
