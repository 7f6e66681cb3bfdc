//! A process that does one thing between two marks, and is killed somewhere in between.

use crate::bulk::{byte, check_file, file, fill};
use crate::cache_capnp::cache;
use crate::common::PATIENCE;
use crate::common::apps::{server, trust};
use crate::common::peer::{hear, say};
use crate::tracer::{be_traced, mark};
use std::io::{PipeReader, Write};
use std::time::Duration;
use strait::{Builder, Channel, ClientApp, Message, RecvError, Session, Wait};

/// What a victim dies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Publish,
    Wake,
    Park,
    BorrowInPlace,
    BorrowCopy,
    Return,
    ReturnInSlots,
    ReturnRiding,
    FirstLogIn,
    LogIn,
    OpenChannel,
    Build,
    SendBlob,
    SendDescriptors,
    DropMessage,
    CloseChannel,
    CloseSession,
    Bind,
    Unbind,
}

/// What is done all the time: killed at every instruction.
pub const TALK: [Op; 8] = [
    Op::Publish,
    Op::Wake,
    Op::Park,
    Op::BorrowInPlace,
    Op::BorrowCopy,
    Op::Return,
    Op::ReturnInSlots,
    Op::ReturnRiding,
];

/// What is done now and then: killed around every system call and at instructions in between.
pub const LIFE: [Op; 8] = [
    Op::LogIn,
    Op::OpenChannel,
    Op::Build,
    Op::SendBlob,
    Op::SendDescriptors,
    Op::DropMessage,
    Op::CloseChannel,
    Op::CloseSession,
];

/// A client's first session makes its arena.
pub const FIRST: [Op; 1] = [Op::FirstLogIn];

/// A server alone does this, with nobody there.
pub const SERVING: [Op; 2] = [Op::Bind, Op::Unbind];

impl Op {
    pub fn named(name: &str) -> Self {
        let all = TALK.iter().chain(&FIRST).chain(&LIFE).chain(&SERVING);
        *all.into_iter().find(|op| format!("{op:?}") == name).expect("no such operation")
    }

    /// Files that the survivor sends before it begins, which is as many as a ring has slots.
    pub fn files_before(self) -> usize {
        match self {
            Self::BorrowInPlace | Self::BorrowCopy | Self::Return => 1,
            Self::ReturnInSlots | Self::ReturnRiding => SLOTS as usize,
            _ => 0,
        }
    }

    /// Without a session that both sides prepare.
    pub fn meets(self) -> bool {
        matches!(self, Self::FirstLogIn | Self::LogIn | Self::Bind | Self::Unbind)
    }

    /// jemalloc makes an arena, which takes long step by step: for whoever waits at the other end, too long.
    pub fn makes_arena(self) -> bool {
        matches!(self, Self::FirstLogIn | Self::Bind)
    }

    pub fn trust(self) -> &'static str {
        if self == Self::BorrowCopy { "snapshot" } else { "in_place" }
    }
}

pub const SLOTS: u32 = 8;

/// Parts, and bytes of each, of what crosses.
pub const FILE: (usize, usize) = (2, 40);

/// A message that asks for something.
pub fn wish(channel: &Channel<cache::Owned>, words: &str) -> Message<cache::Owned> {
    let mut builder = channel.create_msg();
    builder.init_root().init_get_cache_req().set_file_name(words);
    builder.freeze().expect("room")
}

/// A file with something beside it.
fn with(channel: &Channel<cache::Owned>, attach: impl FnOnce(&mut Builder<cache::Owned>)) -> Message<cache::Owned> {
    let mut builder = channel.create_msg();
    fill(&mut builder, FILE.0, FILE.1);
    attach(&mut builder);
    builder.freeze().expect("room")
}

/// The reading end of a pipe with a word in it.
fn full_pipe() -> PipeReader {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(b"word").expect("room");
    reader
}

pub const BLOB: usize = 500;
pub const PIPES: usize = 3;

pub fn app() -> ClientApp {
    ClientApp::new("victim").timeout(PATIENCE).slots(SLOTS)
}

/// Does something between two marks, once told to. What it made stays until it is dead.
fn perform<T>(act: impl FnOnce() -> T) {
    say("ready");
    assert_eq!(hear(), "go");
    mark();
    let made = act();
    mark();
    drop(made);
    panic!("nobody killed it");
}

/// The role of a client. Arguments: where, and what to do.
pub fn client(args: &[String]) {
    be_traced();
    let (place, op) = (server(&args[0]), Op::named(&args[1]));
    let app = app().trust(trust(op.trust()));
    if op == Op::FirstLogIn {
        return perform(|| app.connect(&place).expect("connect"));
    }
    let session = app.connect(&place).expect("connect");
    if op == Op::LogIn {
        return perform(|| app.connect(&place).expect("connect"));
    }
    live(op, session, |session| session.open_channel("main", PATIENCE).expect("channel"));
}

/// The role of a server.
pub fn serve(args: &[String]) {
    be_traced();
    let (place, op) = (server(&args[0]).slots(SLOTS).channel::<cache::Owned>("main"), Op::named(&args[1]));
    let place = place.allow(&ClientApp::new("victim"), trust(op.trust()));
    if op == Op::Bind {
        return perform(|| place.bind().expect("bind"));
    }
    let server = place.bind().expect("bind");
    if op == Op::Unbind {
        return perform(|| drop(server));
    }
    say("bound");
    if op == Op::LogIn {
        return perform(|| server.accept().expect("accept"));
    }
    live(op, server.accept().expect("accept"), |session| session.accept_channel().expect("channel"));
}

/// A session up to the operation, and the operation.
fn live(op: Op, session: Session, next: impl Fn(&Session) -> Channel<cache::Owned>) {
    let mut channel = next(&session);
    channel.set_wait(Wait::Park);
    // Once around, so that what is done once in a session has been done; then the survivor gets ready.
    for words in ["file", "begin"] {
        let question = wish(&channel, words);
        check_file(&channel.request(&question, PATIENCE).expect("answer"), FILE.0, FILE.1);
    }
    let mut take = |count| (0..count).map(|_| channel.recv_timeout(PATIENCE).expect("a file")).collect::<Vec<_>>();
    let taken = if matches!(op, Op::BorrowInPlace | Op::BorrowCopy) { 0 } else { op.files_before() };
    let many = take(taken);
    let message = file(&channel, FILE.0, FILE.1, true);
    match op {
        Op::Publish | Op::Wake => perform(|| channel.send(&message).expect("send")),
        Op::Park => {
            let silence = Duration::from_millis(1);
            perform(|| assert_eq!(channel.recv_timeout(silence).map(drop), Err(RecvError::TimedOut)));
        }
        Op::BorrowInPlace | Op::BorrowCopy => perform(|| {
            let received = channel.try_recv().expect("receive").expect("a file");
            check_file(&received, FILE.0, FILE.1);
            received
        }),
        Op::Return => perform(|| drop(many)),
        Op::ReturnInSlots => perform(|| {
            drop(many);
            assert!(channel.try_recv().expect("receive").is_none());
        }),
        Op::ReturnRiding => perform(|| {
            drop(many);
            channel.send(&message).expect("send")
        }),
        Op::OpenChannel => perform(|| next(&session)),
        Op::Build => perform(|| {
            // Larger than anything kept warm, so that memory is got from the system.
            let mut builder = channel.create_msg_with_capacity(8 << 20);
            builder.init_root().init_get_cache_req().set_file_name("large");
            builder.freeze().expect("room")
        }),
        Op::SendBlob => perform(|| {
            let mut blob = channel.arena().create_blob(BLOB).expect("room");
            blob.iter_mut().enumerate().for_each(|(at, place)| *place = byte(1, at));
            let message = with(&channel, |builder| _ = builder.attach_blob(blob.freeze()));
            channel.send(&message).expect("send")
        }),
        Op::SendDescriptors => {
            let message = with(&channel, |builder| (0..PIPES).for_each(|_| _ = builder.attach_fd(full_pipe())));
            perform(|| channel.send(&message).expect("send"))
        }
        Op::DropMessage => perform(|| drop(message)),
        Op::CloseChannel => perform(|| drop(channel)),
        Op::CloseSession => perform(|| {
            session.close();
            drop((channel, many, session));
        }),
        Op::FirstLogIn | Op::LogIn | Op::Bind | Op::Unbind => unreachable!("without a session"),
    }
}
