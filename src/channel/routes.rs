//! Where each message of a split channel goes: to the request it answers, to an expectation of its tag, to the receiver,
//! or nowhere. Pure: messages are opaque, nobody waits here, and whatever is kept is kept in order and counted.

use super::conversation::{Answers, Conversation, Verdict};
use crate::ring::SLOTS_RANGE;
use crate::sys::misbehaved::PeerMisbehaved;
use std::collections::{HashMap, VecDeque};

/// See the module's own words.
#[derive(Debug)]
pub(super) struct Routes<M> {
    conversation: Conversation,
    asked: HashMap<u64, Asked<M>>,
    expectations: Vec<Expectation<M>>,
    /// What nobody expects, by number, in order.
    others: VecDeque<(u64, M)>,
    kept: usize,
    keys: u64,
    has_receiver: bool,
}

/// Somebody who takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Receiver,
    /// By the number of the request.
    Request(u64),
    /// By key.
    Expectation(u64),
}

/// What came of a message that arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Routed<M> {
    Kept(Place),
    /// An answer that is no longer wanted, or a message that nobody is left to receive.
    Unwanted(M),
    /// An answer to what was no request, or after the last answer.
    Unexpected(M),
}

/// What there is at a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<M> {
    Message(M),
    Nothing,
    /// Nothing, and nothing will come.
    Over,
}

/// How many answers a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    One,
    All,
}

/// How many messages an expectation takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matches {
    Once,
    Always,
}

#[derive(Debug)]
struct Asked<M> {
    wanted: Wanted,
    answers: VecDeque<M>,
    /// The last answer that is wanted has come.
    over: bool,
}

#[derive(Debug)]
struct Expectation<M> {
    key: u64,
    tag: u16,
    matches: Matches,
    /// It takes no more messages.
    over: bool,
    matched: VecDeque<(u64, M)>,
}

/// Messages kept in all, for whomever. Beyond that none is taken out of the ring.
pub(super) const KEPT_MAX: usize = 4096;

/// As many once the peer is gone: what is left of it fits its ring.
pub(super) const KEPT_AT_LAST: usize = KEPT_MAX + *SLOTS_RANGE.end() as usize;

#[expect(clippy::arithmetic_side_effects, reason = "counts of the messages that are in the queues here")]
impl<M> Routes<M> {
    /// Takes over a conversation with what was kept in it for the receiver, in order.
    pub(super) fn new(conversation: Conversation, kept: impl Iterator<Item = (u64, M)>) -> Self {
        let others: VecDeque<_> = kept.collect();
        Self {
            conversation,
            asked: HashMap::new(),
            expectations: Vec::new(),
            kept: others.len(),
            others,
            keys: 0,
            has_receiver: true,
        }
    }

    /// Counts a message as sent, before the peer can answer it; `wanted` makes it a request.
    pub(super) fn send(&mut self, wanted: Option<Wanted>) -> u64 {
        let id = self.conversation.sent(self.conversation.next_id());
        if let Some(wanted) = wanted {
            self.asked.insert(id, Asked { wanted, answers: VecDeque::new(), over: false });
        }
        id
    }

    /// What was sent last was not sent after all.
    pub(super) fn unsend(&mut self, id: u64) {
        self.conversation.unsent(id);
        self.asked.remove(&id);
    }

    /// Judges a message by its numbers and keeps it for whoever takes it. `tag` is asked only if anything is expected.
    pub(super) fn arrived(
        &mut self,
        id: u64,
        answers: Option<Answers>,
        message: M,
        tag: impl FnOnce(&M) -> Option<u16>,
    ) -> Result<Routed<M>, PeerMisbehaved> {
        let verdict = self.conversation.arrived(id, answers)?;
        Ok(match answers {
            _ if verdict == Verdict::Late => Routed::Unwanted(message),
            Some(answers) => self.answered(answers, message),
            None => self.sort(id, message, tag),
        })
    }

    fn answered(&mut self, answers: Answers, message: M) -> Routed<M> {
        let Some(asked) = self.asked.get_mut(&answers.to).filter(|asked| !asked.over) else {
            return Routed::Unexpected(message);
        };
        asked.answers.push_back(message);
        asked.over = asked.wanted == Wanted::One || !answers.more;
        self.kept += 1;
        if asked.over && answers.more {
            // One answer was wanted: what follows it is too much, but no surprise.
            self.conversation.give_up(answers.to);
        }
        Routed::Kept(Place::Request(answers.to))
    }

    fn sort(&mut self, id: u64, message: M, tag: impl FnOnce(&M) -> Option<u16>) -> Routed<M> {
        let tag = if self.expectations.is_empty() { None } else { tag(&message) };
        let expecting = self.expectations.iter_mut().find(|expectation| expectation.takes(tag));
        let place = match expecting {
            Some(expectation) => {
                expectation.take(id, message);
                Place::Expectation(expectation.key)
            }
            None if self.has_receiver => {
                self.others.push_back((id, message));
                Place::Receiver
            }
            None => return Routed::Unwanted(message),
        };
        self.kept += 1;
        Routed::Kept(place)
    }

    /// Takes the next message at a place.
    pub(super) fn take(&mut self, place: Place) -> Taken<M> {
        let (found, over) = match place {
            Place::Receiver => (self.others.pop_front().map(|(_, message)| message), !self.has_receiver),
            Place::Request(id) => match self.asked.get_mut(&id) {
                None => (None, true),
                Some(asked) => {
                    let (found, over) = (asked.answers.pop_front(), asked.over);
                    if over && asked.answers.is_empty() {
                        self.asked.remove(&id);
                    }
                    (found, over)
                }
            },
            Place::Expectation(key) => match self.expectations.iter_mut().find(|expectation| expectation.key == key) {
                None => (None, true),
                Some(expectation) => (expectation.matched.pop_front().map(|(_, message)| message), expectation.over),
            },
        };
        match found {
            Some(message) => {
                self.kept -= 1;
                Taken::Message(message)
            }
            None if over => Taken::Over,
            None => Taken::Nothing,
        }
    }

    /// Stops waiting for answers. Gives back those that nobody has taken, and tells whether more may come.
    pub(super) fn give_up(&mut self, id: u64) -> (VecDeque<M>, bool) {
        let Some(asked) = self.asked.remove(&id) else { return (VecDeque::new(), false) };
        if !asked.over {
            self.conversation.give_up(id);
        }
        self.kept -= asked.answers.len();
        (asked.answers, !asked.over)
    }

    /// Messages with this tag, those kept already among them, go to a place of their own from now on. `None` if they do
    /// already.
    pub(super) fn expect(&mut self, tag: u16, matches: Matches, tag_of: impl Fn(&M) -> Option<u16>) -> Option<u64> {
        if self.expectations.iter().any(|expectation| expectation.takes(Some(tag))) {
            return None;
        }
        self.keys += 1;
        let key = self.keys;
        let mut expectation = Expectation { key, tag, matches, over: false, matched: VecDeque::new() };
        for (id, message) in std::mem::take(&mut self.others) {
            let takes = !expectation.over && expectation.takes(tag_of(&message));
            if takes {
                expectation.take(id, message);
            } else {
                self.others.push_back((id, message));
            }
        }
        self.expectations.push(expectation);
        Some(key)
    }

    /// Ends an expectation: what it has goes back to the receiver, in order. Gives it back if there is none.
    pub(super) fn unexpect(&mut self, key: u64) -> VecDeque<(u64, M)> {
        let Some(at) = self.expectations.iter().position(|expectation| expectation.key == key) else {
            return VecDeque::new();
        };
        let mut matched = self.expectations.remove(at).matched;
        if !self.has_receiver {
            self.kept -= matched.len();
            return matched;
        }
        self.others.append(&mut matched);
        self.others.make_contiguous().sort_by_key(|(id, _)| *id);
        VecDeque::new()
    }

    /// Nobody receives any more, except answers and what is expected. Gives back what was kept.
    pub(super) fn receiver_gone(&mut self) -> VecDeque<(u64, M)> {
        self.has_receiver = false;
        self.kept -= self.others.len();
        std::mem::take(&mut self.others)
    }

    pub(super) fn has_receiver(&self) -> bool {
        self.has_receiver
    }

    /// Whether something has to be taken before anything more may arrive.
    pub(super) fn is_full(&self) -> bool {
        self.kept >= KEPT_MAX
    }

    /// How many messages are kept.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }
}

impl<M> Expectation<M> {
    fn takes(&self, tag: Option<u16>) -> bool {
        !self.over && tag == Some(self.tag)
    }

    fn take(&mut self, id: u64, message: M) {
        self.matched.push_back((id, message));
        self.over = self.matches == Matches::Once;
    }
}
