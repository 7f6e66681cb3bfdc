//! The other processes of the `sealed` suite: a server that says what it was given, keeps it, or sends it on; a client that
//! gives without end.

use crate::common::apps::{client, greet, open, server, trust, words};
use crate::common::peer::{hear, say};
use crate::common::{PATIENCE, apps, census};
use crate::hello_capnp::hello;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use strait::{
    AcceptError, Backing, Channel, ClientApp, Forwarded, Received, RecvError, SealedBuilder, SendError, Session,
};

static FILLING: Mutex<Vec<File>> = Mutex::new(Vec::new());

type Kept = Mutex<Vec<Received<hello::Owned>>>;

pub fn fill(bytes: &mut [u8], seed: usize) {
    bytes.iter_mut().enumerate().for_each(|(at, place)| *place = byte(seed, at));
}

pub fn is_filled(bytes: &[u8], seed: usize) -> bool {
    bytes.iter().enumerate().all(|(at, &found)| found == byte(seed, at))
}

fn byte(seed: usize, at: usize) -> u8 {
    (seed.wrapping_mul(31) ^ at ^ at >> 8 ^ at >> 16) as u8
}

/// The reading end of a pipe with these words in it.
pub fn full_pipe(words: &str) -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(words.as_bytes()).expect("room");
    reader.into()
}

/// The sealed memory that this process has mapped: how, and which.
pub fn maps() -> Vec<String> {
    let all = census::maps("self").into_iter().filter(|line| line.contains("memfd:strait-sealed"));
    let shown = |line: String| {
        let fields: Vec<_> = line.split_whitespace().collect();
        format!("{} {}", fields[1], fields[4])
    };
    all.map(shown).collect()
}

/// Arguments: where, how far clients are believed, over what memory if not a memfd, and where things are sent on to. Runs
/// until told `stop`.
pub fn taker(args: &[String]) {
    let heap = args.get(2).is_some_and(|word| *word == format!("{:?}", Backing::Heap));
    let backing = if heap { Backing::Heap } else { Backing::Memfd };
    let app = server(&args[0]).backing(backing).channel::<hello::Owned>("main");
    let app = app.allow(&client(), trust(&args[1])).allow(&ClientApp::new("other"), trust(&args[1]));
    let server = app.bind().expect("bind");
    let (kept, next) = (Kept::default(), args.get(3));
    say("ready");
    std::thread::scope(|scope| {
        let (kept, server) = (&kept, &server);
        scope.spawn(move || {
            loop {
                match server.accept() {
                    Ok(session) => drop(scope.spawn(move || serve(&session, kept, next))),
                    Err(AcceptError::Closed) => return,
                    Err(error) => say(format!("{error:?}")),
                }
            }
        });
        assert_eq!(hear(), "stop");
        server.close();
    });
}

fn serve(session: &Session, kept: &Kept, next: Option<&String>) {
    while let Ok(mut channel) = session.accept_channel() {
        loop {
            match channel.recv() {
                Ok(received) => match answer(&mut channel, received, kept, next) {
                    Err(SendError::Ended(_)) => break,
                    other => drop(other.expect("sent")),
                },
                Err(RecvError::Ended(_) | RecvError::Finished) => break,
                Err(RecvError::DescriptorsLost(lost)) => {
                    let news = greet(&channel, &format!("{} lost", lost.sent));
                    channel.send(&news).expect("sent");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

fn answer(
    channel: &mut Channel<hello::Owned>,
    mut received: Received<hello::Owned>,
    kept: &Kept,
    next: Option<&String>,
) -> Result<u64, SendError> {
    let said = words(&received);
    let mut said = said.split(' ');
    let command = said.next().unwrap_or_default();
    let mut number = || said.next().expect("a number").parse::<usize>().expect("a number");
    let found = match command {
        "" => format!("kind {}", received.kind()),
        "look" => look(&mut received),
        "pass" if next.is_some() => {
            let session = ClientApp::new("other").timeout(PATIENCE).connect(&apps::server(next.expect("some")));
            let mut onward = open(session.as_ref().expect("connect"));
            let Forwarded::ByReference(_) = onward.forward(&received).expect("sent") else { panic!("copied") };
            format!("by reference: {}", words(&onward.recv_timeout(PATIENCE).expect("answer")))
        }
        "keep" | "pass" => {
            let beside = pipes(&mut received);
            let answer = format!("kept {}{beside}", maps().pop().expect("mapped"));
            let answer = greet(channel, &answer);
            let id = channel.reply(&received, &answer);
            kept.lock().expect("kept").push(received);
            return id;
        }
        "check" => {
            let kept = kept.lock().expect("kept");
            let whole = |message: &Received<_>| {
                message.blobs().iter().enumerate().all(|(seed, blob)| is_filled(blob.as_slice().expect("sealed"), seed))
            };
            (!kept.is_empty() && kept.iter().all(whole)).to_string()
        }
        "drop" => std::mem::take(&mut *kept.lock().expect("kept")).len().to_string(),
        "maps" => maps().len().to_string(),
        "make" => {
            let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
            builder.init_root().set_answer("made");
            fill(builder.add_blob(number()).expect("memory"), 0);
            return channel.reply(&received, &builder.seal().expect("memory"));
        }
        // Greetings and answers in turn.
        "tags" => {
            for index in 0..number() {
                let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
                match index % 2 {
                    0 => builder.init_root().set_greet(&*index.to_string()),
                    _ => builder.init_root().set_answer(&*index.to_string()),
                }
                channel.send(&builder.seal().expect("memory"))?;
            }
            return Ok(0);
        }
        // Has no room in its table; or has again.
        "fill" => {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
            setrlimit(Resource::RLIMIT_NOFILE, hard.min(200), hard).expect("a limit");
            let null = File::open("/dev/null").expect("null");
            let mut filling = FILLING.lock().expect("filling");
            filling.extend(std::iter::from_fn(|| null.try_clone().ok()));
            filling.push(null);
            "filled".into()
        }
        "empty" => {
            FILLING.lock().expect("filling").clear();
            "emptied".into()
        }
        other => format!("{other}?"),
    };
    let message = greet(channel, &found);
    channel.reply(&received, &message)
}

fn look(received: &mut Received<hello::Owned>) -> String {
    let kind = if received.is_sealed() { "sealed" } else { "plain" };
    let blobs = received.blobs().iter().enumerate().map(|(seed, blob)| match blob.as_slice() {
        Some(bytes) if is_filled(bytes, seed) => format!(" {}:{seed}", bytes.len()),
        _ => " damaged".into(),
    });
    let blobs: Vec<_> = blobs.collect();
    format!("{kind} {}{}{}", words(received).len(), blobs.concat(), pipes(received))
}

fn pipes(received: &mut Received<hello::Owned>) -> String {
    let read = |fd: OwnedFd| {
        let mut found = String::new();
        File::from(fd).read_to_string(&mut found).expect("a pipe");
        format!(" pipe={found}")
    };
    received.take_fds().expect("all there").into_iter().map(read).collect()
}

/// A client that sends sealed messages until it is killed; `large`: of 8 MiB.
pub fn maker(args: &[String]) {
    let session = client().arena_bytes(4 << 20).connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    let len = if args.len() > 1 { 8 << 20 } else { 100_000 };
    loop {
        let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
        builder.init_root().set_greet("for ever");
        fill(builder.add_blob(len).expect("memory"), 0);
        if channel.send(&builder.seal().expect("memory")).is_err() {
            // Cut off.
            hear();
        }
    }
}
