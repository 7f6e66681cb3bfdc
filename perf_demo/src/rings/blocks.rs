//! One block of values through one queue: each value timed at both ends, or all as fast as they go. Knows no queue by name.

use super::queues::{Item, Pop, Push};
use anyhow::{Context, anyhow, bail};
use nix::time::{ClockId, clock_gettime};
use perf_demo::cpus::Cpus;
use std::hint::spin_loop;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Nanoseconds by a clock that all processes share.
#[inline]
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |at| at.tv_sec().unsigned_abs() * 1_000_000_000 + at.tv_nsec().unsigned_abs())
}

/// A push or a pop that succeeded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// Which value.
    pub(super) id: u64,
    /// When it was over.
    pub(super) at: u64,
    pub(super) took: u64,
    /// Calls before it that found the ring full, or empty.
    pub(super) retries: u64,
}

/// When a thread was at it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Span {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Span {
    /// Runs something and says how long it took.
    pub(super) fn of<T>(what: impl FnOnce() -> T) -> (T, Self) {
        let from = now();
        let found = what();
        let to = now();
        (found, Self { from, to })
    }
}

/// What a block came to.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) sent: Vec<Done>,
    pub(super) taken: Vec<Done>,
    /// From the first start to the last end.
    pub(super) nanos: u64,
    /// Whether everything arrived once.
    pub(super) whole: bool,
    /// A thread could not be sent to its CPU.
    pub(super) unpinned: bool,
}

/// From the first start to the last end.
fn length(spans: &[Span]) -> u64 {
    let from = spans.iter().map(|span| span.from).min().unwrap_or(0);
    spans.iter().map(|span| span.to).max().unwrap_or(0).saturating_sub(from)
}

/// Looks in vain before others may run on this CPU: they may be who is waited for.
const PATIENCE: u64 = 64;

#[inline]
pub(super) fn pause(retries: u64) {
    if retries.is_multiple_of(PATIENCE) { thread::yield_now() } else { spin_loop() }
}

/// The number of a producer's value.
fn id(producer: usize, number: u64) -> u64 {
    (producer as u64) << 48 | number
}

/// Pushes `values`, timing each call. The payload is a time stamp, as procCurl's benchmark has it, and a number.
pub(super) fn push_timed(producer: &mut impl Push, label: usize, values: u64) -> Vec<Done> {
    let mut sent = Vec::with_capacity(values as usize);
    for number in 0..values {
        let mut retries = 0;
        loop {
            let start = now();
            let pushed = producer.push([start, id(label, number), 0, 0, 0, 0, 0]);
            let at = now();
            if pushed {
                sent.push(Done { id: id(label, number), at, took: at - start, retries });
                break;
            }
            retries += 1;
            pause(retries);
        }
    }
    sent
}

/// Pops until `is_over` says, of how many there were, that nothing more is to come; asked only while there is nothing.
pub(super) fn pop_timed(consumer: &mut impl Pop, room: u64, is_over: impl Fn(u64) -> bool) -> Vec<Done> {
    let mut taken = Vec::with_capacity(room as usize);
    let mut retries = 0;
    loop {
        // Before the look: what was pushed before it was over is found.
        let over = retries > 0 && is_over(taken.len() as u64);
        let start = now();
        let found = consumer.pop();
        let at = now();
        match found {
            Some([_, id, ..]) => {
                taken.push(Done { id, at, took: at - start, retries });
                retries = 0;
            }
            None if over => return taken,
            None => {
                retries += 1;
                pause(retries);
            }
        }
    }
}

/// Pushes `values` as fast as they go; returns the sum of what was pushed.
pub(super) fn push_all(producer: &mut impl Push, label: usize, values: u64) -> u64 {
    let mut sum = 0_u64;
    for number in 0..values {
        let word = id(label, number);
        let item: Item = [word; 7];
        let mut retries = 0;
        while !producer.push(item) {
            retries += 1;
            pause(retries);
        }
        sum = sum.wrapping_add(word);
    }
    sum
}

/// Pops until it is over; returns the sum of what was popped. Every word counts, so that all of them are read.
pub(super) fn pop_all(consumer: &mut impl Pop, is_over: impl Fn(u64) -> bool) -> u64 {
    let (mut sum, mut count, mut retries) = (0_u64, 0_u64, 0);
    loop {
        let over = retries > 0 && is_over(count);
        match consumer.pop() {
            Some(item) => {
                let same = item.iter().fold(0, |all, word| all | (word ^ item[0]));
                sum = sum.wrapping_add(item[0]).wrapping_add(same);
                count += 1;
                retries = 0;
            }
            None if over => return sum,
            None => {
                retries += 1;
                pause(retries);
            }
        }
    }
}

/// A thread of its own for each end, spread over the CPUs; `values` in all.
pub(super) fn between_threads<P: Push, C: Pop>(
    producers: Vec<P>,
    consumers: Vec<C>,
    values: u64,
    timed: bool,
    cpus: &Cpus,
) -> anyhow::Result<Block> {
    let each = values / producers.len() as u64;
    let start = Barrier::new(producers.len() + consumers.len());
    let (start, over) = (&start, &AtomicBool::new(false));
    // Producer and consumer in turn, so that where there are two CPUs both ends are on both.
    let mut places = cpus.spread();
    let mut of_producers = Vec::new();
    let mut of_consumers = Vec::new();
    for index in 0..producers.len().max(consumers.len()) {
        // The second pair is the other way round.
        let (one, other) = (places.next().flatten(), places.next().flatten());
        let (one, other) = if index % 2 == 0 { (one, other) } else { (other, one) };
        of_producers.push(one);
        of_consumers.push(other);
    }
    thread::scope(|scope| {
        let pushing: Vec<_> = producers
            .into_iter()
            .enumerate()
            .map(|(label, mut producer)| {
                let place = of_producers[label];
                scope.spawn(move || {
                    let pinned = cpus.go_to(place).is_ok();
                    start.wait();
                    let ((sent, sum), span) = Span::of(|| {
                        if timed {
                            (push_timed(&mut producer, label, each), 0)
                        } else {
                            (Vec::new(), push_all(&mut producer, label, each))
                        }
                    });
                    (sent, sum, span, pinned)
                })
            })
            .collect();
        let popping: Vec<_> = consumers
            .into_iter()
            .enumerate()
            .map(|(index, mut consumer)| {
                let place = of_consumers[index];
                scope.spawn(move || {
                    let pinned = cpus.go_to(place).is_ok();
                    start.wait();
                    let is_over = |_| over.load(Ordering::Acquire);
                    let ((taken, sum), span) = Span::of(|| {
                        if timed {
                            (pop_timed(&mut consumer, values, is_over), 0)
                        } else {
                            (Vec::new(), pop_all(&mut consumer, is_over))
                        }
                    });
                    (taken, sum, span, pinned)
                })
            })
            .collect();
        let mut block = Block::default();
        let (mut spans, mut pushed, mut popped) = (Vec::new(), 0_u64, 0_u64);
        for thread in pushing {
            let (sent, sum, span, pinned) = thread.join().map_err(|_| anyhow!("a producer failed"))?;
            block.sent.extend(sent);
            pushed = pushed.wrapping_add(sum);
            spans.push(span);
            block.unpinned |= !pinned;
        }
        // Partner: the load of a consumer that finds nothing.
        over.store(true, Ordering::Release);
        for thread in popping {
            let (taken, sum, span, pinned) = thread.join().map_err(|_| anyhow!("a consumer failed"))?;
            block.taken.extend(taken);
            popped = popped.wrapping_add(sum);
            spans.push(span);
            block.unpinned |= !pinned;
        }
        block.whole = pushed == popped && same_ids(&block.sent, &block.taken);
        block.nanos = length(&spans);
        Ok(block)
    })
}

/// Puts together what two processes found.
pub(super) fn between_processes(
    (sent, pushed, ours): (Vec<Done>, u64, Span),
    (taken, popped, theirs): (Vec<Done>, u64, Span),
) -> Block {
    let whole = pushed == popped && same_ids(&sent, &taken);
    // Telling the other process to begin takes longer than a first value.
    let nanos = theirs.to.saturating_sub(ours.from.max(theirs.from));
    Block { sent, taken, nanos, whole, unpinned: false }
}

fn same_ids(sent: &[Done], taken: &[Done]) -> bool {
    let ids = |done: &[Done]| {
        let mut ids: Vec<u64> = done.iter().map(|done| done.id).collect();
        ids.sort_unstable();
        ids
    };
    ids(sent) == ids(taken)
}

/// Of each value, what both ends say of it: the latency from the end of its push to the end of its pop. The first `warm_up`
/// of each producer do not count.
pub(super) fn latencies(block: &Block, warm_up: u64) -> anyhow::Result<Vec<(Done, Done, u64)>> {
    let mut sent = block.sent.clone();
    sent.sort_unstable_by_key(|done| done.id);
    let mut all = Vec::with_capacity(sent.len());
    for taken in &block.taken {
        if taken.id & 0xFFFF_FFFF_FFFF < warm_up {
            continue;
        }
        let at = sent.binary_search_by_key(&taken.id, |done| done.id).ok().context("a value that was not sent")?;
        // A consumer may be done before its producer has looked at the clock again.
        all.push((sent[at], *taken, taken.at.saturating_sub(sent[at].at)));
    }
    if all.is_empty() {
        bail!("nothing was measured");
    }
    Ok(all)
}
