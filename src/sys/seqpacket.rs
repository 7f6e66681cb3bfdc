//! A Unix socket that keeps message boundaries: frames, descriptors, and the kernel's word for who is at the other end.
//! Never blocks once connected; whoever has to wait polls.

use super::fork::{self, NoForkFd};
use super::uninterrupted;
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, UnixCredentials, accept4,
    bind, connect, getpeername, getsockopt, listen, sendmsg, setsockopt, shutdown, socket, socketpair, sockopt,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::sys::time::TimeVal;
use nix::unistd::{Gid, Uid};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// Who the kernel says is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id when it connected or listened; may be reused after its death.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

impl Credentials {
    /// Those of this process.
    pub(crate) fn own() -> Self {
        Self { pid: nix::unistd::getpid().as_raw(), uid: Uid::effective().as_raw(), gid: Gid::effective().as_raw() }
    }
}

/// The user this process acts as.
pub(crate) fn own_uid() -> u32 {
    Uid::effective().as_raw()
}

/// A frame as it arrived.
pub(crate) struct Packet {
    /// How many bytes it had; more than the buffer means it was cut.
    pub(crate) len: usize,
    pub(crate) fds: Vec<NoForkFd>,
    /// Who sent it, if that was [asked for](SeqPacket::want_credentials) and can be told.
    pub(crate) sender: Option<Credentials>,
    /// Descriptors or bytes were lost on the way in.
    pub(crate) truncated: bool,
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener(NoForkFd);

impl Listener {
    /// `others`: users other than this process's may connect too.
    pub(crate) fn bind(path: &Path, others: bool) -> nix::Result<Self> {
        let fd = new_socket(SockFlag::SOCK_NONBLOCK)?;
        bind(fd.as_fd().as_raw_fd(), &UnixAddr::new(path)?)?;
        // Whatever the umask made of it; nobody can connect before `listen`.
        let mode = Mode::from_bits_truncate(if others { 0o666 } else { 0o600 });
        fchmodat(AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink)?;
        listen(&fd, Backlog::new(128)?)?;
        Ok(Self(fd))
    }

    /// The next connection, `None` while there is none.
    pub(crate) fn accept(&self) -> nix::Result<Option<SeqPacket>> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let mut making = fork::making();
        match accept4(self.as_fd().as_raw_fd(), flags) {
            // SAFETY: accept4 made the descriptor for us just now.
            Ok(raw) => Ok(Some(SeqPacket(making.keep(unsafe { OwnedFd::from_raw_fd(raw) })))),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct SeqPacket(NoForkFd);

impl SeqPacket {
    /// Connects, waiting while the listener's queue is full, at most `patience`.
    pub(crate) fn connect(path: &Path, patience: Duration) -> nix::Result<Self> {
        let fd = new_socket(SockFlag::SOCK_NONBLOCK)?;
        let address = UnixAddr::new(path)?;
        let mut connected = connect(fd.as_fd().as_raw_fd(), &address);
        if connected == Err(Errno::EAGAIN) {
            // Nothing tells when there is room again, so this call has to block. None after it does: each says so itself.
            nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))?;
            let micros = i64::try_from(patience.as_micros()).unwrap_or(i64::MAX).max(1);
            setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(micros / 1_000_000, micros % 1_000_000))?;
            connected = Err(Errno::EINTR);
        }
        while connected == Err(Errno::EINTR) {
            connected = connect(fd.as_fd().as_raw_fd(), &address);
        }
        connected.map(|()| Self(fd))
    }

    /// Takes a socket that somebody else has connected; EPROTOTYPE or ENOTCONN if it is not such a one.
    pub(crate) fn connected(fd: OwnedFd) -> nix::Result<Self> {
        if getsockopt(&fd, sockopt::SockType)? != SockType::SeqPacket {
            return Err(Errno::EPROTOTYPE);
        }
        getpeername::<UnixAddr>(fd.as_raw_fd())?;
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        Ok(Self(fork::making().keep(fd)))
    }

    /// Two ends of a connection, the second for another process.
    pub(crate) fn pair() -> nix::Result<(Self, OwnedFd)> {
        let mut making = fork::making();
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(making.keep(ours)), theirs))
    }

    /// Whether frames received are to tell who sent them. Not while sending: the kernel would give the socket a name.
    pub(crate) fn want_credentials(&self, want: bool) -> nix::Result<()> {
        setsockopt(self, sockopt::PassCred, &want)
    }

    pub(crate) fn peer(&self) -> nix::Result<Credentials> {
        let found = getsockopt(self, sockopt::PeerCredentials)?;
        Ok(Credentials { pid: found.pid(), uid: found.uid(), gid: found.gid() })
    }

    /// Sends one whole frame, or EAGAIN.
    pub(crate) fn send(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        self.send_control(frame, if raw.is_empty() { &[] } else { &rights })
    }

    /// As [`send`](Self::send), saying who sends it, which the kernel checks.
    pub(crate) fn send_as_oneself(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let Credentials { pid, uid, gid } = Credentials::own();
        let own = UnixCredentials::from(libc::ucred { pid, uid, gid });
        self.send_control(frame, &[ControlMessage::ScmRights(&raw), ControlMessage::ScmCredentials(&own)])
    }

    fn send_control(&self, frame: &[u8], control: &[ControlMessage<'_>]) -> nix::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let parts = [IoSlice::new(frame)];
        uninterrupted(|| sendmsg::<()>(self.as_fd().as_raw_fd(), &parts, control, flags, None)).map(drop)
    }

    /// Receives one frame; `None` while there is none, length 0 at the end.
    pub(crate) fn recv(&self, buffer: &mut [u8]) -> nix::Result<Option<Packet>> {
        let room = buffer.len();
        let mut control = ControlBuffer([0; CONTROL_BYTES]);
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: room };
        // SAFETY: all-zero is a valid `msghdr`: null pointers and zero lengths.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_BYTES;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC;
        let mut making = fork::making();
        let len = match uninterrupted(|| {
            // SAFETY: `header` names `buffer` and `control`, both live and writable for the lengths given.
            Errno::result(unsafe { libc::recvmsg(self.as_fd().as_raw_fd(), &raw mut header, flags) })
        }) {
            Err(Errno::EAGAIN) => return Ok(None),
            // A peer that died with frames of ours unread: the same news as the end.
            Err(Errno::ECONNRESET) => {
                return Ok(Some(Packet { len: 0, fds: Vec::new(), sender: None, truncated: false }));
            }
            other => usize::try_from(other?).unwrap_or(0),
        };
        let (fds, sender) = take_control(&header);
        let fds = fds.into_iter().map(|fd| making.keep(fd)).collect();
        let lost = header.msg_flags & libc::MSG_CTRUNC != 0;
        Ok(Some(Packet { len, fds, sender, truncated: lost || len > room }))
    }

    /// Whether there is a frame, or the end, to be received at once.
    pub(crate) fn is_readable(&self) -> bool {
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Ends this side's direction: the peer sees end-of-file once it has read what was sent.
    pub(crate) fn stop_sending(&self) {
        let _ = shutdown(self.as_fd().as_raw_fd(), Shutdown::Write);
    }

    /// Ends both directions: the peer sees end-of-file once it has read what was sent.
    pub(crate) fn shut_down(&self) {
        let _ = shutdown(self.as_fd().as_raw_fd(), Shutdown::Both);
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `fds` is readable or the deadline passes; tells which are.
pub(crate) fn poll_readable(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = fds.iter().map(|&fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    loop {
        let timeout = deadline.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now());
            // Rounded up: rounding down would spin through the last millisecond.
            let millis = left.as_micros().div_ceil(1000);
            PollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX))
        });
        match poll(&mut polled, timeout) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(0) if deadline.is_none_or(|at| Instant::now() < at) => {}
            Ok(_) => return Ok(polled.iter().map(|fd| fd.any().unwrap_or(false)).collect()),
        }
    }
}

/// Takes every descriptor the kernel installed, also when it ran out of room half-way: nix gives those up for lost,
/// and they would stay open for ever. With them comes who sent them, if the socket was told to ask.
fn take_control(header: &libc::msghdr) -> (Vec<OwnedFd>, Option<Credentials>) {
    let (mut fds, mut sender) = (Vec::new(), None);
    // SAFETY: the kernel filled in `header`, whose control buffer is live; the CMSG macros walk it within the length
    // the kernel left there.
    let mut entry = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !entry.is_null() {
        // SAFETY: a non-null entry from the macros lies whole in the control buffer.
        let found = unsafe { &*entry };
        if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN(0) is the size of the entry's head.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (found.cmsg_len as usize).saturating_sub(head) / size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: the entry's data holds `count` descriptor numbers, perhaps unaligned; each was installed for
                // this call and is owned exactly once from here.
                fds.push(unsafe {
                    let raw = libc::CMSG_DATA(entry).cast::<RawFd>().add(index).read_unaligned();
                    OwnedFd::from_raw_fd(raw)
                });
            }
        }
        if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_CREDENTIALS {
            // SAFETY: the kernel puts one `ucred` into an entry of this type, perhaps unaligned.
            let libc::ucred { pid, uid, gid } =
                unsafe { libc::CMSG_DATA(entry).cast::<libc::ucred>().read_unaligned() };
            // 0 stands for a sender who did not say, or who lives where this process cannot see it.
            sender = (pid != 0).then_some(Credentials { pid, uid, gid });
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        entry = unsafe { libc::CMSG_NXTHDR(header, entry) };
    }
    (fds, sender)
}

/// Room for as many descriptors as the kernel passes at once, so that none is lost for want of room, and their sender.
const CONTROL_BYTES: usize = 16 + 256 * size_of::<RawFd>() + 32;

#[repr(align(8))]
struct ControlBuffer([u8; CONTROL_BYTES]);

fn new_socket(flags: SockFlag) -> nix::Result<NoForkFd> {
    let mut making = fork::making();
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags | SockFlag::SOCK_CLOEXEC, None)?;
    Ok(making.keep(fd))
}
