//! The apps of the suites: where they meet, and how they speak.

use super::census;
use crate::hello_capnp::hello;
use std::path::Path;
use std::time::Duration;
use strait::{Channel, ClientApp, Message, Received, ServerApp, Session, Trust};
use tempfile::TempDir;

/// A run directory of a test's own.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("strait-test-").tempdir().expect("directory"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn text(&self) -> &str {
        self.path().to_str().expect("plain")
    }

    pub fn server(&self) -> ServerApp {
        server(self.text())
    }

    /// Nobody is there any more.
    #[track_caller]
    pub fn must_be_empty(&self) {
        assert_eq!(census::files(self.path()), Vec::<String>::new());
    }
}

/// The server app of the suites, at a place. Lends even the smallest message: loans are what many cases count.
pub fn server(dir: &str) -> ServerApp {
    ServerApp::new("suite").run_dir(dir).inline_max(0)
}

/// The client app of the suites, which lends likewise.
pub fn client() -> ClientApp {
    ClientApp::new("tester").timeout(super::PATIENCE).inline_max(0)
}

/// By name, as it crosses a command line.
pub fn trust(word: &str) -> Trust {
    match word {
        // SAFETY: both ends are this very program, and neither writes to what it has sent.
        "in_place" => unsafe { Trust::in_place() },
        "snapshot" => Trust::snapshot(),
        other => panic!("no trust {other}"),
    }
}

pub const TRUSTS: [&str; 2] = ["snapshot", "in_place"];

pub fn open(session: &Session) -> Channel<hello::Owned> {
    session.open_channel("main", super::PATIENCE).expect("channel")
}

/// A message with these words.
pub fn greet(channel: &Channel<hello::Owned>, words: &str) -> Message<hello::Owned> {
    let mut builder = channel.create_msg();
    builder.init_root().set_greet(words);
    builder.freeze().expect("room")
}

/// The words of a message.
pub fn words(received: &Received<hello::Owned>) -> String {
    let text = match received.get().expect("root").which().expect("known") {
        hello::Greet(text) | hello::Answer(text) => text,
    };
    text.expect("text").to_str().expect("utf-8").to_owned()
}

/// Asks and returns the words of the answer.
#[track_caller]
pub fn ask(channel: &mut Channel<hello::Owned>, question: &str) -> String {
    let message = greet(channel, question);
    words(&channel.request(&message, super::PATIENCE).expect("answer"))
}

pub const SHORT: Duration = Duration::from_millis(50);
