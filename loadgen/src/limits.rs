//! Every bound of the load generator, with its unit last in the name.

use std::time::Duration;

/// Most users of one run: a stamp holds 18 bits of sender.
pub const USERS_MAX: u32 = 1 << 18;
/// Most messages of one user in one run: a stamp holds 30 bits of number.
pub const MESSAGES_PER_USER_MAX: u32 = 1 << 30;
/// Most messages a second of a run; above it the plan's nanoseconds would round too much.
pub const RATE_PER_S_MAX: u32 = 10_000_000;
/// Most messages in flight per user.
pub const WINDOW_MAX: u32 = 256;
/// Longest run, and longest warm-up.
pub const DURATION_S_MAX: u64 = 24 * 3600;
/// Most rounds of `share`.
pub const ROUNDS_MAX: u32 = 1_000;
/// Most threads that carry sessions.
pub const THREADS_MAX: u32 = 16;
/// Sessions of one thread that may be connecting at once while a run starts.
pub const CONNECTS_IN_FLIGHT_MAX: usize = 200;
/// How long one step of a run's start (all connected, all channels open) may make no progress.
pub const START_STALLED: Duration = Duration::from_secs(60);
/// How long minted tokens live: longer than the longest run.
pub const TOKEN_TTL_S: u64 = 3 * 24 * 3600;
/// Largest ready file that is read.
pub const READY_FILE_BYTES_MAX: u64 = 64 * 1024;
/// Longest line of a ledger: a body of 64 KiB and its other fields.
pub const LEDGER_LINE_BYTES_MAX: usize = 66 * 1024;
/// Most lines of all ledgers of one `verify`; they are held in memory.
pub const LEDGER_LINES_MAX: usize = 20_000_000;
/// Users of `verify` who are signed in at once.
pub const READERS_AT_ONCE_MAX: usize = 64;
/// Most differences that are printed one by one.
pub const FINDINGS_PRINTED_MAX: usize = 20;
/// Most stalls that a report prints; all are in the JSON.
pub const STALLS_PRINTED_MAX: usize = 20;
/// A lag of the generator from here on may explain a stall.
pub const LAG_EVIDENCE: Duration = Duration::from_millis(10);
/// Largest log of a node that is read for an explanation.
pub const NODE_LOG_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// A send that the generator makes later than this is late. Sends that wait for the node are not
/// meant: they count in its latencies.
pub const LATE_SEND: Duration = Duration::from_millis(1);
/// The share of late sends above which the generator was the bottleneck: from there on they are in
/// the 99th percentile.
pub const LATE_SENDS_SHARE_MAX: f64 = 0.01;
/// The share of its core above which the generator measures itself.
pub const CPU_PERCENT_HONEST_MAX: f64 = 80.0;
/// Intervals that may wait for a thread that has not spoken of them yet.
pub const PENDING_INTERVALS_MAX: usize = 64;
/// Parts of all threads on their way to be collected.
pub const PARTS_QUEUED_MAX: usize = 64;
/// Most rows of a report's series: the longest run and its warm-up.
pub const SERIES_ROWS_MAX: usize = 180_000;
/// Most steps of a load.
pub const LOAD_STEPS_MAX: usize = 64;
/// Parts of a ramp that are reported by themselves.
pub const RAMP_SECTIONS: u32 = 10;
/// Most CPU time that may be burnt for each message, in microseconds.
pub const BURN_US_MAX: u32 = 1_000_000;
/// Most tries of a search for the knee.
pub const KNEE_STEPS_MAX: usize = 200;
/// Largest report that is read for a comparison: that of the longest run.
pub const REPORT_FILE_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Most connections of a flood: as many as a node takes unless told otherwise.
pub const FLOOD_CONNECTIONS_MAX: u32 = 16_384;
/// Most requests of a flood that are asked for; its time may bring more.
pub const FLOOD_REQUESTS_MAX: u64 = 100_000_000;
