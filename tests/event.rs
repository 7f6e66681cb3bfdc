//! One loop for everything: sessions, channels, timers, descriptors, signals, other threads; and what goes wrong in it.

mod common;
#[path = "common/raw.rs"]
mod raw;
#[path = "event/sources.rs"]
mod sources;
#[path = "event/talking.rs"]
mod talking;
#[path = "event/threads.rs"]
mod threads;
#[path = "event/trouble.rs"]
mod trouble;
capnp::generated_code!(mod hello_capnp);

use common::apps::{client, greet, words};
use common::{Case, PATIENCE, obliging};
use hello_capnp::hello;
use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use strait::event::{Event, EventLoop, Token};
use strait::{Backing, Channel, Ended, SendError, ServerApp, Session, Trust};

fn main() -> ExitCode {
    let cases = [
        Case::new("clients_come_talk_and_go", || talking::clients(Backing::Memfd)),
        Case::new("clients_that_share_nothing_come_talk_and_go", || talking::clients(Backing::Heap)),
        Case::new("a_client_waits_in_a_loop", talking::client_side),
        Case::new("a_full_channel_tells_when_there_is_room", || talking::writable(Backing::Memfd)),
        Case::new("a_full_channel_that_is_not_shared_tells_when_there_is_room", || talking::writable(Backing::Heap)),
        Case::new("sessions_move_between_loop_and_watcher", threads::moves),
        Case::new("a_loop_may_go_before_its_sessions", threads::loop_goes_first),
        Case::new("death_is_told", trouble::death),
        Case::new("blocking_calls_work_in_the_loops_thread", threads::blocking),
        Case::new("a_second_thread_may_receive", threads::second_thread),
        Case::new("channels_opened_later_are_told", talking::later_channels),
        Case::new("kinds_are_told_and_who_finishes", talking::kinds),
        Case::new("one_flood_starves_nobody", trouble::flood),
        Case::new("strangers_and_dawdlers", trouble::strangers),
        Case::new("doorbells_out_of_nothing", trouble::doorbells),
        Case::new("descriptors_after_their_message", trouble::late_descriptors),
        Case::new("timers", sources::timers),
        Case::new("descriptors", sources::descriptors),
        Case::new("descriptors_closed_under_the_loop", sources::closed_descriptors),
        Case::new("signals", sources::signals),
        Case::new("wakers", sources::wakers),
        Case::new("a_loop_in_a_poll", sources::nested),
        Case::new("a_forked_child_has_no_loop", threads::forked),
        Case::new("nothing_is_added_twice", sources::twice),
    ];
    let roles: &[common::Role] = &[
        ("obliging", obliging::run),
        ("talkers", talking::talkers),
        ("receiver", talking::receiver),
        ("flooder", trouble::flooder),
    ];
    common::main(&cases, roles)
}

/// The next event, which must come.
#[track_caller]
fn next(events: &mut EventLoop) -> Event {
    events.wait(Some(Instant::now() + PATIENCE)).expect("an event in time")
}

#[track_caller]
fn must_be_quiet(events: &mut EventLoop) {
    let event = events.wait(Some(Instant::now()));
    assert!(event.is_none(), "{event:?}");
}

/// A server in a loop, which answers what it is asked.
struct Answering {
    events: EventLoop,
    server: Token,
    sessions: HashMap<Token, Session>,
    channels: HashMap<Token, Channel<hello::Owned>>,
    answered: usize,
}

impl Answering {
    fn new(app: ServerApp) -> Self {
        let mut events = EventLoop::new().expect("loop");
        let bound = app.allow(&client(), Trust::snapshot()).channel::<hello::Owned>("main").bind().expect("bind");
        let server = events.add_server(&Arc::new(bound)).expect("server");
        Self { events, server, sessions: HashMap::new(), channels: HashMap::new(), answered: 0 }
    }

    /// Does what an event asks for; hands on what it does not know.
    fn answer(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::Connection { server, token, session } => {
                assert_eq!(server, self.server);
                let channel = session.accept_channel().expect("opened at log-in");
                let of = self.events.add_channel(&channel).expect("channel");
                self.channels.insert(of, channel);
                self.sessions.insert(token, session);
                None
            }
            Event::Message { channel, .. } => {
                let channel = self.channels.get_mut(&channel).expect("in the loop");
                let received = channel.try_recv().expect("open").expect("told");
                let said = words(&received);
                let answer = greet(channel, said.strip_prefix("echo ").unwrap_or(&said));
                match channel.try_reply(&received, &answer) {
                    Ok(_) | Err(SendError::Ended(_)) => {}
                    Err(other) => panic!("{other}"),
                }
                self.answered += 1;
                None
            }
            Event::Closed { channel, .. } => {
                self.channels.remove(&channel).expect("in the loop");
                None
            }
            other => Some(other),
        }
    }

    #[track_caller]
    fn until(&mut self, what: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = next(&mut self.events);
            match self.answer(event) {
                Some(event) if what(&event) => return event,
                Some(Event::Disconnection { session, .. }) => drop(self.sessions.remove(&session).expect("known")),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
    }
}

impl Answering {
    /// Goes on until every session is over; tells how each ended.
    #[track_caller]
    fn until_all_ended(&mut self) -> Vec<Ended> {
        let mut causes = Vec::new();
        while !self.sessions.is_empty() || !self.channels.is_empty() {
            let event = next(&mut self.events);
            match self.answer(event) {
                Some(Event::Disconnection { session, cause }) => {
                    self.sessions.remove(&session).expect("told once");
                    causes.push(cause);
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
        causes
    }
}
