//! What both kinds of app decide for themselves, and what follows for their arenas. Values only.

use super::app::{ChannelSpec, is_name};
use super::introduction::Introduction;
use crate::message::Schema;
use crate::shm::arena::{self, Arena, WeakArena};
use crate::shm::loans::LoanQuota;
use crate::sys::memfd::Writable;
use crate::sys::memory::Backing;
use crate::sys::seqpacket::Credentials;
use crate::wait::Wait;
use std::io;
use std::sync::Arc;

/// What both sides decide for themselves.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// Opened in the log-in.
    pub(super) opens: Vec<ChannelSpec>,
    /// Opened as soon as there is a session.
    pub(super) introductions: Arc<Vec<Introduction>>,
    /// Opened for the peer without asking anyone.
    pub(super) serves: Vec<ChannelSpec>,
    /// How many of the peer's other wishes may wait for the application.
    pub(super) offers: usize,
    pub(super) arena_bytes: usize,
    pub(super) arena_quota: Option<usize>,
    pub(super) backing: Backing,
    pub(super) peer_arena_max: Option<u64>,
    /// Whether sessions with peers of this user have arenas of their own too.
    pub(super) apart: bool,
    pub(super) loan_quota: LoanQuota,
    pub(super) channels_max: usize,
    pub(super) slots: u32,
    pub(super) wait: Wait,
    pub(super) inline_max: usize,
}

/// What an app and its clones share, which may be made of different things.
pub(super) type Arenas = Vec<(Backing, WeakArena)>;

impl Options {
    pub(super) fn new(arena_bytes: usize) -> Self {
        Self {
            opens: Vec::new(),
            introductions: Arc::default(),
            serves: Vec::new(),
            offers: 0,
            arena_bytes,
            arena_quota: None,
            backing: Backing::default(),
            peer_arena_max: None,
            apart: false,
            loan_quota: LoanQuota { loans: 1 << 16, bytes: u64::MAX },
            channels_max: 1024,
            slots: 256,
            wait: Wait::default(),
            inline_max: INLINE_MAX,
        }
    }

    /// The first name, of the app's own and its channels', that cannot be one.
    pub(super) fn bad_name<'a>(&'a self, own: &'a [&'a str]) -> Option<&'a str> {
        let introduced = self.introductions.iter().map(|introduction| &introduction.spec);
        let channels = self.opens.iter().chain(&self.serves).chain(introduced).map(|spec| spec.name.as_str());
        own.iter().copied().chain(channels).find(|name| !is_name(name))
    }

    /// A channel to be opened with each session.
    pub(super) fn introduce<T: Schema, M: Schema>(
        &mut self,
        name: String,
        write: impl Fn(M::Builder<'_>) + Send + Sync + 'static,
    ) {
        Arc::make_mut(&mut self.introductions).push(Introduction::new::<T, M>(name, write));
    }

    /// The arena that is shared already, or else a new one that is from now on.
    pub(super) fn share_arena(&self, shared: &mut Arenas) -> io::Result<Arena> {
        let known = shared.iter().filter(|(backing, _)| *backing == self.backing);
        if let Some(arena) = known.filter_map(|(_, arena)| arena.upgrade()).next() {
            return Ok(arena);
        }
        let arena = self.make_arena(false)?;
        shared.retain(|(backing, _)| *backing != self.backing);
        shared.push((self.backing, arena.downgrade()));
        Ok(arena)
    }

    /// How much memory of a peer's is mapped at a time.
    pub(super) fn peer_arena_max(&self, uid: u32) -> u64 {
        let default = if is_foreign(uid) { FOREIGN_BYTES as u64 } else { PEER_ARENA_MAX };
        self.peer_arena_max.unwrap_or(default)
    }

    /// The arena of an app, or the small one of a session's own that a peer apart gets to see: bounded, sealed against
    /// that user writing to it, and overwritten where it is freed.
    pub(super) fn make_arena(&self, apart: bool) -> io::Result<Arena> {
        let quota = self.arena_quota.unwrap_or(self.arena_bytes);
        let backing = self.backing;
        // What a peer has to keep copies of is bounded, too.
        let own_bytes = if backing == Backing::Heap { self.arena_bytes.min(HEAP_BYTES) } else { self.arena_bytes };
        Arena::create(if apart {
            let bytes = self.arena_bytes.min(FOREIGN_BYTES);
            arena::Options { bytes, quota: quota.min(FOREIGN_QUOTA), writable: Writable::NoMore, backing }
        } else {
            arena::Options { bytes: own_bytes, quota, writable: Writable::ByOwner, backing }
        })
    }
}

/// Whether it is another user than this process's.
pub(super) fn is_foreign(uid: u32) -> bool {
    uid != Credentials::own().uid
}

const PEER_ARENA_MAX: u64 = 64 << 30;

/// As much as two slots hold. Whether more travels so makes no difference that can be measured.
const INLINE_MAX: usize = 88;

/// The most that can be in messages at once where no memory is shared.
const HEAP_BYTES: usize = 1 << 30;

const FOREIGN_BYTES: usize = 1 << 30;
const FOREIGN_QUOTA: usize = 256 << 20;

/// What both kinds of app can be told in the same words.
macro_rules! options {
    () => {
        /// The address space of its arena, in bytes: how much can be in messages at once. Costs memory only as it is
        /// used. 64 GiB for a server app and 4 GiB for a client app unless told otherwise.
        #[must_use]
        pub fn arena_bytes(mut self, bytes: usize) -> Self {
            self.options.arena_bytes = bytes;
            self
        }

        /// How many bytes of its arena may be memory at once; beyond it, building a message fails as it does when the
        /// arena is full. The whole arena unless told otherwise.
        #[must_use]
        pub fn arena_quota(mut self, bytes: usize) -> Self {
            self.options.arena_quota = Some(bytes);
            self
        }

        /// What its arenas are made of: [`Backing::Memfd`](crate::Backing::Memfd) unless told otherwise. A peer that
        /// says otherwise is refused.
        #[must_use]
        pub fn backing(mut self, backing: crate::Backing) -> Self {
            self.options.backing = backing;
            self
        }

        /// The largest arena it lets a peer announce, and the largest sealed message it maps, in bytes. 64 GiB unless told
        /// otherwise, of a peer of another user 1 GiB.
        #[must_use]
        pub fn peer_arena_max(mut self, bytes: u64) -> Self {
            self.options.peer_arena_max = Some(bytes);
            self
        }

        /// Keeps sessions apart, as those with peers of another user are in any case: each has an arena of its own, so that
        /// its peer sees nothing of what others are sent. It has at most 1 GiB, of which 256 MiB may be memory at once,
        /// keeps what it has until the session is over, and what is freed in it is overwritten. A message is built for one
        /// session then, or [copied](crate::Message::copy_to) for each, or [sealed](crate::SealedBuilder).
        ///
        /// In an allow-list: for the sessions of this client. For those who are of one's own user and not to be trusted all
        /// the same, such as workers that handle what strangers say.
        ///
        /// ```
        /// use strait::{ClientApp, ServerApp, Trust};
        /// let app = ServerApp::new("cache")
        ///     .allow(&ClientApp::new("reader"), Trust::snapshot())
        ///     .allow(&ClientApp::new("parser").apart(), Trust::snapshot_up_to(1 << 20));
        /// ```
        #[must_use]
        pub fn apart(mut self) -> Self {
            self.options.apart = true;
            self
        }

        /// What a peer may have on loan at a time: 65,536 messages of any size unless told otherwise.
        #[must_use]
        pub fn loan_quota(mut self, quota: crate::LoanQuota) -> Self {
            self.options.loan_quota = quota;
            self
        }

        /// How many channels a session may have at a time: 1,024 unless told otherwise.
        #[must_use]
        pub fn channels_max(mut self, channels: usize) -> Self {
            self.options.channels_max = channels;
            self
        }

        /// How many channels that the peer opens under names that are not served may wait for
        /// [`Session::accept_offer`](crate::Session::accept_offer): none unless told otherwise; beyond it they are
        /// refused at once.
        #[must_use]
        pub fn offers(mut self, offers: usize) -> Self {
            self.options.offers = offers;
            self
        }

        /// How many messages may be under way in this side's direction of a channel: rounded up to a power of two
        /// between 2 and 65,536; 256 unless told otherwise. Each costs 64 bytes per channel.
        #[must_use]
        pub fn slots(mut self, slots: u32) -> Self {
            let (low, high) = crate::ring::SLOTS_RANGE.into_inner();
            self.options.slots = slots.clamp(low, high).next_power_of_two();
            self
        }

        /// Messages of up to so many bytes travel inside their descriptors, where nothing is lent and fewer cache lines
        /// cross. 88, which two slots hold, unless told otherwise; at most 200, and 32 where memory is not shared; 0 lends
        /// all.
        #[must_use]
        pub fn inline_max(mut self, bytes: usize) -> Self {
            self.options.inline_max = bytes;
            self
        }

        /// How its channels wait, unless [`Channel::set_wait`](crate::Channel::set_wait) says otherwise.
        #[must_use]
        pub fn wait(mut self, wait: crate::Wait) -> Self {
            self.options.wait = wait;
            self
        }
    };
}

pub(super) use options;
