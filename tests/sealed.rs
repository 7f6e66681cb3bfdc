//! Messages in memory of their own that nobody can write any more: sent to many, sent on, read where they lie by those who
//! believe nobody. Two and three processes.

mod common;
#[path = "sealed/taker.rs"]
mod taker;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, TRUSTS, client, greet, open, words};
use common::peer::Peer;
use common::{Case, PATIENCE, eventually};
use hello_capnp::hello;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::ftruncate;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use strait::{
    Backing, Builder, Channel, ClientApp, Ended, Message, PeerMisbehaved, RecvError, RequestError, SealError,
    SealedBuilder, Session,
};
use taker::{fill, full_pipe, is_filled, maps, taker};

fn main() -> ExitCode {
    let cases = [
        Case::new("they_arrive_as_they_were", arrive),
        Case::new("they_come_as_answers", answers),
        Case::new("structures_of_any_size", sizes),
        Case::new("one_to_many_sessions_of_many_apps", many),
        Case::new("nobody_can_write_one", unwritable),
        Case::new("one_is_mapped_once", mapped_once),
        Case::new("one_is_sent_on_by_reference", sent_on),
        Case::new("one_is_copied_if_wanted", copied),
        Case::new("descriptors_beside_one", descriptors),
        Case::new("tags_sort_them_unopened", tags),
        Case::new("one_outlives_its_sender", outlives),
        Case::new("one_larger_than_a_peer_maps", too_large),
        Case::new("a_descriptor_table_that_is_full", table_full),
        Case::new("limits_are_errors", limits),
        Case::new("a_small_file_size_limit", file_size),
    ];
    common::main(&cases, &[("taker", taker), ("maker", taker::maker)])
}

const BACKINGS: [Backing; 2] = [Backing::Memfd, Backing::Heap];

/// A case against a taker that believes its clients so far; `talk` must leave no session.
fn with_taker(backing: Backing, believing: &str, talk: impl FnOnce(&Place, &mut Peer)) {
    let place = Place::new();
    let mut peer = Peer::start("taker", &[place.text(), believing, &format!("{backing:?}")]);
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

/// Says something, with a blob of each of these sizes.
fn sealed(words: &str, blobs: &[usize]) -> Message<hello::Owned> {
    let mut builder = SealedBuilder::<hello::Owned>::with_capacity(words.len() + 64).expect("memory");
    builder.init_root().set_greet(words);
    for (seed, &len) in blobs.iter().enumerate() {
        fill(builder.add_blob(len).expect("memory"), seed);
    }
    builder.seal().expect("memory")
}

fn told(channel: &mut Channel<hello::Owned>, message: &Message<hello::Owned>) -> String {
    words(&channel.request(message, PATIENCE).expect("answer"))
}

/// What a taker finds of a message like this.
fn found(words: usize, blobs: &[usize]) -> String {
    let blobs: Vec<_> = blobs.iter().enumerate().map(|(seed, len)| format!(" {len}:{seed}")).collect();
    format!("sealed {words}{}", blobs.concat())
}

const BLOBS: [usize; 8] = [0, 1, 7, 8, 4096, 100_003, 3 << 20, 64];

fn arrive() {
    for backing in BACKINGS {
        for believing in TRUSTS {
            with_taker(backing, believing, |place, _| {
                let (session, mut channel) = enter(place, client().backing(backing));
                for blobs in [&[][..], &[5], &[0], &BLOBS, &[0; 255]] {
                    let message = sealed("look", blobs);
                    assert!(message.is_sealed());
                    assert_eq!(told(&mut channel, &message), found(4, blobs));
                    // Once more.
                    assert_eq!(told(&mut channel, &message), found(4, blobs));
                }
                assert_eq!(session.on_loan(), (0, 0), "nothing of a sealed message is on loan");
                // Kinds and roots that were never begun.
                let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
                builder.set_kind(9);
                let message = builder.seal().expect("memory");
                assert_eq!((message.kind(), message.segments().map(<[u8]>::len).sum::<usize>()), (9, 8));
                assert_eq!(told(&mut channel, &message), "kind 9");
            });
        }
    }
}

fn answers() {
    for backing in BACKINGS {
        for believing in TRUSTS {
            with_taker(backing, "snapshot", |place, _| {
                let app = client().backing(backing).trust(common::apps::trust(believing));
                let (_session, mut channel) = enter(place, app);
                for len in BLOBS {
                    let question = greet(&channel, &format!("make {len}"));
                    let answer = channel.request(&question, PATIENCE).expect("answer");
                    let [blob] = answer.blobs() else { panic!("one blob") };
                    let bytes = blob.as_slice().expect("read where it lies, whoever sent it");
                    assert!(answer.is_sealed() && bytes.len() == len && is_filled(bytes, 0));
                    assert_eq!(blob.to_vec().expect("memory"), bytes);
                }
            });
        }
    }
}

/// Segments that were large enough, that grew, and that could not be guessed.
fn sizes() {
    with_taker(Backing::Memfd, "snapshot", |place, _| {
        let (_session, mut channel) = enter(place, client());
        for len in [4, 4000, 40_000, 5 << 20] {
            let text = format!("look{}", " ".repeat(len - 4));
            for capacity in [0, len, 100_000] {
                let mut builder = SealedBuilder::<hello::Owned>::with_capacity(capacity).expect("memory");
                // What is begun anew stays as a gap.
                builder.init_root().set_answer("something else");
                builder.init_root().set_greet(&*text);
                assert!(builder.get_root().expect("root").has_greet());
                let message = builder.seal().expect("memory");
                assert_eq!(told(&mut channel, &message), found(len, &[]));
                let root = message.reader();
                let hello::Greet(Ok(read)) = root.get().expect("root").which().expect("known") else { panic!("greet") };
                assert_eq!(read.len(), len, "as its sender reads it");
            }
        }
        // Of a message in an arena.
        let plain = greet(&channel, "look");
        let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
        builder.set_root(plain.reader().get().expect("root")).expect("well-formed");
        assert_eq!(told(&mut channel, &builder.seal().expect("memory")), found(4, &[]));
    });
}

/// Each session has an arena of its own or shares one; a sealed message needs none.
fn many() {
    let message = sealed("keep", &[1 << 20]);
    let mut takers = Vec::new();
    for believing in TRUSTS {
        let place = Place::new();
        let mut peer = Peer::start("taker", &[place.text(), believing]);
        peer.must_say("ready");
        takers.push((place, peer));
    }
    let mut sessions = Vec::new();
    for (place, _) in &takers {
        for name in ["tester", "other"] {
            sessions.push(enter(place, ClientApp::new(name).timeout(PATIENCE)));
        }
    }
    let own = maps();
    assert_eq!(own.len(), 1, "one memory");
    for (_session, channel) in &mut sessions {
        assert_eq!(told(channel, &message), format!("kept {}", own[0]), "the same memory, read-only, there as here");
    }
    // The memory is there as long as anybody has it.
    drop(message);
    assert_eq!(maps(), Vec::<String>::new());
    let (place, killed) = takers.remove(0);
    killed.kill();
    drop(place);
    for (_session, channel) in sessions.iter_mut().skip(2) {
        let question = greet(channel, "check");
        assert_eq!(told(channel, &question), "true");
    }
    drop(sessions);
    for (_place, mut peer) in takers {
        peer.tell("stop");
        peer.finish();
    }
}

/// Not even by its sender, nor by root.
fn unwritable() {
    let message = sealed("look", &[10_000]);
    let list = std::fs::read_dir("/proc/self/fd").expect("procfs");
    let links = list.filter_map(|entry| Some(entry.ok()?.path()));
    let is_it = |link: &std::path::PathBuf| {
        std::fs::read_link(link).is_ok_and(|target| target.to_string_lossy().contains("memfd:strait-sealed"))
    };
    let links: Vec<_> = links.filter(is_it).collect();
    assert_eq!(links.len(), 1, "one descriptor");
    assert!(maps()[0].contains("r--s"));
    let mut options = File::options();
    match options.read(true).write(true).open(&links[0]) {
        Err(refused) => assert_eq!(refused.raw_os_error(), Some(Errno::EACCES as i32)),
        Ok(file) => {
            let eperm = |error: std::io::Error| assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32));
            eperm(file.write_at(b"x", 0).expect_err("sealed"));
            assert_eq!(ftruncate(&file, 0), Err(Errno::EPERM));
            assert_eq!(ftruncate(&file, 1 << 30), Err(Errno::EPERM));
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            assert_eq!(fallocate(&file, punch, 0, 4096), Err(Errno::EPERM));
            let len = std::num::NonZeroUsize::new(4096).expect("not empty");
            use nix::sys::mman::{MapFlags, ProtFlags, mmap};
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            // SAFETY: a mapping of its own, at an address the kernel chooses; it is refused.
            let mapped = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &file, 0) };
            assert_eq!(mapped.map(drop), Err(Errno::EPERM));
        }
    }
    assert!(message.is_sealed());
}

/// However often it came, over whichever session.
fn mapped_once() {
    with_taker(Backing::Memfd, "snapshot", |place, _| {
        let (message, other) = (sealed("keep", &[100]), sealed("keep", &[100]));
        let (_first, mut first) = enter(place, client());
        let (_second, mut second) = enter(place, client());
        for _ in 0..2 {
            assert!(told(&mut first, &message).starts_with("kept "));
        }
        assert!(told(&mut second, &message).starts_with("kept "));
        let count = |channel: &mut Channel<hello::Owned>| {
            let question = greet(channel, "maps");
            told(channel, &question)
        };
        assert_eq!(count(&mut first), "1");
        assert!(told(&mut second, &other).starts_with("kept "));
        assert_eq!(count(&mut first), "2");
        let question = greet(&first, "drop");
        assert_eq!(told(&mut first, &question), "4");
        assert_eq!(count(&mut first), "0");
    });
}

/// From here to a taker, from there to another one: no byte is copied on the way, whoever is believed.
fn sent_on() {
    for believing in TRUSTS {
        let (near, far) = (Place::new(), Place::new());
        let mut third = Peer::start("taker", &[far.text(), believing]);
        third.must_say("ready");
        let mut second = Peer::start("taker", &[near.text(), believing, "Memfd", far.text()]);
        second.must_say("ready");
        {
            let (_session, mut channel) = enter(&near, client());
            let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
            builder.init_root().set_greet("pass");
            fill(builder.add_blob(3 << 20).expect("memory"), 0);
            builder.attach_fd(full_pipe("through two"));
            let message = builder.seal().expect("memory");
            let own = maps();
            let expected = format!("by reference: kept {} pipe=through two", own[0]);
            assert_eq!(told(&mut channel, &message), expected, "the memory made here is what the third has");
            // The first sender and the one in between are not needed any more.
            drop((message, channel));
        }
        second.tell("stop");
        second.finish();
        {
            let (_session, mut channel) = enter(&far, client());
            let question = greet(&channel, "check");
            assert_eq!(told(&mut channel, &question), "true");
        }
        third.tell("stop");
        third.finish();
    }
}

fn copied() {
    with_taker(Backing::Memfd, "snapshot", |place, _| {
        let (session, mut channel) = enter(place, client());
        let question = greet(&channel, "make 5000");
        let answer = channel.request(&question, PATIENCE).expect("answer");
        let copy = answer.copy_to(session.arena()).expect("room");
        assert!(!copy.is_sealed() && is_filled(&copy.blobs()[0], 0));
        let mut changed = answer.to_builder(session.arena()).expect("well-formed");
        changed.get_root().expect("root").set_greet("look");
        let changed = changed.freeze().expect("room");
        assert_eq!(told(&mut channel, &changed), "plain 4");
        // Of a sealed message of one's own there is no need of one.
        let message = sealed("look", &[3]);
        let same = message.copy_to(session.arena()).expect("nothing to do");
        assert!(same.is_sealed());
        assert_eq!(told(&mut channel, &same), found(4, &[3]));
        assert!(matches!(greet(&channel, "x").copy_to(session.arena()), Ok(copy) if !copy.is_sealed()));
        // What is not sealed is not sent on by reference.
        assert!(
            channel.request(&greet(&channel, "maps"), PATIENCE).expect("answer").by_reference().expect("one").is_none()
        );
        // Nor can a sealed one tell about a channel: that is read before there is one.
        let refused = session.open_channel_with::<hello::Owned, _>("main", &message, PATIENCE);
        assert!(matches!(refused, Err(strait::ChannelError::AttachedToMetadata)));
    });
}

fn descriptors() {
    for backing in BACKINGS {
        with_taker(backing, "snapshot", |place, _| {
            let (_session, mut channel) = enter(place, client().backing(backing));
            for count in [1, 2, 63] {
                let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
                builder.init_root().set_greet("look");
                for index in 0..count {
                    builder.attach_fd(full_pipe(&index.to_string()));
                }
                let message = builder.seal().expect("memory");
                let pipes: Vec<_> = (0..count).map(|index| format!(" pipe={index}")).collect();
                assert_eq!(told(&mut channel, &message), format!("{}{}", found(4, &[]), pipes.concat()));
            }
        });
    }
}

/// Expectations see the tag without opening anything.
fn tags() {
    with_taker(Backing::Memfd, "snapshot", |place, _| {
        let (_session, mut channel) = enter(place, client());
        let question = greet(&channel, "tags 20");
        channel.send(&question).expect("sent");
        let (_sender, mut receiver) = channel.split();
        let mut answers = receiver.expect(1).expect("free");
        for odd in (1..20).step_by(2) {
            assert_eq!(words(&answers.recv_timeout(PATIENCE).expect("an answer")), odd.to_string());
        }
        for even in (0..20).step_by(2) {
            assert_eq!(words(&receiver.recv_timeout(PATIENCE).expect("a greeting")), even.to_string());
        }
    });
}

/// Its maker is killed; whoever has it keeps it, and nothing is left once that is dropped.
fn outlives() {
    let place = Place::new();
    let server = place.server().channel::<hello::Owned>("main").allow(&client(), strait::Trust::snapshot());
    let server = server.bind().expect("bind");
    let maker = Peer::start("maker", &[place.text()]);
    let session = server.accept_timeout(PATIENCE).expect("a client");
    let mut channel = session.accept_channel_timeout::<hello::Owned>(PATIENCE).expect("its channel");
    let first = channel.recv_timeout(PATIENCE).expect("a message");
    maker.kill();
    let rest = std::iter::from_fn(|| channel.recv_timeout(PATIENCE).ok()).count();
    assert!(matches!(eventually("its end", || session.end()), Ended::PeerDied));
    let blob = first.blobs()[0].clone();
    drop((first, channel, session));
    assert!(is_filled(blob.as_slice().expect("there"), 0), "{rest} more");
}

/// A peer that announces more than this side maps has broken a rule, as with an arena.
fn too_large() {
    let place = Place::new();
    let server = place.server().channel::<hello::Owned>("main").peer_arena_max(4 << 20);
    let server = server.allow(&client(), strait::Trust::snapshot()).bind().expect("bind");
    let maker = Peer::start("maker", &[place.text(), "large"]);
    let session = server.accept_timeout(PATIENCE).expect("a client");
    let mut channel = session.accept_channel_timeout::<hello::Owned>(PATIENCE).expect("its channel");
    match channel.recv_timeout(PATIENCE) {
        Err(RecvError::Ended(ended)) => {
            let Ended::PeerMisbehaved(PeerMisbehaved::NotSealed(bad)) = ended.cause else { panic!("{ended}") };
            assert!(matches!(bad, strait::BadMemory::TooLarge { limit, .. } if limit == 4 << 20));
        }
        other => panic!("{other:?}"),
    }
    maker.kill();
}

fn table_full() {
    with_taker(Backing::Memfd, "snapshot", |place, _| {
        let (_session, mut channel) = enter(place, client());
        let (message, ask) = (sealed("look", &[9]), |channel: &mut Channel<hello::Owned>, question: &str| {
            let question = greet(channel, question);
            told(channel, &question)
        });
        assert_eq!(told(&mut channel, &message), found(4, &[9]));
        assert_eq!(ask(&mut channel, "fill"), "filled");
        // It says so, without an answer to the message itself.
        channel.send(&message).expect("sent");
        assert_eq!(words(&channel.recv_timeout(PATIENCE).expect("news")), "1 lost");
        assert_eq!(ask(&mut channel, "empty"), "emptied");
        assert_eq!(told(&mut channel, &message), found(4, &[9]));
        // The other way.
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        let question = greet(&channel, "make 3");
        setrlimit(Resource::RLIMIT_NOFILE, 200, hard).expect("a limit");
        let null = File::open("/dev/null").expect("null");
        let filling: Vec<_> = std::iter::from_fn(|| null.try_clone().ok()).collect();
        let lost = channel.request(&question, PATIENCE).map(drop);
        drop((null, filling));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("a limit");
        assert!(matches!(lost, Err(RequestError::DescriptorsLost(lost)) if lost.sent == 1), "{lost:?}");
        assert!(channel.request(&question, PATIENCE).expect("answer").is_sealed());
    });
}

fn limits() {
    let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
    for _ in 0..255 {
        builder.add_blob(1).expect("memory");
    }
    assert!(matches!(builder.add_blob(1), Err(SealError::TooManyBlobs)));
    let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
    for _ in 0..64 {
        builder.attach_fd(full_pipe(""));
    }
    assert!(matches!(builder.seal(), Err(SealError::TooManyDescriptors(64))));
    // Memory that cannot be.
    let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
    assert!(matches!(builder.add_blob(usize::MAX), Err(SealError::Io(_))));
    assert!(matches!(builder.add_blob(1 << 62), Err(SealError::Io(_))));
    builder.add_blob(3).expect("nothing has changed").copy_from_slice(b"abc");
    assert!(builder.seal().is_ok());
}

/// No signal, and it works again afterwards.
fn file_size() {
    // SAFETY: restores what the kernel does by default, which is to kill.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigDfl) }.expect("signal");
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).expect("a limit");
    setrlimit(Resource::RLIMIT_FSIZE, 1 << 20, hard).expect("a limit");
    let too_large =
        |error: SealError| matches!(error, SealError::Io(error) if error.raw_os_error() == Some(Errno::EFBIG as i32));
    let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
    assert!(builder.add_blob(2 << 20).is_err_and(too_large));
    let text = "x".repeat(2 << 20);
    let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
    builder.init_root().set_greet(&*text);
    assert!(builder.seal().is_err_and(too_large));
    // To the last byte: the table still has to fit.
    let mut builder = SealedBuilder::<hello::Owned>::with_capacity(8).expect("memory");
    builder.init_root().set_greet("");
    assert!(builder.add_blob((1 << 20) - 4096).is_ok());
    assert!(builder.seal().is_err_and(too_large));
    setrlimit(Resource::RLIMIT_FSIZE, soft, hard).expect("a limit");
    let mut builder = SealedBuilder::<hello::Owned>::new().expect("memory");
    builder.init_root().set_greet(&*text);
    assert!(builder.seal().is_ok());
    // The arena's builder is what it was.
    let _ = Builder::<hello::Owned>::new;
}
