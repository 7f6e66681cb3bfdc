//! How a link sends what is carried where nothing is shared: by whoever has just put it there, as far as the socket takes
//! it, and by whoever keeps the link from then on. And who is told of what was carried here.

use super::Core;
use super::outgoing::Outgoing;
use crate::ring::area;
use crate::shm::loans::Loans;
use crate::shm::mirror::Mirror;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::OwnWords;
use crate::transport::carriage;
use crate::transport::control::{Control, Knock, Wish};
use crate::transport::ended::{Ended, Farewell};
use crate::transport::watch;
use crate::wait;
use nix::errno::Errno;
use std::cell::Cell;
use std::sync::{Arc, Weak};

/// A channel of which the other side's half is a copy.
pub(super) struct Copied {
    pub(super) number: u32,
    own: Arc<OwnWords>,
    /// The last waits at the door of this side's receiver and sender that ended.
    told: [u64; 2],
}

impl Copied {
    pub(super) fn new(number: u32, own: Arc<OwnWords>) -> Self {
        Self { number, own, told: [0; 2] }
    }

    /// The channel's number, if somebody of this side waits for just that.
    fn at_door(&mut self, knock: Knock) -> Option<u32> {
        let [receiver, sender] = &mut self.told;
        let (line, told) = if knock == Knock::FILLED { (area::RECEIVER, receiver) } else { (area::SENDER, sender) };
        wait::waits_at_door(&self.own, line, told).then_some(self.number)
    }
}

impl Outgoing {
    /// Has what ends something follow what is to be carried before it; false if it is to go like any other frame.
    pub(super) fn follow(&mut self, control: &Control, loans: &Loans) -> bool {
        match control {
            // All of them, because their numbers rise.
            Control::OpenChannel(wish) => {
                let named = wish.metadata.map(|metadata| (metadata.handle, metadata.segments));
                self.freight.name(named, control.to_bytes(), loans);
                true
            }
            Control::Cancel { number, .. } => self.freight.follow(*number, control.to_bytes(), false),
            Control::Finished { number } => self.freight.follow(*number, control.to_bytes(), false),
            // Who closes second says only that it has left.
            Control::ChannelClosed { number } | Control::ChannelLeft { number } => {
                self.freight.follow(*number, control.to_bytes(), true)
            }
            Control::Goodbye(Farewell::Closed) => {
                self.freight.settle();
                self.goodbye = Some(control.to_bytes());
                true
            }
            _ => false,
        }
    }
}

impl Core {
    /// Whether nothing is shared, and what is put into rings crosses the socket.
    pub(in crate::transport) fn is_carried(&self) -> bool {
        self.mirror.is_some()
    }

    /// What was just put into a channel's ring, or taken out of it, crosses the socket where nothing is shared.
    #[inline]
    pub(in crate::transport) fn carry(&self, number: u32) {
        if self.mirror.is_some() {
            self.carry_on(number);
        }
    }

    #[cold]
    fn carry_on(&self, number: u32) {
        if self.is_forked() {
            return;
        }
        let mut outgoing = self.outgoing.lock();
        outgoing.freight.wake(number, || {
            let area = self.area_of(number)?;
            let offset = self.arena().offset_of_words(&area);
            Some((area, offset))
        });
        let flushed = self.flush(&mut outgoing);
        drop(outgoing);
        if !flushed {
            self.send_when_writable();
        }
        // Sooner or later the peer has to know of the last slot emptied.
        self.arm();
    }

    /// False if the socket takes no more now.
    pub(super) fn carry_out(&self, outgoing: &mut Outgoing, mirror: &Weak<Mirror>) -> bool {
        if matches!(self.ended(), Some(Ended::PeerMisbehaved(_) | Ended::PeerDied)) {
            outgoing.freight.clear();
        }
        let is_full = Cell::new(false);
        let send = |packet: &[u8]| match self.parts.socket.send(packet, &[]) {
            Err(errno @ (Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM)) => {
                is_full.set(errno == Errno::EAGAIN);
                false
            }
            // Any other failure is the end, which the watcher learns from the socket itself.
            _ => true,
        };
        let carried = outgoing.freight.carry(&self.loans, mirror, send);
        if let Err(broken) = carried {
            outgoing.freight.clear();
            // Acted upon by the next tick, when nobody holds what ending a session takes.
            outgoing.broken = Some(broken);
            self.arm();
        }
        let all = carried != Ok(false) && outgoing.goodbye.is_none_or(|frame| send(&frame));
        if all {
            outgoing.goodbye = None;
        }
        outgoing.is_full = is_full.get();
        all
    }

    /// What the peer has to know of at last.
    pub(super) fn settle(&self) {
        let mut outgoing = self.outgoing.lock();
        outgoing.freight.settle();
        let broken = outgoing.broken.take();
        drop(outgoing);
        if let Some(broken) = broken {
            self.misbehaved(broken);
        }
    }

    /// Has the rest sent when the socket takes more.
    pub(super) fn send_later(&self) {
        self.send_when_writable();
        self.arm();
    }

    /// Has whoever keeps the link carry on once the socket has room.
    pub(super) fn send_when_writable(&self) {
        if self.mirror.is_some() && self.outgoing.lock().is_full {
            match self.keeper() {
                None => watch::when_writable(self, true),
                Some(keeper) => keeper.on_full(),
            }
        }
    }

    /// Whether anything is carried, so that whoever keeps the link may hear of a socket that is full.
    #[cfg(feature = "tokio")]
    pub(crate) fn carries(&self) -> bool {
        self.mirror.is_some()
    }

    /// The socket takes more; false if it is full again, and to be waited for.
    pub(crate) fn on_writable(&self) -> bool {
        let mut outgoing = self.outgoing.lock();
        // Whatever else it is that stops it, the next tick tries again.
        let done = self.flush(&mut outgoing) || !outgoing.is_full;
        if done && !self.is_kept() {
            watch::when_writable(self, false);
        }
        done
    }

    /// Lays out what the other side has put into a ring, or said of this side's, and tells whoever waits for that at
    /// the door: the other side cannot see that there is somebody.
    pub(super) fn carried_here(&self, mirror: &Mirror, packet: &[u8]) -> Result<(), PeerMisbehaved> {
        let Some((area, knock)) = carriage::take_in(mirror, packet)? else { return Ok(()) };
        let waits = self.copied.lock().get_mut(&area).and_then(|copied| copied.at_door(knock));
        if let Some(number) = waits {
            self.rung(number, knock);
        }
        Ok(())
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
