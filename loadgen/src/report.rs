//! The result of a run of `direct`: as JSON for scripts and as text for people.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use crate::book::Counts;
use crate::latency::Percentiles;

/// Above this share of its core the generator measures itself.
const CPU_PERCENT_HONEST_MAX: f64 = 80.0;

/// The result of a run.
#[derive(Clone, Debug, Serialize)]
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
}

/// What the run was.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// Sessions, one for each user.
    pub users: u32,
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
    /// Why the run ended before its plan did, if so.
    pub cut_short: Option<String>,
}

/// Bytes on the socket, WebSocket headers included, of the measured time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
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

    /// Writes the JSON form to a file.
    pub fn write_json(&self, path: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("a report is plain data");
        text.push('\n');
        std::fs::write(path, text)
    }
}

/// The form for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { setup, counts, .. } = self;
        let load = match (setup.rate_per_s, setup.window) {
            (Some(rate), _) => format!("{rate}/s offered"),
            (None, window) => format!("{} in flight per user", window.unwrap_or_default()),
        };
        let Setup { users, body_bytes, duration_s, warmup_s, .. } = setup;
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
        write!(f, "generator  {:.0} % of its busiest core", self.loadgen_cpu_percent)?;
        if self.loadgen_cpu_percent > CPU_PERCENT_HONEST_MAX {
            write!(f, ": TOO MUCH, these figures measure the generator")?;
        }
        writeln!(f, "\nverdict    {}", if self.is_good() { "good" } else { "FAILED" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let setup = Setup {
            users: 2,
            rate_per_s: Some(100),
            window: None,
            body_bytes: 20,
            warmup_s: 1.0,
            duration_s: 2.0,
            threads: 1,
            seed: 3,
            cut_short: None,
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
        }
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
