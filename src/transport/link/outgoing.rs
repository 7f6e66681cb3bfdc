//! The frames of a link on their way to its socket, in order, with what goes with them.

use super::Core;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::passed::Fds;
use crate::transport::carriage::Freight;
use crate::transport::control::{Control, FRAME};
use nix::errno::Errno;
use parking_lot::MutexGuard;
use std::collections::VecDeque;
use std::os::fd::AsFd;

/// What is on its way to the socket.
#[derive(Default)]
pub(super) struct Outgoing {
    pub(super) frames: VecDeque<Outbound>,
    /// How many of them answer the peer, which can ask for more of them as fast as it likes.
    answers: usize,
    /// Only returns may follow.
    pub(super) said_goodbye: bool,
    /// Once all is sent, the peer is to see the end of the socket.
    parting: bool,
    /// What is carried where nothing is shared, after the frames.
    pub(super) freight: Freight,
    /// Follows all of it.
    pub(super) goodbye: Option<[u8; FRAME]>,
    /// The socket has no room: it will say when it has. Other refusals it takes back in silence.
    pub(super) is_full: bool,
    /// Found while carrying.
    pub(super) broken: Option<PeerMisbehaved>,
}

/// A frame that waits for the socket, and what goes with it.
pub(super) struct Outbound {
    pub(super) frame: [u8; FRAME],
    pub(super) fds: Option<Fds>,
    is_answer: bool,
}

impl From<&Control> for Outbound {
    fn from(control: &Control) -> Self {
        Self { frame: control.to_bytes(), fds: None, is_answer: control.is_answer() }
    }
}

impl Outbound {
    /// Descriptors go with it.
    pub(super) fn with(control: &Control, fds: Fds) -> Self {
        Self { fds: Some(fds), ..control.into() }
    }
}

/// Answers that wait for a peer who asks and does not read.
const ANSWERS_MAX: usize = 1024;

/// Frames that wait for a peer who does not read: it may be stopped while this side's application closes all its channels
/// and cancels all its requests.
const OUTGOING_MAX: usize = 1 << 16;

impl Outgoing {
    pub(super) fn push(&mut self, frame: Outbound) {
        self.answers = self.answers.saturating_add(usize::from(frame.is_answer));
        self.frames.push_back(frame);
    }

    /// Descriptors that wait will not be sent any more.
    pub(super) fn discard_descriptors(&mut self) {
        self.frames.retain(|outbound| outbound.fds.is_none());
    }
}

impl Core {
    /// Sends a frame, or keeps it until the socket takes it.
    pub(crate) fn send(&self, control: &Control) {
        let mut outgoing = self.outgoing.lock();
        if outgoing.said_goodbye && !matches!(control, Control::Returns { .. }) {
            return;
        }
        outgoing.said_goodbye |= matches!(control, Control::Goodbye(_));
        if self.mirror.is_some() && outgoing.follow(control, &self.loans) {
            self.send_on(outgoing);
        } else {
            self.send_frame(outgoing, control.into());
        }
    }

    /// As [`send`](Self::send), for whoever has the queue.
    pub(super) fn send_frame(&self, mut outgoing: MutexGuard<'_, Outgoing>, frame: Outbound) {
        outgoing.push(frame);
        self.send_on(outgoing);
    }

    fn send_on(&self, mut outgoing: MutexGuard<'_, Outgoing>) {
        let flushed = self.flush(&mut outgoing);
        let (waiting, answers) = (outgoing.frames.len(), outgoing.answers);
        drop(outgoing);
        if waiting > OUTGOING_MAX || answers > ANSWERS_MAX {
            self.misbehaved(PeerMisbehaved::Stalled(waiting));
        } else if !flushed {
            self.send_later();
        }
    }

    /// The users of this side are gone: once all is sent, the peer sees the end of the socket.
    pub(in crate::transport) fn stop_sending(&self) {
        let mut outgoing = self.outgoing.lock();
        outgoing.parting = true;
        let flushed = self.flush(&mut outgoing);
        drop(outgoing);
        if !flushed {
            self.send_later();
        }
    }

    pub(super) fn flush(&self, outgoing: &mut Outgoing) -> bool {
        let Outgoing { frames, answers, .. } = outgoing;
        while let Some(Outbound { frame, fds, is_answer }) = frames.front_mut() {
            let some = fds.as_ref().map(|fds| fds.iter().map(AsFd::as_fd).collect::<Vec<_>>());
            match self.parts.socket.send(frame, &some.unwrap_or_default()) {
                // The last: this user has as many descriptors under way as the kernel allows.
                Err(errno @ (Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::ETOOMANYREFS)) => {
                    outgoing.is_full = errno == Errno::EAGAIN;
                    return false;
                }
                // Not these: some kinds cannot be passed. Their message is on its way.
                Err(Errno::EINVAL | Errno::EPERM | Errno::EBADF | Errno::EOPNOTSUPP) if fds.is_some() => {
                    Control::give_up_descriptors(frame);
                    *fds = None;
                }
                // The peer is gone, which the watcher learns from the socket itself.
                Err(_) => {
                    frames.clear();
                    *answers = 0;
                }
                Ok(()) => {
                    *answers = answers.saturating_sub(usize::from(*is_answer));
                    frames.pop_front();
                }
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
}
