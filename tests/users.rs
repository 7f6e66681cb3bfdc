//! Apps of different users: who may meet whom, and how the memory between them is guarded. Needs root, to be others;
//! without it each case says that it was skipped.

mod common;
#[path = "common/raw.rs"]
mod raw;
capnp::generated_code!(mod hello_capnp);

use common::apps::{Place, ask, client, open, server, words};
use common::obliging;
use common::peer::{Peer, hear, say};
use common::{AS_ROLE, Case};
use hello_capnp::hello;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open as open_file};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::stat::{Mode, fstat};
use raw::{BYTES, Frame, Memory, Socket};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use strait::{BindError, ClientApp, ConnectError, LoginError, RunDirError, SendError, ServerApp, Trust};

fn main() -> ExitCode {
    let cases = [
        Case::new("wrong_user", wrong_user),
        Case::new("wrong_group", wrong_group),
        Case::new("a_guest_is_served", guest),
        Case::new("silent_guests_keep_nobody_else_out", silent_guests),
        Case::new("a_worker_of_another_user", foreign_worker),
        Case::new("what_a_guest_gets_cannot_be_written", guests_memory),
        Case::new("what_a_guest_may_have_unless_told_otherwise", guests_share),
        Case::new("a_message_for_users_and_guests", for_guests),
        Case::new("what_a_user_passes_is_read_only", own_memory),
        Case::new("what_a_client_passes_is_sealed_against_others", clients_memory),
        Case::new("a_directory_of_somebody_else", foreign_dir),
        Case::new("a_server_of_somebody_else", wrong_server),
    ];
    if std::env::args().nth(1).is_some_and(|arg| arg == AS_WORKER) {
        return worker();
    }
    let roles: &[common::Role] = &[
        ("doorman", doorman),
        ("caller", caller),
        ("examiner", examiner),
        ("silent", silent),
        ("reader", reader),
        ("crowd", crowd),
    ];
    common::main(&cases, roles)
}

/// Nobody's, on every Linux.
const NOBODY: u32 = 65_534;

/// Whether this process can become another user.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("note: skipped: not root");
    }
    root
}

/// Lets `guest` in as nobody and in the given group, `tester` and `raw` as this user.
fn doorman(args: &[String]) {
    let app = server(&args[0]).channel::<hello::Owned>("main").allow(&client(), Trust::snapshot());
    let app = app.allow(&ClientApp::new("raw"), Trust::snapshot());
    let group: u32 = args[1].parse().expect("a group");
    let app = app.allow(&ClientApp::new("guest").uid(NOBODY).gid(group), Trust::snapshot());
    obliging::run_app(app, |session| {
        let peer = session.peer();
        say(format!("in: {} {} {} {}", session.peer_name(), peer.uid, peer.gid, peer.pid));
    });
}

/// A client under the name given, of the server of the user given; says what came of it.
fn caller(args: &[String]) {
    let to = server(&args[0]).uid(args[2].parse().expect("a user"));
    match ClientApp::new(&args[1]).timeout(common::PATIENCE).connect(&to) {
        Ok(session) => say(ask(&mut open(&session), "echo hello")),
        Err(error) => say(format!("{error:?}")),
    }
}

/// Logs in as `guest` or `raw` and says what it was given, and whether it can be written to.
fn examiner(args: &[String]) {
    let (socket, own) = (Socket::knock(Path::new(&args[0])), Memory::own(BYTES));
    assert!(socket.send(&Frame::hello(BYTES, &args[1], &[]).0, &[own.read_only().as_fd()]));
    let (welcome, fds) = socket.recv().expect("an answer");
    assert_eq!(welcome.u32_at(8), 2, "a welcome");
    let [memory]: [OwnedFd; 1] = fds.try_into().expect("one descriptor");
    say(guards(&memory));
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    say(format!("{:?}", open_file(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map(drop)));
}

/// Connects as often as it is told, and says nothing.
fn silent(args: &[String]) {
    let count: usize = args[1].parse().expect("a number");
    let _sockets: Vec<Socket> = (0..count).map(|_| Socket::knock(Path::new(&args[0]))).collect();
    say("connected");
    hear();
}

/// Logs in as `guest` until it is refused, with memory of so many bytes; says how often it was let in, and why no more.
fn crowd(args: &[String]) {
    let bytes: usize = args[1].parse().expect("a number");
    let mut inside = Vec::new();
    let refused = loop {
        let (socket, own) = (Socket::knock(Path::new(&args[0])), Memory::own(bytes));
        assert!(socket.send(&Frame::hello(bytes, "guest", &[]).0, &[own.read_only().as_fd()]));
        let (answer, _) = socket.recv().expect("an answer");
        if answer.u32_at(8) != 2 {
            break answer.u32_at(32);
        }
        inside.push((socket, own));
    };
    say(format!("{} {refused}", inside.len()));
    hear();
}

const AS_WORKER: &str = "--worker";

/// Not a role: its standard input is a session's socket.
fn worker() -> ExitCode {
    let session = client().connect_parent(&ServerApp::new("suite").uid(0)).expect("connect");
    assert_eq!((session.peer().uid, session.peer().pid), (0, nix::unistd::getppid().as_raw()));
    let mut channel = session.open_channel::<hello::Owned>("main", common::PATIENCE).expect("opened");
    assert_eq!(ask(&mut channel, "echo from a worker"), "echo from a worker");
    ExitCode::SUCCESS
}

/// Seals and modes, and what comes of a writable mapping.
fn guards(memory: &OwnedFd) -> String {
    let seals = SealFlag::from_bits_retain(fcntl(memory, FcntlArg::F_GET_SEALS).expect("seals"));
    let fixed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    let access = fcntl(memory, FcntlArg::F_GETFL).expect("flags") & OFlag::O_ACCMODE.bits();
    let mode = fstat(memory).expect("stat").st_mode & 0o7777;
    let (len, write) = (NonZeroUsize::new(4096).expect("a page"), ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    // SAFETY: if it comes to be, it is a mapping of its own that nobody uses.
    let mapped = unsafe { mmap(None, len, write, MapFlags::MAP_SHARED, memory, 0) };
    format!(
        "fixed {}, unwritable {}, read-only {}, mode {mode:o}, mapped {:?}",
        seals.contains(fixed),
        seals.contains(SealFlag::F_SEAL_FUTURE_WRITE),
        access == OFlag::O_RDONLY.bits(),
        mapped.map(drop),
    )
}

/// Another user's process; it must be able to reach its program.
fn as_nobody(role: &str, args: &[&str], gid: u32) -> (Peer, tempfile::TempDir) {
    let dir = program();
    let mut command = Command::new(dir.path().join("program"));
    command.arg(AS_ROLE).arg(role).args(args).current_dir("/").uid(NOBODY).gid(gid);
    (Peer::of(command), dir)
}

/// This program where anybody can reach it.
fn program() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().expect("directory");
    std::fs::copy(std::env::current_exe().expect("own path"), dir.path().join("program")).expect("copy");
    dir
}

fn with_doorman(group: u32, talk: impl FnOnce(&Place, &mut Peer)) {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut peer = Peer::start("doorman", &[place.text(), &group.to_string()]);
    peer.must_say("ready");
    let mode = std::fs::metadata(place.path()).expect("directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o711, "reachable, not listable");
    talk(&place, &mut peer);
    peer.tell("stop");
    peer.finish();
    place.must_be_empty();
}

#[track_caller]
fn must_be_refused(place: &Place, peer: &mut Peer, name: &str, error: &LoginError) {
    let before = common::census::maps(&peer.pid().to_string());
    let (mut caller, _program) = as_nobody("caller", &[place.text(), name, "0"], NOBODY);
    caller.must_say(&format!("{:?}", ConnectError::Refused(error.clone())));
    peer.must_say(&format!("accept: {:?}", strait::AcceptError::Refused(error.clone())));
    assert_eq!(common::census::maps(&peer.pid().to_string()), before);
    caller.finish();
}

/// So many sessions, and no memory of a size that would take all address space: others are to have some, too.
fn guests_share() {
    with_doorman(NOBODY, |place, peer| {
        for (bytes, said) in [(BYTES, "64 11"), ((1 << 30) + (1 << 16), "0 8")] {
            let (mut crowd, _program) = as_nobody("crowd", &[place.text(), &bytes.to_string()], NOBODY);
            crowd.must_say(said);
            let session = client().connect(&place.server()).expect("this user has its own");
            assert_eq!(ask(&mut open(&session), "echo hello"), "hello");
            drop(session);
            crowd.tell("leave");
            crowd.finish();
            // Who came and went, and who was refused, is not asked for here.
            let count: usize = said.split(' ').next().and_then(|count| count.parse().ok()).expect("a number");
            (0..count + 2).for_each(|_| drop(peer.line()));
        }
    });
}

fn wrong_user() {
    with_doorman(NOBODY, |place, peer| {
        let client = "tester".to_owned();
        must_be_refused(place, peer, "tester", &LoginError::WrongUser { client, uid: NOBODY });
        // And this user is not the guest.
        let error = LoginError::WrongUser { client: "guest".into(), uid: 0 };
        match ClientApp::new("guest").connect(&place.server()) {
            Err(ConnectError::Refused(found)) => assert_eq!(found, error),
            other => panic!("{other:?}"),
        }
        peer.must_say(&format!("accept: {:?}", strait::AcceptError::Refused(error)));
    });
}

fn wrong_group() {
    with_doorman(4242, |place, peer| {
        let error = LoginError::WrongGroup { client: "guest".into(), gid: NOBODY };
        must_be_refused(place, peer, "guest", &error);
    });
}

fn guest() {
    with_doorman(4242, |place, peer| {
        let (mut caller, _program) = as_nobody("caller", &[place.text(), "guest", "0"], 4242);
        caller.must_say("hello");
        let pid = caller.pid();
        caller.finish();
        peer.must_say(&format!("in: guest {NOBODY} 4242 {pid}"));
        peer.must_say("session: PeerClosed");
    });
}

/// As many as nobody could wait with in one queue for all.
fn silent_guests() {
    with_doorman(4242, |place, peer| {
        const SILENT: usize = 100;
        let start = Instant::now();
        let (mut guests, _program) = as_nobody("silent", &[place.text(), &SILENT.to_string()], 4242);
        guests.must_say("connected");
        let session = client().connect(&place.server()).expect("connect");
        assert_eq!(ask(&mut open(&session), "echo in time"), "in time");
        let mut given_up = 0;
        loop {
            match peer.line().as_str() {
                "accept: LoginCrowdedOut" => given_up += 1,
                // The machine was so busy that their time was up.
                "accept: LoginTimedOut" if start.elapsed() >= Duration::from_secs(2) => given_up += 1,
                line => break assert!(line.starts_with("in: tester"), "{line}"),
            }
        }
        drop(session);
        guests.tell("enough");
        guests.finish();
        let rest: Vec<String> = (given_up..SILENT + 1).map(|_| peer.line()).collect();
        let expected =
            ["accept: LoginCrowdedOut", "accept: LoginTimedOut", "accept: Disconnected", "session: PeerClosed"];
        assert!(rest.iter().all(|line| expected.contains(&line.as_str())), "{rest:?}");
    });
}

/// The socket says who made it; the first words say who the worker is.
fn foreign_worker() {
    if !is_root() {
        return;
    }
    let app = ServerApp::new("suite").channel::<hello::Owned>("main");
    let dir = program();
    let mut command = Command::new(dir.path().join("program"));
    command.arg(AS_WORKER).current_dir("/").uid(NOBODY).gid(4242);
    let (mut child, session) = app.spawn(&mut command, Trust::snapshot(), common::PATIENCE).expect("spawn");
    let peer = session.peer();
    assert_eq!((peer.uid, peer.gid, peer.pid), (NOBODY, 4242, child.id() as i32));
    assert_eq!(session.peer_program().expect("root may look"), dir.path().join("program"));
    assert!(session.peer_pidfd().is_ok());
    let mut channel = session.accept_channel::<hello::Owned>().expect("a channel");
    let question = channel.recv().expect("a question");
    let echo = common::apps::greet(&channel, &common::apps::words(&question));
    channel.reply(&question, &echo).expect("room");
    drop(question);
    assert!(child.wait().expect("wait").success());
}

/// The first message that comes, with what is beside it.
fn reader(args: &[String]) {
    let to = server(&args[0]).uid(args[1].parse().expect("a user"));
    let session = ClientApp::new("guest").timeout(common::PATIENCE).connect(&to).expect("connect");
    let mut news = open(&session).recv_timeout(common::PATIENCE).expect("news");
    let blob = String::from_utf8(news.blobs()[0].to_vec().expect("memory")).expect("text");
    let mut passed = String::new();
    let [fd]: [OwnedFd; 1] = news.take_fds().expect("here").try_into().expect("one");
    File::from(fd).read_to_string(&mut passed).expect("readable");
    say(format!("{} {blob} {passed}", words(&news)));
}

/// A guest does not see the memory that this user's apps share; in a copy it has all of it.
fn for_guests() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let app = place.server().channel::<hello::Owned>("main").allow(&client(), Trust::snapshot());
    let server = app.allow(&ClientApp::new("guest").uid(NOBODY), Trust::snapshot()).bind().expect("bind");
    let mut file = tempfile::tempfile().expect("file");
    write!(file, "passed").and_then(|()| file.rewind()).expect("file");
    let mut blob = server.arena().create_blob_with_capacity(0).expect("room");
    blob.write_all(b"beside").expect("room");
    let mut news = server.create_msg::<hello::Owned>();
    news.init_root().set_answer("news");
    news.attach_blob(blob.freeze()).attach_fd(file);
    let news = news.freeze().expect("room");
    let uid = nix::unistd::geteuid().to_string();
    let (mut guest, _program) = as_nobody("reader", &[place.text(), &uid], NOBODY);
    let session = server.accept_timeout(common::PATIENCE).expect("the guest");
    let mut channel = session.accept_channel_timeout::<hello::Owned>(common::PATIENCE).expect("its channel");
    assert_eq!(channel.send(&news), Err(SendError::ForeignArena));
    channel.send(&news.copy_to(channel.arena()).expect("room")).expect("sent");
    guest.must_say("news beside passed");
    drop((channel, session));
    guest.finish();
}

fn guests_memory() {
    with_doorman(4242, |place, peer| {
        let (mut examiner, _program) = as_nobody("examiner", &[place.text(), "guest"], 4242);
        examiner.must_say("fixed true, unwritable true, read-only true, mode 400, mapped Err(EACCES)");
        examiner.must_say(&format!("{:?}", Err::<(), _>(Errno::EACCES)));
        examiner.finish();
        assert!(peer.line().starts_with("in: guest"));
        peer.must_say("session: PeerDied");
    });
}

fn own_memory() {
    let place = Place::new();
    let mut peer = Peer::start("doorman", &[place.text(), "0"]);
    peer.must_say("ready");
    let mut examiner = Peer::start("examiner", &[place.text(), "raw"]);
    examiner.must_say("fixed true, unwritable false, read-only true, mode 400, mapped Err(EACCES)");
    // Root may open anything.
    let opened = if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(Errno::EACCES) };
    examiner.must_say(&format!("{opened:?}"));
    examiner.finish();
    assert!(peer.line().starts_with("in: raw"));
    peer.must_say("session: PeerDied");
    peer.tell("stop");
    peer.finish();
}

fn clients_memory() {
    if !is_root() {
        return;
    }
    for foreign in [false, true] {
        let place = Place::new();
        let listener = Socket::listen(place.path());
        for (path, mode) in [(place.path().to_owned(), 0o711), (place.path().join("suite.sock"), 0o666)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("mode");
        }
        let args = [place.text(), "guest", "0"];
        let (mut caller, _program) = if foreign {
            let (caller, program) = as_nobody("caller", &args, NOBODY);
            (caller, Some(program))
        } else {
            (Peer::start("caller", &args), None)
        };
        let socket = listener.accept();
        let (hello, fds) = socket.recv().expect("a hello");
        assert_eq!(hello.u32_at(8), 1);
        let [memory]: [OwnedFd; 1] = fds.try_into().expect("one descriptor");
        let expected = format!("fixed true, unwritable {foreign}, read-only true, mode 400, mapped Err(EACCES)");
        assert_eq!(guards(&memory), expected);
        drop(socket);
        caller.must_say("Disconnected");
        caller.finish();
    }
}

fn foreign_dir() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    chown(place.path(), Some(NOBODY), None).expect("chown");
    let found = |error: &RunDirError| matches!(error, RunDirError::Owner { path, found: NOBODY, expected: 0 } if path == place.path());
    assert!(matches!(client().connect(&place.server()), Err(ConnectError::RunDir(error)) if found(&error)));
    assert!(matches!(place.server().bind(), Err(BindError::RunDir(error)) if found(&error)));
    place.must_be_empty();
}

/// It sits in the right directory, but is not who it should be: it hears not a word.
fn wrong_server() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let listener = Socket::listen(place.path());
    chown(place.path(), Some(NOBODY), None).expect("chown");
    match client().connect(&ServerApp::new("suite").run_dir(place.path()).uid(NOBODY)) {
        Err(ConnectError::WrongServer { found: 0, expected: NOBODY }) => {}
        other => panic!("{other:?}"),
    }
    assert!(listener.accept().recv().is_none());
}
