//! File descriptors that travel with messages, as they arrive: all of a message's, or none.

use super::fork::NoForkFd;
use thiserror::Error;

/// The most that travel with one message: what fits one frame with room to spare (the kernel draws the line at 253).
pub(crate) const PASSED_MAX: usize = 64;

/// The descriptors of a message that is sent, once or several times: 1 to 64.
pub(crate) type Fds = std::sync::Arc<Vec<NoForkFd>>;

/// What came for one message.
#[derive(Debug)]
pub(crate) enum Passed<D = NoForkFd> {
    Here(Vec<D>),
    /// So many were sent, and not all of them arrived; those that did are closed.
    Lost(usize),
}

impl<D> Passed<D> {
    /// How many were sent.
    pub(crate) fn sent(&self) -> usize {
        match self {
            Self::Here(fds) => fds.len(),
            Self::Lost(sent) => *sent,
        }
    }
}

/// Descriptors were sent with the message and are not here: this process's table was full, or the sender's user has as
/// many here as it may ([`UserQuota`](crate::UserQuota)), or the sender died before they were on their way, or the kernel
/// does not pass such a kind on. The message itself is whole.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{sent} descriptors were sent with the message and did not arrive")]
pub struct DescriptorsLost {
    /// How many were sent.
    pub sent: usize,
}
