//! Brings together what the threads of a run see, an interval after the other: for the series, the
//! interval log and the line of progress.
//!
//! ```text
//!  thread 0 ─┐  parts, bounded    ┌─▶ totals and series (the report)
//!  thread 1 ─┼───────────────────▶┼─▶ interval log
//!  …         ┘   own thread       └─▶ a line on stderr
//! ```
//! The threads never wait for it while they make load: a part that finds no room stays with its
//! thread and goes out with the next one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime};

use super::hdr_log::HdrLog;
use super::interval::{Grid, Part, Row, Seen, Stage, Timed};
use crate::limits::{PENDING_INTERVALS_MAX, SERIES_ROWS_MAX};

/// What a thread says.
#[derive(Debug)]
pub enum Said {
    /// The load begins; the clock says so.
    Start(SystemTime),
    /// An interval ended.
    Part(Box<Part>),
}

/// What becomes of it all.
#[derive(Debug, Default)]
pub struct Collected {
    /// All latencies.
    pub timed: Timed,
    /// A row for each interval.
    pub series: Vec<Row>,
    /// When the measured time began.
    pub measured_from: Option<SystemTime>,
    /// Why the interval log is incomplete.
    pub log_error: Option<io::Error>,
}

/// Collects the parts of one run.
pub struct Collector {
    grid: Grid,
    /// For each thread the first interval that it may still speak of.
    next: Vec<u32>,
    pending: BTreeMap<u32, (Duration, Seen)>,
    /// The first interval that no row tells of.
    untold: u32,
    log: Option<HdrLog<BufWriter<File>>>,
    shows_progress: bool,
    collected: Collected,
}

impl Collector {
    /// For so many threads.
    pub fn new(grid: Grid, threads: u32) -> Collector {
        Collector {
            grid,
            next: vec![0; threads as usize],
            pending: BTreeMap::new(),
            untold: 0,
            log: None,
            shows_progress: false,
            collected: Collected::default(),
        }
    }

    /// Writes this log as well.
    pub fn with_log(mut self, log: Option<HdrLog<BufWriter<File>>>) -> Collector {
        self.log = log;
        self
    }

    /// Prints a line for each interval on stderr as well.
    pub fn with_progress(mut self, shows_progress: bool) -> Collector {
        self.shows_progress = shows_progress;
        self
    }

    /// Collects until all threads are gone.
    pub fn run(mut self, parts: Receiver<Said>) -> Collected {
        for said in parts {
            match said {
                Said::Start(at) => self.start(at),
                Said::Part(part) => self.take(*part),
            }
        }
        self.finish()
    }

    fn start(&mut self, at: SystemTime) {
        if self.collected.measured_from.is_none() {
            let from = at + self.grid.measured_from();
            self.collected.measured_from = Some(from);
            let begun = self.log.as_mut().map(|log| log.begin(from));
            self.note(begun);
        }
    }

    fn take(&mut self, part: Part) {
        let thread = &mut self.next[part.thread as usize];
        *thread = if part.is_last { u32::MAX } else { part.number + 1 };
        let (to, seen) = self.pending.entry(part.number).or_default();
        *to = (*to).max(part.to);
        seen.merge(&part.seen);
        let complete = self.next.iter().min().copied().unwrap_or_default();
        while let Some(entry) = self.pending.first_entry()
            && (*entry.key() < complete || self.pending.len() > PENDING_INTERVALS_MAX)
        {
            self.pop();
        }
    }

    fn finish(mut self) -> Collected {
        while !self.pending.is_empty() {
            self.pop();
        }
        let finished = self.log.take().map(|log| log.finish().map(drop));
        self.note(finished);
        self.collected
    }

    /// The oldest interval is complete.
    fn pop(&mut self) {
        let Some((number, (to, seen))) = self.pending.pop_first() else { return };
        // If no thread spoke of the intervals before, what came in them is in this one.
        let from = self.grid.start_of(self.untold.min(number));
        self.untold = number + 1;
        let row = seen.row(&self.grid, number, from, to);
        if self.shows_progress {
            // Nobody may be reading any more, which is no reason to stop.
            let _ = writeln!(io::stderr(), "{}", progress(&row));
        }
        let origin = self.grid.measured_from();
        let (from, to) = (from.saturating_sub(origin), to.saturating_sub(origin));
        let length = to.saturating_sub(from);
        let added = self.log.as_mut().map(|log| log.add(from, length, &seen.timed));
        self.note(added);
        self.collected.timed.merge(&seen.timed);
        if self.collected.series.len() < SERIES_ROWS_MAX {
            self.collected.series.push(row);
        }
    }

    fn note(&mut self, written: Option<io::Result<()>>) {
        if let Some(Err(error)) = written {
            self.log = None;
            self.collected.log_error.get_or_insert(error);
        }
    }
}

/// An interval as a line for people.
fn progress(row: &Row) -> String {
    let stage = match row.stage {
        Stage::WarmUp => " (warm-up)",
        Stage::Measured => "",
        Stage::After => " (waiting)",
    };
    let mut line = format!(
        "{:6.0} s{stage}  {:.0} sent, {:.0} acked, {:.0} delivered/s",
        row.time_s + row.length_s,
        row.sent_per_s,
        row.acked_per_s,
        row.delivered_per_s,
    );
    let ms = |us: f64| us / 1e3;
    if row.stage != Stage::WarmUp {
        let (ack, deliver) = (row.ack, row.deliver);
        line += &format!(
            "  ack p50 {:.2} p99 {:.2} max {:.1} ms, delivery p99 {:.2} ms",
            ms(ack.p50),
            ms(ack.p99),
            ms(ack.max),
            ms(deliver.p99),
        );
    }
    line += &format!("  {} outstanding, {} errors", row.outstanding, row.errors);
    line += &format!("  generator: {:.0} % of a core", row.cpu_percent);
    if row.stage != Stage::WarmUp {
        line += &format!(", lag p99 {:.2} ms, {} late", ms(row.lag.p99), row.late);
    }
    line
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    fn part(thread: u32, number: u32, acked: u64) -> Said {
        let grid = Grid::new(Duration::ZERO, Duration::from_secs(3));
        let mut seen = Seen { acked, outstanding: 1, ..Seen::default() };
        seen.timed.ack.record(acked * 1_000_000);
        let to = grid.end_of(number);
        Said::Part(Box::new(Part { thread, number, to, is_last: number == 2, seen }))
    }

    fn collect(threads: u32, parts: Vec<Said>) -> Collected {
        let (sender, receiver) = sync_channel(parts.len());
        parts.into_iter().for_each(|said| sender.send(said).unwrap());
        drop(sender);
        let grid = Grid::new(Duration::ZERO, Duration::from_secs(3));
        Collector::new(grid, threads).run(receiver)
    }

    #[test]
    fn threads_are_added_up_interval_by_interval_whatever_their_order() {
        let parts = vec![
            part(0, 0, 1),
            part(0, 1, 2),
            part(1, 0, 10),
            part(0, 2, 3),
            part(1, 1, 20),
            part(1, 2, 30),
        ];
        let collected = collect(2, parts);
        let acked: Vec<_> = collected.series.iter().map(|row| row.acked_per_s).collect();
        assert_eq!(acked, [11.0, 22.0, 33.0]);
        assert!(collected.series.iter().all(|row| row.outstanding == 2));
        assert_eq!(collected.timed.ack.count(), 6);
    }

    #[test]
    fn a_thread_that_was_away_loses_nothing() {
        let collected =
            collect(2, vec![part(0, 0, 1), part(0, 1, 2), part(0, 2, 3), part(1, 2, 9)]);
        let acked: Vec<_> = collected.series.iter().map(|row| row.acked_per_s).collect();
        assert_eq!(acked, [1.0, 2.0, 12.0]);
        assert_eq!(collected.timed.ack.count(), 4);
    }

    #[test]
    fn a_second_in_which_nothing_was_noticed_is_part_of_the_next_row() {
        let collected = collect(1, vec![part(0, 0, 1), part(0, 2, 6)]);
        let rows: Vec<_> = collected.series.iter().map(|row| (row.time_s, row.length_s)).collect();
        assert_eq!(rows, [(0.0, 1.0), (1.0, 2.0)]);
        assert_eq!(collected.series[1].acked_per_s, 3.0);
    }

    #[test]
    fn a_thread_that_says_nothing_holds_up_a_bounded_count_of_intervals() {
        let grid = Grid::new(Duration::ZERO, Duration::from_secs(1_000));
        let mut collector = Collector::new(grid, 2);
        for number in 0..1_000 {
            let seen = Seen::default();
            let to = grid.end_of(number);
            collector.take(Part { thread: 0, number, to, is_last: false, seen });
            assert!(collector.pending.len() <= PENDING_INTERVALS_MAX);
        }
        assert_eq!(collector.finish().series.len(), 1_000);
    }

    #[test]
    fn the_line_of_progress_has_rates_latencies_and_the_generators_own_state() {
        let mut row = Row { acked_per_s: 5_000.0, cpu_percent: 34.0, ..Row::default() };
        row.ack.p99 = 3_400.0;
        let line = progress(&row);
        for word in ["5000 acked", "p99 3.40", "lag", "34 % of a core"] {
            assert!(line.contains(word), "{line}");
        }
        assert!(!line.contains('\n'));
    }
}
