//! Who said what to whom: numbers, answers, and what is kept for later. Pure: no clocks, no memory of the peer's.

use crate::sys::misbehaved::PeerMisbehaved;
use crate::transport::descriptor::Envelope;
use std::collections::VecDeque;

/// One side's view of both directions.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    sent: u64,
    received: u64,
    /// Requests whose answers are no longer wanted, oldest first.
    given_up: VecDeque<u64>,
    /// Messages that came while an answer was awaited, oldest first.
    kept: VecDeque<Envelope>,
}

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Deliver,
    /// The answer to a request that was given up.
    Late,
}

/// Messages kept while an answer is awaited.
const KEPT_MAX: usize = 4096;

/// Unanswered requests remembered, so that late answers are known as such.
const GIVEN_UP_MAX: usize = 1024;

impl Conversation {
    /// The number the next message sent will have.
    pub(super) fn next_id(&self) -> u64 {
        self.sent + 1
    }

    pub(super) fn sent(&mut self, id: u64) -> u64 {
        debug_assert_eq!(id, self.next_id());
        self.sent = id;
        id
    }

    /// Judges a message by its numbers.
    pub(super) fn arrived(&mut self, id: u64, in_reply_to: Option<u64>) -> Result<Verdict, PeerMisbehaved> {
        let expected = self.received + 1;
        if id != expected {
            return Err(PeerMisbehaved::MessageId { found: id, expected });
        }
        self.received = expected;
        match in_reply_to {
            Some(found) if found > self.sent => Err(PeerMisbehaved::ReplyToNothing { found, sent: self.sent }),
            Some(found) => Ok(match self.given_up.iter().position(|&id| id == found) {
                Some(index) => {
                    self.given_up.remove(index);
                    Verdict::Late
                }
                None => Verdict::Deliver,
            }),
            None => Ok(Verdict::Deliver),
        }
    }

    /// Stops waiting for the answer to a request.
    pub(super) fn give_up(&mut self, id: u64) {
        if self.given_up.len() == GIVEN_UP_MAX {
            self.given_up.pop_front();
        }
        self.given_up.push_back(id);
    }

    /// Whether receiving has to come before anything more is kept.
    pub(super) fn keeps_no_more(&self) -> bool {
        self.kept.len() >= KEPT_MAX
    }

    /// Keeps a message for later.
    pub(super) fn keep(&mut self, envelope: Envelope) {
        debug_assert!(!self.keeps_no_more());
        self.kept.push_back(envelope);
    }

    pub(super) fn next_kept(&mut self) -> Option<Envelope> {
        self.kept.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::handle::Handle;

    fn envelope(id: u64) -> Envelope {
        let handle = Handle::new(1, id, 1, 0);
        Envelope { id, in_reply_to: None, handle, segments: 1, blobs: 0 }
    }

    #[test]
    fn numbers_count_up_by_one() {
        let mut conversation = Conversation::default();
        assert_eq!(conversation.arrived(1, None), Ok(Verdict::Deliver));
        for wrong in [0, 1, 3, u64::MAX] {
            let found = conversation.arrived(wrong, None);
            assert_eq!(found, Err(PeerMisbehaved::MessageId { found: wrong, expected: 2 }));
        }
        assert_eq!(conversation.arrived(2, None), Ok(Verdict::Deliver));
    }

    #[test]
    fn an_answer_to_nothing_is_misbehaviour() {
        let mut conversation = Conversation::default();
        assert_eq!(conversation.arrived(1, Some(1)), Err(PeerMisbehaved::ReplyToNothing { found: 1, sent: 0 }));
    }

    #[test]
    fn an_answer_is_late_once() {
        let mut conversation = Conversation::default();
        let id = conversation.next_id();
        conversation.sent(id);
        conversation.give_up(id);
        assert_eq!(conversation.arrived(1, Some(id)), Ok(Verdict::Late));
        assert_eq!(conversation.arrived(2, Some(id)), Ok(Verdict::Deliver));
    }

    #[test]
    fn what_is_kept_comes_in_order_and_is_bounded() {
        let mut conversation = Conversation::default();
        for id in 1..=KEPT_MAX as u64 {
            assert!(!conversation.keeps_no_more());
            conversation.keep(envelope(id));
        }
        assert!(conversation.keeps_no_more());
        assert!((1..=KEPT_MAX as u64).all(|id| conversation.next_kept() == Some(envelope(id))));
        assert_eq!(conversation.next_kept(), None);
    }
}
