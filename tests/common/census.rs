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
    /// Named shared memory that dead owners left.
    named: Vec<String>,
}

impl Census {
    pub fn take() -> Self {
        Self::of("self")
    }

    /// Of any process.
    pub fn of(pid: &str) -> Self {
        Self { fds: fds(pid), threads: entries(&format!("/proc/{pid}/task")), maps: maps(pid), named: stale_names() }
    }

    /// How many descriptors, threads and mappings.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.fds.len(), self.threads, self.maps.len())
    }

    /// Waits until everything counted is as before: the watcher thread leaves a moment after the last session.
    pub fn must_return(&self) {
        self.must_return_within(PATIENCE);
    }

    pub fn must_return_within(&self, time: Duration) {
        self.must_return_in("self", time);
    }

    /// As [`must_return_within`](Self::must_return_within), for any process.
    pub fn must_return_in(&self, pid: &str, time: Duration) {
        let deadline = Instant::now() + time;
        loop {
            let now = Self::of(pid);
            if now.settled(self) {
                return;
            }
            assert!(Instant::now() < deadline, "left behind:\n before {self:#?}\n after {now:#?}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Census {
    /// As it was, but for names that somebody else has cleared up meanwhile.
    fn settled(&self, before: &Self) -> bool {
        let named = self.named.iter().all(|name| before.named.contains(name));
        named && *self == Self { named: self.named.clone(), ..before.clone() }
    }
}

fn fds(pid: &str) -> BTreeMap<i32, String> {
    let list = fs::read_dir(format!("/proc/{pid}/fd")).expect("procfs");
    let numbers: Vec<i32> = list.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    // The directory's own descriptor is closed by now, so its link is gone.
    let target = |number: &i32| fs::read_link(format!("/proc/{pid}/fd/{number}")).ok();
    let named = numbers.iter().filter_map(|number| Some((*number, target(number)?.display().to_string())));
    named.filter(|(_, target)| !target.starts_with("/proc/")).collect()
}

/// Mappings of arenas, own or a peer's, in a process.
pub fn maps(pid: &str) -> Vec<String> {
    let all = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let arena = |line: &&str| line.contains("memfd:strait") || line.contains("/dev/shm/strait");
    all.lines().filter(arena).map(str::to_owned).collect()
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

/// Names of this crate's shared memory whose owners are dead: those of the living, of other suites perhaps, are locked.
pub fn stale_names() -> Vec<String> {
    let Ok(list) = fs::read_dir("/dev/shm") else { return Vec::new() };
    let names = list.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("strait-") && is_stale(name)).collect()
}

fn is_stale(name: &str) -> bool {
    // Gone meanwhile: not stale either.
    let file = fs::File::open(format!("/dev/shm/{name}"));
    file.is_ok_and(|file| nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockSharedNonblock).is_ok())
}
