//! What the engine counts.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use chatring_core::kv::Class;

/// Upper bounds of the buckets of [`StoreMetrics::write_us_buckets`], in microseconds; one more
/// bucket holds what is above the last. From a fast drive's sync (100 µs) to a stall of a second.
pub const WRITE_US_BOUNDS: [u64; 13] = [
    100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000,
];

/// The engine's figures at one moment. Counts run from the opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreMetrics {
    /// Groups that are durable.
    pub groups: u64,
    /// Commits in them.
    pub commits: u64,
    /// Rows written by them, range clears counted by row.
    pub rows: u64,
    /// Bytes of the commits in them.
    pub bytes: u64,
    /// Commits that answered `Conflict`.
    pub conflicts: u64,
    /// Commits and reads that answered `TooOld`.
    pub too_old: u64,
    /// Commits and reads that answered `Throttled` because a queue was full.
    pub throttled: u64,
    /// Commits that answered `Unavailable`, mostly for want of room.
    pub unavailable: u64,
    /// Commits that answered `LaneStopped`.
    pub lane_stopped: u64,
    /// Reads served.
    pub reads: u64,
    /// Rows that they gave.
    pub rows_read: u64,
    /// Reads that failed at the disk.
    pub read_errors: u64,
    /// Sum of the times that writing and syncing a group took, in microseconds.
    pub write_us_sum: u64,
    /// Groups by that time; see [`WRITE_US_BOUNDS`].
    pub write_us_buckets: [u64; WRITE_US_BOUNDS.len() + 1],
    /// Commits waiting for a group.
    pub queued_commits: usize,
    /// Bytes of the commits waiting for a group.
    pub queued_bytes: usize,
    /// Reads waiting for a reader.
    pub queued_reads: usize,
    /// Snapshots held for reads at a version.
    pub snapshots_held: usize,
    /// Writes that the resolver remembers.
    pub resolver_writes: usize,
    /// Bytes that the file system has free.
    pub free_bytes: u64,
    /// Bytes that are kept free.
    pub reserve_bytes: u64,
    /// Segments of the log with records, or ready for them.
    pub log_segments: usize,
    /// Segments of the log kept to be written again.
    pub log_spares: usize,
    /// Bytes of the memtable that takes records.
    pub memtable_bytes: u64,
    /// Memtables that wait to be ingested.
    pub sealed_tables: usize,
    /// Runs of tables at rest that are not merged yet, as of a quarter of a second ago.
    pub fresh_runs: usize,
    /// How far apart groups start at least so that memtables are ingested in time, in microseconds.
    pub pause_us: u64,
    /// Memtables ingested.
    pub ingestions: u64,
    /// Bytes of their rows.
    pub ingested_bytes: u64,
    /// Sum of the times that ingesting took, in microseconds.
    pub ingestion_us: u64,
    /// Writes that had to wait for a memtable to be ingested, or for a segment.
    pub stalls: u64,
    /// Sum of those waits, in microseconds.
    pub stall_us: u64,
}

/// The live counters, written by the engine's threads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub groups: AtomicU64,
    pub commits: AtomicU64,
    pub rows: AtomicU64,
    pub bytes: AtomicU64,
    pub conflicts: AtomicU64,
    pub too_old: AtomicU64,
    pub throttled: AtomicU64,
    pub unavailable: AtomicU64,
    pub lane_stopped: AtomicU64,
    pub reads: AtomicU64,
    pub rows_read: AtomicU64,
    pub read_errors: AtomicU64,
    pub write_us_sum: AtomicU64,
    pub write_us_buckets: [AtomicU64; WRITE_US_BOUNDS.len() + 1],
    pub queued_commits: AtomicUsize,
    pub queued_bytes: AtomicUsize,
    pub queued_background: AtomicUsize,
    pub queued_background_bytes: AtomicUsize,
    pub resolver_writes: AtomicUsize,
    pub free_bytes: AtomicU64,
    pub reserve_bytes: AtomicU64,
    pub log_segments: AtomicUsize,
    pub log_spares: AtomicUsize,
    pub memtable_bytes: AtomicU64,
    pub sealed_tables: AtomicUsize,
    pub fresh_runs: AtomicUsize,
    pub pause_us: AtomicU64,
    pub ingestions: AtomicU64,
    pub ingested_bytes: AtomicU64,
    pub ingestion_us: AtomicU64,
    pub stalls: AtomicU64,
    pub stall_us: AtomicU64,
}

impl Counters {
    /// Adds one.
    pub(crate) fn bump(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// A commit of a class waits.
    pub(crate) fn queue_add(&self, class: Class, bytes: usize) {
        self.queued_commits.fetch_add(1, Relaxed);
        self.queued_bytes.fetch_add(bytes, Relaxed);
        if class == Class::Background {
            self.queued_background.fetch_add(1, Relaxed);
            self.queued_background_bytes.fetch_add(bytes, Relaxed);
        }
    }

    /// A commit of a class waits no longer.
    pub(crate) fn queue_remove(&self, class: Class, bytes: usize) {
        self.queued_commits.fetch_sub(1, Relaxed);
        self.queued_bytes.fetch_sub(bytes, Relaxed);
        if class == Class::Background {
            self.queued_background.fetch_sub(1, Relaxed);
            self.queued_background_bytes.fetch_sub(bytes, Relaxed);
        }
    }

    /// Commits that wait, and their bytes.
    pub(crate) fn queued(&self) -> (usize, usize) {
        (self.queued_commits.load(Relaxed), self.queued_bytes.load(Relaxed))
    }

    /// Background commits that wait, and their bytes.
    pub(crate) fn queued_background(&self) -> (usize, usize) {
        (self.queued_background.load(Relaxed), self.queued_background_bytes.load(Relaxed))
    }

    /// Takes down how long a group's write took.
    pub(crate) fn wrote(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = WRITE_US_BOUNDS.partition_point(|bound| *bound < micros);
        Counters::bump(&self.write_us_buckets[bucket]);
        self.write_us_sum.fetch_add(micros, Relaxed);
    }

    /// A write had to wait.
    pub(crate) fn stalled(&self, waited: Duration) {
        Counters::bump(&self.stalls);
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.stall_us.fetch_add(micros, Relaxed);
    }

    /// The figures of now, without those that live elsewhere.
    pub(crate) fn read(&self) -> StoreMetrics {
        StoreMetrics {
            groups: self.groups.load(Relaxed),
            commits: self.commits.load(Relaxed),
            rows: self.rows.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            conflicts: self.conflicts.load(Relaxed),
            too_old: self.too_old.load(Relaxed),
            throttled: self.throttled.load(Relaxed),
            unavailable: self.unavailable.load(Relaxed),
            lane_stopped: self.lane_stopped.load(Relaxed),
            reads: self.reads.load(Relaxed),
            rows_read: self.rows_read.load(Relaxed),
            read_errors: self.read_errors.load(Relaxed),
            write_us_sum: self.write_us_sum.load(Relaxed),
            write_us_buckets: self.write_us_buckets.each_ref().map(|count| count.load(Relaxed)),
            queued_commits: self.queued_commits.load(Relaxed),
            queued_bytes: self.queued_bytes.load(Relaxed),
            queued_reads: 0,
            snapshots_held: 0,
            resolver_writes: self.resolver_writes.load(Relaxed),
            free_bytes: self.free_bytes.load(Relaxed),
            reserve_bytes: self.reserve_bytes.load(Relaxed),
            log_segments: self.log_segments.load(Relaxed),
            log_spares: self.log_spares.load(Relaxed),
            memtable_bytes: self.memtable_bytes.load(Relaxed),
            sealed_tables: self.sealed_tables.load(Relaxed),
            fresh_runs: self.fresh_runs.load(Relaxed),
            pause_us: self.pause_us.load(Relaxed),
            ingestions: self.ingestions.load(Relaxed),
            ingested_bytes: self.ingested_bytes.load(Relaxed),
            ingestion_us: self.ingestion_us.load(Relaxed),
            stalls: self.stalls.load(Relaxed),
            stall_us: self.stall_us.load(Relaxed),
        }
    }
}
