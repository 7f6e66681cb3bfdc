//! Who else sees to what is in a loop: the watcher, a call that blocks, a second thread, a forked child.

use super::{must_be_quiet, next};
use crate::common::apps::{Place, ask, greet, open, words};
use crate::common::obliging::{connect, with_server};
use crate::common::{PATIENCE, census, eventually, obliging};
use crate::hello_capnp::hello;
use std::time::{Duration, Instant};
use strait::event::{AddError, Event, EventLoop, LoopError, RemoveError};
use strait::{Channel, Ended, RecvError, Trust};

pub fn moves() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut channel = open(&session);
        let own = std::process::id();
        assert_eq!(census::threads(own), 2, "the watcher");
        for round in 0..50 {
            let mut events = EventLoop::new().expect("loop");
            // With answers under way at any moment.
            let burst = greet(&channel, "burst 20");
            channel.send(&burst).expect("send");
            let of_session = events.add_session(&session).expect("session");
            let of_channel = events.add_channel(&channel).expect("channel");
            for index in 0..10 {
                assert!(matches!(next(&mut events), Event::Message { .. }));
                assert_eq!(words(&channel.try_recv().expect("open").expect("told")), format!("burst {index}"));
            }
            if round % 10 == 0 {
                eventually("the watcher is gone", || (census::threads(own) == 1).then_some(()));
            }
            match round % 3 {
                0 => events.remove(of_session).expect("session"),
                1 => {
                    events.remove(of_channel).expect("channel");
                    events.remove(of_session).expect("session");
                    assert!(matches!(events.remove(of_session), Err(RemoveError::NotFound)));
                }
                _ => {}
            }
            drop(events);
            for index in 10..20 {
                assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), format!("burst {index}"));
            }
            assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "done");
            // The last may still be on its way out.
            eventually("the watcher is back", || (census::threads(own) == 2).then_some(()));
        }
        // What is owed goes home, whoever sees to it.
        let home = |channel: &mut Channel<hello::Owned>| {
            eventually("nothing is lent", || {
                // Each question takes one home and each answer leaves one to owe: the rest goes home only in silence,
                // of two ticks.
                std::thread::sleep(Duration::from_millis(40));
                ask(channel, "loans").starts_with("(0,").then_some(())
            });
        };
        home(&mut channel);
        let mut events = EventLoop::new().expect("loop");
        events.add_session(&session).expect("session");
        home(&mut channel);
    });
}

pub fn loop_goes_first() {
    for wait_for_end in [false, true] {
        with_server("snapshot", |place, peer| {
            let mut events = EventLoop::new().expect("loop");
            let session = connect(place, Trust::snapshot());
            let mut channel = open(&session);
            events.add_session(&session).expect("session");
            events.add_channel(&channel).expect("channel");
            let received = channel.request(&greet(&channel, "echo kept"), PATIENCE).expect("answer");
            drop((channel, session));
            if wait_for_end {
                // Its users are not all gone: what was received keeps it.
                must_be_quiet_but_closed(&mut events);
            }
            assert_eq!(words(&received), "kept");
            drop(received);
            if wait_for_end {
                peer.must_say("session: PeerClosed");
                // Nobody here wants to know.
                must_be_quiet_but_closed(&mut events);
            }
        });
    }
}

fn must_be_quiet_but_closed(events: &mut EventLoop) {
    while let Some(event) = events.wait(Some(Instant::now())) {
        assert!(matches!(event, Event::Closed { .. }), "{event:?}");
    }
}

pub fn blocking() {
    let place = Place::new();
    let peer = obliging::obliging_server(&place, "snapshot");
    let session = connect(&place, Trust::snapshot());
    let mut events = EventLoop::new().expect("loop");
    let of_session = events.add_session(&session).expect("session");
    let mut channel = open(&session);
    let of_channel = events.add_channel(&channel).expect("channel");
    must_be_quiet(&mut events);
    // Opened over the socket, which only this thread can read.
    let mut second = open(&session);
    assert_eq!(ask(&mut second, "echo second"), "second");
    drop(second);
    // The thirty notes come first, and are told of afterwards.
    let burst = greet(&channel, "burst 30");
    channel.send(&burst).expect("send");
    assert_eq!(ask(&mut channel, "echo blocking"), "blocking");
    for index in 0..30 {
        let event = loop {
            match next(&mut events) {
                Event::Channels { session } => assert_eq!(session, of_session),
                other => break other,
            }
        };
        assert!(matches!(event, Event::Message { channel, .. } if channel == of_channel), "{event:?}");
        assert_eq!(words(&channel.try_recv().expect("open").expect("told")), format!("burst {index}"));
    }
    assert_eq!(words(&channel.recv().expect("the last")), "done");
    // Nobody but the waiter can find out that the peer is gone.
    let die = greet(&channel, "flood-and-die 0");
    channel.send(&die).expect("send");
    assert!(matches!(channel.recv(), Err(RecvError::Ended(_))));
    assert_eq!(session.end(), Some(Ended::PeerDied));
    let mut told: Vec<_> = std::iter::from_fn(|| events.wait(Some(Instant::now()))).collect();
    told.retain(|event| !matches!(event, Event::Channels { .. }));
    assert_eq!(told.len(), 2, "{told:?}");
    drop((channel, session, events));
    drop(peer);
}

/// While another thread receives, the loop leaves the channel alone, and takes it up where that thread leaves it.
pub fn second_thread() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut channel = open(&session);
        let mut events = EventLoop::new().expect("loop");
        events.add_session(&session).expect("session");
        events.add_channel(&channel).expect("channel");
        let burst = greet(&channel, "burst 400");
        channel.send(&burst).expect("send");
        let waker = events.waker();
        let receiving = std::thread::spawn(move || {
            for index in 0..200 {
                assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), format!("burst {index}"));
            }
            waker.wake();
            channel
        });
        while !matches!(next(&mut events), Event::Woken) {}
        let mut channel = receiving.join().expect("thread");
        for index in 200..400 {
            assert!(matches!(next(&mut events), Event::Message { .. }));
            assert_eq!(words(&channel.try_recv().expect("open").expect("told")), format!("burst {index}"));
        }
        assert!(matches!(next(&mut events), Event::Message { .. }));
    });
}

pub fn forked() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut channel = open(&session);
        let mut events = EventLoop::new().expect("loop");
        events.add_session(&session).expect("session");
        events.add_channel(&channel).expect("channel");
        // SAFETY: the child calls nothing that another thread of this process could hold a lock of: there is none.
        match unsafe { nix::unistd::fork() }.expect("fork") {
            nix::unistd::ForkResult::Child => {
                let told = events.wait(None);
                let said = matches!(told, Some(Event::Error { error: LoopError::ForkedProcess, .. }))
                    && matches!(events.add_channel(&channel), Err(AddError::ForkedProcess));
                drop(events);
                // SAFETY: ends the process at once.
                unsafe { nix::libc::_exit(if said { 0 } else { 1 }) };
            }
            nix::unistd::ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).expect("wait");
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
        let question = greet(&channel, "echo parent");
        channel.try_send(&question).expect("room");
        assert!(matches!(next(&mut events), Event::Message { .. }));
        assert_eq!(words(&channel.try_recv().expect("open").expect("told")), "parent");
    });
}
