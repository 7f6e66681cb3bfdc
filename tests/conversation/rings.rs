//! Channels and their rings: many, small, full, opened again and again.

use super::both_ends;
use crate::cache_capnp::cache;
use crate::common::apps::{SHORT, ask, client, greet, open, trust, words};
use crate::common::obliging::{connect, with_server};
use crate::common::{PATIENCE, eventually};
use crate::hello_capnp::hello;
use strait::{Channel, ChannelError, Ended, RequestError, SendError, Trust};

/// To a peer that asks and does not listen.
pub fn bounded_replies() {
    both_ends(2, |ours, theirs| {
        let mut channel = open(ours);
        let mut other = theirs.accept_channel::<hello::Owned>().expect("accept");
        let question = greet(&channel, "x");
        channel.send(&question).expect("send");
        let asked = other.recv().expect("recv");
        let answer = greet(&other, "y");
        other.try_reply(&asked, &answer).expect("room");
        other.reply_timeout(&asked, &answer, PATIENCE).expect("room");
        let lent = theirs.on_loan().0;
        assert_eq!(other.try_reply(&asked, &answer), Err(SendError::Full));
        assert_eq!(other.reply_timeout(&asked, &answer, SHORT), Err(SendError::TimedOut));
        // What was not sent is not on loan.
        assert_eq!(theirs.on_loan().0, lent);
        assert_eq!(channel.recv().expect("recv").in_reply_to(), Some(asked.id()));
        eventually("room again", || other.try_reply(&asked, &answer).ok());
    });
}

pub fn channels() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut first = open(&session);
        let mut later = session.open_channel::<hello::Owned>("main", PATIENCE).expect("channel");
        assert_eq!((ask(&mut first, "echo 1"), ask(&mut later, "echo 2")), ("1".into(), "2".into()));
        let refused = session.open_channel::<hello::Owned>("none", PATIENCE).map(drop);
        assert_eq!(refused, Err(ChannelError::UnknownChannel { channel: "none".into() }));
        let (ours, theirs) = (<cache::Owned as strait::Schema>::ID, <hello::Owned as strait::Schema>::ID);
        let refused = session.open_channel::<cache::Owned>("main", PATIENCE).map(drop);
        assert_eq!(refused, Err(ChannelError::WrongSchema { channel: "main".into(), ours, theirs }));
        let refused = session.open_channel::<hello::Owned>("a/b", PATIENCE).map(drop);
        assert_eq!(refused, Err(ChannelError::BadName("a/b".into())));
        assert_eq!(session.accept_channel_timeout::<hello::Owned>(SHORT).map(drop), Err(ChannelError::TimedOut));
        assert_eq!(ask(&mut later, "echo 3"), "3");
        drop(later);
        // Numbers and rings come back: far more than may be open at once.
        for index in 0..3_000 {
            let mut channel = session.open_channel::<hello::Owned>("main", PATIENCE).expect("channel");
            if index % 100 == 0 {
                assert_eq!(ask(&mut channel, "echo again"), "again");
            }
        }
        let many: Vec<Channel<hello::Owned>> = std::iter::from_fn(|| match session.open_channel("main", PATIENCE) {
            Ok(channel) => Some(channel),
            Err(ChannelError::TooMany) => None,
            Err(other) => panic!("{other}"),
        })
        .collect();
        assert!((1_000..=1_024).contains(&many.len()), "{}", many.len());
        drop(many);
        assert_eq!(ask(&mut first, "echo 4"), "4");
        session.close();
        let refused = session.open_channel::<hello::Owned>("main", PATIENCE).map(drop);
        assert_eq!(refused, Err(ChannelError::Ended { peer: "suite".into(), cause: Ended::Closed }));
    });
}

pub fn many() {
    with_server("in_place", |place, _| {
        let sessions: Vec<_> = (0..20).map(|_| connect(place, trust("in_place"))).collect();
        std::thread::scope(|scope| {
            for (number, session) in sessions.iter().enumerate() {
                for part in 0..5 {
                    scope.spawn(move || {
                        let mut channel = session.open_channel("main", PATIENCE).expect("channel");
                        for round in 0..50 {
                            let said = format!("{number}/{part}/{round}");
                            assert_eq!(ask(&mut channel, &format!("echo {said}")), said);
                        }
                    });
                }
            }
        });
        drop(sessions);
        // The census of both sides finds out whether anything stayed.
    });
}

pub fn full_ring() {
    full_ring_of(256);
}

pub fn full_small_ring() {
    full_ring_of(4);
}

/// Rings of every size, again and again, with messages of like sizes in between.
pub fn small_rings() {
    with_server("snapshot", |place, _| {
        for round in 0..300 {
            let session = client().slots(2 << (round % 8)).connect(&place.server()).expect("connect");
            let mut channels: Vec<_> = (0..8).map(|_| open(&session)).collect();
            for (index, channel) in channels.iter_mut().enumerate() {
                let said = "x".repeat(1_000 * index);
                assert_eq!(ask(channel, &format!("echo {said}")), said);
            }
        }
    });
}

fn full_ring_of(slots: usize) {
    with_server("snapshot", |place, peer| {
        let session = client().slots(slots as u32).connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        let gate = greet(&channel, "gate");
        channel.send(&gate).expect("send");
        let note = greet(&channel, "note");
        let mut notes = 0;
        // The server has taken `gate` out of the ring once there is room for the last.
        eventually("full", || {
            while channel.try_send(&note).is_ok() {
                notes += 1;
            }
            (notes == slots).then_some(())
        });
        assert_eq!(channel.try_send(&note), Err(SendError::Full));
        assert_eq!(channel.send_timeout(&note, SHORT), Err(SendError::TimedOut));
        assert_eq!(channel.request(&note, SHORT).map(drop), Err(RequestError::TimedOut));
        // What was not sent is not on loan: the gate may be home already, the notes are not.
        assert!((slots..=slots + 1).contains(&session.on_loan().0), "{:?}", session.on_loan());
        let thread = std::thread::spawn(move || {
            for _ in 0..100 {
                channel.send(&note).expect("room, in time");
            }
            channel
        });
        peer.tell("open the gate");
        let mut channel = thread.join().expect("thread");
        assert_eq!(words(&channel.recv().expect("recv")), "passed");
        assert_eq!(ask(&mut channel, "heard"), (1 + slots + 100 + 1).to_string());
    });
}
