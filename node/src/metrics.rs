//! What the node tells a scraper: figures of every part in one form, gathered when asked.

use std::time::{SystemTime, UNIX_EPOCH};

use chatring_core::counters::{CounterKind, Counters};

use crate::gateway::{CallCounters, GatewayCounters};
use crate::rt::StatValues;
use crate::store::embedded::{StoreMetrics, WRITE_US_BOUNDS};

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

/// Names and values that tell the figures of a family apart.
pub type Labels = Vec<(&'static str, String)>;

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
    Info(Labels),
    /// Several of one kind, each with its labels; at least one, and no families.
    Family(Vec<(Labels, MetricValue)>),
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

/// The connections of the shards, summed by the caller.
pub fn of_connections(counters: &GatewayCounters) -> Vec<Metric> {
    let metric = |(name, help, value)| {
        let value = match name {
            "connections" => MetricValue::Gauge(value),
            _ => MetricValue::Counter(value),
        };
        Metric::new(&format!("chatring_gateway_{name}"), help, value)
    };
    counters.each().into_iter().map(metric).collect()
}

/// What is carried to the shards for callers without a session.
pub fn of_calls(counters: &CallCounters) -> Vec<Metric> {
    let counts = [
        ("batches", "batches of calls given to shards", counters.batches),
        ("carried", "calls and withdrawals in them", counters.messages),
        ("full", "calls and withdrawals that found no room", counters.full),
    ];
    let metric = |(name, help, value)| {
        Metric::new(&format!("chatring_calls_{name}"), help, MetricValue::Counter(value))
    };
    counts.into_iter().map(metric).collect()
}

/// The runtime of the shards, summed by the caller.
pub fn of_runtime(stats: &StatValues) -> Vec<Metric> {
    let metric = |(name, help, value)| {
        Metric::new(&format!("chatring_shard_{name}"), help, MetricValue::Counter(value))
    };
    stats.each().into_iter().map(metric).collect()
}

/// The embedded store.
pub fn of_store(store: &StoreMetrics) -> Vec<Metric> {
    let counters = [
        ("groups", "groups that are durable", store.groups),
        ("commits", "commits in durable groups", store.commits),
        ("rows", "rows written by durable groups", store.rows),
        ("written_bytes", "bytes of the commits in durable groups", store.bytes),
        ("conflicts", "commits refused because of a conflict", store.conflicts),
        ("too_old", "commits and reads at a version no longer known", store.too_old),
        ("throttled", "commits and reads refused because a queue was full", store.throttled),
        ("unavailable", "commits refused, mostly for want of room", store.unavailable),
        ("lane_stopped", "commits refused in a stopped lane", store.lane_stopped),
        ("reads", "reads served", store.reads),
        ("rows_read", "rows that reads gave", store.rows_read),
        ("read_errors", "reads that failed at the disk", store.read_errors),
        ("ingestions", "memtables taken to rest", store.ingestions),
        ("ingested_bytes", "bytes of rows taken to rest", store.ingested_bytes),
        ("stalls", "writes that waited for an ingestion or a log segment", store.stalls),
    ];
    let gauges = [
        ("queued_commits", "commits waiting for a group", store.queued_commits as u64),
        ("queued_bytes", "bytes of the commits waiting for a group", store.queued_bytes as u64),
        ("queued_reads", "reads waiting for a reader", store.queued_reads as u64),
        ("snapshots_held", "snapshots held for reads at a version", store.snapshots_held as u64),
        ("resolver_writes", "writes that the resolver remembers", store.resolver_writes as u64),
        ("disk_free_bytes", "bytes that the file system has free", store.free_bytes),
        ("disk_reserve_bytes", "bytes that are kept free", store.reserve_bytes),
        ("log_segments", "log segments with records or ready", store.log_segments as u64),
        ("log_spares", "log segments kept to be written again", store.log_spares as u64),
        ("memtable_bytes", "bytes of the memtable being filled", store.memtable_bytes),
        ("sealed_tables", "memtables that wait to be ingested", store.sealed_tables as u64),
        ("fresh_runs", "runs of tables that are not merged yet", store.fresh_runs as u64),
        ("pause_microseconds", "least time between groups, for ingestions", store.pause_us),
    ];
    let counters = counters.map(|(name, help, v)| (name, help, MetricValue::Counter(v)));
    let gauges = gauges.map(|(name, help, v)| (name, help, MetricValue::Gauge(v)));
    let micros = |us: u64| us as f64 / 1e6;
    let bounds = WRITE_US_BOUNDS.into_iter().map(micros).chain([f64::MAX]);
    let writes = MetricValue::Histogram {
        sum: micros(store.write_us_sum),
        buckets: bounds.zip(store.write_us_buckets).collect(),
    };
    let seconds = [
        ("write_seconds", "time to write and sync a group", writes),
        (
            "stall_seconds",
            "time that writes waited for an ingestion or a log segment",
            MetricValue::CounterF(micros(store.stall_us)),
        ),
        (
            "ingestion_seconds",
            "time that taking memtables to rest took",
            MetricValue::CounterF(micros(store.ingestion_us)),
        ),
    ];
    let all = counters.into_iter().chain(gauges).chain(seconds);
    all.map(|(name, help, value)| Metric::new(&format!("chatring_store_{name}"), help, value))
        .collect()
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
