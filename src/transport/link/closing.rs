//! How a channel ends: each side says when it fills no more slots, and then when it looks at the other's no more. Pure: told
//! what happens, it tells what is to be done. What is said between two calls is the caller's to say in that order.

/// How far a side is with a channel. It closes when its application is done with it, and tells the other side. Until that
/// has closed as well, it may have filled more slots, so they are emptied once more then; who has done that leaves and says
/// so. Then the other side has its half to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Open,
    /// Fills no more slots.
    Closed,
    /// Empties none either: does not look at the other side's half.
    Left,
}

/// Which of the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Here,
    There,
}

/// Both sides' phases, as one of them knows them, and what it has yet to empty for the last time.
#[derive(Debug)]
pub(super) struct Closing<R> {
    here: Phase,
    there: Phase,
    rest: Option<R>,
}

impl<R> Default for Closing<R> {
    fn default() -> Self {
        Self { here: Phase::Open, there: Phase::Open, rest: None }
    }
}

impl<R> Closing<R> {
    pub(super) fn here(&self) -> Phase {
        self.here
    }

    pub(super) fn there(&self) -> Phase {
        self.there
    }

    /// This side is done with the channel. True if the other side is to be told so; then comes [`said`](Self::said).
    pub(super) fn close(&mut self) -> bool {
        self.here = Phase::Closed;
        self.there == Phase::Open
    }

    /// What was to be said has been, and not before: nobody may say that this side has left before it was said to have
    /// closed. What is left to empty is kept until the other side has closed; given back if it has, it is to leave.
    #[must_use]
    pub(super) fn said(&mut self, rest: R) -> Option<R> {
        if self.there == Phase::Open {
            self.rest = Some(rest);
            return None;
        }
        Some(rest)
    }

    /// The other side has closed. What is left to empty here, if this side only waited for that: it is to leave.
    #[must_use]
    pub(super) fn closed_there(&mut self) -> Option<R> {
        self.there = self.there.max(Phase::Closed);
        self.rest.take()
    }

    /// Whether the other side may say that it has left: it knows that this side has closed.
    pub(super) fn may_leave(&self) -> bool {
        self.here > Phase::Open
    }

    /// One side has left. True once both have: the channel is over.
    pub(super) fn left(&mut self, who: Who) -> bool {
        match who {
            Who::Here => self.here = Phase::Left,
            Who::There => self.there = Phase::Left,
        }
        self.here.min(self.there) == Phase::Left
    }

    /// What is left to empty, which nobody will.
    pub(super) fn abandon(&mut self) -> Option<R> {
        self.rest.take()
    }
}

/// Two sides with two threads each, whatever the order in which they get to run.
#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use shuttle::sync::mpsc::{Receiver, Sender, channel};
    use shuttle::sync::{Arc, Mutex};
    use shuttle::thread;

    #[derive(Debug, PartialEq, Eq)]
    enum Word {
        Closed,
        Left,
    }

    /// A side as the link has it: the lock is not held while anything is said.
    struct End {
        /// `None` once the channel is over.
        closing: Mutex<Option<Closing<()>>>,
        to: Mutex<Sender<Word>>,
        /// A planted bug: what is left to empty is kept before the other side is told.
        hasty: bool,
    }

    impl End {
        fn with<A>(&self, act: impl FnOnce(&mut Closing<()>) -> A) -> A {
            act(self.closing.lock().unwrap().as_mut().expect("a word about a channel that is over"))
        }

        fn say(&self, word: Word) {
            // Nobody listens any more who has heard it all.
            let _ = self.to.lock().unwrap().send(word);
        }

        fn left(&self, who: Who) {
            let mut closing = self.closing.lock().unwrap();
            if closing.as_mut().expect("not over").left(who) {
                *closing = None;
            }
        }

        fn leave(&self) {
            self.say(Word::Left);
            self.left(Who::Here);
        }

        /// What the application's thread does.
        fn close(&self) {
            let tell = self.with(Closing::close);
            let early = if self.hasty { Some(self.with(|closing| closing.said(()))) } else { None };
            if tell {
                self.say(Word::Closed);
            }
            if early.unwrap_or_else(|| self.with(|closing| closing.said(()))).is_some() {
                self.leave();
            }
        }

        /// What the thread does that reads the socket, until nothing more is to come.
        fn listen(&self, from: Receiver<Word>) -> Receiver<Word> {
            loop {
                let word = from.recv().expect("the other side is there");
                if word == Word::Left {
                    assert!(self.with(|closing| closing.may_leave()), "left before this side has closed");
                }
                if self.with(Closing::closed_there).is_some() {
                    self.leave();
                }
                if word == Word::Left {
                    self.left(Who::There);
                    return from;
                }
            }
        }
    }

    fn both_close(hasty: bool) {
        let (to_second, from_first) = channel();
        let (to_first, from_second) = channel();
        let end = |to| Arc::new(End { closing: Mutex::new(Some(Closing::default())), to: Mutex::new(to), hasty });
        let (first, second) = (end(to_second), end(to_first));
        let (mut closers, mut listeners) = (Vec::new(), Vec::new());
        for (end, from) in [(&first, from_second), (&second, from_first)] {
            let (closer, listener) = (end.clone(), end.clone());
            closers.push(thread::spawn(move || closer.close()));
            listeners.push(thread::spawn(move || listener.listen(from)));
        }
        closers.into_iter().for_each(|closer| closer.join().unwrap());
        for listener in listeners {
            let late = listener.join().unwrap().try_recv();
            assert!(late.is_err(), "a word about a channel that is over: {late:?}");
        }
        assert!(
            first.closing.lock().unwrap().is_none() && second.closing.lock().unwrap().is_none(),
            "over on both sides"
        );
    }

    #[test]
    fn both_sides_leave_in_order() {
        let times = if std::env::var_os("STRAIT_LEVEL").is_some() { 100 } else { 1 };
        shuttle::check_random(|| both_close(false), 10_000 * times);
        shuttle::check_pct(|| both_close(false), 1_000 * times, 3);
    }

    #[test]
    #[should_panic(expected = "a word about a channel that is over")]
    fn the_harness_finds_what_is_wrong() {
        // The other way round: found, or the schedules above show nothing.
        shuttle::check_random(|| both_close(true), 10_000);
    }
}
