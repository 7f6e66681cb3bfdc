//! The floors: what the machine itself needs for a round trip. And, on the same page, the mailbox through which a
//! spinning server is told what comes next without a system call.
//!
//! All words are atomics in one page of a memfd that both processes map. Each has one writer.

use crate::classic::Pipe;
use crate::cli::Technique;
use anyhow::{Context, bail};
use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::hint::spin_loop;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Round trips in one sample of `floor-line`, so that reading the clock does not count.
pub(crate) const PINGS: u32 = 10;

/// Lines this far apart never travel together, though neighbouring ones may be fetched in pairs.
const APART: usize = 128;

/// Written by the client: the number of the latest ping.
const PING: usize = 0;
/// Written by the server: the number of the latest pong.
const PONG: usize = APART;
/// Written by the client: the latest order's number, and the order.
const ORDER: usize = 2 * APART;
const ORDERED: usize = ORDER + 8;
const PAGE: usize = 4096;

/// One side's view of the shared page.
pub(crate) struct Line {
    map: MmapRaw,
    /// The server's; kept open for the client to find.
    file: File,
    /// The latest ping this side knows of.
    pings: u64,
    /// The latest order this side knows of.
    orders: u64,
}

impl Line {
    /// The server's.
    pub(crate) fn create() -> anyhow::Result<Self> {
        let file = File::from(memfd_create(c"perf_demo-line", MFdFlags::MFD_CLOEXEC).context("cannot make a memfd")?);
        file.set_len(PAGE as u64)?;
        Self::map(file)
    }

    /// The client's, of the server's descriptor.
    pub(crate) fn find(pid: u32, fd: RawFd) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/fd/{fd}");
        let file = File::options().read(true).write(true).open(&path);
        Self::map(file.with_context(|| format!("cannot open the server's {path}"))?)
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn map(file: File) -> anyhow::Result<Self> {
        let map = MmapOptions::new().len(PAGE).map_raw(&file).context("cannot map the line")?;
        Ok(Self { map, file, pings: 0, orders: 0 })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at < PAGE);
        // SAFETY: inside the page that `self` maps, by the assertion; aligned, since the map is; never accessed but
        // through atomics, by either process; and the memfd is never made smaller.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }

    /// The client's half of a sample: the time of one round trip.
    pub(crate) fn ping(&mut self, patience: u32, is_over: impl FnMut() -> bool + Copy) -> anyhow::Result<Duration> {
        let (ping, pong) = (self.word(PING), self.word(PONG));
        let mut number = self.pings;
        let start = Instant::now();
        for _ in 0..PINGS {
            number += 1;
            ping.store(number, Ordering::Release);
            spin_until(patience, ASK_EVERY, is_over, || pong.load(Ordering::Acquire) == number)?;
        }
        let took = start.elapsed() / PINGS;
        self.pings = number;
        Ok(took)
    }

    /// The server's half of `samples`.
    pub(crate) fn pong(
        &mut self,
        samples: u32,
        patience: u32,
        is_over: impl FnMut() -> bool + Copy,
    ) -> anyhow::Result<()> {
        let (ping, pong) = (self.word(PING), self.word(PONG));
        let mut number = self.pings;
        for _ in 0..u64::from(samples) * u64::from(PINGS) {
            number += 1;
            spin_until(patience, ASK_EVERY, is_over, || ping.load(Ordering::Acquire) == number)?;
            pong.store(number, Ordering::Release);
        }
        self.pings = number;
        Ok(())
    }

    /// The client orders a block.
    pub(crate) fn order(&mut self, technique: Technique, rounds: u32) {
        self.orders += 1;
        self.word(ORDERED).store((technique as u64) << 32 | u64::from(rounds), Ordering::Relaxed);
        // Partner: the load in `next_order`.
        self.word(ORDER).store(self.orders, Ordering::Release);
    }

    /// The server waits for an order here, or for `is_called` to say that it is to look elsewhere (`None`).
    pub(crate) fn next_order(
        &mut self,
        patience: u32,
        is_called: impl FnMut() -> bool,
    ) -> anyhow::Result<Option<(Technique, u32)>> {
        let next = self.orders + 1;
        if spin_until(patience, CALL_EVERY, is_called, || self.word(ORDER).load(Ordering::Acquire) == next).is_err() {
            return Ok(None);
        }
        self.orders = next;
        let ordered = self.word(ORDERED).load(Ordering::Relaxed);
        let Some(technique) = ALL.into_iter().find(|&technique| technique as u64 == ordered >> 32) else {
            bail!("the client ordered no technique");
        };
        Ok(Some((technique, ordered as u32)))
    }
}

const ALL: [Technique; 6] = [
    Technique::Classic,
    Technique::Bare,
    Technique::Shm,
    Technique::Snapshot,
    Technique::FloorLine,
    Technique::FloorSocket,
];

/// Looks in vain before asking, by a system call, whether the other half still lives.
const ASK_EVERY: u32 = 1 << 18;

/// The same between blocks, where other orders may come by socket: about a millisecond.
const CALL_EVERY: u32 = 1 << 15;

/// Looks until there is something. Every `patience` looks others may run on this CPU: they may be who is waited for.
#[inline]
fn spin_until(
    patience: u32,
    ask_every: u32,
    mut is_over: impl FnMut() -> bool,
    mut look: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let mut looks = 0_u32;
    while !look() {
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(patience) {
            std::thread::yield_now();
        } else {
            spin_loop();
        }
        if looks.is_multiple_of(ask_every) && is_over() {
            bail!("the other half is gone");
        }
    }
    Ok(())
}

/// The client's half of `floor-socket`: the time of one round trip, and whether the echo was right.
pub(crate) fn call(pipe: &Pipe, number: u64) -> anyhow::Result<(Duration, bool)> {
    let mut echo = [0; 8];
    let start = Instant::now();
    pipe.write_plain(&number.to_ne_bytes())?;
    pipe.read_plain(&mut echo)?;
    Ok((start.elapsed(), u64::from_ne_bytes(echo) == number))
}

/// The server's half of it.
pub(crate) fn echo(pipe: &Pipe) -> anyhow::Result<()> {
    let mut bytes = [0; 8];
    pipe.read_plain(&mut bytes)?;
    Ok(pipe.write_plain(&bytes)?)
}
