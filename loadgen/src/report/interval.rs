//! A run cut into intervals of a second, which are the same in all its threads.
//!
//! ```text
//!  warm-up 1.5 s        measured 2.5 s              until all has arrived
//!  |--|-----|-----------|-----------|-----|---------|-----------|-----------|…
//!  n = 0    1           2           3     4         5
//! ```
//! The measured time begins and ends with an interval, so that no interval holds some of both.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::latency::{Latencies, Percentiles};

/// Length of an interval.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where intervals begin and end, counted from the start of the load.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    warmup: Duration,
    duration: Duration,
}

/// Which part of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Load that is not measured.
    WarmUp,
    /// Load that is measured.
    #[default]
    Measured,
    /// Nothing new is sent; what is outstanding arrives.
    After,
}

impl Grid {
    /// For a run of this warm-up and measured time.
    pub fn new(warmup: Duration, duration: Duration) -> Grid {
        Grid { warmup, duration }
    }

    /// When an interval begins.
    pub fn start_of(&self, number: u32) -> Duration {
        number.checked_sub(1).map_or(Duration::ZERO, |before| self.end_of(before))
    }

    /// When an interval ends.
    pub fn end_of(&self, number: u32) -> Duration {
        let warmup = intervals(self.warmup);
        let load = warmup + intervals(self.duration);
        let after = number + 1;
        match self.stage(number) {
            Stage::WarmUp => self.warmup - INTERVAL * (warmup - after),
            Stage::Measured if after == load => self.warmup + self.duration,
            Stage::Measured => self.warmup + INTERVAL * (after - warmup),
            Stage::After => self.warmup + self.duration + INTERVAL * (after - load),
        }
    }

    /// Which part of the run an interval belongs to.
    pub fn stage(&self, number: u32) -> Stage {
        let warmup = intervals(self.warmup);
        match number {
            number if number < warmup => Stage::WarmUp,
            number if number < warmup + intervals(self.duration) => Stage::Measured,
            _ => Stage::After,
        }
    }

    /// The start of the measured time.
    pub fn measured_from(&self) -> Duration {
        self.warmup
    }
}

fn intervals(length: Duration) -> u32 {
    length.as_nanos().div_ceil(INTERVAL.as_nanos()) as u32
}

/// What a thread saw in an interval.
#[derive(Debug)]
pub struct Part {
    /// Which thread.
    pub thread: u32,
    /// Which interval ended. If the thread was away for several, they are all in this part.
    pub number: u32,
    /// When it ended, counted from the start of the load.
    pub to: Duration,
    /// Whether the thread will say nothing more.
    pub is_last: bool,
    /// What was counted.
    pub seen: Seen,
}

/// Counts and latencies of an interval.
#[derive(Debug, Default)]
pub struct Seen {
    /// Messages given to the client.
    pub sent: u64,
    /// Acks that came.
    pub acked: u64,
    /// Deliveries that came.
    pub delivered: u64,
    /// Refusals, protocol faults and faults that the books found.
    pub errors: u64,
    /// At its end: messages that are due or sent, and not both acked and delivered.
    pub outstanding: u64,
    /// CPU time of the thread, or of the busiest one.
    pub cpu: Duration,
    /// What of it belongs to messages intended in the measured time.
    pub timed: Timed,
}

/// Times of messages that were intended in the measured time.
#[derive(Debug, Default)]
pub struct Timed {
    /// From the intended time to the ack, of acks that came in the interval.
    pub ack: Latencies,
    /// The same of deliveries.
    pub deliver: Latencies,
    /// From the intended time to the moment when the client was given the message: the generator's
    /// own lag.
    pub lag: Latencies,
    /// Sends that lagged more than [`crate::limits::LATE_SEND`].
    pub late: u64,
    /// Sends that had to wait for the node, because it was away or the window full. They are in
    /// `ack` and `deliver` with their waiting time, and not in `lag`.
    pub held: u64,
}

impl Seen {
    /// Adds what another thread saw.
    pub fn merge(&mut self, other: &Seen) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.delivered += other.delivered;
        self.errors += other.errors;
        self.outstanding += other.outstanding;
        self.cpu = self.cpu.max(other.cpu);
        self.timed.merge(&other.timed);
    }

    /// As a line of the series, from and to a time after the start of the load.
    pub fn row(&self, grid: &Grid, number: u32, from: Duration, to: Duration) -> Row {
        let length = to.saturating_sub(from).as_secs_f64().max(1e-3);
        let per_s = |count: u64| (count as f64 / length * 10.0).round() / 10.0;
        let time_s = from.as_secs_f64() - grid.measured_from().as_secs_f64();
        Row {
            time_s: (time_s * 1e3).round() / 1e3,
            length_s: (length * 1e3).round() / 1e3,
            stage: grid.stage(number),
            sent_per_s: per_s(self.sent),
            acked_per_s: per_s(self.acked),
            delivered_per_s: per_s(self.delivered),
            errors: self.errors,
            outstanding: self.outstanding,
            ack: self.timed.ack.percentiles(),
            deliver: self.timed.deliver.percentiles(),
            lag: self.timed.lag.percentiles(),
            late: self.timed.late,
            held: self.timed.held,
            cpu_percent: (self.cpu.as_secs_f64() / length * 1e3).round() / 10.0,
        }
    }
}

impl Timed {
    /// Adds others.
    pub fn merge(&mut self, other: &Timed) {
        self.ack.merge(&other.ack);
        self.deliver.merge(&other.deliver);
        self.lag.merge(&other.lag);
        self.late += other.late;
        self.held += other.held;
    }
}

/// A line of a run's series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// When it began, in seconds from the start of the measured time.
    pub time_s: f64,
    /// How long it was: a second, and less at the borders.
    pub length_s: f64,
    /// Which part of the run.
    pub stage: Stage,
    /// Messages given to the client, a second.
    pub sent_per_s: f64,
    /// Acks that came, a second.
    pub acked_per_s: f64,
    /// Deliveries that came, a second.
    pub delivered_per_s: f64,
    /// Refusals, protocol faults, and faults that the books found.
    pub errors: u64,
    /// At its end: messages that are due or sent, and not both acked and delivered.
    pub outstanding: u64,
    /// Latencies of acks that came, of messages intended in the measured time.
    pub ack: Percentiles,
    /// The same of deliveries.
    pub deliver: Percentiles,
    /// The generator's own lag.
    pub lag: Percentiles,
    /// Sends that lagged too much.
    pub late: u64,
    /// Sends that had to wait for the node.
    pub held: u64,
    /// CPU time of the busiest thread, as a share of the interval.
    pub cpu_percent: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_measured_time_begins_and_ends_with_an_interval() {
        let grid = Grid::new(ms(1_500), ms(2_500));
        let ends: Vec<_> = (0..7).map(|number| grid.end_of(number)).collect();
        let expected = [500, 1_500, 2_500, 3_500, 4_000, 5_000, 6_000].map(ms);
        assert_eq!(ends, expected);
        assert_eq!((grid.start_of(0), grid.start_of(4)), (ms(0), ms(3_500)));
        use Stage::{After, Measured, WarmUp};
        let stages: Vec<_> = (0..6).map(|number| grid.stage(number)).collect();
        assert_eq!(stages, [WarmUp, WarmUp, Measured, Measured, Measured, After]);
    }

    #[test]
    fn a_run_without_warm_up_begins_with_what_is_measured() {
        let grid = Grid::new(ms(0), ms(400));
        assert_eq!((grid.stage(0), grid.stage(1)), (Stage::Measured, Stage::After));
        assert_eq!((grid.end_of(0), grid.end_of(1)), (ms(400), ms(1_400)));
    }

    #[test]
    fn a_row_is_of_its_own_length() {
        let grid = Grid::new(ms(0), ms(500));
        let seen = Seen { acked: 100, cpu: ms(250), ..Seen::default() };
        let row = seen.row(&grid, 0, ms(0), ms(500));
        assert_eq!((row.acked_per_s, row.cpu_percent, row.length_s), (200.0, 50.0, 0.5));
    }
}
