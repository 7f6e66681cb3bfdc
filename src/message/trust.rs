//! How far a peer's memory is believed.

/// How far this process believes a peer, decided per peer app by whoever accepts it.
///
/// A message lies in its sender's memory, which the sender can write at any time. Reading it there needs the sender's
/// good behaviour, not just its good will: Cap'n Proto checks a pointer and then uses it, and a sender that changes it
/// in between makes the reader read outside the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust(How);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Snapshot { max_bytes: u64 },
    InPlace,
}

/// What a snapshot may cost unless told otherwise: 2 GiB.
const SNAPSHOT_MAX: u64 = 2 << 30;

impl Trust {
    /// Messages are copied into private memory before they are decoded: no sender can do harm. Everyone's default.
    /// Costs one copy of the message; one of more than 2 GiB ends the session. Blobs beside it are not copied, nor counted:
    /// see [`ReceivedBlob`](crate::ReceivedBlob).
    #[must_use]
    pub fn snapshot() -> Self {
        Self::snapshot_up_to(SNAPSHOT_MAX)
    }

    /// As [`snapshot`](Self::snapshot), with a limit of one's own for the size of a message, in bytes.
    #[must_use]
    pub fn snapshot_up_to(max_bytes: u64) -> Self {
        Self(How::Snapshot { max_bytes })
    }

    /// Messages are read where they lie, at any size for the price of none.
    ///
    /// # Safety
    /// You vouch for the program at the other end: it must not write to a message after sending it, nor shrink memory
    /// that has a name ([`Backing::Named`](crate::Backing::Named)). A peer built on this crate cannot do so without `unsafe` code of its own. Say it once per app, for programs that you could
    /// as well have linked into this one; for anyone else take [`snapshot`](Self::snapshot).
    ///
    /// ```
    /// // SAFETY: "reader" is this workspace's own program, which writes no message after sending it.
    /// let trust = unsafe { strait::Trust::in_place() };
    /// assert_ne!(trust, strait::Trust::default());
    /// ```
    #[must_use]
    pub unsafe fn in_place() -> Self {
        Self(How::InPlace)
    }

    /// As much of it as a message of so many bytes needs.
    pub(crate) fn at_most(self, bytes: u64) -> Self {
        Self(match self.0 {
            How::Snapshot { max_bytes } => How::Snapshot { max_bytes: max_bytes.min(bytes) },
            How::InPlace => How::InPlace,
        })
    }

    /// Whether nothing is copied.
    pub(crate) fn is_in_place(self) -> bool {
        self.copy_limit().is_none()
    }

    /// The most bytes to copy; `None` where nothing is copied.
    #[inline]
    pub(crate) fn copy_limit(self) -> Option<u64> {
        match self.0 {
            How::Snapshot { max_bytes } => Some(max_bytes),
            How::InPlace => None,
        }
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self::snapshot()
    }
}
