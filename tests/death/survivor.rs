//! The side that is not killed: keeps company with whoever is there, does as it is asked, and books how each session
//! ended, for the harness in another thread.

use crate::bulk::{byte, check_file, file};
use crate::cache_capnp::cache;
use crate::common::{PATIENCE, eventually};
use crate::victim::{FILE, PIPES, now};
use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::sync::{Condvar, Mutex};
use std::time::Duration;
use strait::{Channel, ChannelError, Ended, Received, RecvError, SendError, Session, Wait};

/// How long after a death everything about it must be over. The issue says a second; the machine may be busy.
pub const SOON: Duration = Duration::from_secs(5);

/// The end of something, as this side learned of it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// By the clock of [`now`].
    pub at: Duration,
    /// None for a log-in that came to nothing.
    pub cause: Option<Ended>,
}

/// What the survivor's threads tell the harness.
#[derive(Default)]
pub struct Books {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Sessions, and visitors under way.
    live: usize,
    paused: bool,
    over: bool,
    seen: Vec<Seen>,
}

impl Books {
    pub fn begin(&self) {
        self.state.lock().expect("books").live += 1;
    }

    /// What was begun is over.
    pub fn end(&self) {
        self.state.lock().expect("books").live -= 1;
        self.changed.notify_all();
    }

    pub fn saw(&self, cause: Option<Ended>, at: Duration) {
        self.state.lock().expect("books").seen.push(Seen { at, cause });
        self.changed.notify_all();
    }

    /// Where a visitor rests when it is told to; false once it is told to go home.
    pub fn rest(&self) -> bool {
        let mut state = self.state.lock().expect("books");
        if state.paused {
            state.live -= 1;
            self.changed.notify_all();
            state = self.changed.wait_while(state, |state| state.paused).expect("books");
            state.live += 1;
        }
        if state.over {
            state.live -= 1;
        }
        !state.over
    }

    pub fn go_on(&self) {
        self.state.lock().expect("books").paused = false;
        self.changed.notify_all();
    }

    pub fn go_home(&self) {
        self.state.lock().expect("books").over = true;
        self.go_on();
    }

    /// Waits until every session is over and every visitor rests, and until a death was seen if there must be one; what
    /// was seen since the last call.
    #[track_caller]
    pub fn quiet(&self, death: bool) -> Vec<Seen> {
        let mut state = self.state.lock().expect("books");
        state.paused = true;
        let missing = |state: &State| death && !state.seen.iter().any(|seen| seen.cause == Some(Ended::PeerDied));
        let more = |state: &mut State| state.live > 0 || missing(state);
        let (mut state, wait) = self.changed.wait_timeout_while(state, SOON, more).expect("books");
        assert!(!wait.timed_out(), "{} did not notice the death in {SOON:?}", state.live);
        std::mem::take(&mut state.seen)
    }
}

/// Uses channel after channel until the session is over, and books that.
pub fn keep_company(
    session: Session,
    books: &Books,
    wait: Wait,
    next: impl Fn(&Session) -> Result<Channel<cache::Owned>, ChannelError>,
) {
    let (cause, at) = loop {
        let mut channel = match next(&session) {
            Ok(channel) => channel,
            Err(ChannelError::Ended { cause, peer: _ }) => break (cause, now()),
            Err(other) => panic!("{other}"),
        };
        channel.set_wait(wait);
        match oblige(&mut channel) {
            (Ended::ChannelClosed, _) => {}
            end => break end,
        }
    };
    assert!(matches!(cause, Ended::PeerDied | Ended::PeerClosed), "{cause:?}");
    assert_eq!(session.end(), Some(cause));
    eventually("nothing is on loan", || (session.on_loan() == (0, 0)).then_some(()));
    books.saw(Some(cause), at);
    match crate::plant().as_str() {
        "leaked descriptor" => std::mem::forget(File::open("/dev/null").expect("a descriptor")),
        "leaked session" => std::mem::forget(session.clone()),
        "late" if cause == Ended::PeerDied => std::thread::sleep(SOON * 2),
        _ => {}
    }
    drop(session);
}

/// Does as it is asked over a channel until that ends: says how, and when this was known.
fn oblige(channel: &mut Channel<cache::Owned>) -> (Ended, Duration) {
    let answer = file(channel, FILE.0, FILE.1, true);
    let mut files = VecDeque::new();
    let mut count = 0;
    let end = loop {
        let mut received = match channel.recv() {
            Ok(received) => received,
            Err(RecvError::Ended(ended)) => break (ended.cause, now()),
            Err(other) => panic!("{other}"),
        };
        count += 1;
        assert_eq!(received.id(), count, "one was lost, or came twice");
        let wish = match received.get().expect("root").which().expect("known") {
            cache::GetCacheReq(request) => {
                request.expect("request").get_file_name().expect("name").to_string().expect("utf-8")
            }
            _ => {
                check_file(&received, FILE.0, FILE.1);
                files.push_back(received);
                files.truncate(8);
                continue;
            }
        };
        if !wish.starts_with("burst ") && wish != "file" {
            check_attached(&mut received, &wish);
            continue;
        }
        let sent = match wish.strip_prefix("burst ") {
            Some(number) => (0..number.parse().expect("number")).try_for_each(|_: u32| channel.send(&answer).map(drop)),
            None => channel.reply(&received, &answer).map(drop),
        };
        match sent {
            Ok(()) => {}
            Err(SendError::Ended(ended)) => break (ended.cause, now()),
            Err(other) => panic!("{other}"),
        }
    };
    // What was received before the end is whole after it.
    files.iter().for_each(|received| check_file(received, FILE.0, FILE.1));
    end
}

/// What came beside a message is all there.
fn check_attached(received: &mut Received<cache::Owned>, what: &str) {
    let fds = received.take_fds().expect("all there");
    let blobs: Vec<_> = received.blobs().iter().map(|blob| blob.to_vec().expect("memory")).collect();
    assert_eq!((fds.len(), blobs.len()), if what == "blob" { (0, 1) } else { (PIPES, 0) });
    for fd in fds {
        let mut word = String::new();
        File::from(fd).read_to_string(&mut word).expect("a pipe");
        assert_eq!(word, "word");
    }
    assert!(blobs.iter().flatten().enumerate().all(|(at, &found)| found == byte(1, at)), "damaged");
}

/// Opens channels as a client does.
pub fn open(session: &Session) -> Result<Channel<cache::Owned>, ChannelError> {
    session.open_channel("main", PATIENCE)
}
