//! libcurl's multi handle among the sources of an event loop, and the requests it has under way. Knows neither sessions nor
//! text: who asked is a number, and what is to be told is taken by a [`Front`].

mod turn;

use crate::fair::Fair;
use crate::handler::{Hub, Out, Transferring};
use crate::jar::Jars;
use crate::outcome::{Fault, Info, Outcome, Stage, Why};
use crate::setup::House;
use crate::sockets::Sockets;
use crate::upload::Upload;
use crate::wish::{Terms, Wish};
use curl::easy::Easy;
use curl::multi::{Easy2Handle, Multi};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};
use strait::Arena;
use strait::event::{EventLoop, Readiness, Token};

/// Whoever asked: takes what is to be told of its requests.
pub(crate) trait Front {
    /// Takes it, if there is room.
    fn tell(&mut self, line: u64, key: usize, wish: &Wish, out: &Out) -> Told;
    /// Takes all of a response at once. Its last is its end.
    fn tell_whole(&mut self, line: u64, key: usize, wish: &Wish, all: &[Out]) -> Told;
    /// A request is over.
    fn forget(&mut self, line: u64, key: usize, wish: &Wish);
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// Who is to have its turn, and whose jars these are.
    pub(crate) client: u64,
    /// Where to tell of it.
    pub(crate) line: u64,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Taken,
    /// To be tried again when the client has room.
    Full,
    /// Nobody wants to hear of this request any more.
    Unwanted,
}

/// How much at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Requests under way.
    pub(crate) active: usize,
    /// Requests of one client that wait.
    pub(crate) queued: usize,
    pub(crate) connections: usize,
    pub(crate) host_connections: usize,
    pub(crate) idle_connections: usize,
    pub(crate) streams: usize,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) started: u64,
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) connections: u64,
}

/// A request.
struct Transfer {
    origin: Origin,
    wish: Rc<Wish>,
    arena: Arena,
    terms: Terms,
    began: Instant,
    state: State,
    /// When to look at it, which is in `looks`.
    look: Option<Instant>,
    /// Its body, unless libcurl has it.
    upload: Upload,
    /// Told of its end, or nobody wants to hear of it.
    connections: u32,
    /// A connection of others' led where it may not go; it has tried one of its own since.
    fresh: bool,
    /// Heads of attempts that were not the last, and what else was not told of them.
    before: Vec<Out>,
}

enum State {
    Queued,
    Running(Box<Easy2Handle<Transferring>>),
    /// Until its time comes.
    Pausing,
    /// Nothing but its end is to be told.
    Over(Vec<Out>),
}

impl Transfer {
    /// When its time is up.
    fn due(&self) -> Option<Instant> {
        self.terms.total.and_then(|total| self.began.checked_add(total))
    }
}

pub(crate) struct Engine {
    multi: Multi,
    sockets: Sockets,
    transfers: HashMap<usize, Transfer>,
    next_key: usize,
    running: usize,
    waiting: Fair,
    hub: Rc<Hub>,
    /// When to look at which request.
    looks: BTreeSet<(Instant, usize)>,
    /// When to try again those that found the arena full.
    feed_at: Option<Instant>,
    /// No request's; see [`Engine::rouse`].
    rouser: Option<Easy>,
    pub(crate) jars: Jars,
    house: House,
    limits: Limits,
    pub(crate) counts: Counts,
}

/// How often memory is looked for that was not there.
const FEED: Duration = Duration::from_millis(10);

impl Engine {
    pub(crate) fn new(house: House, limits: Limits) -> anyhow::Result<Self> {
        let mut multi = Multi::new();
        multi.pipelining(false, true)?;
        multi.set_max_total_connections(limits.connections)?;
        multi.set_max_host_connections(limits.host_connections)?;
        multi.set_max_connects(limits.idle_connections)?;
        // Since libcurl 7.67; older ones have a limit of their own.
        let _ = multi.set_max_concurrent_streams(limits.streams);
        let sockets = Sockets::new(&mut multi)?;
        Ok(Self {
            multi,
            sockets,
            transfers: HashMap::new(),
            next_key: 1,
            running: 0,
            waiting: Fair::default(),
            hub: Rc::default(),
            looks: BTreeSet::new(),
            feed_at: None,
            rouser: None,
            jars: Jars::default(),
            house,
            limits,
            counts: Counts::default(),
        })
    }

    /// Takes a request on. Its end is told in any case.
    pub(crate) fn begin(&mut self, origin: Origin, wish: Wish, arena: Arena) -> usize {
        let key = self.next_key;
        self.next_key += 1;
        self.counts.started += 1;
        let mut transfer = Transfer {
            origin,
            wish: Rc::new(wish),
            arena,
            terms: Terms::default(),
            began: Instant::now(),
            state: State::Queued,
            look: None,
            upload: Upload::default(),
            connections: 0,
            fresh: false,
            before: Vec::new(),
        };
        let terms = transfer.wish.terms().and_then(|terms| Ok((terms, transfer.wish.upload()?)));
        let crowded = self.waiting.len_of(origin.client) >= self.limits.queued;
        match terms {
            Ok(_) if crowded => {
                let text = "too many requests of this client are waiting";
                self.over(key, transfer, Fault::new(27, Why::Overloaded, Stage::Queue, text));
            }
            Ok((terms, upload)) => {
                (transfer.terms, transfer.upload) = (terms, upload);
                let due = transfer.due();
                self.look_at(key, &mut transfer, due);
                self.transfers.insert(key, transfer);
                self.waiting.push(origin.client, key);
            }
            Err(fault) => self.over(key, transfer, fault),
        }
        key
    }

    /// A request ends before it began.
    fn over(&mut self, key: usize, mut transfer: Transfer, fault: Fault) {
        let info = Info { retries: transfer.terms.retries.done, ..Info::default() };
        let outcome = Outcome { fault: Some(fault), info, trailers: Vec::new() };
        let mut out = std::mem::take(&mut transfer.before);
        self.look_at(key, &mut transfer, None);
        out.push(Out::End(Box::new(outcome)));
        transfer.state = State::Over(out);
        self.transfers.insert(key, transfer);
        self.counts.failed += 1;
        self.hub.dirty.borrow_mut().push(key);
    }

    /// The client wants no more of it.
    pub(crate) fn cancel(&mut self, key: usize, front: &mut impl Front) {
        if self.remove(key, front).is_some() {
            self.counts.cancelled += 1;
        }
    }

    fn remove(&mut self, key: usize, front: &mut impl Front) -> Option<()> {
        let mut transfer = self.transfers.remove(&key)?;
        self.look_at(key, &mut transfer, None);
        match transfer.state {
            State::Running(handle) => {
                self.running -= 1;
                self.counts.received += handle.get_ref().delivered;
                self.counts.sent += handle.get_ref().upload.taken();
                let _ = self.multi.remove2(*handle);
            }
            State::Queued => self.waiting.remove(transfer.origin.client, key),
            State::Pausing | State::Over(_) => {}
        }
        front.forget(transfer.origin.line, key, &transfer.wish);
        Some(())
    }

    /// When to look at a request, instead of when it was said before.
    fn look_at(&mut self, key: usize, transfer: &mut Transfer, at: Option<Instant>) {
        if let Some(before) = std::mem::replace(&mut transfer.look, at) {
            self.looks.remove(&(before, key));
        }
        self.looks.extend(at.map(|at| (at, key)));
    }

    fn handler(&mut self, key: usize) -> Option<&mut Transferring> {
        match &mut self.transfers.get_mut(&key)?.state {
            State::Running(handle) => Some(handle.get_mut()),
            _ => None,
        }
    }

    /// The client has done with so much of a body.
    pub(crate) fn consumed(&mut self, key: usize, bytes: u64, messages: u64) {
        if self.handler(key).is_some_and(|handler| handler.consumed(bytes, messages)) {
            self.go_on(key);
        }
    }

    /// More of a request's body.
    pub(crate) fn more(&mut self, key: usize, blobs: &[strait::ReceivedBlob], last: bool, broken: bool) {
        let Some(transfer) = self.transfers.get_mut(&key) else { return };
        let State::Running(handle) = &mut transfer.state else {
            transfer.upload.add(blobs, last, broken);
            return;
        };
        let upload = &mut handle.get_mut().upload;
        upload.add(blobs, last, broken);
        if upload.wakes() {
            let _ = handle.unpause_read();
        }
    }

    fn go_on(&mut self, key: usize) {
        if let Some(Transfer { state: State::Running(handle), .. }) = self.transfers.get(&key) {
            let _ = handle.unpause_write();
        }
    }

    /// A descriptor in the loop failed. False if it is none of libcurl's.
    pub(crate) fn lost(&mut self, fd: Token) -> bool {
        self.sockets.lost(fd)
    }

    /// A descriptor in the loop is ready. False if it is none of libcurl's.
    pub(crate) fn ready(&mut self, fd: Token, readiness: Readiness) -> bool {
        self.sockets.ready(&self.multi, fd, readiness)
    }

    /// When it has something to do by itself.
    pub(crate) fn due(&self) -> Option<Instant> {
        let flush = self.hub.flushes.borrow().front().map(|(at, _)| *at);
        let look = self.looks.first().map(|(at, _)| *at);
        [self.sockets.due(), flush, look, self.feed_at].into_iter().flatten().min()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.transfers.is_empty()
    }

    pub(crate) fn active(&self) -> usize {
        self.running
    }

    pub(crate) fn queued(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn paused(&self) -> usize {
        let paused = |transfer: &&Transfer| match &transfer.state {
            State::Running(handle) => handle.get_ref().paused,
            _ => false,
        };
        self.transfers.values().filter(paused).count()
    }

    /// Those that nobody wants to hear of any more.
    pub(crate) fn left(&self, mut is_left: impl FnMut(&Wish, u64) -> bool) -> Vec<usize> {
        let left = self.transfers.iter().filter(|(_, transfer)| is_left(&transfer.wish, transfer.origin.line));
        left.map(|(key, _)| *key).collect()
    }

    /// Does what there is to do: starts what has its turn, tells what there is to tell, and leaves the loop waiting for
    /// what libcurl waits for.
    pub(crate) fn turn(&mut self, events: &mut EventLoop, front: &mut impl Front) {
        let now = Instant::now();
        self.sockets.tick(&self.multi, now);
        self.rouse();
        self.look(now);
        self.feed(now);
        loop {
            self.start_waiting();
            self.finish();
            self.flush(now);
            let dirty = std::mem::take(&mut *self.hub.dirty.borrow_mut());
            if dirty.is_empty() {
                break;
            }
            for key in dirty {
                self.tell(key, front);
            }
        }
        self.sockets.watch(events);
    }

    /// Requests whose client has room again.
    pub(crate) fn again(&mut self, key: usize) {
        match self.transfers.get_mut(&key).map(|transfer| &mut transfer.state) {
            Some(State::Running(handle)) => handle.get_mut().hurry(),
            Some(State::Over(_)) => self.hub.dirty.borrow_mut().push(key),
            _ => {}
        }
    }
}
