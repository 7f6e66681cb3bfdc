//! A page that both processes map: a ring of one-line slots with nothing around it, and the word of what comes next.
//!
//! All words are atomics, each written by one side.

use anyhow::{Context, bail};
use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::hint::spin_loop;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// As many slots as the channels have.
const SLOTS: u64 = super::SLOTS as u64;
const SLOT: usize = 8;
/// Written by the sender: how many orders so far, and the last one.
const ORDER: usize = 0;
const CODE: usize = 1;
const COUNT: usize = 2;
/// Written by the receiver: how many orders are carried out.
const DONE: usize = 16;
/// Written by the receiver: how many slots it has emptied.
const CURSOR: usize = 32;
const FIRST: usize = 48;
const WORDS: usize = FIRST + SLOT * SLOTS as usize;

/// One side's view of it.
pub(super) struct Page {
    map: MmapRaw,
    file: File,
}

impl Page {
    pub(super) fn create() -> anyhow::Result<Self> {
        let file = File::from(memfd_create(c"perf_demo-stream", MFdFlags::MFD_CLOEXEC).context("cannot make a memfd")?);
        file.set_len(WORDS as u64 * 8)?;
        Self::map(file)
    }

    /// The parent's.
    pub(super) fn find(fd: RawFd) -> anyhow::Result<Self> {
        let path = format!("/proc/{}/fd/{fd}", nix::unistd::getppid());
        let file = File::options().read(true).write(true).open(&path);
        Self::map(file.with_context(|| format!("cannot open {path}"))?)
    }

    fn map(file: File) -> anyhow::Result<Self> {
        let map = MmapOptions::new().len(WORDS * 8).map_raw(&file).context("cannot map the page")?;
        Ok(Self { map, file })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < WORDS);
        // SAFETY: inside what `self` maps, by the assertion; aligned, since the map is; never accessed but through atomics,
        // by either process; and the memfd is never made smaller.
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(at)) }
    }

    /// The sender says what it sends next.
    pub(super) fn order(&self, code: u64, count: u64) {
        self.word(CODE).store(code, Ordering::Relaxed);
        self.word(COUNT).store(count, Ordering::Relaxed);
        let order = self.word(ORDER);
        // Partner: the load in `next_order`.
        order.store(order.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// The receiver waits for what comes next. It is killed with its parent.
    pub(super) fn next_order(&self) -> Option<(u64, u64)> {
        let next = self.word(DONE).load(Ordering::Relaxed) + 1;
        while self.word(ORDER).load(Ordering::Acquire) != next {
            spin_loop();
        }
        Some((self.word(CODE).load(Ordering::Relaxed), self.word(COUNT).load(Ordering::Relaxed)))
    }

    pub(super) fn say_done(&self) {
        let done = self.word(DONE);
        // Partner: the load in `wait_done`.
        done.store(done.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    pub(super) fn wait_done(&self, patience: Duration) -> anyhow::Result<()> {
        let (orders, start) = (self.word(ORDER).load(Ordering::Relaxed), Instant::now());
        let mut looks = 0_u32;
        while self.word(DONE).load(Ordering::Acquire) != orders {
            spin_loop();
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(1 << 16) && start.elapsed() > patience {
                bail!("the receiver has not received it all");
            }
        }
        Ok(())
    }
}

/// One end of the ring. Each slot's last word is one more than the position it was filled at.
pub(super) struct Ring<'a> {
    page: &'a Page,
    position: u64,
    /// The sender's copy of the other's cursor.
    emptied: u64,
}

impl<'a> Ring<'a> {
    pub(super) fn producer(page: &'a Page) -> Self {
        Self { page, position: 0, emptied: 0 }
    }

    pub(super) fn consumer(page: &'a Page) -> Self {
        Self::producer(page)
    }

    #[inline]
    pub(super) fn push(&mut self, payload: [u64; SLOT - 1]) {
        while self.position - self.emptied == SLOTS {
            // Partner: the store in `pop`.
            self.emptied = self.page.word(CURSOR).load(Ordering::Acquire);
            if self.position - self.emptied == SLOTS {
                spin_loop();
            }
        }
        let at = FIRST + (self.position % SLOTS) as usize * SLOT;
        for (index, word) in payload.into_iter().enumerate() {
            self.page.word(at + index).store(word, Ordering::Relaxed);
        }
        self.position += 1;
        // Partner: the load in `pop`.
        self.page.word(at + SLOT - 1).store(self.position, Ordering::Release);
    }

    #[inline]
    pub(super) fn pop(&mut self) -> [u64; SLOT - 1] {
        let at = FIRST + (self.position % SLOTS) as usize * SLOT;
        self.position += 1;
        // Partner: the store in `push`.
        while self.page.word(at + SLOT - 1).load(Ordering::Acquire) != self.position {
            spin_loop();
        }
        let payload = std::array::from_fn(|index| self.page.word(at + index).load(Ordering::Relaxed));
        // Partner: the load in `push`.
        self.page.word(CURSOR).store(self.position, Ordering::Release);
        payload
    }
}
