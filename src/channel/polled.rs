//! A split channel whose users are tasks: they poll, and are woken when it is worth while. Whoever polls takes in what has
//! come, for everyone; with nothing there, the peer is asked to ring.

use super::Channel;
use super::error::{RecvError, RequestError, SendError};
use super::receiver::Receiver;
use super::routes::{Place, Taken, Wanted};
use super::sender::Sender;
use super::shared::{Idle, PeerFinished, Room, Shared, pass_on};
use super::side::{Kept, Purpose, Reply};
use super::waiter::Waiter;
use crate::message::{Message, Received, Schema};
use crate::transport::NoMessage;
use crate::transport::control::Knock;
use crate::transport::door::Listener;
use crate::transport::port::Next;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

/// See the module's own words.
pub(crate) struct Polled<T: Schema> {
    sender: Sender<T>,
    shared: Arc<Shared<T>>,
    bell: Arc<TaskBell<T>>,
    _receiver: Receiver<T>,
}

/// What the floor below rings. It may do so in the midst of what a task does here, so it leaves word and lets that task see
/// to it.
struct TaskBell<T: Schema> {
    shared: Weak<Shared<T>>,
    knocks: AtomicU32,
    /// Tasks that wait for room.
    room: Mutex<Vec<Waker>>,
}

impl<T: Schema> Polled<T> {
    pub(crate) fn new(channel: Channel<T>) -> Self {
        let (sender, receiver) = channel.split();
        let shared = receiver.shared().clone();
        let (weak, knocks, room) = (Arc::downgrade(&shared), AtomicU32::new(0), Mutex::default());
        let bell = Arc::new(TaskBell { shared: weak, knocks, room });
        // Nobody else listens: a channel that is split leaves whatever loop it was in.
        shared.side.port().listen(bell.clone());
        Self { sender, shared, bell, _receiver: receiver }
    }

    pub(crate) fn sender(&self) -> &Sender<T> {
        &self.sender
    }

    /// Sends a message if there is room; if not, the task is woken when there may be.
    pub(crate) fn poll_send(
        &self,
        cx: &Context<'_>,
        message: &Message<T>,
        purpose: &SendAs<'_, T>,
    ) -> Poll<Result<u64, SendError>> {
        let (purpose, wanted) = match purpose {
            SendAs::Notice => (Purpose::NOTICE, None),
            SendAs::Request => (Purpose::REQUEST, Some(Wanted::One)),
            SendAs::ReplyTo(to) => (self.shared.side.answer(to, Reply::Last)?, None),
        };
        let mut sent = self.shared.send(message, purpose, wanted, &mut Room::Now);
        if matches!(sent, Err(SendError::Full)) {
            self.bell.room.lock().push(cx.waker().clone());
            // There may have been room before anybody could know of this task.
            sent = self.shared.send(message, purpose, wanted, &mut Room::Now);
        }
        self.bell.catch_up(&self.shared);
        match sent {
            Err(SendError::Full) => Poll::Pending,
            other => Poll::Ready(other),
        }
    }

    /// The next message that answers nothing and that nobody else expects.
    pub(crate) fn poll_recv(&self, cx: &Context<'_>, waiting: &mut Waiting<T>) -> Poll<Result<Received<T>, RecvError>> {
        let found = std::task::ready!(self.poll_at(cx, waiting));
        Poll::Ready(self.shared.received(found, PeerFinished::InOrder))
    }

    /// The answer to a request.
    pub(crate) fn poll_answer(
        &self,
        cx: &Context<'_>,
        waiting: &mut Waiting<T>,
    ) -> Poll<Result<Received<T>, RequestError>> {
        let why = match std::task::ready!(self.poll_at(cx, waiting)) {
            Ok(kept) => return Poll::Ready(Ok(self.shared.side.open_kept(kept)?)),
            Err(Idle::Backlog) => return Poll::Ready(Err(RequestError::Backlog)),
            Err(Idle::TimedOut | Idle::Over) => NoMessage::TimedOut,
            Err(Idle::Finished) => NoMessage::Finished,
            Err(Idle::Ended(ended)) => NoMessage::Ended(ended.into()),
        };
        Poll::Ready(Err(RequestError::unanswered(why, self.shared.side.port())))
    }

    /// A wait for messages.
    pub(crate) fn receiving(&self) -> Waiting<T> {
        self.waiting(Place::Receiver)
    }

    /// A wait for the answer to a request; dropped, it gives the request up.
    pub(crate) fn answer_to(&self, id: u64) -> Waiting<T> {
        self.waiting(Place::Request(id))
    }

    fn waiting(&self, place: Place) -> Waiting<T> {
        Waiting { place, waiter: None, shared: self.shared.clone(), bell: self.bell.clone() }
    }

    fn poll_at(&self, cx: &Context<'_>, waiting: &mut Waiting<T>) -> Poll<Result<Kept, Idle>> {
        self.shared.must_be_ours().map_err(Idle::Ended)?;
        let polled = self.poll_under_lock(cx, waiting);
        self.bell.catch_up(&self.shared);
        polled
    }

    fn poll_under_lock(&self, cx: &Context<'_>, waiting: &mut Waiting<T>) -> Poll<Result<Kept, Idle>> {
        let (shared, port) = (&*self.shared, self.shared.side.port());
        let mut state = shared.state.lock();
        if let Some(waiter) = waiting.waiter.take() {
            state.waiting.retain(|(_, other)| !Arc::ptr_eq(other, &waiter));
        }
        let outcome = loop {
            match shared.take(&mut state, waiting.place) {
                Taken::Message(kept) => break Ok(kept),
                Taken::Over => break Err(Idle::Over),
                Taken::Nothing => {}
            }
            if let Some(end) = shared.end(&mut state) {
                break Err(end.into());
            }
            if state.routes.is_full() && port.is_open() {
                break Err(Idle::Backlog);
            }
            if !shared.take_in(&mut state) && port.next_or_door() == Next::Nothing {
                let waiter = Arc::new(Waiter::of_task(cx.waker()));
                state.waiting.push((waiting.place, waiter.clone()));
                waiting.waiter = Some(waiter);
                return Poll::Pending;
            }
        };
        // There may be more in the ring, for others.
        pass_on(&state);
        Poll::Ready(outcome)
    }
}

/// What a message is sent for.
pub(crate) enum SendAs<'a, T: Schema> {
    Notice,
    Request,
    ReplyTo(&'a Received<T>),
}

/// A task's wait at a place.
pub(crate) struct Waiting<T: Schema> {
    place: Place,
    waiter: Option<Arc<Waiter>>,
    shared: Arc<Shared<T>>,
    bell: Arc<TaskBell<T>>,
}

impl<T: Schema> Drop for Waiting<T> {
    fn drop(&mut self) {
        // In a forked child somebody who is not here may hold the lock.
        if self.shared.must_be_ours().is_err() {
            return;
        }
        if let Some(waiter) = self.waiter.take() {
            let mut state = self.shared.state.lock();
            state.waiting.retain(|(_, other)| !Arc::ptr_eq(other, &waiter));
            // It may have been woken on behalf of the others.
            pass_on(&state);
        }
        if let Place::Request(id) = self.place
            && self.shared.leave(self.place)
        {
            self.shared.side.port().say_cancelled(id);
        }
        self.bell.catch_up(&self.shared);
    }
}

impl<T: Schema> TaskBell<T> {
    /// Sees to what was rung for, unless somebody holds the lock, who does so afterwards.
    fn catch_up(&self, shared: &Shared<T>) {
        // Partner: `on_knock`. Whoever does not get the lock has knocked before, and its holder looks here after.
        while self.knocks.fetch_or(0, Ordering::AcqRel) != 0 {
            let Some(state) = shared.state.try_lock() else { return };
            let knock = Knock::from_bits(self.knocks.swap(0, Ordering::AcqRel));
            if knock.has(Knock::FILLED) {
                // It takes in what there is, for everyone.
                pass_on(&state);
            }
            drop(state);
            if knock.has(Knock::EMPTIED) {
                let room = std::mem::take(&mut *self.room.lock());
                room.into_iter().for_each(Waker::wake);
            }
        }
    }
}

impl<T: Schema> Listener for TaskBell<T> {
    fn on_knock(&self, knock: Knock) {
        // Partner: `catch_up`.
        self.knocks.fetch_or(knock.bits(), Ordering::AcqRel);
        if let Some(shared) = self.shared.upgrade() {
            self.catch_up(&shared);
        }
    }

    fn on_gone(&self) {}
}
