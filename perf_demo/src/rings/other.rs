//! The rings between processes: this process pushes, another pops and tells what it found.

use super::blocks::{Block, Done, Span, between_processes, pop_all, pop_timed, push_all, push_timed};
use super::queues::{Item, Pop, Push, Vyukov, bytes};
use super::{BUSY_SLOTS, Contender};
use anyhow::{Context, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use perf_demo::cpus::Cpus;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use strait::ring::processes::{Consumer, Producer, Side};

/// The rings a pair of processes has: of the slots asked for, and of many.
struct Ends<T> {
    strait: [T; 2],
    vyukov: [Vyukov; 2],
}

/// The other process, at the popping ends.
pub(super) struct Other {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    ends: Ends<Producer<Item>>,
    pinned: bool,
}

/// A file that two processes map.
fn shared(slots: usize) -> anyhow::Result<File> {
    let file = File::from(memfd_create(c"perf_demo-vyukov", MFdFlags::MFD_CLOEXEC).context("cannot make a memfd")?);
    file.set_len(bytes(slots) as u64)?;
    Ok(file)
}

/// A descriptor of another process.
fn find(process: u32, fd: RawFd, write: bool) -> anyhow::Result<File> {
    let path = format!("/proc/{process}/fd/{fd}");
    File::options().read(true).write(write).open(&path).with_context(|| format!("cannot open {path}"))
}

impl Other {
    pub(super) fn start(cpus: &Cpus, slots: usize) -> anyhow::Result<Self> {
        let all = [slots, BUSY_SLOTS];
        let sides: Vec<Side<Item>> = all.into_iter().map(Side::create).collect::<Result<_, _>>()?;
        let descriptors: Vec<OwnedFd> = sides.iter().map(Side::descriptor).collect::<Result<_, _>>()?;
        let files = all.into_iter().map(shared).collect::<anyhow::Result<Vec<File>>>()?;
        let maps: Vec<_> =
            files.iter().zip(all).map(|(file, slots)| Vyukov::shared(file, slots)).collect::<Result<_, _>>()?;
        maps.iter().for_each(Vyukov::clear);
        // Where everything is, for it to find; and where it is to run.
        let fds = descriptors.iter().map(OwnedFd::as_raw_fd).chain(files.iter().map(File::as_raw_fd));
        let place = cpus.spread().nth(1).flatten().context("no CPU")?;
        let mut told = format!("{} {place}", std::process::id());
        fds.for_each(|fd| told += &format!(" {fd}"));
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(["rings", "--slots", &slots.to_string(), "--other", &told]);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the other process")?;
        let orders = process.stdin.take();
        let mut answers = BufReader::new(process.stdout.take().context("the other process has no output")?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let words: Vec<RawFd> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [pinned, fds @ ..] = words.as_slice() else {
            bail!("the other process did not come up: {}", process.wait()?)
        };
        let mut producers = Vec::new();
        for (side, &fd) in sides.into_iter().zip(fds) {
            producers.push(side.join(find(process.id(), fd, false)?.into())?.0);
        }
        let pair = "two of each";
        let ends =
            Ends { strait: producers.try_into().ok().context(pair)?, vyukov: maps.try_into().ok().context(pair)? };
        let mut other = Self { process, orders, answers, ends, pinned: *pinned == 1 };
        // It keeps its descriptors open until they were found.
        other.order("found")?;
        Ok(other)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    fn order(&mut self, order: &str) -> anyhow::Result<()> {
        writeln!(self.orders.as_mut().context("it was told to end")?, "{order}").context("the other process is gone")
    }

    /// A block of so many values, through the ring of many slots or the other.
    pub(super) fn block(&mut self, queue: Contender, many: bool, values: u64, timed: bool) -> anyhow::Result<Block> {
        self.order(&format!("{} {many} {values} {timed}", queue.name()))?;
        let ring = usize::from(many);
        let ours = match queue {
            Contender::Strait => push(&mut self.ends.strait[ring], values, timed),
            Contender::Vyukov => push(&mut self.ends.vyukov[ring], values, timed),
            Contender::Rtrb | Contender::ArrayQueue => bail!("not between processes"),
        };
        let mut word = || -> anyhow::Result<u64> {
            let mut bytes = [0; 8];
            self.answers.read_exact(&mut bytes).context("the other process is gone")?;
            Ok(u64::from_ne_bytes(bytes))
        };
        let (sum, span) = (word()?, Span { from: word()?, to: word()? });
        let count = word()?;
        let mut done = || Ok(Done { id: word()?, at: word()?, took: word()?, retries: word()? });
        let taken = (0..count).map(|_| done()).collect::<anyhow::Result<Vec<_>>>()?;
        let block = between_processes(ours, (taken, sum, span));
        Ok(Block { unpinned: !self.pinned, ..block })
    }

    /// Ends it, and says whether it ended well.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.orders = None;
        let status = self.process.wait()?;
        ensure!(status.success(), "the other process ended with {status}");
        Ok(())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

fn push(ring: &mut impl Push, values: u64, timed: bool) -> (Vec<Done>, u64, Span) {
    let ((sent, sum), span) =
        Span::of(|| if timed { (push_timed(ring, 0, values), 0) } else { (Vec::new(), push_all(ring, 0, values)) });
    (sent, sum, span)
}

/// The other process. Ends with its input.
pub(super) fn serve(told: &str, slots: usize) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let words: Vec<u32> = told.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [parent, place, ref fds @ ..] = words[..] else { bail!("told too little") };
    let fds: Vec<RawFd> = fds.iter().map(|&fd| RawFd::try_from(fd)).collect::<Result<_, _>>()?;
    let [one, many, small, large] = fds[..] else { bail!("told too little") };
    let pinned = Cpus::allowed()?.go_to(Some(place as usize)).is_ok();
    let sides = (Side::<Item>::create(slots)?, Side::<Item>::create(BUSY_SLOTS)?);
    let ours = (sides.0.descriptor()?, sides.1.descriptor()?);
    let join =
        |side: Side<Item>, fd| -> anyhow::Result<Consumer<Item>> { Ok(side.join(find(parent, fd, false)?.into())?.1) };
    let mut ends = Ends {
        strait: [join(sides.0, one)?, join(sides.1, many)?],
        vyukov: [
            Vyukov::shared(&find(parent, small, true)?, slots)?,
            Vyukov::shared(&find(parent, large, true)?, BUSY_SLOTS)?,
        ],
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} {} {}", u8::from(pinned), ours.0.as_raw_fd(), ours.1.as_raw_fd())?;
    out.flush()?;
    let mut orders = std::io::stdin().lock().lines();
    ensure!(orders.next().transpose()?.as_deref() == Some("found"), "told to begin otherwise");
    drop(ours);
    for order in orders {
        let order = order?;
        let words: Vec<&str> = order.split_whitespace().collect();
        let [queue, many, values, timed] = words[..] else { bail!("an order of another kind: {order}") };
        let (ring, values, timed) = (usize::from(many == "true"), values.parse()?, timed == "true");
        let (taken, sum, span) = if queue == Contender::Strait.name() {
            pop(&mut ends.strait[ring], values, timed)
        } else {
            pop(&mut ends.vyukov[ring], values, timed)
        };
        let head = [sum, span.from, span.to, taken.len() as u64];
        let rest = taken.iter().flat_map(|done| [done.id, done.at, done.took, done.retries]);
        let bytes: Vec<u8> = head.into_iter().chain(rest).flat_map(u64::to_ne_bytes).collect();
        out.write_all(&bytes)?;
        out.flush()?;
    }
    Ok(())
}

fn pop(ring: &mut impl Pop, values: u64, timed: bool) -> (Vec<Done>, u64, Span) {
    let is_over = |count| count == values;
    let ((taken, sum), span) =
        Span::of(|| if timed { (pop_timed(ring, values, is_over), 0) } else { (Vec::new(), pop_all(ring, is_over)) });
    (taken, sum, span)
}
