//! Where channels are opened: answers the peer's wishes by what is served, keeps what nobody has accepted yet, and hands
//! the peer's answers to whoever waits for them. Served by the watcher, asked by [`Session`](super::Session).

use super::app::ChannelSpec;
use super::login::CHANNELS_MAX;
use super::options::Options;
use crate::shm::arena::Arena;
use crate::shm::view::View;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::seqpacket::poll_readable;
use crate::sys::words::{OwnWords, PeerWords};
use crate::transport::control::{AreaAt, Control, MetadataAt, Refusal, Wish};
use crate::transport::link::{CutProblem, cut_area, view_area};
use crate::transport::{Clerk, Core};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Both halves of a channel, before anyone has made a [`Channel`](crate::Channel) of them.
pub(super) struct Half {
    pub(super) number: u32,
    pub(super) spec: ChannelSpec,
    pub(super) own: Arc<OwnWords>,
    pub(super) peer: Arc<PeerWords>,
}

/// This side's half of a channel that it has asked for.
pub(super) struct Asked {
    pub(super) number: u32,
    pub(super) spec: ChannelSpec,
    pub(super) own: Arc<OwnWords>,
}

/// The peer's half of a channel that the application has not judged yet.
pub(super) struct Offered {
    pub(super) number: u32,
    pub(super) spec: ChannelSpec,
    pub(super) peer: Arc<PeerWords>,
    pub(super) metadata: Option<MetadataAt>,
}

/// What the log-in has opened.
#[derive(Default)]
pub(super) struct Opened {
    /// By the peer, for this side to accept.
    pub(super) incoming: Vec<Half>,
    pub(super) offers: Vec<Offered>,
    /// By this side, with the peer's answer if that came in the log-in as well.
    pub(super) asked: Vec<(Asked, Option<AreaAt>)>,
    /// What is to be said about them once there is a session.
    pub(super) answers: Vec<Control>,
}

impl Opened {
    /// This side's halves, by number.
    pub(super) fn areas(&self) -> Vec<(u32, Arc<OwnWords>)> {
        let incoming = self.incoming.iter().map(|half| (half.number, half.own.clone()));
        incoming.chain(self.asked.iter().map(|(asked, _)| (asked.number, asked.own.clone()))).collect()
    }
}

/// What a side does about the other's wishes.
#[derive(Clone)]
pub(super) struct Manners {
    serves: Vec<ChannelSpec>,
    offers_max: usize,
    channels_max: usize,
    slots: u32,
}

/// What becomes of a wish.
pub(super) enum Judged {
    /// Opened at once, with this side's half.
    Served(Arc<OwnWords>, AreaAt),
    /// The application's to judge.
    Offer,
}

impl Manners {
    pub(super) fn of(options: &Options) -> Self {
        Self {
            serves: options.serves.clone(),
            offers_max: options.offers,
            channels_max: options.channels_max,
            slots: options.slots,
        }
    }

    /// Judges a wish, with so many channels and offers there already.
    pub(super) fn judge(
        &self,
        spec: &ChannelSpec,
        (channels, offers): (usize, usize),
        cut_area: impl FnOnce(u32) -> Result<(Arc<OwnWords>, AreaAt), CutProblem>,
    ) -> Result<Judged, Refusal> {
        match self.serves.iter().find(|served| served.name == spec.name) {
            Some(served) if served.schema != spec.schema => Err(Refusal::OtherSchema(served.schema)),
            Some(_) if channels >= self.channels_max => Err(Refusal::TooMany),
            Some(_) => match cut_area(self.slots) {
                Ok((own, area)) => Ok(Judged::Served(own, area)),
                Err(problem) => Err(problem.into()),
            },
            None if self.offers_max == 0 => Err(Refusal::UnknownName),
            None if offers >= self.offers_max => Err(Refusal::TooMany),
            None => Ok(Judged::Offer),
        }
    }
}

impl From<CutProblem> for Refusal {
    fn from(problem: CutProblem) -> Self {
        match problem {
            CutProblem::Alloc(_) => Self::NoMemory,
            CutProblem::TooMany => Self::TooMany,
        }
    }
}

/// See the module's own words.
pub(super) struct Desk {
    manners: Manners,
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
    /// Asked for with the log-in, and not claimed yet.
    initial: Vec<Asked>,
    incoming: VecDeque<Half>,
    offers: VecDeque<Offered>,
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

/// How long a thread that reads the socket itself sleeps at a time: another may read the answer.
const SLICE: Duration = Duration::from_millis(10);

/// Which side of the log-in this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    /// The numbers of the channels that it opens in the log-in.
    pub(super) fn login_numbers(self) -> impl Iterator<Item = u32> {
        let first = if self == Self::Client { 1 } else { 2 };
        (first..).step_by(2).take(CHANNELS_MAX)
    }
}

/// No number of the log-in is higher.
const LOGIN_LAST: u32 = 2 * CHANNELS_MAX as u32;

impl Desk {
    pub(super) fn new(side: Side, manners: Manners, opened: Opened) -> Arc<Self> {
        let parity = u32::from(side == Side::Client);
        let mut opening = HashMap::new();
        let mut initial = Vec::new();
        for (asked, answer) in opened.asked {
            let state = answer.map_or(Opening::Asked, |area| Opening::Answered(Ok(area)));
            opening.insert(asked.number, state);
            initial.push(asked);
        }
        let state = State {
            next: if side == Side::Client { LOGIN_LAST + 1 } else { LOGIN_LAST + 2 },
            theirs: LOGIN_LAST,
            opening,
            initial,
            incoming: opened.incoming.into(),
            offers: opened.offers.into(),
            ..State::default()
        };
        Arc::new(Self { manners, parity, asking: Mutex::default(), state: Mutex::new(state), changed: Condvar::new() })
    }

    pub(super) fn slots(&self) -> u32 {
        self.manners.slots
    }

    pub(super) fn may_open(&self, core: &Core) -> bool {
        core.channel_count() < self.manners.channels_max
    }

    /// A channel that was asked for with the log-in, once.
    pub(super) fn take_initial(&self, spec: &ChannelSpec) -> Option<Asked> {
        let mut state = self.state.lock();
        let index = state.initial.iter().position(|asked| asked.spec == *spec)?;
        Some(state.initial.remove(index))
    }

    /// Keeps what was asked for before anyone wanted it, for whoever will.
    pub(super) fn keep_initial(&self, asked: Asked) {
        let mut state = self.state.lock();
        if !state.unused {
            state.initial.push(asked);
        }
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
    pub(super) fn answer(
        &self,
        core: &Core,
        number: u32,
        deadline: Option<Instant>,
    ) -> Option<Result<AreaAt, Refusal>> {
        let mut state = self.state.lock();
        let mut in_time = true;
        loop {
            // Looked at also when time is up: the answer may have come while the lock was being taken again.
            if matches!(state.opening.get(&number), Some(Opening::Answered(_)))
                && let Some(Opening::Answered(answer)) = state.opening.remove(&number)
            {
                return Some(answer);
            }
            if state.ended || !in_time {
                state.opening.insert(number, Opening::GivenUp);
                return None;
            }
            in_time = self.wait(core, &mut state, deadline);
        }
    }

    /// Waits for a channel that fits; `None` if none came in time or the session ended.
    pub(super) fn take(
        &self,
        core: &Core,
        fits: impl Fn(&ChannelSpec) -> bool,
        deadline: Option<Instant>,
    ) -> Option<Half> {
        self.wait_for(core, deadline, |state| {
            let index = state.incoming.iter().position(|half| fits(&half.spec))?;
            state.incoming.remove(index)
        })
    }

    /// Waits for a channel to judge; `None` if none came in time or the session ended.
    pub(super) fn take_offer(&self, core: &Core, deadline: Option<Instant>) -> Option<Offered> {
        self.wait_for(core, deadline, |state| state.offers.pop_front())
    }

    fn wait_for<R>(
        &self,
        core: &Core,
        deadline: Option<Instant>,
        mut look: impl FnMut(&mut State) -> Option<R>,
    ) -> Option<R> {
        let mut state = self.state.lock();
        let mut in_time = true;
        loop {
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            if state.ended || !in_time {
                return None;
            }
            in_time = self.wait(core, &mut state, deadline);
        }
    }

    /// Sleeps until the session ends or the deadline passes; false in the latter case.
    pub(super) fn sleep(&self, until: Instant) -> bool {
        let mut state = self.state.lock();
        while !state.ended {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return state.ended;
            }
        }
        true
    }

    /// False once the deadline has passed.
    fn wait(&self, core: &Core, state: &mut MutexGuard<'_, State>, deadline: Option<Instant>) -> bool {
        if core.is_kept() {
            // The loop that reads the socket may be waiting for this very call.
            let slice = Instant::now().checked_add(SLICE);
            let until = [deadline, slice].into_iter().flatten().min();
            MutexGuard::unlocked(state, || {
                let _ = poll_readable(&[core.as_fd()], until);
                core.attend();
            });
            return deadline.is_none_or(|at| Instant::now() < at);
        }
        match deadline {
            None => {
                self.changed.wait(state);
                true
            }
            Some(at) => !self.changed.wait_until(state, at).timed_out(),
        }
    }

    fn opened_by_peer(&self, core: &Core, wish: Wish) -> Result<(), PeerMisbehaved> {
        let Wish { number, schema, area, name, metadata } = wish;
        // Each number once: they rise.
        let rises = number > std::mem::replace(&mut self.state.lock().theirs, number);
        if number % 2 == self.parity || !rises {
            return Err(PeerMisbehaved::ChannelNumber(number));
        }
        let peer = core.view().map(|view| view_area(&view, area)).transpose()?;
        let spec = ChannelSpec { name, schema };
        let judged = match self.judge(core, &spec) {
            Ok(judged) => peer.ok_or(Refusal::Closed).map(|peer| (judged, peer)),
            Err(refusal) => Err(refusal),
        };
        let unread = match judged {
            Err(refusal) => {
                core.send(&Control::ChannelRefused { number, refusal });
                metadata
            }
            Ok((Judged::Served(own, area), peer)) => {
                core.add_channel(number, own.clone())?;
                let mut state = self.state.lock();
                if !state.unused {
                    state.incoming.push_back(Half { number, spec, own, peer });
                }
                drop(state);
                core.send(&Control::ChannelOpened { number, area });
                metadata
            }
            Ok((Judged::Offer, peer)) => {
                let mut state = self.state.lock();
                if !state.unused {
                    state.offers.push_back(Offered { number, spec, peer, metadata });
                }
                None
            }
        };
        self.changed.notify_all();
        core.channels_changed();
        if let Some(metadata) = unread {
            core.owe(metadata.handle);
        }
        Ok(())
    }

    fn judge(&self, core: &Core, spec: &ChannelSpec) -> Result<Judged, Refusal> {
        let offers = {
            let state = self.state.lock();
            if state.ended {
                return Err(Refusal::Closed);
            }
            state.offers.len()
        };
        self.manners.judge(spec, (core.channel_count(), offers), |slots| core.cut_area(slots))
    }

    fn answered(&self, core: &Core, number: u32, answer: Result<AreaAt, Refusal>) -> Result<(), PeerMisbehaved> {
        let mut state = self.state.lock();
        match state.opening.remove(&number) {
            Some(Opening::Asked) => {
                state.opening.insert(number, Opening::Answered(answer));
                self.changed.notify_all();
                drop(state);
                core.channels_changed();
                Ok(())
            }
            Some(Opening::GivenUp) => {
                drop(state);
                match answer {
                    Err(_) => core.forget_channel(number),
                    // Opened for nobody: closed at once. In a session that is over the peer may still look at this side's
                    // half, which goes with all the rest.
                    Ok(area) => {
                        if let (None, Some(view)) = (core.ended(), core.view()) {
                            core.close_unused(number, view_area(&view, area)?);
                        }
                    }
                }
                Ok(())
            }
            Some(Opening::Answered(_)) | None => Err(PeerMisbehaved::ChannelNumber(number)),
        }
    }
}

/// The peer's half of a channel it opened in the log-in, judged by the side that has just read of it.
pub(super) fn opened_in_login(
    opened: &mut Opened,
    manners: &Manners,
    arena: &Arena,
    view: &Arc<View>,
    (number, spec, area): (u32, ChannelSpec, AreaAt),
) -> Result<(), PeerMisbehaved> {
    let peer = view_area(view, area)?;
    let counts = (opened.incoming.len().saturating_add(opened.asked.len()), opened.offers.len());
    match manners.judge(&spec, counts, |slots| cut_area(arena, slots, None)) {
        Err(refusal) => opened.answers.push(Control::ChannelRefused { number, refusal }),
        Ok(Judged::Offer) => opened.offers.push(Offered { number, spec, peer, metadata: None }),
        Ok(Judged::Served(own, area)) => {
            opened.incoming.push(Half { number, spec, own, peer });
            opened.answers.push(Control::ChannelOpened { number, area });
        }
    }
    Ok(())
}

/// The link's view of the desk.
pub(super) struct AtDesk(pub(super) Arc<Desk>);

impl Clerk for AtDesk {
    fn on_control(&self, core: &Core, control: Control) -> Result<(), PeerMisbehaved> {
        match control {
            Control::OpenChannel(wish) => self.0.opened_by_peer(core, wish),
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
        let unjudged = std::mem::take(&mut state.offers);
        let unclaimed = std::mem::take(&mut state.initial);
        drop(state);
        drop((unaccepted, unjudged, unclaimed));
    }
}
