//! What came of all kills: counts by operation, and how soon deaths were noticed. May be kept in a file from run to run.

use crate::victim::{OPS, Op};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Counts by name.
#[derive(Default)]
pub struct Totals(BTreeMap<String, u64>);

/// What is counted for each operation.
const COLUMNS: [&str; 5] = ["kills", "within", "aimed", "died", "closed"];

impl Totals {
    pub fn add(&mut self, op: Op, column: &str, more: usize) {
        assert!(COLUMNS.contains(&column));
        self.count(format!("{}/{column}", op.name()), more as u64);
    }

    pub fn of(&self, op: Op, column: &str) -> u64 {
        self.0.get(&format!("{}/{column}", op.name())).copied().unwrap_or(0)
    }

    fn sum(&self, column: &str) -> u64 {
        OPS.iter().map(|&(op, _)| self.of(op, column)).sum()
    }

    /// A death that was noticed after so long.
    pub fn noticed(&mut self, after: Duration) {
        let micros = after.as_micros() as u64;
        // Two digits tell enough.
        let unit = 10_u64.pow(micros.checked_ilog10().unwrap_or(0).saturating_sub(1));
        self.count(format!("{NOTICED}{:012}", micros.div_ceil(unit) * unit), 1);
    }

    fn count(&mut self, what: String, more: u64) {
        *self.0.entry(what).or_default() += more;
    }

    /// How long most deaths, so many of a thousand, took to be noticed at most.
    fn notice(&self, of_thousand: u64) -> Duration {
        let all = || self.0.iter().filter_map(|(name, count)| Some((name.strip_prefix(NOTICED)?, count)));
        let most = (all().map(|(_, count)| count).sum::<u64>() * of_thousand).div_ceil(1000);
        let mut seen = 0;
        let found = all().find(|(_, count)| {
            seen += **count;
            seen >= most
        });
        Duration::from_micros(found.map_or(0, |(micros, _)| micros.parse().expect("a number")))
    }

    /// Adds them to what is in the file, if there is one, and goes on from there.
    pub fn keep(&mut self, victims: &str) {
        let Some(file) = std::env::var_os("STRAIT_TOTALS").map(PathBuf::from) else { return };
        let file = file.with_extension(victims);
        for line in std::fs::read_to_string(&file).unwrap_or_default().lines() {
            let (name, count) = line.rsplit_once(' ').expect("a name and a count");
            self.count(name.to_owned(), count.parse().expect("a number"));
        }
        let text: String = self.0.iter().map(|(name, count)| format!("{name} {count}\n")).collect();
        let new = file.with_extension("new");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(new, file)).expect("totals");
    }

    /// For the notes of a passed case.
    pub fn report(&self, victims: &str) {
        println!("note: {:28}   kills  within   aimed  PeerDied  PeerClosed", format!("{victims}s killed in"));
        for (op, name) in OPS {
            let [kills, within, aimed, died, closed] = COLUMNS.map(|column| self.of(op, column));
            println!("note: {name:28} {kills:7} {within:7} {aimed:7} {died:9} {closed:11}");
        }
        let (kills, within) = (self.sum("kills"), self.sum("within"));
        println!(
            "note: {kills} kills, {within} of them in the middle of what is said ({} %)",
            within * 100 / kills.max(1)
        );
        let [half, most, p99, p999, all] = [500, 900, 990, 999, 1000].map(|of_thousand| self.notice(of_thousand));
        println!("note: deaths noticed after: p50 {half:?}, p90 {most:?}, p99 {p99:?}, p99.9 {p999:?}, max {all:?}");
        assert!(within * 10 >= kills * 9, "hardly a kill in the middle of something");
    }
}

const NOTICED: &str = "noticed/";
