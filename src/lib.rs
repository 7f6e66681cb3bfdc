//! Shared-memory sessions whose messages are never copied: first the README, then the floor plan.
#![doc = include_str!("../README.md")]
//!
//! # The house
//!
//! Rooms on floors; each imports only from floors below it, which a test enforces.
//!
//! | floor | room | knows |
//! |---|---|---|
//! | 0 | `sys` | the kernel: memfd, mapping, sockets, futex |
//! | 1 | `shm` | who owns which shared byte: arenas, loans, views |
//! | 2 | `ring`, `wait` | slots between two processes; sleeping and waking |
//! | 3 | `transport`, `message` | the link of a session; Cap'n Proto over blocks |
//! | 4 | `channel` | a conversation |
//! | 5 | `session`, `multicast` | apps, log-in, sessions; one publisher and many subscribers |
//! | 6 | `event` | waiting for everything at once: the event loop, tokio |

// Nothing a peer sends may stop this process. Rooms and files that handle a peer's words deny unchecked arithmetic as well.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::todo,
        clippy::unimplemented,
        clippy::unwrap_used
    )
)]
// The models build two rooms alone.
#![cfg_attr(strait_loom, allow(dead_code, missing_docs, unused_imports))]
#![cfg_attr(not(strait_loom), deny(unreachable_pub))]

#[cfg(not(strait_loom))]
mod channel;
#[cfg(not(strait_loom))]
pub mod event;
#[cfg(not(strait_loom))]
mod message;
#[cfg(not(strait_loom))]
mod multicast;
pub mod ring;
#[cfg(not(strait_loom))]
mod session;
#[cfg(not(strait_loom))]
mod shm;
mod sys;
#[cfg(not(strait_loom))]
mod transport;
mod wait;

/// What native values are defined by: the version that this crate was built with.
#[cfg(not(strait_loom))]
pub use zerocopy;

/// What graphs of native values are archived by: the version that this crate was built with.
#[cfg(all(feature = "rkyv", not(strait_loom)))]
pub use rkyv;

#[cfg(not(strait_loom))]
pub use self::{
    channel::{
        Channel, DrainError, ExpectError, Expected, ForwardError, Forwarded, Receiver, RecvError, Replies,
        RequestError, SendAllError, SendError, Sender, TryIter,
    },
    message::{
        Builder, CopyError, DataTooLong, FreezeError, Message, Received, Schema, SealError, SealedBuilder, Trust,
        data_len,
    },
    multicast::{
        AddError, Dismissed, Policy, PublishError, Publisher, SubscribeError, Subscriber, SubscriberState,
        SubscriptionError,
    },
    session::{
        AcceptError, BindError, ChannelError, ClientApp, CloseError, ConnectError, LoginError, Offer, Reconnect,
        RunDirError, ServerApp, Session, SessionServer, Version,
    },
    shm::{
        account::UserQuota,
        arena::{AllocError, Arena},
        blob::{Blob, BlobBuilder, BlobReader, ReceivedBlob},
        counters::{Counters, LoanedCounters},
        loans::{LoanQuota, QuotaExceeded, QuotaScope},
        value::{Loaned, Shared, ValueError},
        view::ViewError,
    },
    sys::{
        memfd::BadMemory, memory::Backing, misbehaved::PeerMisbehaved, passed::DescriptorsLost, seqpacket::Credentials,
    },
    transport::{
        ended::{Ended, EndedError},
        lane::WaitStats,
    },
    wait::Wait,
};

#[cfg(all(any(fuzzing, test), not(strait_loom)))]
#[doc(hidden)]
pub use self::session::seams;
#[cfg(all(feature = "rkyv", not(strait_loom)))]
pub use self::shm::graph::{GraphError, GraphWriter};
