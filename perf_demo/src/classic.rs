//! Cap'n Proto over a Unix stream socket, as well as it can be done; and the same bytes without Cap'n Proto.
//!
//! Written with vectored writes straight from the message's segments, received into one buffer that stays warm, decoded
//! where it lies.

use crate::cache_capnp::cache;
use crate::cli::WaitMode;
use crate::payload::{Expected, parts};
use crate::stop::{OnStop, Stop};
use anyhow::{Context, bail};
use capnp::Word;
use capnp::message::{Builder, HeapAllocator, Reader, ReaderOptions, ScratchSpaceHeapAllocator};
use capnp::serialize::{NoAllocSliceSegments, read_message_from_flat_slice_no_alloc};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, UnixAddr, recv, sendmsg, setsockopt, sockopt};
use smallvec::SmallVec;
use std::hint::spin_loop;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// What both directions of the socket can hold, if the system lets them.
const SOCKET_BUFFER: usize = 4 << 20;

/// The most to read or write in one call: larger ones are no faster, and the other side can begin sooner.
const CALL_MAX: usize = 1 << 20;

/// How long an adaptive side tries before it blocks.
const TRIES: Duration = Duration::from_micros(25);

/// A stream socket and how to wait for it.
pub(crate) struct Pipe {
    stream: UnixStream,
    _on_stop: OnStop,
    wait: WaitMode,
    patience: u32,
}

impl Pipe {
    /// With the system's own buffers, blocking.
    pub(crate) fn plain(stream: UnixStream, stop: &Stop) -> io::Result<Self> {
        Ok(Self { _on_stop: stop.closes(&stream)?, stream, wait: WaitMode::Park, patience: 1 })
    }

    /// With large buffers.
    pub(crate) fn large(stream: UnixStream, stop: &Stop) -> io::Result<Self> {
        setsockopt(&stream, sockopt::SndBuf, &SOCKET_BUFFER)?;
        setsockopt(&stream, sockopt::RcvBuf, &SOCKET_BUFFER)?;
        Self::plain(stream, stop)
    }

    pub(crate) fn settle(&mut self, wait: WaitMode, patience: u32) {
        (self.wait, self.patience) = (wait, patience);
    }

    /// Reads at least one byte.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(CALL_MAX);
        let into = &mut into[..most];
        match self.wait_for(|flags| recv(self.stream.as_raw_fd(), into, flags))? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(read),
        }
    }

    fn read_exact(&self, into: &mut [u8]) -> io::Result<()> {
        let mut got = 0;
        while got < into.len() {
            got += self.read(&mut into[got..])?;
        }
        Ok(())
    }

    /// Writes everything, in as few calls as the socket takes.
    fn write_all(&self, mut from: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !from.is_empty() {
            let written = self.wait_for(|flags| {
                let flags = flags | MsgFlags::MSG_NOSIGNAL;
                sendmsg::<UnixAddr>(self.stream.as_raw_fd(), from, &[], flags, None)
            })?;
            IoSlice::advance_slices(&mut from, written);
        }
        Ok(())
    }

    pub(crate) fn write_plain(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(&mut [IoSlice::new(bytes)])
    }

    pub(crate) fn read_plain(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact(bytes)
    }

    #[inline]
    fn wait_for(&self, mut call: impl FnMut(MsgFlags) -> nix::Result<usize>) -> io::Result<usize> {
        let mut vain = 0_u32;
        let mut until = None;
        let mut flags = if self.wait == WaitMode::Park { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        loop {
            match call(flags) {
                Ok(bytes) => return Ok(bytes),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    vain = vain.wrapping_add(1);
                    if vain.is_multiple_of(self.patience) {
                        std::thread::yield_now();
                    } else {
                        spin_loop();
                    }
                    if self.wait == WaitMode::Adaptive
                        && Instant::now() >= *until.get_or_insert_with(|| Instant::now() + TRIES)
                    {
                        flags = MsgFlags::empty();
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Bytes that are copied rather than gathered.
const SMALL: usize = 256;

/// Writes a message in Cap'n Proto's stream format: a table of the segments' sizes, then the segments.
pub(crate) fn send<'a>(pipe: &Pipe, mut segments: impl ExactSizeIterator<Item = &'a [u8]>) -> io::Result<()> {
    let count = segments.len();
    // A small message is copied into one piece sooner than the kernel gathers it from two.
    let first = match segments.next() {
        Some(only) if count == 1 && only.len() <= SMALL => {
            let mut whole = [0; 8 + SMALL];
            whole[4..8].copy_from_slice(&(only.len() as u32 / 8).to_le_bytes());
            whole[8..8 + only.len()].copy_from_slice(only);
            return pipe.write_plain(&whole[..8 + only.len()]);
        }
        other => other,
    };
    // On the stack for a message of few segments.
    let mut table = SmallVec::<[u8; 64]>::new();
    let mut slices = SmallVec::<[IoSlice<'_>; 16]>::new();
    table.extend((count as u32 - 1).to_le_bytes());
    slices.push(IoSlice::new(&[]));
    for segment in first.into_iter().chain(segments) {
        table.extend((segment.len() as u32 / 8).to_le_bytes());
        slices.push(IoSlice::new(segment));
    }
    table.resize(table.len().next_multiple_of(8), 0);
    slices[0] = IoSlice::new(&table);
    pipe.write_all(&mut slices)
}

/// A request as bytes in stream format.
pub(crate) fn request(name: &str) -> Vec<u8> {
    let mut message = Builder::new(HeapAllocator::new().first_segment_words(REQUEST_WORDS));
    message.init_root::<cache::Builder<'_>>().init_get_cache_req().set_file_name(name);
    capnp::serialize::write_message_to_words(&message)
}

/// Room for a request with a name of usual length.
const REQUEST_WORDS: u32 = 64;

const NO_WORD: Word = capnp::word(0, 0, 0, 0, 0, 0, 0, 0);

/// What is received, in memory that is used again for every message.
#[derive(Default)]
pub(crate) struct Incoming {
    words: Vec<Word>,
}

impl Incoming {
    /// Gives the memory back.
    pub(crate) fn release(&mut self) {
        self.words = Vec::new();
    }

    /// Receives one message; its length in bytes, table included.
    pub(crate) fn receive(&mut self, pipe: &Pipe) -> anyhow::Result<usize> {
        self.grow(FIRST_READ, 0);
        let mut got = pipe.read(self.bytes_mut())?;
        let total = loop {
            match total(&self.bytes()[..got])? {
                Some(total) => break total,
                None => got += pipe.read(&mut self.bytes_mut()[got..])?,
            }
        };
        if got > total {
            bail!("more came than one message");
        }
        self.grow(total, got);
        pipe.read_exact(&mut self.bytes_mut()[got..total])?;
        Ok(total)
    }

    /// Receives so many bytes, whatever they are.
    pub(crate) fn receive_bare(&mut self, pipe: &Pipe, total: usize) -> anyhow::Result<()> {
        self.grow(total, 0);
        Ok(pipe.read_exact(&mut self.bytes_mut()[..total])?)
    }

    /// What was received, decoded where it lies.
    pub(crate) fn decode(&self, total: usize) -> anyhow::Result<Reader<NoAllocSliceSegments<'_>>> {
        let options = ReaderOptions { traversal_limit_in_words: None, nesting_limit: 64 };
        Ok(read_message_from_flat_slice_no_alloc(&mut &self.bytes()[..total], options)?)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        Word::words_to_bytes(&self.words)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        Word::words_to_bytes_mut(&mut self.words)
    }

    /// Makes room for `bytes`, keeping the first `kept`.
    fn grow(&mut self, bytes: usize, kept: usize) {
        if self.words.len() * 8 < bytes {
            let mut larger = Word::allocate_zeroed_vec(bytes.div_ceil(8));
            Word::words_to_bytes_mut(&mut larger)[..kept].copy_from_slice(&self.bytes()[..kept]);
            self.words = larger;
        }
    }
}

/// The least room for a first read: a small message whole, or a large one's table.
const FIRST_READ: usize = 64 << 10;

/// Segments that Cap'n Proto itself reads at most.
const SEGMENTS_MAX: usize = 512;

/// A message's length as its table says; `None` if more of the table must come first.
fn total(bytes: &[u8]) -> anyhow::Result<Option<usize>> {
    let mut entries = bytes.as_chunks::<4>().0.iter().map(|&entry| u32::from_le_bytes(entry) as usize);
    let Some(count) = entries.next().map(|count| count + 1) else { return Ok(None) };
    if count > SEGMENTS_MAX {
        bail!("a message of {count} segments");
    }
    let table = (count / 2 + 1) * 8;
    Ok((bytes.len() >= table).then(|| table + entries.take(count).map(|words| words * 8).sum::<usize>()))
}

/// The client's half of `classic`: the time of one round, and whether the ends were right.
pub(crate) fn ask(pipe: &Pipe, incoming: &mut Incoming, file: &Expected) -> anyhow::Result<(Duration, bool)> {
    let start = Instant::now();
    let total = exchange(pipe, incoming, file)?;
    let right = file.ends_match(incoming.decode(total)?.get_root()?)?;
    Ok((start.elapsed(), right))
}

/// Asks for a file and receives the answer; its length.
pub(crate) fn exchange(pipe: &Pipe, incoming: &mut Incoming, file: &Expected) -> anyhow::Result<usize> {
    let mut scratch = [NO_WORD; REQUEST_WORDS as usize];
    let mut message = Builder::new(ScratchSpaceHeapAllocator::new(Word::words_to_bytes_mut(&mut scratch)));
    message.init_root::<cache::Builder<'_>>().init_get_cache_req().set_file_name(&file.name);
    let segments = message.get_segments_for_output();
    send(pipe, segments.iter().copied())?;
    incoming.receive(pipe)
}

/// The name in a received request.
pub(crate) fn requested(request: cache::Reader<'_>) -> anyhow::Result<&str> {
    match request.which()? {
        cache::GetCacheReq(request) => Ok(request?.get_file_name()?.to_str()?),
        _ => bail!("the client asked with something else than a request"),
    }
}

/// What `bare` knows beforehand, instead of decoding.
pub(crate) struct Known {
    request: Vec<u8>,
    total: usize,
    /// Where the file's first and last byte lie.
    ends: [usize; 2],
}

impl Known {
    /// Learns it from a decoded answer.
    pub(crate) fn learn(incoming: &Incoming, total: usize, file: &Expected) -> anyhow::Result<Self> {
        let reader = incoming.decode(total)?;
        let parts = parts(reader.get_root()?)?;
        let last = parts.get(parts.len().checked_sub(1).context("the file is empty")?).get_data()?;
        let start = incoming.bytes().as_ptr().addr();
        let first = parts.get(0).get_data()?.as_ptr().addr() - start;
        let last = last.as_ptr().addr() + last.len().saturating_sub(1) - start;
        Ok(Self { request: request(&file.name), total, ends: [first, last] })
    }
}

/// The client's half of `bare`.
pub(crate) fn ask_bare(
    pipe: &Pipe,
    incoming: &mut Incoming,
    file: &Expected,
    known: &Known,
) -> anyhow::Result<(Duration, bool)> {
    let start = Instant::now();
    let bytes = exchange_bare(pipe, incoming, known)?;
    let right = file.are_ends(bytes.get(known.ends[0]), bytes.get(known.ends[1]));
    Ok((start.elapsed(), right))
}

/// Sends the known request and receives the answer's bytes.
pub(crate) fn exchange_bare<'a>(pipe: &Pipe, incoming: &'a mut Incoming, known: &Known) -> anyhow::Result<&'a [u8]> {
    pipe.write_plain(&known.request)?;
    incoming.receive_bare(pipe, known.total)?;
    Ok(incoming.bytes())
}

impl Known {
    pub(crate) fn total(&self) -> usize {
        self.total
    }
}
