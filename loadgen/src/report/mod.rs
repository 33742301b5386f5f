//! The result of a run of `direct`: as JSON for scripts, as text for people, as a page to look at.

pub mod collect;
pub mod compare;
pub mod environment;
pub mod hdr_log;
pub mod html;
pub mod interval;
pub mod section;
pub mod stalls;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use self::environment::{Machine, Versions};
use self::interval::Row;
use self::section::SectionReport;
use self::stalls::StallReport;
use crate::book::Counts;
use crate::latency::{CurvePoint, Percentiles};
use crate::limits::{CPU_PERCENT_HONEST_MAX, LATE_SEND, LATE_SENDS_SHARE_MAX, STALLS_PRINTED_MAX};

/// The result of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// What the run was.
    pub setup: Setup,
    /// Messages, of the whole run with its warm-up.
    #[serde(flatten)]
    pub counts: Counts,
    /// Requests refused, protocol faults, and faults that the books found beyond the named ones.
    pub errors: u64,
    /// How many times a session connected again.
    pub reconnects: u64,
    /// Acks that arrived in the measured time, a second.
    pub acked_per_s: f64,
    /// Deliveries that arrived in the measured time, a second.
    pub delivered_per_s: f64,
    /// CPU time of the generator's busiest thread, as a share of the measured time.
    pub loadgen_cpu_percent: f64,
    /// From the intended send time to the ack, of messages intended in the measured time.
    pub ack: Percentiles,
    /// From the intended send time to the delivery, of the same messages.
    pub deliver: Percentiles,
    /// What messages cost on the socket beyond their bodies, in the measured time.
    pub wire: Wire,
    /// How the generator itself was.
    pub generator: Generator,
    /// What was under way.
    pub backlog: Backlog,
    /// The parts of a load in steps or along a ramp; empty if it was the same all the time.
    pub sections: Vec<SectionReport>,
    /// When acks came late, and what the machine did meanwhile.
    #[serde(default)]
    pub stalls: StallReport,
    /// What the node says an ack stands for: `memory`, `fsync`, `replicated`.
    pub durability: Option<String>,
    /// When the measured time began, in Unix time.
    pub started_unix_ms: u64,
    /// The command line.
    pub command: Vec<String>,
    /// The generator's machine.
    pub machine: Machine,
    /// What was run.
    pub versions: Versions,
    /// All percentiles.
    pub curves: Curves,
    /// An interval each.
    pub series: Vec<Row>,
}

/// How the generator itself was, in the measured time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    /// Why the figures are the generator's more than the node's; empty if they are the node's.
    pub bottleneck: Vec<String>,
    /// Time that its busiest thread waited for a core, as a share of the measured time.
    pub wait_percent: f64,
    /// From the intended time of a send to the moment when the client was given it, in
    /// microseconds.
    pub lag: Percentiles,
    /// Sends of the measured time.
    pub sends: u64,
    /// Those that lagged more than a millisecond.
    pub late: u64,
    /// Those that had to wait because the node was away or its window full: not the generator's
    /// fault, and not in `lag`.
    pub held: u64,
}

/// Messages that were due or sent, and not both acked and delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backlog {
    /// At the start of the measured time.
    pub start: u64,
    /// At its end.
    pub end: u64,
}

/// All percentiles of both latencies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// To the ack.
    pub ack: Vec<CurvePoint>,
    /// To the delivery.
    pub deliver: Vec<CurvePoint>,
}

/// What the run was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Sessions, one for each user.
    pub users: u32,
    /// The load in words.
    pub load: String,
    /// Messages a second that the plan asks for, in the open loop.
    pub rate_per_s: Option<u32>,
    /// Messages in flight per user, in the closed loop.
    pub window: Option<u32>,
    /// Length of a body.
    pub body_bytes: usize,
    /// Length of the warm-up.
    pub warmup_s: f64,
    /// Length of the measured time.
    pub duration_s: f64,
    /// Threads that carried the sessions.
    pub threads: u32,
    /// Seed of the plan.
    pub seed: u64,
    /// CPU time that the generator was told to burn for each message, in microseconds.
    pub burn_us: u32,
    /// Why the run ended before its plan did, if so.
    pub cut_short: Option<String>,
}

/// Bytes on the socket, WebSocket headers included, of the measured time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wire {
    /// Mean bytes of a delivered message less its body; nothing if none was delivered.
    pub delivered_overhead_bytes: Option<f64>,
    /// Mean bytes of a sent message less its body; nothing if none was sent.
    pub sent_overhead_bytes: Option<f64>,
    /// All bytes received.
    pub received_bytes: u64,
    /// All bytes sent.
    pub sent_bytes: u64,
}

impl Report {
    /// Whether the run proves what it should: everything exactly once, in order, unchanged.
    pub fn is_good(&self) -> bool {
        self.counts.is_clean() && self.setup.cut_short.is_none()
    }

    /// Whether the figures are the generator's more than the node's.
    pub fn is_generator_bottleneck(&self) -> bool {
        !self.generator.bottleneck.is_empty()
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
}

impl Generator {
    /// Why the generator was the bottleneck. Only in the open loop is a send late.
    pub fn judge(cpu_percent: f64, late: u64, sends: u64, is_open: bool) -> Vec<String> {
        let mut reasons = Vec::new();
        if cpu_percent > CPU_PERCENT_HONEST_MAX {
            reasons.push(format!(
                "its busiest thread used {cpu_percent:.0} % of a core, \
                 more than {CPU_PERCENT_HONEST_MAX:.0} %"
            ));
        }
        if is_open && late as f64 > sends as f64 * LATE_SENDS_SHARE_MAX {
            reasons.push(format!(
                "{late} of {sends} sends were more than {} ms late, more than {:.0} %",
                LATE_SEND.as_millis(),
                LATE_SENDS_SHARE_MAX * 100.0
            ));
        }
        reasons
    }
}

/// The form for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { setup, counts, .. } = self;
        let Setup { users, load, body_bytes, duration_s, warmup_s, .. } = setup;
        writeln!(f, "{users} users, {load}, {body_bytes}-byte bodies, {duration_s} s measured")?;
        writeln!(f, "  after {warmup_s} s of warm-up")?;
        if let Some(reason) = &setup.cut_short {
            writeln!(f, "  CUT SHORT: {reason}")?;
        }
        let Counts { sent, acked, delivered, lost, duplicated, reordered, .. } = counts;
        writeln!(f, "messages   {sent} sent, {acked} acked, {delivered} delivered")?;
        writeln!(f, "faults     {lost} lost, {duplicated} duplicated, {reordered} reordered,")?;
        let Counts { corrupt, conflicting, gaps, unacked, refused, foreign, .. } = counts;
        writeln!(f, "           {corrupt} corrupt, {conflicting} conflicting, {gaps} gaps,")?;
        writeln!(f, "           {unacked} unacked, {refused} refused, {} errors", self.errors)?;
        writeln!(f, "others     {foreign} messages of others, {} reconnects", self.reconnects)?;
        let (acked, delivered) = (self.acked_per_s, self.delivered_per_s);
        writeln!(f, "rate       {acked:.0} acked/s, {delivered:.0} delivered/s")?;
        for (name, p) in [("ack", &self.ack), ("deliver", &self.deliver)] {
            let Percentiles { p50, p90, p99, p999, max } = p;
            write!(f, "{name:10} p50 {p50:.0}, p90 {p90:.0}, p99 {p99:.0}, p99.9 {p999:.0}, ")?;
            writeln!(f, "max {max:.0} µs")?;
        }
        let bytes = |bytes: Option<f64>| bytes.map_or("–".to_owned(), |b| format!("{b:.1}"));
        let delivered = bytes(self.wire.delivered_overhead_bytes);
        let sent = bytes(self.wire.sent_overhead_bytes);
        writeln!(f, "overhead   {delivered} bytes per delivery, {sent} bytes per send")?;
        for section in &self.sections {
            writeln!(f, "{}", section_line(section))?;
        }
        write_stalls(f, &self.stalls)?;
        let Generator { bottleneck, wait_percent, lag, late, held, .. } = &self.generator;
        let cpu = self.loadgen_cpu_percent;
        write!(
            f,
            "generator  {cpu:.0} % of its busiest core, {wait_percent:.0} % waiting for it, "
        )?;
        write!(
            f,
            "lag p50 {:.0}, p99 {:.0}, max {:.0} µs,\n           ",
            lag.p50, lag.p99, lag.max
        )?;
        write!(f, "{late} late sends, {held} held up by the node")?;
        for reason in bottleneck {
            write!(f, "\n           BOTTLENECK: {reason}:")?;
            write!(f, "\n           these figures are the generator's, too")?;
        }
        writeln!(f, "\nverdict    {}", if self.is_good() { "good" } else { "FAILED" })
    }
}

/// The longest ones; all are in the JSON.
fn write_stalls(f: &mut fmt::Formatter<'_>, stalls: &StallReport) -> fmt::Result {
    let StallReport { bound_ms, list, .. } = stalls;
    writeln!(f, "stalls     {} with acks above {bound_ms} ms", list.len())?;
    for row in stalls.longest(STALLS_PRINTED_MAX) {
        writeln!(
            f,
            "  {:9.3} s  {} messages, longest {:.0} ms; generator late {:.0} ms, steal {:.0} ms",
            row.begin_s, row.messages, row.longest_ms, row.generator_lag_ms, row.steal_ms
        )?;
    }
    Ok(())
}

fn section_line(section: &SectionReport) -> String {
    let SectionReport { from_per_s, to_per_s, acked_per_s, ack, deliver, .. } = section;
    let rate = match from_per_s == to_per_s {
        true => format!("{from_per_s}/s"),
        false => format!("{from_per_s}–{to_per_s}/s"),
    };
    format!(
        "  {rate:15} {acked_per_s:.0} acked/s, ack p50 {:.0}, p99 {:.0}, max {:.0} µs, \
         deliver p50 {:.0}, p99 {:.0} µs",
        ack.p50, ack.p99, ack.max, deliver.p50, deliver.p99
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report of a good run.
    pub(crate) fn report() -> Report {
        let setup = Setup {
            users: 2,
            load: "100/s offered".to_owned(),
            rate_per_s: Some(100),
            body_bytes: 20,
            warmup_s: 1.0,
            duration_s: 2.0,
            threads: 1,
            seed: 3,
            ..Setup::default()
        };
        Report {
            setup,
            counts: Counts { sent: 9, acked: 9, delivered: 9, ..Counts::default() },
            errors: 0,
            reconnects: 0,
            acked_per_s: 4.5,
            delivered_per_s: 4.5,
            loadgen_cpu_percent: 12.0,
            ack: Percentiles::default(),
            deliver: Percentiles::default(),
            wire: Wire::default(),
            generator: Generator { sends: 9, ..Generator::default() },
            backlog: Backlog::default(),
            sections: Vec::new(),
            stalls: StallReport::default(),
            durability: Some("fsync".to_owned()),
            started_unix_ms: 1_700_000_000_000,
            command: vec!["chatring-loadgen".to_owned(), "direct".to_owned()],
            machine: Machine::default(),
            versions: Versions::of_this_build(),
            curves: Curves::default(),
            series: vec![Row::default()],
        }
    }

    #[test]
    fn the_generator_is_the_bottleneck_above_its_limits_alone() {
        assert!(Generator::judge(80.0, 1, 100, true).is_empty());
        assert_eq!(Generator::judge(80.1, 1, 100, true).len(), 1);
        assert_eq!(Generator::judge(10.0, 2, 100, true).len(), 1);
        assert!(Generator::judge(10.0, 100, 100, false).is_empty(), "the closed loop has no plan");
        let mut report = report();
        assert!(!report.is_generator_bottleneck());
        report.generator.bottleneck = Generator::judge(99.0, 99, 100, true);
        assert_eq!(report.to_string().matches("BOTTLENECK").count(), 2, "{report}");
    }

    #[test]
    fn the_json_is_read_back() {
        let written = serde_json::to_value(report()).unwrap();
        let read: Report = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), written);
    }

    #[test]
    fn the_json_has_the_keys_that_scripts_read() {
        let json = serde_json::to_value(report()).unwrap();
        let numbers = [
            "/acked",
            "/delivered",
            "/lost",
            "/duplicated",
            "/reordered",
            "/errors",
            "/reconnects",
            "/acked_per_s",
            "/delivered_per_s",
            "/loadgen_cpu_percent",
        ];
        for key in numbers {
            assert!(json.pointer(key).is_some_and(|value| value.is_number()), "{key}: {json}");
        }
        for kind in ["ack", "deliver"] {
            for key in ["p50", "p90", "p99", "p999", "max"] {
                assert!(json[kind][key].is_number(), "{kind}.{key}");
            }
        }
        for key in ["delivered_overhead_bytes", "sent_overhead_bytes"] {
            assert!(json["wire"].as_object().unwrap().contains_key(key), "{key}");
        }
    }

    #[test]
    fn every_kind_of_fault_makes_a_run_bad() {
        assert!(report().is_good());
        type Fault = fn(&mut Report);
        let faults: [Fault; 9] = [
            |r| r.counts.lost = 1,
            |r| r.counts.duplicated = 1,
            |r| r.counts.reordered = 1,
            |r| r.counts.corrupt = 1,
            |r| r.counts.conflicting = 1,
            |r| r.counts.gaps = 1,
            |r| r.counts.unacked = 1,
            |r| r.counts.refused = 1,
            |r| r.setup.cut_short = Some("stopped".to_owned()),
        ];
        for (index, fault) in faults.iter().enumerate() {
            let mut report = report();
            fault(&mut report);
            assert!(!report.is_good(), "fault {index}");
            assert!(report.to_string().contains("FAILED"));
        }
    }
}
