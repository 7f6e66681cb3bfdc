//! What every backing has to do: the same cases over anonymous memory, memory with a name, and no shared memory at all.

#[path = "common/bulk.rs"]
mod bulk;
mod common;
capnp::generated_code!(mod cache_capnp);
capnp::generated_code!(mod hello_capnp);

use bulk::{check_file, file};
use cache_capnp::cache;
use common::apps::{Place, SHORT, ask, client, greet, open, server, trust, words};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, census, eventually, obliging};
use hello_capnp::hello;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use strait::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};
use strait::{
    AcceptError, Backing, Channel, ClientApp, ConnectError, Ended, LoanQuota, LoginError, RecvError, RequestError,
    SendError, ServerApp, Session, Trust, ValueError,
};

macro_rules! over_each_backing {
    ($($case:ident)*) => {
        [
            $(
                Case::new(concat!("memfd_", stringify!($case)), || $case(Backing::Memfd)),
                Case::new(concat!("named_", stringify!($case)), || $case(Backing::Named)),
                Case::new(concat!("heap_", stringify!($case)), || $case(Backing::Heap)),
            )*
        ]
    };
}

fn main() -> ExitCode {
    let cases = over_each_backing![
        messages_come_in_order
        requests_are_answered
        large_messages_and_many_segments
        a_full_channel_waits_and_goes_on
        a_stuck_channel_leaves_the_others_alone
        both_directions_at_once
        late_answers_are_dropped
        a_channel_closes_after_what_was_sent
        a_session_closes_after_what_was_sent
        what_was_sent_before_a_death_is_received
        what_was_received_stays
        the_death_of_a_client_is_noticed
        quotas_hold
        one_message_to_many_sessions
        unread_messages_go_home
        channels_are_opened_later
        channels_are_offered_with_metadata
        one_direction_ends_before_the_other
        small_messages_travel_inside_their_slots
        blobs_and_native_values
        counters_count_in_shared_memory
        killed_apps_leave_nothing
        other_backings_are_refused
    ];
    let roles: &[common::Role] = &[
        ("obliging", obliging_server),
        ("files", file_server),
        ("hearers", hearers),
        ("client", idle_client),
        ("values", value_server),
        ("judge", judge),
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

// The cases.

fn messages_come_in_order(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let mut channel = open(&session);
        channel.send(&greet(&channel, "burst 2000")).expect("send");
        for index in 0..2_000 {
            let received = channel.recv_timeout(PATIENCE).expect("recv");
            assert_eq!((words(&received), received.id()), (format!("burst {index}"), index + 1));
        }
        assert_eq!(words(&channel.recv().expect("recv")), "done");
        for _ in 0..2_000 {
            channel.send_timeout(&greet(&channel, "note"), PATIENCE).expect("send");
        }
        assert_eq!(ask(&mut channel, "heard"), "2002");
    });
}

fn requests_are_answered(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let mut channel = open(&session);
        for index in 0..500 {
            assert_eq!(ask(&mut channel, &format!("echo {index}")), index.to_string());
        }
        let id = channel.send(&greet(&channel, "echo again")).expect("send");
        let answer = channel.recv().expect("recv");
        assert_eq!((words(&answer).as_str(), answer.in_reply_to()), ("again", Some(id)));
        assert!(channel.try_recv().expect("open").is_none());
        assert_eq!(channel.recv_timeout(SHORT).map(drop), Err(RecvError::TimedOut));
        // Nothing at all can be said, too.
        let nothing = channel.create_msg().freeze().expect("room");
        assert_eq!(words(&channel.request(&nothing, PATIENCE).expect("answer")), "?");
    });
}

const LARGE: usize = 100 << 20;

fn file_server(args: &[String]) {
    let app = server_app(&args[0], backing(&args[1])).channel::<cache::Owned>("files");
    let server = app.bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<cache::Owned>().expect("channel");
    let segmented = channel.recv().expect("recv");
    check_file(&segmented, 40, 50_000);
    let large = file(&channel, 1, LARGE, true);
    assert_eq!(large.segments().len(), 1);
    channel.reply(&segmented, &large).expect("reply");
    drop((segmented, large));
    let back = channel.recv().expect("recv");
    check_file(&back, 3, LARGE / 3);
    channel.reply(&back, &file(&channel, 40, 50_000, false)).expect("reply");
    assert!(matches!(channel.recv(), Err(RecvError::Ended(_))));
}

fn large_messages_and_many_segments(backing: Backing) {
    let place = Place::new();
    let mut peer = Peer::start("files", &[place.text(), word(backing)]);
    peer.must_say("ready");
    let session = client_app(backing).connect(&place.server()).expect("connect");
    let mut channel = session.open_channel::<cache::Owned>("files", PATIENCE).expect("channel");
    let segmented = file(&channel, 40, 50_000, false);
    assert!(segmented.segments().len() > 2, "meant to have several segments");
    let large = channel.request(&segmented, PATIENCE).expect("answer");
    check_file(&large, 1, LARGE);
    let back = file(&channel, 3, LARGE / 3, false);
    assert!(back.segments().len() > 1, "meant to have several segments");
    check_file(&channel.request(&back, PATIENCE).expect("answer"), 40, 50_000);
    drop((segmented, back, large, channel, session));
    peer.finish();
    place.must_be_empty();
}

fn a_full_channel_waits_and_goes_on(backing: Backing) {
    with_server(backing, |place, peer| {
        let session = connect(place, backing);
        let mut channel = open(&session);
        channel.send(&greet(&channel, "gate")).expect("send");
        let note = greet(&channel, "note");
        // The one that waits at the gate may leave its slot a little later.
        let mut sent = 0;
        let refused = loop {
            match channel.send_timeout(&note, SHORT) {
                Ok(_) => sent += 1,
                Err(refused) => break refused,
            }
            assert!(sent <= u64::from(SLOTS), "nobody empties it");
        };
        assert_eq!(refused, SendError::TimedOut);
        assert_eq!(channel.try_send(&note), Err(SendError::Full));
        peer.tell("open the gate");
        channel.send_timeout(&note, PATIENCE).expect("room again");
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "passed");
        // The one at the gate, the one that found room again, and this question.
        assert_eq!(ask(&mut channel, "heard"), (sent + 3).to_string());
    });
}

fn a_stuck_channel_leaves_the_others_alone(backing: Backing) {
    with_server(backing, |place, peer| {
        let session = connect(place, backing);
        let (mut stuck, mut other) = (open(&session), open(&session));
        stuck.send(&greet(&stuck, "gate")).expect("send");
        let large = greet(&stuck, &"x".repeat(300_000));
        while stuck.try_send(&large).is_ok() {}
        (0..100).for_each(|index| assert_eq!(ask(&mut other, &format!("echo {index}")), index.to_string()));
        peer.tell("open the gate");
        assert_eq!(words(&stuck.recv_timeout(PATIENCE).expect("recv")), "passed");
    });
}

fn both_directions_at_once(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let mut channel = open(&session);
                std::thread::spawn(move || {
                    let text = "y".repeat(10_000);
                    for index in 0..100 {
                        let question = format!("echo {thread} {index} {text}");
                        assert_eq!(ask(&mut channel, &question), question[5..]);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("talk"));
    });
}

fn late_answers_are_dropped(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let mut channel = open(&session);
        let later = greet(&channel, "later");
        assert_eq!(channel.request(&later, SHORT).map(drop), Err(RequestError::TimedOut));
        assert_eq!(ask(&mut channel, "echo now"), "now");
        assert_eq!(channel.recv_timeout(SHORT).map(drop), Err(RecvError::TimedOut));
    });
}

/// Everything that comes until the end, and the end.
fn drain(channel: &mut Channel<hello::Owned>) -> (usize, Ended) {
    for received in 0.. {
        match channel.recv_timeout(PATIENCE) {
            Ok(message) => assert_eq!(words(&message), format!("flood {received}")),
            Err(RecvError::Ended(ended)) => return (received, ended.cause),
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!("no end")
}

fn a_channel_closes_after_what_was_sent(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let (mut closing, mut other) = (open(&session), open(&session));
        closing.send(&greet(&closing, "flood-and-close-channel 100")).expect("send");
        assert_eq!(drain(&mut closing), (100, Ended::ChannelClosed));
        assert!(matches!(closing.try_send(&greet(&closing, "note")), Err(SendError::Ended(_))));
        assert_eq!(ask(&mut other, "echo still there"), "still there");
    });
}

fn a_session_closes_after_what_was_sent(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let mut channel = open(&session);
        channel.send(&greet(&channel, "flood-and-close-session 100")).expect("send");
        assert_eq!(drain(&mut channel), (100, Ended::PeerClosed));
        assert_eq!(session.end(), Some(Ended::PeerClosed));
    });
}

fn what_was_sent_before_a_death_is_received(backing: Backing) {
    let place = Place::new();
    let peer = start_server(&place, backing);
    let session = connect(&place, backing);
    let mut channel = open(&session);
    let few = SLOTS - 1;
    channel.send(&greet(&channel, &format!("flood-and-die {few}"))).expect("send");
    eventually("its death", || session.end());
    assert_eq!(drain(&mut channel), (few as usize, Ended::PeerDied));
    drop((channel, session, peer));
    // The next one finds nothing in its way, and leaves nothing.
    drop(server_app(place.text(), backing).bind().expect("bind"));
    place.must_be_empty();
}

fn what_was_received_stays(backing: Backing) {
    let place = Place::new();
    let peer = start_server(&place, backing);
    let session = connect(&place, backing);
    let mut channel = open(&session);
    let kept: Vec<_> = (0..20)
        .map(|index| {
            let question = greet(&channel, &format!("echo {index}"));
            channel.request(&question, PATIENCE).expect("answer")
        })
        .collect();
    peer.kill();
    eventually("its death", || session.end());
    drop((channel, session));
    (0..20).for_each(|index| assert_eq!(words(&kept[index]), index.to_string()));
    drop(kept);
    drop(server_app(place.text(), backing).bind().expect("bind"));
    place.must_be_empty();
}

fn idle_client(args: &[String]) {
    let session = client_app(backing(&args[1])).connect(&server(&args[0])).expect("connect");
    let mut channel = open(&session);
    let received = channel.recv_timeout(PATIENCE).expect("recv");
    say(words(&received));
    hear();
    drop((received, channel, session));
}

fn the_death_of_a_client_is_noticed(backing: Backing) {
    let place = Place::new();
    let server = server_app(place.text(), backing).channel::<hello::Owned>("main").bind().expect("bind");
    let mut peer = Peer::start("client", &[place.text(), word(backing)]);
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    channel.send(&greet(&channel, "hold this")).expect("send");
    peer.must_say("hold this");
    assert_eq!(session.on_loan().0, 1);
    peer.kill();
    assert!(matches!(channel.recv(), Err(RecvError::Ended(ended)) if ended.cause == Ended::PeerDied));
    eventually("its loans are over", || (session.on_loan() == (0, 0)).then_some(()));
    drop((channel, session, server));
    place.must_be_empty();
    remove_stale(backing);
}

/// A killed client has no successor of its own here: whoever makes the next named memory clears up.
fn remove_stale(backing: Backing) {
    if backing == Backing::Named {
        let elsewhere = Place::new();
        drop(server_app(elsewhere.text(), backing).bind().expect("bind"));
    }
    assert_eq!(census::stale_names(), Vec::<String>::new());
}

fn quotas_hold(backing: Backing) {
    let place = Place::new();
    let app = server_app(place.text(), backing).loan_quota(LoanQuota { loans: 2, bytes: 100_000 });
    let server = app.channel::<hello::Owned>("main").bind().expect("bind");
    let mut peer = Peer::start("client", &[place.text(), word(backing)]);
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    let message = greet(&channel, "one of two");
    channel.send(&message).expect("send");
    peer.must_say("one of two");
    channel.send(&message).expect("send");
    assert!(matches!(channel.send(&message), Err(SendError::Quota(exceeded)) if exceeded.loans == 2));
    let large = greet(&channel, &"z".repeat(100_000));
    assert!(matches!(channel.send(&large), Err(SendError::Quota(_))));
    // The client leaves, and everything comes home.
    peer.tell("go");
    eventually("all returned", || (session.on_loan() == (0, 0)).then_some(()));
    drop((message, large, channel, session, server));
    peer.finish();
    place.must_be_empty();
}

const TIMES: u64 = 100;

fn hearers(args: &[String]) {
    let sessions = [0, 1].map(|_| client_app(backing(&args[1])).connect(&server(&args[0])).expect("connect"));
    let mut channels = sessions.each_ref().map(open);
    // In turns: each has room for a few only.
    for id in 1..=TIMES {
        for channel in &mut channels {
            let received = channel.recv_timeout(PATIENCE).expect("recv");
            assert_eq!((words(&received).as_str(), received.id()), ("to all", id));
        }
    }
    say("read");
    hear();
}

fn one_message_to_many_sessions(backing: Backing) {
    let place = Place::new();
    let server = server_app(place.text(), backing).channel::<hello::Owned>("main").bind().expect("bind");
    let mut peer = Peer::start("hearers", &[place.text(), word(backing)]);
    let sessions = [0, 1].map(|_| server.accept().expect("accept"));
    let mut channels = sessions.each_ref().map(|session| session.accept_channel().expect("channel"));
    let mut builder = server.create_msg::<hello::Owned>();
    builder.init_root().set_greet("to all");
    let message = builder.freeze().expect("room");
    for _ in 0..TIMES {
        for channel in &mut channels {
            channel.send_timeout(&message, PATIENCE).expect("send");
        }
    }
    peer.must_say("read");
    eventually("all returned", || sessions.iter().all(|session| session.on_loan() == (0, 0)).then_some(()));
    assert!(message.reader().get().is_ok());
    drop((channels, sessions, message));
    peer.tell("go");
    peer.finish();
    drop(server);
    place.must_be_empty();
}

fn unread_messages_go_home(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let (mut closing, mut other) = (open(&session), open(&session));
        closing.send(&greet(&closing, "burst 6")).expect("send");
        eventually("one of them", || closing.try_recv().expect("open"));
        drop(closing);
        // All but the question and its answer.
        eventually("unread ones are home", || (ask(&mut other, "loans").starts_with("(0, ")).then_some(()));
    });
}

fn channels_are_opened_later(backing: Backing) {
    with_server(backing, |place, _| {
        let session = connect(place, backing);
        let mut channels: Vec<_> = (0..50).map(|_| open(&session)).collect();
        for round in 0..3 {
            for channel in &mut channels {
                assert_eq!(ask(channel, &format!("echo {round}")), round.to_string());
            }
        }
        drop(channels.drain(10..));
        channels.extend((0..20).map(|_| open(&session)));
        channels.iter_mut().for_each(|channel| assert_eq!(ask(channel, "echo last"), "last"));
    });
}

/// Takes what it is offered, hears it out, answers, and offers a channel itself.
fn judge(args: &[String]) {
    let server = server_app(&args[0], backing(&args[1])).offers(1).bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut offer = session.accept_offer().expect("an offer");
    let metadata = offer.metadata::<hello::Owned>().expect("readable").expect("some");
    let mut channel = offer.accept::<hello::Owned>().expect("accepted");
    let mut heard = 0;
    let end = loop {
        match channel.recv_timeout(PATIENCE) {
            Ok(_) => heard += 1,
            Err(end) => break end,
        }
    };
    assert!(matches!(end, RecvError::Finished), "{end}");
    // The other direction is open still.
    channel.send(&greet(&channel, &format!("{} and {heard} more", words(&metadata)))).expect("send");
    let mut own = session.create_msg::<hello::Owned>();
    own.init_root().set_greet("of the server");
    let own = own.freeze().expect("room");
    let mut theirs = session.open_channel_with::<hello::Owned, _>("back", &own, PATIENCE).expect("accepted");
    assert!(words(&theirs.recv().expect("recv")).len() > 60_000);
    assert!(matches!(theirs.recv(), Err(RecvError::Finished | RecvError::Ended(_))));
}

fn with_judge(backing: Backing, talk: impl FnOnce(Session)) {
    let place = Place::new();
    let mut peer = Peer::start("judge", &[place.text(), word(backing)]);
    peer.must_say("ready");
    talk(client_app(backing).offers(1).connect(&place.server()).expect("connect"));
    peer.finish();
    place.must_be_empty();
}

/// Opens a channel, says all of `notes` and no more.
fn offered(session: &Session, notes: usize) -> Channel<hello::Owned> {
    let mut metadata = session.create_msg::<hello::Owned>();
    metadata.init_root().set_greet("of the client");
    let metadata = metadata.freeze().expect("room");
    let mut channel = session.open_channel_with::<hello::Owned, _>("forth", &metadata, PATIENCE).expect("accepted");
    for _ in 0..notes {
        channel.send_timeout(&greet(&channel, "note"), PATIENCE).expect("send");
    }
    channel.finish();
    channel
}

fn accept_back(session: &Session) {
    let mut offer = session.accept_offer_timeout(PATIENCE).expect("an offer");
    let metadata = offer.metadata::<hello::Owned>().expect("readable").expect("some");
    assert_eq!((words(&metadata).as_str(), offer.name()), ("of the server", "back"));
    let mut back = offer.accept::<hello::Owned>().expect("accepted");
    back.send(&greet(&back, &"w".repeat(65_000))).expect("send");
    back.close(PATIENCE).expect("received");
}

fn channels_are_offered_with_metadata(backing: Backing) {
    with_judge(backing, |session| {
        let mut channel = offered(&session, 0);
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "of the client and 0 more");
        accept_back(&session);
    });
}

/// Between others, and in order.
fn small_messages_travel_inside_their_slots(backing: Backing) {
    let place = Place::new();
    let mut peer = Peer::start("obliging", &[place.text(), word(backing), "32"]);
    peer.must_say("ready");
    let app = client_app(backing).inline_max(32).channel::<hello::Owned>("main");
    let session = app.connect(&place.server()).expect("connect");
    let mut channel = open(&session);
    for round in 0..100 {
        assert_eq!(ask(&mut channel, &format!("echo {round}")), round.to_string());
        let long = "long".repeat(round + 10);
        assert_eq!(ask(&mut channel, &format!("echo {long}")), long);
    }
    eventually("all is home", || (session.on_loan() == (0, 0)).then_some(()));
    // Nothing is lent, whether it has been received or not.
    for _ in 0..SLOTS {
        channel.send_timeout(&greet(&channel, "note"), PATIENCE).expect("send");
        assert_eq!(session.on_loan(), (0, 0));
    }
    assert_eq!(ask(&mut channel, "heard"), (200 + u64::from(SLOTS) + 1).to_string());
    channel.send(&greet(&channel, "burst 500")).expect("send");
    for index in 0..500 {
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), format!("burst {index}"));
    }
    assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "done");
    drop((channel, session));
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}

fn one_direction_ends_before_the_other(backing: Backing) {
    with_judge(backing, |session| {
        let mut channel = offered(&session, 100);
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("recv")), "of the client and 100 more");
        // The last of a hundred has been taken, which has to be known here.
        channel.drain(PATIENCE).expect("received");
        accept_back(&session);
    });
}

#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, PartialEq, TryFromBytes)]
#[repr(C)]
struct Sample {
    at: u64,
    value: f32,
    valid: bool,
    rest: [u8; 3],
}

const SAMPLE: Sample = Sample { at: 99, value: 0.25, valid: true, rest: [1, 2, 3] };

#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Stats {
    served: AtomicU64,
    failed: AtomicU64,
}

/// Answers each question with a sample, text, many numbers and raw bytes; and counters where memory is shared.
fn value_server(args: &[String]) {
    let backing = backing(&args[1]);
    let server = server_app(&args[0], backing).channel::<hello::Owned>("main").bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<hello::Owned>().expect("channel");
    let arena = server.arena();
    let stats = arena.share_counters::<Stats>().expect("room");
    let sample = arena.share(&SAMPLE).expect("room");
    while let Ok(question) = channel.recv() {
        stats.of(|stats| &stats.served).fetch_add(1, Ordering::Release);
        let text = arena.share(words(&question).as_str()).expect("room");
        let numbers = arena.share_slice::<u64>(100_000, |all| (0..).zip(all).for_each(|(n, to)| *to = n * n));
        let mut raw = arena.create_blob(1000).expect("room");
        raw.fill(7);
        let mut answer = channel.create_msg();
        answer.init_root().set_answer("as attached");
        answer.attach_blob(&sample).attach_blob(text).attach_blob(numbers.expect("room")).attach_blob(raw.freeze());
        answer.attach_blob(&stats);
        channel.reply(&question, &answer.freeze().expect("room")).expect("reply");
    }
}

fn with_values(backing: Backing, talk: impl FnOnce(&mut Channel<hello::Owned>)) {
    let place = Place::new();
    let mut peer = Peer::start("values", &[place.text(), word(backing)]);
    peer.must_say("ready");
    let session = connect(&place, backing);
    talk(&mut open(&session));
    drop(session);
    peer.finish();
    place.must_be_empty();
}

fn blobs_and_native_values(backing: Backing) {
    with_values(backing, |channel| {
        let mut kept = Vec::new();
        for round in 0..5 {
            let question = greet(channel, &format!("round {round}"));
            let answer = channel.request(&question, PATIENCE).expect("answer");
            assert_eq!((words(&answer).as_str(), answer.blobs().len()), ("as attached", 5));
            let [sample, text, numbers, raw, _] = answer.blobs() else { panic!("five") };
            assert_eq!(*sample.value::<Sample>().expect("a sample"), SAMPLE);
            let numbers = numbers.value::<[u64]>().expect("numbers");
            assert!(numbers.iter().copied().eq((0..100_000).map(|n| n * n)));
            assert_eq!(raw.to_vec().expect("room"), [7; 1000]);
            assert_eq!(raw.value::<[u8]>().map(drop), Err(ValueError::OtherKind));
            assert!(matches!(text.value::<Sample>().map(drop), Err(ValueError::OtherType { .. })));
            // Kept longer than the message it came with.
            kept.push(text.value::<str>().expect("text"));
        }
        (0..5).for_each(|round| assert_eq!(*kept[round], format!("round {round}")));
    });
}

fn counters_count_in_shared_memory(backing: Backing) {
    with_values(backing, |channel| {
        let first = channel.request(&greet(channel, "first"), PATIENCE).expect("answer");
        let stats = match first.blobs()[4].counters::<Stats>() {
            Err(error) if backing == Backing::Heap => return assert_eq!(error, ValueError::NotShared),
            stats => stats.expect("counters"),
        };
        drop(first);
        for count in 2..10 {
            let question = greet(channel, "next");
            channel.request(&question, PATIENCE).expect("answer");
            assert_eq!((stats.load(|stats| &stats.served), stats.load(|stats| &stats.failed)), (count, 0));
        }
    });
}

fn killed_apps_leave_nothing(backing: Backing) {
    let place = Place::new();
    for _ in 0..3 {
        // Each time over what the one before left.
        let peer = start_server(&place, backing);
        let session = connect(&place, backing);
        assert_eq!(ask(&mut open(&session), "echo here"), "here");
        peer.kill();
        eventually("its death", || session.end());
    }
    drop(server_app(place.text(), backing).bind().expect("bind"));
    assert_eq!(census::stale_names(), Vec::<String>::new());
    place.must_be_empty();
}

fn other_backings_are_refused(backing: Backing) {
    let place = Place::new();
    let server = server_app(place.text(), backing).channel::<hello::Owned>("main").bind().expect("bind");
    std::thread::scope(|scope| {
        for other in [Backing::Memfd, Backing::Named, Backing::Heap].into_iter().filter(|&other| other != backing) {
            let accepting = scope.spawn(|| server.accept().map(drop));
            let refused = client_app(other).trust(trust("in_place")).connect(&place.server()).map(drop);
            let (ours, theirs) = (other, backing);
            let expected = LoginError::OtherBacking { ours, theirs };
            assert!(matches!(refused, Err(ConnectError::Refused(found)) if found == expected), "{other:?}");
            let told = accepting.join().expect("accepting thread");
            let expected = LoginError::OtherBacking { ours: theirs, theirs: ours };
            assert!(matches!(told, Err(AcceptError::Refused(found)) if found == expected), "{other:?}");
        }
        if backing == Backing::Named {
            // The client would not believe the server,
            let refused = client_app(backing).trust(Trust::snapshot()).connect(&place.server()).map(drop);
            assert!(matches!(refused, Err(ConnectError::Refused(LoginError::NamedNeedsTrust))));
        }
    });
    drop(server);
    if backing == Backing::Named {
        // nor this server the client.
        let server = common::apps::server(place.text()).backing(backing).allow(&client(), Trust::snapshot());
        let server = server.bind().expect("bind");
        std::thread::scope(|scope| {
            let accepting = scope.spawn(|| server.accept().map(drop));
            let refused = client_app(backing).connect(&place.server()).map(drop);
            assert!(matches!(refused, Err(ConnectError::Refused(LoginError::NamedNeedsTrust))));
            let told = accepting.join().expect("accepting thread");
            assert!(matches!(told, Err(AcceptError::Refused(LoginError::NamedNeedsTrust))));
        });
    }
    place.must_be_empty();
}
