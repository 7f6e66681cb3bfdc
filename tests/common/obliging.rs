//! A server that does what its clients ask for in words, in as many threads as there are channels.

use super::apps::{Place, client, greet, server, trust, words};
use super::peer::{Peer, hear, say};
use crate::hello_capnp::hello;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use strait::{AcceptError, Channel, ChannelError, RecvError, SendError, ServerApp, Session, Trust};

/// Runs until told `stop`; argument: where, and how far clients are believed. Says `ready`, and what goes wrong.
pub fn run(args: &[String]) {
    let app = server(&args[0]).allow(&super::apps::client(), trust(&args[1])).channel::<hello::Owned>("main");
    run_app(app, |_| {});
}

/// As [`run`], for any app; `also` gets every session first.
pub fn run_app(app: ServerApp, also: fn(&Session)) {
    let server = Arc::new(app.bind().expect("bind"));
    let gate = Arc::new(Gate::default());
    say("ready");
    let accepting = {
        let (server, gate) = (server.clone(), gate.clone());
        std::thread::spawn(move || {
            let mut threads = Vec::new();
            loop {
                match server.accept() {
                    Ok(session) => {
                        also(&session);
                        let gate = gate.clone();
                        threads.push(std::thread::spawn(move || serve(session, &gate)));
                    }
                    Err(AcceptError::Closed) => break,
                    Err(error) => say(format!("accept: {error:?}")),
                }
            }
            threads.into_iter().for_each(|thread| thread.join().expect("session thread"));
        })
    };
    loop {
        match hear().as_str() {
            "open the gate" => gate.open(),
            "stop" | "" => break,
            other => panic!("what is {other}"),
        }
    }
    server.close();
    accepting.join().expect("accepting thread");
}

/// What `wait at the gate` waits for.
#[derive(Default)]
pub struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().expect("gate") = true;
        self.1.notify_all();
    }

    fn pass(&self) {
        let open = self.0.lock().expect("gate");
        drop(self.1.wait_while(open, |open| !*open).expect("gate"));
    }
}

fn serve(session: Session, gate: &Arc<Gate>) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    loop {
        match session.accept_channel::<hello::Owned>() {
            Ok(channel) => {
                let (session, gate) = (session.clone(), gate.clone());
                threads.push(std::thread::spawn(move || oblige(channel, &session, &gate)));
            }
            Err(ChannelError::Ended { cause, .. }) => break say(format!("session: {cause:?}")),
            Err(other) => panic!("{other}"),
        }
    }
    drop(session);
    threads.into_iter().for_each(|thread| thread.join().expect("channel thread"));
}

fn oblige(mut channel: Channel<hello::Owned>, session: &Session, gate: &Gate) {
    let (mut kept, mut heard) = (None, 0_u64);
    loop {
        let received = match channel.recv() {
            Ok(received) => received,
            Err(RecvError::Ended(_) | RecvError::Finished) => return,
            Err(other) => panic!("{other}"),
        };
        heard += 1;
        let said = words(&received);
        let (command, rest) = said.split_once(' ').unwrap_or((&said, ""));
        let number = || rest.parse::<u64>().expect("a number");
        let mut send = |text: String| {
            let message = greet(&channel, &text);
            match channel.send(&message) {
                Ok(_) | Err(SendError::Ended(_)) => {}
                Err(other) => panic!("{other}"),
            }
        };
        let answer = match command {
            "echo" => rest.to_owned(),
            // Answered, late, with the next message that is answered.
            "later" => {
                kept = Some(received);
                continue;
            }
            "note" => continue,
            "heard" => heard.to_string(),
            "burst" => {
                (0..number()).for_each(|index| send(format!("burst {index}")));
                "done".into()
            }
            "loans" => format!("{:?}", session.on_loan()),
            "gate" => {
                gate.pass();
                "passed".into()
            }
            "flood-and-close-channel" => return (0..number()).for_each(|index| send(format!("flood {index}"))),
            "flood-and-close-session" => {
                (0..number()).for_each(|index| send(format!("flood {index}")));
                return session.close();
            }
            "flood-and-die" => {
                (0..number()).for_each(|index| send(format!("flood {index}")));
                std::process::abort();
            }
            other => format!("{other}?"),
        };
        if let Some(kept) = kept.take() {
            let late = greet(&channel, "late");
            channel.reply(&kept, &late).expect("reply");
        }
        let answer = greet(&channel, &answer);
        match channel.reply(&received, &answer) {
            Ok(_) | Err(SendError::Ended(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

// The other end, for cases.

pub fn obliging_server(place: &Place, trust: &str) -> Peer {
    let mut peer = Peer::start("obliging", &[place.text(), trust]);
    peer.must_say("ready");
    peer
}

pub fn connect(place: &Place, believing: Trust) -> Session {
    client().trust(believing).channel::<hello::Owned>("main").connect(&place.server()).expect("connect")
}

/// A case against an obliging server; `talk` must leave no session.
pub fn with_server(believing: &str, talk: impl FnOnce(&Place, &mut Peer)) {
    let place = Place::new();
    let mut peer = obliging_server(&place, believing);
    talk(&place, &mut peer);
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}
