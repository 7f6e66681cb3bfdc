//! What needs no library: cache lines, futexes, a socket.

use crate::answers::{Answers, Request, are_right, request, to_bytes, wanted};
use crate::kinds::{Peer, Wait};
use crate::round::{Asks, Serve, Serves, poll};
use anyhow::{Context, bail};
use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Words this far apart never travel together.
const APART: usize = 128;
const PAGE: usize = 4096;

/// A page that both processes map: a word that the client counts up, and one that the server does.
struct Page {
    map: MmapRaw,
    /// The server's; open for the client to find.
    file: File,
    count: u32,
}

impl Page {
    fn create() -> anyhow::Result<Self> {
        let file = File::from(memfd_create(c"peers-page", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(PAGE as u64)?;
        Self::map(file)
    }

    fn find(pid: u32, place: &str) -> anyhow::Result<Self> {
        Self::map(File::options().read(true).write(true).open(format!("/proc/{pid}/fd/{place}"))?)
    }

    fn map(file: File) -> anyhow::Result<Self> {
        let map = MmapOptions::new().len(PAGE).map_raw(&file).context("cannot map a page")?;
        Ok(Self { map, file, count: 0 })
    }

    fn place(&self) -> String {
        self.file.as_raw_fd().to_string()
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        let at = index * APART;
        assert!(at < PAGE);
        // SAFETY: inside the page that `self` maps, by the assertion; aligned, since the map is; never accessed but
        // through atomics, by either process; and the memfd is never made smaller.
        unsafe { AtomicU32::from_ptr(self.map.as_mut_ptr().add(at).cast()) }
    }
}

const PING: usize = 0;
const PONG: usize = 1;

/// A page, and whether both run on one CPU.
struct Line(Page, bool);

pub(crate) fn serve_line(options: &Serve) -> anyhow::Result<(Box<dyn Serves>, String)> {
    let page = Page::create()?;
    let place = page.place();
    Ok((Box::new(Line(page, options.together)), place))
}

pub(crate) fn line(pid: u32, place: &str, options: &Serve) -> anyhow::Result<Box<dyn Asks>> {
    Ok(Box::new(Line(Page::find(pid, place)?, options.together)))
}

impl Asks for Line {
    #[inline]
    fn ask(&mut self, _: &Request) -> anyhow::Result<bool> {
        let next = self.0.count.wrapping_add(1);
        self.0.count = next;
        // Partner: the server's load, and the other way round.
        self.0.word(PING).store(next, Ordering::Release);
        poll(self.1, || Ok((self.0.word(PONG).load(Ordering::Acquire) == next).then_some(())))?;
        Ok(true)
    }
}

impl Serves for Line {
    fn serve(&mut self, rounds: u32) -> anyhow::Result<()> {
        for _ in 0..rounds {
            let next = self.0.count.wrapping_add(1);
            self.0.count = next;
            poll(self.1, || Ok((self.0.word(PING).load(Ordering::Acquire) == next).then_some(())))?;
            self.0.word(PONG).store(next, Ordering::Release);
        }
        Ok(())
    }
}

struct Futex(Page);

pub(crate) fn serve_futex() -> anyhow::Result<(Box<dyn Serves>, String)> {
    let page = Page::create()?;
    let place = page.place();
    Ok((Box::new(Futex(page)), place))
}

pub(crate) fn futex(pid: u32, place: &str) -> anyhow::Result<Box<dyn Asks>> {
    Ok(Box::new(Futex(Page::find(pid, place)?)))
}

/// Sleeps until the word is `wanted`.
fn sleep_until(word: &AtomicU32, wanted: u32) -> anyhow::Result<()> {
    loop {
        let seen = word.load(Ordering::Acquire);
        if seen == wanted {
            return Ok(());
        }
        // SAFETY: a futex call on a word that lives as long as this borrow, with no time limit.
        let slept =
            unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, std::ptr::null::<()>()) };
        if slept < 0 && !matches!(Errno::last(), Errno::EAGAIN | Errno::EINTR) {
            bail!("cannot wait: {}", Errno::last());
        }
    }
}

fn wake(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Release);
    // SAFETY: a futex call on a word that lives as long as this borrow.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

impl Asks for Futex {
    #[inline]
    fn ask(&mut self, _: &Request) -> anyhow::Result<bool> {
        let next = self.0.count.wrapping_add(1);
        self.0.count = next;
        wake(self.0.word(PING), next);
        sleep_until(self.0.word(PONG), next)?;
        Ok(true)
    }
}

impl Serves for Futex {
    fn serve(&mut self, rounds: u32) -> anyhow::Result<()> {
        for _ in 0..rounds {
            let next = self.0.count.wrapping_add(1);
            self.0.count = next;
            sleep_until(self.0.word(PING), next)?;
            wake(self.0.word(PONG), next);
        }
        Ok(())
    }
}

/// A stream socket, and how to wait for it.
struct Pipe {
    stream: UnixStream,
    polls: Option<bool>,
}

/// What both directions can hold, if the system lets them.
const SOCKET_BUFFER: usize = 4 << 20;
/// The most in one call: larger ones are no faster, and the other side can begin sooner.
const CALL: usize = 1 << 20;

impl Pipe {
    fn new(stream: UnixStream, options: &Serve) -> anyhow::Result<Self> {
        if options.peer == Peer::Socket {
            setsockopt(&stream, sockopt::SndBuf, &SOCKET_BUFFER)?;
            setsockopt(&stream, sockopt::RcvBuf, &SOCKET_BUFFER)?;
        }
        Ok(Self { stream, polls: (options.wait == Wait::Poll).then_some(options.together) })
    }

    #[inline]
    fn wait_for(&self, mut call: impl FnMut(MsgFlags) -> nix::Result<usize>) -> anyhow::Result<usize> {
        match self.polls {
            None => loop {
                match call(MsgFlags::MSG_NOSIGNAL) {
                    Err(Errno::EINTR) => {}
                    other => return Ok(other?),
                }
            },
            Some(together) => poll(together, || match call(MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
                other => Ok(Some(other?)),
            }),
        }
    }

    fn write(&self, mut bytes: &[u8]) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            bytes = &bytes[self.wait_for(|flags| send(self.stream.as_raw_fd(), bytes, flags))?..];
        }
        Ok(())
    }

    /// Fills it; `false` if the other side is gone instead.
    fn read(&self, into: &mut [u8]) -> anyhow::Result<bool> {
        let mut got = 0;
        while got < into.len() {
            let most = into.len().min(got + CALL);
            let part = &mut into[got..most];
            match self.wait_for(|flags| recv(self.stream.as_raw_fd(), part, flags))? {
                0 => return Ok(false),
                more => got += more,
            }
        }
        Ok(true)
    }
}

fn at(dir: &Path) -> PathBuf {
    dir.join("socket")
}

/// What an echo is.
const ECHO: usize = 8;

struct SocketServer {
    listener: UnixListener,
    pipe: Option<Pipe>,
    options: Serve,
    answers: Answers,
}

pub(crate) fn serve_socket(options: &Serve) -> anyhow::Result<(Box<dyn Serves>, String)> {
    let listener = UnixListener::bind(at(&options.dir))?;
    let answers = Answers::new(if options.peer == Peer::Echo { ECHO } else { options.bytes });
    Ok((Box::new(SocketServer { listener, pipe: None, options: options.clone(), answers }), String::new()))
}

impl SocketServer {
    fn meet(&mut self) -> anyhow::Result<()> {
        if self.pipe.is_none() {
            self.pipe = Some(Pipe::new(self.listener.accept()?.0, &self.options)?);
        }
        Ok(())
    }
}

impl Serves for SocketServer {
    fn take(&mut self, count: u32) -> anyhow::Result<()> {
        self.meet()?;
        let pipe = self.pipe.as_ref().context("just accepted")?;
        let (mut buffer, mut left) = (vec![0; 64 << 10], count as usize * 64);
        while left > 0 {
            let most = left.min(buffer.len());
            let part = &mut buffer[..most];
            match pipe.wait_for(|flags| recv(pipe.stream.as_raw_fd(), part, flags))? {
                0 => bail!("the client is gone"),
                more => left -= more,
            }
        }
        Ok(())
    }

    fn serve(&mut self, rounds: u32) -> anyhow::Result<()> {
        self.meet()?;
        let pipe = self.pipe.as_ref().context("just accepted")?;
        let (mut request, mut echo) = ([0; 64], [0; ECHO]);
        for _ in 0..rounds {
            let came = if self.options.peer == Peer::Echo {
                pipe.read(&mut echo)? && pipe.write(&echo).is_ok()
            } else {
                pipe.read(&mut request)? && pipe.write(self.answers.get(wanted(&request))).is_ok()
            };
            if !came {
                bail!("the client is gone");
            }
        }
        Ok(())
    }
}

struct SocketClient {
    pipe: Pipe,
    buffer: Vec<u8>,
    echoes: bool,
}

pub(crate) fn socket(options: &Serve) -> anyhow::Result<Box<dyn Asks>> {
    let pipe = Pipe::new(UnixStream::connect(at(&options.dir))?, options)?;
    let echoes = options.peer == Peer::Echo;
    Ok(Box::new(SocketClient { pipe, buffer: vec![0; if echoes { ECHO } else { options.bytes }], echoes }))
}

impl Asks for SocketClient {
    fn send(&mut self, count: u32) -> anyhow::Result<()> {
        let bytes = to_bytes(&request(0));
        (0..count).try_for_each(|_| self.pipe.write(&bytes))
    }

    #[inline]
    fn ask(&mut self, request: &Request) -> anyhow::Result<bool> {
        let bytes = to_bytes(request);
        self.pipe.write(if self.echoes { &bytes[..ECHO] } else { &bytes })?;
        if !self.pipe.read(&mut self.buffer)? {
            bail!("the server is gone");
        }
        Ok(if self.echoes { self.buffer == bytes[..ECHO] } else { are_right(&self.buffer, &self.buffer, request[0]) })
    }
}
