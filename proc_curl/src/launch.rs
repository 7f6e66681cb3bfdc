//! Finding a worker, asking what it has, and starting it.

use crate::client::ClientBuilder;
use crate::error::LaunchError;
use crate::protocols::{Nothing, Offer};
use crate::random;
use crate::uri::{Format, Place, Transport, Uri};
use parking_lot::{Condvar, Mutex};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The executables that this side knows, the newest major version first.
const NAMES: [&str; 1] = ["procCurlI"];
/// What names one instead of looking for it.
const VARIABLE: &str = "PROC_CURL_WORKER";
/// Of what the worker writes to its standard error, so much of the end is kept.
const TAIL: usize = 4096;
/// The longest answer to `--protocols`.
const OFFER_MAX: u64 = 1 << 20;

/// A worker that this process started.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pid: u32,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    tail: Mutex<Vec<u8>>,
    exit: Mutex<Option<ExitStatus>>,
    exited: Condvar,
}

impl Worker {
    /// How it ended, waiting for that at most so long.
    pub(crate) fn exit(&self, wait: Duration) -> Option<ExitStatus> {
        let (deadline, mut exit) = (Instant::now() + wait, self.state.exit.lock());
        while exit.is_none() && !self.state.exited.wait_until(&mut exit, deadline).timed_out() {}
        *exit
    }

    /// The end of what it wrote to its standard error.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.state.tail.lock()).trim().to_owned()
    }
}

/// The worker's executable.
pub(crate) fn find(config: &ClientBuilder) -> Result<PathBuf, LaunchError> {
    if let Some(program) = &config.program {
        return if program.is_file() { Ok(program.clone()) } else { Err(LaunchError::NotFound(vec![program.clone()])) };
    }
    let named = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(program) = named {
        return if program.is_file() { Ok(program) } else { Err(LaunchError::NotFound(vec![program])) };
    }
    let mut places = Vec::new();
    if let Ok(own) = std::env::current_exe()
        && let Some(dir) = own.parent()
    {
        places.push(dir.to_owned());
        // Tests and examples lie one deeper than what cargo builds beside them.
        if matches!(dir.file_name().and_then(OsStr::to_str), Some("deps" | "examples")) {
            places.extend(dir.parent().map(Path::to_owned));
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path).filter(|dir| dir.is_absolute()));
    let candidates = || NAMES.iter().flat_map(|name| places.iter().map(move |dir| dir.join(name)));
    candidates().find(|program| program.is_file()).ok_or_else(|| LaunchError::NotFound(candidates().collect()))
}

/// Asks a worker what it has, and chooses.
pub(crate) fn negotiate(program: &Path, config: &ClientBuilder) -> Result<Uri, LaunchError> {
    let bad = |why: String| LaunchError::Protocols { program: program.to_owned(), why };
    let text = ask(program, config.patience())?;
    let offer = Offer::parse(&text).map_err(bad)?;
    if let Some(required) = config.min_version
        && offer.version < required
    {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let [found, required] = [offer.version, required].map(|minor| format!("1.{minor}"));
        return Err(LaunchError::TooOld { name, found, required });
    }
    let chosen = offer.choose(&[Transport::Shm, Transport::Unix], &[Format::Handle, Format::Capnp]);
    let (transport, format) = chosen.map_err(|nothing| match nothing {
        Nothing::Transport(theirs) => LaunchError::NoTransport { theirs },
        Nothing::Format(theirs) => LaunchError::NoFormat { theirs },
    })?;
    Ok(Uri { transport, place: Place::Inherited, session: random::name(), format })
}

/// What `--protocols` prints, at most `timeout` later.
fn ask(program: &Path, timeout: Duration) -> Result<String, LaunchError> {
    let bad = |why: String| LaunchError::Protocols { program: program.to_owned(), why };
    let mut command = Command::new(program);
    command.arg("--protocols").env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = start(&mut command, program)?;
    let Some(stdout) = child.stdout.take() else { return Err(bad("no standard output".into())) };
    let (sender, read) = mpsc::channel();
    std::thread::Builder::new().name("proc-curl-ask".into()).spawn(move || {
        let mut text = String::new();
        let done = stdout.take(OFFER_MAX).read_to_string(&mut text).map(|_| text);
        let _ = sender.send(done);
    })?;
    let text = read.recv_timeout(timeout);
    if text.is_err() {
        let _ = child.kill();
    }
    let exit = child.wait()?;
    match text {
        Ok(text) if exit.success() => Ok(text?),
        Ok(_) => Err(bad(exit.to_string())),
        Err(_) => Err(bad(format!("no answer in {timeout:?}"))),
    }
}

fn start(command: &mut Command, program: &Path) -> Result<Child, LaunchError> {
    command.spawn().map_err(|source| LaunchError::Start { program: program.to_owned(), source })
}

/// Starts a worker that meets its client at `uri`, with `socket` as its standard input.
///
/// A thread of its own starts it, keeps the end of what it says, and waits for its end: the kernel tells a worker that its
/// client is gone when the very thread that started it is.
pub(crate) fn spawn(
    program: &Path,
    uri: &Uri,
    socket: OwnedFd,
    config: &ClientBuilder,
) -> Result<Arc<Worker>, LaunchError> {
    let mut command = Command::new(program);
    command.args(&config.arguments).arg(uri.to_string());
    command.env_clear().env("PROTO", uri.transport.name()).current_dir("/");
    command.stdin(Stdio::from(socket)).stdout(Stdio::null()).stderr(Stdio::piped());
    let (state, program, shown) = (Arc::<State>::default(), program.to_owned(), config.stderr_shown);
    let (kept, (sender, started)) = (state.clone(), mpsc::channel());
    std::thread::Builder::new().name("proc-curl-worker".into()).spawn(move || {
        let spawned = start(&mut command, &program);
        // Its copy of the worker's end would hide the worker's death.
        drop(command);
        match spawned {
            Ok(mut child) => {
                let _ = sender.send(Ok(child.id()));
                keep(&mut child, &kept, shown);
            }
            Err(error) => drop(sender.send(Err(error))),
        }
    })?;
    let pid = started.recv().map_err(|_| io::Error::other("the thread that starts the worker is gone"))??;
    Ok(Arc::new(Worker { pid, state }))
}

/// Reads what it says until it ends.
fn keep(child: &mut Child, state: &State, shown: bool) {
    if let Some(mut stderr) = child.stderr.take() {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = stderr.read(&mut buffer) {
            let said = buffer.get(..count).unwrap_or_default();
            if shown {
                let _ = io::stderr().write_all(said);
            }
            let mut tail = state.tail.lock();
            tail.extend_from_slice(said);
            let surplus = tail.len().saturating_sub(TAIL);
            tail.drain(..surplus);
        }
    }
    let exit = child.wait().ok();
    *state.exit.lock() = exit;
    state.exited.notify_all();
}
