//! One publisher and its subscribers, each a process of its own: what reaches whom under each policy, and what becomes of
//! those who are slow, stopped, killed, or lie.

mod common;
#[path = "multicast/hostile.rs"]
mod hostile;
#[path = "common/raw.rs"]
mod raw;
#[path = "multicast/reading.rs"]
mod reading;
#[path = "multicast/slow.rs"]
mod slow;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, client, server, trust};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, eventually};
use hello_capnp::hello;
use std::process::ExitCode;
use strait::{Channel, Message, Policy, Publisher, Session, SessionServer, Subscriber, SubscriptionError, Trust, Wait};

fn main() -> ExitCode {
    let cases = [
        Case::new("everyone_gets_everything_in_order", reading::everything),
        Case::new("messages_are_dropped_in_any_order_and_thread", reading::any_order),
        Case::new("a_reader_that_holds_a_lap_is_told", reading::holding),
        Case::new("what_is_held_outlives_the_subscription", reading::outlives),
        Case::new("what_nobody_reads_is_freed", reading::freed),
        Case::new("what_cannot_be_published_or_added_is_refused", reading::refused),
        Case::new("a_forked_child_has_neither", reading::forked),
        Case::new("a_subscriber_killed_while_it_reads_holds_nothing", slow::killed),
        Case::new("a_stopped_subscriber_that_may_lose", slow::stopped_drop_oldest),
        Case::new("a_stopped_subscriber_that_may_be_behind", slow::stopped_lossless),
        Case::new("a_stopped_subscriber_that_is_waited_for", slow::stopped_block),
        Case::new("a_publisher_waits_asleep", slow::waits_asleep),
        Case::new("a_killed_publisher_has_published_what_it_has", slow::publisher_killed),
        Case::new("a_publisher_that_is_dropped_says_so", slow::publisher_dropped),
        Case::new("words_that_cannot_be", hostile::words),
        Case::new("a_subscriber_that_claims_and_never_releases", hostile::hoards),
        Case::new("a_publisher_that_lies", hostile::publishers),
    ];
    let roles: &[common::Role] = &[
        ("follower", follower),
        ("holder", reading::holder),
        ("publisher", slow::publisher),
        ("lied to", hostile::lied_to),
    ];
    common::main(&cases, roles)
}

const LAST: &str = "last";

/// Where publishers are found.
fn publishing(place: &Place) -> SessionServer {
    let app =
        place.server().allow(&client(), Trust::snapshot()).allow(&strait::ClientApp::new("raw"), Trust::snapshot());
    app.channel::<hello::Owned>("main").bind().expect("bind")
}

/// The next session and its channel.
fn accept(server: &SessionServer) -> (Session, Channel<hello::Owned>) {
    let session = server.accept().expect("accept");
    let channel = session.accept_channel().expect("channel");
    (session, channel)
}

fn text(publisher: &Publisher<hello::Owned>, words: &str) -> Message<hello::Owned> {
    let mut builder = publisher.create_msg();
    builder.init_root().set_greet(words);
    builder.freeze().expect("room")
}

/// A subscriber in a process of its own, which follows until the end.
fn follow(place: &Place, believing: &str, wait: &str) -> Peer {
    Peer::start("follower", &[place.text(), believing, wait])
}

/// Receives until `last` or the end; says how many came and were lost, and what came of it.
fn follower(args: &[String]) {
    let wait = match args[2].as_str() {
        "park" => Wait::Park,
        "spin" => Wait::Spin,
        _ => Wait::Adaptive,
    };
    let session = client().trust(trust(&args[1])).wait(wait).connect(&server(&args[0])).expect("connect");
    let channel = common::apps::open(&session);
    let mut subscriber = Subscriber::new(channel, PATIENCE).expect("subscribed");
    say("subscribed");
    let (mut count, mut next) = (0, None);
    let why = loop {
        match subscriber.recv() {
            Ok(message) => {
                let words = common::apps::words(&message);
                if words == LAST {
                    break LAST.to_owned();
                }
                // The number that was published, with a tail that shows torn memory.
                let number: u64 = words.split('.').next().expect("a number").parse().expect("a number");
                assert_eq!(words, numbered(number));
                assert!(next.is_none_or(|next| number == next + subscriber.missed()), "{number} after {next:?}");
                next = Some(number + 1);
                count += 1;
            }
            Err(SubscriptionError::TooSlow) => break "too slow".into(),
            Err(SubscriptionError::Ended(ended)) => break format!("{:?}", ended.cause),
            Err(other) => panic!("{other}"),
        }
    };
    say(format!("{count} {} {why}", subscriber.lost()));
    assert_eq!(hear(), "go");
}

/// A message that shows when its bytes were replaced by another's.
fn numbered(number: u64) -> String {
    format!("{number}.{}", number.to_string().repeat(20))
}

fn publish(publisher: &mut Publisher<hello::Owned>, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let message = text(publisher, &numbered(number));
        publisher.publish(&message).expect("published");
    }
}

fn say_last(publisher: &mut Publisher<hello::Owned>) {
    let last = text(publisher, LAST);
    publisher.publish(&last).expect("published");
}

const PATIENT: Policy = Policy::Block { patience: PATIENCE };

/// Looks until nobody has anything on loan.
fn all_returned(publisher: &mut Publisher<hello::Owned>, sessions: &[&Session]) {
    eventually("all returned", || {
        publisher.collect();
        sessions.iter().all(|session| session.on_loan() == (0, 0)).then_some(())
    });
}
