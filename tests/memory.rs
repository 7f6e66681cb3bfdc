//! What messages cost and give back: resident memory over many of them, arenas and quotas that are used up, limits of the
//! process.

mod common;
#[path = "common/rng.rs"]
mod rng;
capnp::generated_code!(mod cache_capnp);
capnp::generated_code!(mod hello_capnp);

use cache_capnp::cache;
use common::apps::{Place, SHORT, ask, client, greet, open, server, trust};
use common::obliging::with_server;
use common::peer::{Peer, hear, say};
use common::{Case, PATIENCE, eventually, obliging};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rng::Rng;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use strait::{
    AllocError, Arena, BindError, Builder, Channel, ClientApp, ConnectError, FreezeError, LoanQuota, Message, Received,
    RecvError, SendError, Session, Trust, data_len,
};

fn main() -> ExitCode {
    let cases = [
        Case::new("a_stream_of_small_messages", small_stream).limit(300),
        Case::new("a_stream_of_large_messages", large_stream).limit(300),
        Case::new("small_requests_and_answers", small_requests).limit(300),
        Case::new("large_requests_and_answers", large_requests).limit(300),
        Case::new("a_full_arena", full_arena),
        Case::new("a_used_up_arena_quota", full_quota),
        Case::new("a_used_up_loan_quota", loan_quota),
        Case::new("a_ring_without_memory", scarce_ring),
        Case::new("arenas_leave_no_address_space", address_space),
        Case::new("too_many_segments", segments),
        Case::new("a_small_file_size_limit", file_size_limit),
        Case::new("a_small_address_space", address_space_limit),
        Case::new("no_named_memory", no_names),
        Case::new("no_core_dump_has_an_arena", no_dump),
        Case::new("an_idle_arena_gives_its_memory_back", idle),
    ];
    let roles: &[common::Role] = &[("obliging", obliging::run), ("warehouse", warehouse)];
    common::main(&cases, roles)
}

/// How many messages: a debug build does a tenth.
const SMALL: usize = if cfg!(debug_assertions) { 10_000 } else { 100_000 };
const LARGE: usize = SMALL / 10;
const IN_FLIGHT: usize = 32;

/// Takes deliveries, and delivers what is asked for: `bytes`, a number.
fn warehouse(args: &[String]) {
    let app = server(&args[0]).allow(&client(), trust("in_place")).channel::<cache::Owned>("main");
    // A ring so small that half of it is owed before everything is.
    let server = app.slots(IN_FLIGHT as u32).bind().expect("bind");
    say("ready");
    let session = server.accept().expect("accept");
    let mut channel = session.accept_channel::<cache::Owned>().expect("channel");
    let mut usage = Usage::default();
    loop {
        let received = match channel.recv() {
            Ok(received) => received,
            Err(RecvError::Ended(_)) => break,
            Err(other) => panic!("{other}"),
        };
        if let Some(bytes) = wish(&received) {
            let answer = delivery(&channel, bytes);
            channel.reply(&received, &answer).expect("reply");
            usage.look(server.arena());
        } else {
            check(&received);
        }
    }
    usage.must_be_flat();
    let arena = server.arena().clone();
    eventually("nothing is on loan", || (session.on_loan() == (0, 0)).then_some(()));
    drop((channel, session, server));
    must_be_empty(&arena);
    hear();
}

fn wish(received: &Received<cache::Owned>) -> Option<usize> {
    let cache::GetCacheReq(request) = received.get().expect("root").which().expect("known") else { return None };
    let name = request.expect("request").get_file_name().expect("name");
    Some(name.to_str().expect("utf-8").parse().expect("a number"))
}

/// So many bytes, of which the first and the last, and one in each page, say how many.
fn delivery(channel: &Channel<cache::Owned>, bytes: usize) -> Message<cache::Owned> {
    let mut builder = channel.create_msg_with_capacity(bytes + 128);
    let mut part = builder.init_root().init_get_cache_rsp().init_file_parts(1).get(0);
    part.set_size(bytes as u64);
    let data = part.init_data(data_len(bytes).expect("small enough"));
    places(bytes).for_each(|at| data[at] = (bytes ^ at) as u8);
    builder.freeze().expect("room")
}

fn check(received: &Received<cache::Owned>) {
    let Ok(cache::GetCacheRsp(response)) = received.get().expect("root").which() else { panic!("no file") };
    let part = response.expect("file").get_file_parts().expect("parts").get(0);
    let data = part.get_data().expect("data");
    assert_eq!(data.len() as u64, part.get_size());
    places(data.len()).for_each(|at| assert_eq!(data[at], (data.len() ^ at) as u8));
}

fn places(bytes: usize) -> impl Iterator<Item = usize> {
    (0..bytes).step_by(4096).chain([bytes - 1])
}

/// How much an arena held, in the first part of the time and in the rest.
#[derive(Default)]
struct Usage {
    looks: usize,
    held: Vec<u64>,
}

impl Usage {
    fn look(&mut self, arena: &Arena) {
        self.looks += 1;
        if self.looks.is_multiple_of(50) {
            self.held.push(arena.resident().expect("fstat"));
        }
    }

    /// What was needed early is enough later: nothing grows with the number of messages.
    fn must_be_flat(&self) {
        let (early, late) = self.held.split_at(self.held.len() / 3);
        let most = |part: &[u64]| part.iter().copied().max().unwrap_or(0);
        let (early, late) = (most(early), most(late));
        println!("note: resident at most {} KiB in the first third, {} KiB after it", early >> 10, late >> 10);
        assert!(late <= early + early / 2, "{:?}", self.held);
    }
}

/// After a purge nothing is left in an arena whose sessions are over.
fn must_be_empty(arena: &Arena) {
    eventually("the arena is empty", || {
        arena.purge();
        (arena.resident().expect("fstat") == 0).then_some(())
    });
}

fn with_warehouse(talk: impl FnOnce(&Session, &mut Channel<cache::Owned>)) {
    let place = Place::new();
    let mut peer = Peer::start("warehouse", &[place.text()]);
    peer.must_say("ready");
    let session = client().trust(trust("in_place")).slots(IN_FLIGHT as u32).connect(&place.server()).expect("connect");
    let mut channel = session.open_channel("main", PATIENCE).expect("channel");
    let arena = session.arena().clone();
    arena.purge();
    let rings = arena.resident().expect("fstat");
    assert!((1..1 << 16).contains(&rings), "{rings}");
    talk(&session, &mut channel);
    eventually("nothing is on loan", || (session.on_loan() == (0, 0)).then_some(()));
    // The last to come home is off the books a moment before it is free.
    eventually("nothing but the open rings", || {
        arena.purge();
        (arena.resident().expect("fstat") == rings).then_some(())
    });
    drop((channel, session));
    must_be_empty(&arena);
    peer.finish();
    place.must_be_empty();
}

/// One way: this side never receives.
fn stream(count: usize, most: usize) {
    with_warehouse(|session, channel| {
        let (mut rng, mut usage) = (Rng::new(7), Usage::default());
        for _ in 0..count {
            let message = delivery(channel, 1 + rng.below(most as u64) as usize);
            while session.on_loan().0 >= IN_FLIGHT {
                std::thread::yield_now();
            }
            channel.send(&message).expect("send");
            usage.look(session.arena());
        }
        usage.must_be_flat();
    });
}

fn small_stream() {
    stream(SMALL, 256 << 10);
}

fn large_stream() {
    stream(LARGE, 4 << 20);
}

/// Both ways, with as many questions under way; answers are read in place, and kept for a while.
fn requests(count: usize, most: usize) {
    with_warehouse(|session, channel| {
        let (mut rng, mut usage) = (Rng::new(8), Usage::default());
        let mut kept = std::collections::VecDeque::new();
        for turn in 0..count + IN_FLIGHT / 2 {
            if turn < count {
                let mut builder = channel.create_msg();
                let bytes = 1 + rng.below(most as u64);
                builder.init_root().init_get_cache_req().set_file_name(bytes.to_string());
                let question = builder.freeze().expect("room");
                channel.send(&question).expect("send");
            }
            if turn >= IN_FLIGHT / 2 {
                let answer = channel.recv().expect("answer");
                check(&answer);
                kept.push_back(answer);
            }
            if kept.len() > IN_FLIGHT / 2 {
                kept.pop_front();
            }
            usage.look(session.arena());
        }
        usage.must_be_flat();
    });
}

fn small_requests() {
    requests(SMALL, 256 << 10);
}

fn large_requests() {
    requests(LARGE, 4 << 20);
}

type Hello = hello_capnp::hello::Owned;

const BLOCK: usize = 64 << 10;

/// A message of about a block.
fn block(channel: &Channel<Hello>) -> Result<Message<Hello>, FreezeError> {
    sized(channel.create_msg_with_capacity(BLOCK), BLOCK - 100)
}

fn sized(mut builder: Builder<Hello>, bytes: usize) -> Result<Message<Hello>, FreezeError> {
    builder.init_root().set_greet(format!("note {}", "x".repeat(bytes - 5)));
    builder.freeze()
}

#[track_caller]
fn must_be_full(channel: &Channel<Hello>) {
    let refused = block(channel).map(drop);
    assert!(matches!(refused, Err(FreezeError::Alloc(AllocError::Full { bytes })) if bytes > BLOCK / 2), "{refused:?}");
}

/// Uses an arena up, by what this side holds and by what the peer holds.
fn used_up(app: &ClientApp) {
    with_server("in_place", |place, peer| {
        let session = app.connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        for _ in 0..20 {
            let all: Vec<_> = std::iter::from_fn(|| block(&channel).ok()).collect();
            assert!((20..=64).contains(&all.len()), "{} blocks", all.len());
            must_be_full(&channel);
            drop(all);
        }
        // What does not fit at all is refused as well.
        let refused = sized(channel.create_msg(), 64 << 20).map(drop);
        assert!(matches!(refused, Err(FreezeError::Alloc(AllocError::Full { bytes: _ }))), "{refused:?}");
        assert_eq!(ask(&mut channel, "echo with room"), "with room");
        let gate = greet(&channel, "gate");
        channel.send(&gate).expect("send");
        while let Ok(message) = block(&channel) {
            channel.send(&message).expect("send");
        }
        must_be_full(&channel);
        peer.tell("open the gate");
        eventually("blocks return", || block(&channel).ok());
        channel.recv().expect("passed");
        assert_eq!(ask(&mut channel, "echo again"), "again");
    });
}

fn full_arena() {
    used_up(&client().arena_bytes(4 << 20));
}

fn full_quota() {
    used_up(&client().arena_bytes(1 << 30).arena_quota(4 << 20));
}

fn loan_quota() {
    let quotas = [LoanQuota { loans: 8, bytes: 1 << 30 }, LoanQuota { loans: 1_000, bytes: 8 * BLOCK as u64 }];
    for quota in quotas {
        with_server("in_place", |place, peer| {
            let session = client().loan_quota(quota).connect(&place.server()).expect("connect");
            let mut channel = open(&session);
            let gate = greet(&channel, "gate");
            channel.send(&gate).expect("send");
            let message = block(&channel).expect("room");
            let refused = (0..1_000).find_map(|_| channel.send(&message).err()).expect("a limit");
            let SendError::Quota(exceeded) = refused else { panic!("{refused}") };
            let (loans, bytes) = session.on_loan();
            // The gate may have come home and been booked meanwhile.
            assert!((loans..=loans + 1).contains(&exceeded.loans) && exceeded.bytes >= bytes, "{exceeded}, {loans}");
            assert!((7..=8).contains(&loans), "{loans}");
            assert!(matches!(channel.try_send(&message), Err(SendError::Quota(_))));
            assert!(matches!(channel.send_timeout(&message, SHORT), Err(SendError::Quota(_))));
            peer.tell("open the gate");
            eventually("loans return", || channel.try_send(&message).ok());
            channel.recv().expect("passed");
            eventually("loans return", || (session.on_loan() == (0, 0)).then_some(()));
            assert_eq!(ask(&mut channel, "echo again"), "again");
        });
    }
}

/// There is no room in a ring whose next page finds no memory, until there is some.
fn scarce_ring() {
    with_server("snapshot", |place, _| {
        let app = client().inline_max(32).arena_bytes(64 << 20).arena_quota(1 << 20);
        let session = app.connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        let note = greet(&channel, "note");
        let mut hoard = Vec::new();
        for bytes in [64 << 10, 4 << 10] {
            hoard.extend(std::iter::from_fn(|| session.arena().create_blob(bytes).ok()));
        }
        // As many as there are in the first page, but for the last, which is looked at next.
        let sent = (0..200).take_while(|_| channel.try_send(&note).is_ok()).count();
        assert_eq!(sent, 57);
        assert!(matches!(channel.send_timeout(&note, SHORT), Err(SendError::TimedOut)));
        std::thread::scope(|scope| {
            let (channel, note) = (&mut channel, &note);
            let waiting = scope.spawn(move || channel.send_timeout(note, PATIENCE));
            hoard.clear();
            session.arena().purge();
            waiting.join().expect("thread").expect("room");
        });
        assert_eq!(ask(&mut channel, "heard"), "59");
    });
}

/// Neither of the memory nor of jemalloc's records.
fn address_space() {
    let size = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    };
    let make = || drop(client().arena().expect("an arena"));
    make();
    let before = size();
    (0..100).for_each(|_| make());
    let more = size().saturating_sub(before);
    assert!(more < 100 << 20, "{more} bytes of address space");
}

fn segments() {
    const HOLE: usize = 20 << 10;
    let place = Place::new();
    let mut peer = Peer::start("warehouse", &[place.text()]);
    peer.must_say("ready");
    let app = client().arena_bytes(64 << 20).arena_quota(32 << 20);
    let session = app.connect(&place.server()).expect("connect");
    let mut channel = session.open_channel::<cache::Owned>("main", PATIENCE).expect("channel");
    // An arena with nothing but holes of one size, so that every part is a segment of its own.
    let mut all: Vec<_> = std::iter::from_fn(|| {
        let mut builder = channel.create_msg_with_capacity(HOLE);
        builder.init_root().init_get_cache_req();
        builder.freeze().ok()
    })
    .collect();
    assert!(all.len() > 1_200, "{}", all.len());
    let mut keep = [true, false].into_iter().cycle();
    all.retain(|_| keep.next().expect("endless"));
    let parts = |count: u32| {
        let mut builder = channel.create_msg();
        let mut list = builder.init_root().init_get_cache_rsp().init_file_parts(count);
        (0..count).for_each(|part| list.reborrow().get(part).init_data(HOLE as u32 - 64)[0] = 1);
        builder.freeze()
    };
    let refused = parts(600).map(drop);
    assert!(matches!(refused, Err(FreezeError::TooManySegments(513..=602))), "{refused:?}");
    // Nothing of it stayed, so as many holes are there as before.
    let refused = parts(600).map(drop);
    assert!(matches!(refused, Err(FreezeError::TooManySegments(_))), "{refused:?}");
    let count = parts(500).expect("few enough").segments().len();
    assert!((490..=512).contains(&count), "{count}");
    drop(all);
    let message = delivery(&channel, 1 << 20);
    channel.send(&message).expect("send");
    drop((message, channel, session));
    peer.finish();
}

/// Lowers a limit of this process until dropped.
struct Limited(Resource, (u64, u64));

impl Limited {
    fn to(resource: Resource, soft: u64) -> Self {
        let before = getrlimit(resource).expect("limit");
        setrlimit(resource, soft, before.1).expect("limit");
        Self(resource, before)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        setrlimit(self.0, self.1.0, self.1.1).expect("limit");
    }
}

fn file_size_limit() {
    with_server("in_place", |place, _| {
        let limited = Limited::to(Resource::RLIMIT_FSIZE, 4 << 20);
        let session = client().connect(&place.server()).expect("connect");
        assert_eq!(session.arena().capacity(), 4 << 20);
        let mut channel = open(&session);
        let all: Vec<_> = std::iter::from_fn(|| block(&channel).ok()).collect();
        must_be_full(&channel);
        drop(all);
        assert_eq!(ask(&mut channel, "echo small"), "small");
        let own = Place::new();
        assert_eq!(own.server().bind().expect("bind").arena().capacity(), 4 << 20);
        drop(limited);
    });
}

fn address_space_limit() {
    with_server("in_place", |place, _| {
        let status = std::fs::read_to_string("/proc/self/statm").expect("procfs");
        let pages: u64 = status.split(' ').next().expect("a number").parse().expect("a number");
        // Enough for an application, not for arenas of many GiB.
        let limited = Limited::to(Resource::RLIMIT_AS, pages * 4096 + (256 << 20));
        let own = Place::new();
        let refused = own.server().bind().map(drop);
        assert!(matches!(refused, Err(BindError::Io(_))), "{refused:?}");
        own.must_be_empty();
        let refused = client().connect(&place.server()).map(drop);
        assert!(matches!(refused, Err(ConnectError::Io(_))), "{refused:?}");
        // Its own arena fits; the server's does not.
        let refused = client().arena_bytes(1 << 20).connect(&place.server()).map(drop);
        assert!(matches!(refused, Err(ConnectError::View(_))), "{refused:?}");
        drop(limited);
        let session = client().connect(&place.server()).expect("connect");
        assert_eq!(ask(&mut open(&session), "echo roomy"), "roomy");
    });
}

fn no_names() {
    with_server("snapshot", |place, peer| {
        let session = client().connect(&place.server()).expect("connect");
        assert_eq!(ask(&mut open(&session), "echo x"), "x");
        for pid in [std::process::id(), peer.pid()] {
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("procfs");
            assert!(maps.contains("memfd:strait-arena"));
            let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("procfs");
            let fds = fds.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
            let all = fds.map(|path| path.display().to_string()).chain(maps.lines().map(str::to_owned));
            assert_eq!(all.filter(|name| name.contains("/dev/shm")).count(), 0);
        }
    });
}

/// Reading its holes would make memory of them, 64 GiB if need be, just when a process has died of something.
fn no_dump() {
    with_server("in_place", |place, peer| {
        let session = client().connect(&place.server()).expect("connect");
        assert_eq!(ask(&mut open(&session), "echo x"), "x");
        for pid in [std::process::id(), peer.pid()] {
            let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("procfs");
            // Each begins with its range and ends with its flags.
            let arenas = maps.split_inclusive("VmFlags:").zip(maps.split("VmFlags:").skip(1));
            let flags: Vec<_> = arenas
                .filter(|(map, _)| map.contains("memfd:strait-arena"))
                .map(|(_, after)| after.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>())
                .collect();
            assert!(flags.len() >= 2, "its own and the peer's");
            for flags in flags {
                assert!(flags.contains(&"dd") && flags.contains(&"dc"), "{flags:?}");
            }
        }
    });
}

fn idle() {
    with_server("snapshot", |place, _| {
        let session = client().trust(Trust::snapshot()).connect(&place.server()).expect("connect");
        let mut channel = open(&session);
        session.arena().purge();
        let rings = session.arena().resident().expect("fstat");
        // In pieces, and not too much: jemalloc gives back at once what is free in one piece of 8 MiB.
        let all: Vec<_> = (0..6).map(|_| sized(channel.create_msg_with_capacity(1 << 20), 1_000_000)).collect();
        for message in &all {
            channel.send(message.as_ref().expect("room")).expect("send");
        }
        drop(all);
        assert_eq!(ask(&mut channel, "heard"), "7");
        eventually("nothing is on loan", || (session.on_loan() == (0, 0)).then_some(()));
        let held = session.arena().resident().expect("fstat");
        assert!(held > rings + (4 << 20), "given back at once: {held}");
        let start = Instant::now();
        loop {
            let now = session.arena().resident().expect("fstat");
            // What a thread keeps in its cache stays.
            if now <= rings + (256 << 10) {
                println!("note: given back after {:.1?}, all but {} KiB", start.elapsed(), (now - rings) >> 10);
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(40), "still {now} of {held} bytes");
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}
