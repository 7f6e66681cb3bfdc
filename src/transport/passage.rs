//! The rules for file descriptors on their way with messages: how many may be under way, and which message each belongs
//! to. Pure: no sockets, and descriptors of any type.

use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::passed::{PASSED_MAX, Passed};
use std::collections::VecDeque;

/// Descriptors that may be under way in one direction of a session: sent, and not yet taken by the application there.
pub(super) const WINDOW: u64 = 128;

// Whoever takes says so at every half window: what is taken and not yet said leaves room for a whole message.
const _: () = assert!(PASSED_MAX as u64 <= WINDOW / 2);

/// The sender's side: never more under way than may be.
#[derive(Debug, Default)]
pub(super) struct Window {
    passed: u64,
    taken: u64,
}

#[expect(
    clippy::arithmetic_side_effects,
    reason = "`taken` is kept only if it is no more than `passed`, and both count descriptors"
)]
impl Window {
    pub(super) fn has_room(&self, count: usize) -> bool {
        self.passed - self.taken + count as u64 <= WINDOW
    }

    /// Counts descriptors as under way, if so many more may be.
    pub(super) fn pass(&mut self, count: usize) -> bool {
        let room = self.has_room(count);
        if room {
            self.passed += count as u64;
        }
        room
    }

    /// The peer says how many it has taken so far.
    pub(super) fn taken(&mut self, total: u64) -> Result<(), PeerMisbehaved> {
        if !(self.taken..=self.passed).contains(&total) {
            return Err(PeerMisbehaved::DescriptorsTaken { found: total, low: self.taken, high: self.passed });
        }
        self.taken = total;
        Ok(())
    }
}

/// The receiver's side: how many of the peer's are here, and how many it has yet to hear of.
#[derive(Debug, Default)]
pub(super) struct Account {
    here: u64,
    taken: u64,
    told: u64,
}

#[expect(clippy::arithmetic_side_effects, reason = "counts of descriptors that came, at most 64 at a time")]
impl Account {
    pub(super) fn arrived(&mut self, count: usize) -> Result<(), PeerMisbehaved> {
        let here = self.here + count as u64;
        if here > WINDOW {
            return Err(PeerMisbehaved::TooManyDescriptors(here));
        }
        self.here = here;
        Ok(())
    }

    /// So many are no longer on their way. True if it is time to tell the peer.
    pub(super) fn took(&mut self, count: usize) -> bool {
        self.here = self.here.saturating_sub(count as u64);
        self.taken += count as u64;
        self.taken - self.told >= WINDOW / 2
    }

    /// How many were taken in all, unless the peer was told so already. What is told must be said before anyone asks again:
    /// the peer takes a smaller number after a larger one for a breach.
    pub(super) fn tell(&mut self) -> Option<u64> {
        let told = std::mem::replace(&mut self.told, self.taken);
        (told < self.taken).then_some(self.taken)
    }
}

/// What has arrived over one channel and not been taken.
#[derive(Debug)]
pub(super) struct Arrivals<D> {
    /// By message, rising.
    waiting: VecDeque<(u64, Passed<D>)>,
    last: u64,
    /// The last message that was received without its descriptors: they were not here, and were waited for no longer.
    given_up: u64,
}

impl<D> Default for Arrivals<D> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), last: 0, given_up: 0 }
    }
}

impl<D> Arrivals<D> {
    /// Messages with descriptors come in the order of their numbers, each once. Gives back what nobody waits for any more.
    pub(super) fn arrived(&mut self, message: u64, passed: Passed<D>) -> Result<Option<Passed<D>>, PeerMisbehaved> {
        if message <= self.last {
            return Err(PeerMisbehaved::DescriptorsOutOfTurn { message });
        }
        self.last = message;
        if message <= self.given_up {
            return Ok(Some(passed));
        }
        self.waiting.push_back((message, passed));
        Ok(None)
    }

    /// A message is received without its descriptors, which may still come.
    pub(super) fn give_up(&mut self, message: u64) {
        self.given_up = self.given_up.max(message);
    }

    /// Whether those of a message that says it has `count` are here.
    pub(super) fn are_here(&self, message: u64, count: usize) -> Result<bool, PeerMisbehaved> {
        match self.waiting.iter().find(|(id, _)| *id == message) {
            Some((_, passed)) if passed.sent() == count => Ok(true),
            Some((_, passed)) => Err(PeerMisbehaved::DescriptorCount { found: passed.sent(), announced: count }),
            None if self.last >= message => Err(PeerMisbehaved::DescriptorsOutOfTurn { message }),
            None => Ok(false),
        }
    }

    pub(super) fn take(&mut self, message: u64) -> Option<Passed<D>> {
        let index = self.waiting.iter().position(|(id, _)| *id == message)?;
        self.waiting.remove(index).map(|(_, passed)| passed)
    }

    pub(super) fn take_all(&mut self) -> Vec<Passed<D>> {
        self.waiting.drain(..).map(|(_, passed)| passed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_sender_is_never_too_early_and_never_stuck() {
        let (mut window, mut account) = (Window::default(), Account::default());
        let (mut under_way, mut counts) = (VecDeque::new(), [64, 1, 63, 17, 64, 64, 2, 5].into_iter().cycle());
        let mut next = counts.next().unwrap();
        for _ in 0..10_000 {
            while window.pass(next) {
                assert_eq!(account.arrived(next), Ok(()));
                under_way.push_back(next);
                next = counts.next().unwrap();
            }
            // Everything is taken: then there is room for anything.
            for count in under_way.drain(..) {
                if account.took(count) {
                    assert_eq!(window.taken(account.tell().expect("news")), Ok(()));
                    assert_eq!(account.tell(), None);
                }
            }
            assert!(window.has_room(PASSED_MAX));
        }
    }

    #[test]
    fn more_than_the_window_is_misbehaviour() {
        let mut account = Account::default();
        assert_eq!((account.arrived(64), account.arrived(64)), (Ok(()), Ok(())));
        assert_eq!(account.arrived(1), Err(PeerMisbehaved::TooManyDescriptors(129)));
        assert!(!account.took(1));
        assert_eq!(account.arrived(1), Ok(()));
    }

    #[test]
    fn what_is_taken_only_rises_and_not_past_what_was_passed() {
        let mut window = Window::default();
        assert!(window.pass(100) && !window.pass(29) && window.pass(28));
        for (found, low) in [(129, 0), (u64::MAX, 0)] {
            assert_eq!(window.taken(found), Err(PeerMisbehaved::DescriptorsTaken { found, low, high: 128 }));
        }
        assert_eq!(window.taken(100), Ok(()));
        assert_eq!(window.taken(100), Ok(()));
        assert_eq!(window.taken(99), Err(PeerMisbehaved::DescriptorsTaken { found: 99, low: 100, high: 128 }));
    }

    #[test]
    fn each_message_has_its_own_once() {
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.are_here(5, 2), Ok(false));
        assert!(matches!(arrivals.arrived(5, Passed::Here(vec!["a", "b"])), Ok(None)));
        for again in [5, 4, 0] {
            let broken = PeerMisbehaved::DescriptorsOutOfTurn { message: again };
            assert_eq!(arrivals.arrived(again, Passed::Here(vec!["c"])).map(drop), Err(broken));
        }
        assert!(matches!(arrivals.arrived(7, Passed::Lost(3)), Ok(None)));
        assert_eq!(
            (arrivals.are_here(5, 2), arrivals.are_here(7, 3), arrivals.are_here(8, 1)),
            (Ok(true), Ok(true), Ok(false))
        );
        assert_eq!(arrivals.are_here(5, 1), Err(PeerMisbehaved::DescriptorCount { found: 2, announced: 1 }));
        assert_eq!(arrivals.are_here(6, 1), Err(PeerMisbehaved::DescriptorsOutOfTurn { message: 6 }));
        // Out of order, as a reply that is awaited is.
        assert!(matches!(arrivals.take(7), Some(Passed::Lost(3))));
        assert!(matches!(arrivals.take(5), Some(Passed::Here(fds)) if fds == ["a", "b"]));
        assert!(arrivals.take(5).is_none());
        assert_eq!(arrivals.are_here(5, 2), Err(PeerMisbehaved::DescriptorsOutOfTurn { message: 5 }));
        // What was waited for too long is not kept when it comes; once is enough of it, too.
        arrivals.give_up(9);
        assert!(
            matches!(arrivals.arrived(9, Passed::Here(vec!["late"])), Ok(Some(Passed::Here(fds))) if fds == ["late"])
        );
        assert!(arrivals.take(9).is_none() && arrivals.arrived(9, Passed::Lost(1)).is_err());
        assert!(matches!(arrivals.arrived(10, Passed::Lost(1)), Ok(None)));
    }
}

/// A sender and several receivers of a session, whatever the order in which their threads get to run.
#[cfg(all(test, not(miri)))]
mod schedules {
    use super::*;
    use shuttle::sync::mpsc::channel;
    use shuttle::sync::{Arc, Condvar, Mutex};
    use shuttle::thread;

    /// Descriptors of eight messages, any two of which fit the window.
    const COUNTS: [usize; 8] = [64, 64, 64, 63, 64, 1, 64, 64];

    /// `in_turn`: nobody asks what to tell before the last to ask has told it.
    fn conversation(in_turn: bool) {
        let (frames, arriving) = channel();
        let (told, hearing) = channel();
        let window = Arc::new((Mutex::new(Window::default()), Condvar::new()));
        let account = Arc::new((Mutex::new(Account::default()), Mutex::new(())));
        let mut threads = Vec::new();
        threads.push(thread::spawn({
            let window = window.clone();
            move || {
                for count in COUNTS {
                    let mut open = window.0.lock().unwrap();
                    while !open.pass(count) {
                        open = window.1.wait(open).unwrap();
                    }
                    drop(open);
                    frames.send(count).unwrap();
                }
            }
        }));
        // The other side's receivers, each with every other message.
        let mut receivers = Vec::new();
        for _ in 0..2 {
            let (message, messages) = channel::<usize>();
            receivers.push(message);
            let (account, told) = (account.clone(), told.clone());
            threads.push(thread::spawn(move || {
                while let Ok(count) = messages.recv() {
                    if !account.0.lock().unwrap().took(count) {
                        continue;
                    }
                    let _turn = in_turn.then(|| account.1.lock().unwrap());
                    let total = account.0.lock().unwrap().tell();
                    if let Some(total) = total {
                        told.send(total).unwrap();
                    }
                }
            }));
        }
        drop(told);
        threads.push(thread::spawn(move || {
            for (index, receiver) in (0..COUNTS.len()).zip(receivers.iter().cycle()) {
                let count = arriving.recv().unwrap();
                account.0.lock().unwrap().arrived(count).expect("an honest sender");
                receiver.send(count).unwrap_or_else(|_| panic!("message {index}"));
            }
        }));
        threads.push(thread::spawn(move || {
            while let Ok(total) = hearing.recv() {
                window.0.lock().unwrap().taken(total).expect("an honest receiver");
                window.1.notify_all();
            }
        }));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn nobody_breaks_a_rule_and_nobody_waits_for_ever() {
        // As many as take a second or two; a hundred times as many at the other levels of `tests/storm`.
        let times = if std::env::var_os("STRAIT_LEVEL").is_some() { 100 } else { 1 };
        shuttle::check_random(|| conversation(true), 1_000 * times);
        shuttle::check_pct(|| conversation(true), 100 * times, 3);
    }

    #[test]
    #[should_panic(expected = "an honest receiver")]
    fn the_harness_finds_what_is_wrong() {
        shuttle::check_random(|| conversation(false), 10_000);
    }
}
