//! What each route has been asked, how long it took, and how it went wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chatring_wire::ErrorCode;

use crate::metrics::{Labels, Metric, MetricValue};

/// Upper bounds of the latency histogram, in microseconds. Long polls last up to a minute.
const BOUNDS_US: [u64; 14] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    20_000_000, 60_000_000,
];

/// The figures of one route.
#[derive(Debug)]
pub(super) struct RouteStats {
    route: String,
    started: AtomicU64,
    took_us: AtomicU64,
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    /// By the place of the code in [`ErrorCode::ALL`].
    errors: Box<[AtomicU64]>,
}

impl RouteStats {
    /// Of a route named like `GET /v1/channels`.
    pub(super) fn new(route: String) -> Arc<RouteStats> {
        Arc::new(RouteStats {
            route,
            started: AtomicU64::new(0),
            took_us: AtomicU64::new(0),
            buckets: Default::default(),
            errors: ErrorCode::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// A request begins.
    pub(super) fn start(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was answered.
    pub(super) fn end(&self, took: Duration, error: Option<ErrorCode>) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.took_us.fetch_add(us, Ordering::Relaxed);
        let at = error.and_then(|error| ErrorCode::ALL.iter().position(|code| *code == error));
        if let Some(at) = at {
            self.errors[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn histogram(&self) -> MetricValue {
        let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        MetricValue::Histogram {
            sum: self.took_us.load(Ordering::Relaxed) as f64 / 1e6,
            buckets: bounds.zip(counts).collect(),
        }
    }
}

/// The figures of all routes.
pub(super) fn metrics(routes: &[Arc<RouteStats>]) -> Vec<Metric> {
    let route = |stats: &RouteStats| -> Labels { vec![("route", stats.route.clone())] };
    let each = |value: &dyn Fn(&RouteStats) -> MetricValue| {
        MetricValue::Family(routes.iter().map(|stats| (route(stats), value(stats))).collect())
    };
    let mut errors = Vec::new();
    for stats in routes {
        for (code, count) in ErrorCode::ALL.iter().zip(&stats.errors) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                let mut labels = route(stats);
                labels.push(("code", code.name().to_owned()));
                errors.push((labels, MetricValue::Counter(count)));
            }
        }
    }
    let started = each(&|stats| MetricValue::Counter(stats.started.load(Ordering::Relaxed)));
    let mut metrics = vec![
        Metric::new("chatring_http_requests", "requests that began, by route", started),
        Metric::new(
            "chatring_http_request_seconds",
            "time to the head of the answer, by route",
            each(&RouteStats::histogram),
        ),
    ];
    if !errors.is_empty() {
        let errors = MetricValue::Family(errors);
        metrics.push(Metric::new("chatring_http_errors", "requests refused, by code", errors));
    }
    metrics
}
