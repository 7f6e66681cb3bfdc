//! What the two processes of a session share apart from its channels: the socket, the two arenas, the loans, how it
//! ended. [`Link`] is what users of the session hold; [`Core`] is what the watcher serves, and may outlive them.

mod carry;
mod channels;
mod hold;

pub(crate) use channels::{cut_area, view_area};
pub(crate) use hold::Link;

use super::carriage::{self, Outbound};
use super::control::{Control, FRAME, RETURNS_PER_FRAME};
use super::ended::{Ended, Farewell};
use super::port::Port;
use super::watch;
use crate::shm::arena::Arena;
use crate::shm::handle::Handle;
use crate::shm::loans::{LoanQuota, Loans};
use crate::shm::mirror::Mirror;
use crate::shm::view::View;
use crate::sys::barrier::Fence;
use crate::sys::fork;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::seqpacket::{Credentials, SeqPacket};
use channels::Entry;
use nix::errno::Errno;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// What log-in leaves behind: all that a link is made of.
pub(crate) struct LinkParts {
    pub(crate) socket: SeqPacket,
    pub(crate) peer_name: String,
    pub(crate) peer: Credentials,
    pub(crate) arena: Arena,
    pub(crate) quota: LoanQuota,
    pub(crate) fence: Fence,
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
    armed: AtomicBool,
    /// Where nothing is shared: what stands in for the peer's arena, for as long as there are users.
    mirror: Option<Weak<Mirror>>,
}

/// What is on its way to the socket.
#[derive(Default)]
struct Outgoing {
    frames: VecDeque<[u8; FRAME]>,
    /// Only returns may follow.
    said_goodbye: bool,
    /// Once all is sent, the peer is to see the end of the socket.
    parting: bool,
    /// What is carried where nothing is shared, after the frames.
    outbound: Outbound,
    /// Follows all of it.
    goodbye: Option<[u8; FRAME]>,
    /// The watcher waits until the socket takes more.
    blocked: bool,
    /// Found while carrying.
    broken: Option<PeerMisbehaved>,
}

const FRAMES_PER_TURN: usize = 64;

/// Frames that wait for a peer who does not read.
const OUTGOING_MAX: usize = 1024;

impl Core {
    /// Receives what has come and acts on it. False at the end of the socket.
    pub(super) fn on_readable(&self) -> bool {
        // One more byte than a frame, so that a longer one shows.
        let (mut frame, mut packet) = ([0; FRAME + 1], Vec::new());
        let frame = if self.mirror.is_some() {
            packet.resize(carriage::PACKET + 1, 0);
            &mut packet[..]
        } else {
            &mut frame[..]
        };
        // No more than a few at a time: other sessions have their turn too.
        for _ in 0..FRAMES_PER_TURN {
            let packet = match self.parts.socket.recv(frame) {
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
                let lost = self.loans.reclaim();
                tracing::debug!(peer = self.parts.peer_name, lost, "session socket at its end");
                return false;
            }
            if let Err(broken) = self.on_packet(frame, packet.len, packet.truncated, packet.fds.len()) {
                self.misbehaved(broken);
            }
        }
        true
    }

    fn on_packet(&self, buffer: &[u8], len: usize, truncated: bool, fds: usize) -> Result<(), PeerMisbehaved> {
        if fds > 0 || (truncated && len == FRAME) {
            return Err(PeerMisbehaved::UnexpectedDescriptor);
        }
        if let (Some(mirror), Some(packet)) = (&self.mirror, buffer.get(..len).filter(|it| carriage::is_packet(it))) {
            // Whose users are gone takes nothing in.
            return mirror.upgrade().map_or(Ok(()), |mirror| carriage::take_in(&mirror, packet));
        }
        let whole = buffer.get(..len).and_then(|frame| frame.try_into().ok());
        match Control::from_bytes(whole.ok_or(PeerMisbehaved::Frame("wrong length"))?)? {
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
            Control::Finished { number } => self.finished_there(number),
            Control::Cancel { number, id } => self.cancelled_there(number, id),
            // Of a channel that is gone meanwhile, which does not matter.
            Control::UnexpectedReplies { number, count } => {
                let _ = self.tell(number, |news| news.unexpected(count));
                Ok(())
            }
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
        self.clerk.on_end();
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

    /// Sends a frame, or keeps it until the socket takes it.
    pub(crate) fn send(&self, control: &Control) {
        let mut outgoing = self.outgoing.lock();
        if outgoing.said_goodbye && !matches!(control, Control::Returns { .. }) {
            return;
        }
        outgoing.said_goodbye |= matches!(control, Control::Goodbye(_));
        let carried = self.mirror.is_some() && outgoing.follow(control, &self.loans);
        if !carried {
            outgoing.frames.push_back(control.to_bytes());
        }
        let waiting = outgoing.frames.len();
        let flushed = self.flush(&mut outgoing);
        drop(outgoing);
        if !flushed && waiting > OUTGOING_MAX {
            self.misbehaved(PeerMisbehaved::Stalled(waiting));
        } else if !flushed {
            self.later();
        }
    }

    /// The users of this side are gone: once all is sent, the peer sees the end of the socket.
    pub(super) fn stop_sending(&self) {
        let mut outgoing = self.outgoing.lock();
        outgoing.parting = true;
        let flushed = self.flush(&mut outgoing);
        drop(outgoing);
        if !flushed {
            self.later();
        }
    }

    fn flush(&self, outgoing: &mut Outgoing) -> bool {
        let frames = &mut outgoing.frames;
        while let Some(frame) = frames.front() {
            match self.parts.socket.send(frame, &[]) {
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return false,
                // The peer is gone, which the watcher learns from the socket itself.
                Err(_) => frames.clear(),
                Ok(()) => drop(frames.pop_front()),
            }
        }
        if let Some(mirror) = &self.mirror
            && !self.carry_out(outgoing, mirror)
        {
            return false;
        }
        if outgoing.parting {
            self.parts.socket.stop_sending();
        }
        true
    }

    /// What was just put into a channel's ring, or taken out of it, crosses the socket where nothing is shared.
    #[inline]
    pub(super) fn carry(&self, number: u32) {
        if self.mirror.is_some() {
            self.carry_on(number);
        }
    }

    // What the watcher does now and then.

    /// Has the watcher look after this link for a while. A load if it does already.
    #[inline]
    pub(crate) fn arm(&self) {
        // Partner: `disarm`. The work this is about was queued under a lock that the watcher takes after disarming.
        if !self.armed.load(Ordering::Relaxed) && !self.armed.swap(true, Ordering::AcqRel) {
            watch::arm(self.token);
        }
    }

    pub(super) fn disarm(&self) {
        // Partner: `arm`.
        self.armed.store(false, Ordering::Release);
    }

    /// Sends home what has been owed for a whole tick; tells whether there is more to do. Looks only at the channels
    /// that owe something.
    pub(super) fn tick(&self) -> bool {
        if self.mirror.is_some() {
            self.settle();
        }
        let mut home = std::mem::take(&mut *self.orphans.lock());
        let numbers = std::mem::take(&mut *self.owing.lock());
        let (mut in_slots, mut owing) = (Vec::new(), false);
        for port in numbers.into_iter().filter_map(|number| self.port_of(number)) {
            owing |= port.tick(&mut home);
            if let Some(count) = port.take_unexpected() {
                self.send(&Control::UnexpectedReplies { number: port.number(), count });
            }
            if port.take_returned_in_slots() {
                in_slots.push(port);
            }
        }
        owing | !self.send_home(home, &in_slots)
    }

    /// Sends handles home, and names the channels whose rings have some, as far as the socket takes it; the rest, of
    /// which the peer's quota allows many, waits here and not in the queue. False if there is a rest.
    fn send_home(&self, mut home: Vec<Handle>, in_slots: &[Arc<Port>]) -> bool {
        if let Some(mirror) = self.mirror.as_ref().map(Weak::upgrade) {
            // What its owner calls them. Whose users are gone returns nothing one by one.
            home = home.into_iter().filter_map(|handle| mirror.as_ref()?.give_up(handle)).collect();
        }
        let mut untold = in_slots.iter();
        let mut outgoing = self.outgoing.lock();
        while self.flush(&mut outgoing) && !(home.is_empty() && untold.len() == 0) {
            let handles = home.split_off(home.len().saturating_sub(RETURNS_PER_FRAME));
            let look_at = untold.next().map_or(0, |port| port.number());
            outgoing.frames.push_back(Control::Returns { look_at, handles }.to_bytes());
        }
        let all = outgoing.frames.is_empty() && home.is_empty() && untold.len() == 0;
        drop(outgoing);
        self.orphans.lock().extend(home);
        untold.for_each(|port| port.returned_in_slots());
        all
    }

    /// A channel owes something: the next tick is to look at it.
    #[cold]
    pub(super) fn owes(&self, number: u32) {
        self.owing.lock().push(number);
        self.arm();
    }

    /// A handle that belongs to no channel goes home with the next frames.
    pub(crate) fn owe(&self, handle: Handle) {
        self.orphans.lock().push(handle);
        self.arm();
    }

    // What channels leave behind.

    pub(super) fn port_gone(&self, owed: VecDeque<Handle>) {
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

    pub(crate) fn arena(&self) -> &Arena {
        &self.parts.arena
    }

    /// The peer's arena; `None` once nobody here reads it any more.
    pub(crate) fn view(&self) -> Option<Arc<View>> {
        self.view.upgrade()
    }

    pub(crate) fn loans(&self) -> &Loans {
        &self.loans
    }

    pub(super) fn fence(&self) -> Fence {
        self.parts.fence
    }
}

impl AsFd for Core {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.parts.socket.as_fd()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if !self.is_forked() {
            watch::forget(self.token);
        }
    }
}

/// Whether not even what was sent before is to be received.
fn leaves_nothing(cause: Ended) -> bool {
    matches!(cause, Ended::PeerMisbehaved(_) | Ended::Closed)
}
