//! The rules of a split channel against a model of them that is one list of everything that ever came, looked through
//! from the beginning each time.

use super::conversation::{Answers, GIVEN_UP_MAX};
use super::routes::{Matches, Place, Routed, Routes, Taken, Wanted};
use crate::sys::misbehaved::PeerMisbehaved;
use proptest::collection::vec;
use proptest::prelude::*;

/// A message: its number and its tag.
type Letter = (u64, Option<u16>);

#[derive(Clone, Debug)]
enum Op {
    Send(Option<Wanted>),
    SendInVain(Option<Wanted>),
    /// Of the peer; answers whatever was sent so many messages ago, if any.
    Arrive {
        answers: Option<(u64, bool)>,
        tag: Option<u16>,
    },
    ArriveOutOfTurn(u64),
    AnswerToNothing(u64),
    TakeOthers,
    /// What was sent so many messages ago.
    TakeAnswer(u64),
    /// By the number of the expectation.
    TakeExpected(usize),
    GiveUp(u64),
    Expect(u16, Matches),
    Unexpect(usize),
    ReceiverGone,
}

#[derive(Default)]
struct Model {
    sent: u64,
    received: u64,
    came: Vec<(Letter, Option<Place>)>,
    requests: Vec<(u64, Wanted, Waits)>,
    given_up: Vec<u64>,
    expectations: Vec<(u64, u16, Matches, Waits)>,
    keys: u64,
    receiver_gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    ForMore,
    /// All that was wanted has come.
    NoMore,
    /// Nobody takes anything there.
    Gone,
}

impl Model {
    fn send(&mut self, wanted: Option<Wanted>) -> u64 {
        self.sent += 1;
        self.requests.extend(wanted.map(|wanted| (self.sent, wanted, Waits::ForMore)));
        self.sent
    }

    fn unsend(&mut self, id: u64) {
        self.sent = id - 1;
        self.requests.retain(|&(request, ..)| request != id);
    }

    fn arrive(&mut self, letter: Letter, answers: Option<Answers>) -> Routed<Letter> {
        self.received += 1;
        let place = match answers {
            Some(Answers { to, more }) => {
                if let Some(at) = self.given_up.iter().position(|&id| id == to) {
                    if !more {
                        self.given_up.remove(at);
                    }
                    return Routed::Unwanted(letter);
                }
                let waiting = self.requests.iter_mut().find(|(id, _, waits)| *id == to && *waits == Waits::ForMore);
                let Some((_, wanted, waits)) = waiting else { return Routed::Unexpected(letter) };
                if *wanted == Wanted::One || !more {
                    *waits = Waits::NoMore;
                    if more {
                        self.remember(to);
                    }
                }
                Place::Request(to)
            }
            None => match self.expecting(letter.1) {
                Some(key) => Place::Expectation(key),
                None if self.receiver_gone => return Routed::Unwanted(letter),
                None => Place::Receiver,
            },
        };
        self.came.push((letter, Some(place)));
        Routed::Kept(place)
    }

    fn remember(&mut self, id: u64) {
        if self.given_up.len() == GIVEN_UP_MAX {
            self.given_up.remove(0);
        }
        self.given_up.push(id);
    }

    /// The expectation that takes the next message with a tag.
    fn expecting(&mut self, tag: Option<u16>) -> Option<u64> {
        let mut waiting = self.expectations.iter_mut().filter(|(.., waits)| *waits == Waits::ForMore);
        let (key, _, matches, waits) = waiting.find(|(_, expected, ..)| Some(*expected) == tag)?;
        if *matches == Matches::Once {
            *waits = Waits::NoMore;
        }
        Some(*key)
    }

    fn at(&self, place: Place) -> Vec<Letter> {
        self.came.iter().filter(|(_, at)| *at == Some(place)).map(|(letter, _)| *letter).collect()
    }

    fn move_from(&mut self, place: Place, to: Option<Place>) {
        self.came.iter_mut().filter(|(_, at)| *at == Some(place)).for_each(|(_, at)| *at = to);
    }

    fn take(&mut self, place: Place) -> Taken<Letter> {
        let next = self.came.iter_mut().find(|(_, at)| *at == Some(place));
        if let Some((letter, at)) = next {
            *at = None;
            return Taken::Message(*letter);
        }
        let waits = match place {
            Place::Receiver => !self.receiver_gone,
            Place::Request(id) => self.requests.iter().any(|&(at, _, waits)| at == id && waits == Waits::ForMore),
            Place::Expectation(key) => {
                self.expectations.iter().any(|&(at, .., waits)| at == key && waits == Waits::ForMore)
            }
        };
        if waits { Taken::Nothing } else { Taken::Over }
    }

    fn give_up(&mut self, id: u64) -> (Vec<Letter>, bool) {
        let Some((_, _, waits)) = self.requests.iter_mut().find(|(request, ..)| *request == id) else {
            return (Vec::new(), false);
        };
        let more = *waits == Waits::ForMore;
        *waits = Waits::Gone;
        if more {
            self.remember(id);
        }
        let unread = self.at(Place::Request(id));
        self.move_from(Place::Request(id), None);
        (unread, more)
    }

    fn expect(&mut self, tag: u16, matches: Matches) -> Option<u64> {
        if self.expectations.iter().any(|&(_, taken, _, waits)| taken == tag && waits == Waits::ForMore) {
            return None;
        }
        self.keys += 1;
        let key = self.keys;
        self.expectations.push((key, tag, matches, Waits::ForMore));
        for at in 0..self.came.len() {
            let ((_, has), place) = self.came[at];
            // Only this expectation can take what lies with the receiver.
            if place == Some(Place::Receiver) && has == Some(tag) && self.expecting(has).is_some() {
                self.came[at].1 = Some(Place::Expectation(key));
            }
        }
        Some(key)
    }

    fn unexpect(&mut self, key: u64) -> Vec<Letter> {
        self.expectations.iter_mut().filter(|(at, ..)| *at == key).for_each(|(.., waits)| *waits = Waits::Gone);
        let place = Place::Expectation(key);
        let unread = if self.receiver_gone { self.at(place) } else { Vec::new() };
        self.move_from(place, (!self.receiver_gone).then_some(Place::Receiver));
        unread
    }

    fn receiver_leaves(&mut self) -> Vec<Letter> {
        let unread = self.at(Place::Receiver);
        self.move_from(Place::Receiver, None);
        self.receiver_gone = true;
        unread
    }

    fn kept(&self) -> usize {
        self.came.iter().filter(|(_, at)| at.is_some()).count()
    }
}

fn wanted() -> impl Strategy<Value = Option<Wanted>> {
    prop_oneof![Just(None), Just(Some(Wanted::One)), Just(Some(Wanted::All))]
}

/// Now and then one from long ago.
fn ago() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..8_u64, 1 => 0..2_000_u64]
}

fn op() -> impl Strategy<Value = Op> {
    let answers = prop::option::of((ago(), any::<bool>()));
    let matches = prop_oneof![Just(Matches::Once), Just(Matches::Always)];
    prop_oneof![
        12 => wanted().prop_map(Op::Send),
        1 => wanted().prop_map(Op::SendInVain),
        24 => (answers, prop::option::of(0..3_u16)).prop_map(|(answers, tag)| Op::Arrive { answers, tag }),
        1 => any::<u64>().prop_map(Op::ArriveOutOfTurn),
        1 => (1..5_u64).prop_map(Op::AnswerToNothing),
        6 => Just(Op::TakeOthers),
        8 => ago().prop_map(Op::TakeAnswer),
        6 => (0..6_usize).prop_map(Op::TakeExpected),
        3 => ago().prop_map(Op::GiveUp),
        2 => (0..3_u16, matches).prop_map(|(tag, matches)| Op::Expect(tag, matches)),
        2 => (0..6_usize).prop_map(Op::Unexpect),
    ]
}

/// Both do the same; whatever they say must be the same.
fn apply(op: &Op, routes: &mut Routes<Letter>, model: &mut Model) {
    let sent_ago = |model: &Model, ago: u64| model.sent.saturating_sub(ago);
    let key = |model: &Model, back: usize| model.keys.saturating_sub(back as u64);
    let letters = |unread: std::collections::VecDeque<(u64, Letter)>| -> Vec<Letter> {
        unread.into_iter().map(|(_, letter)| letter).collect()
    };
    match *op {
        Op::Send(wanted) => assert_eq!(routes.send(wanted), model.send(wanted)),
        Op::SendInVain(wanted) => {
            let id = routes.send(wanted);
            assert_eq!(id, model.send(wanted));
            routes.unsend(id);
            model.unsend(id);
        }
        Op::Arrive { answers, tag } => {
            let answers = answers.map(|(ago, more)| Answers { to: sent_ago(model, ago), more });
            let answers = answers.filter(|answers| answers.to > 0);
            let letter = (model.received + 1, tag);
            let routed = routes.arrived(letter.0, answers, letter, |&(_, tag)| tag);
            assert_eq!(routed, Ok(model.arrive(letter, answers)));
        }
        Op::ArriveOutOfTurn(id) if id != model.received + 1 => {
            let routed = routes.arrived(id, None, (id, None), |_| None);
            assert_eq!(routed, Err(PeerMisbehaved::MessageId { found: id, expected: model.received + 1 }));
        }
        Op::ArriveOutOfTurn(_) => {}
        Op::AnswerToNothing(beyond) => {
            let (id, found) = (model.received + 1, model.sent + beyond);
            let routed = routes.arrived(id, Some(Answers { to: found, more: false }), (id, None), |_| None);
            assert_eq!(routed, Err(PeerMisbehaved::ReplyToNothing { found, sent: model.sent }));
            model.received += 1;
        }
        Op::TakeOthers => assert_eq!(routes.take(Place::Receiver), model.take(Place::Receiver)),
        Op::TakeAnswer(ago) => {
            let place = Place::Request(sent_ago(model, ago));
            assert_eq!(routes.take(place), model.take(place));
        }
        Op::TakeExpected(back) => {
            let place = Place::Expectation(key(model, back));
            assert_eq!(routes.take(place), model.take(place));
        }
        Op::GiveUp(ago) => {
            let id = sent_ago(model, ago);
            let (unread, more) = routes.give_up(id);
            // A request whose answers were all taken is nowhere any more; the model keeps it for ever.
            assert_eq!((Vec::from(unread), more), model.give_up(id));
        }
        Op::Expect(tag, matches) => {
            assert_eq!(routes.expect(tag, matches, |&(_, tag)| tag), model.expect(tag, matches));
        }
        Op::Unexpect(back) => {
            let key = key(model, back);
            assert_eq!(letters(routes.unexpect(key)), model.unexpect(key));
        }
        Op::ReceiverGone => assert_eq!(letters(routes.receiver_gone()), model.receiver_leaves()),
    }
    assert_eq!((routes.kept(), routes.has_receiver()), (model.kept(), !model.receiver_gone));
}

proptest! {
    // Ten thousand operations in all.
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn routes_are_as_the_model_says(ops in vec(op(), 1_000), receiver_leaves in prop::option::of(0..1_000_usize)) {
        let (mut routes, mut model) = (Routes::new(Default::default(), std::iter::empty()), Model::default());
        for (at, op) in ops.iter().enumerate() {
            apply(op, &mut routes, &mut model);
            if receiver_leaves == Some(at) {
                apply(&Op::ReceiverGone, &mut routes, &mut model);
            }
        }
    }
}

/// What was kept before the split is the receiver's, and may be expected.
#[test]
fn what_was_kept_before_stays_in_order() {
    let letter = |id: u64| (id, (id, Some(id as u16 % 2)));
    let mut conversation = super::conversation::Conversation::default();
    for id in 1..=6 {
        assert_eq!(conversation.arrived(id, None), Ok(super::conversation::Verdict::Deliver));
    }
    let mut routes = Routes::new(conversation, (1..=6).map(letter));
    let odd = routes.expect(1, Matches::Always, |&(_, tag)| tag).expect("free");
    assert_eq!(routes.take(Place::Receiver), Taken::Message(letter(2).1));
    assert_eq!(routes.take(Place::Expectation(odd)), Taken::Message(letter(1).1));
    assert!(routes.unexpect(odd).is_empty());
    for id in [3, 4, 5, 6] {
        assert_eq!(routes.take(Place::Receiver), Taken::Message(letter(id).1));
    }
    assert_eq!(routes.take(Place::Receiver), Taken::Nothing);
}
