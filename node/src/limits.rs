//! Bounds of the HTTP address and of the server's life cycle, with their unit last in the name.

/// Time that draining may take until the process ends all the same: below the 5 s promised, with
/// room for the store to close.
pub const DRAIN_MS_MAX: u64 = 4_000;
/// Time after which the process ends although the store has not closed: a disk that does not answer
/// must not keep it. Nothing acknowledged is lost by that.
pub const END_MS_MAX: u64 = 4_800;
/// Files that the store and the runtime open at most: tables that are kept open, those being
/// merged, journals, rings.
pub const STORE_FILES_MAX: usize = 1_536;
/// Time in which all shards must accept after the store has opened.
pub const READY_MS_MAX: u64 = 60_000;
/// Time between two looks whether they do.
pub const READY_POLL_MS: u64 = 5;
/// Largest head of an HTTP request.
pub const HTTP_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most headers of an HTTP request.
pub const HTTP_HEADERS_MAX: usize = 64;
/// Time in which the head of an HTTP request must have come, also the time a connection may idle.
pub const HTTP_HEAD_MS_MAX: u64 = 10_000;
/// Life of an HTTP connection; a peer that does not read what it asked for is cut off by it.
pub const HTTP_CONNECTION_MS_MAX: u64 = 300_000;
/// Pause after the listener could not accept (mostly for want of descriptors).
pub const HTTP_ACCEPT_PAUSE_MS: u64 = 100;

/// hyper's own least buffer.
const _: () = assert!(HTTP_HEAD_BYTES_MAX >= 8 * 1024);
const _: () = assert!(DRAIN_MS_MAX < END_MS_MAX && END_MS_MAX < 5_000);
