//! A request under way, as its client sees it: what the worker says of it, in order and checked; what it wants of the
//! request's body; what it is told of the response's. Begins anew where a worker died that had delivered nothing.

use crate::chunk::{Chunk, Ledger};
use crate::client::Client;
use crate::error::Error;
use crate::link::{Link, PROMPT, Seat};
use crate::proc_curl_capnp::curl;
use crate::request::{Listeners, RequestBuilder, Spec};
use crate::response::{End, Head, HeadKind, Response};
use crate::source::Source;
use crate::wire::{self, BodyIs, Said};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};
use strait::{Blob, FreezeError, Message, Received, ReceivedBlob, RecvError, Replies, SendError, Sender};

/// A request that was sent and whose answer is awaited by nobody yet. Dropped, it is cancelled.
#[must_use = "dropped, it is cancelled"]
pub struct Pending {
    transfer: Transfer,
}

impl Pending {
    pub(crate) fn start(request: RequestBuilder) -> Result<Self, Error> {
        Transfer::start(request).map(|transfer| Self { transfer })
    }

    /// Waits for the head of the answer.
    ///
    /// # Errors
    /// [`Error`].
    pub fn wait(mut self) -> Result<Response, Error> {
        let mut heads = Vec::new();
        loop {
            match self.transfer.next() {
                Ok(Event::Head(head)) => {
                    let last = head.kind == HeadKind::Final;
                    heads.push(head);
                    if last {
                        self.transfer.answered = true;
                        return Ok(Response::new(self.transfer, heads));
                    }
                }
                // HTTP/0.9 has no head.
                Ok(other) => {
                    self.transfer.ahead.push_front(other);
                    self.transfer.answered = true;
                    return Ok(Response::new(self.transfer, heads));
                }
                Err(Error::Failed(mut failure)) => {
                    failure.heads = heads;
                    return Err(Error::Failed(failure));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("url", &self.transfer.spec.url).finish_non_exhaustive()
    }
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Event {
    Head(Head),
    Chunk(Chunk),
    End(Box<End>),
}

/// See the module's own words.
pub(crate) struct Transfer {
    client: Client,
    spec: Spec,
    body: Body,
    listeners: Listeners,
    attempt: Attempt,
    deadline: Option<Instant>,
    /// Taken in and not given out.
    ahead: VecDeque<Event>,
    /// Its own head was given out.
    answered: bool,
    delivered: u64,
    keeps_all: bool,
    over: bool,
    reruns: u32,
}

/// A request's body, as it is sent.
enum Body {
    None,
    Inline(Vec<u8>),
    Blobs(Vec<Blob>),
    Stream(Stream),
}

struct Stream {
    reader: Box<dyn Read + Send>,
    len: Option<u64>,
    /// Read so far.
    sent: u64,
    over: bool,
}

/// With one worker.
struct Attempt {
    // Before the seat, which says that there is room for another.
    replies: Replies<curl::Owned>,
    account: Arc<Account>,
    link: Arc<Link>,
    /// How much of the body the worker has room for.
    room: u64,
    /// Where in the response's body the next byte belongs.
    offset: u64,
}

/// How long after a request's own deadline a worker that keeps deadlines has spoken.
const GRACE: Duration = Duration::from_secs(5);
/// What goes in the request itself rather than beside it.
const INLINE_MAX: usize = 8 << 10;
/// A piece of a stream.
const PIECE: usize = 256 << 10;
/// What a worker takes without being asked.
const ROOM: u64 = 1 << 20;
/// How often a request is begun anew.
const RERUNS: u32 = 2;

impl Transfer {
    fn start(request: RequestBuilder) -> Result<Self, Error> {
        let RequestBuilder { client, spec, source, listeners } = request;
        let body = match source {
            Source::None => Body::None,
            Source::Bytes(bytes) if bytes.len() <= INLINE_MAX => Body::Inline(bytes),
            Source::Bytes(bytes) => {
                let mut blob = client.arena()?.create_blob_with_capacity(bytes.len())?;
                blob.extend_from_slice(&bytes)?;
                Body::Blobs(vec![blob.freeze()])
            }
            Source::Blobs(blobs) => Body::Blobs(blobs),
            Source::Reader { reader, len } => Body::Stream(Stream { reader, len, sent: 0, over: false }),
        };
        let deadline = spec.timeouts.total.and_then(|total| Instant::now().checked_add(total + GRACE));
        let attempt = match Attempt::start(&client, &spec, &body) {
            // It died before, and this is the first to notice.
            Err(Error::WorkerDied { .. }) => Attempt::start(&client, &spec, &body)?,
            other => other?,
        };
        let (ahead, reruns) = (VecDeque::new(), 0);
        let (answered, keeps_all, over) = (false, false, false);
        Ok(Self {
            client,
            spec,
            body,
            listeners,
            attempt,
            deadline,
            ahead,
            answered,
            delivered: 0,
            keeps_all,
            over,
            reruns,
        })
    }

    /// What comes next, waiting for it.
    pub(crate) fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.ahead.pop_front() {
                return Ok(event);
            }
            if self.over {
                return Ok(Event::End(Box::default()));
            }
            let done = match self.receive() {
                Ok(message) => self.take(&message),
                Err(error) => Err(error),
            };
            match done {
                Ok(()) => {}
                Err(Error::WorkerDied { .. }) if self.can_begin_anew() => {
                    self.reruns += 1;
                    self.ahead.clear();
                    self.attempt = Attempt::start(&self.client, &self.spec, &self.body)?;
                }
                Err(error) => {
                    self.over = true;
                    return Err(error);
                }
            }
        }
    }

    /// What comes next, if that has come and nothing is to be sent for it.
    #[cfg(feature = "tokio")]
    pub(crate) fn try_next(&mut self) -> Result<Option<Event>, Error> {
        while self.ahead.is_empty() && !self.over {
            let message = match self.attempt.replies.try_recv() {
                Ok(Some(message)) => message,
                // Why nothing comes is told to whoever waits.
                Ok(None) | Err(_) => return Ok(None),
            };
            let taken = self.take(&message);
            self.over |= taken.is_err();
            taken?;
        }
        self.next().map(Some)
    }

    /// All of the body is to be held at once, so the worker is told of each piece as if it were done with.
    pub(crate) fn keep_all(&mut self) {
        self.keeps_all = true;
    }

    fn can_begin_anew(&self) -> bool {
        let again = match &self.body {
            Body::Stream(stream) => stream.sent == 0 && !stream.over,
            _ => true,
        };
        again && !self.answered && self.delivered == 0 && self.reruns < RERUNS && self.spec.is_idempotent()
    }

    /// The next message, sending the body meanwhile.
    fn receive(&mut self) -> Result<Received<curl::Owned>, Error> {
        loop {
            if let Some(message) = self.attempt.replies.try_recv().map_err(|error| self.gone(error))? {
                return Ok(message);
            }
            if self.send_piece()? {
                continue;
            }
            self.attempt.account.settle();
            let left =
                self.deadline.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
            match self.attempt.replies.recv_timeout(left) {
                Ok(message) => return Ok(message),
                Err(RecvError::TimedOut | RecvError::Backlog) if self.deadline.is_none_or(|at| at > Instant::now()) => {
                }
                Err(error) => return Err(self.gone(error)),
            }
        }
    }

    fn gone(&self, error: RecvError) -> Error {
        match error {
            RecvError::Ended(ended) => self.attempt.link.over(ended.cause, self.delivered),
            RecvError::Finished => Error::WorkerMisbehaved { what: "an answer without an end".into() },
            RecvError::NoMemory { .. } => Error::Copy(io::ErrorKind::OutOfMemory.into()),
            _ => Error::WorkerSilent,
        }
    }

    /// Sends a piece of the body if there is room for it; false if not, or nothing left.
    fn send_piece(&mut self) -> Result<bool, Error> {
        let Body::Stream(stream) = &mut self.body else { return Ok(false) };
        if stream.over || stream.sent >= self.attempt.room {
            return Ok(false);
        }
        let sender = &self.attempt.account.seat.sender();
        let room = usize::try_from(self.attempt.room - stream.sent).unwrap_or(PIECE).min(PIECE);
        let wanted = stream.len.map_or(room, |len| usize::try_from(len - stream.sent).unwrap_or(room).min(room));
        let mut message = sender.create_msg();
        let mut piece = self.attempt.link.session.arena().create_blob(wanted.max(1))?;
        let read = if wanted == 0 { Ok(0) } else { read(&mut stream.reader, &mut piece) };
        let count = *read.as_ref().unwrap_or(&0);
        let short = count == 0 && stream.len.is_some_and(|len| stream.sent < len);
        piece.truncate(count);
        stream.sent += count as u64;
        stream.over = count == 0 || stream.len == Some(stream.sent);
        let mut more = message.init_root().init_more();
        more.set_request(self.attempt.replies.id());
        more.set_last(stream.over);
        more.set_broken(read.is_err() || short);
        if count > 0 {
            message.attach_blob(piece.freeze());
        }
        let message = message.freeze().map_err(unbuilt)?;
        let sent = sender.send_timeout(&message, PROMPT);
        read.map_err(Error::Source)?;
        if short {
            return Err(Error::Source(io::ErrorKind::UnexpectedEof.into()));
        }
        match sent {
            Ok(_) => Ok(true),
            // How it ended is told with the answers.
            Err(SendError::Ended(_)) => {
                stream.over = true;
                Ok(true)
            }
            Err(error) => Err(unsent(&self.attempt.link, error, self.delivered)),
        }
    }

    fn take(&mut self, message: &Received<curl::Owned>) -> Result<(), Error> {
        let garbled = |what: String| Error::WorkerMisbehaved { what };
        let said = message.get().and_then(wire::read).map_err(|error| garbled(error.to_string()))?;
        let said = said.ok_or_else(|| garbled("a message that answers no request".into()))?;
        let last = matches!(said, Said::Done(_) | Said::Failed(_) | Said::Whole(..));
        if last == message.more_follow() {
            return Err(garbled("an end that is none, or the other way round".into()));
        }
        self.over |= last;
        match said {
            Said::Head(head) => self.take_head(head),
            Said::Body(at) => self.take_body(at, message.blobs())?,
            Said::Progress(progress) => {
                if let Some(listener) = &mut self.listeners.progress {
                    listener(&progress);
                }
            }
            Said::Room(bytes) => self.attempt.room = self.attempt.room.max(bytes),
            Said::Trace(kind, text) => {
                if let Some(listener) = &mut self.listeners.trace {
                    listener(kind, &text);
                }
            }
            Said::Done(end) => self.take_end(end),
            Said::Whole(heads, end) => {
                heads.into_iter().for_each(|head| self.take_head(head));
                self.take_body(self.attempt.offset, message.blobs())?;
                self.take_end(end);
            }
            Said::Failed(mut failure) => {
                failure.bytes = self.delivered;
                return Err(Error::Failed(failure));
            }
        }
        Ok(())
    }

    fn take_head(&mut self, head: Head) {
        if let Some(listener) = &mut self.listeners.head {
            listener(&head);
        }
        self.ahead.push_back(Event::Head(head));
    }

    fn take_end(&mut self, end: End) {
        self.attempt.account.close();
        self.ahead.push_back(Event::End(Box::new(end)));
    }

    fn take_body(&mut self, at: u64, blobs: &[ReceivedBlob]) -> Result<(), Error> {
        if at != self.attempt.offset {
            let what = format!("a body that goes on at {at} instead of {}", self.attempt.offset);
            return Err(Error::WorkerMisbehaved { what });
        }
        for blob in blobs {
            self.attempt.offset = self.attempt.offset.saturating_add(blob.len());
            self.delivered = self.delivered.saturating_add(blob.len());
            let chunk = if self.keeps_all {
                self.attempt.account.spent(blob.len());
                Chunk::new(blob.clone(), None)
            } else {
                Chunk::new(blob.clone(), Some(self.attempt.account.clone()))
            };
            self.ahead.push_back(Event::Chunk(chunk));
        }
        Ok(())
    }
}

/// A read that nothing interrupts.
fn read(reader: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done.map(|count| count.min(into.len())),
        }
    }
}

fn unbuilt(error: FreezeError) -> Error {
    match error {
        FreezeError::Alloc(error) => error.into(),
        other => Error::Source(io::Error::new(io::ErrorKind::InvalidInput, other)),
    }
}

fn unsent(link: &Link, error: SendError, bytes: u64) -> Error {
    match error {
        SendError::Ended(ended) => link.over(ended.cause, bytes),
        SendError::TimedOut | SendError::Full => Error::WorkerSilent,
        other => Error::Source(io::Error::other(other)),
    }
}

impl Attempt {
    fn start(client: &Client, spec: &Spec, body: &Body) -> Result<Self, Error> {
        let link = client.link()?;
        let seat = match link.seat() {
            Ok(seat) => seat,
            Err(_) if link.is_over() => {
                return Err(link.over(link.session.end().unwrap_or(strait::Ended::PeerDied), 0));
            }
            Err(error) => return Err(error.into()),
        };
        let message = Self::message(seat.sender(), spec, body)?;
        let replies = seat.sender().request_stream(&message, PROMPT).map_err(|error| unsent(&link, error, 0))?;
        let account = Arc::new(Account::new(seat, replies.id(), spec.window));
        Ok(Self { replies, account, link, room: ROOM, offset: 0 })
    }

    fn message(sender: &Sender<curl::Owned>, spec: &Spec, body: &Body) -> Result<Message<curl::Owned>, Error> {
        let inline = if let Body::Inline(bytes) = body { bytes.len() } else { 0 };
        let mut message = sender.create_msg_with_capacity(1024 + inline);
        let says = match body {
            Body::None => BodyIs::None,
            Body::Inline(bytes) => BodyIs::Inline(bytes),
            Body::Blobs(_) => BodyIs::Blobs,
            Body::Stream(stream) => BodyIs::Stream(stream.len),
        };
        wire::write_request(spec, &says, message.init_root().init_request());
        if let Body::Blobs(blobs) = body {
            for blob in blobs {
                message.attach_blob(blob.clone());
            }
        }
        message.freeze().map_err(unbuilt)
    }
}

/// What of a response's body has been done with, and what the worker has been told of it.
struct Account {
    seat: Seat,
    request: u64,
    /// Bytes that are not worth telling of.
    small: u64,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    bytes: u64,
    pieces: u64,
    told: (u64, u64),
    /// The worker does not care any more.
    closed: bool,
}

/// Pieces that are worth telling of.
const PIECES: u64 = 4;
/// Bytes that are, with the usual window.
const SMALL: u64 = 64 << 10;

impl Account {
    fn new(seat: Seat, request: u64, window: u32) -> Self {
        let small = if window == 0 { SMALL } else { SMALL.min(u64::from(window) / 4) };
        Self { seat, request, small, entries: Mutex::default() }
    }

    fn close(&self) {
        self.entries.lock().closed = true;
    }

    /// Tells what is worth telling, waiting for room: a worker that waits for this says nothing else.
    fn settle(&self) {
        self.tell(&mut self.entries.lock(), |message| self.seat.sender().send_timeout(message, PROMPT));
    }

    fn tell(&self, entries: &mut Entries, send: impl FnOnce(&Message<curl::Owned>) -> Result<u64, SendError>) {
        let untold = (entries.bytes - entries.told.0, entries.pieces - entries.told.1);
        if entries.closed || (untold.0 < self.small && untold.1 < PIECES) {
            return;
        }
        let mut message = self.seat.sender().create_msg();
        let mut consumed = message.init_root().init_consumed();
        consumed.set_request(self.request);
        consumed.set_bytes(entries.bytes);
        consumed.set_messages(entries.pieces);
        if let Ok(message) = message.freeze()
            && send(&message).is_ok()
        {
            entries.told = (entries.bytes, entries.pieces);
        }
    }
}

impl Ledger for Account {
    fn spent(&self, bytes: u64) {
        let mut entries = self.entries.lock();
        entries.bytes = entries.bytes.saturating_add(bytes);
        entries.pieces += 1;
        self.tell(&mut entries, |message| self.seat.sender().try_send(message));
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.attempt.account.close();
        // The worker learns of it in any case, some time after the answers are dropped; so it does at once.
        let sender = self.attempt.account.seat.sender();
        let mut message = sender.create_msg();
        message.init_root().set_cancel(self.attempt.replies.id());
        if let Ok(message) = message.freeze() {
            let _ = sender.try_send(&message);
        }
    }
}
