//! Every bound of links, with its unit last in the name.

use chatring_wire::link::{ARCHIVE_BYTES_MAX, HEADER_BYTES, TAG_BYTES};

/// Links that a node keeps, those that shake hands among them; further ones are closed.
pub const LINKS_MAX: usize = 64;
/// Time for a connection and for the handshake, for each.
pub const HANDSHAKE_MS_MAX: u64 = 5_000;
/// An API server that has heard nothing for so long asks whether the node lives.
pub const PING_MS: u64 = 2_000;
/// A link on which nothing has come for so long is closed, by either side.
pub const SILENCE_MS_MAX: u64 = 10_000;
/// Unsent bytes of a link above which an API server refuses calls as busy, and a node reads no
/// further ones.
pub const UNSENT_BYTES_HIGH: usize = 4 * 1024 * 1024;
/// Unsent bytes of a link above which a node closes it: the answers to calls that were taken before
/// still come. Enough for several of the longest.
pub const UNSENT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes that are read at once.
pub const READ_BYTES: usize = 64 * 1024;
/// First and longest pause before another attempt to connect; it doubles between them.
pub const RETRY_MS_MIN: u64 = 50;
/// See [`RETRY_MS_MIN`].
pub const RETRY_MS_MAX: u64 = 2_000;
/// When a call that found no link is worth another try.
pub const RETRY_AFTER_MS: u32 = 1_000;
/// When a call that found no room is.
pub const BUSY_RETRY_MS: u32 = 100;
/// Time that a draining node gives the calls of a link.
pub const DRAIN_MS_MAX: u64 = 3_000;
/// Pause after the listener could not accept (mostly for want of descriptors).
pub const ACCEPT_PAUSE_MS: u64 = 100;

const _: () = assert!(2 * (ARCHIVE_BYTES_MAX + HEADER_BYTES + TAG_BYTES) < UNSENT_BYTES_MAX);
const _: () = assert!(UNSENT_BYTES_HIGH < UNSENT_BYTES_MAX);
const _: () = assert!(2 * PING_MS < SILENCE_MS_MAX);
const _: () = assert!(RETRY_MS_MIN < RETRY_MS_MAX);
