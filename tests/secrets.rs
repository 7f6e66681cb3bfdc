//! What a peer can read that it was not sent. Its side is a raw one, which looks through all the memory it was given.

mod common;
#[path = "common/raw.rs"]
mod raw;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, client, greet, open, server, words};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, eventually};
use hello_capnp::hello;
use nix::unistd::{Whence, lseek};
use raw::{Frame, Memory, Raw};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use strait::{Channel, ClientApp, SendError, Session, Trust};

fn main() -> ExitCode {
    let cases = [
        Case::new("what_was_begun_and_never_sent", drafts),
        Case::new("what_came_back", came_back),
        Case::new("what_others_are_sent", others),
        Case::new("what_can_be_seen_without_it", without),
    ];
    common::main(&cases, &[("host", host)])
}

const SECRET: &str = "the treasure lies under the old oak, three feet deep; ";

/// Lets `raw` in, apart or together with the others, and `tester`; does what it is told until told `stop`.
fn host(args: &[String]) {
    let raw = ClientApp::new("raw");
    let raw = if args[1] == "apart" { raw.apart() } else { raw };
    let app = server(&args[0]).slots(raw::SLOTS).channel::<hello::Owned>("main").allow(&client(), Trust::snapshot());
    let server = app.allow(&raw, Trust::snapshot()).bind().expect("bind");
    say("ready");
    let (session, mut channel) = next(&server);
    let mut friend = None;
    loop {
        match hear().as_str() {
            "begin" => begin(&session, &channel),
            "tell" => {
                let message = greet(&channel, &SECRET.repeat(3));
                channel.send(&message).expect("sent");
            }
            "loans" => {
                say(session.on_loan().0);
                continue;
            }
            "friend" => friend = Some(next(&server)),
            // What is in the app's own arena is not for everyone.
            "all" => {
                let mut news = server.create_msg::<hello::Owned>();
                news.init_root().set_greet(&*SECRET.repeat(100));
                let news = news.freeze().expect("room");
                let (_, friend) = friend.as_mut().expect("somebody");
                friend.send(&news).expect("sent");
                if args[1] == "apart" {
                    assert_eq!(channel.send(&news), Err(SendError::ForeignArena));
                    assert!(session.arena().capacity() <= 1 << 30, "small");
                }
            }
            "stop" => break,
            other => panic!("{other}?"),
        }
        say("done");
    }
}

fn next(server: &strait::SessionServer) -> (Session, Channel<hello::Owned>) {
    let session = server.accept_timeout(PATIENCE).expect("a client");
    let channel = session.accept_channel_timeout(PATIENCE).expect("its channel");
    (session, channel)
}

/// Everything that can be begun and not sent.
fn begin(session: &Session, channel: &Channel<hello::Owned>) {
    let arena = session.arena();
    for len in [1, 20, 2_000, 20_000] {
        let text = SECRET.repeat(len);
        let mut builder = channel.create_msg();
        builder.init_root().set_greet(&*text);
        drop(builder);
        // Grown segment by segment.
        let mut builder = channel.create_msg();
        builder.init_root().set_greet(&*SECRET.repeat(10));
        builder.init_root().set_greet(&*text);
        drop(builder.freeze().expect("room"));
        let mut blob = arena.create_blob_with_capacity(10).expect("room");
        // Moved as it grows.
        blob.extend_from_slice(text.as_bytes()).expect("room");
        blob.reserve(10 * text.len()).expect("room");
        drop(blob);
        let mut blob = arena.create_blob(text.len()).expect("room");
        blob.copy_from_slice(text.as_bytes());
        drop(blob.freeze());
        drop(arena.share(text.as_bytes()).expect("room"));
        drop(greet(channel, &text).copy_to(arena).expect("room"));
    }
    // What is used again without being zeroed has nothing either.
    let blob = arena.create_blob_with_capacity(100_000).expect("room");
    drop(blob);
}

/// A host, and a raw session with it.
fn with_host(how: &str, act: impl FnOnce(&mut Peer, &mut Raw, &Place)) {
    let place = Place::new();
    let mut peer = Peer::start("host", &[place.text(), how]);
    peer.must_say("ready");
    let mut raw = Raw::login(place.path());
    act(&mut peer, &mut raw, &place);
    // Whoever lends waits for its borrower to be gone.
    drop(raw);
    peer.tell("stop");
    peer.finish();
}

fn order(peer: &mut Peer, what: &str) {
    peer.tell(what);
    peer.must_say("done");
}

/// How often the secret can be found in what exists of memory.
fn found(memory: &Memory) -> usize {
    let file = File::from(memory.fd.try_clone().expect("descriptor"));
    let (mut count, mut from) = (0, 0);
    // Whoever reads a hole fills it.
    while let Ok(start) = lseek(&memory.fd, from, Whence::SeekData) {
        let end = lseek(&memory.fd, start, Whence::SeekHole).expect("an end");
        let mut bytes = vec![0; (end - start) as usize];
        file.read_exact_at(&mut bytes, start as u64).expect("memory");
        count += String::from_utf8_lossy(&bytes).matches("treasure").count();
        from = end;
    }
    count
}

fn drafts() {
    with_host("apart", |peer, raw, _| {
        order(peer, "begin");
        assert_eq!(found(&raw.theirs), 0);
    });
}

fn came_back() {
    with_host("apart", |peer, raw, _| {
        order(peer, "tell");
        let told = raw.lane.take_message();
        assert!(raw.lane.words_of(told).starts_with("the treasure"));
        assert!(found(&raw.theirs) > 0, "it was told");
        raw.lane.put([2, told[3], told[4], 0, 0, 0, 0]);
        let back = |peer: &mut Peer| {
            peer.tell("loans");
            peer.line() == "0"
        };
        // A side that only sends looks for what has come back now and then.
        eventually("it is back", || {
            assert!(raw.socket.say(&Frame::control(5, 1)));
            back(peer).then_some(())
        });
        assert_eq!(found(&raw.theirs), 0);
    });
}

fn others() {
    with_host("apart", |peer, raw, place| {
        peer.tell("friend");
        let session = client().connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        peer.must_say("done");
        order(peer, "all");
        assert!(words(&channel.recv_timeout(PATIENCE).expect("news")).contains("treasure"));
        assert_eq!(found(&raw.theirs), 0);
    });
}

/// The control: peers that are not kept apart see whatever is in the app's arena.
fn without() {
    with_host("together", |peer, raw, place| {
        order(peer, "begin");
        assert!(found(&raw.theirs) > 0);
        peer.tell("friend");
        let session = client().connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        peer.must_say("done");
        order(peer, "all");
        let before = found(&raw.theirs);
        assert!(words(&channel.recv_timeout(PATIENCE).expect("news")).contains("treasure"));
        assert!(before >= 100);
    });
}
