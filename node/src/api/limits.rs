//! Every bound of HTTP requests and connections, with its unit last in the name.

use std::time::Duration;

use chatring_wire::limits::{BODY_BYTES_MAX, MESSAGE_BYTES_MAX};

/// Largest body of a request, as large as a message of the WebSocket.
pub const HTTP_BODY_BYTES_MAX: usize = MESSAGE_BYTES_MAX;
/// Bodies that are being read, in all: a flood of large ones takes no more memory than this.
pub const HTTP_BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Time in which the body of a request must have come.
pub const HTTP_BODY_MS_MAX: u64 = 10_000;
/// Time in which the first bytes of a connection must have come.
pub const HTTP_FIRST_MS_MAX: u64 = 10_000;
/// Time in which the head of a request must have come, also the time that a connection may idle
/// (with HTTP/2 up to twice as long).
pub const HTTP_HEAD_MS_MAX: u64 = 30_000;
/// Time for which a peer may take nothing of what is written to it.
pub const HTTP_STALL_MS_MAX: u64 = 10_000;
/// Largest head of a request.
pub const HTTP_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most headers of a request.
pub const HTTP_HEADERS_MAX: usize = 64;
/// Requests that one connection of HTTP/2 may have under way.
pub const HTTP2_STREAMS_MAX: u32 = 64;
/// Bytes of bodies that one connection of HTTP/2 may send ahead, in all and of each request.
pub const HTTP2_WINDOW_BYTES: u32 = 64 * 1024;
/// Bytes of answers that one request of HTTP/2 may have waiting.
pub const HTTP2_SEND_BYTES_MAX: usize = 64 * 1024;
/// A quiet connection of HTTP/2 is pinged this often, and must answer in that time, too.
pub const HTTP2_PING_MS: u64 = 20_000;
/// Requests that wait for news (long polls and streams of events) at a time.
pub const HTTP_PARKED_MAX: usize = 16_384;
/// Exports of everything under way at a time, one of each user.
pub const HTTP_EXPORTS_MAX: usize = 16;
/// Time that an export may take.
pub const HTTP_EXPORT_MS_MAX: u64 = 3_600_000;
/// Connections from the address of the WebSocket that wait for the service thread; further ones are
/// closed.
pub const HTTP_HANDED_MAX: usize = 4_096;
/// Time in which the database of the accounts must have closed at the end.
pub const ACCOUNTS_CLOSE_MS_MAX: u64 = 300;
/// Pause after the listener could not accept (mostly for want of descriptors).
pub const HTTP_ACCEPT_PAUSE_MS: u64 = 100;
/// When a request that was refused as busy is worth another try, where nothing better is known.
pub const RETRY_AFTER_MS: u64 = 1_000;
/// Networks whose bad tokens are counted; twice as many for a short time.
pub const BAD_TOKENS_NETWORKS_MAX: usize = 32_768;
/// Good tokens that are remembered, so that a kept-alive client's is verified once; twice as many
/// for a short time.
pub const TOKENS_KEPT_MAX: usize = 8_192;
/// Changes of the accounts that the chat store is asked to take over at once.
pub const PROJECTIONS_AT_ONCE: usize = 32;
/// Time in which it must have taken one over.
pub const PROJECTION_TIME_MAX: Duration = Duration::from_secs(8);
/// Time for which a change belongs to who has taken it; then it is given again.
pub const PROJECTION_LEASE: Duration = Duration::from_secs(20);
/// Time between two looks for changes that other processes have written, or have failed to carry
/// out.
pub const PROJECTION_LOOK: Duration = Duration::from_millis(500);
/// Time that the loop leaves to whoever has written a change and carries it out itself.
pub const PROJECTION_GRACE: Duration = Duration::from_millis(50);
/// Pause after a change was not taken over.
pub const PROJECTION_PAUSE: Duration = Duration::from_millis(500);
/// How long a browser may remember what another origin may do.
pub const CORS_AGE_S: u64 = 3_600;

const _: () = assert!(PROJECTION_TIME_MAX.as_millis() < PROJECTION_LEASE.as_millis());
/// hyper's own least buffer.
const _: () = assert!(HTTP_HEAD_BYTES_MAX >= 8 * 1024);
/// The longest message in base64 fits, and so does one that is escaped as JSON allows at least.
const _: () = assert!(HTTP_BODY_BYTES_MAX >= 2 * BODY_BYTES_MAX);
const _: () = assert!(HTTP_BODIES_BYTES_MAX >= 16 * HTTP_BODY_BYTES_MAX);
