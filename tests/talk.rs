//! Split channels between two processes: requests from many threads, streams of answers, expectations, half-close, and
//! what becomes of those who wait.

#[path = "talk/asking.rs"]
mod asking;
mod common;
#[path = "talk/expecting.rs"]
mod expecting;
#[path = "talk/finishing.rs"]
mod finishing;
#[path = "talk/halves.rs"]
mod halves;
#[path = "talk/host.rs"]
mod host;
#[path = "common/raw.rs"]
mod raw;
#[path = "talk/rules.rs"]
mod rules;
#[path = "talk/waiting.rs"]
mod waiting;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, client, open, trust, words};
use common::peer::Peer;
use common::{Case, PATIENCE};
use hello_capnp::hello;
use std::process::ExitCode;
use std::thread;
use strait::{Channel, Ended, Message, Receiver, RecvError, Replies, Sender, Session, Wait};

type Hello = hello::Owned;

fn main() -> ExitCode {
    let cases = [
        Case::new("requests_from_many_threads_while_another_receives", asking::many_threads),
        Case::new("streams_of_answers", asking::streams),
        Case::new("streams_are_cancelled_by_dropping_them", asking::cancelled),
        Case::new("late_and_unexpected_answers", asking::late_and_unexpected),
        Case::new("expectations_once_and_standing", expecting::expectations),
        Case::new("expectations_are_cancelled_by_dropping_them", expecting::unexpected),
        Case::new("schemas_without_a_union_have_no_tags", expecting::no_union),
        Case::new("this_side_finishes_first", finishing::finish_here),
        Case::new("the_other_side_finishes_first", finishing::finish_there),
        Case::new("whole_channels_finish_and_close", finishing::finish_whole),
        Case::new("a_stream_cut_short_is_no_orderly_end", finishing::cut_short),
        Case::new("answers_come_without_a_receiver", halves::no_receiver),
        Case::new("halves_are_dropped_in_any_order", halves::any_order),
        Case::new("halves_are_dropped_while_channels_are_opened", halves::any_order_reopened),
        Case::new("a_half_stays_until_the_other_side_has_left", rules::halves_stay),
        Case::new("what_was_filled_too_late_goes_home", rules::too_late),
        Case::new("a_killed_peer_wakes_everyone", waiting::killed),
        Case::new("a_killed_peer_wakes_everyone_behind_a_backlog", waiting::killed_behind_backlog),
        Case::new("closing_wakes_everyone", waiting::closed),
        Case::new("what_is_kept_has_a_limit", waiting::limit),
        Case::new("senders_wait_for_room_together", waiting::full),
        Case::new("draining_has_a_deadline", finishing::drained),
        Case::new("kinds_need_no_decoding", asking::kinds),
        Case::new("what_was_kept_before_the_split_stays", expecting::kept_before),
        Case::new("a_forked_child_has_neither_half", halves::forked),
        Case::new("raw_peers_break_the_rules_of_split_channels", rules::hostile),
    ];
    common::main(&cases, &[("host", host::run)])
}

const WAITS: [Wait; 3] = [Wait::Adaptive, Wait::Park, Wait::Spin];
const THREADS: usize = 8;

/// A case with the host at the other end; `talk` must leave no session.
fn with_host(believing: &str, wait: Wait, talk: impl FnOnce(&Session, &mut Peer)) {
    let place = Place::new();
    let mut peer = Peer::start("host", &[place.text(), believing]);
    peer.must_say("ready");
    let app = client().trust(trust(believing)).wait(wait).channel::<Hello>("main");
    let session = app.connect(&place.server()).expect("connect");
    talk(&session, &mut peer);
    drop(session);
    peer.finish();
    place.must_be_empty();
}

fn with_halves(believing: &str, wait: Wait, talk: impl FnOnce(Sender<Hello>, Receiver<Hello>, &mut Peer)) {
    with_host(believing, wait, |session, peer| {
        let (sender, receiver) = open(session).split();
        talk(sender, receiver, peer);
    });
}

fn text(sender: &Sender<Hello>, words: &str) -> Message<Hello> {
    let mut builder = sender.create_msg();
    builder.init_root().set_greet(words);
    builder.freeze().expect("room")
}

#[track_caller]
fn tell(sender: &Sender<Hello>, words: &str) {
    let message = text(sender, words);
    sender.send_timeout(&message, PATIENCE).expect("send");
}

#[track_caller]
fn ask(sender: &Sender<Hello>, question: &str) -> String {
    let message = text(sender, question);
    words(&sender.request(&message, PATIENCE).expect("answer"))
}

fn stream(sender: &Sender<Hello>, question: &str) -> Replies<Hello> {
    let message = text(sender, question);
    sender.request_stream(&message, PATIENCE).expect("send")
}

#[track_caller]
fn cause<T: std::fmt::Debug>(result: Result<T, RecvError>) -> Ended {
    match result {
        Err(RecvError::Ended(ended)) => ended.cause,
        other => panic!("{other:?}"),
    }
}

const GREET: u16 = 0;
const ANSWER: u16 = 1;

fn number(result: Result<strait::Received<Hello>, RecvError>) -> u64 {
    words(&result.expect("message")).parse().expect("a number")
}

/// Two ends in this process.
fn both_ends<T: strait::Schema>(slots: u32, talk: impl FnOnce(Channel<T>, Channel<T>)) {
    let place = Place::new();
    let app = place.server().slots(slots).allow(&client(), trust("in_place")).channel::<T>("main");
    let server = app.clone().bind().expect("bind");
    let connecting = thread::spawn(move || client().slots(slots).trust(trust("in_place")).connect(&app));
    let theirs = server.accept().expect("accept");
    let ours = connecting.join().expect("thread").expect("connect");
    let channel = ours.open_channel("main", PATIENCE).expect("channel");
    talk(channel, theirs.accept_channel().expect("channel"));
    drop((ours, theirs, server));
    place.must_be_empty();
}
