//! The parts of a load that goes in steps or along a ramp, each with latencies of its own.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::latency::{Latencies, Percentiles};

/// A part of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Messages a second at its start.
    pub from_per_s: u32,
    /// Messages a second at its end.
    pub to_per_s: u32,
    /// When it begins, in nanoseconds from the origin.
    pub from_ns: u64,
    /// When it ends.
    pub to_ns: u64,
}

/// What came of each part. None if the load is the same all the time.
#[derive(Clone, Debug, Default)]
pub struct Sections(Vec<Section>);

#[derive(Clone, Debug)]
struct Section {
    span: Span,
    acked: u64,
    delivered: u64,
    ack: Latencies,
    deliver: Latencies,
}

/// A part of the load as a report has it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SectionReport {
    /// Messages a second that the plan asks for at its start.
    pub from_per_s: u32,
    /// The same at its end.
    pub to_per_s: u32,
    /// When it began, in seconds from the start of the measured time.
    pub time_s: f64,
    /// How long it was.
    pub length_s: f64,
    /// Acks that came within it, a second.
    pub acked_per_s: f64,
    /// Deliveries that came within it, a second.
    pub delivered_per_s: f64,
    /// Latencies of messages intended in it, however late they came.
    pub ack: Percentiles,
    /// The same of deliveries.
    pub deliver: Percentiles,
}

impl Sections {
    /// For these spans, which follow each other.
    pub fn new(spans: impl IntoIterator<Item = Span>) -> Sections {
        let section = |span| Section {
            span,
            acked: 0,
            delivered: 0,
            ack: Latencies::new(),
            deliver: Latencies::new(),
        };
        Sections(spans.into_iter().map(section).collect())
    }

    /// An ack came.
    pub fn acked(&mut self, intended_ns: u64, at_ns: u64) {
        if let Some(section) = self.at(intended_ns) {
            section.ack.record(at_ns.saturating_sub(intended_ns));
        }
        if let Some(section) = self.at(at_ns) {
            section.acked += 1;
        }
    }

    /// A delivery came.
    pub fn delivered(&mut self, intended_ns: u64, at_ns: u64) {
        if let Some(section) = self.at(intended_ns) {
            section.deliver.record(at_ns.saturating_sub(intended_ns));
        }
        if let Some(section) = self.at(at_ns) {
            section.delivered += 1;
        }
    }

    /// Adds those of another thread.
    pub fn merge(&mut self, other: Sections) {
        if self.0.is_empty() {
            *self = other;
            return;
        }
        for (section, other) in self.0.iter_mut().zip(other.0) {
            section.acked += other.acked;
            section.delivered += other.delivered;
            section.ack.merge(&other.ack);
            section.deliver.merge(&other.deliver);
        }
    }

    /// For the report.
    pub fn report(&self) -> Vec<SectionReport> {
        let start_ns = self.0.first().map_or(0, |section| section.span.from_ns);
        let seconds = |ns: u64| (ns as f64 / 1e6).round() / 1e3;
        let report = |section: &Section| {
            let Span { from_per_s, to_per_s, from_ns, to_ns } = section.span;
            let length = (to_ns - from_ns) as f64 / 1e9;
            let per_s = |count: u64| (count as f64 / length * 10.0).round() / 10.0;
            SectionReport {
                from_per_s,
                to_per_s,
                time_s: seconds(from_ns - start_ns),
                length_s: seconds(to_ns - from_ns),
                acked_per_s: per_s(section.acked),
                delivered_per_s: per_s(section.delivered),
                ack: section.ack.percentiles(),
                deliver: section.deliver.percentiles(),
            }
        };
        self.0.iter().map(report).collect()
    }

    fn at(&mut self, ns: u64) -> Option<&mut Section> {
        let place = self.0.partition_point(|section| section.span.to_ns <= ns);
        self.0.get_mut(place).filter(|section| range(&section.span).contains(&ns))
    }
}

fn range(span: &Span) -> Range<u64> {
    span.from_ns..span.to_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(per_s: u32, from_ns: u64, to_ns: u64) -> Span {
        Span { from_per_s: per_s, to_per_s: per_s, from_ns, to_ns }
    }

    #[test]
    fn latencies_belong_to_the_intended_time_and_rates_to_the_arrival() {
        const S: u64 = 1_000_000_000;
        let spans = [span(10, 5 * S, 7 * S), span(20, 7 * S, 8 * S)];
        let mut sections = Sections::new(spans);
        let mut other = sections.clone();
        sections.acked(5 * S, 6 * S);
        // Intended in the first, and late.
        other.acked(6 * S, 7 * S + 1);
        other.acked(7 * S, 9 * S);
        sections.merge(other);
        let report = sections.report();
        assert_eq!((report[0].acked_per_s, report[1].acked_per_s), (0.5, 1.0));
        assert!((report[0].ack.max - 1e6).abs() < 1e4 && (report[1].ack.max - 2e6).abs() < 1e4);
        assert_eq!((report[1].time_s, report[1].length_s), (2.0, 1.0));
    }

    #[test]
    fn a_steady_load_has_none() {
        let mut sections = Sections::default();
        sections.acked(1, 2);
        assert_eq!(sections.report(), []);
    }
}
