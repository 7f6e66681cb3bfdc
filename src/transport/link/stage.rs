//! Rings that many read: which sessions have one, and where. Who reads how far is the publisher's and its subscribers'
//! business.

use super::Core;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::{OwnWords, PeerWords};
use crate::transport::control::{Control, StageAt};
use crate::transport::port::Port;
use std::sync::Arc;

impl Core {
    /// Tells the peer that a ring of this side's is for it, too. It stays until the channel is over.
    pub(crate) fn stage(&self, port: &Port, ring: Arc<OwnWords>, at: StageAt) {
        let number = port.number();
        if let Some(entry) = self.channels.lock().get_mut(&number) {
            entry.stage = Some(ring);
        }
        self.send(&Control::Staged { number, stage: at });
    }

    pub(super) fn staged_there(&self, number: u32, at: StageAt) -> Result<(), PeerMisbehaved> {
        self.tell(number, |news| news.stage(at))?.inspect(|port| port.bell.ring());
        Ok(())
    }
}

impl Port {
    /// Where the peer publishes, if it has said so.
    pub(crate) fn staged(&self) -> Option<StageAt> {
        self.news.staged()
    }

    /// Both halves of a channel that is open here, for whoever uses the words that channels leave unused.
    pub(crate) fn halves(&self) -> Option<(Arc<OwnWords>, Arc<PeerWords>)> {
        let theirs = self.with_inbox(|inbox| inbox.consumer.theirs())?.upgrade()?;
        Some((self.core().area_of(self.number())?, theirs))
    }
}
