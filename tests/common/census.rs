//! What a process holds of the kernel, counted before and after.

use super::PATIENCE;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Everything a session must give back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// Descriptors and what they are of.
    fds: BTreeMap<i32, String>,
    threads: usize,
    /// Mappings of shared memory.
    maps: Vec<String>,
    /// Named shared memory, of this machine.
    named: usize,
}

impl Census {
    pub fn take() -> Self {
        Self { fds: fds(), threads: entries("/proc/self/task"), maps: maps("self"), named: strait_names() }
    }

    /// Waits until everything counted is as before: the watcher thread leaves a moment after the last session.
    pub fn must_return(&self) {
        self.must_return_within(PATIENCE);
    }

    pub fn must_return_within(&self, time: Duration) {
        let deadline = Instant::now() + time;
        loop {
            let now = Self::take();
            if now == *self {
                return;
            }
            assert!(Instant::now() < deadline, "left behind:\n before {self:#?}\n after {now:#?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn fds() -> BTreeMap<i32, String> {
    let list = fs::read_dir("/proc/self/fd").expect("procfs");
    let numbers: Vec<i32> = list.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    // The directory's own descriptor is closed by now, so its link is gone.
    let target = |number: &i32| fs::read_link(format!("/proc/self/fd/{number}")).ok();
    let named = numbers.iter().filter_map(|number| Some((*number, target(number)?.display().to_string())));
    named.filter(|(_, target)| !target.starts_with("/proc/")).collect()
}

/// Mappings of arenas, own or a peer's, in a process.
pub fn maps(pid: &str) -> Vec<String> {
    let all = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    all.lines().filter(|line| line.contains("memfd:")).map(str::to_owned).collect()
}

/// How many threads a process has.
pub fn threads(pid: u32) -> usize {
    entries(&format!("/proc/{pid}/task"))
}

/// What lies in a directory, sorted.
pub fn files(dir: &Path) -> Vec<String> {
    let list = fs::read_dir(dir).expect("directory");
    let mut names: Vec<_> = list.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn entries(dir: &str) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Other programs use /dev/shm meanwhile, so only names that could be this crate's count.
fn strait_names() -> usize {
    let Ok(list) = fs::read_dir("/dev/shm") else { return 0 };
    list.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().contains("strait")))
        .count()
}
