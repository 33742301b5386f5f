//! Bounds of the server's life cycle, with their unit last in the name.

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
const _: () = assert!(DRAIN_MS_MAX < END_MS_MAX && END_MS_MAX < 5_000);
