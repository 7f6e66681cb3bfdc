//! What the two processes of a session share apart from its channels: the socket, the two arenas, the loans, how it
//! ended. [`Link`] is what users of the session hold; [`Core`] is what the watcher serves, and may outlive them.

mod carry;
mod channels;
mod closing;
mod hold;
mod keeping;
mod outgoing;
mod passing;
mod stage;

pub(crate) use channels::{CutProblem, cut_area, view_area};
pub(crate) use hold::Link;
pub(crate) use keeping::Keeper;

use super::carriage;
use super::control::{AreaAt, Control, FRAME};
use super::ended::{Ended, Farewell};
use super::watch;
use crate::shm::account::{Account, Counted};
use crate::shm::arena::Arena;
use crate::shm::handle::Handle;
use crate::shm::loans::{LoanQuota, Loans};
use crate::shm::mirror::Mirror;
use crate::shm::view::View;
use crate::sys::barrier::Fence;
use crate::sys::fork;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::seqpacket::{Credentials, Packet, SeqPacket};
use crate::sys::words::OwnWords;
use carry::Copied;
use channels::Entry;
use keeping::Keeping;
use nix::errno::Errno;
use outgoing::Outgoing;
use parking_lot::Mutex;
use passing::Passing;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, Weak};

/// What log-in leaves behind: all that a link is made of.
pub(crate) struct LinkParts {
    pub(crate) socket: SeqPacket,
    pub(crate) peer_name: String,
    pub(crate) peer: Credentials,
    pub(crate) meeting: Meeting,
    pub(crate) arena: Arena,
    pub(crate) quota: LoanQuota,
    /// The most bytes of a piece of the peer's memory that are mapped.
    pub(crate) memory_max: u64,
    /// Of the peer's user, if that has a quota; and this session's place in it.
    pub(crate) account: Option<(Arc<Account>, Counted)>,
    pub(crate) fence: Fence,
}

/// How the two came to have a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meeting {
    /// One connected to where the other listened: the socket itself knows who they are.
    ByName,
    /// Somebody made a pair of sockets and gave each one: the socket knows only who made it.
    Given,
}

/// What the floor above does with frames about channels.
pub(crate) trait Clerk: Send + Sync {
    /// A frame that is not the link's own business.
    fn on_control(&self, core: &Core, control: Control) -> Result<(), PeerMisbehaved>;

    /// The session ended: nothing more will come.
    fn on_end(&self);

    /// This side has no users any more: whatever reads the peer's memory has to go.
    fn on_unused(&self);
}

/// See the module's own words.
pub(crate) struct Core {
    parts: LinkParts,
    /// The peer's arena, for as long as there are users.
    view: Weak<View>,
    clerk: Box<dyn Clerk>,
    /// What the watcher knows it by.
    token: u64,
    fork: u32,
    ended: OnceLock<Ended>,
    channels: Mutex<HashMap<u32, Entry>>,
    loans: Loans,
    outgoing: Mutex<Outgoing>,
    /// Owed for channels that are gone.
    orphans: Mutex<Vec<Handle>>,
    /// Numbers of channels that owe something, each once.
    owing: Mutex<Vec<u32>>,
    passing: Passing,
    armed: AtomicBool,
    keeping: Mutex<Keeping>,
    /// Whether a keeper other than the watcher has it: read without the lock.
    kept: AtomicBool,
    /// Held by whoever reads the socket, so that frames are acted on in order.
    reading: Mutex<()>,
    /// Where nothing is shared: what stands in for the peer's arena, for as long as there are users.
    mirror: Option<Weak<Mirror>>,
    /// Then, channels by where the copies of the other side's areas lie.
    copied: Mutex<HashMap<usize, Copied>>,
}

const FRAMES_PER_TURN: usize = 64;

impl Core {
    /// Receives what has come and acts on it. False at the end of the socket.
    pub(crate) fn on_readable(&self) -> bool {
        // Whoever is reading already sees what is there; the socket stays readable for what comes after that.
        let Some(_reading) = self.reading.try_lock() else { return true };
        // One more byte than a frame, so that a longer one shows.
        let (mut frame, mut packet) = ([0; FRAME + 1], Vec::new());
        let buffer = if self.mirror.is_some() {
            packet.resize(carriage::PACKET + 1, 0);
            &mut packet[..]
        } else {
            &mut frame[..]
        };
        // No more than a few at a time: other sessions have their turn too.
        for _ in 0..FRAMES_PER_TURN {
            let packet = match self.parts.socket.recv(buffer) {
                Ok(None) | Err(Errno::ENOMEM | Errno::ENOBUFS) => return true,
                Ok(Some(packet)) => packet,
                Err(errno) => {
                    tracing::warn!(peer = self.parts.peer_name, "session socket failed: {errno}");
                    self.end(Ended::PeerDied);
                    self.loans.reclaim();
                    return false;
                }
            };
            if packet.len == 0 {
                // Orderly or not: whoever is gone reads no more.
                self.end(Ended::PeerDied);
                self.outgoing.lock().discard_descriptors();
                let lost = self.loans.reclaim();
                tracing::debug!(peer = self.parts.peer_name, lost, "session socket at its end");
                return false;
            }
            if let Err(broken) = self.on_packet(buffer, packet) {
                self.misbehaved(broken);
            }
        }
        true
    }

    fn on_packet(&self, buffer: &[u8], packet: Packet) -> Result<(), PeerMisbehaved> {
        let Packet { len, fds, truncated, .. } = packet;
        let whole = buffer.get(..len).and_then(|frame| frame.try_into().ok());
        let control = whole.ok_or(PeerMisbehaved::Frame("wrong length")).and_then(Control::from_bytes);
        if let Ok(Control::Descriptors(parcel)) = control {
            return self.passed_here(parcel, fds, truncated);
        }
        if !fds.is_empty() || (truncated && len == FRAME) {
            return Err(PeerMisbehaved::UnexpectedDescriptor);
        }
        if let (Some(mirror), Some(packet)) = (&self.mirror, buffer.get(..len).filter(|it| carriage::is_packet(it))) {
            // Whose users are gone takes nothing in.
            return mirror.upgrade().map_or(Ok(()), |mirror| self.carried_here(&mirror, packet));
        }
        match control? {
            Control::Returns { look_at, handles } => {
                handles.into_iter().try_for_each(|handle| self.loans.give_back(handle))?;
                // More lies in a ring that this side's application may not be looking at. A channel that has closed
                // meanwhile was emptied then.
                if let Some(port) = self.port_of(look_at) {
                    port.collect();
                }
                // What fell free may be given back to the system once nothing happens any more.
                self.arm();
                Ok(())
            }
            Control::ChannelClosed { number } => self.closed_there(number),
            Control::ChannelLeft { number } => self.left_there(number),
            Control::Doorbell { number, knock } => {
                self.rung(number, knock);
                Ok(())
            }
            Control::Finished { number } => self.finished_there(number),
            Control::Cancel { number, id } => self.cancelled_there(number, id),
            // Of a channel that is gone meanwhile, which does not matter.
            Control::UnexpectedReplies { number, count } => {
                let _ = self.tell(number, |news| news.unexpected(count));
                Ok(())
            }
            Control::DescriptorsTaken { total } => self.taken_there(total),
            Control::Staged { number, stage } => self.staged_there(number, stage),
            Control::Goodbye(farewell) => {
                self.end(match farewell {
                    Farewell::Closed => Ended::PeerClosed,
                    Farewell::PeerMisbehaved => Ended::Accused,
                });
                Ok(())
            }
            Control::OpenChannel(wish) => self.clerk.on_control(self, Control::OpenChannel(self.localised(wish)?)),
            other => self.clerk.on_control(self, other),
        }
    }

    /// The first cause stands. Wakes everyone who waits for anything of this session.
    pub(crate) fn end(&self, cause: Ended) {
        if self.ended.set(cause).is_err() {
            return;
        }
        tracing::info!(peer = self.parts.peer_name, pid = self.parts.peer.pid, "session ended: {cause}");
        let over = leaves_nothing(cause);
        self.ports().iter().for_each(|port| port.end(over));
        self.wake_passers();
        if over {
            self.discard_arrivals();
        }
        self.clerk.on_end();
        if let Some(keeper) = self.keeper() {
            keeper.on_end();
        }
    }

    /// Cuts the peer off for breaking a rule, and tells it so.
    pub(crate) fn misbehaved(&self, broken: PeerMisbehaved) {
        if self.ended().is_none() {
            tracing::warn!(peer = self.parts.peer_name, pid = self.parts.peer.pid, "cut off: {broken}");
        }
        self.end(Ended::PeerMisbehaved(broken));
        self.say_goodbye();
        self.parts.socket.shut_down();
    }

    /// Ends the session from this side. What was sent may still be received by the peer.
    pub(crate) fn close(&self) {
        if self.is_forked() {
            return;
        }
        self.end(Ended::Closed);
        self.say_goodbye();
    }

    /// Says once why it ended: by the cause that stands, whoever is first to say so. Whoever comes second finds it sent.
    fn say_goodbye(&self) {
        self.send(&Control::Goodbye(match self.ended() {
            Some(Ended::PeerMisbehaved(_)) => Farewell::PeerMisbehaved,
            _ => Farewell::Closed,
        }));
    }

    // What channels leave behind.

    pub(super) fn port_gone(&self, owed: Vec<Handle>) {
        if !owed.is_empty() && !self.is_forked() {
            self.orphans.lock().extend(owed);
            self.arm();
        }
    }

    // What everyone may ask.

    pub(super) fn token(&self) -> u64 {
        self.token
    }

    pub(crate) fn ended(&self) -> Option<Ended> {
        if self.is_forked() { Some(Ended::ForkedProcess) } else { self.ended.get().copied() }
    }

    /// Whether this process is a fork of the one that has the session.
    #[inline]
    pub(crate) fn is_forked(&self) -> bool {
        self.fork != fork::generation()
    }

    pub(crate) fn peer_name(&self) -> &str {
        &self.parts.peer_name
    }

    pub(crate) fn peer(&self) -> Credentials {
        self.parts.peer
    }

    pub(crate) fn meeting(&self) -> Meeting {
        self.parts.meeting
    }

    pub(crate) fn arena(&self) -> &Arena {
        &self.parts.arena
    }

    /// The peer's arena; `None` once nobody here reads it any more.
    pub(crate) fn view(&self) -> Option<Arc<View>> {
        self.view.upgrade()
    }

    /// Cuts the memory for this side's half of another channel.
    pub(crate) fn cut_area(&self, slots: u32) -> Result<(Arc<OwnWords>, AreaAt), CutProblem> {
        cut_area(self.arena(), slots, self.parts.account.as_ref().map(|(account, _)| account))
    }

    pub(crate) fn loans(&self) -> &Loans {
        &self.loans
    }

    pub(crate) fn fence(&self) -> Fence {
        self.parts.fence
    }

    /// The most bytes of a piece of the peer's memory that are mapped.
    pub(crate) fn memory_max(&self) -> u64 {
        self.parts.memory_max
    }
}

impl AsFd for Core {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.parts.socket.as_fd()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if !self.is_forked() && self.keeping.get_mut().keeper.is_none() {
            watch::forget(self.token);
        }
    }
}

/// Whether not even what was sent before is to be received.
fn leaves_nothing(cause: Ended) -> bool {
    matches!(cause, Ended::PeerMisbehaved(_) | Ended::Closed)
}
