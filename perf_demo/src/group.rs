//! What is measured when: techniques of one size, wait and pinning form a group, which take turns with their floor in
//! blocks, so that the rows of a group, and only those, were measured in the same minutes.

use crate::cli::{Measure, Technique, WaitMode};
use crate::client::{Client, Files};
use crate::control::Settled;
use crate::payload::{Expected, Source, Twin};
use crate::report::{Report, Row, Tally};
use perf_demo::cpus::Pin;
use perf_demo::figures::show;
use perf_demo::machine::Watch;
use std::time::{Duration, Instant};

/// The most rounds in a row before it is another technique's turn.
const BLOCK: u32 = 1000;

/// How often in a cycle a technique that moves no bytes and its floor take turns.
const STEPS: u32 = 4;

/// How long a group may take at most, and on average: a machine that is busy with other things gets fewer rounds,
/// because a plain run is to take less than two minutes.
const BUDGET: Duration = Duration::from_secs(4);
const AVERAGE: Duration = Duration::from_millis(3300);

/// Floor rounds in each turn at least.
const FLOOR_BLOCK: u32 = 200;

/// Beyond this, techniques free what they need before it is another's turn: together it would be too much memory.
const HUGE: usize = 256 << 20;

/// Measures everything that was asked for.
pub(crate) fn run_all(options: &Measure, client: &mut Client, report: &mut Report) -> anyhow::Result<()> {
    let sources = sources(options, client);
    let pins = pins(options, client);
    let techniques = techniques(options);
    let groups = sources.len() * options.wait.len() * pins.len();
    report.begin(groups);
    let mut groups = u32::try_from(groups).unwrap_or(u32::MAX);
    let (start, all) = (Instant::now(), AVERAGE.saturating_mul(groups));
    for source in &sources {
        report.doing(&format!("{}: preparing", show(source.bytes())));
        let files = Twin::BOTH.map(|twin| Expected::of(source, twin));
        let [itself, complement] = files;
        let files = [itself?, complement?];
        client.hold(source, options.fresh)?;
        for &pin in &pins {
            for &wait in &options.wait {
                let mut group = Group::new(options, source, pin, wait, &techniques);
                let left = all.saturating_sub(start.elapsed()) / groups.max(1);
                group.budget = options.rounds.is_none().then_some(left.min(BUDGET));
                groups = groups.saturating_sub(1);
                group.run(client, &files, report)?;
                report.add(group.into_rows(client, options.fresh, source))?;
            }
        }
    }
    Ok(())
}

fn sources(options: &Measure, client: &Client) -> Vec<Source> {
    let generated = options.payload.iter().map(|size| Source::Generated { bytes: size.0 });
    let mut sources: Vec<Source> = client.given().iter().cloned().chain(generated).collect();
    if sources.is_empty() {
        sources.extend(DEFAULT.map(|bytes| Source::Generated { bytes }));
    }
    sources
}

const DEFAULT: [usize; 6] = [64, 100 << 10, 1 << 20, 10 << 20, 100 << 20, 1 << 30];

fn pins(options: &Measure, client: &Client) -> Vec<Pin> {
    match options.pin.is_empty() {
        false => options.pin.clone(),
        true if client.cpus().are_two() => vec![Pin::Split],
        true => vec![Pin::Same],
    }
}

/// Each once, in the order that spares the most buffers; floors come by themselves unless nothing else was asked for.
fn techniques(options: &Measure) -> Vec<Technique> {
    let mut techniques: Vec<_> = options.technique.clone();
    techniques.sort();
    techniques.dedup();
    techniques
}

/// One group: what it runs, and what has been found so far.
struct Group {
    settled: Settled,
    own_cpu: Option<usize>,
    pin: Pin,
    turns: Vec<Turn>,
    cycles: u32,
    /// Where nobody asked for a number of rounds, the last cycle begins before this is over.
    budget: Option<Duration>,
    huge: bool,
    title: String,
    /// What else went on meanwhile.
    disturbed: Option<String>,
}

/// One technique's part in a group.
struct Turn {
    technique: Technique,
    rounds: u32,
    warm: u32,
    tally: Tally,
}

impl Group {
    fn new(options: &Measure, source: &Source, pin: Pin, wait: WaitMode, techniques: &[Technique]) -> Self {
        let bytes = source.bytes();
        let huge = bytes > HUGE;
        let rounds = |technique| options.rounds.unwrap_or_else(|| default_rounds(technique, wait, bytes));
        let mut turns: Vec<Turn> = techniques
            .iter()
            .filter(|technique| !technique.is_floor())
            .map(|&technique| Turn::new(technique, rounds(technique), bytes))
            .collect();
        let most = turns.iter().map(|turn| turn.rounds).max();
        let least = if huge { 2 } else { 4 };
        let cycles = most.unwrap_or(rounds(Technique::FloorLine)).div_ceil(BLOCK).max(least);
        let mut floors: Vec<_> = techniques.iter().copied().filter(|technique| technique.is_floor()).collect();
        if !floors.contains(&wait.floor()) && !turns.is_empty() {
            floors.push(wait.floor());
        }
        for floor in floors {
            let rounds = most.map_or_else(|| rounds(floor), |most| most.max(FLOOR_BLOCK * cycles));
            turns.push(Turn::new(floor, rounds, bytes));
        }
        Self {
            settled: Settled { wait, cpu: None, patience: 1 },
            own_cpu: None,
            pin,
            turns,
            cycles,
            budget: None,
            huge,
            title: format!("{} {}", show(bytes), wait.name()),
            disturbed: None,
        }
    }

    fn run(&mut self, client: &mut Client, files: &Files, report: &mut Report) -> anyhow::Result<()> {
        let (own, theirs) = client.cpus().places(self.pin);
        let apart = own.is_some() && own != theirs;
        self.own_cpu = own;
        self.settled.cpu = theirs;
        self.settled.patience = match () {
            // Each look in vain keeps the other from running.
            () if !client.cpus().are_two() || own.is_some() && own == theirs => 1,
            // The kernel may have put both on one CPU.
            () if !apart => 1 << 8,
            () => u32::MAX,
        };
        client.settle(self.settled, self.own_cpu)?;
        self.verify(client, files, report)?;
        let watch = Watch::begin(&client.gauges()?);
        let start = Instant::now();
        for cycle in 0..self.cycles {
            if cycle > 0 && self.budget.is_some_and(|budget| start.elapsed() > budget) {
                break;
            }
            let blocks = self.blocks(cycle);
            for (at, &(index, rounds)) in blocks.iter().enumerate() {
                let turn = &mut self.turns[index];
                report.doing(&format!("{} {}", self.title, turn.technique.name()));
                client.block(turn.technique, files, (turn.warm, rounds), &mut turn.tally)?;
                self.release_before(blocks[at + 1..].iter().map(|&(next, _)| next), index, client)?;
            }
            report.progress(cycle, self.cycles);
        }
        self.disturbed = watch.marks();
        self.verify(client, files, report)
    }

    /// The blocks of a cycle, as turns and rounds. What moves no bytes takes turns with its floor several times, and
    /// who is first changes: how soon a CPU wakes depends on what it did just before.
    fn blocks(&self, cycle: u32) -> Vec<(usize, u32)> {
        let place = |technique| self.turns.iter().position(|turn| turn.technique == technique);
        let floor = place(self.settled.wait.floor());
        let pair = place(Technique::Shm)
            .zip(floor)
            .map_or_else(|| floor.into_iter().collect(), |(shm, floor)| vec![shm, floor]);
        let part = |index: usize| self.turns[index].part(cycle, self.cycles);
        let others = (0..self.turns.len()).filter(|index| !pair.contains(index)).map(|index| (index, part(index)));
        let mut blocks: Vec<_> = others.collect();
        for step in 0..STEPS {
            let mut both: Vec<_> = pair.iter().map(|&index| (index, share(part(index), step, STEPS))).collect();
            if cycle % 2 == 1 {
                both.reverse();
            }
            blocks.extend(both);
        }
        blocks.retain(|&(_, rounds)| rounds > 0);
        blocks
    }

    fn verify(&mut self, client: &mut Client, files: &Files, report: &mut Report) -> anyhow::Result<()> {
        for index in 0..self.turns.len() {
            let turn = &mut self.turns[index];
            report.doing(&format!("{} {}: verifying", self.title, turn.technique.name()));
            let right = client.verify(turn.technique, files)?;
            turn.tally.verified(right);
            self.release_before(index + 1..self.turns.len(), index, client)?;
        }
        Ok(())
    }

    /// Frees what the next technique does not share; floors have nothing.
    fn release_before(
        &self,
        next: impl IntoIterator<Item = usize>,
        index: usize,
        client: &mut Client,
    ) -> anyhow::Result<()> {
        let technique = self.turns[index].technique;
        let next = next.into_iter().map(|next| self.turns[next].technique).find(|next| !next.is_floor());
        let shares = next == Some(technique) || technique == Technique::Classic && next == Some(Technique::Bare);
        if self.huge && !shares {
            client.release(technique)?;
        }
        Ok(())
    }

    fn into_rows(self, client: &Client, fresh: bool, source: &Source) -> Vec<Row> {
        let floor = self.settled.wait.floor();
        let floor_p50 = self.turns.iter().find(|turn| turn.technique == floor).map(|turn| turn.tally.p50());
        let p50 = |wanted| self.turns.iter().find(|turn| turn.technique == wanted).map(|turn| turn.tally.p50());
        let alone = self.own_cpu.is_some() && self.own_cpu == self.settled.cpu || !client.cpus().are_two();
        self.turns
            .iter()
            .map(|turn| {
                let technique = turn.technique;
                let mut row = Row::new(technique, self.settled.wait, self.pin, source.bytes(), &turn.tally);
                row.fresh = fresh && matches!(technique, Technique::Classic | Technique::Shm | Technique::Snapshot);
                row.floor_p50 = floor_p50.filter(|_| !technique.is_floor());
                row.classic_p50 = p50(Technique::Classic);
                row.bare_p50 = p50(Technique::Bare);
                row.needs_cpu = alone && self.settled.wait == WaitMode::Spin;
                row.disturbed.clone_from(&self.disturbed);
                row
            })
            .collect()
    }
}

impl Turn {
    fn new(technique: Technique, rounds: u32, bytes: usize) -> Self {
        // A huge block begins with cold memory, for either file.
        let warm = match technique.moves_bytes() {
            true if bytes > HUGE => 2,
            true if bytes > 1 << 20 => 1,
            _ => 20,
        };
        Self { technique, rounds, warm, tally: Tally::new() }
    }

    /// How many of its rounds are in a cycle, so that they spread evenly.
    fn part(&self, cycle: u32, cycles: u32) -> u32 {
        share(self.rounds, cycle, cycles)
    }
}

/// The share of one of so many turns in a number of rounds; all shares make the whole.
fn share(rounds: u32, turn: u32, turns: u32) -> u32 {
    let until = |turn: u32| u64::from(rounds) * u64::from(turn) / u64::from(turns);
    (until(turn + 1) - until(turn)) as u32
}

/// As many as take about a second.
fn default_rounds(technique: Technique, wait: WaitMode, bytes: usize) -> u32 {
    let many = if wait == WaitMode::Spin { 20_000 } else { 10_000 };
    let by_bytes = u32::try_from((BYTES / bytes.max(1)).max(5)).unwrap_or(many).min(many);
    match technique.moves_bytes() {
        true => by_bytes,
        // Each turn of the others costs much then.
        false if bytes > HUGE => 2000,
        false => many,
    }
}

/// How many bytes a technique that moves them is to move in a row.
const BYTES: usize = 4 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_the_whole_and_no_block_is_too_long() {
        for rounds in [1, 5, 999, 1000, 1001, 20_000, 123_457] {
            let turn = Turn::new(Technique::Shm, rounds, 64);
            let cycles = rounds.div_ceil(BLOCK).max(4);
            let parts: Vec<u32> = (0..cycles).map(|cycle| turn.part(cycle, cycles)).collect();
            assert_eq!(parts.iter().sum::<u32>(), rounds);
            assert!(parts.iter().all(|&part| part <= BLOCK));
        }
    }
}
