//! Whether a machine was fit to be measured: what others ran meanwhile, what its host took, which CPUs were missing.

use crate::gauge::Gauge;
use std::time::{Duration, Instant};

/// Looks at what is not ours while something is measured.
pub struct Watch {
    ours: Vec<Gauge>,
    since: Instant,
    before: Option<(Spent, Duration)>,
}

/// CPU time since the machine started, of all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Spent {
    busy: Duration,
    stolen: Duration,
}

/// As much CPU time as others may use, of one CPU's, before a row is marked.
const OTHERS: f64 = 0.1;
/// As much as the host may take.
const STOLEN: f64 = 0.03;
/// The kernel counts whole ticks, and in whose name is a matter of luck.
const UNSURE: Duration = Duration::from_millis(40);

impl Watch {
    /// Begins; `ours` are the processes that are meant to be busy.
    #[must_use]
    pub fn begin(ours: &[Gauge]) -> Self {
        let mut watch = Self { ours: ours.to_vec(), since: Instant::now(), before: None };
        watch.before = watch.look();
        watch
    }

    /// What a reader of the figures must know, if anything, of the time since it began.
    #[must_use]
    pub fn marks(&self) -> Option<String> {
        let Some(((before, own), (after, own_after))) = self.before.zip(self.look()) else {
            return Some("nobody knows how busy the machine was".into());
        };
        let others = (after.busy.saturating_sub(before.busy)).saturating_sub(own_after.saturating_sub(own));
        judge(self.since.elapsed(), others, after.stolen.saturating_sub(before.stolen))
    }

    fn look(&self) -> Option<(Spent, Duration)> {
        let own = self.ours.iter().filter_map(|process| process.cpu().ok()).sum();
        Some((spent(&std::fs::read_to_string("/proc/stat").ok()?)?, own))
    }
}

fn judge(elapsed: Duration, others: Duration, stolen: Duration) -> Option<String> {
    let share = |part: Duration| part.saturating_sub(UNSURE).as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
    let mut marks = Vec::new();
    if share(others) > OTHERS {
        marks.push(format!("busy machine: others used {:.1} CPUs", others.as_secs_f64() / elapsed.as_secs_f64()));
    }
    if share(stolen) > STOLEN {
        marks.push(format!("the host took {:.0} %", share(stolen) * 100.0));
    }
    (!marks.is_empty()).then(|| marks.join(", "))
}

/// The first line of /proc/stat, in ticks of 10 ms.
fn spent(stat: &str) -> Option<Spent> {
    let fields: Vec<u32> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let &[user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = fields.as_slice() else { return None };
    let tick = Duration::from_millis(10);
    Some(Spent { busy: tick * (user + nice + system + irq + softirq), stolen: tick * stolen })
}

/// Adds a mark to what there is.
pub fn mark(marks: &mut Option<String>, more: impl Into<String>) {
    let more = more.into();
    match marks {
        Some(marks) => {
            marks.push_str(", ");
            marks.push_str(&more);
        }
        None => *marks = Some(more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_quiet_machine_gets_no_mark_and_a_busy_one_does() {
        assert_eq!(judge(SECOND, SECOND / 20, Duration::ZERO), None);
        let marks = judge(SECOND, SECOND / 2, SECOND / 10).unwrap_or_default();
        assert_eq!(marks, "busy machine: others used 0.5 CPUs, the host took 6 %");
        // A tick or two in a moment say nothing.
        assert_eq!(judge(SECOND / 100, SECOND / 50, Duration::ZERO), None);
    }

    #[test]
    fn the_first_line_says_what_was_spent() {
        let spent = spent("cpu  1 2 3 400 50 6 7 8 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n");
        let tick = |ticks: u32| Duration::from_millis(10) * ticks;
        assert_eq!(spent, Some(Spent { busy: tick(1 + 2 + 3 + 6 + 7), stolen: tick(8) }));
        assert_eq!(super::spent("cpu  1 2 3"), None);
        assert_eq!(super::spent(""), None);
    }

    #[test]
    fn what_another_process_burns_is_not_ours() -> anyhow::Result<()> {
        let own = Gauge::own()?;
        let watch = Watch::begin(&[own]);
        let burn = |watch: &Watch| while watch.since.elapsed() < SECOND / 2 {};
        // This one's, so nobody else's: unless the machine is busy, which this cannot tell from a fault.
        burn(&watch);
        let _ = watch.marks();
        let stranger = Watch::begin(&[]);
        burn(&stranger);
        assert!(stranger.marks().is_some_and(|marks| marks.contains("busy machine")), "nobody noticed");
        Ok(())
    }
}
