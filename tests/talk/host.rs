//! The other process: one session, one split channel, and whatever its messages ask for in words.

use crate::common::PATIENCE;
use crate::common::apps::{client, server, trust, words};
use crate::common::peer::{hear, say};
use crate::hello_capnp::hello;
use std::thread;
use strait::{ChannelError, Message, Received, Receiver, RecvError, SendError, Sender, Session};

type Hello = hello::Owned;

/// Arguments: where, and how far the client is believed. Says how the conversation ended.
pub fn run(args: &[String]) {
    let app = server(&args[0]).allow(&client(), trust(&args[1])).channel::<Hello>("main");
    let server = app.bind().expect("bind");
    say("ready");
    let session = server.accept().expect("a client");
    thread::scope(|scope| {
        loop {
            match session.accept_channel::<Hello>() {
                Ok(channel) => {
                    let (sender, receiver) = channel.split();
                    let session = &session;
                    scope.spawn(move || oblige(sender, receiver, session));
                }
                Err(ChannelError::Ended { .. }) => break,
                Err(other) => panic!("{other}"),
            }
        }
    });
}

fn oblige(sender: Sender<Hello>, mut receiver: Receiver<Hello>, session: &Session) {
    let (mut sender, mut later) = (Some(sender), None);
    loop {
        let received = match receiver.recv() {
            Ok(received) => received,
            Err(RecvError::Finished) => {
                say("finished");
                // What is sent after the other side has finished still arrives.
                if let Some(sender) = &sender {
                    notice(sender, "goodbye");
                }
                return;
            }
            Err(RecvError::Ended(ended)) => return say(format!("ended: {:?}", ended.cause)),
            Err(other) => panic!("{other}"),
        };
        let said = words(&received);
        let (command, rest) = said.split_once(' ').unwrap_or((&said, ""));
        let Some(speaker) = &sender else {
            say(format!("heard {said}"));
            continue;
        };
        match command {
            "echo" => answer(speaker, &received, rest),
            "notices" => (0..number(rest)).for_each(|index| notice(speaker, &format!("notice {index}"))),
            "tags" => (0..number(rest)).for_each(|index| {
                let mut builder = speaker.create_msg();
                if index % 2 == 0 {
                    builder.init_root().set_greet(index.to_string());
                } else {
                    builder.init_root().set_answer(index.to_string());
                }
                sent(speaker.send(&builder.freeze().expect("room")));
            }),
            "stream" => stream(speaker, &received, number(rest)),
            "endless" => {
                let speaker = speaker.clone();
                thread::spawn(move || endless(&speaker, &received));
            }
            "twice" => (0..2).for_each(|_| answer(speaker, &received, rest)),
            "later" => later = Some(received),
            "now" => answer(speaker, &later.take().expect("asked before"), "late"),
            "unexpected" => answer(speaker, &received, &speaker.unexpected_replies().to_string()),
            "loans" => answer(speaker, &received, &format!("{:?}", session.on_loan())),
            "kind" => {
                let mut builder = speaker.create_msg();
                builder.set_kind(received.kind() + 1).init_root().set_greet("of a kind");
                sent(speaker.reply(&received, &builder.freeze().expect("room")));
            }
            "is-request" => notice(speaker, &received.is_request().to_string()),
            "silence" => {
                // Kept, so that it is neither answered nor given back.
                std::mem::forget(received);
                say("silent");
            }
            "gate" => assert_eq!(hear(), "open"),
            "finish" => sender = None,
            other => panic!("{other}?"),
        }
    }
}

fn number(rest: &str) -> u64 {
    rest.parse().expect("a number")
}

fn text(sender: &Sender<Hello>, words: &str) -> Message<Hello> {
    let mut builder = sender.create_msg();
    builder.init_root().set_greet(words);
    builder.freeze().expect("room")
}

fn sent(result: Result<u64, SendError>) {
    match result {
        Ok(_) | Err(SendError::Ended(_)) => {}
        Err(other) => panic!("{other}"),
    }
}

fn notice(sender: &Sender<Hello>, words: &str) {
    let message = text(sender, words);
    sent(sender.send_timeout(&message, PATIENCE));
}

fn answer(sender: &Sender<Hello>, to: &Received<Hello>, words: &str) {
    let message = text(sender, words);
    sent(sender.reply_timeout(to, &message, PATIENCE));
}

fn stream(sender: &Sender<Hello>, to: &Received<Hello>, parts: u64) {
    for part in 1..parts {
        let message = text(sender, &format!("part {part}"));
        match sender.reply_more_timeout(to, &message, PATIENCE) {
            Err(SendError::Cancelled) => return,
            other => sent(other),
        }
    }
    let message = text(sender, &format!("part {parts}"));
    match sender.reply_timeout(to, &message, PATIENCE) {
        Err(SendError::Cancelled) => {}
        other => sent(other),
    }
}

/// Answers until nobody wants it any more.
fn endless(sender: &Sender<Hello>, to: &Received<Hello>) {
    for part in 1.. {
        let message = text(sender, &format!("part {part}"));
        match sender.reply_more(to, &message) {
            Ok(_) => {}
            Err(SendError::Cancelled) => {
                assert!(sender.is_cancelled(to));
                assert_eq!(sender.reply(to, &message), Err(SendError::Cancelled));
                return say("cancelled");
            }
            Err(SendError::Ended(_)) => return,
            Err(other) => panic!("{other}"),
        }
    }
}
