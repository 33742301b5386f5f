//! Every bound of the embedded engine, with its unit last in the name.

use chatring_core::kv::{COMMIT_BYTES_MAX, VERSIONS_PER_SECOND};

/// Commits that may wait for a group, of all submitters together. Above it: `Throttled`.
pub const QUEUE_COMMITS_MAX: usize = 65_536;
/// Bytes of the commits that may wait for a group. Above it: `Throttled`.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// The share of the queue that background commits may take, as a divisor.
pub const QUEUE_BACKGROUND_DIVISOR: usize = 2;
/// Commits of one group.
pub const GROUP_COMMITS_MAX: usize = 4_096;
/// Bytes at which a group is full; one commit of any legal size always fits.
pub const GROUP_BYTES_MAX: usize = 4 << 20;
/// Bytes at which a group takes no further background commit: they always get on, and never make
/// those who wait pay for more than this.
pub const GROUP_BACKGROUND_BYTES_MAX: usize = 256 << 10;
/// Range clears of one group: each looks through the group's rows.
pub const GROUP_CLEARS_MAX: usize = 64;
/// Rows that the range clears of one commit may remove. Above it: `TooLarge`.
pub const CLEAR_ROWS_MAX: usize = 1_000_000;
/// Commits of one lane that may be in flight at once.
pub const LANE_COMMITS_MAX: usize = 4;
/// Bytes that a commit should aim at: FoundationDB's sweet spot.
pub const COMMIT_BYTES_TARGET: usize = 64 << 10;

/// Reads that may wait for a reader. Above it: `Throttled`.
pub const QUEUE_READS_MAX: usize = 8_192;
/// Reads that one reader takes from the queue at once; their answers travel together.
pub const READS_PER_PASS_MAX: usize = 64;
/// Threads that read. Two: one may wait for a disk while the other serves from memory.
pub const READER_THREADS: usize = 2;
/// Snapshots held for `At(v)` reads, beside the published one.
pub const SNAPSHOTS_HELD_MAX: usize = 4_096;

/// How long the resolver remembers a write, in versions (5 s).
pub const RESOLVER_WINDOW_VERSIONS: u64 = 5 * VERSIONS_PER_SECOND;
/// Writes to single keys that the resolver remembers. Full: it forgets the oldest.
pub const RESOLVER_KEYS_MAX: usize = 1 << 20;
/// Bytes of keys that the resolver remembers. Full: it forgets the oldest.
pub const RESOLVER_BYTES_MAX: usize = 64 << 20;
/// Range clears that the resolver remembers. Full: it forgets the oldest.
pub const RESOLVER_RANGES_MAX: usize = 4_096;
/// Single keys that the resolver has at hand because commits ask about them; a node asks about a
/// fence for each of its cores. Full: it begins anew.
pub const RESOLVER_WATCHED_MAX: usize = 1_024;

/// Time between two looks at the health of the disk, in milliseconds.
pub const WATCH_INTERVAL_MS: u64 = 250;
/// Most bytes kept free for the disk's own work (tables being merged, journals).
pub const RESERVE_BYTES_DEFAULT: u64 = 256 << 20;
/// The reserve is at most this share of the file system, as a divisor, so that a small one works.
pub const RESERVE_DIVISOR: u64 = 16;
/// After room was short, so much of the reserve must be free above it, as a divisor, until there is
/// room again: a disk at the edge does not change its state with every look.
pub const HYSTERESIS_DIVISOR: u64 = 8;

/// First byte of the keys that the engine keeps for itself; FoundationDB keeps it, too.
pub const SYSTEM_KEY_PREFIX: u8 = 0xff;

const _: () = assert!(GROUP_BYTES_MAX < QUEUE_BYTES_MAX);
const _: () = assert!(COMMIT_BYTES_MAX < QUEUE_BYTES_MAX / QUEUE_BACKGROUND_DIVISOR);
const _: () = assert!(GROUP_BACKGROUND_BYTES_MAX < GROUP_BYTES_MAX);
const _: () = assert!(READS_PER_PASS_MAX < QUEUE_READS_MAX);
