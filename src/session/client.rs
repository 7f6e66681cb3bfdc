//! The client's way into a session.

use super::app::{ClientApp, ServerApp};
use super::desk::{Asked, Manners, Opened, Side, opened_in_login};
use super::error::{ConnectError, LoginError, RunDirError};
use super::login::{Answer, CHANNELS_MAX, FRAME, Hello, VERSION};
use super::options::is_foreign;
use super::rundir::RunDir;
use super::session::Session;
use super::terms::{Terms, backing_suits};
use crate::message::FIRST_WORDS;
use crate::shm::arena::Arena;
use crate::shm::handle::WORD;
use crate::sys::fork::NoForkFd;
use crate::sys::memory::Backing;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::seqpacket::{Credentials, SeqPacket, poll_readable};
use crate::sys::words::OwnWords;
use crate::transport::control::AreaAt;
use crate::transport::link::{CutProblem, LinkParts, Meeting, cut_area, view_area};
use crate::wait::{self, Wait};
use nix::errno::Errno;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

/// A client's first words, and what they are about.
pub(super) struct Ready {
    hello: Hello,
    words: [u8; FRAME],
    arena: Arena,
    halves: Vec<(Arc<OwnWords>, AreaAt)>,
}

impl ClientApp {
    /// Connects to a server app and logs in, within the app's [`timeout`](Self::timeout).
    ///
    /// # Errors
    /// [`ConnectError`]; nothing is left of the attempt then.
    pub fn connect(&self, server: &ServerApp) -> Result<Session, ConnectError> {
        let deadline = Instant::now().checked_add(self.timeout);
        self.check_names(server)?;
        let dir = self.find(server)?;
        // All that can be done before the server is woken: it finds the first words together with their speaker.
        let ready = self.get_ready(server)?;
        let socket = self.knock(server, &dir)?;
        let peer = socket.peer().map_err(gone)?;
        expect(server, peer)?;
        self.log_in(ready, socket, server, Some(peer), deadline)
    }

    /// Makes what the first words are about: this side's memory, and its halves of the channels it opens.
    pub(super) fn get_ready(&self, server: &ServerApp) -> Result<Ready, ConnectError> {
        let foreign = is_foreign(server.expected_uid());
        // Before there is any memory: the server judges the same of this side.
        let suits = backing_suits(self.options.backing, self.options.backing, self.trust);
        if suits.is_err() || (foreign && self.options.backing == Backing::Named) {
            return Err(LoginError::NamedNeedsTrust.into());
        }
        let arena = self.session_arena(foreign || self.options.apart)?;
        let halves = self.cut_areas(&arena)?;
        // What this thread's first message takes as well: later the server would wait for it.
        drop(arena.alloc((FIRST_WORDS as usize).saturating_mul(WORD), WORD));
        let hello = self.hello(server, &arena, &halves);
        arena.read_only_fd()?;
        Ok(Ready { words: hello.to_bytes(), hello, arena, halves })
    }

    /// Logs in over a socket, to a server that is known already or says who it is with its answer.
    pub(super) fn log_in(
        &self,
        ready: Ready,
        socket: SeqPacket,
        server: &ServerApp,
        known: Option<Credentials>,
        deadline: Option<Instant>,
    ) -> Result<Session, ConnectError> {
        let Ready { hello, words, arena, halves } = ready;
        let memory = arena.read_only_fd()?;
        let passed = memory.as_slice();
        match known {
            Some(_) => socket.send(&words, passed),
            None => socket.send_as_oneself(&words, passed).and_then(|()| socket.want_credentials(true)),
        }
        .map_err(gone)?;
        let (answer, fd, sender) = await_answer(&socket, halves.len(), deadline, self.options.wait)?;
        let (peer, meeting) = match known {
            Some(peer) => (peer, Meeting::ByName),
            None => {
                socket.want_credentials(false).map_err(gone)?;
                let peer = sender.ok_or(PeerMisbehaved::Frame("no credentials"))?;
                expect(server, peer)?;
                (peer, Meeting::Given)
            }
        };
        let (terms, theirs, opens) = match answer {
            Answer::Welcome { terms, areas, opens } => (terms, areas, opens),
            Answer::Refused(refused) => {
                let own = Credentials::own();
                return Err(refused.explain(&hello, own.uid, own.gid, false).into());
            }
        };
        // A server would have refused.
        backing_suits(self.options.backing, terms.backing, self.trust)
            .map_err(|_| PeerMisbehaved::Frame("welcome with other memory"))?;
        let memory_max = self.options.peer_arena_max(peer.uid);
        let other = if fd.is_none() { "welcome without memory" } else { "welcome with memory" };
        let view = terms.view(fd, peer.uid, memory_max)?.ok_or(PeerMisbehaved::Frame(other))?;
        let mut opened = Opened::default();
        for ((number, (own, _)), (at, (spec, _))) in
            Side::Client.login_numbers().zip(halves).zip(theirs.into_iter().zip(hello.channels))
        {
            view_area(&view, at)?;
            opened.asked.push((Asked { number, spec, own }, Some(at)));
        }
        let manners = Manners::of(&self.options);
        for (number, (spec, at)) in Side::Server.login_numbers().zip(opens) {
            opened_in_login(&mut opened, &manners, &arena, &view, (number, spec, at))?;
        }
        let parts = LinkParts {
            socket,
            peer_name: server.name.clone(),
            peer,
            meeting,
            arena,
            quota: self.options.loan_quota,
            memory_max,
            account: None,
            fence: hello.terms.fence(terms),
        };
        Ok(Session::begin(Side::Client, parts, view, &self.options, self.trust, opened, None)?)
    }

    pub(super) fn check_names(&self, server: &ServerApp) -> Result<(), ConnectError> {
        let own = self.options.bad_name(&[&self.name]).map(str::to_owned);
        if let Some(bad) = own.or_else(|| server.bad_name()) {
            return Err(ConnectError::BadName(bad));
        }
        if self.options.opens.len() > CHANNELS_MAX {
            return Err(LoginError::TooManyChannels.into());
        }
        Ok(())
    }

    fn find(&self, server: &ServerApp) -> Result<RunDir, ConnectError> {
        RunDir::find(server.run_dir.as_deref(), server.expected_uid()).map_err(|error| match error {
            RunDirError::Io { path, source } if source.kind() == io::ErrorKind::NotFound => {
                ConnectError::NotFound { path: path.join(server.socket_name()) }
            }
            other => other.into(),
        })
    }

    fn knock(&self, server: &ServerApp, dir: &RunDir) -> Result<SeqPacket, ConnectError> {
        let name = server.socket_name();
        match SeqPacket::connect(&dir.reached(&name), self.timeout) {
            // A socket that nobody listens on any more is no server either.
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => Err(ConnectError::NotFound { path: dir.shown(&name) }),
            Err(Errno::EAGAIN) => Err(ConnectError::TimedOut),
            Err(errno) => Err(ConnectError::Io(errno.into())),
            Ok(socket) => Ok(socket),
        }
    }

    fn cut_areas(&self, arena: &Arena) -> Result<Vec<(Arc<OwnWords>, AreaAt)>, ConnectError> {
        let areas = self.options.opens.iter().map(|_| cut_area(arena, self.options.slots, None));
        Ok(areas.collect::<Result<_, _>>()?)
    }

    fn hello(&self, server: &ServerApp, arena: &Arena, halves: &[(Arc<OwnWords>, AreaAt)]) -> Hello {
        let areas = halves.iter().map(|(_, at)| *at);
        Hello {
            version: VERSION,
            client: self.name.clone(),
            server: server.name.clone(),
            terms: Terms::of(arena, self.options.backing),
            channels: self.options.opens.iter().cloned().zip(areas).collect(),
        }
    }
}

/// Waits for the server's one frame; with a welcome comes its memory.
fn await_answer(
    socket: &SeqPacket,
    channels: usize,
    deadline: Option<Instant>,
    strategy: Wait,
) -> Result<(Answer, Option<NoForkFd>, Option<Credentials>), ConnectError> {
    // One more byte than a frame, so that a longer one shows.
    let mut frame = [0; FRAME + 1];
    // To sleep and be woken takes as long as a server takes that is there.
    let mut ready = wait::look_out(strategy, || socket.is_readable());
    loop {
        if !ready && !poll_readable(&[socket.as_fd()], deadline)?.contains(&true) {
            return Err(ConnectError::TimedOut);
        }
        ready = false;
        let Some(packet) = socket.recv(&mut frame).map_err(gone)? else { continue };
        if packet.len == 0 {
            return Err(ConnectError::Disconnected);
        }
        if packet.truncated && packet.len <= FRAME {
            // Its descriptor found no room in this process.
            return Err(ConnectError::Io(io::ErrorKind::OutOfMemory.into()));
        }
        let answer = Answer::from_bytes(frame.get(..packet.len).unwrap_or(&frame), channels)?;
        if packet.fds.len() > 1 {
            return Err(PeerMisbehaved::UnexpectedDescriptor.into());
        }
        return Ok((answer, packet.fds.into_iter().next(), packet.sender));
    }
}

/// The server must run as the user it is to run as.
fn expect(server: &ServerApp, peer: Credentials) -> Result<(), ConnectError> {
    let expected = server.expected_uid();
    if peer.uid == expected { Ok(()) } else { Err(ConnectError::WrongServer { found: peer.uid, expected }) }
}

impl From<CutProblem> for ConnectError {
    fn from(problem: CutProblem) -> Self {
        match problem {
            CutProblem::Alloc(error) => error.into(),
            CutProblem::TooMany => LoginError::TooManyChannels.into(),
        }
    }
}

/// What a socket error means while logging in.
fn gone(errno: Errno) -> ConnectError {
    match errno {
        Errno::EPIPE | Errno::ECONNRESET => ConnectError::Disconnected,
        Errno::EAGAIN => ConnectError::TimedOut,
        other => ConnectError::Io(other.into()),
    }
}
