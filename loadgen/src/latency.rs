//! Latencies as a histogram with three significant digits, from 1 µs to 1 hour.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const LOWEST_NS: u64 = 1_000;
const HIGHEST_NS: u64 = 3_600_000_000_000;
const DIGITS: u8 = 3;
/// Points of a curve for each halving of what is above it: smooth on a logarithmic axis.
const CURVE_POINTS_PER_HALVING: u32 = 5;

/// Latencies of one kind. Longer ones than an hour count as an hour.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

/// Percentiles in microseconds; zero if nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Percentiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// A point of the curve of all percentiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The share of all that took at most so long, from 0 to 1.
    pub quantile: f64,
    /// So long, in microseconds.
    pub us: f64,
}

impl Latencies {
    /// None yet.
    pub fn new() -> Latencies {
        let histogram = Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, DIGITS);
        Latencies(histogram.expect("the bounds are valid"))
    }

    /// Adds one.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Adds those of another thread.
    pub fn merge(&mut self, other: &Latencies) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The histogram, of nanoseconds.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }

    /// The curve of all percentiles, dense where it is rare; without the last point, at 1, which is
    /// [`Percentiles::max`]. Some hundred points at most.
    pub fn curve(&self) -> Vec<CurvePoint> {
        let points = self.0.iter_quantiles(CURVE_POINTS_PER_HALVING);
        let points = points.map(|point| CurvePoint {
            quantile: point.quantile_iterated_to(),
            us: micros(point.value_iterated_to()),
        });
        points.filter(|point| point.quantile < 1.0).collect()
    }

    /// What they come to.
    pub fn percentiles(&self) -> Percentiles {
        if self.count() == 0 {
            return Percentiles::default();
        }
        let at = |quantile| micros(self.0.value_at_quantile(quantile));
        Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(self.0.max()),
        }
    }
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies::new()
    }
}

/// Microseconds with one decimal; the histogram knows no more.
fn micros(ns: u64) -> f64 {
    (ns as f64 / 100.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::new();
        let mut second = Latencies::new();
        for us in 1..=500 {
            latencies.record(us * 1_000);
            second.record((us + 500) * 1_000);
        }
        latencies.merge(&second);
        let got = latencies.percentiles();
        for (value, expected) in
            [(got.p50, 500.0), (got.p90, 900.0), (got.p99, 990.0), (got.p999, 999.0)]
        {
            assert!((value - expected).abs() <= expected / 500.0, "{value} for {expected}");
        }
        assert!((got.max - 1_000.0).abs() < 1.0);
        assert_eq!(Latencies::new().percentiles(), Percentiles::default());
    }

    #[test]
    fn the_curve_rises_and_goes_as_far_as_there_are_values() {
        let mut latencies = Latencies::new();
        (1..=10_000).for_each(|us| latencies.record(us * 1_000));
        let curve = latencies.curve();
        assert!(curve.len() > 50 && curve.len() < 500, "{}", curve.len());
        assert!(curve.is_sorted_by(|a, b| a.quantile < b.quantile && a.us <= b.us));
        assert!(curve.last().unwrap().quantile > 0.999);
        let median = curve.iter().find(|point| point.quantile >= 0.5).unwrap();
        assert!((median.us - 5_000.0).abs() < 20.0, "{median:?}");
        assert_eq!(Latencies::new().curve(), []);
    }

    #[test]
    fn a_longer_stall_than_an_hour_is_not_dropped() {
        let mut latencies = Latencies::new();
        latencies.record(u64::MAX);
        assert_eq!(latencies.count(), 1);
        assert!(latencies.percentiles().max >= 3.6e9);
    }
}
