//! What all sessions of one user have together. Counters only: whoever takes something gives it back, dead or alive.

use super::loans::{QuotaExceeded, QuotaScope};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What all sessions that one user has with a server app may have together at a time. `default` is without limits. That is
/// what the server's own user has unless told otherwise; any other user has [`OF_OTHERS`](Self::OF_OTHERS).
///
/// ```
/// use strait::{ServerApp, UserQuota};
/// let app = ServerApp::new("cache").user_quota(UserQuota { sessions: 100, bytes: 1 << 30, ..UserQuota::default() });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserQuota {
    /// Sessions.
    pub sessions: usize,
    /// Channels of all sessions.
    pub channels: usize,
    /// Messages on loan.
    pub loans: usize,
    /// Bytes on loan; a message lent twice counts twice.
    pub bytes: u64,
    /// File descriptors that are open in this process because they came with messages which were not received yet. A
    /// message whose own would be more arrives without them ([`DescriptorsLost`](crate::DescriptorsLost)); they are
    /// closed at once. Whatever the limit, 128 per session, which an honest sender waits for.
    pub descriptors: usize,
}

impl UserQuota {
    /// What users other than the server's own may have unless it is told otherwise: 64 sessions, 4,096 channels, 1,024
    /// descriptors; what is on loan is bounded by the arena that each of their sessions has of its own.
    pub const OF_OTHERS: Self =
        Self { sessions: 64, channels: 4096, loans: usize::MAX, bytes: u64::MAX, descriptors: 1024 };
}

impl Default for UserQuota {
    fn default() -> Self {
        let most = usize::MAX;
        Self { sessions: most, channels: most, loans: most, bytes: u64::MAX, descriptors: most }
    }
}

/// See the module's own words.
#[derive(Debug)]
pub(crate) struct Account {
    quota: UserQuota,
    // Only the numbers are shared, nothing is published by them: relaxed throughout.
    sessions: AtomicUsize,
    channels: AtomicUsize,
    loans: AtomicUsize,
    bytes: AtomicU64,
    descriptors: AtomicUsize,
}

/// A session, a channel, or a descriptor, that counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    account: Arc<Account>,
    what: fn(&Account) -> &AtomicUsize,
}

impl Account {
    pub(crate) fn new(quota: UserQuota) -> Self {
        let [sessions, channels, loans, descriptors] = [const { AtomicUsize::new(0) }; 4];
        Self { quota, sessions, channels, loans, bytes: AtomicU64::new(0), descriptors }
    }

    /// Whether it has a limit for what is on loan: counting that costs each message something.
    pub(crate) fn counts_loans(&self) -> bool {
        self.quota.loans < usize::MAX || self.quota.bytes < u64::MAX
    }

    /// `None` if the user has as many sessions as it may.
    pub(crate) fn session(self: &Arc<Self>) -> Option<Counted> {
        self.count(|account| &account.sessions, self.quota.sessions)
    }

    /// `None` if the user has as many channels as it may.
    pub(crate) fn channel(self: &Arc<Self>) -> Option<Counted> {
        self.count(|account| &account.channels, self.quota.channels)
    }

    /// `None` if the user has as many descriptors here as it may.
    pub(crate) fn descriptor(self: &Arc<Self>) -> Option<Counted> {
        self.count(|account| &account.descriptors, self.quota.descriptors)
    }

    fn count(self: &Arc<Self>, what: fn(&Self) -> &AtomicUsize, limit: usize) -> Option<Counted> {
        let one_more = |count: usize| (count < limit).then(|| count + 1);
        what(self).fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Counted { account: self.clone(), what })
    }

    /// Books a loan of so many bytes.
    #[cold]
    pub(super) fn lend(&self, bytes: u64) -> Result<(), QuotaExceeded> {
        let one_more = |loans: usize| (loans < self.quota.loans).then(|| loans + 1);
        let more = |held: u64| held.checked_add(bytes).filter(|&held| held <= self.quota.bytes);
        if self.loans.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return Err(self.exceeded());
        }
        if self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            self.loans.fetch_sub(1, Ordering::Relaxed);
            return Err(self.exceeded());
        }
        Ok(())
    }

    /// So much has come back.
    #[cold]
    pub(super) fn give_back(&self, loans: usize, bytes: u64) {
        self.loans.fetch_sub(loans, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn exceeded(&self) -> QuotaExceeded {
        let (loans, bytes) = (self.loans.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        QuotaExceeded { scope: QuotaScope::User, loans, bytes }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.what)(&self.account).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_counted_until_it_is_given_back() {
        let account =
            Arc::new(Account::new(UserQuota { sessions: 2, channels: 1, loans: 2, bytes: 100, descriptors: 1 }));
        let (one, two) = (account.session().unwrap(), account.session().unwrap());
        assert!(account.session().is_none());
        drop(one);
        let three = account.session().unwrap();
        assert!(account.session().is_none());
        // Each kind by itself.
        let channel = account.channel().unwrap();
        assert!(account.channel().is_none());
        drop((two, three, channel));
        assert!(account.channel().is_some());
        let descriptor = account.descriptor().unwrap();
        assert!(account.descriptor().is_none());
        drop(descriptor);
        assert!(account.descriptor().is_some());
        account.lend(60).unwrap();
        assert_eq!(account.lend(41), Err(QuotaExceeded { scope: QuotaScope::User, loans: 1, bytes: 60 }));
        account.lend(40).unwrap();
        assert_eq!(account.lend(0), Err(QuotaExceeded { scope: QuotaScope::User, loans: 2, bytes: 100 }));
        account.give_back(2, 100);
        account.lend(100).unwrap();
    }
}
