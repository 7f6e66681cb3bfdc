//! How far the transfers have come, as curl shows it: a table's line for one, a bar, or one line for many.

use crate::units::{clock, short};
use crate::voice::Voice;
use crate::writeout::speed;
use proc_curl::Progress;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Bar,
    Many,
    None,
    Table,
}

/// How often it is drawn.
const EVERY: Duration = Duration::from_secs(1);
/// The current speed is that of so many of these.
const SAMPLES: usize = 6;
const BAR_WIDTH: u64 = 70;

const TABLE: &str = "  % Total    % Received % Xferd  Average Speed   Time    Time     Time  Current
                                 Dload  Upload   Total   Spent    Left  Speed\n";
const MANY: &str = "DL% UL%  Dled  Uled  Xfers  Live Total     Current  Left    Speed\n";

/// The meter of all transfers.
pub(crate) struct Meter {
    style: Style,
    voice: Arc<Voice>,
    state: Mutex<State>,
}

struct State {
    headed: bool,
    drawn: Option<Instant>,
    tally: Tally,
}

/// The sums, without the drawing.
struct Tally {
    started: Instant,
    live: BTreeMap<u64, Progress>,
    begun: u64,
    /// Of transfers that are over.
    received: u64,
    sent: u64,
    /// How much there was in both directions, when.
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    pub(crate) fn new(style: Style, voice: Arc<Voice>) -> Self {
        let state = State { headed: false, drawn: None, tally: Tally::new(Instant::now()) };
        Self { style, voice, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_shown(&self) -> bool {
        self.style != Style::None
    }

    /// A transfer begins.
    pub(crate) fn begin(&self, id: u64) {
        if !self.is_shown() {
            return;
        }
        let mut state = self.state();
        if self.style != Style::Many {
            *state = State { headed: false, drawn: None, tally: Tally::new(Instant::now()) };
        }
        state.tally.begin(id);
        if !std::mem::replace(&mut state.headed, true) {
            match self.style {
                Style::Table => self.voice.say(TABLE.as_bytes()),
                Style::Many => self.voice.say(MANY.as_bytes()),
                Style::Bar | Style::None => {}
            }
        }
        self.draw(&mut state, false);
    }

    /// It has come this far.
    pub(crate) fn update(&self, id: u64, progress: &Progress) {
        if !self.is_shown() {
            return;
        }
        let mut state = self.state();
        state.tally.update(id, progress);
        self.draw(&mut state, false);
    }

    /// It is over, with so many bytes received and sent if all went well.
    pub(crate) fn end(&self, id: u64, whole: Option<(u64, u64)>) {
        if !self.is_shown() {
            return;
        }
        let mut state = self.state();
        if let (Some((received, sent)), Some(live)) = (whole, state.tally.live.get_mut(&id)) {
            (live.received, live.to_receive, live.sent, live.to_send) = (received, Some(received), sent, Some(sent));
        }
        if self.style == Style::Many {
            state.tally.end(id);
            self.draw(&mut state, false);
        } else {
            self.draw(&mut state, true);
            self.voice.finish_line();
        }
    }

    /// All are.
    pub(crate) fn finish(&self) {
        if self.style == Style::Many {
            self.draw(&mut self.state(), true);
            self.voice.finish_line();
        }
    }

    fn draw(&self, state: &mut State, at_last: bool) {
        let now = Instant::now();
        if !at_last && state.drawn.is_some_and(|drawn| now.duration_since(drawn) < EVERY) {
            return;
        }
        state.drawn = Some(now);
        state.tally.sample(now);
        match self.style {
            Style::Table => self.voice.meter(&state.tally.table(now)),
            Style::Bar => self.voice.meter(&state.tally.bar()),
            Style::Many => self.voice.meter(&state.tally.many(now)),
            Style::None => {}
        }
    }
}

impl Tally {
    fn new(started: Instant) -> Self {
        Self { started, live: BTreeMap::new(), begun: 0, received: 0, sent: 0, samples: VecDeque::new() }
    }

    fn begin(&mut self, id: u64) {
        self.begun += 1;
        self.live.insert(id, Progress::default());
    }

    fn update(&mut self, id: u64, progress: &Progress) {
        if let Some(live) = self.live.get_mut(&id) {
            *live = *progress;
        }
    }

    fn end(&mut self, id: u64) {
        if let Some(last) = self.live.remove(&id) {
            self.received += last.received;
            self.sent += last.sent;
        }
    }

    fn sample(&mut self, now: Instant) {
        let sum = self.received() + self.sent();
        self.samples.push_back((now, sum));
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    fn received(&self) -> u64 {
        self.received + self.live.values().map(|live| live.received).sum::<u64>()
    }

    fn sent(&self) -> u64 {
        self.sent + self.live.values().map(|live| live.sent).sum::<u64>()
    }

    /// What is to come and go, if that is known of all that are under way.
    fn expected(&self) -> (Option<u64>, Option<u64>) {
        let to_receive = self.live.values().map(|live| live.to_receive).sum::<Option<u64>>();
        let to_send = self.live.values().map(|live| live.to_send).sum::<Option<u64>>();
        (to_receive.map(|bytes| bytes + self.received), to_send.map(|bytes| bytes + self.sent))
    }

    fn current(&self) -> u64 {
        match (self.samples.front(), self.samples.back()) {
            (Some((begin, from)), Some((end, to))) if end > begin => {
                speed(to.saturating_sub(*from), end.duration_since(*begin))
            }
            _ => 0,
        }
    }

    /// How long it takes in all, how long it has taken, and what is left.
    fn times(&self, now: Instant) -> [Option<Duration>; 3] {
        let spent = now.duration_since(self.started);
        let done = self.received() + self.sent();
        let (receive, send) = self.expected();
        let whole = receive.unwrap_or(0) + send.unwrap_or(0);
        let total = (whole > 0 && done > 0 && whole >= done)
            .then(|| Duration::from_secs_f64(spent.as_secs_f64() * whole as f64 / done as f64));
        [total, Some(spent), total.map(|total| total.saturating_sub(spent))]
    }

    fn table(&self, now: Instant) -> String {
        let (received, sent, spent) = (self.received(), self.sent(), now.duration_since(self.started));
        let (to_receive, to_send) = self.expected();
        let whole = to_receive.unwrap_or(received) + to_send.unwrap_or(sent);
        let [total, spent_time, left] = self.times(now).map(clock);
        format!(
            "{:3} {}  {:3} {}  {:3} {}  {:>6} {:>6} {total} {spent_time} {left} {}",
            percent(received + sent, Some(whole)),
            short(whole),
            percent(received, to_receive),
            short(received),
            percent(sent, to_send),
            short(sent),
            short(speed(received, spent)).trim(),
            short(speed(sent, spent)).trim(),
            short(self.current()),
        )
    }

    fn many(&self, now: Instant) -> String {
        let (to_receive, to_send) = self.expected();
        let shown = |done, whole: Option<u64>| whole.map_or("--".to_owned(), |_| percent(done, whole).to_string());
        let [total, spent, left] = self.times(now).map(clock);
        format!(
            "{:>3} {:>3} {} {} {:5} {:5}  {total} {spent} {left} {}",
            shown(self.received(), to_receive),
            shown(self.sent(), to_send),
            short(self.received()),
            short(self.sent()),
            self.begun,
            self.live.len(),
            short(self.current()),
        )
    }

    fn bar(&self) -> String {
        let (to_receive, to_send) = self.expected();
        let whole = to_receive.unwrap_or(0) + to_send.unwrap_or(0);
        let done = self.received() + self.sent();
        if whole == 0 {
            return format!("{} bytes", short(done).trim());
        }
        let tenths = done.min(whole).saturating_mul(1_000) / whole;
        let marks = "#".repeat((tenths * BAR_WIDTH / 1_000) as usize);
        format!("{marks:width$} {:3}.{}%", tenths / 10, tenths % 10, width = BAR_WIDTH as usize)
    }
}

fn percent(done: u64, whole: Option<u64>) -> u64 {
    match whole {
        Some(whole) if whole > 0 => done.min(whole).saturating_mul(100) / whole,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half_way() -> (Tally, Instant) {
        let started = Instant::now();
        let mut tally = Tally::new(started);
        tally.begin(1);
        let mut progress = Progress::default();
        (progress.received, progress.to_receive) = (50 << 20, Some(100 << 20));
        tally.sample(started);
        tally.update(1, &progress);
        let now = started + Duration::from_secs(10);
        tally.sample(now);
        (tally, now)
    }

    #[test]
    fn the_table_is_curls() {
        let (tally, now) = half_way();
        let line = tally.table(now);
        let expected = " 50  100M   50 50.0M    0     0   5120k      0  0:00:20  0:00:10  0:00:10 5120k";
        assert_eq!(line, expected);
    }

    #[test]
    fn many_are_summed_and_the_bar_is_filled() {
        let (mut tally, now) = half_way();
        assert!(tally.bar().starts_with(&"#".repeat(35)) && tally.bar().ends_with(" 50.0%"), "{}", tally.bar());
        tally.begin(2);
        let line = tally.many(now);
        assert!(line.contains(" 2     2 "), "{line}");
        tally.end(1);
        assert_eq!((tally.received(), tally.live.len()), (50 << 20, 1));
    }
}
