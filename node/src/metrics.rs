//! What the node tells a scraper: figures of every part in one form, gathered when asked.

use std::time::{SystemTime, UNIX_EPOCH};

use chatring_core::counters::{CounterKind, Counters};

/// One figure with its name. Names carry their unit and no `_total`, which the format adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// `chatring_…`.
    pub name: String,
    /// One sentence.
    pub help: String,
    /// Its value.
    pub value: MetricValue,
}

/// The value of a figure.
#[derive(Clone, Debug, PartialEq)]
pub enum MetricValue {
    /// Only rises.
    Counter(u64),
    /// Only rises, with a fraction (seconds).
    CounterF(f64),
    /// Rises and falls.
    Gauge(u64),
    /// Rises and falls, with a fraction (seconds).
    GaugeF(f64),
    /// How many observations lie at or below each bound and above the one before; the last bound is
    /// infinite.
    Histogram {
        /// Sum of all observations.
        sum: f64,
        /// Bound and count.
        buckets: Vec<(f64, u64)>,
    },
    /// Always 1; the labels are what it says.
    Info(Vec<(&'static str, String)>),
}

impl Metric {
    /// A figure.
    pub fn new(name: &str, help: &str, value: MetricValue) -> Metric {
        Metric { name: name.to_owned(), help: help.to_owned(), value }
    }
}

/// The counters of the shards, summed by the caller.
pub fn of_shards(counters: &Counters) -> Vec<Metric> {
    let metric = |(name, kind, help, value)| {
        let value = match kind {
            CounterKind::Counter => MetricValue::Counter(value),
            CounterKind::Gauge => MetricValue::Gauge(value),
        };
        Metric::new(&format!("chatring_{name}"), help, value)
    };
    counters.each().into_iter().map(metric).collect()
}

/// The process: memory, descriptors, processor time, start. What the system does not tell is left
/// out.
pub fn of_process(started: SystemTime) -> Vec<Metric> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut metrics = vec![
        Metric::new(
            "chatring_build",
            "what runs here",
            MetricValue::Info(vec![("version", version)]),
        ),
        Metric::new(
            "chatring_process_start_time_seconds",
            "Unix time of the start",
            MetricValue::GaugeF(started.as_secs_f64()),
        ),
    ];
    if let Some(bytes) = resident_bytes() {
        let value = MetricValue::Gauge(bytes);
        metrics.push(Metric::new("chatring_process_resident_bytes", "memory in use", value));
    }
    // The folder's own descriptor is open while it is counted.
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        let value = MetricValue::Gauge((entries.count() as u64).saturating_sub(1));
        metrics.push(Metric::new("chatring_process_open_fds", "descriptors in use", value));
    }
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        let value = MetricValue::Gauge(limit);
        metrics.push(Metric::new("chatring_process_max_fds", "limit of descriptors", value));
    }
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = usage.tv_sec as f64 + usage.tv_nsec as f64 / 1e9;
    let value = MetricValue::CounterF(seconds);
    metrics.push(Metric::new("chatring_process_cpu_seconds", "processor time used", value));
    metrics
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
