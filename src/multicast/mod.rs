//! L5: one publisher, many subscribers in as many sessions. A message is written once, described once, in a ring that all
//! of them read; each says in words of its own how far it is. Knows channels, of which each subscriber has one, not how
//! sessions come about.

mod error;
mod publisher;
mod roll;
mod standing;
mod subscriber;

pub use error::{AddError, Dismissed, PublishError, SubscribeError, SubscriptionError};
pub use publisher::{Publisher, SubscriberState};
pub use subscriber::Subscriber;

use std::time::Duration;

/// What becomes of a subscriber that is slower than its publisher. It never slows other subscribers down further than
/// this says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// The publisher waits for it, so it loses nothing: each time at most so long, after which it is dismissed.
    Block {
        /// How long one [`publish`](Publisher::publish) waits for it.
        patience: Duration,
    },
    /// Where the ring has no more room, the oldest quarter of what it has not begun to read is not for it any more. It
    /// goes on with what follows, and learns how many messages it has lost. Nobody waits for it.
    DropOldest,
    /// It loses nothing, and nobody waits for it: may be behind by so many messages (at most as many as the ring has
    /// slots), and is dismissed before the next.
    Lossless {
        /// How many.
        behind: u32,
    },
}
