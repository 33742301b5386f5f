//! Every bound and time of a client session, with its unit last in the name.

/// Messages of a channel that are kept by default: a few screens.
pub const ROWS_KEPT_DEFAULT: usize = 200;
/// Sends that may wait in the outbox by default.
pub const OUTBOX_ENTRIES_DEFAULT: usize = 4096;
/// Bytes of bodies that may wait in the outbox by default.
pub const OUTBOX_BYTES_DEFAULT: usize = 16 * 1024 * 1024;
/// Requests of the application (`open`, `read`, `members`) that may be open at once.
pub const ASKS_MAX: usize = 256;
/// Requests that repair gaps under way at once, over all channels.
pub const FILLS_MAX: usize = 4;
/// Messages of a channel that are held above a gap; more are dropped and read again.
pub const HELD_ROWS_MAX: usize = 512;
/// An `ack` is sent after this many pushes: a quarter of the server's default window.
pub const ACK_PUSHES: u64 = 64;
/// An `ack` is sent after this many bytes of bodies: a quarter of the default window.
pub const ACK_BYTES: u64 = 64 * 1024;
/// An `ack` is sent this long after the first push that it covers.
pub const ACK_DELAY_MS: u64 = 1_000;
/// No `welcome` for so long: the connection is given up.
pub const WELCOME_MS_MAX: u64 = 10_000;
/// A request without an answer for so long: the connection is given up. The server answers a send
/// after 10 s at the latest.
pub const ANSWER_MS_MAX: u64 = 30_000;
/// How long a hole is left to the answer of an own open send that may fill it, before it is read.
pub const GAP_PATIENCE_MS: u64 = 250;
/// First pause after a failed attempt to connect; it doubles.
pub const BACKOFF_MS_MIN: u64 = 200;
/// Longest pause between attempts by default.
pub const BACKOFF_MS_MAX: u64 = 10_000;
/// Width of the spread of a reconnect that the server asked for "now".
pub const RECONNECT_SPREAD_MS: u64 = 100;
/// First pause before a send goes out again that came back twice; it doubles.
pub const RETRY_MS_MIN: u64 = 100;
/// Pause before a retry of something refused for now that the server gave no time for.
pub const RETRY_MS_DEFAULT: u64 = 500;
/// Longest pause before a retry, whatever the server says.
pub const RETRY_MS_MAX: u64 = 60_000;
/// Channels that pushes named before any sync did; more are left to the sync.
pub const STRANGERS_MAX: usize = 4096;
/// A connection that used this many request numbers is replaced by a new one.
pub const REQUEST_MAX: u32 = u32::MAX - 65_536;
/// Positions at or above this are none: JSON could not carry them, and sums have room.
pub const SEQ_MAX: u64 = chatring_wire::limits::JSON_NUMBER_MAX;

const _: () = assert!(ACK_PUSHES > 0 && BACKOFF_MS_MIN <= BACKOFF_MS_MAX);
const _: () = assert!(RETRY_MS_MIN <= RETRY_MS_MAX);
const _: () = assert!(HELD_ROWS_MAX >= chatring_wire::limits::ROWS_PER_FRAME_MAX);
