//! What is no session: timers, descriptors, signals, wakers, and a loop inside another one.

use super::{must_be_quiet, next};
use crate::common::apps::{greet, open, words};
use crate::common::obliging::{connect, with_server};
use crate::common::{PATIENCE, eventually};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strait::event::{AddError, Event, EventLoop, LoopError, Readiness, RemoveError, Token};
use strait::{AcceptError, ServerApp, Trust};

pub fn timers() {
    let mut events = EventLoop::new().expect("loop");
    assert!(events.wait(Some(Instant::now() + Duration::from_millis(5))).is_none());
    let now = Instant::now();
    let past = events.add_timer(now.checked_sub(Duration::from_secs(1)).unwrap_or(now));
    assert!(matches!(events.wait(Some(now)), Some(Event::Timer { timer }) if timer == past));
    assert!(matches!(events.remove(past), Err(RemoveError::NotFound)));
    // A thousand, added in no order; every third is removed again.
    let mut at: BTreeMap<Token, Instant> = BTreeMap::new();
    for index in 0..1_000_u64 {
        let due = now + Duration::from_micros(index * 7_919 % 1_000 * 50);
        at.insert(events.add_timer(due), due);
    }
    let removed: Vec<_> = at.keys().copied().step_by(3).collect();
    for timer in removed {
        at.remove(&timer);
        events.remove(timer).expect("there");
    }
    let far = events.add_timer(now + PATIENCE * 100);
    let mut last = now;
    while !at.is_empty() {
        let Event::Timer { timer } = next(&mut events) else { panic!("a timer") };
        let due = at.remove(&timer).expect("told once");
        assert!(due >= last && due <= Instant::now(), "in order and not early");
        last = due;
    }
    assert!(events.wait(Some(Instant::now())).is_none());
    events.remove(far).expect("there");
}

pub fn descriptors() {
    let mut events = EventLoop::new().expect("loop");
    let (mut ours, theirs) = UnixStream::pair().expect("pair");
    let token = events.add_fd(&theirs, Readiness::READABLE).expect("descriptor");
    must_be_quiet(&mut events);
    ours.write_all(b"ab").expect("room");
    for _ in 0..2 {
        let Event::External { fd, readiness } = next(&mut events) else { panic!("a descriptor") };
        assert_eq!((fd, readiness.is_readable(), readiness.is_writable()), (token, true, false));
        (&theirs).read_exact(&mut [0]).expect("told");
    }
    must_be_quiet(&mut events);
    drop(ours);
    let Event::External { readiness, .. } = next(&mut events) else { panic!("a descriptor") };
    assert!(readiness.is_readable() && readiness.is_hung_up());
    events.remove(token).expect("there");
    must_be_quiet(&mut events);
    // A listening TCP socket, and its connection for writing.
    let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
    let listening = events.add_fd(&listener, Readiness::READABLE).expect("descriptor");
    let _outside = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
    assert!(matches!(next(&mut events), Event::External { fd, .. } if fd == listening));
    let (inside, _) = listener.accept().expect("told");
    let writing = events.add_fd(&inside, Readiness::READABLE | Readiness::WRITABLE).expect("descriptor");
    let Event::External { fd, readiness } = next(&mut events) else { panic!("a descriptor") };
    assert_eq!((fd, readiness.is_readable(), readiness.is_writable()), (writing, false, true));
    // Nothing that can be waited for.
    let file = tempfile::tempfile().expect("file");
    assert!(matches!(events.add_fd(&file, Readiness::READABLE), Err(AddError::Io(_))));
}

pub fn closed_descriptors() {
    let mut events = EventLoop::new().expect("loop");
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let raw = theirs.as_raw_fd();
    let token = events.add_fd(&theirs, Readiness::READABLE).expect("descriptor");
    assert!(matches!(events.add_fd(&theirs, Readiness::READABLE), Err(AddError::AlreadyAdded)));
    drop(theirs);
    // Found out when it is removed.
    assert!(matches!(events.remove(token), Err(RemoveError::ClosedDescriptor)));
    drop(ours);
    // Found out when the number comes back as something else.
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let token = events.add_fd(&theirs, Readiness::READABLE).expect("descriptor");
    let number = theirs.as_raw_fd();
    drop((ours, theirs));
    let (mut ours, theirs) = at_number(number);
    let renewed = events.add_fd(&theirs, Readiness::READABLE).expect("another descriptor");
    assert!(matches!(
        next(&mut events),
        Event::Error { source: Some(source), error: LoopError::ClosedDescriptor } if source == token
    ));
    ours.write_all(b"x").expect("room");
    assert!(matches!(next(&mut events), Event::External { fd, .. } if fd == renewed));
    events.remove(renewed).expect("there");
    must_be_quiet(&mut events);
    // The file lives on under another number, ready all the time: told of once, and then as closed.
    let token = events.add_fd(&theirs, Readiness::READABLE).expect("descriptor");
    let copy = theirs.try_clone().expect("descriptor");
    drop(theirs);
    assert!(matches!(next(&mut events), Event::External { fd, .. } if fd == token));
    assert!(matches!(
        next(&mut events),
        Event::Error { source: Some(source), error: LoopError::ClosedDescriptor } if source == token
    ));
    must_be_quiet(&mut events);
    let timer = events.add_timer(Instant::now());
    assert!(matches!(next(&mut events), Event::Timer { timer: fired } if fired == timer));
    drop((ours, copy));
    let _ = raw;
}

/// A pair whose second end has a number.
fn at_number(number: i32) -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    if theirs.as_raw_fd() == number {
        return (ours, theirs);
    }
    if ours.as_raw_fd() == number {
        return (theirs, ours);
    }
    // SAFETY: nobody has this number, or it could not have been closed.
    let mut target = unsafe { OwnedFd::from_raw_fd(number) };
    nix::unistd::dup2(&theirs, &mut target).expect("dup2");
    (ours, target.into())
}

pub fn signals() {
    let mut events = EventLoop::new().expect("loop");
    assert!(matches!(events.add_signals(&[0]), Err(AddError::Io(_))));
    let numbers = [Signal::SIGUSR1, Signal::SIGUSR2].map(|signal| signal as i32);
    let token = events.add_signals(&numbers).expect("signals");
    raise(Signal::SIGUSR2).expect("raise");
    raise(Signal::SIGUSR1).expect("raise");
    let mut told = [0, 1].map(|_| match next(&mut events) {
        Event::Signal { signals, signal, pid } => {
            assert_eq!((signals, pid), (token, std::process::id() as i32));
            signal
        }
        other => panic!("{other:?}"),
    });
    told.sort_unstable();
    assert_eq!(told, numbers);
    must_be_quiet(&mut events);
    assert!(SigSet::thread_get_mask().expect("mask").contains(Signal::SIGUSR1));
    events.remove(token).expect("there");
    assert!(!SigSet::thread_get_mask().expect("mask").contains(Signal::SIGUSR1));
}

pub fn wakers() {
    let mut events = EventLoop::new().expect("loop");
    let waker = events.waker();
    (0..10).for_each(|_| waker.wake());
    assert!(matches!(next(&mut events), Event::Woken));
    must_be_quiet(&mut events);
    for _ in 0..200 {
        let waker = waker.clone();
        let thread = std::thread::spawn(move || waker.wake());
        assert!(matches!(next(&mut events), Event::Woken));
        thread.join().expect("thread");
    }
    drop(events);
    waker.wake();
}

/// Whether a loop's descriptor is readable, within a moment.
fn readable(events: &EventLoop, timeout: PollTimeout) -> bool {
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout).expect("poll") == 1
}

pub fn nested() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let mut channel = open(&session);
        let mut events = EventLoop::new().expect("loop");
        events.add_session(&session).expect("session");
        events.add_channel(&channel).expect("channel");
        let patience = PollTimeout::from(30_000_u16);
        let drained = |events: &mut EventLoop| {
            let told: Vec<_> = std::iter::from_fn(|| events.wait(Some(Instant::now()))).collect();
            assert!(told.is_empty(), "{told:?}");
            // Upkeep may be due, but not for ever.
            eventually("nothing to tell", || {
                let quiet = !readable(events, PollTimeout::ZERO);
                if !quiet {
                    assert!(events.wait(Some(Instant::now())).is_none());
                }
                quiet.then_some(())
            });
        };
        drained(&mut events);
        for index in 0..50 {
            let question = greet(&channel, &format!("echo {index}"));
            channel.try_send(&question).expect("room");
            while !matches!(events.wait(Some(Instant::now())), Some(Event::Message { .. })) {
                assert!(readable(&events, patience), "a message");
            }
            assert!(readable(&events, PollTimeout::ZERO), "still there");
            assert_eq!(words(&channel.try_recv().expect("open").expect("told")), index.to_string());
            assert!(events.wait(Some(Instant::now())).is_none());
        }
        drained(&mut events);
        events.waker().wake();
        assert!(readable(&events, patience), "a wish");
        assert!(matches!(events.wait(Some(Instant::now())), Some(Event::Woken)));
        drained(&mut events);
        let timer = events.add_timer(Instant::now() + Duration::from_millis(20));
        let fired = eventually("a timer", || {
            assert!(readable(&events, patience), "a timer");
            events.wait(Some(Instant::now()))
        });
        assert!(matches!(fired, Event::Timer { timer: fired } if fired == timer));
        drained(&mut events);
        // In another loop.
        let mut outer = EventLoop::new().expect("loop");
        let inner = outer.add_fd(&events, Readiness::READABLE).expect("descriptor");
        let question = greet(&channel, "echo nested");
        channel.try_send(&question).expect("room");
        loop {
            assert!(matches!(next(&mut outer), Event::External { fd, .. } if fd == inner));
            if let Some(Event::Message { .. }) = events.wait(Some(Instant::now())) {
                break;
            }
        }
        assert_eq!(words(&channel.try_recv().expect("open").expect("told")), "nested");
    });
}

pub fn twice() {
    with_server("snapshot", |place, _| {
        let session = connect(place, Trust::snapshot());
        let channel = open(&session);
        let (mut one, mut two) = (EventLoop::new().expect("loop"), EventLoop::new().expect("loop"));
        let token = one.add_session(&session).expect("session");
        let of_channel = one.add_channel(&channel).expect("channel");
        for events in [&mut one, &mut two] {
            assert!(matches!(events.add_session(&session), Err(AddError::AlreadyAdded)));
            assert!(matches!(events.add_channel(&channel), Err(AddError::AlreadyAdded)));
        }
        one.remove(token).expect("there");
        one.remove(of_channel).expect("there");
        two.add_session(&session).expect("session");
        two.add_channel(&channel).expect("channel");
        let server = Arc::new(ServerApp::new("other").run_dir(place.text()).bind().expect("bind"));
        let token = one.add_server(&server).expect("server");
        assert!(matches!(one.add_server(&server), Err(AddError::AlreadyAdded)));
        server.close();
        assert!(matches!(
            next(&mut one),
            Event::Error { source: Some(source), error: LoopError::Accept(AcceptError::Closed) } if source == token
        ));
        assert!(matches!(one.remove(token), Err(RemoveError::NotFound)));
        must_be_quiet(&mut one);
    });
}
