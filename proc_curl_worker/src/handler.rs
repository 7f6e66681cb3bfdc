//! What libcurl calls for one transfer: bodies into the arena and out of the client's, heads, progress. Everything that is to
//! be told waits here, in order; nothing here calls libcurl.

use crate::guard::Guard;
use crate::head::{Expecting, Head, Heads, Version};
use crate::jar::Jar;
use crate::outcome::Outcome;
use crate::retry::{self, Retries};
use crate::upload::{Found, Upload};
use curl::easy::{Handler, InfoType, ReadError, SeekResult, WriteError};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::SeekFrom;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};
use strait::{AllocError, Arena, Blob, BlobBuilder};

/// What is to be told of a request.
#[derive(Debug)]
pub(crate) enum Out {
    Head(Head),
    /// Where it begins, and what it is.
    Body(u64, Blob),
    Progress(Progress),
    Room(u64),
    Trace(InfoType, Vec<u8>),
    /// The last.
    End(Box<Outcome>),
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) received: u64,
    pub(crate) to_receive: Option<u64>,
    pub(crate) sent: u64,
    pub(crate) to_send: Option<u64>,
}

/// What transfers tell the engine: which of them have something to say, and which will.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    pub(crate) dirty: RefCell<Vec<usize>>,
    /// When what has gathered is to be told, in order of time.
    pub(crate) flushes: RefCell<VecDeque<(Instant, usize)>>,
    /// Those that found the arena full.
    pub(crate) starved: RefCell<Vec<usize>>,
    /// A new connection is there.
    pub(crate) connected: Rc<Cell<bool>>,
}

/// Why a transfer was stopped from this side, which libcurl's number does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    BodyTooLarge,
    BodyBroken,
    FirstByte,
    Idle,
}

/// How long what comes in small pieces is gathered before it is told.
const GATHER: Duration = Duration::from_millis(4);
/// Bytes of body under way and with the client, to begin with.
pub(crate) const WINDOW: u64 = 128 << 10;
/// And with a client that keeps up.
const WINDOW_MAX: u64 = 8 << 20;
/// Messages of body that the client has not done with. A channel keeps 4096 for its requests.
const UNREAD_MAX: u64 = 12;
/// Bytes of a body that is nobody's, before its connection is given up.
const SKIPPED_MAX: usize = 256 << 10;
const SEGMENT_MIN: usize = 64 << 10;
const SEGMENT_MAX: usize = 1 << 20;

/// See the module's own words.
pub(crate) struct Transferring {
    key: usize,
    hub: Rc<Hub>,
    arena: Arena,
    pub(crate) guard: Rc<Guard>,
    pub(crate) heads: Heads,
    pub(crate) upload: Upload,
    out: VecDeque<Out>,
    queued: bool,
    /// Until then what is to be told is gathered.
    held_until: Option<Instant>,
    pub(crate) told: bool,
    /// What the server says the body has.
    expected: Option<u64>,
    segment: Option<BlobBuilder>,
    /// Of the body, how much came and how much is in `out` or told.
    pub(crate) delivered: u64,
    published: u64,
    messages: u64,
    window: u64,
    consumed: (u64, u64),
    pub(crate) paused: bool,
    starved: bool,
    body_max: u64,
    pub(crate) stopped: Option<Stopped>,
    pub(crate) first_byte: bool,
    pub(crate) last_byte: Instant,
    progress_every: Option<Duration>,
    progress_told: Option<Instant>,
    /// What the last head came in.
    pub(crate) version: Version,
    /// As it was given.
    pub(crate) cookies: Jar,
    retries: Retries,
    began: Instant,
    /// It will be tried again after so long, so the body that comes is nobody's.
    pub(crate) retry_in: Option<Duration>,
    /// Bytes of it.
    skipped: usize,
}

/// What a request says about how it is handled here.
#[derive(Debug)]
pub(crate) struct Manner {
    pub(crate) expecting: Expecting,
    pub(crate) window: u64,
    /// Bytes a second; 0 for as fast as it comes.
    pub(crate) receive_speed: u64,
    pub(crate) body_max: u64,
    pub(crate) progress_every: Option<Duration>,
    pub(crate) retries: Retries,
    pub(crate) began: Instant,
}

impl Manner {
    /// libcurl's limit on speed begins anew, with what may come in a second or two, whenever it goes on after a pause. So
    /// what it lets through in one go has to fit.
    fn first_window(&self) -> u64 {
        match self.window {
            0 => self.receive_speed.saturating_mul(2).clamp(WINDOW, WINDOW_MAX),
            wanted => wanted.clamp(16 << 10, WINDOW_MAX),
        }
    }
}

impl Transferring {
    pub(crate) fn new(
        key: usize,
        hub: &Rc<Hub>,
        arena: Arena,
        guard: Rc<Guard>,
        upload: Upload,
        manner: Manner,
    ) -> Self {
        let window = manner.first_window();
        Self {
            key,
            hub: hub.clone(),
            arena,
            guard,
            heads: Heads::new(manner.expecting),
            upload,
            out: VecDeque::new(),
            queued: false,
            held_until: None,
            told: false,
            expected: None,
            segment: None,
            delivered: 0,
            published: 0,
            messages: 0,
            window,
            consumed: (0, 0),
            paused: false,
            starved: false,
            body_max: if manner.body_max == 0 { u64::MAX } else { manner.body_max },
            stopped: None,
            first_byte: false,
            last_byte: Instant::now(),
            progress_every: manner.progress_every,
            progress_told: None,
            version: Version::Unknown,
            cookies: Jar::default(),
            retries: manner.retries,
            began: manner.began,
            retry_in: None,
            skipped: 0,
        }
    }

    /// Adds something to be told.
    pub(crate) fn tell(&mut self, out: Out) {
        if let (Out::Progress(_), Some(Out::Progress(_))) = (&out, self.out.back()) {
            self.out.pop_back();
        }
        self.out.push_back(out);
        self.wake();
    }

    /// Has the engine look at what there is to tell, now or when enough time has passed to gather it.
    fn wake(&mut self) {
        if self.queued {
            return;
        }
        if self.told || self.held_until.is_some_and(|until| until <= Instant::now()) {
            self.queued = true;
            self.hub.dirty.borrow_mut().push(self.key);
        } else if self.held_until.is_none() {
            self.hold();
        }
    }

    fn hold(&mut self) {
        let until = Instant::now() + GATHER;
        self.held_until = Some(until);
        self.hub.flushes.borrow_mut().push_back((until, self.key));
    }

    /// Nothing is gathered any longer: all of it is to be told.
    pub(crate) fn flush(&mut self) {
        self.held_until = None;
        self.publish(true);
        if !self.out.is_empty() {
            self.told = true;
            self.wake();
        }
    }

    /// Has the engine look at once.
    pub(crate) fn hurry(&mut self) {
        if !self.queued && !self.out.is_empty() {
            self.told = true;
            self.queued = true;
            self.hub.dirty.borrow_mut().push(self.key);
        }
    }

    /// The next to be told. The engine has looked.
    pub(crate) fn looked(&mut self) {
        self.queued = false;
    }

    pub(crate) fn front(&self) -> Option<&Out> {
        self.out.front()
    }

    pub(crate) fn pop(&mut self) {
        self.told = true;
        self.out.pop_front();
    }

    /// Everything that was not told yet, for an answer in one piece.
    pub(crate) fn take_all(&mut self) -> VecDeque<Out> {
        std::mem::take(&mut self.out)
    }

    /// The client has done with so much. True if libcurl is to go on.
    pub(crate) fn consumed(&mut self, bytes: u64, messages: u64) -> bool {
        let bytes = bytes.min(self.published).max(self.consumed.0);
        self.consumed = (bytes, messages.min(self.messages).max(self.consumed.1));
        if !self.paused || self.is_full() {
            return false;
        }
        // The reader keeps up, so what holds this up is the window.
        self.window = (2 * self.window).min(WINDOW_MAX);
        self.paused = false;
        self.last_byte = Instant::now();
        true
    }

    /// There may be memory again. True if libcurl is to go on.
    pub(crate) fn fed(&mut self) -> bool {
        self.starved = false;
        let goes_on = self.paused && !self.is_full();
        self.paused &= !goes_on;
        goes_on
    }

    fn is_full(&self) -> bool {
        self.delivered - self.consumed.0 >= self.window || self.messages - self.consumed.1 >= UNREAD_MAX
    }

    /// What is in the segment goes on its way. One that is mostly empty is copied into one of its size.
    fn publish(&mut self, partly: bool) {
        let Some(segment) = self.segment.take_if(|segment| partly || segment.len() >= segment.capacity()) else {
            return;
        };
        if segment.is_empty() {
            return;
        }
        let small = segment.len() < segment.capacity() / 2;
        let copy = if small { self.arena.create_blob_with_capacity(segment.len()).ok() } else { None };
        let copied = copy.and_then(|mut copy| copy.extend_from_slice(&segment).ok().map(|()| copy.freeze()));
        let blob = match copied {
            Some(blob) => {
                let mut empty = segment;
                empty.truncate(0);
                self.segment = Some(empty);
                blob
            }
            None => segment.freeze(),
        };
        let at = self.published;
        self.published += blob.len() as u64;
        self.messages += 1;
        self.out.push_back(Out::Body(at, blob));
    }

    fn put(&mut self, mut data: &[u8]) -> Result<(), AllocError> {
        // All or nothing: what libcurl is told was not taken comes again.
        let room = self.segment.as_ref().map_or(0, |segment| segment.capacity() - segment.len());
        let spare = if room < data.len() { Some(self.new_segment(data.len() - room)?) } else { None };
        if let Some(segment) = &mut self.segment {
            let (now, later) = data.split_at(room.min(data.len()));
            segment.extend_from_slice(now)?;
            data = later;
        }
        if let Some(mut spare) = spare {
            self.publish(true);
            spare.extend_from_slice(data)?;
            self.segment = Some(spare);
        }
        Ok(())
    }

    fn new_segment(&self, needed: usize) -> Result<BlobBuilder, AllocError> {
        let usual = usize::try_from(self.window / 4).unwrap_or(SEGMENT_MAX).clamp(SEGMENT_MIN, SEGMENT_MAX);
        let left = self.expected.map(|expected| expected.saturating_sub(self.delivered));
        let wanted = left.and_then(|left| usize::try_from(left).ok()).map_or(usual, |left| left.clamp(1, usual));
        self.arena.create_blob_with_capacity(wanted.max(needed))
    }

    fn give(&mut self, head: Head) {
        self.version = head.version;
        let plain = head.get("content-encoding").is_none();
        let length = head.get("content-length").filter(|_| plain);
        self.expected = length.and_then(|text| text.trim().parse().ok());
        self.tell(Out::Head(head));
    }

    /// Whether what comes is the body of an answer that is not taken for one.
    pub(crate) fn will_retry(&mut self) -> bool {
        if self.retry_in.is_none()
            && let Some(head) = self.heads.undecided()
            && retry::may_pass(head.status)
        {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            self.retry_in = self.retries.pause(head.get("retry-after"), now, self.began.elapsed());
        }
        self.retry_in.is_some()
    }

    /// No answer will come of what was undecided.
    pub(crate) fn pass(&mut self) {
        let mut passed = None;
        self.heads.pass(|head| passed = Some(head));
        if let Some(head) = passed {
            self.give(head);
        }
    }

    /// What was undecided is the answer's own head.
    pub(crate) fn decide(&mut self) {
        let mut own = None;
        self.heads.decide(|head| own = Some(head));
        if let Some(head) = own {
            self.give(head);
        }
    }
}

impl Handler for Transferring {
    fn write(&mut self, data: &[u8]) -> Result<usize, WriteError> {
        if self.will_retry() {
            self.skipped += data.len();
            // A long one costs more than another connection.
            return Ok(if self.skipped > SKIPPED_MAX { 0 } else { data.len() });
        }
        if self.is_full() || self.starved {
            self.paused = true;
            self.flush();
            return Err(WriteError::Pause);
        }
        let after = self.delivered.saturating_add(data.len() as u64);
        if after > self.body_max {
            self.stopped = Some(Stopped::BodyTooLarge);
            return Ok(0);
        }
        self.decide();
        if !self.heads.is_decided() {
            self.version = Version::Http09;
        }
        if self.put(data).is_err() {
            (self.paused, self.starved) = (true, true);
            self.hub.starved.borrow_mut().push(self.key);
            self.flush();
            return Err(WriteError::Pause);
        }
        (self.delivered, self.first_byte, self.last_byte) = (after, true, Instant::now());
        self.publish(false);
        if self.out.iter().any(|out| matches!(out, Out::Body(..))) && (self.told || self.published >= self.window / 4) {
            self.hurry();
        } else if self.held_until.is_none() {
            self.hold();
        }
        Ok(data.len())
    }

    fn read(&mut self, data: &mut [u8]) -> Result<usize, ReadError> {
        match self.upload.read(data) {
            Found::Bytes(count) => {
                self.last_byte = Instant::now();
                if let Some(room) = self.upload.room() {
                    self.tell(Out::Room(room));
                    self.hurry();
                }
                Ok(count)
            }
            Found::Wait => Err(ReadError::Pause),
            Found::Broken => {
                self.stopped = Some(Stopped::BodyBroken);
                Err(ReadError::Abort)
            }
        }
    }

    fn seek(&mut self, whence: SeekFrom) -> SeekResult {
        if self.upload.seek(whence) { SeekResult::Ok } else { SeekResult::CantSeek }
    }

    fn header(&mut self, data: &[u8]) -> bool {
        (self.first_byte, self.last_byte) = (true, Instant::now());
        let mut given = Vec::new();
        self.heads.line(data, |head| given.push(head));
        for head in given {
            self.give(head);
        }
        true
    }

    fn progress(&mut self, to_receive: f64, received: f64, to_send: f64, sent: f64) -> bool {
        let Some(every) = self.progress_every else { return true };
        let now = Instant::now();
        if self.progress_told.is_some_and(|told| now < told + every) {
            return true;
        }
        self.progress_told = Some(now);
        let known = |bytes: f64| (bytes > 0.0).then_some(bytes as u64);
        let (received, sent) = (received as u64, sent as u64);
        let progress = Progress { received, to_receive: known(to_receive), sent, to_send: known(to_send) };
        self.tell(Out::Progress(progress));
        true
    }

    fn debug(&mut self, kind: InfoType, data: &[u8]) {
        if matches!(kind, InfoType::Text | InfoType::HeaderIn | InfoType::HeaderOut) && self.out.len() < 256 {
            self.tell(Out::Trace(kind, data.to_vec()));
        }
    }
}
