//! The other process of the `attach` suite: a server that says what it was given, and keeps it if told so.

use crate::common::apps::{client, greet, server, trust, words};
use crate::common::peer::{hear, say};
use crate::hello_capnp::hello;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use strait::{
    AcceptError, Backing, Channel, ClientApp, DescriptorsLost, Received, ReceivedBlob, RecvError, SendError, Session,
};

static FILLING: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// The byte at a place of a blob: tells blobs and places apart.
fn byte(seed: usize, at: usize) -> u8 {
    (seed.wrapping_mul(31) ^ at ^ at >> 8 ^ at >> 16) as u8
}

pub fn fill(bytes: &mut [u8], seed: usize) {
    bytes.iter_mut().enumerate().for_each(|(at, place)| *place = byte(seed, at));
}

pub fn is_filled(bytes: &[u8], seed: usize) -> bool {
    bytes.iter().enumerate().all(|(at, &found)| found == byte(seed, at))
}

/// Arguments: where, how far clients are believed, and over what memory if not a memfd. Runs until told `stop`.
pub fn keeper(args: &[String]) {
    let heap = args.get(2).is_some_and(|word| *word == format!("{:?}", Backing::Heap));
    let backing = if heap { Backing::Heap } else { Backing::Memfd };
    let app = server(&args[0]).backing(backing).channel::<hello::Owned>("main");
    let app = app.allow(&client(), trust(&args[1])).allow(&ClientApp::new("other"), trust(&args[1]));
    let server = app.bind().expect("bind");
    let kept = Mutex::default();
    say("ready");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                match server.accept() {
                    Ok(session) => drop(scope.spawn(|| serve(session, &kept))),
                    Err(AcceptError::Closed) => return,
                    Err(error) => say(format!("{error:?}")),
                }
            }
        });
        assert_eq!(hear(), "stop");
        server.close();
    });
}

fn serve(session: Session, kept: &Mutex<Vec<ReceivedBlob>>) {
    while let Ok(channel) = session.accept_channel() {
        converse(&session, channel, kept);
    }
}

fn converse(session: &Session, mut channel: Channel<hello::Owned>, kept: &Mutex<Vec<ReceivedBlob>>) {
    loop {
        let received = match channel.recv() {
            Ok(received) => received,
            Err(RecvError::Ended(_) | RecvError::Finished) => break,
            Err(other) => panic!("{other}"),
        };
        if words(&received) == "close" {
            break;
        }
        match answer(session, &mut channel, received, kept) {
            Err(SendError::Ended(_)) => break,
            other => other.expect("sent"),
        };
    }
    kept.lock().expect("kept").clear();
}

fn answer(
    session: &Session,
    channel: &mut Channel<hello::Owned>,
    mut received: Received<hello::Owned>,
    kept: &Mutex<Vec<ReceivedBlob>>,
) -> Result<u64, SendError> {
    let fds = received.take_fds();
    let said = words(&received);
    let mut said = said.split(' ');
    let command = said.next().unwrap_or_default();
    let mut number = || said.next().expect("a number").parse::<usize>().expect("a number");
    let blobs = received.blobs();
    let join = |found: Vec<String>| found.join(" ");
    let mut kept = kept.lock().expect("kept");
    let words = match command {
        // What another keeper made or gave.
        "made" => join(blobs.iter().map(|blob| is(blob, 7).to_string()).collect()),
        "given" => join(fds.expect("all there").into_iter().map(look).collect()),
        "" | "sizes" => join(blobs.iter().map(|blob| blob.len().to_string()).collect()),
        // Which fill each has, the first's being given.
        "find" if !kept.is_empty() => kept.iter().filter(|blob| is(blob, 1)).count().to_string(),
        "find" => {
            let first = number();
            let fits = |(index, blob): (usize, &ReceivedBlob)| is(blob, first + index).then_some(first + index);
            let found = blobs.iter().enumerate().map(|found| match fits(found) {
                Some(seed) => format!("{}:{seed}", found.1.len()),
                None => "damaged".into(),
            });
            join(found.collect())
        }
        "ends" => {
            let [blob] = blobs else { panic!("one blob") };
            let (mut first, mut last) = ([0; 3], [0; 3]);
            blob.read_exact_at(&mut first, 0).expect("there");
            blob.read_exact_at(&mut last, blob.len() - 3).expect("there");
            format!("{} {} {}", blob.len(), String::from_utf8_lossy(&first), String::from_utf8_lossy(&last))
        }
        "keep" => {
            kept.extend(blobs.iter().cloned());
            kept.len().to_string()
        }
        "drop" => {
            let count = kept.len();
            kept.clear();
            count.to_string()
        }
        "make" => {
            let (seed, len) = (number(), number());
            let mut blob = session.arena().create_blob(len).expect("room");
            fill(&mut blob, seed);
            let mut message = channel.create_msg();
            message.init_root().set_answer("made");
            message.attach_blob(blob.freeze());
            return channel.reply(&received, &message.freeze().expect("room"));
        }
        // What each descriptor is of, and what can be read there.
        "look" => match fds {
            Ok(fds) => join(fds.into_iter().map(look).collect()),
            Err(DescriptorsLost { sent }) => format!("{sent} lost"),
        },
        // Writes to each who it is.
        "write" => {
            let fds = fds.expect("all there");
            for (index, fd) in fds.into_iter().enumerate() {
                write!(File::from(fd), "{index}").expect("somebody reads");
            }
            "written".into()
        }
        "give" => {
            let mut message = channel.create_msg();
            message.init_root().set_answer("given");
            for index in 0..number() {
                message.attach_fd(full_pipe(&index.to_string()));
            }
            return channel.reply(&received, &message.freeze().expect("room"));
        }
        // As many messages as it says, a descriptor with each; answers how many of them could be sent at once.
        "flood" => {
            let (count, mut at_once) = (number(), None);
            for index in 0..count {
                let mut message = channel.create_msg();
                message.init_root().set_answer(&*index.to_string());
                message.attach_fd(full_pipe(&index.to_string()));
                let message = message.freeze().expect("room");
                match channel.try_send(&message) {
                    Err(SendError::Full) => {
                        at_once.get_or_insert(index);
                        say("full");
                        channel.send(&message)?;
                    }
                    other => drop(other?),
                }
            }
            at_once.unwrap_or(count).to_string()
        }
        "descriptors" => std::fs::read_dir("/proc/self/fd").expect("procfs").count().to_string(),
        // Fills its table but for so many places; or empties it again.
        "fill" => {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
            setrlimit(Resource::RLIMIT_NOFILE, hard.min(200), hard).expect("a limit");
            let null = File::open("/dev/null").expect("null");
            let mut filling: Vec<_> = std::iter::from_fn(|| null.try_clone().ok()).collect();
            filling.truncate(filling.len() - number());
            FILLING.lock().expect("filling").extend(filling);
            "filled".into()
        }
        "empty" => {
            FILLING.lock().expect("filling").clear();
            "emptied".into()
        }
        "loans" => session.on_loan().0.to_string(),
        other => format!("{other}?"),
    };
    drop(kept);
    let message = greet(channel, &words);
    channel.reply(&received, &message)
}

fn is(blob: &ReceivedBlob, seed: usize) -> bool {
    let bytes = blob.to_vec().expect("memory");
    assert!(blob.as_slice().is_none_or(|slice| slice == bytes));
    is_filled(&bytes, seed)
}

/// The reading end of a pipe with these words in it.
pub fn full_pipe(words: &str) -> OwnedFd {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(words.as_bytes()).expect("room");
    reader.into()
}

/// What a descriptor is of, and what can be read there.
pub fn look(fd: OwnedFd) -> String {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("a link");
    let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).expect("flags");
    assert_eq!(flags & nix::libc::FD_CLOEXEC, nix::libc::FD_CLOEXEC, "none goes to what is run");
    let kind = path.to_string_lossy().split([':', '[']).next().unwrap_or_default().to_owned();
    let mut found = String::new();
    match File::from(fd).read_to_string(&mut found) {
        Ok(_) => format!("{kind}={found}"),
        Err(_) => kind,
    }
}
