//! Bounds of accounts, with their unit last in the name.

use std::time::Duration;

/// Shortest handle.
pub const HANDLE_CHARS_MIN: usize = 2;
/// Longest handle.
pub const HANDLE_CHARS_MAX: usize = 32;
/// Longest text that is looked at as a handle.
pub const HANDLE_BYTES_MAX: usize = 256;
/// Shortest password.
pub const PASSWORD_CHARS_MIN: usize = 8;
/// Longest password.
pub const PASSWORD_BYTES_MAX: usize = 512;
/// Longest display name.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest reference to an avatar.
pub const AVATAR_BYTES_MAX: usize = 512;
/// Longest status text.
pub const STATUS_BYTES_MAX: usize = 512;
/// Longest label of a device.
pub const LABEL_BYTES_MAX: usize = 128;
/// Most settings of a user, written as JSON.
pub const SETTINGS_BYTES_MAX: usize = 16 * 1024;
/// Longest key of a request that may be repeated.
pub const RETRY_KEY_BYTES_MAX: usize = 256;
/// Longest refresh token that is looked at.
pub const REFRESH_TOKEN_BYTES_MAX: usize = 256;
/// Devices of a user, as the chat store counts them; beyond it the one not seen for longest goes.
pub const DEVICES_MAX: usize = 64;
/// Devices of a user that are remembered, removed ones among them.
pub const DEVICE_ROWS_MAX: usize = 1_024;
/// Users whom one may have asked for friendship, friends among them.
pub const FRIENDS_MAX: usize = 5_000;
/// Open requests for friendship that one may have received.
pub const REQUESTS_MAX: usize = 1_000;
/// Users whom one may have blocked.
pub const BLOCKS_MAX: usize = 5_000;
/// Requests for friendship and blocks of a user at once, and how many come back in a minute.
pub const RELATION_CHANGES_BURST: u32 = 100;
/// See [`RELATION_CHANGES_BURST`].
pub const RELATION_CHANGES_PER_MINUTE: u32 = 30;
/// Rows of one page of a list.
pub const PAGE_ROWS_MAX: usize = 200;
/// Profiles that are read at once.
pub const PROFILES_MAX: usize = 200;
/// Keys that each limiter remembers for sure; up to twice as many are in memory.
pub const LIMITER_KEYS_MAX: usize = 32_768;
/// Largest number of rows that one step of a deletion removes.
pub const DELETE_ROWS_MAX: usize = 500;
/// Rows of the outbox that are given at once.
pub const PROJECTIONS_MAX: usize = 256;
/// Attempts of a task before it goes to the dead letters.
pub const TASK_ATTEMPTS_MAX: u32 = 12;
/// Time before the second attempt of a task; it doubles with each one.
pub const TASK_RETRY_MS: u64 = 1_000;
/// Longest time between two attempts of a task.
pub const TASK_RETRY_MS_MAX: u64 = 3_600_000;
/// Tasks that are begun in one look.
pub const TASKS_PER_LOOK_MAX: usize = 16;
/// Time for which a task belongs to who has begun it.
pub const TASK_LEASE_MS: u64 = 60_000;
/// Attempts of a transaction that others got in the way of.
pub const TRANSACTION_ATTEMPTS_MAX: u32 = 12;
/// First pause between two attempts of a transaction; it doubles, and half of it is chance.
pub const TRANSACTION_PAUSE_MS: u64 = 2;
/// Longest pause between two attempts of a transaction.
pub const TRANSACTION_PAUSE_MS_MAX: u64 = 200;
/// Time in which the database must give a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a statement of PostgreSQL may take.
pub const STATEMENT_MS_MAX: u64 = 10_000;
/// Time in which the database must answer to count as there.
pub const ANSWER: Duration = Duration::from_secs(2);
/// Time between two looks for what other processes have revoked.
pub const REVOCATIONS_LOOK: Duration = Duration::from_millis(400);
/// How far the clocks of processes that share a database may be apart, for revocations.
pub const CLOCK_SKEW_MS_MAX: u64 = 60_000;
/// Time between two looks for tasks and rows to clear away.
pub const TASKS_LOOK: Duration = Duration::from_secs(1);
/// What an answer "busy" asks to wait.
pub const BUSY_RETRY_MS: u64 = 1_000;
/// Time that closing waits for the last connection.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

const _: () = assert!(DEVICES_MAX < DEVICE_ROWS_MAX);
const _: () = assert!(HANDLE_CHARS_MAX * 4 <= HANDLE_BYTES_MAX);
const _: () = assert!(TASK_RETRY_MS < TASK_RETRY_MS_MAX);
