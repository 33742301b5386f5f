//! `knee`: finds by itself the highest rate at which a condition holds.
//!
//! Each step is a run of `direct` in the open loop, with its books: the 99th percentile of acks
//! must be within a bound, the generator's sends on time, and the backlog must not grow. What did
//! not hold is tried again, so that one hiccup of a busy machine does not decide.

mod search;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use self::search::Search;
use super::{RunError, direct};
use crate::cli::{self, body, even_users, positive_duration};
use crate::limits::{KNEE_STEPS_MAX, RATE_PER_S_MAX, THREADS_MAX};
use crate::report::{Generator, Report};

/// The options of `knee`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Ready file of the node
    #[arg(long, value_name = "READY.json")]
    pub node: PathBuf,
    /// Users, an even number
    #[arg(long, value_name = "N", value_parser = even_users)]
    pub users: u32,
    /// The bound that the 99th percentile of acks must keep, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20,
          value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub p99_ms: u32,
    /// Messages a second to begin with
    #[arg(long, value_name = "PER_S", default_value_t = 1_000,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_PER_S_MAX)))]
    pub from: u32,
    /// Messages a second that are never exceeded
    #[arg(long, value_name = "PER_S", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_PER_S_MAX)))]
    pub to: u32,
    /// Time that is measured in each step
    #[arg(long, default_value = "5s", value_parser = positive_duration)]
    pub step: Duration,
    /// Time of the same load before it
    #[arg(long, default_value = "1s", value_parser = cli::duration)]
    pub warmup: Duration,
    /// No step begins that would end later than this
    #[arg(long, default_value = "5m", value_parser = positive_duration)]
    pub max_time: Duration,
    /// The answer is this close
    #[arg(long, value_name = "PERCENT", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub precision: u32,
    /// How often a rate is tried before it counts as one that does not hold
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=10))]
    pub tries: u32,
    /// Share of late sends that is put up with
    #[arg(long, value_name = "PERCENT", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(0..=100))]
    pub late: u32,
    /// Length of a body
    #[arg(long, value_name = "BYTES", default_value_t = 20, value_parser = body)]
    pub body: usize,
    /// Threads that carry the sessions
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(THREADS_MAX)))]
    pub threads: u32,
    /// Writes all steps here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes a page here, to look at in a browser
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Prints a line per second on stderr
    #[arg(long)]
    pub progress: bool,
    /// Exits with 3 if the generator itself was what did not hold
    #[arg(long)]
    pub strict: bool,
}

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Knee {
    /// The highest rate that held.
    pub knee_per_s: Option<u32>,
    /// The lowest rate that did not; none if all did.
    pub failed_per_s: Option<u32>,
    /// The bound of the 99th percentile of acks.
    pub p99_ms_max: u32,
    /// The share of late sends that was put up with.
    pub late_percent_max: u32,
    /// Why the search ended early.
    pub cut_short: Option<String>,
    /// Whether the generator was the bottleneck wherever the lowest rate did not hold.
    pub is_generator_limit: bool,
    /// All that was tried, in order.
    pub steps: Vec<Step>,
}

/// A try of a rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Messages a second that were offered.
    pub rate_per_s: u32,
    /// What did not hold; empty if all did.
    pub broken: Vec<String>,
    /// The run.
    pub report: Report,
}

/// Searches, and tells of each step when it has ended.
///
/// # Errors
/// A run never began.
pub fn run(options: &Options, mut on_step: impl FnMut(&Step)) -> Result<Knee, RunError> {
    let start = Instant::now();
    let mut search = Search::new(options.from, options.to, options.precision);
    let mut steps = Vec::new();
    let mut cut_short = None;
    'search: while let Some(rate) = search.next() {
        let mut is_held = false;
        for _ in 0..options.tries {
            let left = options.max_time.saturating_sub(start.elapsed());
            if left < options.warmup + options.step || steps.len() >= KNEE_STEPS_MAX {
                cut_short = Some("the time was over".to_owned());
                break 'search;
            }
            let (report, notes) = direct::run(&load(options, rate))?;
            let is_good = report.is_good();
            let step = Step { rate_per_s: rate, broken: broken(options, rate, &report), report };
            on_step(&step);
            is_held = step.broken.is_empty();
            steps.push(step);
            if !is_good {
                let what = notes.first().map(String::as_str).unwrap_or_default();
                cut_short = Some(format!("a run failed: {what}"));
                break 'search;
            }
            if is_held {
                break;
            }
        }
        search.tell(rate, is_held);
    }
    let failed_per_s = search.failed();
    let failing: Vec<_> =
        steps.iter().filter(|step| Some(step.rate_per_s) == failed_per_s).collect();
    let is_limit = |step: &&Step| step.report.is_generator_bottleneck();
    Ok(Knee {
        knee_per_s: search.held(),
        failed_per_s,
        p99_ms_max: options.p99_ms,
        late_percent_max: options.late,
        cut_short,
        is_generator_limit: !failing.is_empty() && failing.iter().all(is_limit),
        steps,
    })
}

impl Knee {
    /// Whether a rate was found, and every message of every step was stored and delivered once.
    pub fn is_good(&self) -> bool {
        self.knee_per_s.is_some() && self.steps.iter().all(|step| step.report.is_good())
    }

    /// Writes the JSON form to a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_json(&self, path: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("a report is plain data");
        text.push('\n');
        std::fs::write(path, text)
    }

    /// The answer in words.
    pub fn answer(&self) -> String {
        let (p99, late) = (self.p99_ms_max, self.late_percent_max);
        let bound = format!("ack p99 ≤ {p99} ms, late sends ≤ {late} %, backlog steady");
        match (self.knee_per_s, self.failed_per_s) {
            (Some(knee), None) => format!("{knee}/s and more ({bound})"),
            (Some(knee), Some(failed)) => format!("{knee}/s, and not {failed}/s ({bound})"),
            (None, Some(failed)) => format!("below {failed}/s, if at all ({bound})"),
            (None, None) => "nothing was tried to the end".to_owned(),
        }
    }
}

/// The end of the table, after the rows.
impl fmt::Display for Knee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "knee       {}", self.answer())?;
        if let Some(reason) = &self.cut_short {
            writeln!(f, "           CUT SHORT: {reason}; it may be higher")?;
        }
        if self.is_generator_limit {
            let text = "BOTTLENECK: above it the generator did not keep up; the node may hold more";
            writeln!(f, "           {text}")?;
        }
        writeln!(f, "verdict    {}", if self.is_good() { "good" } else { "FAILED" })
    }
}

/// The head of the table.
pub const HEAD: &str =
    " offered/s   acked/s  p50 ms  p99 ms  max ms  late %  backlog  CPU %  what did not hold";

/// A row of the table.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { ack, backlog, acked_per_s, .. } = &self.report;
        let ms = [ack.p50, ack.p99, ack.max].map(|us| us / 1e3);
        write!(f, "{:10}{acked_per_s:10.0}", self.rate_per_s)?;
        write!(f, "{:8.2}{:8.2}{:8.1}", ms[0], ms[1], ms[2])?;
        write!(f, "{:8.2}", self.report.generator.late_percent())?;
        write!(f, "{:+9}", backlog.end as i64 - backlog.start as i64)?;
        write!(f, "{:7.0}  ", self.report.loadgen_cpu_percent)?;
        match self.broken.is_empty() {
            true => f.write_str("–"),
            false => f.write_str(&self.broken.join(", ")),
        }
    }
}

/// What of the condition did not hold.
fn broken(options: &Options, rate: u32, report: &Report) -> Vec<String> {
    let mut broken = Vec::new();
    if !report.is_good() {
        broken.push("the run failed".to_owned());
    }
    let bound = f64::from(options.p99_ms);
    if report.ack.p99 / 1e3 > bound {
        broken.push("ack p99".to_owned());
    }
    if report.generator.late_percent() > f64::from(options.late) {
        broken.push("late sends".to_owned());
    }
    // What is under way within the bound is no backlog.
    let growth = report.backlog.end.saturating_sub(report.backlog.start);
    if growth as f64 > f64::from(rate) * bound / 1e3 {
        broken.push("backlog".to_owned());
    }
    broken
}

fn load(options: &Options, rate: u32) -> cli::Direct {
    cli::Direct {
        node: options.node.clone(),
        users: options.users,
        rate: Some(rate),
        ramp: None,
        steps: None,
        window: None,
        duration: options.step,
        warmup: options.warmup,
        body: options.body,
        seed: 1,
        patience: cli::PATIENCE,
        threads: options.threads,
        ledger: None,
        burn_us: 0,
        stall_ms: cli::STALL_MS,
        probe_core: None,
        probe_dir: None,
        output: cli::Output { progress: options.progress, ..cli::Output::default() },
    }
}

impl Generator {
    /// Share of the late among all sends.
    pub fn late_percent(&self) -> f64 {
        self.late as f64 / (self.sends.max(1)) as f64 * 100.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Backlog;
    use crate::report::tests::report;

    fn options() -> Options {
        use clap::Parser as _;
        let line = ["chatring-loadgen", "knee", "--node", "r", "--users", "2", "--p99-ms", "10"];
        match cli::Cli::parse_from(line).command {
            cli::Command::Knee(options) => options,
            _ => panic!("another command"),
        }
    }

    #[test]
    fn each_part_of_the_condition_counts() {
        let options = options();
        let broken = |change: fn(&mut Report)| {
            let mut report = report();
            report.ack.p99 = 10_000.0;
            report.generator.sends = 1_000;
            report.generator.late = 10;
            report.backlog = Backlog { start: 5, end: 15 };
            change(&mut report);
            super::broken(&options, 1_000, &report)
        };
        assert!(broken(|_| ()).is_empty(), "just within all bounds");
        assert_eq!(broken(|report| report.ack.p99 = 10_001.0), ["ack p99"]);
        assert_eq!(broken(|report| report.generator.late = 11), ["late sends"]);
        assert_eq!(broken(|report| report.backlog.end = 16), ["backlog"]);
        assert_eq!(broken(|report| report.counts.lost = 1), ["the run failed"]);
    }
}
