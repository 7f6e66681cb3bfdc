//! Sessions beyond the first meeting: channels that either side opens, with metadata, accepted or rejected.

mod common;
capnp::generated_code!(mod cache_capnp);
capnp::generated_code!(mod hello_capnp);

use cache_capnp::cache;
use common::apps::{Place, SHORT, ask, client, greet, server, words};
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, eventually};
use hello_capnp::hello;
use std::process::ExitCode;
use std::time::Duration;
use strait::{
    Channel, ChannelError, ClientApp, CloseError, Ended, LoanQuota, Message, Offer, QuotaExceeded, RecvError,
};
use strait::{Schema, Session, Trust};

fn main() -> ExitCode {
    let cases = [
        Case::new("each_side_opens_channels_in_the_log_in", at_login),
        Case::new("a_channel_opened_in_the_log_in_may_be_refused", refused_at_login),
        Case::new("each_side_opens_channels_with_metadata", with_metadata),
        Case::new("each_side_opens_channels_with_metadata_in_the_log_in", introduced),
        Case::new("offers_are_rejected_with_a_reason", rejected),
        Case::new("offers_wait_up_to_a_limit", limited),
        Case::new("offers_nobody_waits_for_any_more", given_up),
        Case::new("metadata_that_cannot_be_sent", unsendable),
        Case::new("metadata_goes_home", goes_home),
        Case::new("a_thousand_channels", thousand),
        Case::new("a_session_is_drained_before_it_is_closed", drained),
        Case::new("sessions_end_in_any_order", any_order),
        Case::new("a_child_has_nothing_of_it", forked),
    ];
    common::main(&cases, &[("host", host), ("obliging", common::obliging::run)])
}

/// A server of one client that does as it is told, and serves `main`; arguments: where, how many offers may wait, and
/// what it opens in the log-in, with a colon and words for metadata perhaps.
fn host(args: &[String]) {
    let app = server(&args[0]).channel::<hello::Owned>("main");
    let app = args[2..].iter().fold(app, |app, opens| match opens.split_once(':') {
        None => app.opens::<hello::Owned>(opens),
        Some((name, words)) => introducing(words, |write| app.opens_with::<hello::Owned, hello::Owned>(name, write)),
    });
    let app = app.offers(args[1].parse().expect("a number")).allow(&client(), Trust::snapshot());
    let server = app.bind().expect("bind");
    say("ready");
    let session = server.accept().expect("a client");
    let mut channels: Vec<Channel<hello::Owned>> = Vec::new();
    loop {
        let said = hear();
        let (command, rest) = said.split_once(' ').unwrap_or((&said, ""));
        let (first, second) = rest.split_once(' ').unwrap_or((rest, ""));
        match command {
            "" => return,
            "open" => match session.open_channel(first, PATIENCE) {
                Ok(channel) => {
                    channels.push(channel);
                    say("opened");
                }
                Err(error) => say(format!("{error:?}")),
            },
            "open-with" => {
                let opened = session.open_channel_with(first, &text(&session, second), PATIENCE);
                channels.push(opened.expect("opened"));
                say("opened");
            }
            "tell" => {
                let channel = channels.last_mut().expect("a channel");
                let message = greet(channel, rest);
                channel.send(&message).expect("room");
            }
            "ask" => say(ask(channels.last_mut().expect("a channel"), rest)),
            "accept" => {
                let (offer, said) = judge(&session);
                channels.push(offer.accept().expect("accepted"));
                say(said);
            }
            "accept-other" => {
                let (offer, said) = judge(&session);
                say(said);
                say(format!("{:?}", offer.accept::<cache::Owned>().map(drop)));
            }
            "reject" => {
                let (offer, said) = judge(&session);
                offer.reject(rest);
                say(said);
            }
            "drop" => drop(session.accept_offer().expect("an offer")),
            "take" => channels.push(session.accept_channel_timeout(PATIENCE).expect("a channel")),
            "heard" => match channels.last_mut().expect("a channel").recv_timeout(PATIENCE) {
                Ok(received) => say(words(&received)),
                Err(error) => say(format!("{error:?}")),
            },
            "loans" => say(format!("{:?}", session.on_loan())),
            other => panic!("what is {other}"),
        }
    }
}

/// Has an app write these words with a channel.
fn introducing<App>(words: &str, with: impl FnOnce(Box<dyn Fn(hello::Builder<'_>) + Send + Sync>) -> App) -> App {
    let words = words.to_owned();
    with(Box::new(move |mut root| root.set_greet(&words)))
}

/// The next offer, and what it says.
fn judge(session: &Session) -> (Offer, String) {
    let mut offer = session.accept_offer_timeout(PATIENCE).expect("an offer");
    let metadata = offer.metadata::<hello::Owned>().expect("readable").map(|metadata| words(&metadata));
    assert!(offer.metadata::<hello::Owned>().expect("once").is_none());
    let said = format!("{} {} {metadata:?}", offer.name(), offer.schema() == hello::Owned::ID);
    (offer, said)
}

fn text(session: &Session, words: &str) -> Message<hello::Owned> {
    let mut builder = session.create_msg::<hello::Owned>();
    builder.init_root().set_greet(words);
    builder.freeze().expect("room")
}

fn with_host(offers: usize, app: &ClientApp, talk: impl FnOnce(&Session, &mut Peer)) {
    with_host_that_opens(&[], offers, app, talk);
}

fn with_host_that_opens(opens: &[&str], offers: usize, app: &ClientApp, talk: impl FnOnce(&Session, &mut Peer)) {
    let place = Place::new();
    let offers = offers.to_string();
    let mut peer = Peer::start("host", &[&[place.text(), &offers], opens].concat());
    peer.must_say("ready");
    let session = app.connect(&place.server()).expect("connect");
    talk(&session, &mut peer);
    drop(session);
    peer.finish();
    place.must_be_empty();
}

fn at_login() {
    let app = client().channel::<hello::Owned>("main").channel::<hello::Owned>("main");
    with_host_that_opens(&["events"], 0, &app.serves::<hello::Owned>("events"), |session, peer| {
        // Both find theirs without waiting for anybody: no time is given.
        let mut ours = session.open_channel::<hello::Owned>("main", Duration::ZERO).expect("opened in the log-in");
        let _other = session.open_channel::<hello::Owned>("main", Duration::ZERO).expect("opened in the log-in");
        peer.tell("take");
        ours.send(&greet(&ours, "here")).expect("room");
        peer.tell("heard");
        peer.must_say("here");
        // What this side has opened is not for it to accept.
        let mut theirs = session.accept_channel::<hello::Owned>().expect("opened by the server");
        assert_eq!(theirs.name(), "events");
        let nothing = session.accept_channel_timeout::<hello::Owned>(Duration::ZERO);
        assert_eq!(nothing.map(drop), Err(ChannelError::TimedOut));
        peer.tell("open events");
        peer.must_say("opened");
        peer.tell("tell tick");
        assert_eq!(words(&theirs.recv_timeout(PATIENCE).expect("tick")), "tick");
        // A second of the name is a second channel.
        peer.tell("open events");
        peer.must_say("opened");
        peer.tell("tell tock");
        let nobody = session.accept_channel_named::<hello::Owned>("other", SHORT).map(drop);
        assert_eq!(nobody, Err(ChannelError::TimedOut));
        let nobody = session.accept_channel_named::<cache::Owned>("events", SHORT).map(drop);
        assert_eq!(nobody, Err(ChannelError::TimedOut));
        let mut second = session.accept_channel_named::<hello::Owned>("events", PATIENCE).expect("opened");
        assert_eq!(words(&second.recv_timeout(PATIENCE).expect("tock")), "tock");
    });
}

fn refused_at_login() {
    with_host_that_opens(&["events"], 0, &client(), |_, peer| {
        peer.tell("open events");
        peer.must_say(&format!("{:?}", ChannelError::UnknownChannel { channel: "events".into() }));
    });
    with_host_that_opens(&["events"], 0, &client().serves::<cache::Owned>("events"), |_, peer| {
        peer.tell("open events");
        let (ours, theirs) = (hello::Owned::ID, cache::Owned::ID);
        peer.must_say(&format!("{:?}", ChannelError::WrongSchema { channel: "events".into(), ours, theirs }));
    });
    // The application's to judge.
    with_host_that_opens(&["events"], 0, &client().offers(1), |session, peer| {
        peer.tell("open events");
        let (offer, said) = judge(session);
        assert_eq!(said, "events true None");
        let mut channel: Channel<hello::Owned> = offer.accept().expect("accepted");
        peer.must_say("opened");
        peer.tell("tell tick");
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("tick")), "tick");
    });
}

fn with_metadata() {
    with_host(1, &client().offers(1), |session, peer| {
        peer.tell("accept");
        let mut ours: Channel<hello::Owned> =
            session.open_channel_with("ours", &text(session, "from the client"), PATIENCE).expect("accepted");
        peer.must_say("ours true Some(\"from the client\")");
        assert_eq!(ours.name(), "ours");
        ours.send(&greet(&ours, "hello")).expect("room");
        peer.tell("heard");
        peer.must_say("hello");

        peer.tell("open-with theirs from the server");
        let mut offer = session.accept_offer().expect("an offer");
        assert_eq!((offer.name(), offer.metadata_schema()), ("theirs", Some(hello::Owned::ID)));
        // Asked for as what it is not, it is still there.
        let wrong = offer.metadata::<cache::Owned>().map(drop);
        let (ours, theirs) = (cache::Owned::ID, hello::Owned::ID);
        assert_eq!(wrong, Err(ChannelError::WrongSchema { channel: "theirs".into(), ours, theirs }));
        let metadata = offer.metadata::<hello::Owned>().expect("readable").expect("some");
        assert_eq!((words(&metadata).as_str(), offer.metadata_schema()), ("from the server", None));
        let mut theirs: Channel<hello::Owned> = offer.accept().expect("accepted");
        // Both ends are usable before anyone has waited for anything.
        theirs.send(&greet(&theirs, "at once")).expect("room");
        peer.must_say("opened");
        peer.tell("heard");
        peer.must_say("at once");
        // Metadata outlives the offer and the channel.
        drop(theirs);
        assert_eq!(words(&metadata), "from the server");
        // A name that is served is opened by whoever serves it, metadata or not.
        let served = session.open_channel_with::<hello::Owned, _>("main", &text(session, "unread"), PATIENCE);
        drop(served.expect("served"));
    });
}

fn introduced() {
    let app = [("ours", "from the client"), ("too", "many"), ("large", &*"x".repeat(70_000))]
        .iter()
        .fold(client().offers(2), |app, (name, words)| {
            introducing(words, |write| app.channel_with::<hello::Owned, hello::Owned>(*name, write))
        });
    let theirs = ["theirs:from the server", "others:nobody wants them"];
    with_host_that_opens(&theirs, 2, &app, |session, peer| {
        // Asked for before anyone here opens them.
        peer.tell("reject not now");
        peer.must_say("ours true Some(\"from the client\")");
        peer.tell("accept");
        peer.must_say("too true Some(\"many\")");
        let open = |name: &str| session.open_channel::<hello::Owned>(name, PATIENCE);
        let reason = "not now".into();
        assert_eq!(open("ours").map(drop), Err(ChannelError::Rejected { channel: "ours".into(), reason }));
        let mut too = open("too").expect("accepted");
        too.send(&greet(&too, "hello")).expect("room");
        peer.tell("heard");
        peer.must_say("hello");
        assert!(matches!(open("large").map(drop), Err(ChannelError::MetadataTooLarge { bytes: 70_001.., .. })));
        // A further one says the same.
        peer.tell("accept");
        let ours = open("ours").expect("accepted");
        peer.must_say("ours true Some(\"from the client\")");

        let mut offer = session.accept_offer().expect("an offer");
        let metadata = offer.metadata::<hello::Owned>().expect("readable").expect("some");
        assert_eq!((offer.name(), words(&metadata).as_str()), ("theirs", "from the server"));
        drop(metadata);
        let mut theirs: Channel<hello::Owned> = offer.accept().expect("accepted");
        let offer = session.accept_offer().expect("an offer");
        assert_eq!(offer.name(), "others");
        offer.reject("nobody does");
        theirs.send(&greet(&theirs, "at once")).expect("room");
        peer.tell("open theirs");
        peer.must_say("opened");
        peer.tell("heard");
        peer.must_say("at once");
        peer.tell("open others");
        peer.must_say("Rejected { channel: \"others\", reason: \"nobody does\" }");
        drop((ours, too, theirs));
        eventually("the metadata is home", || (session.on_loan() == (0, 0)).then_some(()));
    });
}

fn rejected() {
    with_host(1, &client(), |session, peer| {
        let open = |name: &str| session.open_channel::<hello::Owned>(name, PATIENCE).map(drop);
        let rejected = |reason: &str| Err(ChannelError::Rejected { channel: "c".into(), reason: reason.into() });
        peer.tell("reject not on a Friday");
        assert_eq!(open("c"), rejected("not on a Friday"));
        peer.must_say("c true None");
        peer.tell(&format!("reject {}", "ä".repeat(200)));
        assert_eq!(open("c"), rejected(&"ä".repeat(54)));
        peer.must_say("c true None");
        peer.tell("drop");
        assert_eq!(open("c"), rejected(""));
        peer.tell("accept-other");
        let wrong = |ours, theirs| ChannelError::WrongSchema { channel: "c".into(), ours, theirs };
        assert_eq!(open("c"), Err(wrong(hello::Owned::ID, cache::Owned::ID)));
        peer.must_say("c true None");
        peer.must_say(&format!("{:?}", Err::<(), _>(wrong(cache::Owned::ID, hello::Owned::ID))));
        // Whatever was refused, the session goes on.
        assert!(session.open_channel::<hello::Owned>("main", PATIENCE).is_ok());
    });
    with_host(0, &client(), |session, _| {
        let refused = session.open_channel::<hello::Owned>("c", PATIENCE).map(drop);
        assert_eq!(refused, Err(ChannelError::UnknownChannel { channel: "c".into() }));
    });
}

fn limited() {
    with_host(2, &client(), |session, peer| {
        let open = |timeout| session.open_channel::<hello::Owned>("c", timeout).map(drop);
        // They go on waiting at the other end, where nobody knows that this side does not.
        assert_eq!(open(Duration::ZERO), Err(ChannelError::TimedOut));
        assert_eq!(open(Duration::ZERO), Err(ChannelError::TimedOut));
        assert_eq!(open(PATIENCE), Err(ChannelError::TooMany));
        for _ in 0..2 {
            peer.tell("reject no");
            peer.must_say("c true None");
        }
        peer.tell("reject yes");
        assert!(matches!(open(PATIENCE), Err(ChannelError::Rejected { .. })));
        peer.must_say("c true None");
        assert!(session.open_channel::<hello::Owned>("main", PATIENCE).is_ok());
    });
}

fn given_up() {
    with_host(1, &client(), |session, peer| {
        let late = session.open_channel::<hello::Owned>("late", SHORT).map(drop);
        assert_eq!(late, Err(ChannelError::TimedOut));
        peer.tell("accept");
        peer.must_say("late true None");
        peer.tell("heard");
        let cause = Ended::ChannelClosed;
        let ended = strait::EndedError { peer: "tester".into(), channel: "late".into(), cause };
        peer.must_say(&format!("{:?}", RecvError::Ended(ended)));
        assert!(session.open_channel::<hello::Owned>("main", PATIENCE).is_ok());
    });
}

fn unsendable() {
    let app = client().loan_quota(LoanQuota { loans: 1, bytes: 1 << 20 });
    with_host(1, &app, |session, peer| {
        let open = |metadata: &Message<hello::Owned>| {
            session.open_channel_with::<hello::Owned, _>("c", metadata, SHORT).map(drop)
        };
        let limit = 64 << 10;
        match open(&text(session, &"x".repeat(limit))) {
            Err(ChannelError::MetadataTooLarge { bytes, limit: found }) => assert!(bytes > limit && found == limit),
            other => panic!("{other:?}"),
        }
        let place = Place::new();
        let elsewhere = place.server().bind().expect("bind");
        let mut foreign = elsewhere.create_msg::<hello::Owned>();
        foreign.init_root().set_greet("foreign");
        assert_eq!(open(&foreign.freeze().expect("room")), Err(ChannelError::ForeignArena));
        // Nobody takes it, so it stays on loan: a second one is too much.
        assert_eq!(open(&text(session, "first")), Err(ChannelError::TimedOut));
        match open(&text(session, "second")) {
            Err(ChannelError::Quota(QuotaExceeded { loans, .. })) => assert_eq!(loans, 1),
            other => panic!("{other:?}"),
        }
        peer.tell("reject late");
        peer.must_say("c true Some(\"first\")");
        eventually("the metadata is home", || (session.on_loan() == (0, 0)).then_some(()));
        assert_eq!(open(&text(session, "third")), Err(ChannelError::TimedOut));
    });
}

fn goes_home() {
    with_host(1, &client().offers(1), |session, peer| {
        for command in ["accept", "reject no", "drop"] {
            peer.tell(command);
            let opened = session.open_channel_with::<hello::Owned, _>("c", &text(session, "words"), PATIENCE);
            assert_eq!(opened.is_ok(), command == "accept");
            if command != "drop" {
                peer.must_say("c true Some(\"words\")");
            }
            eventually("the metadata is home", || (session.on_loan() == (0, 0)).then_some(()));
        }
        drop(session.open_channel_with::<hello::Owned, _>("main", &text(session, "unread"), PATIENCE).expect("served"));
        eventually("the metadata is home", || (session.on_loan() == (0, 0)).then_some(()));
        peer.tell("open-with c words");
        // Unread.
        let channel: Channel<hello::Owned> = session.accept_offer().expect("an offer").accept().expect("accepted");
        peer.must_say("opened");
        eventually("the metadata is home", || {
            peer.tell("loans");
            (peer.line() == "(0, 0)").then_some(())
        });
        drop(channel);
    });
}

const MANY: usize = 1_000;

fn thousand() {
    let place = Place::new();
    let mut peer = common::obliging::obliging_server(&place, "snapshot");
    let session = client().connect(&place.server()).expect("connect");
    // One thread each at the other end.
    let mut channels: Vec<Channel<hello::Owned>> =
        (0..MANY).map(|_| session.open_channel("main", PATIENCE).expect("opened")).collect();
    for (index, channel) in channels.iter_mut().enumerate() {
        assert_eq!(ask(channel, &format!("echo {index}")), index.to_string());
    }
    // All in use at once.
    for channel in &mut channels {
        let message = greet(channel, "echo all");
        channel.send(&message).expect("room");
    }
    channels.iter_mut().for_each(|channel| assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("all")), "all"));
    eventually("all is home", || (session.on_loan() == (0, 0)).then_some(()));
    drop(channels);
    // There is room for others.
    eventually("room", || session.open_channel::<hello::Owned>("main", PATIENCE).ok()).set_wait(strait::Wait::Park);
    drop(session);
    peer.must_say("session: PeerClosed");
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}

fn send_three(channel: &mut Channel<hello::Owned>) {
    for index in 0..3 {
        let message = greet(channel, &index.to_string());
        channel.send(&message).expect("room");
    }
}

fn drained() {
    with_host(0, &client(), |session, peer| {
        let mut channel = session.open_channel::<hello::Owned>("main", PATIENCE).expect("opened");
        peer.tell("take");
        // Nothing was sent: nothing to wait for. But here is something, and the server does not look.
        send_three(&mut channel);
        let late = session.clone().close_timeout(SHORT);
        assert!(matches!(late, Err(CloseError::TimedOut { loans: 3, .. })), "{late:?}");
        assert_eq!(session.end(), Some(Ended::Closed));
        let again = session.close_timeout(SHORT);
        assert_eq!(again, Err(CloseError::Ended { peer: "suite".into(), cause: Ended::Closed }));
        // It was sent all the same.
        for expected in ["0", "1", "2"] {
            peer.tell("heard");
            peer.must_say(expected);
        }
    });
    with_host(0, &client(), |session, peer| {
        let mut channel = session.open_channel::<hello::Owned>("main", PATIENCE).expect("opened");
        peer.tell("take");
        send_three(&mut channel);
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| session.close_timeout(PATIENCE));
            for expected in ["0", "1", "2"] {
                assert!(session.end().is_none(), "not yet");
                peer.tell("heard");
                peer.must_say(expected);
            }
            assert_eq!(closing.join().expect("thread"), Ok(()));
        });
        assert_eq!(session.on_loan(), (0, 0));
        assert_eq!(session.end(), Some(Ended::Closed));
    });
    with_host(0, &client(), |session, _| assert_eq!(session.close_timeout(Duration::ZERO), Ok(())));
}

/// Whatever is dropped first, in whatever thread: the census of the case says that nothing is left.
fn any_order() {
    for order in 0..5 {
        with_host(1, &client().offers(1), |session, peer| {
            let channel = session.open_channel::<hello::Owned>("main", PATIENCE).expect("opened");
            peer.tell("open-with c words");
            let mut offer = session.accept_offer().expect("an offer");
            let metadata = offer.metadata::<hello::Owned>().expect("readable").expect("some");
            let accepted = offer.accept::<hello::Owned>().expect("accepted");
            peer.must_say("opened");
            let _ = session.open_channel::<hello::Owned>("unanswered", Duration::ZERO);
            let closing = session.clone();
            let mut parts: Vec<Box<dyn Send>> =
                vec![Box::new(channel), Box::new(session.clone()), Box::new(metadata), Box::new(accepted)];
            parts.rotate_left(order % 4);
            std::thread::scope(|scope| {
                scope.spawn(move || closing.close());
                match order {
                    4 => parts.into_iter().for_each(|part| drop(scope.spawn(move || drop(part)))),
                    _ => drop(parts),
                }
            });
            assert_eq!(session.accept_offer().map(drop), Err(ended(Ended::Closed)));
        });
    }
}

/// A forked child gets the same answer to everything, and changes nothing by dropping what it has.
fn forked() {
    with_host(2, &client().offers(2), |session, peer| {
        peer.tell("open-with c words");
        let mut offer = session.accept_offer().expect("an offer");
        let words_ = text(session, "words");
        // SAFETY: this process has one thread of its own besides the library's, whose locks are made for this; the child
        // leaves by `_exit`.
        match unsafe { nix::unistd::fork() }.expect("fork") {
            nix::unistd::ForkResult::Child => {
                let over = || ended(Ended::ForkedProcess);
                let right = session.accept_offer().map(drop) == Err(over())
                    && offer.metadata::<hello::Owned>().map(drop) == Err(over())
                    && session.accept_channel_named::<hello::Owned>("c", PATIENCE).map(drop) == Err(over())
                    && session.open_channel_with::<hello::Owned, _>("c", &words_, PATIENCE).map(drop) == Err(over())
                    && session.close_timeout(PATIENCE).is_err()
                    && session.peer_pidfd().is_err();
                let accepted = offer.accept::<hello::Owned>().map(drop) == Err(over());
                drop(words_);
                // SAFETY: always allowed.
                unsafe { nix::libc::_exit(i32::from(!(right && accepted))) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).expect("wait");
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
        assert_eq!(words(&offer.metadata::<hello::Owned>().expect("readable").expect("some")), "words");
        let mut channel: Channel<hello::Owned> = offer.accept().expect("accepted");
        peer.must_say("opened");
        peer.tell("tell tick");
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("tick")), "tick");
    });
}

fn ended(cause: Ended) -> ChannelError {
    ChannelError::Ended { peer: "suite".into(), cause }
}
