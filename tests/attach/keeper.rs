//! The other process of the `attach` suite: a server that says what it was given, and keeps it if told so.

use crate::common::apps::{client, greet, server, trust, words};
use crate::common::peer::{hear, say};
use crate::hello_capnp::hello;
use std::sync::Mutex;
use strait::{AcceptError, Channel, ClientApp, Received, ReceivedBlob, RecvError, SendError, Session};

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

/// Arguments: where, and how far clients are believed. Runs until told `stop`.
pub fn keeper(args: &[String]) {
    let app = server(&args[0]).channel::<hello::Owned>("main");
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
    let mut channel: Channel<hello::Owned> = session.accept_channel().expect("a channel");
    loop {
        let received = match channel.recv() {
            Ok(received) => received,
            Err(RecvError::Ended(_)) => break,
            Err(other) => panic!("{other}"),
        };
        if let Err(SendError::Ended(_)) = answer(&session, &mut channel, received, kept) {
            break;
        }
    }
    kept.lock().expect("kept").clear();
}

fn answer(
    session: &Session,
    channel: &mut Channel<hello::Owned>,
    received: Received<hello::Owned>,
    kept: &Mutex<Vec<ReceivedBlob>>,
) -> Result<u64, SendError> {
    let said = words(&received);
    let mut said = said.split(' ');
    let command = said.next().unwrap_or_default();
    let mut number = || said.next().expect("a number").parse::<usize>().expect("a number");
    let blobs = received.blobs();
    let join = |found: Vec<String>| found.join(" ");
    let mut kept = kept.lock().expect("kept");
    let words = match command {
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
