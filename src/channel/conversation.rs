//! The numbers of a conversation: who said what to whom, and which answers are wanted. Pure: no clocks, no threads, no
//! memory of the peer's. [`routes`](super::routes) says where a message goes once it has passed.

use crate::sys::misbehaved::PeerMisbehaved;
use std::collections::VecDeque;

/// One side's view of both directions.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    sent: u64,
    received: u64,
    /// Requests whose answers are no longer wanted, oldest first.
    given_up: VecDeque<u64>,
}

/// What a message says of itself, beside its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answers {
    /// The other direction's message that it answers.
    pub(super) to: u64,
    /// More answers to the same follow.
    pub(super) more: bool,
}

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Deliver,
    /// The answer to a request that was given up.
    Late,
}

/// Requests remembered that were given up before their last answer, so that later answers are known as such. Those of
/// older ones count as unexpected.
pub(super) const GIVEN_UP_MAX: usize = 1024;

#[expect(clippy::arithmetic_side_effects, reason = "counts of messages; a peer's numbers are only compared with them")]
impl Conversation {
    /// The number the next message sent will have.
    #[inline]
    pub(super) fn next_id(&self) -> u64 {
        self.sent + 1
    }

    #[inline]
    pub(super) fn sent(&mut self, id: u64) -> u64 {
        debug_assert_eq!(id, self.next_id());
        self.sent = id;
        id
    }

    /// What was about to be sent was not.
    pub(super) fn unsent(&mut self, id: u64) {
        debug_assert_eq!(id, self.sent);
        self.sent = id - 1;
    }

    /// Judges a message by its numbers.
    #[inline]
    pub(super) fn arrived(&mut self, id: u64, answers: Option<Answers>) -> Result<Verdict, PeerMisbehaved> {
        let expected = self.received + 1;
        if id != expected {
            return Err(PeerMisbehaved::MessageId { found: id, expected });
        }
        self.received = expected;
        match answers {
            Some(Answers { to, .. }) if to > self.sent => {
                Err(PeerMisbehaved::ReplyToNothing { found: to, sent: self.sent })
            }
            Some(answers) if !self.given_up.is_empty() => Ok(self.late(answers)),
            _ => Ok(Verdict::Deliver),
        }
    }

    #[cold]
    fn late(&mut self, answers: Answers) -> Verdict {
        match self.given_up.iter().position(|&id| id == answers.to) {
            Some(index) => {
                if !answers.more {
                    self.given_up.remove(index);
                }
                Verdict::Late
            }
            None => Verdict::Deliver,
        }
    }

    /// Stops waiting for answers to a request whose last has not come.
    pub(super) fn give_up(&mut self, id: u64) {
        if self.given_up.len() == GIVEN_UP_MAX {
            self.given_up.pop_front();
        }
        self.given_up.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(to: u64, more: bool) -> Option<Answers> {
        Some(Answers { to, more })
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
        assert_eq!(conversation.arrived(1, to(1, false)), Err(PeerMisbehaved::ReplyToNothing { found: 1, sent: 0 }));
        conversation.sent(1);
        conversation.unsent(1);
        assert_eq!(conversation.arrived(2, to(1, true)), Err(PeerMisbehaved::ReplyToNothing { found: 1, sent: 0 }));
    }

    #[test]
    fn answers_are_late_until_the_last() {
        let mut conversation = Conversation::default();
        let id = conversation.next_id();
        conversation.sent(id);
        conversation.give_up(id);
        assert_eq!(conversation.arrived(1, to(id, true)), Ok(Verdict::Late));
        assert_eq!(conversation.arrived(2, to(id, false)), Ok(Verdict::Late));
        assert_eq!(conversation.arrived(3, to(id, false)), Ok(Verdict::Deliver));
    }

    #[test]
    fn what_was_given_up_is_remembered_up_to_a_bound() {
        let mut conversation = Conversation::default();
        for id in 1..=GIVEN_UP_MAX as u64 + 1 {
            conversation.sent(id);
            conversation.give_up(id);
        }
        assert_eq!(conversation.arrived(1, to(1, false)), Ok(Verdict::Deliver));
        assert_eq!(conversation.arrived(2, to(2, false)), Ok(Verdict::Late));
    }
}
