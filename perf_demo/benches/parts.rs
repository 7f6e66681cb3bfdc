//! What the parts of a message's way cost, each by itself, in one process and one thread: rings, memory, blobs, messages.
//! The whole, between two processes, is `perf_demo`'s.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;
use strait::ring::{processes, threads};
use strait::{Arena, Builder, Channel, ClientApp, ServerApp, Session, SessionServer, Trust};
use tempfile::TempDir;

capnp::generated_code!(mod cache_capnp);
use cache_capnp::cache;

type Value = [u64; 7];

const MANY: usize = 64;

/// One push and one pop, uncontended: what the instructions cost. Several threads are for `perf_demo rings`.
fn rings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    macro_rules! push_and_pop {
        ($($kind:ident),*) => {$(
            let (mut producer, mut consumer) = threads::$kind::<Value>(MANY);
            group.bench_function(stringify!($kind), |bencher| {
                bencher.iter(|| {
                    producer.try_push(black_box([1; 7])).unwrap();
                    black_box(consumer.try_pop().unwrap());
                });
            });
        )*};
    }
    push_and_pop!(spsc, mpsc, spmc, mpmc);
    let side = || processes::Side::<Value>::create(MANY).unwrap();
    let (ours, theirs) = (side(), side());
    let (to_them, to_us) = (ours.descriptor().unwrap(), theirs.descriptor().unwrap());
    let (mut producer, mut consumer) = (ours.join(to_us).unwrap().0, theirs.join(to_them).unwrap().1);
    group.bench_function("processes", |bencher| {
        bencher.iter(|| {
            producer.try_push(black_box([1; 7])).unwrap();
            black_box(consumer.try_pop().unwrap());
        });
    });
    group.throughput(Throughput::Elements(MANY as u64));
    let (mut producer, mut consumer) = threads::mpmc::<Value>(MANY);
    let (values, mut found) = ([[1; 7]; MANY], [[0; 7]; MANY]);
    group.bench_function("mpmc, 64 at once", |bencher| {
        bencher.iter(|| {
            assert_eq!(producer.push_slice(black_box(&values)), MANY);
            assert_eq!(consumer.pop_slice(black_box(&mut found)), MANY);
        });
    });
    group.finish();
}

/// A server with an arena, in a directory of its own.
struct Place {
    server: SessionServer,
    dir: TempDir,
}

fn place() -> Place {
    let dir = TempDir::with_prefix("perf_demo-bench-").unwrap();
    let server = app(&dir).bind().unwrap();
    Place { server, dir }
}

fn app(dir: &TempDir) -> ServerApp {
    ServerApp::new("bench").run_dir(dir.path()).channel::<cache::Owned>("cache").allow(&client(), in_place())
}

fn client() -> ClientApp {
    ClientApp::new("bench").trust(in_place()).channel::<cache::Owned>("cache")
}

fn in_place() -> Trust {
    // SAFETY: both ends are in this program, which writes nothing that it has sent.
    unsafe { Trust::in_place() }
}

fn message(arena: &Arena, text: &str) -> Builder<cache::Owned> {
    let mut builder = Builder::<cache::Owned>::new(arena);
    builder.init_root().set_not_found(text);
    builder
}

/// Blocks of an arena, as a message and a blob have them.
fn memory(criterion: &mut Criterion) {
    let place = place();
    let arena = place.server.arena();
    let mut group = criterion.benchmark_group("memory");
    group.bench_function("message begun and dropped", |bencher| bencher.iter(|| drop(message(arena, "7 bytes"))));
    group.bench_function("message begun, frozen and dropped", |bencher| {
        bencher.iter(|| drop(message(arena, "7 bytes").freeze().unwrap()));
    });
    for size in [64, 4 << 10, 64 << 10, 1 << 20] {
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("blob of {size} bytes, allocated and freed"), |bencher| {
            bencher.iter(|| drop(arena.create_blob(black_box(size)).unwrap()));
        });
        group.bench_function(format!("blob of {size} bytes, filled and frozen"), |bencher| {
            bencher.iter(|| {
                let mut blob = arena.create_blob(size).unwrap();
                blob.fill(black_box(7));
                drop(blob.freeze());
            });
        });
    }
    group.finish();
}

/// Both ends of a channel.
struct Talk {
    near: Channel<cache::Owned>,
    far: Channel<cache::Owned>,
    near_session: Session,
    _far_session: Session,
    _place: Place,
}

fn talk() -> Talk {
    let place = place();
    let meets = app(&place.dir);
    let connecting = std::thread::spawn(move || client().connect(&meets).unwrap());
    let far_session = place.server.accept().unwrap();
    let near_session = connecting.join().unwrap();
    let near = near_session.open_channel("cache", Duration::from_secs(10)).unwrap();
    let far = far_session.accept_channel().unwrap();
    Talk { near, far, near_session, _far_session: far_session, _place: place }
}

/// The steps of a message's way, one more each time, so that differences are what a step costs.
fn messages(criterion: &mut Criterion) {
    let mut talk = talk();
    let (near, far) = (&mut talk.near, &mut talk.far);
    let arena = talk.near_session.arena();
    let mut group = criterion.benchmark_group("message");
    let long = "x".repeat(100);
    for (what, text) in [("inside its slot", "7 bytes"), ("on loan", long.as_str())] {
        let ready = message(arena, text).freeze().unwrap();
        group.bench_function(format!("{what}: sent, received, dropped"), |bencher| {
            bencher.iter(|| {
                near.send(&ready).unwrap();
                drop(far.recv().unwrap());
            });
        });
        group.bench_function(format!("{what}: sent, received, read, dropped"), |bencher| {
            bencher.iter(|| {
                near.send(&ready).unwrap();
                let received = far.recv().unwrap();
                match received.get().unwrap().which().unwrap() {
                    cache::NotFound(text) => black_box(text.unwrap().len()),
                    _ => unreachable!("what was sent"),
                };
            });
        });
        group.bench_function(format!("{what}: built, frozen, sent, received, read, dropped"), |bencher| {
            bencher.iter(|| {
                near.send(&message(arena, black_box(text)).freeze().unwrap()).unwrap();
                let received = far.recv().unwrap();
                match received.get().unwrap().which().unwrap() {
                    cache::NotFound(text) => black_box(text.unwrap().len()),
                    _ => unreachable!("what was sent"),
                };
            });
        });
    }
    for size in [64, 64 << 10] {
        let blob = arena.create_blob(size).unwrap().freeze();
        let mut with_blob = message(arena, "7 bytes");
        with_blob.attach_blob(blob);
        let with_blob = with_blob.freeze().unwrap();
        group.bench_function(format!("with a blob of {size} bytes: sent, received, dropped"), |bencher| {
            bencher.iter(|| {
                near.send(&with_blob).unwrap();
                let received = far.recv().unwrap();
                black_box(received.blobs().len());
            });
        });
    }
    group.finish();
}

fn short() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1))
}

criterion_group! { name = parts; config = short(); targets = rings, memory, messages }
criterion_main!(parts);
