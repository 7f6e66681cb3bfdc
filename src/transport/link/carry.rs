//! How a link sends what is carried where nothing is shared: by whoever has just put it there, as far as the socket takes
//! it, and by the watcher from then on.

use super::{Core, Outgoing};
use crate::shm::loans::Loans;
use crate::shm::mirror::Mirror;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::transport::control::{Control, Wish};
use crate::transport::ended::{Ended, Farewell};
use crate::transport::watch;
use nix::errno::Errno;
use std::sync::Weak;

impl Outgoing {
    /// Has what ends something follow what is to be carried before it; false if it is to go like any other frame.
    pub(super) fn follow(&mut self, control: &Control, loans: &Loans) -> bool {
        match control {
            // All of them, because their numbers rise.
            Control::OpenChannel(wish) => {
                let named = wish.metadata.map(|metadata| (metadata.handle, metadata.segments));
                self.outbound.name(named, control.to_bytes(), loans);
                true
            }
            Control::Cancel { number, .. } => self.outbound.follow(*number, control.to_bytes(), false),
            Control::Finished { number } => self.outbound.follow(*number, control.to_bytes(), false),
            Control::ChannelClosed { number } => self.outbound.follow(*number, control.to_bytes(), true),
            Control::Goodbye(Farewell::Closed) => {
                self.outbound.settle();
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

    /// A wish, with this side's name for its metadata.
    pub(super) fn localised(&self, wish: Wish) -> Result<Wish, PeerMisbehaved> {
        let (Some(mut metadata), Some(mirror)) = (wish.metadata, self.mirror.as_ref().and_then(Weak::upgrade)) else {
            return Ok(wish);
        };
        metadata.handle = mirror.local(metadata.handle).ok_or(PeerMisbehaved::Frame("metadata that has not come"))?;
        Ok(Wish { metadata: Some(metadata), ..wish })
    }
}
