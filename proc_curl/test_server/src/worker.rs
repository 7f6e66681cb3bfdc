//! The worker that is tested, and what there is to know of a process from outside.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The worker to test: `$PROC_CURL_WORKER`, else `procCurlI` of the build that the calling test belongs to. Testing the whole
/// workspace builds it; where it is missing, cargo is asked for it, since one package's tests build no other's programs. One
/// that is there is taken as it is: after a change to the worker, build it.
///
/// # Panics
/// If it cannot be built.
pub fn worker() -> PathBuf {
    static WORKER: OnceLock<PathBuf> = OnceLock::new();
    WORKER.get_or_init(|| std::env::var_os("PROC_CURL_WORKER").map_or_else(built, PathBuf::from)).clone()
}

fn built() -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    // TARGET/PROFILE/deps/TEST
    let profile = test.ancestors().nth(2).expect("a profile").to_owned();
    let worker = profile.join("procCurlI");
    if worker.exists() {
        return worker;
    }
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--package", "proc_curl_worker", "--bin", "procCurlI"]);
    build.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
    build.arg("--target-dir").arg(profile.parent().expect("a target directory"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let status = build.status().expect("cargo");
    assert!(status.success(), "the worker cannot be built: {status}");
    worker
}

/// What a process has in memory now, in bytes, pages shared with others included; 0 if there is no such process.
pub fn resident(pid: u32) -> u64 {
    field(pid, "VmRSS:")
}

/// The most it ever had, in bytes.
pub fn resident_at_most(pid: u32) -> u64 {
    field(pid, "VmHWM:")
}

fn field(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// How long it has computed, in ticks of the kernel's clock (100 a second), all threads together.
pub fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let fields: Vec<u64> = after.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0)
}

/// Processes whose parent is `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut all: Vec<u32> = list.split_whitespace().filter_map(|child| child.parse().ok()).collect();
    // A child belongs to the thread that made it.
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let list = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        all.extend(list.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Whether there is such a process, other than as a zombie.
pub fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, after)| !after.trim_start().starts_with('Z'))
}

/// Whether the full sizes are wanted (`STRAIT_LEVEL=nightly`), rather than what a test can afford each time.
pub fn nightly() -> bool {
    std::env::var("STRAIT_LEVEL").is_ok_and(|level| level == "nightly")
}
