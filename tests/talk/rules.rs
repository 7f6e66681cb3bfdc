//! Raw peers, which keep the rules of split channels to the letter, or break them.

use super::{ANSWER, GREET, Hello, cause, tell, text};
use crate::common::PATIENCE;
use crate::common::apps::{Place, words};
use crate::raw;
use std::thread;
use std::time::Duration;
use strait::{ChannelError, Ended, PeerMisbehaved, Receiver, RecvError, RequestError, Sender, Session, Trust};

/// A raw client, and the halves of its channel.
fn with_raw(talk: impl FnOnce(&mut raw::Raw, Sender<Hello>, Receiver<Hello>)) {
    with_raw_session(|raw, _, sender, receiver| talk(raw, sender, receiver));
}

fn with_raw_session(talk: impl FnOnce(&mut raw::Raw, &Session, Sender<Hello>, Receiver<Hello>)) {
    let place = Place::new();
    let app = place.server().slots(raw::SLOTS).allow(&strait::ClientApp::new("raw"), Trust::snapshot());
    let server = app.channel::<Hello>("main").bind().expect("bind");
    let path = place.path().to_owned();
    let connecting = thread::spawn(move || raw::Raw::login(&path));
    let session = server.accept().expect("accept");
    let mut raw = connecting.join().expect("thread");
    let (sender, receiver) = session.accept_channel().expect("channel").split();
    talk(&mut raw, &session, sender, receiver);
    drop((raw, session, server));
    place.must_be_empty();
}

/// The next frame that says how far the other side is with a channel, and which other frames came before it.
fn left_or_closed(raw: &raw::Raw, number: u32) -> (u32, Vec<raw::Frame>) {
    let mut others = Vec::new();
    loop {
        let (frame, _) = raw.socket.recv().expect("a frame");
        match (frame.u32_at(0), frame.u32_at(4)) {
            (kind @ (4 | 17), found) if found == number => return (kind, others),
            _ => others.push(frame),
        }
    }
}

/// Opens channels from both sides; tells where the other side, in whatever thread, puts its halves.
fn open_both(raw: &raw::Raw, session: &Session, numbers: impl Iterator<Item = u32>) -> Vec<raw::Area> {
    let mut halves = Vec::new();
    for number in numbers {
        let half = raw::area(u64::from(number) % 16);
        assert!(raw.socket.say(&raw::Frame::open(number, "main", raw::schema(), half)));
        let asked = session.open_channel::<Hello>("main", Duration::ZERO);
        assert_eq!(asked.map(drop), Err(ChannelError::TimedOut));
        let (mut opened, mut wished) = (false, false);
        while !(opened && wished) {
            let (frame, _) = raw.socket.recv().expect("a frame");
            match frame.u32_at(0) {
                1 => wished = true,
                2 => opened = true,
                _ => continue,
            }
            halves.push(frame.area_at(if frame.u32_at(0) == 1 { 16 } else { 8 }));
        }
    }
    halves
}

pub fn halves_stay() {
    const CLOSED: u32 = 4;
    const LEFT: u32 = 17;
    let say = |raw: &raw::Raw, kind: u32| assert!(raw.socket.say(&raw::Frame::control(kind, 1)));
    // The raw side closes first; second; second, when it does not know that yet.
    for closes in [[CLOSED, 0], [0, LEFT], [0, CLOSED]] {
        with_raw_session(|raw, session, sender, mut receiver| {
            if closes[0] == CLOSED {
                say(raw, CLOSED);
                assert_eq!(cause(receiver.recv()), Ended::ChannelClosed);
                // One of the two has everything, which ends the other.
                drop((sender, receiver));
                assert_eq!(left_or_closed(raw, 1).0, LEFT);
            } else {
                drop((sender, receiver));
                assert_eq!(left_or_closed(raw, 1).0, CLOSED);
            }
            let half = raw.lane.their_half;
            let others = open_both(raw, session, (17..33).step_by(2));
            assert!(!others.contains(&half), "{half:?} is being emptied");
            if closes[1] == CLOSED {
                (0..2).for_each(|_| say(raw, CLOSED));
                assert_eq!(left_or_closed(raw, 1).0, LEFT);
                let others = open_both(raw, session, (33..41).step_by(2));
                assert!(!others.contains(&half), "{half:?} is being emptied");
            }
            say(raw, LEFT);
            if closes[1] == LEFT {
                assert_eq!(left_or_closed(raw, 1).0, LEFT);
            }
            // Nobody looks at it any more.
            let others = open_both(raw, session, (41..49).step_by(2));
            assert!(others.contains(&half), "{half:?} is not among {others:?}");
            // The number means nothing any more.
            say(raw, LEFT);
            raw.socket.must_end_with_goodbye(1);
        });
    }
    // Nobody has left what the other side has not closed.
    with_raw(|raw, _sender, mut receiver| {
        say(raw, LEFT);
        assert_eq!(cause(receiver.recv()), Ended::PeerMisbehaved(PeerMisbehaved::ChannelNumber(1)));
        raw.socket.must_end_with_goodbye(1);
    });
}

/// The raw side fills slots until it knows that the channel is closed; once it is told that the other side has left, its half
/// is its own.
pub fn too_late() {
    with_raw(|raw, sender, receiver| {
        drop((sender, receiver));
        assert_eq!(left_or_closed(raw, 1).0, 4);
        let late: Vec<_> = (0..raw::SLOTS).map(|_| raw.lane.compose("too late")).collect();
        late.iter().for_each(|payload| raw.lane.put(*payload));
        assert!(raw.socket.say(&raw::Frame::control(17, 1)));
        let (kind, mut frames) = left_or_closed(raw, 1);
        assert_eq!(kind, 17);
        (0..raw.lane.half.slots.into()).for_each(|slot| raw.own.store(raw.lane.slot(slot) + 7, u64::MAX));
        let mut home = Vec::new();
        while home.len() < late.len() {
            let frame = frames.pop().unwrap_or_else(|| raw.socket.recv().expect("a frame").0);
            assert_eq!(frame.u32_at(0), 5);
            let handles = (0..7).map(|index| [frame.u64_at(8 + 16 * index), frame.u64_at(16 + 16 * index)]);
            home.extend(handles.filter(|handle| *handle != [0, 0]));
        }
        home.sort_unstable();
        let mut lent: Vec<_> = late.iter().map(|payload| [payload[3], payload[4]]).collect();
        lent.sort_unstable();
        assert_eq!(home, lent);
    });
}

pub fn hostile() {
    with_raw(|raw, _sender, mut receiver| {
        let mut payload = raw.lane.compose("x");
        payload[2] = 5;
        raw.lane.put(payload);
        let broken = PeerMisbehaved::ReplyToNothing { found: 5, sent: 0 };
        assert_eq!(cause(receiver.recv()), Ended::PeerMisbehaved(broken));
        raw.socket.must_end_with_goodbye(1);
    });
    // Unexpected answers are reported, all in all, and harm nobody.
    with_raw(|raw, sender, mut receiver| {
        tell(&sender, "answer this");
        raw.lane.take_message();
        for _ in 0..100 {
            let mut payload = raw.lane.compose("x");
            payload[2] = 1;
            raw.lane.put(payload);
            assert_eq!(receiver.recv_timeout(Duration::ZERO).map(drop), Err(RecvError::TimedOut));
        }
        let mut told = 0;
        while told < 100 {
            let (frame, _) = raw.socket.recv().expect("a frame");
            match frame.u32_at(0) {
                5 => {}
                11 => {
                    assert_eq!(frame.u32_at(4), 1);
                    assert!(frame.u64_at(8) > told, "once each");
                    told = frame.u64_at(8);
                }
                other => panic!("frame {other}"),
            }
        }
        assert_eq!(told, 100);
    });
    // Requests are cancelled that were never made, and it is said too often that nothing more is sent.
    with_raw(|raw, sender, mut receiver| {
        for id in 0..5_000 {
            assert!(raw.socket.say(&raw::Frame::control(12, 1).u64(8, id)));
        }
        assert!(raw.socket.say(&raw::Frame::control(12, 1).u64(8, u64::MAX)));
        raw.lane.say("asked too early");
        let received = receiver.recv_timeout(PATIENCE).expect("recv");
        // The oldest are forgotten.
        assert!(!sender.is_cancelled(&received));
        let answer = text(&sender, "fine");
        sender.reply(&received, &answer).expect("reply");
        (0..3).for_each(|_| assert!(raw.socket.say(&raw::Frame::control(13, 1))));
        assert_eq!(receiver.recv().map(drop), Err(RecvError::Finished));
        tell(&sender, "still open");
    });
    // What is no message has no tag.
    with_raw(|raw, _sender, mut receiver| {
        let mut greetings = receiver.expect(GREET).expect("free");
        let mut answers = receiver.expect(ANSWER).expect("free");
        raw.own.store(raw::MESSAGES, u64::MAX);
        let payload = raw.lane.message(1, raw::handle(raw::ARENA, raw::MESSAGES, 1, 0));
        raw.lane.put(payload);
        raw.lane.say("greeting");
        assert_eq!(words(&greetings.recv().expect("greeting")), "greeting");
        assert!(receiver.recv().expect("something").get().is_err());
        // One that names memory that is not there ends the session, for whoever opens it.
        let payload = raw.lane.message(2, raw::handle(raw::ARENA, raw::MESSAGES, 1, 0));
        raw.lane.put(payload);
        let broken = PeerMisbehaved::SegmentCount(2);
        assert_eq!(cause(receiver.recv()), Ended::PeerMisbehaved(broken));
        assert_eq!(cause(answers.recv()), Ended::PeerMisbehaved(broken));
    });
    // A channel that is closed and yet filled for ever: nobody waits for ever.
    with_raw(|raw, sender, receiver| {
        let message = text(&sender, "answer this");
        let asking = thread::spawn(move || match sender.request(&message, 4 * PATIENCE) {
            Err(RequestError::Ended(ended)) => ended.cause,
            other => panic!("{other:?}"),
        });
        raw.lane.take_message();
        assert!(raw.socket.say(&raw::Frame::control(4, 1)));
        while !asking.is_finished() {
            let emptied = raw.lane.theirs.load(raw.lane.their_half.offset);
            if raw.lane.filled < emptied + u64::from(raw::SLOTS) {
                let payload = raw.lane.compose("more");
                raw.lane.put(payload);
            }
        }
        assert_eq!(asking.join().expect("thread"), Ended::ChannelClosed);
        drop(receiver);
    });
}
