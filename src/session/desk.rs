//! Where channels are opened: answers the peer's wishes by what is served, keeps what nobody has accepted yet, and hands
//! the peer's answers to whoever waits for them. Served by the watcher, asked by [`Session`](super::Session).

use super::app::ChannelSpec;
use super::login::CHANNELS_MAX;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::{OwnWords, PeerWords};
use crate::transport::control::{AreaAt, Control, Refusal};
use crate::transport::link::{cut_area, view_area};
use crate::transport::{Clerk, Core};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Both halves of a channel, before anyone has made a [`Channel`](crate::Channel) of them.
pub(super) struct Half {
    pub(super) number: u32,
    pub(super) spec: ChannelSpec,
    pub(super) own: Arc<OwnWords>,
    pub(super) peer: Arc<PeerWords>,
}

/// See the module's own words.
pub(super) struct Desk {
    serves: Vec<ChannelSpec>,
    channels_max: usize,
    slots: u32,
    /// What numbers this side gives out: the client odd ones, the server even ones.
    parity: u32,
    /// Held by whoever is asking. Taken before `state`, never after it.
    asking: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    next: u32,
    /// The peer's last.
    theirs: u32,
    opening: HashMap<u32, Opening>,
    incoming: VecDeque<Half>,
    ended: bool,
    /// Nobody is left to accept anything.
    unused: bool,
}

enum Opening {
    Asked,
    Answered(Result<AreaAt, Refusal>),
    /// Nobody waits any more.
    GivenUp,
}

/// The numbers of the channels opened in the log-in, which are the client's.
pub(super) const LOGIN_NUMBERS: [u32; CHANNELS_MAX] = [1, 3, 5, 7, 9, 11, 13, 15];

/// Which side of the log-in this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Desk {
    pub(super) fn new(
        side: Side,
        serves: Vec<ChannelSpec>,
        channels_max: usize,
        slots: u32,
        opened: Vec<Half>,
    ) -> Arc<Self> {
        let parity = u32::from(side == Side::Client);
        // Past every number the log-in can have given out.
        let next = parity + 2 * CHANNELS_MAX as u32;
        let theirs = LOGIN_NUMBERS[CHANNELS_MAX - 1];
        let state = State { next, theirs, incoming: opened.into(), ..State::default() };
        Arc::new(Self {
            serves,
            channels_max,
            slots,
            parity,
            asking: Mutex::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    pub(super) fn may_open(&self, core: &Core) -> bool {
        core.channel_count() < self.channels_max
    }

    /// Asks the peer for a channel, under a number of its own.
    pub(super) fn ask(&self, send: impl FnOnce(u32)) -> u32 {
        // Numbers must rise in the order in which they are sent.
        let _turn = self.asking.lock();
        let number = {
            let mut state = self.state.lock();
            let number = state.next;
            state.next = state.next.wrapping_add(2);
            state.opening.insert(number, Opening::Asked);
            number
        };
        send(number);
        number
    }

    /// Waits for the peer's answer; `None` if none came in time or the session ended.
    pub(super) fn answer(&self, number: u32, deadline: Option<Instant>) -> Option<Result<AreaAt, Refusal>> {
        let mut state = self.state.lock();
        let mut in_time = true;
        loop {
            // Looked at also when time is up: the answer may have come while the lock was being taken again.
            if let Some(Opening::Answered(answer)) = state.opening.get(&number) {
                let answer = *answer;
                state.opening.remove(&number);
                return Some(answer);
            }
            if state.ended || !in_time {
                state.opening.insert(number, Opening::GivenUp);
                return None;
            }
            in_time = self.wait(&mut state, deadline);
        }
    }

    /// Waits for a channel that fits; `None` if none came in time or the session ended.
    pub(super) fn take(&self, fits: impl Fn(&ChannelSpec) -> bool, deadline: Option<Instant>) -> Option<Half> {
        let mut state = self.state.lock();
        let mut in_time = true;
        loop {
            if let Some(index) = state.incoming.iter().position(|half| fits(&half.spec)) {
                return state.incoming.remove(index);
            }
            if state.ended || !in_time {
                return None;
            }
            in_time = self.wait(&mut state, deadline);
        }
    }

    /// Takes a channel that fits if there is one already.
    pub(super) fn take_now(&self, fits: impl Fn(&ChannelSpec) -> bool) -> Option<Half> {
        let mut state = self.state.lock();
        let index = state.incoming.iter().position(|half| fits(&half.spec))?;
        state.incoming.remove(index)
    }

    /// False once the deadline has passed.
    fn wait(&self, state: &mut parking_lot::MutexGuard<'_, State>, deadline: Option<Instant>) -> bool {
        match deadline {
            None => {
                self.changed.wait(state);
                true
            }
            Some(at) => !self.changed.wait_until(state, at).timed_out(),
        }
    }

    fn opened_by_peer(&self, core: &Core, number: u32, spec: ChannelSpec, area: AreaAt) -> Result<(), PeerMisbehaved> {
        // Each number once: they rise.
        let rises = number > std::mem::replace(&mut self.state.lock().theirs, number);
        if number % 2 == self.parity || !rises {
            return Err(PeerMisbehaved::ChannelNumber(number));
        }
        let Some(view) = core.view() else {
            core.send(&Control::ChannelRefused { number, refusal: Refusal::Closed });
            return Ok(());
        };
        let peer = view_area(&view, area)?;
        match self.admit(core, &spec) {
            Err(refusal) => core.send(&Control::ChannelRefused { number, refusal }),
            Ok((own, area)) => {
                core.add_channel(number, own.clone())?;
                let mut state = self.state.lock();
                if !state.unused {
                    state.incoming.push_back(Half { number, spec, own, peer });
                }
                drop(state);
                core.send(&Control::ChannelOpened { number, area });
                self.changed.notify_all();
            }
        }
        Ok(())
    }

    fn admit(&self, core: &Core, spec: &ChannelSpec) -> Result<(Arc<OwnWords>, AreaAt), Refusal> {
        let served = self.serves.iter().find(|served| served.name == spec.name).ok_or(Refusal::UnknownName)?;
        if served.schema != spec.schema {
            return Err(Refusal::OtherSchema(served.schema));
        }
        if self.state.lock().ended {
            return Err(Refusal::Closed);
        }
        if !self.may_open(core) {
            return Err(Refusal::TooMany);
        }
        cut_area(core.arena(), self.slots).map_err(|_| Refusal::NoMemory)
    }

    fn answered(&self, core: &Core, number: u32, answer: Result<AreaAt, Refusal>) -> Result<(), PeerMisbehaved> {
        let mut state = self.state.lock();
        match state.opening.remove(&number) {
            Some(Opening::Asked) => {
                state.opening.insert(number, Opening::Answered(answer));
                self.changed.notify_all();
                Ok(())
            }
            Some(Opening::GivenUp) => {
                drop(state);
                // Opened for nobody: closed at once.
                match (answer, core.view()) {
                    (Ok(area), Some(view)) => core.close_unused(number, view_area(&view, area)?),
                    _ => core.forget_channel(number),
                }
                Ok(())
            }
            Some(Opening::Answered(_)) | None => Err(PeerMisbehaved::ChannelNumber(number)),
        }
    }
}

/// The link's view of the desk.
pub(super) struct AtDesk(pub(super) Arc<Desk>);

impl Clerk for AtDesk {
    fn on_control(&self, core: &Core, control: Control) -> Result<(), PeerMisbehaved> {
        match control {
            Control::OpenChannel { number, schema, area, name } => {
                self.0.opened_by_peer(core, number, ChannelSpec { name, schema }, area)
            }
            Control::ChannelOpened { number, area } => self.0.answered(core, number, Ok(area)),
            Control::ChannelRefused { number, refusal } => self.0.answered(core, number, Err(refusal)),
            _ => Err(PeerMisbehaved::Frame("out of turn")),
        }
    }

    fn on_end(&self) {
        self.0.state.lock().ended = true;
        self.0.changed.notify_all();
    }

    fn on_unused(&self) {
        let mut state = self.0.state.lock();
        state.unused = true;
        let unaccepted = std::mem::take(&mut state.incoming);
        drop(state);
        drop(unaccepted);
    }
}
