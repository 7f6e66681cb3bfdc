//! A client's first words, judged and answered; and the session that begins if they were good.

use super::app::ServerApp;
use super::desk::{Asked, Half, Opened, Side};
use super::error::{AcceptError, LoginError};
use super::login::{Answer, FRAME, Hello, Policy, Refused, VERSION};
use super::options::is_foreign;
use super::session::Session;
use super::terms::Terms;
use crate::message::Trust;
use crate::shm::account::{Account, Counted};
use crate::shm::view::{View, ViewError};
use crate::sys::memory::Backing;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::seqpacket::{Credentials, Packet, SeqPacket};
use crate::transport::Keeper;
use crate::transport::link::{CutProblem, LinkParts, Meeting, cut_area, view_area};
use nix::errno::Errno;
use std::io;
use std::sync::Arc;

/// Who may come in, and how far it is believed.
#[derive(Clone, Copy)]
pub(super) enum Admission {
    /// Whom the allow-list names; the kernel said who it is when it connected.
    Listed(Credentials),
    /// Whoever was given the other end of a socket; the kernel says with its first words who it is.
    Given(Trust),
}

/// A client that has been let in, and is about to hear so.
struct Guest<'a> {
    socket: SeqPacket,
    peer: Credentials,
    meeting: Meeting,
    trust: Trust,
    /// Whether it gets an arena of its own.
    apart: bool,
    hello: &'a Hello,
    view: Arc<View>,
    account: Option<(Arc<Account>, Counted)>,
    /// Who keeps the session from the start.
    keeper: Option<Arc<dyn Keeper>>,
}

impl ServerApp {
    /// Acts on a client's first frame.
    pub(super) fn log_in(
        &self,
        socket: SeqPacket,
        admission: Admission,
        frame: &[u8],
        packet: Packet,
        keeper: impl FnOnce() -> Option<Arc<dyn Keeper>>,
    ) -> Result<Session, AcceptError> {
        if packet.len == 0 {
            return Err(AcceptError::Disconnected);
        }
        if packet.truncated && packet.len <= FRAME {
            // Its descriptor found no room in this process.
            say_no(&socket, Refused::Busy, meeting(admission));
            return Err(LoginError::Busy.into());
        }
        let peer = match admission {
            Admission::Listed(peer) => peer,
            Admission::Given(_) => packet.sender.ok_or(PeerMisbehaved::Frame("no credentials"))?,
        };
        let no = |refused: Refused, hello: &Hello| -> AcceptError {
            say_no(&socket, refused, meeting(admission));
            tracing::warn!(client = hello.client, pid = peer.pid, uid = peer.uid, "refused: {refused:?}");
            refused.explain(hello, peer.uid, peer.gid, true).into()
        };
        let hello = match Hello::from_bytes(frame.get(..packet.len).unwrap_or(frame))? {
            Ok(hello) => hello,
            Err(theirs) => return Err(no(Refused::Incompatible(VERSION), &Hello::of_version(theirs))),
        };
        let policy = Policy {
            server: &self.name,
            allow: &self.allow,
            serves: &self.options.serves,
            channels_max: self.options.channels_max,
            backing: self.options.backing,
        };
        let judged = match admission {
            Admission::Given(trust) => policy.judge_wishes(&hello, trust).map(|()| (trust, false)),
            Admission::Listed(_) => {
                let program = || super::session::program_of(peer.pid).ok();
                policy.judge(&hello, peer.uid, peer.gid, program).map(|allowed| (allowed.trust, allowed.apart))
            }
        };
        let (trust, apart) = judged.map_err(|refused| no(refused, &hello))?;
        let apart = apart || self.options.apart || is_foreign(peer.uid);
        // Memory with a name can be opened by its user alone.
        if hello.terms.backing == Backing::Named && is_foreign(peer.uid) {
            return Err(no(Refused::NamedNeedsTrust, &hello));
        }
        let mut fds = packet.fds.into_iter();
        let (memory, None) = (fds.next(), fds.next()) else {
            return Err(no(Refused::Memory, &hello));
        };
        let view = match hello.terms.view(memory, peer.uid, self.options.peer_arena_max(peer.uid)) {
            Ok(Some(view)) => view,
            Ok(None) => return Err(no(Refused::Memory, &hello)),
            Err(ViewError::Bad(bad)) => {
                tracing::warn!(client = hello.client, pid = peer.pid, "memory refused: {bad}");
                return Err(no(Refused::Memory, &hello));
            }
            Err(error) => {
                no(Refused::Busy, &hello);
                return Err(error.into());
            }
        };
        let account = match self.account(peer.uid) {
            None => None,
            Some(account) => match account.session() {
                Some(counted) => Some((account, counted)),
                None => return Err(no(Refused::TooManySessions, &hello)),
            },
        };
        let meeting = meeting(admission);
        let keeper = keeper();
        self.let_in(Guest { socket, peer, meeting, trust, apart, hello: &hello, view, account, keeper })
    }

    fn let_in(&self, guest: Guest<'_>) -> Result<Session, AcceptError> {
        let begun = self.prepare(&guest);
        let (arena, opened, welcome) = match begun {
            Ok(prepared) => prepared,
            // Whoever asked for what cannot be is cut off without a word.
            Err(broken @ AcceptError::PeerMisbehaved(_)) => return Err(broken),
            Err(error) => {
                // The client has done nothing wrong: it is to know that it may come again.
                let refused = match error {
                    AcceptError::Refused(LoginError::TooManyChannels) => Refused::TooManyChannels,
                    _ => Refused::Busy,
                };
                say_no(&guest.socket, refused, guest.meeting);
                return Err(error);
            }
        };
        let Guest { socket, peer, meeting, trust, hello, view, account, keeper, .. } = guest;
        let memory = arena.read_only_fd()?;
        let passed = memory.as_slice();
        let said = match meeting {
            Meeting::ByName => socket.send(&welcome, passed),
            Meeting::Given => socket.send_as_oneself(&welcome, passed),
        };
        match said {
            Ok(()) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(AcceptError::Disconnected),
            Err(errno) => {
                say_no(&socket, Refused::Busy, meeting);
                return Err(io::Error::from(errno).into());
            }
        }
        let fence = Terms::of(&arena, self.options.backing).fence(hello.terms);
        let peer_name = hello.client.clone();
        tracing::info!(app = self.name, client = peer_name, pid = peer.pid, uid = peer.uid, "session");
        let (quota, memory_max) = (self.options.loan_quota, self.options.peer_arena_max(peer.uid));
        let parts = LinkParts { socket, peer_name, peer, meeting, arena, quota, memory_max, account, fence };
        Ok(Session::begin(Side::Server, parts, view, &self.options, trust, opened, keeper)?)
    }

    /// Everything that can fail before the client hears that it is in.
    fn prepare(&self, guest: &Guest<'_>) -> Result<Prepared, AcceptError> {
        let Guest { apart, hello, view, account, .. } = guest;
        let options = &self.options;
        let account = account.as_ref().map(|(account, _)| account);
        let arena = self.arena(*apart)?;
        let (mut opened, mut areas, mut opens) = (Opened::default(), Vec::new(), Vec::new());
        for (number, (spec, at)) in Side::Client.login_numbers().zip(&hello.channels) {
            let theirs = view_area(view, *at)?;
            let (own, at) = cut_area(&arena, options.slots, account)?;
            areas.push(at);
            opened.incoming.push(Half { number, spec: spec.clone(), own, peer: theirs });
        }
        for (number, spec) in Side::Server.login_numbers().zip(&options.opens) {
            let (own, at) = cut_area(&arena, options.slots, account)?;
            opens.push((spec.clone(), at));
            opened.asked.push((Asked { number, spec: spec.clone(), own }, None));
        }
        // Here, where it can fail.
        arena.read_only_fd()?;
        let terms = Terms::of(&arena, options.backing);
        let welcome = Answer::Welcome { terms, areas, opens }.to_bytes();
        Ok((arena, opened, welcome))
    }
}

type Prepared = (crate::shm::arena::Arena, Opened, [u8; FRAME]);

fn meeting(admission: Admission) -> Meeting {
    match admission {
        Admission::Listed(_) => Meeting::ByName,
        Admission::Given(_) => Meeting::Given,
    }
}

/// Tells a client why not.
fn say_no(socket: &SeqPacket, refused: Refused, meeting: Meeting) {
    let frame = Answer::Refused(refused).to_bytes();
    let _ = match meeting {
        Meeting::ByName => socket.send(&frame, &[]),
        Meeting::Given => socket.send_as_oneself(&frame, &[]),
    };
}

/// Lets a client go that had its turn and said nothing, or has no place to wait in.
pub(super) fn turn_away(socket: &SeqPacket) {
    say_no(socket, Refused::Busy, Meeting::ByName);
}

impl From<CutProblem> for AcceptError {
    fn from(problem: CutProblem) -> Self {
        match problem {
            CutProblem::Alloc(error) => error.into(),
            CutProblem::TooMany => LoginError::TooManyChannels.into(),
        }
    }
}
