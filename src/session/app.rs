//! Who the apps are, and what they allow. Values only.

use super::options::{Arenas, Options, is_foreign, options};
use crate::message::{Schema, Trust};
use crate::shm::account::{Account, UserQuota};
use crate::shm::arena::Arena;
use crate::sys::fork::PerProcess;
use crate::transport::control::NAME_MAX;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A client app: what it is called, what it opens, and how far it believes the server it connects to.
///
/// Sessions that it and its clones open to servers of its own user share one arena: a message built in one can be sent
/// in all of them.
///
/// The same type describes it to a server's allow-list; there, the name, the user, the program, and whether it is kept
/// apart count.
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
    pub(super) program: Option<PathBuf>,
    pub(super) trust: Trust,
    pub(super) timeout: Duration,
    pub(super) options: Options,
    /// The one that sessions with servers of this user share.
    arena: Arc<PerProcess<Arenas>>,
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
    pub(super) instance: Option<String>,
    pub(super) uid: Option<u32>,
    pub(super) run_dir: Option<PathBuf>,
    pub(super) allow: Vec<Allowed>,
    pub(super) user_quota: Option<UserQuota>,
    pub(super) login_timeout: Duration,
    pub(super) options: Options,
    /// What it shares with its clones.
    shared: Arc<PerProcess<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The one that sessions with clients of this user share.
    arena: Arenas,
    /// By user; an account is there as long as a session of that user is.
    accounts: BTreeMap<u32, Weak<Account>>,
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
    pub(super) program: Option<PathBuf>,
    pub(super) trust: Trust,
    pub(super) apart: bool,
}

impl ClientApp {
    /// An app of this name: 1 to 64 characters out of `A-Z a-z 0-9 . _ -`, the first no dot. Checked when it is used.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            uid: None,
            gid: None,
            program: None,
            trust: Trust::snapshot(),
            timeout: CONNECT_TIMEOUT,
            options: Options::new(4 << 30),
            arena: Arc::default(),
        }
    }

    /// The arena that this app and its clones share among their sessions with servers of this user: what is built here,
    /// before, during or after any of them, can be sent in all of them. It lasts as long as a session, a message or a
    /// handle to it does; the next one is another.
    ///
    /// ```no_run
    /// # capnp::generated_code!(mod hello_capnp);
    /// # use hello_capnp::hello;
    /// use std::time::Duration;
    /// use strait::{Builder, ClientApp, ServerApp};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let app = ClientApp::new("crier").channel::<hello::Owned>("main");
    /// let mut news = Builder::<hello::Owned>::new(&app.arena()?);
    /// news.init_root().set_greet("everyone");
    /// let news = news.freeze()?;
    /// for server in ["here", "there"] {
    ///     let session = app.connect(&ServerApp::new(server))?;
    ///     session.open_channel("main", Duration::from_secs(1))?.send(&news)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The kernel's, if there is no memory or descriptor for it.
    pub fn arena(&self) -> io::Result<Arena> {
        self.options.share_arena(&mut self.arena.lock())
    }

    /// The arena for a session.
    pub(super) fn session_arena(&self, apart: bool) -> io::Result<Arena> {
        if apart { self.options.make_arena(true) } else { self.arena() }
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

    /// For an allow-list: the program it must run, as an absolute path without links. Any unless told otherwise.
    ///
    /// Advisory: it keeps the wrong program out by mistake, not by malice. The server compares it with `/proc/PID/exe`,
    /// which it can read of its own user's processes or as root; a client whose program it cannot read is refused. A
    /// program can be started under a debugger, be replaced, or load what it likes.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
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

    /// Opens a channel as soon as there is a session, right behind the log-in, with a message for whoever judges it there
    /// ([`Offer::metadata`](crate::Offer::metadata)): written by `write` for each session, at most 64 KiB.
    /// [`Session::open_channel`](crate::Session::open_channel) then finds it asked for already, and says so if it was
    /// rejected and why. A further channel of this name goes with metadata as well.
    ///
    /// ```no_run
    /// # capnp::generated_code!(mod hello_capnp);
    /// # use hello_capnp::hello;
    /// use strait::ClientApp;
    ///
    /// let app = ClientApp::new("greeter").channel_with::<hello::Owned, hello::Owned>("main", |mut root| {
    ///     root.set_greet("from the greeter");
    /// });
    /// # fn main() {}
    /// ```
    #[must_use]
    pub fn channel_with<T: Schema, M: Schema>(
        mut self,
        name: impl Into<String>,
        write: impl Fn(M::Builder<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.options.introduce::<T, M>(name.into(), write);
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
        Self {
            name: name.into(),
            instance: None,
            uid: None,
            run_dir: None,
            allow: Vec::new(),
            user_quota: None,
            login_timeout: LOGIN_TIMEOUT,
            options: Options::new(64 << 30),
            shared: Arc::default(),
        }
    }

    /// The arena for a session: shared by all that this app has with clients of its own user that are not kept apart.
    pub(super) fn arena(&self, apart: bool) -> io::Result<Arena> {
        if apart {
            return self.options.make_arena(true);
        }
        self.options.share_arena(&mut self.shared.lock().arena)
    }

    /// What all sessions of a user have together, if that has a limit.
    pub(super) fn account(&self, uid: u32) -> Option<Arc<Account>> {
        let quota = self.user_quota.or_else(|| is_foreign(uid).then_some(UserQuota::OF_OTHERS))?;
        let accounts = &mut self.shared.lock().accounts;
        if let Some(account) = accounts.get(&uid).and_then(Weak::upgrade) {
            return Some(account);
        }
        // No more of them than there are users with sessions.
        accounts.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account::new(quota));
        accounts.insert(uid, Arc::downgrade(&account));
        Some(account)
    }

    /// One of several servers of the app, each with a name of its own, which clients choose by saying the same: 1 to 64
    /// characters together with the app's name and a dot.
    #[must_use]
    pub fn instance(mut self, name: impl Into<String>) -> Self {
        self.instance = Some(name.into());
        self
    }

    /// What all sessions of one user may have together; each session's own limits hold as well. Unless told otherwise, its
    /// own user has no limits and others have [`UserQuota::OF_OTHERS`]. What exceeds it is refused to that user alone. A
    /// limit for loans costs each message some atomic operations.
    #[must_use]
    pub fn user_quota(mut self, quota: UserQuota) -> Self {
        self.user_quota = Some(quota);
        self
    }

    /// How long a client that has connected may take over its first words: it has a place to wait in, of few, until then.
    /// Two seconds unless told otherwise.
    #[must_use]
    pub fn login_timeout(mut self, timeout: Duration) -> Self {
        self.login_timeout = timeout;
        self
    }

    /// Lets a client app in, and says how far it is believed. Nobody is let in otherwise.
    #[must_use]
    pub fn allow(mut self, client: &ClientApp, trust: Trust) -> Self {
        let uid = client.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
        let (name, program, apart) = (client.name.clone(), client.program.clone(), client.options.apart);
        self.allow.push(Allowed { name, uid, gid: client.gid, program, trust, apart });
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

    /// Opens a channel to every client as soon as there is a session, right behind the log-in, with a message for whoever
    /// judges it there: as [`ClientApp::channel_with`].
    #[must_use]
    pub fn opens_with<T: Schema, M: Schema>(
        mut self,
        name: impl Into<String>,
        write: impl Fn(M::Builder<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.options.introduce::<T, M>(name.into(), write);
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

    /// What it is called in the run directory.
    pub(super) fn place_name(&self) -> String {
        match &self.instance {
            None => self.name.clone(),
            Some(instance) => format!("{}.{instance}", self.name),
        }
    }

    pub(super) fn socket_name(&self) -> String {
        format!("{}.sock", self.place_name())
    }

    /// The first name, of the app, its instance and its channels, that cannot be one.
    pub(super) fn bad_name(&self) -> Option<String> {
        let instance = self.instance.iter().find(|instance| !is_name(instance)).cloned();
        let place = || Some(self.place_name()).filter(|name| !is_name(name));
        self.options.bad_name(&[&self.name]).map(str::to_owned).or(instance).or_else(place)
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

const LOGIN_TIMEOUT: Duration = Duration::from_secs(2);

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
