//! The owner's book of what one borrower holds. Private memory, one book per session, so lending takes no lock that
//! another session wants, and a borrower's death is one `clear`.

use super::account::Account;
use super::block::Frozen;
use super::handle::Handle;
use crate::sys::brief::{Brief, Holding};
use crate::sys::misbehaved::PeerMisbehaved;
use std::sync::Arc;
use thiserror::Error;

/// What one borrower may hold at a time.
///
/// ```
/// use strait::{LoanQuota, ServerApp};
/// let app = ServerApp::new("cache").loan_quota(LoanQuota { loans: 100, bytes: 1 << 20 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoanQuota {
    /// Messages on loan, at most 2^20.
    pub loans: usize,
    /// Bytes on loan; a message lent twice counts twice.
    pub bytes: u64,
}

/// The borrower holds as much as it may. Room comes back with its returns.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("{scope} holds {loans} messages, {bytes} bytes: as much as it may")]
pub struct QuotaExceeded {
    /// Whose quota.
    pub scope: QuotaScope,
    /// Messages on loan.
    pub loans: usize,
    /// Bytes on loan.
    pub bytes: u64,
}

/// Whom a quota is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaScope {
    /// One session: [`LoanQuota`].
    Session,
    /// All sessions of one user: [`UserQuota`](crate::UserQuota).
    User,
}

impl std::fmt::Display for QuotaScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Session => "the peer",
            Self::User => "the peer's user",
        })
    }
}

/// Why a message is not lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LendProblem {
    Quota(QuotaExceeded),
    /// The borrower is gone.
    Over,
}

/// See the module's own words.
#[derive(Debug)]
pub(crate) struct Loans {
    quota: LoanQuota,
    /// Of the borrower's user, if that has a quota of loans.
    account: Option<Arc<Account>>,
    /// Whether a message that is lent again goes by the same name.
    counts: bool,
    book: Brief<Book>,
}

#[derive(Debug, Default)]
struct Book {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// The entry of the message lent last.
    last: u32,
    loans: usize,
    bytes: u64,
    over: bool,
}

#[derive(Debug)]
struct Entry {
    /// How often the index was used, in the ticket's upper bits.
    round: u32,
    loan: Option<Loan>,
}

#[derive(Debug)]
struct Loan {
    handle: Handle,
    message: Arc<Frozen>,
    /// How often it was lent under this name and has not come back.
    times: u32,
}

impl Drop for Loans {
    fn drop(&mut self) {
        if let Some(account) = &self.account {
            let book = self.book.get_mut();
            account.give_back(book.loans, book.bytes);
        }
    }
}

/// Whoever lends several messages in a row. Nobody else lends, or takes back, meanwhile.
pub(crate) struct Lender<'a> {
    loans: &'a Loans,
    book: Holding<'a, Book>,
}

impl Lender<'_> {
    /// See [`Loans::lend`].
    #[inline]
    pub(crate) fn lend(&mut self, message: &Arc<Frozen>) -> Result<Handle, LendProblem> {
        self.loans.lend_in(&mut self.book, message)
    }
}

const INDEX_BITS: u32 = 20;
const MAX_LOANS: usize = 1 << INDEX_BITS;

#[expect(
    clippy::arithmetic_side_effects,
    reason = "counts of what this side has lent, within its quota; of a peer's handle only a masked index is used"
)]
impl Loans {
    /// `counts`: whether a message that is lent again while it is the last that was lent may go by the same name, which
    /// then comes back as often.
    pub(crate) fn new(quota: LoanQuota, account: Option<Arc<Account>>, counts: bool) -> Self {
        let loans = quota.loans.min(MAX_LOANS);
        let account = account.filter(|account| account.counts_loans());
        Self { quota: LoanQuota { loans, ..quota }, account, counts, book: Brief::default() }
    }

    /// Lends a message once more and names it for the borrower.
    #[inline(always)]
    pub(crate) fn lend(&self, message: &Arc<Frozen>) -> Result<Handle, LendProblem> {
        self.lend_in(&mut self.book.lock(), message)
    }

    /// For many loans under one lock.
    pub(crate) fn lender(&self) -> Lender<'_> {
        Lender { loans: self, book: self.book.lock() }
    }

    #[inline(always)]
    fn lend_in(&self, book: &mut Book, message: &Arc<Frozen>) -> Result<Handle, LendProblem> {
        let bytes = message.bytes();
        if book.over {
            return Err(LendProblem::Over);
        }
        let exceeded =
            LendProblem::Quota(QuotaExceeded { scope: QuotaScope::Session, loans: book.loans, bytes: book.bytes });
        let held = book.bytes.checked_add(bytes).filter(|&held| held <= self.quota.bytes).ok_or(exceeded)?;
        if book.loans >= self.quota.loans {
            return Err(exceeded);
        }
        if let Some(account) = &self.account {
            account.lend(bytes).map_err(LendProblem::Quota)?;
        }
        let last = book.entries.get_mut(book.last as usize).and_then(|entry| entry.loan.as_mut());
        if let Some(loan) = last.filter(|loan| self.counts && Arc::ptr_eq(&loan.message, message)) {
            // At most as often as there may be loans.
            loan.times += 1;
            let handle = loan.handle;
            book.loans += 1;
            book.bytes = held;
            return Ok(handle);
        }
        let (offset, len) = message.place();
        let index = book.free.pop().unwrap_or_else(|| {
            book.entries.push(Entry { round: 0, loan: None });
            // Fewer than 2^20 entries exist, by the quota.
            (book.entries.len() - 1) as u32
        });
        let Some(entry) = book.entries.get_mut(index as usize) else {
            return Err(exceeded);
        };
        entry.round = entry.round.wrapping_add(1);
        let ticket = index | entry.round << INDEX_BITS;
        let handle = Handle::new(message.arena().id(), offset, len, ticket);
        entry.loan = Some(Loan { handle, message: message.clone(), times: 1 });
        book.last = index;
        book.loans += 1;
        book.bytes = held;
        Ok(handle)
    }

    /// What a handle names, as long as it is on loan.
    pub(crate) fn lent(&self, handle: Handle) -> Option<Arc<Frozen>> {
        let book = self.book.lock();
        let entry = book.entries.get((handle.ticket() & (MAX_LOANS as u32 - 1)) as usize)?;
        let loan = entry.loan.as_ref().filter(|loan| loan.handle == handle)?;
        Some(loan.message.clone())
    }

    /// Ends a loan that the borrower names. The memory is freed here if it was the last.
    pub(crate) fn give_back(&self, handle: Handle) -> Result<(), PeerMisbehaved> {
        self.give_back_times(handle, 1)
    }

    /// As [`give_back`](Self::give_back), of what was lent so many times under one name.
    pub(crate) fn give_back_times(&self, handle: Handle, times: u32) -> Result<(), PeerMisbehaved> {
        let mut book = self.book.lock();
        if book.over {
            // What the borrower sent before its end may be received after it: nothing is on loan any more.
            return Ok(());
        }
        let index = handle.ticket() & (MAX_LOANS as u32 - 1);
        let entry = book.entries.get_mut(index as usize).ok_or(PeerMisbehaved::NotOnLoan)?;
        let loan = entry.loan.as_mut().filter(|loan| loan.handle == handle && loan.times >= times);
        let loan = loan.ok_or(PeerMisbehaved::NotOnLoan)?;
        loan.times -= times;
        let bytes = loan.message.bytes() * u64::from(times);
        let over = entry.loan.take_if(|loan| loan.times == 0);
        if over.is_some() {
            book.free.push(index);
        }
        book.loans -= times as usize;
        book.bytes -= bytes;
        drop(book);
        if let Some(account) = &self.account {
            account.give_back(times as usize, bytes);
        }
        // Freeing may take jemalloc's time: not under the lock.
        drop(over);
        Ok(())
    }

    /// Ends every loan: the borrower is gone and reads no more.
    pub(crate) fn reclaim(&self) -> usize {
        let book = std::mem::replace(&mut *self.book.lock(), Book { over: true, ..Book::default() });
        if let Some(account) = &self.account {
            account.give_back(book.loans, book.bytes);
        }
        book.loans
    }

    /// Messages and bytes on loan now.
    pub(crate) fn outstanding(&self) -> (usize, u64) {
        let book = self.book.lock();
        (book.loans, book.bytes)
    }
}
