//! Who is compared, and how they wait. Names only.

use clap::ValueEnum;
use serde::Serialize;

/// A way for two processes to ask and answer, or a floor under all of them.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// Two cache lines, written in turn: nothing is asked
    Line,
    /// Two futexes, woken in turn: nothing is asked
    Futex,
    /// 8 bytes echoed over a Unix stream socket
    Echo,
    /// strait, read in place
    Strait,
    /// The same, each answer built anew
    StraitFresh,
    /// iceoryx2, request and response; only the ends of the loaned answer are written
    Iceoryx2Rr,
    /// The same, the answer copied into the loan, as a server that keeps it must
    Iceoryx2RrCopy,
    /// iceoryx2, a publisher and a subscriber each way; only the ends are written
    Iceoryx2PubSub,
    /// ipc-channel, bytes
    IpcBytes,
    /// ipc-channel, the same shared memory sent each time
    IpcShared,
    /// capnp-rpc over a Unix stream socket
    CapnpRpc,
    /// The bytes over a Unix stream socket, into a buffer that is used again
    Socket,
}

/// How both sides wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wait {
    /// Looking again and again
    Poll,
    /// Looking for some time, then asleep
    Adaptive,
    /// Asleep
    Block,
}

impl Peer {
    /// As it is spelt everywhere.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Line => "line",
            Self::Futex => "futex",
            Self::Echo => "echo",
            Self::Strait => "strait",
            Self::StraitFresh => "strait-fresh",
            Self::Iceoryx2Rr => "iceoryx2-rr",
            Self::Iceoryx2RrCopy => "iceoryx2-rr-copy",
            Self::Iceoryx2PubSub => "iceoryx2-pub-sub",
            Self::IpcBytes => "ipc-bytes",
            Self::IpcShared => "ipc-shared",
            Self::CapnpRpc => "capnp-rpc",
            Self::Socket => "socket",
        }
    }

    /// The ways of waiting it is measured with.
    pub(crate) fn waits(self) -> &'static [Wait] {
        match self {
            Self::Line => &[Wait::Poll],
            Self::Futex | Self::Echo | Self::IpcBytes | Self::IpcShared | Self::CapnpRpc => &[Wait::Block],
            Self::Strait => &[Wait::Poll, Wait::Adaptive, Wait::Block],
            Self::StraitFresh | Self::Iceoryx2Rr | Self::Iceoryx2RrCopy | Self::Iceoryx2PubSub | Self::Socket => {
                &[Wait::Poll, Wait::Block]
            }
        }
    }

    /// Whether its time must grow with the answer.
    pub(crate) fn moves_bytes(self) -> bool {
        matches!(self, Self::StraitFresh | Self::Iceoryx2RrCopy | Self::IpcBytes | Self::CapnpRpc | Self::Socket)
    }

    /// Whether it is there to be compared with, whatever the size.
    pub(crate) fn is_floor(self) -> bool {
        matches!(self, Self::Line | Self::Futex | Self::Echo)
    }
}

impl Wait {
    /// As it is spelt everywhere.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Adaptive => "adaptive",
            Self::Block => "block",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_spelt_on_the_command_line() {
        for peer in Peer::value_variants() {
            let value = peer.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(value.as_deref(), Some(peer.name()));
        }
        for wait in Wait::value_variants() {
            let value = wait.to_possible_value().map(|value| value.get_name().to_owned());
            assert_eq!(value.as_deref(), Some(wait.name()));
        }
    }
}
