//! What two processes can say to each other, in both kinds of trust.

#[path = "conversation/batches.rs"]
mod batches;
#[path = "common/bulk.rs"]
mod bulk;
mod common;
#[path = "conversation/returns.rs"]
mod returns;
#[path = "conversation/rings.rs"]
mod rings;
#[path = "conversation/talking.rs"]
mod talking;
capnp::generated_code!(mod cache_capnp);
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, SHORT, ask, client, trust};
use common::{Case, eventually, obliging};
use hello_capnp::hello;
use std::process::ExitCode;
use strait::Channel;

fn main() -> ExitCode {
    let cases = [
        Case::new("talk", talking::talk),
        Case::new("unbegun_messages_read_as_the_default", talking::unbegun),
        Case::new("many_segments_and_large_messages", talking::files),
        Case::new("one_message_many_times_to_two_sessions", returns::many_times),
        Case::new("drops_in_another_thread_go_home", returns::dropped_elsewhere),
        Case::new("late_replies_are_dropped", talking::late),
        Case::new("messages_during_a_request_are_kept_in_order", talking::kept),
        Case::new("foreign_messages_are_refused", talking::foreign),
        Case::new("a_client_app_has_one_arena", talking::one_arena),
        Case::new("unread_messages_go_home_when_a_channel_closes", returns::unread),
        Case::new("many_held_messages_go_home_at_once", returns::many_held),
        Case::new("replies_need_not_wait_for_room", rings::bounded_replies),
        Case::new("a_reply_over_another_channel_is_refused", talking::crossed_reply),
        Case::new("received_messages_can_be_read_again", talking::read_again),
        Case::new("channels_at_log_in_and_later", rings::channels),
        Case::new("many_sessions_and_channels", rings::many),
        Case::new("small_messages_travel_inside_their_slots", returns::inside),
        Case::new("larger_ones_travel_inside_several", returns::inside_several),
        Case::new("full_ring", rings::full_ring),
        Case::new("full_small_ring", rings::full_small_ring),
        Case::new("small_rings_come_and_go", rings::small_rings),
        Case::new("batches_arrive_whole_and_in_order", batches::in_order),
        Case::new("batches_of_many_threads", batches::threads),
        Case::new("what_an_iterator_leaves_is_still_received", batches::left),
        Case::new("messages_can_be_shown_one_after_the_other", batches::shown),
        Case::new("a_promise_that_is_kept_and_one_that_is_not", batches::promised),
        Case::new("batches_stop_where_they_cannot_go_on", batches::stopped),
        Case::new("a_sender_without_room_sleeps", batches::asleep),
    ];
    let roles: &[common::Role] = &[
        ("obliging", obliging::run),
        ("files", talking::file_server),
        ("two sessions", returns::two_sessions),
        ("counter", batches::counter),
    ];
    common::main(&cases, roles)
}

/// The server has everything back. Traffic carries home one message and owes another, so it has to pause for longer
/// than returns wait for traffic.
fn all_returned(channel: &mut Channel<hello::Owned>) {
    eventually("the server has everything back", || {
        std::thread::sleep(SHORT);
        (ask(channel, "loans") == "(0, 0)").then_some(())
    });
}

/// Two ends in this process, so that both books can be read.
fn both_ends(slots: u32, talk: impl FnOnce(&strait::Session, &strait::Session)) {
    let place = Place::new();
    let app = place.server().slots(slots).allow(&client(), trust("in_place")).channel::<hello::Owned>("main");
    let server = app.clone().bind().expect("bind");
    let connecting = std::thread::spawn(move || client().slots(slots).trust(trust("in_place")).connect(&app));
    let theirs = server.accept().expect("accept");
    let ours = connecting.join().expect("thread").expect("connect");
    talk(&ours, &theirs);
    drop((ours, theirs, server));
    place.must_be_empty();
}
