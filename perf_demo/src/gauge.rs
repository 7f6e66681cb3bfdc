//! What a process uses up: CPU time, memory, descriptors. Any process of the same user, from outside.

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::ops::Sub;
use std::time::Duration;

/// A process to be looked at.
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    pid: u32,
    clock: ClockId,
}

/// What a process holds, or how much more it holds than before.
#[derive(Clone, Copy, Debug)]
pub struct Holds {
    /// Bytes of memory that it has mapped and that exist, shared ones in full.
    pub resident: i64,
    /// Those of them that are private to it.
    pub private: i64,
    /// Open descriptors.
    pub descriptors: i64,
}

impl Gauge {
    /// Of the process with this number.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let number = Pid::from_raw(i32::try_from(pid)?);
        let clock = ClockId::pid_cpu_clock_id(number).with_context(|| format!("no process {pid}"))?;
        Ok(Self { pid, clock })
    }

    /// Of this process.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn own() -> anyhow::Result<Self> {
        Self::of(std::process::id())
    }

    /// User and system time of all its threads so far, to the nanosecond.
    ///
    /// # Errors
    /// If it is gone.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let time = clock_gettime(self.clock).with_context(|| format!("process {} is gone", self.pid))?;
        Ok(time.into())
    }

    /// What it holds now.
    ///
    /// # Errors
    /// If it is gone, or another user's.
    pub fn holds(&self) -> anyhow::Result<Holds> {
        let path = format!("/proc/{}/smaps_rollup", self.pid);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let [resident, clean, dirty] = ["Rss:", "Private_Clean:", "Private_Dirty:"].map(|field| kib(&text, field));
        let fds = format!("/proc/{}/fd", self.pid);
        let descriptors = std::fs::read_dir(&fds).with_context(|| format!("cannot read {fds}"))?.count();
        let private = (clean? + dirty?) << 10;
        Ok(Holds { resident: resident? << 10, private, descriptors: i64::try_from(descriptors)? })
    }
}

fn kib(text: &str, field: &str) -> anyhow::Result<i64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB"));
    value.and_then(|value| value.parse().ok()).with_context(|| format!("no {field} in smaps_rollup"))
}

impl Sub for Holds {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            resident: self.resident - before.resident,
            private: self.private - before.private,
            descriptors: self.descriptors - before.descriptors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_takes_is_seen() -> anyhow::Result<()> {
        let own = Gauge::own()?;
        let (before, cpu) = (own.holds()?, own.cpu()?);
        let (page, file) = (vec![1_u8; 16 << 20], std::fs::File::open("/dev/null")?);
        let more = own.holds()? - before;
        assert!(more.resident >= 15 << 20 && more.private >= 15 << 20, "{more:?}");
        assert!(more.descriptors >= 1, "{more:?}");
        assert!(own.cpu()? > cpu);
        drop((page, file));
        Ok(())
    }

    #[test]
    fn a_field_that_is_not_there_is_missed() {
        assert_eq!(kib("Rss:      12 kB\nPss: 3 kB", "Rss:").ok(), Some(12));
        assert!(kib("Rss:      12 kB", "Pss:").is_err());
    }
}
