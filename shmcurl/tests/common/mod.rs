//! What the suites share: servers, a directory, and `shmcurl` run in it with a limit on its patience.

// Every suite is a crate of its own and uses its part of this.
#![allow(dead_code, unreachable_pub)]

use curl_test_server::{TestServer, worker};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that must end: generous, since the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Servers, and a directory to run programs in.
pub struct Scene {
    pub server: TestServer,
    pub dir: tempfile::TempDir,
}

/// What came of a run.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// # Panics
    /// If it did not end well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}\n{}", self.stderr, self.text());
        self.text()
    }

    /// # Panics
    /// If it did not end with this code and say these words.
    #[track_caller]
    pub fn failed(self, code: i32, words: &str) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.stderr, self.text());
        assert!(self.stderr.to_lowercase().contains(&words.to_lowercase()), "no `{words}` in: {}", self.stderr);
        self
    }
}

impl Scene {
    pub fn new() -> Self {
        let scene = Self { server: TestServer::start(), dir: tempfile::tempdir().expect("a directory") };
        let (cert, key) = scene.server.client();
        for (name, text) in [("ca.pem", scene.server.authority()), ("client.pem", &cert), ("client.key", &key)] {
            std::fs::write(scene.path(name), text).expect("written");
        }
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("written");
    }

    /// `shmcurl` in this scene's directory, quiet but for errors.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shmcurl"));
        command.args(["-sS"]).args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        plain(&mut command);
        command.env("PROC_CURL_WORKER", worker());
        command
    }

    /// Runs it.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Ran {
        finish(self.command(args), b"")
    }

    /// Runs it with something on its standard input.
    #[track_caller]
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Ran {
        finish(self.command(args), input)
    }
}

/// Takes out of the environment what changes how curls behave.
pub fn plain(command: &mut Command) {
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
}

/// Runs a program to its end.
///
/// # Panics
/// If it has none.
#[track_caller]
pub fn finish(mut command: Command, input: &[u8]) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let shown = format!("{command:?}");
    let mut child = command.spawn().unwrap_or_else(|why| panic!("{shown}: {why}"));
    std::thread::scope(|scope| {
        if let Some(mut stdin) = child.stdin.take() {
            scope.spawn(move || drop(stdin.write_all(input)));
        }
        let (mut stdout, mut stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        let output = scope.spawn(move || {
            let mut bytes = Vec::new();
            drop(stdout.read_to_end(&mut bytes));
            bytes
        });
        let errors = scope.spawn(move || {
            let mut bytes = Vec::new();
            drop(stderr.read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let code = end_of(&mut child, &shown);
        Ran { code, stdout: output.join().expect("read"), stderr: errors.join().expect("read") }
    })
}

/// Waits for a child's end: its exit code, -1 for a signal.
///
/// # Panics
/// If it does not end.
#[track_caller]
pub fn end_of(child: &mut Child, what: &str) -> i32 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status.code().unwrap_or(-1);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("a hang: {what}");
        }
        // Nothing depends on how long this is.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Looks until it is so.
///
/// # Panics
/// If it never is.
#[track_caller]
pub fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !look() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A program that must be there, or nothing.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| Path::new(path).is_file())
}
