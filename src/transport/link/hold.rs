//! What users of a session hold of its link: while one does, the peer's memory may be read here.

use super::carry::Copied;
use super::channels::Entry;
use super::closing::Phase;
use super::keeping::{Keeper, Keeping};
use super::passing::Passing;
use super::{Clerk, Core, LinkParts, leaves_nothing};
use crate::shm::handle::Handle;
use crate::shm::loans::{LoanQuota, Loans};
use crate::shm::view::{Home, View};
use crate::sys::fork;
use crate::sys::words::OwnWords;
use crate::transport::inbox::Inbox;
use crate::transport::port::Port;
use crate::transport::watch;
use parking_lot::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

/// A user's hold on a session: while one exists, the peer's memory may be read here.
#[derive(Clone)]
pub(crate) struct Link(Arc<Hold>);

struct Hold {
    core: Arc<Core>,
    /// Unmapped with the last user, even if the core lingers for what the peer still reads here.
    view: Arc<View>,
}

impl Link {
    /// With the channels opened in the log-in, by number; kept by the watcher unless somebody else does.
    pub(crate) fn new(
        parts: LinkParts,
        view: Arc<View>,
        channels: Vec<(u32, Arc<OwnWords>)>,
        clerk: Box<dyn Clerk>,
        keeper: Option<Arc<dyn Keeper>>,
    ) -> std::io::Result<Self> {
        let channels = channels.into_iter().map(|(number, area)| (number, Entry::new(area))).collect();
        let mirror = view.mirror().map(Arc::downgrade);
        // A peer that keeps copies has room for so many bytes.
        let room = if mirror.is_some() { parts.arena.capacity() as u64 } else { u64::MAX };
        let quota = LoanQuota { bytes: parts.quota.bytes.min(room), ..parts.quota };
        // A peer that keeps copies keeps each under a name of its own.
        let counts = mirror.is_none();
        let loans = Loans::new(quota, parts.account.as_ref().map(|(account, _)| account.clone()), counts);
        let core = Arc::new(Core {
            parts,
            view: Arc::downgrade(&view),
            clerk,
            token: watch::new_token(),
            fork: fork::generation(),
            ended: OnceLock::new(),
            channels: Mutex::new(channels),
            loans,
            outgoing: Mutex::default(),
            orphans: Mutex::default(),
            owing: Mutex::default(),
            passing: Passing::default(),
            armed: AtomicBool::new(false),
            kept: AtomicBool::new(keeper.is_some()),
            keeping: Mutex::new(Keeping::of(keeper)),
            reading: Mutex::default(),
            mirror,
            copied: Mutex::default(),
        });
        if !core.is_kept() {
            watch::add(&core, false)?;
        }
        Ok(Self(Arc::new(Hold { core, view })))
    }

    #[inline]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    #[inline]
    pub(crate) fn view(&self) -> &Arc<View> {
        &self.0.view
    }

    /// Gives a channel its port, with whatever happened to it before.
    pub(in crate::transport) fn port(&self, number: u32, name: String, inbox: Inbox) -> Arc<Port> {
        let theirs = inbox.consumer.theirs();
        let mut channels = self.core().channels.lock();
        let news = channels.get(&number).map(|entry| entry.news.clone()).unwrap_or_default();
        let port = Arc::new(Port::new(self.clone(), number, name, inbox, news));
        let closed_there = channels.get_mut(&number).is_some_and(|entry| {
            entry.port = Arc::downgrade(&port);
            entry.theirs = theirs.clone();
            entry.closing.there() > Phase::Open
        });
        drop(channels);
        if self.core().mirror.is_some()
            && let (Some(theirs), Some(own)) = (theirs.upgrade(), self.core().area_of(number))
        {
            self.core().copied.lock().insert(theirs.address(), Copied::new(number, own));
        }
        // `end` sets the cause before it looks for ports, so one of the two sees the other.
        match self.core().ended() {
            Some(cause) => port.end(leaves_nothing(cause)),
            None if closed_there => port.end(false),
            None => {}
        }
        port
    }
}

/// For what is lent with no channel.
impl Home for Link {
    fn view(&self) -> &View {
        &self.0.view
    }

    fn owe(&self, handle: Handle) {
        // In a forked child the books are a copy, and their lock may have been held by a thread that is not here.
        if !self.core().is_forked() {
            self.core().owe(handle);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.core.is_forked() {
            return;
        }
        // Nobody here reads the peer's memory any more: it may have everything back. What it still reads of ours stays
        // until it says the same, or dies; whoever keeps the link sees to that.
        self.core.close();
        self.core.discard_arrivals();
        self.core.abandon_inboxes();
        self.core.clerk.on_unused();
        self.core.linger();
    }
}
