//! What copying costs at which size, as procCurl's benchmark asks it; what lending a message costs instead; and so from which
//! size on a message is lent rather than copied into its slot.

use crate::cache_capnp::cache;
use crate::cli::Memcpy;
use crate::stop::Stop;
use anyhow::{Context, anyhow};
use perf_demo::cpus::Cpus;
use perf_demo::figures::{show, time};
use perf_demo::gauge::Gauge;
use perf_demo::machine::{Watch, mark};
use perf_demo::picture::{COLOURS, Curve, Picture};
use perf_demo::sheet::Sheet;
use serde::Serialize;
use std::hint::{black_box, spin_loop};
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use strait::{Channel, ClientApp, Message, ServerApp, Session, Trust, Wait};
use tempfile::TempDir;

/// One size. What is serialised is a line of `--json`.
#[derive(Debug, Serialize)]
struct Size {
    bytes: usize,
    rounds: u32,
    /// Of the median round.
    bytes_per_tick: f64,
    /// Of one copy, likewise.
    nanos: f64,
    /// Among the five that move most bytes per tick.
    best: bool,
}

/// What it takes to say the same message inside its slots and on loan. A line of `--json` too.
#[derive(Debug, Serialize)]
struct Loan {
    message_bytes: usize,
    /// How many slots it takes inside.
    slots: usize,
    /// Sent, received, read and dropped by one thread.
    inside_ns: f64,
    loan_ns: f64,
    /// The same between two CPUs, one way: half of a round trip.
    inside_across_ns: f64,
    loan_across_ns: f64,
    /// How many bytes one copy moves in the time that the loan takes in one thread.
    copied_meanwhile: usize,
    marks: Option<String>,
}

pub(crate) fn run(options: &Memcpy, stop: &Stop) -> anyhow::Result<ExitCode> {
    if let Some(path) = &options.plot {
        // Better told now than after measuring.
        std::fs::File::create(path)
            .map_err(|error| crate::cli::Usage(format!("cannot write {}: {error}", path.display())))?;
    }
    let (cpus, watch) = (Cpus::allowed()?, Watch::begin(&[Gauge::own()?]));
    let pinned = cpus.go_to(cpus.spread().next().flatten()).is_ok();
    let Some(mut sizes) = copies(options.rounds, stop) else { return Ok(ExitCode::FAILURE) };
    mark_best(&mut sizes);
    let Some(mut loans) = lend(&sizes, &cpus, stop).context("cannot measure loans")? else {
        return Ok(ExitCode::FAILURE);
    };
    // Two threads that spin on one CPU wait for each other's time slices.
    let missing = [(!pinned, "not pinned"), (!cpus.are_two(), "needs a second CPU")];
    let marks = missing.into_iter().filter(|one| one.0).map(|one| one.1.to_owned()).chain(watch.marks());
    marks.for_each(|one| loans.iter_mut().for_each(|loan| mark(&mut loan.marks, one.as_str())));
    if options.json {
        let mut out = std::io::stdout().lock();
        for size in &sizes {
            serde_json::to_writer(&mut out, size)?;
            out.write_all(b"\n")?;
        }
        for loan in &loans {
            serde_json::to_writer(&mut out, loan)?;
            out.write_all(b"\n")?;
        }
    } else {
        tell(&sizes, &loans)?;
    }
    if let Some(path) = &options.plot {
        draw(&sizes, &loans, path).with_context(|| format!("cannot draw {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

// Copies.

/// In steps of 256 bytes to 16 KiB, as procCurl's benchmark goes, and the powers of two around that.
fn all_sizes() -> Vec<usize> {
    let powers = (3..=24).map(|power| 1_usize << power);
    let mut sizes: Vec<usize> = powers.chain((256..=16 << 10).step_by(256)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// A round copies at least so much, so that reading the ticks does not count.
const ROUND: usize = 16 << 10;

fn copies(rounds: u32, stop: &Stop) -> Option<Vec<Size>> {
    let per_nano = ticks_per_nano();
    let most = all_sizes().last().copied().unwrap_or(0);
    let from: Vec<u8> = (0..most).map(|at| (at % 251) as u8).collect();
    let mut to = vec![0_u8; most];
    let mut sizes = Vec::new();
    for bytes in all_sizes() {
        if stop.signal().is_some() {
            return None;
        }
        let copies = (ROUND / bytes).max(1);
        let mut took: Vec<u64> = (0..rounds)
            .map(|_| {
                let start = ticks();
                for _ in 0..copies {
                    // What the compiler cannot know it cannot leave out.
                    black_box(&mut to[..bytes]).copy_from_slice(black_box(&from[..bytes]));
                }
                ticks().saturating_sub(start)
            })
            .collect();
        took.sort_unstable();
        let median = took[took.len() / 2].max(1) as f64;
        let bytes_per_tick = (bytes * copies) as f64 / median;
        sizes.push(Size { bytes, rounds, bytes_per_tick, nanos: median / copies as f64 / per_nano, best: false });
    }
    Some(sizes)
}

/// As procCurl's table has it: the five sizes at which most bytes move per tick.
fn mark_best(sizes: &mut [Size]) {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|&one, &other| sizes[other].bytes_per_tick.total_cmp(&sizes[one].bytes_per_tick));
    order.into_iter().take(5).for_each(|at| sizes[at].best = true);
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: reads a counter that every CPU of this architecture has.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Where there is no such counter, a tick is a nanosecond.
#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

fn ticks_per_nano() -> f64 {
    let (start, from) = (Instant::now(), ticks());
    while start.elapsed() < Duration::from_millis(20) {
        spin_loop();
    }
    let (to, took) = (ticks(), start.elapsed());
    (to - from) as f64 / took.as_nanos() as f64
}

// Loans.

/// Messages that fill one, two, three and four slots, and the longest texts with which they do.
const MESSAGES: [(usize, usize, usize); 4] = [(32, 1, 7), (88, 2, 63), (144, 3, 119), (200, 4, 175)];

const TIMES: u32 = 1000;
const BATCHES: usize = 31;

type End = Channel<cache::Owned>;

/// The two ends of a channel, both in this process.
struct Pair {
    near: End,
    far: End,
    _sessions: (Session, Session),
    _dir: TempDir,
}

fn pair(inline_max: usize) -> anyhow::Result<Pair> {
    let dir = TempDir::with_prefix("perf_demo-").context("cannot make a directory to meet in")?;
    // SAFETY: both ends are in this program, which writes nothing that it has sent.
    let trust = || unsafe { Trust::in_place() };
    let app = ClientApp::new("perf_demo").trust(trust()).inline_max(inline_max).wait(Wait::Spin);
    let app = app.channel::<cache::Owned>("cache");
    let meets = ServerApp::new("memcpy").run_dir(dir.path()).inline_max(inline_max).wait(Wait::Spin);
    let server = meets.clone().allow(&app, trust()).channel::<cache::Owned>("cache").bind()?;
    let connecting = std::thread::spawn(move || app.connect(&meets));
    let far_session = server.accept()?;
    let near_session = connecting.join().map_err(|_| anyhow!("connecting failed"))??;
    let near = near_session.open_channel("cache", Duration::from_secs(10))?;
    let far = far_session.accept_channel()?;
    Ok(Pair { near, far, _sessions: (near_session, far_session), _dir: dir })
}

fn message(channel: &End, text: usize) -> anyhow::Result<Message<cache::Owned>> {
    let mut builder = channel.create_msg();
    builder.init_root().set_not_found("x".repeat(text).as_str());
    Ok(builder.freeze()?)
}

/// Receives one and reads it.
fn take(channel: &mut End) -> anyhow::Result<()> {
    let received = channel.recv()?;
    match received.get()?.which()? {
        cache::NotFound(text) => black_box(text?.len()),
        _ => return Err(anyhow!("another message than was sent")),
    };
    Ok(())
}

/// Sent, received, read, dropped by this thread.
fn alone(inline_max: usize, text: usize) -> anyhow::Result<f64> {
    let mut pair = pair(inline_max)?;
    let message = message(&pair.near, text)?;
    batches(|| {
        pair.near.send(&message)?;
        take(&mut pair.far)
    })
}

/// One way between two threads: half of there and back.
fn across(inline_max: usize, text: usize, cpus: &Cpus) -> anyhow::Result<f64> {
    let Pair { mut near, mut far, _sessions, _dir } = pair(inline_max)?;
    let (there, back) = (message(&near, text)?, message(&far, text)?);
    let place = cpus.spread().nth(1).flatten();
    std::thread::scope(|scope| {
        let echoing = scope.spawn(move || {
            // A row that could not be pinned is marked by whoever asked first.
            let _ = cpus.go_to(place);
            while take(&mut far).is_ok() && far.send(&back).is_ok() {}
        });
        let trip = batches(|| {
            near.send(&there)?;
            take(&mut near)
        });
        drop(near);
        echoing.join().map_err(|_| anyhow!("the echo failed"))?;
        Ok(trip? / 2.0)
    })
}

/// Nanoseconds of the median batch, each.
fn batches(mut what: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut took = Vec::with_capacity(BATCHES);
    // The first warms up.
    for batch in 0..=BATCHES {
        let start = Instant::now();
        for _ in 0..TIMES {
            what()?;
        }
        if batch > 0 {
            took.push(start.elapsed().as_nanos() as f64 / f64::from(TIMES));
        }
    }
    took.sort_by(f64::total_cmp);
    Ok(took[took.len() / 2])
}

/// `None` if it is time to stop.
fn lend(sizes: &[Size], cpus: &Cpus, stop: &Stop) -> anyhow::Result<Option<Vec<Loan>>> {
    let mut loans = Vec::new();
    for (message_bytes, slots, text) in MESSAGES {
        if stop.signal().is_some() {
            return Ok(None);
        }
        let (inside_ns, loan_ns) = (alone(message_bytes, text)?, alone(0, text)?);
        let (inside_across_ns, loan_across_ns) = (across(message_bytes, text, cpus)?, across(0, text, cpus)?);
        let copied = sizes.iter().filter(|size| size.nanos <= loan_ns).map(|size| size.bytes).max();
        loans.push(Loan {
            message_bytes,
            slots,
            inside_ns,
            loan_ns,
            inside_across_ns,
            loan_across_ns,
            copied_meanwhile: copied.unwrap_or(0),
            marks: None,
        });
    }
    Ok(Some(loans))
}

// Telling.

const COPIES: &str = "\
bytes/tick: of the median round, between two warm pieces of memory. procCurl's benchmark found most at 7,936 B, on its machine.
";

const LOANS: &str = "\
by one thread: sent, received, read and dropped. across CPUs: one way, half of a round trip. A message inside its slots is
copied in and out, a cache line for each further 56 bytes; one on loan costs its receiver a line for its table and the lines
that are read, and its sender the return, at any size. What one copy moves in the time of a loan is no threshold: copies are
made on both sides, and a slot that is taken is not there for the next message. strait lends above 88 bytes unless told otherwise
(`inline_max`).";

fn tell(sizes: &[Size], loans: &[Loan]) -> anyhow::Result<()> {
    let mut sheet = Sheet::new(false, 0, &["size", "rounds", "bytes/tick", "one copy", ""]);
    for size in sizes.iter().filter(|size| size.best || size.bytes.is_power_of_two()) {
        let cells = vec![
            if size.bytes.is_power_of_two() { show(size.bytes) } else { format!("{} B", size.bytes) },
            size.rounds.to_string(),
            format!("{:.2}", size.bytes_per_tick),
            nanos(size.nanos),
            if size.best { "one of the five best".to_owned() } else { String::new() },
        ];
        sheet.add(size, cells)?;
    }
    sheet.finish(COPIES)?;
    let columns = [
        "message",
        "slots",
        "inside, by one thread",
        "on loan",
        "ratio",
        "inside, across CPUs",
        "on loan",
        "ratio",
        "one copy in a loan's time",
        "",
    ];
    let mut sheet = Sheet::new(false, 0, &columns);
    for loan in loans {
        let cells = vec![
            show(loan.message_bytes),
            loan.slots.to_string(),
            nanos(loan.inside_ns),
            nanos(loan.loan_ns),
            format!("{:.2} x", loan.inside_ns / loan.loan_ns),
            nanos(loan.inside_across_ns),
            nanos(loan.loan_across_ns),
            format!("{:.2} x", loan.inside_across_ns / loan.loan_across_ns),
            show(loan.copied_meanwhile),
            loan.marks.clone().unwrap_or_default(),
        ];
        sheet.add(loan, cells)?;
    }
    let pays = |loan: &&Loan| loan.inside_ns <= loan.loan_ns && loan.inside_across_ns <= loan.loan_across_ns;
    let most = loans.iter().take_while(pays).last().map_or(0, |loan| loan.message_bytes);
    sheet.finish(&format!(
        "{LOANS}\nHere a message inside its slots cost no more than one on loan, both ways, up to {most} bytes."
    ))
}

fn nanos(nanos: f64) -> String {
    if nanos < 100.0 { format!("{nanos:.1} ns") } else { time(nanos as u64) }
}

fn draw(sizes: &[Size], loans: &[Loan], path: &std::path::Path) -> anyhow::Result<()> {
    let curve =
        |name: &str, colour, points: Vec<(f64, f64)>| Curve { name: name.into(), points, colour: (colour, 1.0) };
    let of_loans = |of: fn(&Loan) -> f64| loans.iter().map(|loan| (loan.message_bytes as f64, of(loan))).collect();
    let picture = Picture {
        caption: "Copying against lending",
        x: ("size", &|bytes| show(bytes as usize)),
        y: ("time", &|nanos| time(nanos as u64)),
        curves: vec![
            curve("one copy", COLOURS[6], sizes.iter().map(|size| (size.bytes as f64, size.nanos)).collect()),
            curve("a message inside its slots, by one thread", COLOURS[0], of_loans(|loan| loan.inside_ns)),
            curve("on loan, by one thread", COLOURS[1], of_loans(|loan| loan.loan_ns)),
            curve("inside its slots, across CPUs", COLOURS[5], of_loans(|loan| loan.inside_across_ns)),
            curve("on loan, across CPUs", COLOURS[3], of_loans(|loan| loan.loan_across_ns)),
        ],
    };
    picture.draw(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_that_move_most_are_best() {
        let size = |bytes, bytes_per_tick| Size { bytes, rounds: 1, bytes_per_tick, nanos: 1.0, best: false };
        let mut sizes: Vec<Size> = (1..=9).map(|bytes| size(bytes, (bytes * 7 % 10) as f64)).collect();
        mark_best(&mut sizes);
        let best: Vec<usize> = sizes.iter().filter(|size| size.best).map(|size| size.bytes).collect();
        assert_eq!(best, [1, 4, 5, 7, 8]);
    }

    #[test]
    fn sizes_ascend_and_have_both_kinds() {
        let sizes = all_sizes();
        assert!(sizes.is_sorted() && sizes.contains(&7936) && sizes.contains(&(1 << 24)) && sizes.contains(&8));
    }
}
