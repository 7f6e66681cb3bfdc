//! An application whose global allocator is jemalloc as well: the same jemalloc as the library's, which must never mix
//! the two: private blocks outside every arena, lent ones inside.

mod common;
capnp::generated_code!(mod hello_capnp);
#[path = "common/rng.rs"]
mod rng;

use common::apps::{TRUSTS, ask, greet, open, trust};
use common::census::maps;
use common::obliging::{connect, with_server};
use common::{Case, PATIENCE, obliging};
use hello_capnp::hello;
use rng::Rng;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use strait::{Channel, Message};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static HEAP: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cases = [
        Case::new("an_application_on_jemalloc_talks", talk),
        Case::new("private_and_lent_blocks_never_mix", never_mix),
    ];
    common::main(&cases, &[("obliging", obliging::run)])
}

fn talk() {
    for believing in TRUSTS {
        with_server(believing, |place, _| {
            for round in 0..20 {
                let session = connect(place, trust(believing));
                let mut channel = open(&session);
                let said = "x".repeat(round * 5_000);
                assert_eq!(ask(&mut channel, &format!("echo {said}")), said);
            }
        });
    }
}

/// Where arenas lie in this process: its own, writable ones, and those of peers.
fn arenas() -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    let range = |line: &String| {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let number = |digits| usize::from_str_radix(digits, 16).expect("an address");
        number(start)..number(end)
    };
    let (own, peers): (Vec<_>, Vec<_>) = maps("self").into_iter().partition(|line| line.contains(" rw"));
    (own.iter().map(range).collect(), peers.iter().map(range).collect())
}

fn lies_in(bytes: &[u8], ranges: &[Range<usize>]) -> bool {
    let (start, end) = (bytes.as_ptr().addr(), bytes.as_ptr().addr() + bytes.len());
    ranges.iter().any(|range| range.start < end && start < range.end)
}

/// What threads hand to each other, so that each frees what others made.
type Goods = (Message<hello::Owned>, Vec<u8>);

fn never_mix() {
    with_server("in_place", |place, _| {
        let session = connect(place, trust("in_place"));
        let channels: Vec<Channel<hello::Owned>> =
            (0..4).map(|_| session.open_channel("main", PATIENCE).expect("channel")).collect();
        let (own, peers) = arenas();
        assert_eq!((own.len(), peers.len()), (1, 1), "{own:?} {peers:?}");
        let foreign = [own.clone(), peers.clone()].concat();
        thread::scope(|scope| {
            let (mut gives, takes): (Vec<_>, Vec<_>) = channels.iter().map(|_| mpsc::channel::<Goods>()).unzip();
            gives.rotate_left(1);
            for (number, ((mut channel, give), take)) in channels.into_iter().zip(gives).zip(takes).enumerate() {
                let (own, peers, foreign) = (&own, &peers, &foreign);
                scope.spawn(move || {
                    let mut rng = Rng::new(number as u64);
                    for round in 0..2_000 {
                        // Of every size class both kinds of block have, small ones mostly.
                        let class = rng.below(14);
                        let bytes = 1 + rng.below(8 << class) as usize;
                        let private = vec![number as u8; bytes];
                        assert!(!lies_in(&private, foreign), "a private block in an arena");
                        let mut builder = channel.create_msg();
                        builder.init_root().set_greet(format!("echo {}", "x".repeat(bytes)));
                        let message = builder.freeze().expect("room");
                        assert!(message.segments().all(|segment| lies_in(segment, own)), "a lent block elsewhere");
                        if round % 8 == 0 {
                            let answer = channel.request(&message, PATIENCE).expect("answer");
                            let Ok(hello::Greet(text)) = answer.get().expect("root").which() else { panic!("no text") };
                            let text = text.expect("text");
                            assert!(text.len() == bytes && lies_in(text.as_bytes(), peers), "not in place");
                        }
                        // The last may have gone home already.
                        let _ = give.send((message, private));
                        if let Ok((message, private)) = take.try_recv() {
                            assert!(message.segments().all(|segment| lies_in(segment, own)));
                            assert!(!lies_in(&private, foreign) && private.iter().all(|&byte| byte == private[0]));
                        }
                    }
                });
            }
        });
        let mut channel = open(&session);
        assert_eq!(ask(&mut channel, "echo still"), "still");
        drop(greet(&channel, "echo unsent"));
    });
}
