//! Every bound of connections, with its unit last in the name.

use chatring_wire::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};

/// Frames of one connection that are handled before the others get their turn.
pub const FRAMES_PER_CALL_MAX: usize = 64;
/// How long the peer may take to answer our close.
pub const CLOSE_MS_MAX: u64 = 3_000;
/// Connections of a shard that were refused and still have to read why; above it they are closed
/// without a word.
pub const REFUSED_MAX: usize = 256;
/// What the last words to connections may take of a drain.
pub const FAREWELL_MS_MAX: u64 = 1_000;
/// Time between two looks of a thread that waits for shards.
pub const POLL_MS: u64 = 5;
/// Batches for another shard that wait because its inbox is full. The machines' credits keep the
/// messages below; it bounds connections that change their shard, which are refused above it.
pub const HANDOVERS_WAITING_MAX: usize = 4_096;
/// Calls and withdrawals that wait to be carried to one shard; above it calls are refused.
pub const GATHERED_MAX: usize = 8_192;
/// When a call that found no room is worth another try.
pub const CALL_RETRY_MS: u32 = 100;
/// When a connection that found no room on its way to its shard is worth another try.
pub const HANDOVER_RETRY_MS: u32 = 1_000;

/// Bounds of connections that an operator may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayLimits {
    /// Connections in all.
    pub connections_max: usize,
    /// Connections of one address (IPv6: of one /64).
    pub connections_per_ip_max: usize,
    /// Connections that have not said `hello` yet, in all.
    pub handshakes_max: usize,
    /// Connections of one address that have not said `hello` yet.
    pub handshakes_per_ip_max: usize,
    /// Time from the accept to a good `hello`.
    pub handshake_ms_max: u64,
    /// Connections that the kernel holds until they are accepted.
    pub backlog: i32,
    /// Unsent bytes of a connection above which nothing is read from it.
    pub unsent_bytes_high: usize,
    /// Unsent bytes of a connection above which it is closed. As a default there is room for a page
    /// in answer to each request that may be open, and for a whole window of pushes.
    pub unsent_bytes_max: usize,
    /// Largest frame that is taken.
    pub frame_bytes_max: usize,
}

impl Default for GatewayLimits {
    fn default() -> GatewayLimits {
        GatewayLimits {
            connections_max: 100_000,
            connections_per_ip_max: 100_000,
            handshakes_max: 20_000,
            handshakes_per_ip_max: 20_000,
            handshake_ms_max: 10_000,
            backlog: 4_096,
            unsent_bytes_high: 256 * 1024,
            unsent_bytes_max: 5 * 1024 * 1024,
            frame_bytes_max: FRAME_BYTES_MAX,
        }
    }
}

const _: () = assert!(FRAME_BYTES_MAX <= MESSAGE_BYTES_MAX);
