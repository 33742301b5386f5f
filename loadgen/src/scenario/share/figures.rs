//! What comes of the rounds: shares, medians, and what the bars say.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::probe::Probe;
use crate::latency::Percentiles;
use crate::process::CpuTimes;

/// Share of the bare relay's rate that the node is to reach at least, in percent.
const RATE_PERCENT_MIN: f64 = 45.0;
/// How many times the p99 of the bare relay with a log the node's may be.
const P99_TIMES_MAX: f64 = 1.5;
/// The same of the medians.
const P50_TIMES_MAX: f64 = 1.5;
/// Above this share of its core the generator measures itself.
const GENERATOR_PERCENT_MAX: f64 = 80.0;
/// Above this share of the server's core others decide its rate and latencies. The kernel counts in
/// ticks of 10 ms.
const OTHERS_PERCENT_MAX: f64 = 5.0;
/// Above this share of the time the disk decides who is in the last hundredth.
const HELD_UP_PERCENT_MAX: f64 = 1.0;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The bare relay.
    Bare,
    /// The bare relay with its log.
    BareLog,
    /// The bare HTTP handler.
    BareHttp,
    /// `chatring serve`.
    Chatring,
}

/// One server under one load.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Which.
    pub who: Who,
    /// Messages a second that the plan asked for; none in the closed loop.
    pub offered_per_s: Option<u32>,
    /// Messages acked a second.
    pub acked_per_s: f64,
    /// CPU time of the server per acked message, in microseconds.
    pub server_us: f64,
    /// The same by thread name.
    pub server_us_by_thread: BTreeMap<String, f64>,
    /// From the intended send time to the ack, in microseconds.
    pub ack: Percentiles,
    /// From the intended send time to the arrival, in microseconds.
    pub deliver: Percentiles,
    /// CPU time of the generator as a share of its core.
    pub generator_percent: f64,
    /// Time that others took from the server's core, as a share of the measured time: other
    /// processes, interrupts for them, and the host.
    pub others_percent: f64,
    /// Why the figures are worth nothing, if so.
    pub fault: Option<String>,
}

impl Measured {
    /// Enters what the server's threads used in the measured time, and how long its core was busy.
    pub fn with_cpu(mut self, used: &CpuTimes, busy: Duration, duration_s: f64) -> Measured {
        let others_s = busy.as_secs_f64() - used.total().as_secs_f64();
        self.others_percent = 100.0 * others_s.max(0.0) / duration_s;
        let messages = self.acked_per_s * duration_s;
        let per_message = |seconds: f64| match messages > 0.0 {
            true => seconds * 1e6 / messages,
            false => 0.0,
        };
        self.server_us = per_message(used.total().as_secs_f64());
        let threads = used.0.iter();
        self.server_us_by_thread =
            threads.map(|(name, time)| (name.clone(), per_message(time.as_secs_f64()))).collect();
        self
    }
}

/// All that was measured, in its order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rounds {
    /// Sessions.
    pub users: u32,
    /// Messages in flight per user in the closed loop.
    pub window: u32,
    /// Measured time of each load.
    pub duration_s: f64,
    /// The machine, once in each round of the closed loop.
    pub probes: Vec<Probe>,
    /// The same in the open loop.
    pub open_probes: Vec<Probe>,
    /// Closed loop: each round has one of each.
    pub closed: Vec<Measured>,
    /// Open loop, likewise; empty if it was not asked for.
    pub open: Vec<Measured>,
}

/// The middle of some figures, and the outermost ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Middle {
    /// The median: of an even count the mean of the two in the middle.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// What the rounds come to.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Rate of the node as a share of the bare relay's in the same round, percent.
    pub rate_percent: Middle,
    /// CPU per message of the bare relay as a share of the node's in the same round, percent.
    pub cpu_percent: Middle,
    /// The same two against the bare relay with a log.
    pub rate_percent_of_log: Middle,
    /// See there.
    pub cpu_percent_of_log: Middle,
    /// Open loop: p50 of the node's acks ÷ that of the bare relay with a log.
    pub p50_times: Option<Middle>,
    /// Open loop: p50 of the node's acks ÷ (2 syncs + 2 round trips) of the same round.
    pub p50_of_syncs: Option<Middle>,
    /// The same of the bare relay with a log.
    pub p50_of_syncs_of_log: Option<Middle>,
    /// Open loop: p99 of the node's acks ÷ that of the bare relay with a log.
    pub p99_times: Option<Middle>,
    /// Whether every bar is kept by the median.
    pub kept: bool,
}

impl Middle {
    /// Of these; zero of none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Middle {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (figures.first(), figures.last()) else {
            return Middle::default();
        };
        let half = figures.len() / 2;
        let median = match figures.len() % 2 {
            0 => f64::midpoint(figures[half - 1], figures[half]),
            _ => figures[half],
        };
        Middle { median, min: *min, max: *max }
    }
}

impl Rounds {
    /// Whether every message of every load was acked and delivered as it should.
    pub fn is_good(&self) -> bool {
        self.closed.iter().chain(&self.open).all(|measured| measured.fault.is_none())
    }

    /// Half of the median rate that the node reached.
    pub fn half_rate(&self) -> u32 {
        let rates = of(&self.closed, Who::Chatring).map(|measured| measured.acked_per_s);
        ((Middle::of(rates).median / 2.0) as u32).max(1)
    }

    /// What they come to.
    pub fn verdict(&self) -> Verdict {
        let ratio = |list: &[Measured], who, what: fn(&Measured, &Measured) -> f64| {
            let pairs = of(list, Who::Chatring).zip(of(list, who));
            Middle::of(pairs.map(|(node, bare)| what(node, bare)))
        };
        let rate = |node: &Measured, bare: &Measured| 100.0 * node.acked_per_s / bare.acked_per_s;
        let cpu = |node: &Measured, bare: &Measured| 100.0 * bare.server_us / node.server_us;
        let p50_of_syncs = |who| {
            let rounds = of(&self.open, who).zip(&self.open_probes);
            Middle::of(rounds.map(|(measured, probe)| {
                measured.ack.p50 / (2.0 * probe.sync.p50 + 2.0 * probe.round_trip.p50)
            }))
        };
        let p50 = |node: &Measured, bare: &Measured| node.ack.p50 / bare.ack.p50;
        let p99 = |node: &Measured, bare: &Measured| node.ack.p99 / bare.ack.p99;
        let is_open = !self.open.is_empty();
        let mut verdict = Verdict {
            rate_percent: ratio(&self.closed, Who::Bare, rate),
            cpu_percent: ratio(&self.closed, Who::Bare, cpu),
            rate_percent_of_log: ratio(&self.closed, Who::BareLog, rate),
            cpu_percent_of_log: ratio(&self.closed, Who::BareLog, cpu),
            p50_times: is_open.then(|| ratio(&self.open, Who::BareLog, p50)),
            p50_of_syncs: is_open.then(|| p50_of_syncs(Who::Chatring)),
            p50_of_syncs_of_log: is_open.then(|| p50_of_syncs(Who::BareLog)),
            p99_times: is_open.then(|| ratio(&self.open, Who::BareLog, p99)),
            kept: false,
        };
        verdict.kept = verdict.rate_percent.median >= RATE_PERCENT_MIN
            && verdict.p50_times.is_none_or(|times| times.median <= P50_TIMES_MAX)
            && verdict.p99_times.is_none_or(|times| times.median <= P99_TIMES_MAX);
        verdict
    }
}

fn of(list: &[Measured], who: Who) -> impl Iterator<Item = &Measured> {
    list.iter().filter(move |measured| measured.who == who)
}

/// A line of a round.
impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", name(self.who))?;
        line(f, Middle::of([self.acked_per_s]).median, self.server_us, &self.ack)?;
        write!(f, ", generator {:.0} %", self.generator_percent)?;
        if self.generator_percent > GENERATOR_PERCENT_MAX {
            write!(f, " TOO MUCH, this measures the generator")?;
        }
        if self.others_percent > OTHERS_PERCENT_MAX {
            write!(f, ", DISTURBED: others took {:.0} % of its core", self.others_percent)?;
        }
        match &self.fault {
            Some(fault) => write!(f, " FAILED: {fault}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Probe { sync, held_up_percent, round_trip } = self;
        let (p50, p99) = (sync.p50, sync.p99);
        write!(f, "fdatasync p50 {p50:.0}, p99 {p99:.0} µs, held up {held_up_percent:.0} %, ")?;
        let (p50, p99) = (round_trip.p50, round_trip.p99);
        write!(f, "loopback and back p50 {p50:.0}, p99 {p99:.0} µs")
    }
}

/// Medians, with the lowest and the highest round in brackets.
impl fmt::Display for Middle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        let Middle { median, min, max } = self;
        write!(f, "{median:.digits$} ({min:.digits$}–{max:.digits$})")
    }
}

/// The summary, after the lines of the rounds.
impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = of(&self.closed, Who::Chatring).count();
        writeln!(f, "medians of {rounds} rounds (lowest–highest)")?;
        for (list, load) in [(&self.closed, "closed"), (&self.open, "open")] {
            for who in [Who::Bare, Who::BareLog, Who::Chatring] {
                if of(list, who).next().is_none() {
                    continue;
                }
                let middle = |what: fn(&Measured) -> f64| Middle::of(of(list, who).map(what));
                write!(f, "  {load:6} {}", name(who))?;
                write!(f, " {:.0}/s", middle(|m| m.acked_per_s))?;
                write!(f, ", {:.1} µs of CPU a message", middle(|m| m.server_us))?;
                write!(f, ", ack p50 {:.0}", middle(|m| m.ack.p50))?;
                write!(f, ", p99 {:.0}", middle(|m| m.ack.p99))?;
                writeln!(f, ", p99.9 {:.0} µs", middle(|m| m.ack.p999))?;
            }
        }
        let verdict = self.verdict();
        let Verdict { rate_percent, cpu_percent, .. } = &verdict;
        writeln!(f, "of bare        {rate_percent:.0} % of the rate, {cpu_percent:.0} % by CPU")?;
        let Verdict { rate_percent_of_log: rate, cpu_percent_of_log: cpu, .. } = &verdict;
        writeln!(f, "of bare + log  {rate:.0} % of the rate, {cpu:.0} % by CPU")?;
        if let (Some(node), Some(log)) = (&verdict.p50_of_syncs, &verdict.p50_of_syncs_of_log) {
            write!(f, "p50 ÷ (2 fdatasync + 2 round trips)  {node:.2}")?;
            writeln!(f, ", of bare + log {log:.2}")?;
        }
        let mut bar = |what: &str, figure: &Middle, good: bool| {
            let word = if good { "kept" } else { "MISSED" };
            writeln!(f, "bar    {what}: {figure:.2}, {word}")
        };
        let good = rate_percent.median >= RATE_PERCENT_MIN;
        bar("rate, at least 45 % of bare", rate_percent, good)?;
        if let Some(times) = &verdict.p50_times {
            let what = "p50, at most 1.5 × that of bare + log";
            bar(what, times, times.median <= P50_TIMES_MAX)?;
        }
        if let Some(times) = &verdict.p99_times {
            let what = "p99, at most 1.5 × that of bare + log";
            bar(what, times, times.median <= P99_TIMES_MAX)?;
        }
        let all = self.closed.iter().chain(&self.open);
        let others = Middle::of(all.map(|measured| measured.others_percent));
        if others.max > OTHERS_PERCENT_MAX {
            writeln!(f, "others took {others:.0} % of the servers' core: believe the CPU alone")?;
        }
        let probes = self.probes.iter().chain(&self.open_probes);
        let held_up = Middle::of(probes.map(|probe| probe.held_up_percent));
        if held_up.median > HELD_UP_PERCENT_MAX {
            writeln!(f, "syncs were held up {held_up:.0} % of the time: the p99 are the disk's")?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, rate: f64, us: f64, ack: &Percentiles) -> fmt::Result {
    let Percentiles { p50, p99, p999, max, .. } = ack;
    write!(f, " {rate:7.0}/s, {us:5.1} µs of CPU a message, ack p50 {p50:.0}, p99 {p99:.0}, ")?;
    write!(f, "p99.9 {p999:.0}, max {max:.0} µs")
}

/// For people, as wide as all of them.
pub fn name(who: Who) -> &'static str {
    match who {
        Who::Bare => "bare      ",
        Who::BareLog => "bare + log",
        Who::BareHttp => "bare HTTP ",
        Who::Chatring => "chatring  ",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(who: Who, rate: f64, us: f64, p50: f64, p99: f64) -> Measured {
        Measured {
            who,
            offered_per_s: None,
            acked_per_s: rate,
            server_us: us,
            server_us_by_thread: BTreeMap::new(),
            ack: Percentiles { p50, p99, ..Percentiles::default() },
            deliver: Percentiles::default(),
            generator_percent: 50.0,
            others_percent: 0.0,
            fault: None,
        }
    }

    /// Three rounds in which the machine is once twice as slow and once twice as fast.
    fn rounds() -> Rounds {
        let mut rounds = Rounds::default();
        for slow in [1.0, 2.0, 0.5] {
            for (who, rate, us) in
                [(Who::Bare, 80e3, 10.0), (Who::BareLog, 60e3, 12.0), (Who::Chatring, 40e3, 16.0)]
            {
                rounds.closed.push(measured(who, rate / slow, us * slow, 9e3, 9e3));
                let (p50, p99) = match who {
                    Who::BareLog => (400.0, 1_000.0),
                    _ => (450.0, 1_400.0),
                };
                rounds.open.push(measured(who, 20e3, us, p50 * slow, p99 * slow));
            }
            let sync = Percentiles { p50: 200.0 * slow, ..Percentiles::default() };
            let round_trip = Percentiles { p50: 50.0 * slow, ..Percentiles::default() };
            rounds.open_probes.push(Probe { sync, held_up_percent: 0.0, round_trip });
        }
        rounds
    }

    #[test]
    fn shares_are_taken_within_a_round_and_medians_over_them() {
        let verdict = rounds().verdict();
        let same = |figure| Middle { median: figure, min: figure, max: figure };
        assert_eq!(verdict.rate_percent, same(50.0));
        assert_eq!(verdict.cpu_percent, same(62.5));
        assert_eq!(verdict.cpu_percent_of_log, same(75.0));
        assert_eq!(verdict.p50_times, Some(same(1.125)));
        assert_eq!(verdict.p50_of_syncs, Some(same(0.9)));
        assert_eq!(verdict.p50_of_syncs_of_log, Some(same(0.8)));
        assert_eq!(verdict.p99_times, Some(same(1.4)));
        assert!(verdict.kept);
        assert_eq!(rounds().half_rate(), 20_000);
        let text = rounds().to_string();
        assert!(text.contains("50.00 (50.00–50.00), kept") && !text.contains("MISSED"), "{text}");
    }

    #[test]
    fn each_bar_can_be_missed() {
        let breaks: [fn(&mut Rounds); 3] = [
            |r| {
                r.closed
                    .iter_mut()
                    .filter(|m| m.who == Who::Bare)
                    .for_each(|m| m.acked_per_s = 99e3)
            },
            |r| r.open.iter_mut().filter(|m| m.who == Who::BareLog).for_each(|m| m.ack.p50 /= 2.0),
            |r| r.open.iter_mut().filter(|m| m.who == Who::BareLog).for_each(|m| m.ack.p99 /= 2.0),
        ];
        for (index, damage) in breaks.into_iter().enumerate() {
            let mut rounds = rounds();
            damage(&mut rounds);
            assert!(!rounds.verdict().kept, "bar {index}");
            assert_eq!(rounds.to_string().matches("MISSED").count(), 1, "bar {index}");
        }
    }

    #[test]
    fn a_disk_that_is_held_up_is_told() {
        let mut rounds = rounds();
        assert!(!rounds.to_string().contains("held up"));
        rounds.open_probes.iter_mut().for_each(|probe| probe.held_up_percent = 16.0);
        let told = "syncs were held up 16 (16–16) % of the time: the p99 are the disk's";
        assert!(rounds.to_string().contains(told));
    }

    #[test]
    fn the_middle_of_an_even_count_lies_between_two() {
        let middle = Middle::of([9.0, 1.0, 4.0, 2.0]);
        assert_eq!(middle, Middle { median: 3.0, min: 1.0, max: 9.0 });
        assert_eq!(Middle::of([]), Middle::default());
    }

    #[test]
    fn cpu_is_counted_per_acked_message() {
        let mut used = CpuTimes::default();
        used.0.insert("shard".to_owned(), Duration::from_millis(1_500));
        used.0.insert("commit".to_owned(), Duration::from_millis(500));
        let measured = measured(Who::Chatring, 50e3, 0.0, 1.0, 1.0).with_cpu(
            &used,
            Duration::from_millis(2_200),
            2.0,
        );
        assert!((measured.others_percent - 10.0).abs() < 1e-9);
        assert!(measured.to_string().contains("DISTURBED: others took 10 %"));
        assert!((measured.server_us - 20.0).abs() < 1e-9);
        assert!((measured.server_us_by_thread["commit"] - 5.0).abs() < 1e-9);
    }
}
