//! How a link sends what is carried where nothing is shared: by whoever has just put it there, as far as the socket takes
//! it, and by the watcher from then on.

use super::{Core, Outgoing};
use crate::shm::mirror::Mirror;
use crate::transport::control::Control;
use crate::transport::ended::{Ended, Farewell};
use crate::transport::watch;
use nix::errno::Errno;
use std::sync::Weak;

impl Outgoing {
    /// Has what ends something follow what is to be carried before it; false if it is to go like any other frame.
    pub(super) fn follow(&mut self, control: &Control) -> bool {
        match control {
            Control::Finished { number } => self.outbound.follow(*number, control.to_bytes(), false),
            Control::ChannelClosed { number } => self.outbound.follow(*number, control.to_bytes(), true),
            Control::Goodbye(Farewell::Closed) => {
                self.goodbye = Some(control.to_bytes());
                true
            }
            _ => false,
        }
    }
}

impl Core {
    #[cold]
    pub(super) fn carry_on(&self, number: u32) {
        if self.is_forked() {
            return;
        }
        let mut outgoing = self.outgoing.lock();
        outgoing.outbound.wake(number, || {
            let area = self.area_of(number)?;
            let offset = self.arena().offset_of_words(&area);
            Some((area, offset))
        });
        let flushed = self.flush(&mut outgoing);
        drop(outgoing);
        if !flushed {
            self.write_later();
        }
        // Sooner or later the peer has to know of the last slot emptied.
        self.arm();
    }

    /// False if the socket takes no more now.
    pub(super) fn carry_out(&self, outgoing: &mut Outgoing, mirror: &Weak<Mirror>) -> bool {
        if matches!(self.ended(), Some(Ended::PeerMisbehaved(_) | Ended::PeerDied)) {
            outgoing.outbound.clear();
        }
        let send = |packet: &[u8]| {
            // Any other failure is the end, which the watcher learns from the socket itself.
            !matches!(self.parts.socket.send(packet, &[]), Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM))
        };
        match outgoing.outbound.carry(&self.loans, mirror, send) {
            Ok(false) => return false,
            Ok(true) => {}
            Err(broken) => {
                outgoing.outbound.clear();
                // Acted upon by the next tick, when nobody holds what ending a session takes.
                outgoing.broken = Some(broken);
                self.arm();
            }
        }
        match outgoing.goodbye {
            Some(frame) if !send(&frame) => false,
            _ => {
                outgoing.goodbye = None;
                true
            }
        }
    }

    /// What the peer has to know of at last.
    pub(super) fn settle(&self) {
        let mut outgoing = self.outgoing.lock();
        outgoing.outbound.settle();
        let broken = outgoing.broken.take();
        drop(outgoing);
        if let Some(broken) = broken {
            self.misbehaved(broken);
        }
    }

    /// Has the watcher carry on once the socket takes more.
    fn write_later(&self) {
        if !std::mem::replace(&mut self.outgoing.lock().blocked, true) {
            watch::when_writable(self, true);
        }
    }

    /// The socket takes more.
    pub(in crate::transport) fn on_writable(&self) {
        let mut outgoing = self.outgoing.lock();
        if self.flush(&mut outgoing) {
            outgoing.blocked = false;
            watch::when_writable(self, false);
        }
    }

    /// Has the rest sent when the socket takes more.
    pub(super) fn later(&self) {
        if self.mirror.is_some() {
            self.write_later();
        }
        self.arm();
    }
}
