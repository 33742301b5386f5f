//! Every bound of the hybrid disk, with its unit last in the name.

use std::time::Duration;

/// Bytes of a log segment's file: a few for each memtable, so that little stays unused when one is
/// sealed, and seldom enough a new one that preparing it costs nothing.
pub(crate) const SEGMENT_BYTES: u64 = 16 << 20;
/// Bytes before a segment's first record: a page, which no record shares.
pub(crate) const SEGMENT_HEAD_BYTES: u64 = 4096;
/// Segments kept to be written again. Above it they are removed.
pub(crate) const SPARE_SEGMENTS_MAX: usize = 12;
/// Segments found at the opening above which what they hold is ingested before it goes on: each
/// opening begins a new one.
pub(crate) const REPLAYED_SEGMENTS_MAX: usize = 6;
/// Bytes of one record. A group holds 14 MiB of commits at most, but a range clear that it carries
/// may name many keys.
pub(crate) const RECORD_BYTES_MAX: u64 = 1 << 30;
/// Records start at multiples of this, so that those behind a damaged one can be looked for.
pub(crate) const RECORD_ALIGN_BYTES: usize = 8;
/// Bytes of zeros synced at a time when a new segment is filled.
pub(crate) const FILL_SYNC_BYTES: u64 = 256 << 10;
/// Filling pauses after each sync, so that the log's syncs and the shards come between: for this
/// long at most, and in all for no more than this part of the time that the last segment lasted.
pub(crate) const FILL_PAUSE_MAX: Duration = Duration::from_millis(2);
/// See [`FILL_PAUSE_MAX`].
pub(crate) const FILL_PAUSES_DIVISOR: u32 = 8;
/// Bytes of zeros written at a time. A file system that keeps what was written at once as one piece
/// of its cache (ext4 since Linux 6.16) writes that piece again for every record in it.
pub(crate) const FILL_BYTES: usize = 4096;

/// Sealed memtables that may wait to be ingested. At the bound writes wait.
pub(crate) const SEALED_TABLES_MAX: usize = 2;
/// Part of the memtables (the sealed and the active one), or of the fresh runs, above which groups
/// start further apart: who ingests and merges has the core meanwhile, and larger groups leave
/// more of it.
pub(crate) const PAUSE_FROM: f64 = 0.5;
/// How far apart they start when all are full.
pub(crate) const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Bytes of memtables in memory, with those that only a snapshot holds. At the bound writes wait;
/// snapshots are held for 5 s.
pub(crate) const LIVE_BYTES_MAX: u64 = 512 << 20;
/// Memtables that may be in memory however large they are.
pub(crate) const LIVE_TABLES_MIN: usize = 5;
/// Runs of unmerged tables at rest before an ingestion waits; fjall itself never stops one.
pub(crate) const FRESH_RUNS_MAX: usize = 12;
/// Rows of a memtable between two looks whether its ingestion shall end.
pub(crate) const ROWS_PER_LOOK: usize = 4096;
/// Rows that a range takes from a memtable under one lock, at first and at most.
pub(crate) const SCAN_ROWS_MIN: usize = 8;
/// See [`SCAN_ROWS_MIN`].
pub(crate) const SCAN_ROWS_MAX: usize = 256;

/// Bytes given to tables at rest after which what was written of them is synced: many small syncs
/// let the log's come between.
pub(crate) const PACE_BYTES: u64 = 1 << 20;
/// Time between two looks at what a waiting thread waits for, in case nobody wakes it.
pub(crate) const WAIT_POLL: Duration = Duration::from_millis(20);
/// Niceness of the threads that ingest and merge: the shards come first.
pub(crate) const BACKGROUND_NICE: i32 = 19;

const _: () = assert!(FILL_SYNC_BYTES.is_multiple_of(FILL_BYTES as u64));
const _: () = assert!(SCAN_ROWS_MIN <= SCAN_ROWS_MAX);
const _: () = assert!(SEALED_TABLES_MAX < LIVE_TABLES_MIN);
const _: () = assert!(RECORD_BYTES_MAX < u32::MAX as u64);
const _: () = assert!(SEGMENT_HEAD_BYTES.is_multiple_of(RECORD_ALIGN_BYTES as u64));
