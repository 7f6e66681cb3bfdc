//! What every backing has to do: the same cases over anonymous memory, memory with a name, and no shared memory at all.

#[path = "common/bulk.rs"]
mod bulk;
mod common;
#[path = "conformance/endings.rs"]
mod endings;
#[path = "conformance/opening.rs"]
mod opening;
#[path = "conformance/talking.rs"]
mod talking;
#[path = "conformance/values.rs"]
mod values;
capnp::generated_code!(mod cache_capnp);
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, client, server, trust};
use common::peer::Peer;
use common::{Case, obliging};
use hello_capnp::hello;
use std::process::ExitCode;
use strait::{Backing, ClientApp, ServerApp, Session, Trust};

macro_rules! over_each_backing {
    ($($theme:ident::$case:ident)*) => {
        [
            $(
                Case::new(concat!("memfd_", stringify!($case)), || $theme::$case(Backing::Memfd)),
                Case::new(concat!("named_", stringify!($case)), || $theme::$case(Backing::Named)),
                Case::new(concat!("heap_", stringify!($case)), || $theme::$case(Backing::Heap)),
            )*
        ]
    };
}

fn main() -> ExitCode {
    let cases = over_each_backing![
        talking::messages_come_in_order
        talking::requests_are_answered
        talking::large_messages_and_many_segments
        talking::a_full_channel_waits_and_goes_on
        talking::a_stuck_channel_leaves_the_others_alone
        talking::both_directions_at_once
        talking::late_answers_are_dropped
        endings::a_channel_closes_after_what_was_sent
        endings::a_session_closes_after_what_was_sent
        endings::what_was_sent_before_a_death_is_received
        endings::what_was_received_stays
        endings::the_death_of_a_client_is_noticed
        endings::quotas_hold
        talking::one_message_to_many_sessions
        endings::unread_messages_go_home
        opening::channels_are_opened_later
        opening::channels_are_offered_with_metadata
        opening::one_direction_ends_before_the_other
        talking::small_messages_travel_inside_their_slots
        values::blobs_and_native_values
        values::counters_count_in_shared_memory
        endings::killed_apps_leave_nothing
        opening::other_backings_are_refused
    ];
    let roles: &[common::Role] = &[
        ("obliging", obliging_server),
        ("files", talking::file_server),
        ("hearers", talking::hearers),
        ("client", endings::idle_client),
        ("values", values::value_server),
        ("judge", opening::judge),
    ];
    common::main(&cases, roles)
}

// The apps of a backing.

fn word(backing: Backing) -> &'static str {
    match backing {
        Backing::Memfd => "memfd",
        Backing::Named => "named",
        Backing::Heap => "heap",
        other => panic!("{other:?}"),
    }
}

fn backing(word: &str) -> Backing {
    let all = [Backing::Memfd, Backing::Named, Backing::Heap];
    all.into_iter().find(|&backing| self::word(backing) == word).expect("a backing")
}

/// Memory with a name goes to friends only.
fn believed(backing: Backing) -> Trust {
    trust(if backing == Backing::Named { "in_place" } else { "snapshot" })
}

const SLOTS: u32 = 8;

fn server_app(dir: &str, backing: Backing) -> ServerApp {
    server(dir).backing(backing).slots(SLOTS).allow(&client(), believed(backing))
}

fn client_app(backing: Backing) -> ClientApp {
    client().backing(backing).slots(SLOTS).trust(believed(backing))
}

fn connect(place: &Place, backing: Backing) -> Session {
    client_app(backing).channel::<hello::Owned>("main").connect(&place.server()).expect("connect")
}

/// The third argument: up to how many bytes its messages travel in their slots.
fn obliging_server(args: &[String]) {
    let inline = args.get(2).map_or(0, |bytes| bytes.parse().expect("a number"));
    let app = server_app(&args[0], backing(&args[1])).inline_max(inline);
    obliging::run_app(app.channel::<hello::Owned>("main"), |_| {});
}

fn start_server(place: &Place, backing: Backing) -> Peer {
    let mut peer = Peer::start("obliging", &[place.text(), word(backing)]);
    peer.must_say("ready");
    peer
}

/// A case against an obliging server; `talk` must leave no session.
fn with_server(backing: Backing, talk: impl FnOnce(&Place, &mut Peer)) {
    let place = Place::new();
    let mut peer = start_server(&place, backing);
    talk(&place, &mut peer);
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}
