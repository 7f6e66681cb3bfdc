//! The side that is not killed: gets ready for what the victim is about to do, and checks what reaches it.

use crate::bulk::{byte, check_file, file};
use crate::cache_capnp::cache;
use crate::common::{PATIENCE, eventually};
use crate::victim::{FILE, Op, PIPES};
use nix::unistd::gettid;
use std::fs::File;
use std::io::Read;
use std::sync::{Condvar, Mutex, mpsc};
use strait::{Channel, ChannelError, Ended, Received, RecvError, SendError, Session, Wait};

/// What survivors and the harness tell each other.
pub struct Stage {
    op: Mutex<Op>,
    /// How many victims are dead.
    dead: (Mutex<u64>, Condvar),
    ready: mpsc::Sender<i32>,
    ends: mpsc::Sender<End>,
}

/// How a session with a victim was.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub cause: Ended,
    /// Messages that came from the victim after it was ready to die.
    pub came: usize,
}

impl Stage {
    /// With what survivors say: the threads that are ready, and the ends of their sessions.
    pub fn new() -> (Self, mpsc::Receiver<i32>, mpsc::Receiver<End>) {
        let ((ready, readies), (ends, ended)) = (mpsc::channel(), mpsc::channel());
        (Self { op: Mutex::new(Op::Publish), dead: (Mutex::new(0), Condvar::new()), ready, ends }, readies, ended)
    }

    pub fn set(&self, op: Op) {
        *self.op.lock().expect("stage") = op;
    }

    pub fn op(&self) -> Op {
        *self.op.lock().expect("stage")
    }

    pub fn deaths(&self) -> u64 {
        *self.dead.0.lock().expect("stage")
    }

    pub fn died(&self) {
        *self.dead.0.lock().expect("stage") += 1;
        self.dead.1.notify_all();
    }

    fn await_death(&self, before: u64) {
        let dead = self.dead.0.lock().expect("stage");
        drop(self.dead.1.wait_while(dead, |dead| *dead == before).expect("stage"));
    }
}

/// A session with a victim, from its beginning to its end.
pub fn keep_company(
    session: Session,
    stage: &Stage,
    next: impl Fn(&Session) -> Result<Channel<cache::Owned>, ChannelError>,
) {
    let (op, deaths) = (stage.op(), stage.deaths());
    let mut end = End { cause: Ended::PeerDied, came: 0 };
    let mut first = true;
    end.cause = loop {
        let mut channel = match next(&session) {
            Ok(channel) => channel,
            Err(ChannelError::Ended { cause, peer: _ }) => break cause,
            Err(other) => panic!("{other}"),
        };
        channel.set_wait(Wait::Park);
        let mut second = None;
        if std::mem::take(&mut first) && !op.meets() {
            if !prepare(&mut channel, op) {
                panic!("the session ended before anything was done");
            }
            if op == Op::OpenChannel {
                // Where the victim accepts it is there before; where the victim opens it this waits for that.
                second = crate::opens(&session).then(|| next(&session).expect("another"));
            }
            stage.ready.send(gettid().as_raw()).expect("harness");
            if op != Op::Wake {
                // Asleep it would be woken: that is another operation.
                stage.await_death(deaths);
            }
        }
        match drain(&mut channel, op, &mut end.came) {
            Ended::ChannelClosed => {}
            cause => break cause,
        }
        drop(second);
    };
    assert_eq!(session.end(), Some(end.cause));
    eventually("nothing is on loan", || (session.on_loan() == (0, 0)).then_some(()));
    match crate::plant().as_str() {
        "leaked descriptor" => std::mem::forget(File::open("/dev/null").expect("a descriptor")),
        "leaked session" => std::mem::forget(session.clone()),
        _ => {}
    }
    drop(session);
    stage.ends.send(end).expect("harness");
}

/// Answers until the victim begins, and sends what it needs for that.
fn prepare(channel: &mut Channel<cache::Owned>, op: Op) -> bool {
    let answer = file(channel, FILE.0, FILE.1, true);
    loop {
        let Ok(received) = channel.recv_timeout(PATIENCE) else { return false };
        let Ok(cache::GetCacheReq(wish)) = received.get().expect("root").which() else { panic!("no wish") };
        let begins = wish.expect("wish").get_file_name().expect("name") == "begin";
        channel.reply(&received, &answer).expect("reply");
        if begins {
            break;
        }
    }
    for _ in 0..op.files_before() {
        match channel.send_timeout(&answer, PATIENCE) {
            Ok(_) => {}
            Err(SendError::Ended(_)) => return false,
            Err(other) => panic!("{other}"),
        }
    }
    true
}

/// Receives until it is over: everything that comes must be whole.
fn drain(channel: &mut Channel<cache::Owned>, op: Op, came: &mut usize) -> Ended {
    let mut kept = Vec::new();
    let cause = loop {
        match channel.recv() {
            Ok(mut received) => {
                check_attached(&mut received, op);
                check_file(&received, FILE.0, FILE.1);
                kept.push(received);
            }
            Err(RecvError::Ended(ended)) => break ended.cause,
            Err(other) => panic!("{other}"),
        }
    };
    // What was received before the end is whole after it.
    kept.iter().for_each(|received| check_file(received, FILE.0, FILE.1));
    *came += kept.len();
    cause
}

/// What was sent beside a message is all there when that is.
fn check_attached(received: &mut Received<cache::Owned>, op: Op) {
    let fds = received.take_fds().expect("all there");
    let blobs: Vec<_> = received.blobs().iter().map(|blob| blob.to_vec().expect("memory")).collect();
    let expected = match op {
        Op::SendBlob => (0, 1),
        Op::SendDescriptors => (PIPES, 0),
        _ => (0, 0),
    };
    assert_eq!((fds.len(), blobs.len()), expected);
    for fd in fds {
        let mut word = String::new();
        File::from(fd).read_to_string(&mut word).expect("a pipe");
        assert_eq!(word, "word");
    }
    assert!(blobs.iter().flatten().enumerate().all(|(at, &found)| found == byte(1, at)), "damaged");
}
