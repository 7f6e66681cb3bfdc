//! What travels beside a message's structure: blobs, descriptors. Two processes; the other one says what it found.

mod common;
#[path = "attach/keeper.rs"]
mod keeper;
#[path = "attach/passing.rs"]
mod passing;
#[path = "attach/scopes.rs"]
mod scopes;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, TRUSTS, ask, client, open, words};
use common::peer::Peer;
use common::{Case, PATIENCE, eventually};
use hello_capnp::hello;
use keeper::{fill, keeper};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::process::ExitCode;
use strait::{AllocError, Arena, Backing, Blob, Channel, ClientApp, FreezeError, LoanQuota, SendError, Session, Trust};

fn main() -> ExitCode {
    let cases = [
        Case::new("blobs_arrive_as_they_were", arrive),
        Case::new("blobs_come_back", come_back),
        Case::new("blobs_alone", alone),
        Case::new("one_blob_in_many_messages", many_messages),
        Case::new("a_blob_outlives_what_it_came_with", outlives),
        Case::new("a_blob_held_by_a_peer_that_is_killed", killed),
        Case::new("a_blob_is_written_like_a_file", written),
        Case::new("a_blob_is_read_like_a_file", read),
        Case::new("a_blob_beyond_what_capnp_can_hold", huge),
        Case::new("more_blobs_than_a_message_takes", too_many),
        Case::new("blobs_count_against_the_quota", quota),
        Case::new("descriptors_of_every_kind", || passing::every_kind(Backing::Memfd)),
        Case::new("descriptors_of_every_kind_beside_what_is_carried", || passing::every_kind(Backing::Heap)),
        Case::new("descriptors_stay_with_their_messages", || passing::stay_with(Backing::Memfd)),
        Case::new("descriptors_stay_with_messages_that_are_carried", || passing::stay_with(Backing::Heap)),
        Case::new("descriptors_with_answers", passing::with_answers),
        Case::new("a_message_sent_again_sends_its_descriptors_again", passing::sent_again),
        Case::new("descriptors_from_many_threads", passing::split),
        Case::new("more_descriptors_than_a_message_takes", passing::too_many),
        Case::new("more_descriptors_than_may_be_under_way", || passing::window(Backing::Memfd)),
        Case::new("more_descriptors_than_may_be_under_way_where_all_is_carried", || passing::window(Backing::Heap)),
        Case::new("a_wait_for_descriptors_to_be_taken_ends", passing::window_ends),
        Case::new("descriptors_nobody_receives", passing::unread),
        Case::new("descriptors_under_way_to_a_peer_that_is_killed", passing::killed),
        Case::new("descriptors_of_a_peer_that_was_killed", passing::of_the_dead),
        Case::new("a_descriptor_table_that_is_full", passing::table_full),
        Case::new("a_kernel_that_takes_no_more_descriptors", passing::kernel_full),
        Case::new("descriptors_and_forked_children", passing::forked),
        Case::new("one_message_to_many_servers_of_which_one_is_killed", scopes::many_servers),
        Case::new("one_message_to_many_clients_of_which_one_is_killed", scopes::many_clients),
        Case::new("messages_copied_for_those_who_do_not_see_them", scopes::copied),
        Case::new("messages_sent_on_to_a_third_app", scopes::sent_on),
        Case::new("messages_changed_and_sent_on", scopes::changed),
        Case::new("copies_that_find_no_room", scopes::no_room),
    ];
    common::main(&cases, &[("keeper", keeper), ("listener", scopes::listener)])
}

/// A case against a keeper that believes its clients so far; `talk` must leave no session.
fn with_keeper(believing: &str, talk: impl FnOnce(&Place, &mut Peer)) {
    with_keeper_over(Backing::Memfd, believing, talk);
}

fn with_keeper_over(backing: Backing, believing: &str, talk: impl FnOnce(&Place, &mut Peer)) {
    let place = Place::new();
    let mut peer = Peer::start("keeper", &[place.text(), believing, &format!("{backing:?}")]);
    peer.must_say("ready");
    talk(&place, &mut peer);
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}

fn enter(place: &Place, app: ClientApp) -> (Session, Channel<hello::Owned>) {
    let session = app.connect(&place.server()).expect("connect");
    let channel = open(&session);
    (session, channel)
}

fn blob(arena: &Arena, seed: usize, len: usize) -> Blob {
    let mut blob = arena.create_blob(len).expect("room");
    fill(&mut blob, seed);
    blob.freeze()
}

/// Asks something with blobs beside it.
fn ask_with(channel: &mut Channel<hello::Owned>, question: &str, blobs: &[Blob]) -> String {
    let mut message = channel.create_msg();
    message.init_root().set_greet(question);
    for blob in blobs {
        message.attach_blob(blob.clone());
    }
    let message = message.freeze().expect("room");
    words(&channel.request(&message, PATIENCE).expect("answer"))
}

fn all_home(session: &Session) {
    eventually("all is home", || (session.on_loan() == (0, 0)).then_some(()));
}

const SIZES: [usize; 9] = [0, 1, 7, 8, 9, 4096, 100_003, 5 << 20, 64];

fn arrive() {
    for believing in TRUSTS {
        with_keeper(believing, |place, _| {
            let (session, mut channel) = enter(place, client());
            let blobs: Vec<_> = SIZES.iter().enumerate().map(|(seed, &len)| blob(session.arena(), seed, len)).collect();
            // One by one, then all at once: in order.
            for (seed, one) in blobs.iter().enumerate() {
                let expected = format!("{}:{seed}", one.len());
                assert_eq!(ask_with(&mut channel, &format!("find {seed}"), std::slice::from_ref(one)), expected);
            }
            let all: Vec<_> = SIZES.iter().enumerate().map(|(seed, len)| format!("{len}:{seed}")).collect();
            assert_eq!(ask_with(&mut channel, "find 0", &blobs), all.join(" "));
            // The same one more than once, and none.
            let twice = [blobs[6].clone(), blobs[6].clone()];
            assert_eq!(ask_with(&mut channel, "sizes", &twice), "100003 100003");
            assert_eq!(ask_with(&mut channel, "sizes", &[]), "");
        });
    }
}

fn come_back() {
    for believing in TRUSTS {
        with_keeper("snapshot", |place, _| {
            let (_session, mut channel) = enter(place, client().trust(common::apps::trust(believing)));
            for (seed, len) in SIZES.into_iter().enumerate() {
                let question = common::apps::greet(&channel, &format!("make {seed} {len}"));
                let answer = channel.request(&question, PATIENCE).expect("answer");
                let [found] = answer.blobs() else { panic!("{} blobs", answer.blobs().len()) };
                assert_eq!(found.len(), len as u64);
                assert_eq!(found.as_slice().is_some(), believing == "in_place");
                let bytes = found.to_vec().expect("memory");
                assert!(keeper::is_filled(&bytes, seed));
                assert!(found.as_slice().is_none_or(|slice| slice == bytes));
            }
        });
    }
}

fn alone() {
    with_keeper("snapshot", |place, _| {
        let (session, mut channel) = enter(place, client());
        let mut message = channel.create_msg();
        message.attach_blob(blob(session.arena(), 3, 1000));
        let message = message.freeze().expect("room");
        assert_eq!(message.segments().map(<[u8]>::len).sum::<usize>(), 8, "an empty root");
        assert_eq!(message.blobs().len(), 1);
        // An empty root is a greeting without words.
        assert_eq!(words(&channel.request(&message, PATIENCE).expect("answer")), "1000");
    });
}

fn many_messages() {
    with_keeper("in_place", |place, _| {
        let (session, mut channel) = enter(place, client());
        let shared = blob(session.arena(), 1, 256 << 10);
        for round in 0..100 {
            assert_eq!(ask_with(&mut channel, "keep", std::slice::from_ref(&shared)), (round + 1).to_string());
        }
        let (loans, bytes) = session.on_loan();
        assert!(loans == 100 && bytes >= 25 << 20, "{loans} {bytes}");
        // One copy of the bytes, however often they were lent.
        assert!(session.arena().resident().expect("known") < 8 << 20);
        let kept = shared.clone();
        drop(shared);
        assert_eq!(ask(&mut channel, "find kept 1"), "100");
        assert_eq!(ask(&mut channel, "drop"), "100");
        all_home(&session);
        assert!(keeper::is_filled(&kept, 1), "nobody has used the memory meanwhile");
        let held = session.arena().resident().expect("known");
        drop(kept);
        session.arena().purge();
        assert!(session.arena().resident().expect("known") + (256 << 10) <= held, "it is free now");
    });
}

fn outlives() {
    for believing in TRUSTS {
        with_keeper("snapshot", |place, _| {
            let (session, mut channel) = enter(place, client().trust(common::apps::trust(believing)));
            let question = common::apps::greet(&channel, "make 7 100000");
            let answer = channel.request(&question, PATIENCE).expect("answer");
            let first = answer.blobs()[0].clone();
            let mut reader = first.reader();
            drop(answer);
            assert_eq!(ask(&mut channel, "loans"), "1", "the blob is on loan still");
            drop((session, channel, first));
            // Neither channel nor session is there any more, and the other side has closed as well; the bytes are.
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).expect("readable");
            assert!(keeper::is_filled(&bytes, 7) && bytes.len() == 100_000);
        });
    }
}

fn killed() {
    let place = Place::new();
    let mut peer = Peer::start("keeper", &[place.text(), "in_place"]);
    peer.must_say("ready");
    let (session, mut channel) = enter(&place, client());
    assert_eq!(ask_with(&mut channel, "keep", &[blob(session.arena(), 1, 8 << 20)]), "1");
    assert!(session.on_loan().1 >= 8 << 20);
    peer.kill();
    all_home(&session);
    // It is off the books a moment before it is free.
    eventually("it is free", || {
        session.arena().purge();
        (session.arena().resident().expect("known") < 4 << 20).then_some(())
    });
}

fn written() {
    with_keeper("snapshot", |place, _| {
        let (session, mut channel) = enter(place, client().arena_bytes(64 << 20));
        let arena = session.arena();
        let mut growing = arena.create_blob_with_capacity(0).expect("room");
        let mut whole = vec![0; 1_000_003];
        fill(&mut whole, 5);
        whole.chunks(7_919).for_each(|chunk| growing.write_all(chunk).expect("room"));
        assert_eq!(*growing, *whole);
        // In place as well, and cut again.
        growing.write_all(b"too much").expect("room");
        growing[1_000_003] = b'T';
        assert_eq!(&growing[1_000_003..], b"Too much");
        growing.truncate(1_000_003);
        growing.truncate(usize::MAX);
        assert_eq!(ask_with(&mut channel, "find 5", &[growing.freeze()]), "1000003:5");
        // What has no room says so, and what was there stays.
        let mut full = arena.create_blob_with_capacity(100).expect("room");
        full.write_all(b"first").expect("room");
        for more in [64 << 20, usize::MAX, usize::MAX - 3] {
            assert!(matches!(full.reserve(more), Err(AllocError::Full { .. })));
        }
        let error = full.write_all(&vec![1; 64 << 20]).expect_err("no room");
        assert_eq!((error.kind(), &*full), (ErrorKind::OutOfMemory, &b"first"[..]));
        assert!(matches!(arena.create_blob(65 << 20), Err(AllocError::Full { .. })));
        assert!(arena.create_blob(32 << 20).expect("room").iter().all(|byte| *byte == 0));
        // What was written before is no part of a new one.
        let mut used = arena.create_blob(1 << 20).expect("room");
        used.fill(0xAA);
        drop(used);
        assert!(arena.create_blob(1 << 20).expect("room").iter().all(|byte| *byte == 0));
    });
}

fn read() {
    with_keeper("snapshot", |place, _| {
        let (_session, mut channel) = enter(place, client());
        let question = common::apps::greet(&channel, "make 9 1003");
        let answer = channel.request(&question, PATIENCE).expect("answer");
        let blob = &answer.blobs()[0];
        let mut whole = vec![0; 1003];
        fill(&mut whole, 9);
        // Every offset and length around the words they are read by.
        for from in (0..20).chain(985..1003) {
            for len in (0..20).filter(|len| from + len <= 1003) {
                let mut some = vec![0xEE; len];
                blob.read_exact_at(&mut some, from as u64).expect("there");
                assert_eq!(some, whole[from..from + len], "{len} bytes from {from}");
            }
        }
        let mut some = [0; 10];
        assert_eq!(blob.read_at(&mut some, 998).expect("there"), 5);
        for past in [1003, 1004, u64::MAX] {
            assert_eq!(blob.read_at(&mut some, past).expect("there"), 0);
            assert_eq!(blob.read_exact_at(&mut some, past).expect_err("past").kind(), ErrorKind::UnexpectedEof);
        }
        let mut reader = blob.reader();
        assert_eq!(reader.seek(SeekFrom::End(-3)).expect("there"), 1000);
        let mut rest = Vec::new();
        assert_eq!(reader.read_to_end(&mut rest).expect("there"), 3);
        assert_eq!(rest, whole[1000..]);
        assert_eq!(reader.seek(SeekFrom::Start(5)).expect("there"), 5);
        assert_eq!(reader.seek(SeekFrom::Current(-1)).expect("there"), 4);
        reader.read_exact(&mut some).expect("there");
        assert_eq!(some, whole[4..14]);
        assert!(reader.seek(SeekFrom::Current(-100)).is_err());
        assert_eq!(reader.seek(SeekFrom::Start(u64::MAX)).expect("like a file"), u64::MAX);
        assert_eq!(reader.read(&mut some).expect("nothing"), 0);
    });
}

fn huge() {
    with_keeper("in_place", |place, _| {
        let (session, mut channel) = enter(place, client());
        let len = (1 << 29) + 9;
        let mut huge = session.arena().create_blob(len).expect("room");
        // Both ends; the pages between are there but need not be touched.
        huge[..3].copy_from_slice(b"abc");
        huge[len - 3..].copy_from_slice(b"xyz");
        assert_eq!(ask_with(&mut channel, "ends", &[huge.freeze()]), "536870921 abc xyz");
    });
}

fn too_many() {
    with_keeper("snapshot", |place, _| {
        let (session, mut channel) = enter(place, client());
        let one = blob(session.arena(), 0, 5);
        let many = vec![one.clone(); 255];
        assert_eq!(ask_with(&mut channel, "sizes", &many), vec!["5"; 255].join(" "));
        let mut message = channel.create_msg();
        for _ in 0..256 {
            message.attach_blob(one.clone());
        }
        assert_eq!(message.freeze().err(), Some(FreezeError::TooManyBlobs(256)));
        // Out of another app's arena.
        let (other, _channel) = enter(place, client());
        let mut message = channel.create_msg();
        message.attach_blob(one.clone()).attach_blob(blob(other.arena(), 0, 5));
        assert_eq!(message.freeze().err(), Some(FreezeError::ForeignBlob));
    });
}

fn quota() {
    with_keeper("snapshot", |place, _| {
        let quota = LoanQuota { loans: 10, bytes: 1 << 20 };
        let (session, mut channel) = enter(place, client().loan_quota(quota).trust(Trust::snapshot()));
        let large = blob(session.arena(), 0, 600 << 10);
        assert_eq!(ask_with(&mut channel, "keep", std::slice::from_ref(&large)), "1");
        let mut message = channel.create_msg();
        message.attach_blob(large);
        let message = message.freeze().expect("room");
        assert!(matches!(channel.send(&message), Err(SendError::Quota(_))));
        assert_eq!(ask(&mut channel, "drop"), "1");
        all_home(&session);
        channel.send(&message).expect("room again");
    });
}
