//! The result of `peers`: a table in Markdown for people, JSON for scripts.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::books::{Counts, Shape};
use super::drive::Outcome;
use super::server::Cores;
use super::{Kind, Options};
use crate::limits::CPU_PERCENT_HONEST_MAX;
use crate::report::environment::{Machine, Versions};

/// Above this share of the server's core that others took a row is not comparable.
const OTHERS_PERCENT_HONEST_MAX: f64 = 5.0;
/// A sync that takes less does not reach a disk.
const SYNC_US_BELIEVED_MIN: f64 = 15.0;

/// The whole result.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Users that were asked for.
    pub users: u32,
    /// Receivers of each message in the fan-out workload.
    pub fan_out: u32,
    /// Length of a body.
    pub body_bytes: usize,
    /// Length of the warm-up.
    pub warmup_s: f64,
    /// Length of the measured time.
    pub duration_s: f64,
    /// How many times everything was run.
    pub rounds: u32,
    /// Core of the servers.
    pub server_core: u32,
    /// Core of the generator.
    pub generator_core: u32,
    /// The machine, with the file system of the servers' data.
    pub machine: Machine,
    /// What made this table.
    pub versions: Versions,
    /// Median time to append 100 bytes to a file of the folder and sync them, before the run.
    pub sync_us: f64,
    /// A row for each server and workload.
    pub rows: Vec<Row>,
}

/// One server under one workload.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The server.
    pub server: Kind,
    /// Who sends to whom.
    pub workload: String,
    /// How the server does that.
    pub how: &'static str,
    /// Its version; empty if it was not found.
    pub version: String,
    /// What an ack says about the message; empty if there was none.
    pub acked: String,
    /// Why it was not run, if so.
    pub skipped: Option<String>,
    /// Why there is no outcome although it was run, if so.
    pub failed: Option<String>,
    /// What came of it.
    pub outcome: Option<Outcome>,
    /// Deliveries a second of all rounds, ascending.
    pub delivered_per_s_of_rounds: Vec<f64>,
}

impl Row {
    /// Without a result yet.
    pub fn new(server: Kind, shape: Shape, how: &'static str) -> Row {
        let workload = match shape {
            Shape::Direct => "direct".to_owned(),
            Shape::FanOut { receivers } => format!("1 to {receivers}"),
        };
        Row {
            server,
            workload,
            how,
            version: String::new(),
            acked: String::new(),
            skipped: None,
            failed: None,
            outcome: None,
            delivered_per_s_of_rounds: Vec::new(),
        }
    }

    /// Of the same row in several rounds the first one that is not good, else the one of the median
    /// rate (of an even number the lower one).
    pub(super) fn of_rounds(mut rounds: Vec<Row>) -> Option<Row> {
        let rate = |row: &Row| row.outcome.as_ref().map_or(0.0, |outcome| outcome.delivered_per_s);
        if let Some(bad) = rounds.iter().position(|row| !row.is_good()) {
            return Some(rounds.swap_remove(bad));
        }
        rounds.sort_by(|one, other| rate(one).total_cmp(&rate(other)));
        let rates = rounds.iter().filter(|row| row.outcome.is_some()).map(rate).collect();
        let median = rounds.len().checked_sub(1)? / 2;
        Some(Row { delivered_per_s_of_rounds: rates, ..rounds.swap_remove(median) })
    }

    /// Whether everything was acked and delivered exactly once, or nothing was tried.
    pub fn is_good(&self) -> bool {
        let clean = self.outcome.as_ref().is_none_or(|outcome| outcome.counts.is_clean());
        clean && self.failed.is_none()
    }
}

impl Table {
    /// Of these rows.
    pub(super) fn new(
        options: &Options,
        machine: Machine,
        cores: Cores,
        sync_us: f64,
        rows: Vec<Row>,
    ) -> Table {
        Table {
            users: options.users,
            fan_out: options.fan_out,
            body_bytes: options.body,
            warmup_s: options.warmup.as_secs_f64(),
            duration_s: options.duration.as_secs_f64(),
            rounds: options.rounds,
            server_core: cores.server,
            generator_core: cores.generator,
            machine,
            versions: Versions::of_this_build(),
            sync_us,
            rows,
        }
    }

    /// Whether no server failed, lost or doubled anything. Servers that are missing do not count.
    pub fn is_good(&self) -> bool {
        self.rows.iter().all(Row::is_good)
    }

    /// The names of rows.
    fn those(&self, which: impl Fn(&Outcome) -> bool) -> String {
        let rows = self.rows.iter().filter(|row| row.outcome.as_ref().is_some_and(&which));
        let names = rows.map(|row| format!("{} {}", row.server.name(), row.workload));
        names.collect::<Vec<_>>().join(", ")
    }

    /// Writes the JSON form to a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_json(&self, path: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("a table is plain data");
        text.push('\n');
        std::fs::write(path, text)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Table { users, body_bytes, warmup_s, duration_s, sync_us, .. } = self;
        let (server, generator) = (self.server_core, self.generator_core);
        let Versions { loadgen, git_revision, build } = &self.versions;
        writeln!(f, "{};", self.machine)?;
        writeln!(f, "chatring-loadgen {loadgen}, revision {git_revision}, {build} build.")?;
        writeln!(f, "{users} users, {body_bytes}-byte bodies, one message in flight per sender")?;
        writeln!(f, "(closed loop), {warmup_s} s of warm-up, {duration_s} s measured; server on")?;
        writeln!(f, "core {server}, generator on core {generator}; fdatasync of 100 bytes takes")?;
        writeln!(f, "{sync_us:.0} µs (median). Latencies are those of a saturated server.")?;
        if self.rounds > 1 {
            writeln!(f, "{} rounds; of each row the one of the median rate.", self.rounds)?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "| server | workload | delivered/s | ack µs p50 / p99 | delivery µs p50 / p99 | \
             server CPU µs per delivery | busy: server, others, generator | \
             lost, duplicated, other | acked means |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
        )?;
        self.rows.iter().try_for_each(|row| write!(f, "{row}"))?;
        if *sync_us < SYNC_US_BELIEVED_MIN {
            writeln!(f, "\nThe folder does not seem to be on a disk: a sync costs nothing there.")?;
        }
        if server == generator {
            writeln!(f, "\nServer and generator shared a core: the rates are not comparable.")?;
        }
        let own = self.those(|outcome| outcome.loadgen_cpu_percent > CPU_PERCENT_HONEST_MAX);
        if !own.is_empty() {
            writeln!(f, "\nLower bounds, as the generator was at its limit: {own}.")?;
        }
        let disturbed = self.those(|outcome| outcome.others_percent > OTHERS_PERCENT_HONEST_MAX);
        if server != generator && !disturbed.is_empty() {
            writeln!(f, "\nOthers took more than {OTHERS_PERCENT_HONEST_MAX} % of the server's")?;
            writeln!(f, "core, so that the rates are not comparable: {disturbed}.")?;
        }
        Ok(())
    }
}

/// A line of the table.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{} {}", self.server.name(), self.version);
        write!(f, "| {} | {}: {} | ", name.trim_end(), self.workload, self.how)?;
        match (&self.outcome, &self.skipped, &self.failed) {
            (Some(outcome), _, _) => {
                write!(f, "{:.0}", outcome.delivered_per_s)?;
                if let [least, .., most] = self.delivered_per_s_of_rounds[..] {
                    write!(f, " ({least:.0} to {most:.0})")?;
                }
                write!(f, " | {outcome} | ")?;
            }
            (None, Some(reason), _) => write!(f, "skipped: {reason} | | | | | | ")?,
            (None, None, reason) => {
                write!(f, "FAILED: {} | | | | | | ", reason.as_deref().unwrap_or_default())?;
            }
        }
        writeln!(f, "{} |", self.acked)
    }
}

/// The figures of a line but the rate.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { ack, deliver, counts, .. } = self;
        let Counts { lost, duplicated, corrupt, unacked, .. } = counts;
        write!(f, "{:.0} / {:.0} | ", ack.p50, ack.p99)?;
        write!(f, "{:.0} / {:.0} | {:.1} | ", deliver.p50, deliver.p99, self.server_cpu_us)?;
        let (server, others) = (self.server_cpu_percent, self.others_percent);
        write!(f, "{server:.0} %, {others:.0} %, {:.0} % | ", self.loadgen_cpu_percent)?;
        write!(f, "{lost}, {duplicated}, {}", corrupt + unacked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row::new(Kind::Redis, Shape::FanOut { receivers: 3 }, "a stream per group")
    }

    #[test]
    fn a_row_says_what_it_is_or_why_it_is_empty() {
        let mut row = row();
        row.skipped = Some("redis-server is not installed: apt install redis-server".to_owned());
        let line = row.to_string();
        assert!(line.starts_with("| redis | 1 to 3: a stream per group | skipped: "), "{line}");
        assert_eq!(line.matches('|').count(), 10);
        assert!(row.is_good());
        row.skipped = None;
        row.failed = Some("it ended".to_owned());
        assert!(!row.is_good() && row.to_string().contains("FAILED: it ended"));
    }

    fn outcome(delivered_per_s: f64, lost: u64) -> Outcome {
        Outcome {
            counts: Counts { sent: 2, acked: 2, delivered: 1, lost, ..Counts::default() },
            delivered_per_s,
            acked_per_s: 2.0,
            ack: Default::default(),
            deliver: Default::default(),
            server_cpu_us: 1.25,
            server_cpu_percent: 99.6,
            others_percent: 0.4,
            loadgen_cpu_percent: 50.4,
        }
    }

    #[test]
    fn of_rounds_the_median_counts_unless_one_is_not_good() {
        let rounds = |lost: [u64; 3]| {
            let rates = [30.0, 10.0, 20.0].into_iter().zip(lost);
            let rows =
                rates.map(|(rate, lost)| Row { outcome: Some(outcome(rate, lost)), ..row() });
            Row::of_rounds(rows.collect()).unwrap()
        };
        let median = rounds([0; 3]);
        assert_eq!(median.outcome.unwrap().delivered_per_s, 20.0);
        assert!(median.to_string().contains("| 20 (10 to 30) |"), "{median}");
        assert_eq!(rounds([0, 1, 0]).outcome.unwrap().counts.lost, 1);
        let none = Row::of_rounds(vec![Row { skipped: Some("so".to_owned()), ..row() }]);
        assert!(none.unwrap().delivered_per_s_of_rounds.is_empty());
    }

    #[test]
    fn a_row_with_a_fault_is_not_good() {
        let row = Row { outcome: Some(outcome(1.0, 1)), version: "7.0".to_owned(), ..row() };
        assert!(!row.is_good());
        let line = row.to_string();
        assert!(line.contains("| redis 7.0 |") && line.contains("| 1, 0, 0 |"), "{line}");
        assert_eq!(line.matches('|').count(), 10);
    }
}
