//! What each operation of a session can fail with.

use crate::shm::arena::AllocError;
use crate::shm::loans::QuotaExceeded;
use crate::shm::view::ViewError;
use crate::sys::memory::Backing;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::transport::ended::Ended;
use crate::transport::link::CutProblem;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// What two builds compare before anything else.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("protocol {oldest}..={newest}, layout {layout:016x}")]
pub struct Version {
    /// The oldest protocol it speaks.
    pub oldest: u32,
    /// The newest protocol it speaks.
    pub newest: u32,
    /// A digest of how shared words are laid out.
    pub layout: u64,
}

/// Why a log-in was refused. The side that refuses and the side that is refused both see it, with `ours` and `theirs`
/// from their own point of view. Nothing was mapped.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoginError {
    /// The builds do not understand each other.
    #[error("incompatible: this side has {ours}, the peer {theirs}")]
    Incompatible {
        /// This side's.
        ours: Version,
        /// The peer's.
        theirs: Version,
    },
    /// No client app of this name is on the server's allow-list.
    #[error("client app `{client}` is not on the allow-list")]
    NotAllowed {
        /// The client app.
        client: String,
    },
    /// The client app is allowed, but not for this user.
    #[error("client app `{client}` may not run as user {uid}")]
    WrongUser {
        /// The client app.
        client: String,
        /// Whom it runs as.
        uid: u32,
    },
    /// The client app is allowed, but not for this group.
    #[error("client app `{client}` may not run as group {gid}")]
    WrongGroup {
        /// The client app.
        client: String,
        /// Whom it runs as.
        gid: u32,
    },
    /// The server serves no channel of this name.
    #[error("no channel `{channel}` is served")]
    UnknownChannel {
        /// The channel.
        channel: String,
    },
    /// The server serves a channel of this name in another schema.
    #[error("channel `{channel}`: this side has schema {ours:016x}, the peer {theirs:016x}")]
    WrongSchema {
        /// The channel.
        channel: String,
        /// This side's.
        ours: u64,
        /// The peer's.
        theirs: u64,
    },
    /// The client wants more channels than a session may have.
    #[error("more channels than a session may have")]
    TooManyChannels,
    /// The client's memory is not what the server accepts.
    #[error("the client's memory was not accepted")]
    MemoryRefused,
    /// The client runs another program than the allow-list names, or one that the server may not look at.
    #[error("client app `{client}` runs another program")]
    WrongProgram {
        /// The client app.
        client: String,
    },
    /// The client's user has as many sessions as it may.
    #[error("user {uid} has as many sessions as it may")]
    TooManySessions {
        /// The user.
        uid: u32,
    },
    /// The server is out of some resource, or has let too many of the user's clients wait already.
    #[error("the server is out of resources")]
    Busy,
    /// The two sides' arenas are not made of the same.
    #[error("this side's memory is {ours:?}, the peer's {theirs:?}")]
    OtherBacking {
        /// This side's.
        ours: Backing,
        /// The peer's.
        theirs: Backing,
    },
    /// Memory with a name can be shrunk under a reader: one side does not trust the other with that.
    #[error("memory with a name needs `Trust::in_place` on both sides")]
    NamedNeedsTrust,
}

/// Where apps meet cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunDirError {
    /// It cannot be made or opened.
    #[error("run directory {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It belongs to somebody else.
    #[error("run directory {} belongs to user {found}, not {expected}", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: u32,
        /// Whose it has to be.
        expected: u32,
    },
    /// Others may write to it.
    #[error("run directory {} is writable by others", path.display())]
    Writable {
        /// The directory.
        path: PathBuf,
    },
}

/// Why a server app is not listening.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BindError {
    /// A living server has the name.
    #[error("server app is running already: {} is locked", path.display())]
    AddrInUse {
        /// The lock file.
        path: PathBuf,
    },
    /// The name of the app, or of one of its channels, cannot be one.
    #[error("`{0}` cannot be a name: 1 to 64 out of A-Z a-z 0-9 . _ -, the first no dot")]
    BadName(String),
    /// It opens more channels in the log-in than fit it.
    #[error("opens more channels than fit a log-in")]
    TooManyChannels,
    /// Where apps meet cannot be used.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// Memory or a descriptor is missing.
    #[error("cannot set up the server")]
    Io(#[from] io::Error),
}

/// Why there is no session, as a client sees it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("no server at {}", path.display())]
    NotFound {
        /// The socket looked for.
        path: PathBuf,
    },
    /// The name of an app, or of a channel, cannot be one.
    #[error("`{0}` cannot be a name: 1 to 64 out of A-Z a-z 0-9 . _ -, the first no dot")]
    BadName(String),
    /// Where apps meet cannot be used.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// Who listens there is somebody else.
    #[error("the server runs as user {found}, not {expected}")]
    WrongServer {
        /// Whom it runs as.
        found: u32,
        /// Whom it has to run as.
        expected: u32,
    },
    /// The server, or this side, refused.
    #[error("log-in refused: {0}")]
    Refused(#[from] LoginError),
    /// The server did not answer in time.
    #[error("log-in timed out")]
    TimedOut,
    /// The server went away before it answered.
    #[error("the server closed the connection during the log-in")]
    Disconnected,
    /// The server's memory cannot be used.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The server's answer broke a rule.
    #[error("the server broke the protocol: {0}")]
    PeerMisbehaved(#[from] PeerMisbehaved),
    /// This side's own arena is full.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// Memory or a descriptor is missing, or the socket refused.
    #[error("cannot connect")]
    Io(#[from] io::Error),
}

/// Why a client that knocked did not get a session, as the server sees it; or why no more are accepted. Unless it is
/// [`Closed`](Self::Closed), go on accepting.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The server was closed.
    #[error("the server is closed")]
    Closed,
    /// Nobody came in time.
    #[error("nobody came in time")]
    TimedOut,
    /// A client was refused.
    #[error("refused a client: {0}")]
    Refused(#[from] LoginError),
    /// Over a socket that was given: the name of this app, or of one of its channels, cannot be one.
    #[error("`{0}` cannot be a name: 1 to 64 out of A-Z a-z 0-9 . _ -, the first no dot")]
    BadName(String),
    /// A client connected and did not log in in time.
    #[error("a client did not log in in time")]
    LoginTimedOut,
    /// A client connected and said nothing until too many others of its user had connected: it was let go for them.
    #[error("a silent client made room for others of its user")]
    LoginCrowdedOut,
    /// A client went away before it was let in.
    #[error("a client closed the connection during its log-in")]
    Disconnected,
    /// A client's first words were none.
    #[error("a client broke the protocol: {0}")]
    PeerMisbehaved(#[from] PeerMisbehaved),
    /// A client's memory cannot be used.
    #[error(transparent)]
    View(#[from] ViewError),
    /// This side's own arena is full.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// Memory or a descriptor is missing.
    #[error("cannot accept")]
    Io(#[from] io::Error),
}

/// Why a channel was not opened or accepted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChannelError {
    /// The session is over.
    #[error("session with `{peer}`: {cause}")]
    Ended {
        /// The app at the other end.
        peer: String,
        /// What ended it.
        cause: Ended,
    },
    /// The name cannot be one.
    #[error("`{0}` cannot be a name: 1 to 64 out of A-Z a-z 0-9 . _ -, the first no dot")]
    BadName(String),
    /// The peer serves no channel of this name.
    #[error("the peer serves no channel `{channel}`")]
    UnknownChannel {
        /// The channel.
        channel: String,
    },
    /// The peer serves a channel of this name in another schema.
    #[error("channel `{channel}`: this side has schema {ours:016x}, the peer {theirs:016x}")]
    WrongSchema {
        /// The channel.
        channel: String,
        /// This side's.
        ours: u64,
        /// The peer's.
        theirs: u64,
    },
    /// The peer's application will not have it.
    #[error("the peer rejected channel `{channel}`: {reason}")]
    Rejected {
        /// The channel.
        channel: String,
        /// The peer's words.
        reason: String,
    },
    /// The metadata is larger than metadata may be.
    #[error("metadata of {bytes} bytes, at most {limit}")]
    MetadataTooLarge {
        /// How many it has.
        bytes: usize,
        /// How many it may have.
        limit: usize,
    },
    /// Blobs or descriptors are attached to the metadata.
    #[error("metadata takes no blobs and no descriptors")]
    AttachedToMetadata,
    /// The metadata lies in an arena that this session's peer does not see.
    #[error("the metadata was built in another session's arena")]
    ForeignArena,
    /// The peer holds as much as it may, so the metadata cannot be lent to it now.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// The session has as many channels, or offers of channels, as it may.
    #[error("the session has as many channels as it may")]
    TooMany,
    /// One side's arena has no room for another channel.
    #[error("no memory for another channel")]
    NoMemory,
    /// The peer did not answer, or nobody opened a channel, in time.
    #[error("timed out")]
    TimedOut,
}

impl From<CutProblem> for ChannelError {
    fn from(problem: CutProblem) -> Self {
        match problem {
            CutProblem::Alloc(_) => Self::NoMemory,
            CutProblem::TooMany => Self::TooMany,
        }
    }
}

/// Why a session was not closed in peace. It is closed, or over, all the same.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseError {
    /// The session was over already, or ended meanwhile.
    #[error("session with `{peer}`: {cause}")]
    Ended {
        /// The app at the other end.
        peer: String,
        /// What ended it.
        cause: Ended,
    },
    /// The peer had not received everything, or not returned everything, in time.
    #[error("the peer still holds {loans} messages, {bytes} bytes, or has not received all")]
    TimedOut {
        /// Messages on loan.
        loans: usize,
        /// Bytes on loan.
        bytes: u64,
    },
}
