//! Who the apps are, and what they allow. Values only.

use crate::message::{Schema, Trust};
use crate::shm::arena::{self, Arena, WeakArena};
use crate::shm::loans::LoanQuota;
use crate::sys::fork::PerProcess;
use crate::sys::memfd::Writable;
use crate::sys::memory::Backing;
use crate::transport::control::NAME_MAX;
use crate::wait::Wait;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A client app: what it is called, what it opens, and how far it believes the server it connects to.
///
/// Sessions that it and its clones open to servers of its own user share one arena: a message built in one can be sent
/// in all of them.
///
/// The same type describes it to a server's allow-list; there, only the name and the user count.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use std::time::Duration;
/// use strait::{ClientApp, ServerApp};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let greeter = ClientApp::new("greeter").channel::<hello::Owned>("main").timeout(Duration::from_secs(1));
/// let session = greeter.connect(&ServerApp::new("hello"))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ClientApp {
    pub(super) name: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) trust: Trust,
    pub(super) timeout: Duration,
    pub(super) options: Options,
    /// The one that sessions with servers of this user share.
    arena: Arc<PerProcess<WeakArena>>,
}

/// A server app: what it is called, where it is found, what it serves, and to whom.
///
/// The same type describes it to a client; there, the name, the place and the user count.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use strait::{ClientApp, ServerApp, Trust};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let server = ServerApp::new("hello")
///     .allow(&ClientApp::new("greeter"), Trust::snapshot())
///     .allow(&ClientApp::new("guest").uid(65534), Trust::snapshot_up_to(1 << 20))
///     .channel::<hello::Owned>("main")
///     .bind()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ServerApp {
    pub(super) name: String,
    pub(super) uid: Option<u32>,
    pub(super) run_dir: Option<PathBuf>,
    pub(super) allow: Vec<Allowed>,
    pub(super) options: Options,
}

/// What both sides decide for themselves.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// Opened in the log-in.
    pub(super) opens: Vec<ChannelSpec>,
    /// Opened for the peer without asking anyone.
    pub(super) serves: Vec<ChannelSpec>,
    /// How many of the peer's other wishes may wait for the application.
    pub(super) offers: usize,
    pub(super) arena_bytes: usize,
    pub(super) arena_quota: Option<usize>,
    pub(super) backing: Backing,
    pub(super) peer_arena_max: u64,
    pub(super) loan_quota: LoanQuota,
    pub(super) channels_max: usize,
    pub(super) slots: u32,
    pub(super) wait: Wait,
}

/// A channel by name and schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChannelSpec {
    pub(super) name: String,
    pub(super) schema: u64,
}

/// A line of an allow-list.
#[derive(Clone, Debug)]
pub(super) struct Allowed {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: Option<u32>,
    pub(super) trust: Trust,
}

impl Options {
    fn new(arena_bytes: usize) -> Self {
        Self {
            opens: Vec::new(),
            serves: Vec::new(),
            offers: 0,
            arena_bytes,
            arena_quota: None,
            backing: Backing::default(),
            peer_arena_max: 64 << 30,
            loan_quota: LoanQuota { loans: 1 << 16, bytes: u64::MAX },
            channels_max: 1024,
            slots: 256,
            wait: Wait::default(),
        }
    }
}

impl Options {
    /// The first name, of the app's own and its channels', that cannot be one.
    pub(super) fn bad_name<'a>(&'a self, own: &'a [&'a str]) -> Option<&'a str> {
        let channels = self.opens.iter().chain(&self.serves).map(|spec| spec.name.as_str());
        own.iter().copied().chain(channels).find(|name| !is_name(name))
    }

    /// The arena of an app, or the small one of its own that a peer of another user gets to see: bounded, and sealed
    /// against that user writing to it.
    pub(super) fn make_arena(&self, foreign: bool) -> io::Result<Arena> {
        let quota = self.arena_quota.unwrap_or(self.arena_bytes);
        let backing = self.backing;
        // What a peer has to keep copies of is bounded, too.
        let own_bytes = if backing == Backing::Heap { self.arena_bytes.min(HEAP_BYTES) } else { self.arena_bytes };
        Arena::create(if foreign {
            let bytes = self.arena_bytes.min(FOREIGN_BYTES);
            arena::Options { bytes, quota: quota.min(FOREIGN_QUOTA), writable: Writable::NoMore, backing }
        } else {
            arena::Options { bytes: own_bytes, quota, writable: Writable::ByOwner, backing }
        })
    }
}

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

        /// The largest arena it lets a peer announce, in bytes. 64 GiB unless told otherwise.
        #[must_use]
        pub fn peer_arena_max(mut self, bytes: u64) -> Self {
            self.options.peer_arena_max = bytes;
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

        /// How its channels wait, unless [`Channel::set_wait`](crate::Channel::set_wait) says otherwise.
        #[must_use]
        pub fn wait(mut self, wait: crate::Wait) -> Self {
            self.options.wait = wait;
            self
        }
    };
}

impl ClientApp {
    /// An app of this name: 1 to 64 characters out of `A-Z a-z 0-9 . _ -`, the first no dot. Checked when it is used.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            uid: None,
            gid: None,
            trust: Trust::snapshot(),
            timeout: CONNECT_TIMEOUT,
            options: Options::new(4 << 30),
            arena: Arc::default(),
        }
    }

    /// The arena for a session: shared by all that this app has with servers of its own user.
    pub(super) fn arena(&self, foreign: bool) -> io::Result<Arena> {
        if foreign {
            return self.options.make_arena(true);
        }
        let mut shared = self.arena.lock();
        match shared.upgrade() {
            Some(arena) => Ok(arena),
            None => {
                let arena = self.options.make_arena(false)?;
                *shared = arena.downgrade();
                Ok(arena)
            }
        }
    }

    /// For an allow-list: the user it must run as. The server's own unless told otherwise.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// For an allow-list: the group it must run as. Any unless told otherwise.
    #[must_use]
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// How far it believes the server it connects to. [`Trust::snapshot`] unless told otherwise.
    #[must_use]
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// How long connecting and logging in may take. Five seconds unless told otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Opens a channel in the log-in itself: [`Session::open_channel`](crate::Session::open_channel) then finds it
    /// without a round trip. At most 8.
    #[must_use]
    pub fn channel<T: Schema>(mut self, name: impl Into<String>) -> Self {
        self.options.opens.push(ChannelSpec { name: name.into(), schema: T::ID });
        self
    }

    /// Serves channels of this name and schema: those that the server opens are opened at once, for
    /// [`Session::accept_channel`](crate::Session::accept_channel).
    #[must_use]
    pub fn serves<T: Schema>(mut self, name: impl Into<String>) -> Self {
        self.options.serves.push(ChannelSpec { name: name.into(), schema: T::ID });
        self
    }

    options!();
}

impl ServerApp {
    /// An app of this name: 1 to 64 characters out of `A-Z a-z 0-9 . _ -`, the first no dot. Checked when it is used.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), uid: None, run_dir: None, allow: Vec::new(), options: Options::new(64 << 30) }
    }

    /// Lets a client app in, and says how far it is believed. Nobody is let in otherwise.
    #[must_use]
    pub fn allow(mut self, client: &ClientApp, trust: Trust) -> Self {
        let uid = client.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
        self.allow.push(Allowed { name: client.name.clone(), uid, gid: client.gid, trust });
        self
    }

    /// Serves channels of this name and schema. Others are refused, or are [offers](Self::offers).
    #[must_use]
    pub fn channel<T: Schema>(mut self, name: impl Into<String>) -> Self {
        self.options.serves.push(ChannelSpec { name: name.into(), schema: T::ID });
        self
    }

    /// Opens a channel to every client, in the log-in itself: [`Session::open_channel`](crate::Session::open_channel)
    /// then finds it asked for already. The client must [serve](ClientApp::serves) it. At most 8.
    #[must_use]
    pub fn opens<T: Schema>(mut self, name: impl Into<String>) -> Self {
        self.options.opens.push(ChannelSpec { name: name.into(), schema: T::ID });
        self
    }

    /// For a client: the user the server must run as. The client's own unless told otherwise.
    #[must_use]
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// Where the apps meet, if not in `$STRAIT_RUN_DIR`, `$XDG_RUNTIME_DIR/strait` or `/tmp/strait-UID` (the first
    /// that is set). Both sides must say the same.
    #[must_use]
    pub fn run_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.run_dir = Some(dir.into());
        self
    }

    pub(super) fn socket_name(&self) -> String {
        format!("{}.sock", self.name)
    }

    /// The user it runs as, as a client must find it.
    pub(super) fn expected_uid(&self) -> u32 {
        self.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw())
    }

    options!();
}

/// Whether a name can be an app's or a channel's.
pub(super) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.')
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory() {
        for good in ["a", "cache-2", "A.b_c", &"x".repeat(64)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", ".hidden", "a\0b", "ü", &"x".repeat(65)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
