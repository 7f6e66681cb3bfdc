//! What the two-process suites share: a harness that runs each case in a process of its own (so that a census of
//! descriptors, threads and mappings counts that case alone), the other process of a case, and the census.

// Every suite is a crate of its own and uses its part of this.
#![allow(dead_code, unreachable_pub)]

pub mod apps;
pub mod census;
pub mod obliging;
pub mod peer;

use census::Census;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that must happen: generous, since the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A test: runs in its own process and must leave that as it found it.
pub struct Case {
    pub name: &'static str,
    pub run: fn(),
    pub ignored: Option<&'static str>,
    pub limit: Duration,
}

/// What the other process of a case does, by name, with its arguments.
pub type Role = (&'static str, fn(&[String]));

impl Case {
    pub const fn new(name: &'static str, run: fn()) -> Self {
        Self { name, run, ignored: None, limit: Duration::from_secs(180) }
    }

    pub const fn ignore(self, why: &'static str) -> Self {
        Self { ignored: Some(why), ..self }
    }

    pub const fn limit(self, seconds: u64) -> Self {
        Self { limit: Duration::from_secs(seconds), ..self }
    }
}

pub(crate) const AS_CASE: &str = "--strait-case";
pub(crate) const AS_ROLE: &str = "--strait-role";

/// The `main` of a suite: itself a case or a role if told so, else the runner of all cases.
pub fn main(cases: &[Case], roles: &[Role]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some(AS_CASE) => {
            let case = cases.iter().find(|case| case.name == args[1]).expect("no such case");
            let before = Census::take();
            (case.run)();
            before.must_return();
            ExitCode::SUCCESS
        }
        Some(AS_ROLE) => {
            let (_, run) = roles.iter().find(|(name, _)| *name == args[1]).expect("no such role");
            let before = Census::take();
            run(&args[2..]);
            before.must_return();
            ExitCode::SUCCESS
        }
        _ => run_all(cases, &args),
    }
}

/// The part of libtest's command line that people and tools use.
fn run_all(cases: &[Case], args: &[String]) -> ExitCode {
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |case: &&Case| filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter.as_str()));
    if has("--list") {
        cases.iter().filter(wanted).for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut ignored, mut failed) = (0, 0, Vec::new());
    for case in cases.iter().filter(wanted) {
        let skip = match (case.ignored, has("--ignored"), has("--include-ignored")) {
            (_, _, true) | (Some(_), true, _) | (None, false, _) => false,
            (Some(why), false, false) => {
                println!("test {} ... ignored, {why}", case.name);
                true
            }
            (None, true, false) => true,
        };
        if skip {
            ignored += 1;
            continue;
        }
        let start = Instant::now();
        match run_one(case, has("--nocapture")) {
            Ok(notes) => {
                println!("test {} ... ok ({:.1} s)", case.name, start.elapsed().as_secs_f32());
                notes.iter().for_each(|note| println!("    {note}"));
                passed += 1;
            }
            Err(output) => {
                println!("test {} ... FAILED\n{output}", case.name);
                failed.push(case.name);
            }
        }
    }
    println!("\ntest result: {passed} passed; {} failed; {ignored} ignored {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(101) }
}

fn run_one(case: &Case, shown: bool) -> Result<Vec<String>, String> {
    let mut output = tempfile::NamedTempFile::new().expect("temporary file");
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    // A group of its own, so that whatever it started ends with it.
    command.args([AS_CASE, case.name]).process_group(0).stdin(Stdio::null());
    if !shown {
        let copy = |file: &File| Stdio::from(file.try_clone().expect("descriptor"));
        command.stdout(copy(output.as_file())).stderr(copy(output.as_file()));
    }
    let mut child = command.spawn().expect("own program");
    let deadline = Instant::now() + case.limit;
    let status = loop {
        match child.try_wait().expect("wait") {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => break None,
            // The runner has nothing else to do; nothing depends on how long this is.
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let group = nix::unistd::Pid::from_raw(child.id() as i32);
    let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    let _ = child.wait();
    let mut text = String::new();
    std::io::Seek::rewind(output.as_file_mut()).expect("seek");
    std::io::Read::read_to_string(output.as_file_mut(), &mut text).unwrap_or(0);
    match status {
        Some(status) if status.success() => {
            Ok(text.lines().filter_map(|line| line.strip_prefix("note: ")).map(str::to_owned).collect())
        }
        Some(status) => Err(format!("{text}\n{status}")),
        None => Err(format!("{text}\nnot done after {:?}", case.limit)),
    }
}

/// Looks until there is something, or gives up loudly.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
