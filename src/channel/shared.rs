//! A split channel: one state that all its senders, the receiver, streams of answers and expectations share. Whoever
//! waits takes the receiving role if it is free: it alone sleeps on the ring, keeps what comes for whom it is for, and
//! passes the role on when it leaves. The others sleep until there is something for them or the role is theirs. Senders
//! that find no room do the same with the sending role.

use super::Channel;
use super::conversation::Answers;
use super::error::{DrainError, ExpectError, RecvError, SendError, finished};
use super::receiver::Receiver;
use super::routes::{KEPT_AT_LAST, Matches, Place, Routed, Routes, Taken, Wanted};
use super::sender::Sender;
use super::side::{Kept, Purpose, Side};
use super::waiter::{Waiter, sleep};
use crate::message::{Message, Received, Schema, Union};
use crate::transport::descriptor::{Arrived, Parcel};
use crate::transport::ended::EndedError;
use crate::transport::{Lane, LaneError, NoMessage};
use crate::wait::{Deadline, Wait};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;

/// See the module's own words.
pub(super) struct Shared<T: Schema> {
    pub(super) state: Mutex<State>,
    /// The sending role is free again.
    lane_back: Condvar,
    pub(super) side: Side<T>,
    union: Option<Union>,
    wait: Wait,
}

pub(super) struct State {
    pub(super) routes: Routes<Kept>,
    /// Gone while somebody waits for room.
    pub(super) lane: Option<Lane>,
    /// This side sends no more.
    pub(super) finished: bool,
    /// Somebody has the receiving role.
    led: bool,
    /// Why nothing more comes.
    end: Option<End>,
    /// Those who sleep until they are signalled.
    pub(super) waiting: Vec<(Place, Arc<Waiter>)>,
}

#[derive(Clone)]
pub(super) enum End {
    Finished,
    Ended(EndedError),
}

/// Why somebody who waits at a place has no message.
pub(super) enum Idle {
    TimedOut,
    Backlog,
    /// Nothing more comes to this place.
    Over,
    /// The peer sends no more.
    Finished,
    Ended(EndedError),
}

impl From<End> for Idle {
    fn from(end: End) -> Self {
        match end {
            End::Finished => Self::Finished,
            End::Ended(ended) => Self::Ended(ended),
        }
    }
}

/// Whether there may be a wait for room.
pub(super) enum Room {
    Now,
    By(Deadline),
}

impl<T: Schema> Shared<T> {
    pub(super) fn split(channel: Channel<T>) -> (Sender<T>, Receiver<T>) {
        let Channel { kept, lane, side, conversation, finished } = channel;
        let kept = kept.into_iter().map(|kept| (kept.envelope.id(), kept));
        let shared = Arc::new(Self {
            wait: lane.strategy(),
            state: Mutex::new(State {
                routes: Routes::new(conversation, kept),
                lane: Some(lane),
                finished,
                led: false,
                end: None,
                waiting: Vec::new(),
            }),
            lane_back: Condvar::new(),
            side,
            union: Union::of::<T>(),
        });
        (Sender::new(shared.clone()), Receiver::new(shared))
    }

    // Sending.

    /// Sends a message; as a request if answers to it are wanted.
    pub(super) fn send(
        &self,
        message: &Message<T>,
        purpose: Purpose,
        wanted: Option<Wanted>,
        room: &mut Room,
    ) -> Result<u64, SendError> {
        let parcel = self.side.parcel(message, purpose)?;
        let mut state = self.state.lock();
        loop {
            match self.try_send(&mut state, parcel, wanted) {
                Ok(id) => return Ok(id),
                Err(SendError::Full) => {}
                Err(other) => return Err(self.side.unlend(parcel.envelope, other)),
            }
            let waited = match room {
                Room::Now => Err(SendError::Full),
                Room::By(deadline) => self.wait_for_room(&mut state, parcel, deadline),
            };
            if let Err(error) = waited {
                return Err(self.side.unlend(parcel.envelope, error));
            }
        }
    }

    fn try_send(&self, state: &mut State, parcel: Parcel<'_>, wanted: Option<Wanted>) -> Result<u64, SendError> {
        if state.finished {
            return Err(SendError::Finished);
        }
        self.look_for_returns(state);
        // Somebody waits for room: there is none.
        let Some(lane) = &mut state.lane else { return Err(SendError::Full) };
        // Counted first: the answer may be here before this returns.
        let id = state.routes.send(wanted);
        let sent = lane.try_send(parcel.numbered(id));
        if !matches!(sent, Ok(true)) {
            state.routes.unsend(id);
        }
        match sent {
            Ok(true) => Ok(id),
            Ok(false) => Err(SendError::Full),
            Err(over) => Err(SendError::Ended(*over)),
        }
    }

    pub(super) fn look_for_returns(&self, state: &mut State) {
        if !state.routes.has_receiver() && !state.led {
            // Nobody else may ever look at the ring, where what was lent comes home.
            self.take_in(state);
        }
    }

    fn wait_for_room(
        &self,
        state: &mut MutexGuard<'_, State>,
        parcel: Parcel<'_>,
        deadline: &mut Deadline,
    ) -> Result<(), SendError> {
        let waited = self.with_lane(state, deadline, |lane, deadline| lane.wait_for_room(parcel, deadline));
        waited.map_err(|error| match error {
            LaneError::TimedOut => SendError::TimedOut,
            LaneError::Ended(over) => SendError::Ended(*over),
        })
    }

    /// Waits in the sending role, for itself or for somebody else who has it.
    pub(super) fn with_lane(
        &self,
        state: &mut MutexGuard<'_, State>,
        deadline: &mut Deadline,
        wait: impl FnOnce(&mut Lane, &mut Deadline) -> Result<(), LaneError>,
    ) -> Result<(), LaneError> {
        let Some(mut lane) = state.lane.take() else {
            return if sleep(&self.lane_back, state, deadline) { Ok(()) } else { Err(LaneError::TimedOut) };
        };
        let waited = MutexGuard::unlocked(state, || wait(&mut lane, deadline));
        state.lane = Some(lane);
        self.lane_back.notify_all();
        waited
    }

    /// See [`Channel::finish`].
    pub(super) fn finish(&self) {
        if self.side.port().core().is_forked() {
            return;
        }
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.finished, true) {
            // Under the lock, so that nothing is sent after it.
            self.side.port().say_finished();
        }
        drop(state);
        self.lane_back.notify_all();
    }

    /// See [`Channel::drain`].
    pub(super) fn drain(&self, deadline: &mut Deadline) -> Result<(), DrainError> {
        self.must_be_ours()?;
        let mut state = self.state.lock();
        while state.lane.is_none() {
            if !sleep(&self.lane_back, &mut state, deadline) {
                return Err(DrainError::TimedOut);
            }
        }
        Ok(self.with_lane(&mut state, deadline, Lane::drain)?)
    }

    // Receiving.

    /// The next message at a place, waiting until the deadline.
    pub(super) fn wait_at(&self, place: Place, deadline: &mut Deadline) -> Result<Kept, Idle> {
        self.must_be_ours().map_err(Idle::Ended)?;
        let mut state = self.state.lock();
        let mut in_time = true;
        let outcome = loop {
            match self.take(&mut state, place) {
                Taken::Message(kept) => break Ok(kept),
                Taken::Over => break Err(Idle::Over),
                Taken::Nothing => {}
            }
            if let Some(end) = self.end(&mut state) {
                break Err(end.into());
            }
            if !in_time {
                break Err(if state.routes.is_full() { Idle::Backlog } else { Idle::TimedOut });
            }
            in_time =
                if state.led { self.follow(&mut state, place, deadline) } else { self.lead(&mut state, deadline) };
        };
        pass_on(&state);
        outcome
    }

    /// The next message at a place if there is one already.
    pub(super) fn try_at(&self, place: Place) -> Result<Option<Kept>, Idle> {
        self.must_be_ours().map_err(Idle::Ended)?;
        let mut state = self.state.lock();
        let outcome = loop {
            match self.take(&mut state, place) {
                Taken::Message(kept) => break Ok(Some(kept)),
                Taken::Over => break Err(Idle::Over),
                Taken::Nothing => {}
            }
            if let Some(end) = self.end(&mut state) {
                break Err(end.into());
            }
            if state.led {
                // Whoever leads takes everything out of the ring as it comes.
                break Ok(None);
            }
            if state.routes.is_full() && self.side.port().is_open() {
                break Err(Idle::Backlog);
            }
            if !self.take_in(&mut state) {
                break Ok(None);
            }
        };
        pass_on(&state);
        outcome
    }

    pub(super) fn take(&self, state: &mut State, place: Place) -> Taken<Kept> {
        let was_full = state.routes.is_full();
        let taken = state.routes.take(place);
        self.made_room(state, was_full);
        taken
    }

    /// Whoever leads while nothing more can be kept sleeps on the bell alone.
    fn made_room(&self, state: &State, was_full: bool) {
        if was_full && !state.routes.is_full() && state.led {
            self.side.port().bell.ring();
        }
    }

    /// Whether nothing more comes, and why. Where the peer has finished, this side can still end the session.
    pub(super) fn end(&self, state: &mut State) -> Option<End> {
        if matches!(state.end, Some(End::Finished)) && self.side.port().is_over() {
            state.end = None;
        }
        state.end.clone()
    }

    /// Has the receiving role until one message has come, or there is room to keep one. False once the deadline passed.
    fn lead(&self, state: &mut MutexGuard<'_, State>, deadline: &mut Deadline) -> bool {
        let port = self.side.port();
        // Read before anything is looked at: whoever rings after this wakes us.
        let rung = port.bell.value();
        let may_take = self.may_take(state);
        if state.end.is_some() {
            return true;
        }
        state.led = true;
        let mut message = Arrived::default();
        let found = MutexGuard::unlocked(state, || {
            if may_take {
                return Some(port.receive(&mut message, deadline));
            }
            port.bell.wait(rung, deadline.at());
            None
        });
        state.led = false;
        match found {
            Some(found) => self.arrived(state, found.map(|()| message)),
            None => !deadline.has_passed(),
        }
    }

    /// Takes in what is there already; false if there is nothing.
    pub(super) fn take_in(&self, state: &mut State) -> bool {
        if !self.may_take(state) {
            return state.end.is_some();
        }
        let mut message = Arrived::default();
        match self.side.port().try_receive(&mut message) {
            Ok(false) => false,
            Ok(true) => self.arrived(state, Ok(message)),
            Err(why) => {
                self.arrived(state, Err(why));
                true
            }
        }
    }

    /// Whether anything more is to be taken out of the ring. Gives owed handles slots of their own if it is time.
    fn may_take(&self, state: &mut State) -> bool {
        if let Some(lane) = &mut state.lane {
            lane.return_many();
        }
        if !state.routes.is_full() {
            return true;
        }
        let port = self.side.port();
        if port.is_open() {
            return false;
        }
        // What is left of a peer that is gone fits its ring; who has more goes on filling it.
        let may_take = state.routes.kept() < KEPT_AT_LAST;
        if !may_take {
            ended(state, End::Ended(port.error()));
        }
        may_take
    }

    /// Keeps what came for whom it is for, and wakes them. False if time was up.
    fn arrived(&self, state: &mut State, found: Result<Arrived, NoMessage>) -> bool {
        match found {
            Ok(arrived) => {
                if let Err(over) = self.route(state, arrived) {
                    ended(state, End::Ended(over));
                }
            }
            Err(NoMessage::TimedOut) => return false,
            Err(NoMessage::Finished) => ended(state, End::Finished),
            Err(NoMessage::Ended(over)) => ended(state, End::Ended(*over)),
        }
        true
    }

    fn route(&self, state: &mut State, arrived: Arrived) -> Result<(), EndedError> {
        let envelope = arrived.envelope;
        let kept = self.side.keep(arrived)?;
        let answers = Answers::of(&envelope);
        let routed = state.routes.arrived(envelope.id(), answers, kept, |kept| kept.tag(self.union?));
        match routed.map_err(|broken| self.side.cut_off(broken))? {
            Routed::Kept(place) => wake(state, place),
            // Dropped, it goes home.
            Routed::Unwanted(_) => {}
            Routed::Unexpected(_) => self.side.port().unexpected_here(),
        }
        Ok(())
    }

    /// Sleeps until there is something for this place, or the receiving role is free. False once the deadline passed.
    fn follow(&self, state: &mut MutexGuard<'_, State>, place: Place, deadline: &mut Deadline) -> bool {
        let waiter = Arc::new(Waiter::default());
        state.waiting.push((place, waiter.clone()));
        let in_time = match self.wait {
            Wait::Spin => MutexGuard::unlocked(state, || waiter.spin(deadline)),
            _ => waiter.sleep(state, deadline),
        };
        state.waiting.retain(|(_, other)| !Arc::ptr_eq(other, &waiter));
        in_time
    }

    // Places.

    /// Makes a place for messages with this tag.
    pub(super) fn expect(&self, tag: u16, matches: Matches) -> Result<u64, ExpectError> {
        if self.side.port().core().is_forked() {
            return Err(ExpectError::ForkedProcess);
        }
        let union = self.union.ok_or(ExpectError::NoUnion)?;
        let key = self.state.lock().routes.expect(tag, matches, |kept| kept.tag(union));
        key.ok_or(ExpectError::Taken(tag))
    }

    /// Gives a place up; tells whether more could have come there.
    pub(super) fn leave(&self, place: Place) -> bool {
        // In a forked child somebody who is not here may hold the lock.
        if self.side.port().core().is_forked() {
            return false;
        }
        let mut state = self.state.lock();
        let was_full = state.routes.is_full();
        let (unread, more) = match place {
            Place::Request(id) => state.routes.give_up(id),
            Place::Expectation(key) => (unnumbered(state.routes.unexpect(key)), false),
            Place::Receiver => (unnumbered(state.routes.receiver_gone()), false),
        };
        self.made_room(&state, was_full);
        pass_on(&state);
        drop(state);
        drop(unread);
        more
    }

    pub(super) fn must_be_ours(&self) -> Result<(), EndedError> {
        let port = self.side.port();
        if port.core().is_forked() { Err(port.error()) } else { Ok(()) }
    }

    /// A message from a place, opened, or why there is none; `over` where nothing more comes to the place.
    pub(super) fn received(
        &self,
        found: Result<Kept, Idle>,
        peer_finished: PeerFinished,
    ) -> Result<Received<T>, RecvError> {
        match found {
            Ok(kept) => Ok(self.side.open_kept(kept)?),
            Err(Idle::TimedOut) => Err(RecvError::TimedOut),
            Err(Idle::Backlog) => Err(RecvError::Backlog),
            Err(Idle::Over) => Err(RecvError::Finished),
            Err(Idle::Finished) => Err(match peer_finished {
                PeerFinished::InOrder => RecvError::Finished,
                PeerFinished::TooSoon => RecvError::Ended(finished(self.side.port())),
            }),
            Err(Idle::Ended(ended)) => Err(RecvError::Ended(ended)),
        }
    }
}

/// What it is to a place that the peer sends no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerFinished {
    InOrder,
    /// There should have been more.
    TooSoon,
}

/// Nothing more comes: everyone learns it.
fn ended(state: &mut State, end: End) {
    state.end = Some(end);
    state.waiting.iter().for_each(|(_, waiter)| waiter.signal());
}

fn wake(state: &State, place: Place) {
    state.waiting.iter().filter(|(at, _)| *at == place).for_each(|(_, waiter)| waiter.signal());
}

/// Whoever leaves sees to it that one of those who stay takes the receiving role, unless it is taken. One who is woken
/// for it and leaves instead does the same.
pub(super) fn pass_on(state: &State) {
    if !state.led
        && let Some((_, waiter)) = state.waiting.first()
    {
        waiter.signal();
    }
}

fn unnumbered(messages: VecDeque<(u64, Kept)>) -> VecDeque<Kept> {
    messages.into_iter().map(|(_, kept)| kept).collect()
}
