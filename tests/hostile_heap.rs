//! Clients that break the rules of a session without shared memory, one by one: each loses its own session, is told so,
//! and nobody else notices.

mod common;
#[path = "common/raw.rs"]
mod raw;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, ask, client, greet, open, server, words};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE};
use hello_capnp::hello;
use raw::{ARENA, Area, Frame, Socket, area, handle, schema};
use std::process::ExitCode;
use strait::{AcceptError, Backing, ChannelError, ClientApp, PeerMisbehaved, RecvError, Session, Trust};

fn main() -> ExitCode {
    let cases = [Case::new("an_honest_client_is_understood", understood), Case::new("breaches", breaches)];
    common::main(&cases, &[("honest", honest)])
}

/// A server that answers each message with itself, and says how the sessions of `raw` ended. Runs until told `stop`.
fn honest(args: &[String]) {
    let app = server(&args[0]).backing(Backing::Heap).slots(raw::SLOTS).channel::<hello::Owned>("main");
    let app = app.allow(&client(), Trust::snapshot()).allow(&ClientApp::new("raw"), Trust::snapshot());
    let server = app.bind().expect("bind");
    say("ready");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                match server.accept() {
                    Ok(session) => drop(scope.spawn(move || echo(&session))),
                    Err(AcceptError::Closed) => return,
                    Err(error) => say(format!("{error:?}")),
                }
            }
        });
        assert_eq!(hear(), "stop");
        server.close();
    });
}

fn echo(session: &Session) {
    let over = |cause: String| {
        if session.peer_name() == "raw" {
            say(cause);
        }
    };
    let mut channel = match session.accept_channel_timeout::<hello::Owned>(PATIENCE) {
        Ok(channel) => channel,
        Err(ChannelError::Ended { cause, .. }) => return over(format!("{cause:?}")),
        Err(other) => panic!("{other}"),
    };
    loop {
        match channel.recv() {
            Ok(received) => {
                let answer = greet(&channel, &words(&received));
                let _ = channel.reply(&received, &answer);
            }
            Err(RecvError::Ended(ended)) => return over(format!("{:?}", ended.cause)),
            Err(other) => panic!("{other}"),
        }
    }
}

/// A session of this side, which shares nothing.
struct Rawest {
    socket: Socket,
    theirs: Area,
}

const BYTES: usize = 16 << 20;

impl Rawest {
    fn login(place: &Place) -> Self {
        let socket = Socket::knock(place.path());
        let hello = Frame::hello(BYTES, "raw", &[("main", schema(), area(0))]).u32(1012, 2);
        assert!(socket.send(&hello.0, &[]));
        let (welcome, fds) = socket.recv().expect("an answer");
        assert_eq!((welcome.0.len(), welcome.u32_at(8), welcome.u32_at(1012)), (1024, 2, 2), "a welcome");
        assert!(fds.is_empty());
        Self { socket, theirs: welcome.area_at(56) }
    }

    fn send(&self, packet: &[u8]) {
        assert!(self.socket.send(packet, &[]));
    }
}

fn packet(kind: u32, slots: u32, ring: u64, words: &[u64]) -> Vec<u8> {
    let mut packet = [kind.to_le_bytes(), slots.to_le_bytes()].concat();
    packet.extend(ring.to_le_bytes());
    packet.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    packet
}

/// The words of a message in one segment.
fn message(text: &str) -> Vec<u64> {
    let mut builder = capnp::message::Builder::new_default();
    builder.init_root::<hello::Builder<'_>>().set_greet(text);
    let segments = builder.get_segments_for_output();
    assert_eq!(segments.len(), 1, "short enough for one segment");
    segments[0].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight"))).collect()
}

/// A slot with all words of a message.
fn slot(id: u64, body: &[u64]) -> Vec<u8> {
    slot_of(id, body, body.len() as u64)
}

fn slot_of(id: u64, body: &[u64], announced: u64) -> Vec<u8> {
    let [low, high] = handle(ARENA, 1 << 12, announced, id as u32);
    let mut words = vec![1 | 1 << 16, id, 0, low, high, 0, 0, announced];
    words.extend(body);
    packet(14, area(0).slots, area(0).offset, &words)
}

fn understood() {
    let place = Place::new();
    let mut peer = Peer::start("honest", &[place.text()]);
    peer.must_say("ready");
    let raw = Rawest::login(&place);
    let body = message("hello");
    // In one piece, and word by word.
    raw.send(&slot(1, &body));
    raw.send(&slot_of(2, &[], body.len() as u64));
    body.iter().for_each(|word| raw.send(&packet(15, 0, area(0).offset, &[*word])));
    // Inside its slot.
    let inside: [u64; 4] = body[..].try_into().expect("four words");
    let [a, b, c, d] = inside;
    raw.send(&packet(14, area(0).slots, area(0).offset, &[3 | 4 << 16, 3, 0, a, b, c, d, 0]));
    let mut answered = 0;
    while answered < 3 {
        let (answer, _) = raw.socket.recv().expect("an answer");
        if answer.u32_at(0) == 14 && answer.u32_at(16) & 0xFF == 1 {
            answered += 1;
            assert_eq!(
                (answer.u64_at(8), answer.u64_at(24), answer.u64_at(32)),
                (raw.theirs.offset, answered, answered)
            );
            let len = answer.u64_at(72) as usize;
            let back: Vec<u64> = (0..len).map(|word| answer.u64_at(80 + 8 * word)).collect();
            assert!(back.starts_with(&body), "the same words");
        }
    }
    drop(raw);
    peer.must_say("PeerDied");
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}

fn breaches() {
    let place = Place::new();
    let mut peer = Peer::start("honest", &[place.text()]);
    peer.must_say("ready");
    let session = client().backing(Backing::Heap).connect(&place.server()).expect("connect");
    let mut channel = open(&session);
    let mut breach = |expected: PeerMisbehaved, packets: &[Vec<u8>]| {
        let raw = Rawest::login(&place);
        packets.iter().for_each(|packet| raw.send(packet));
        assert_eq!(peer.line(), format!("{:?}", strait::Ended::PeerMisbehaved(expected)), "{packets:?}");
        assert_eq!(ask(&mut channel, "still there"), "still there");
    };
    let frame = PeerMisbehaved::Frame;
    let (ring, slots, body) = (area(0).offset, area(0).slots, message("hello"));
    breach(frame("words without a slot"), &[packet(15, 0, ring, &[1])]);
    breach(frame("words for an unknown ring"), &[packet(15, 0, ring + 512, &[1])]);
    breach(frame("words without a slot"), &[slot(1, &body), packet(15, 0, ring, &[1])]);
    breach(frame("more bytes than announced"), &[slot_of(1, &[1, 2], 1)]);
    breach(frame("a slot before the words of the last"), &[slot_of(1, &[1], 2), slot(2, &body)]);
    // In a ring that nobody empties, so that the first cannot have gone home.
    let unread = || [&slot(1, &body)[..8], &area(1).offset.to_le_bytes(), &slot(1, &body)[16..]].concat();
    breach(frame("a loan that is held already"), &[unread(), unread()]);
    breach(frame("a ring of two sizes"), &[packet(16, slots * 2, ring, &[0])]);
    breach(frame("impossible ring"), &[packet(16, 3, ring, &[0])]);
    breach(frame("wrong length"), &[packet(16, slots, ring, &[])]);
    breach(frame("wrong length"), &[vec![5; 129]]);
    breach(frame("unknown kind"), &[Frame::control(18, 0).0]);
    breach(PeerMisbehaved::UnknownSlotKind(99), &[packet(14, slots, ring, &[99, 1, 0, 0, 0, 0, 0, 0])]);
    breach(PeerMisbehaved::InsideLength(26), &[packet(14, slots, ring, &[3 | 26 << 16, 1, 0, 0, 0, 0, 0, 0])]);
    // Slots are carried one by one, so none goes on in the next.
    breach(
        PeerMisbehaved::SequenceOutOfRange { found: 0, expected: 2 },
        &[packet(14, slots, ring, &[3 | 5 << 16, 1, 0, 0, 0, 0, 0, 0])],
    );
    breach(
        frame("words for a slot that names none"),
        &[packet(14, slots, ring, &[3 | 1 << 16, 1, 0, 0, 0, 0, 0, 1, 0])],
    );
    breach(PeerMisbehaved::NoHandle, &[packet(14, slots, ring, &[1 | 1 << 16, 1, 0, 0, 0, 0, 0, 0])]);
    breach(PeerMisbehaved::MessageId { found: 3, expected: 1 }, &[slot(3, &body)]);
    let [low, high] = handle(ARENA, 1 << 12, 1, 9);
    let wish = Frame::open(17, "side", schema(), area(1)).u64(92, low).u64(100, high).u64(108, schema()).u32(116, 1);
    breach(frame("metadata that has not come"), &[wish.0]);
    let large = 1 << 30;
    let limit = BYTES as u64 * 3 / 2;
    breach(PeerMisbehaved::MessageTooLarge { bytes: large * 8, limit }, &[slot_of(1, &[], large)]);
    session.close();
    drop((channel, session));
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}
