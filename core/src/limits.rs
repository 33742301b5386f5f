//! Every bound of a shard, with its unit last in the name.

use chatring_wire::limits::FRAME_BYTES_MAX;

/// Bounds and times of a shard that an operator may set; the defaults are meant to stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardLimits {
    /// Clients ping at least this often.
    pub heartbeat_ms: u32,
    /// Pushes that a session may leave unacknowledged.
    pub window_pushes: u32,
    /// Bytes of pushes that a session may leave unacknowledged.
    pub window_bytes: u32,
    /// Largest frame of a client, which the gateway checks and `welcome` tells.
    pub frame_bytes_max: u32,
    /// Sends that a session may have open.
    pub open_sends_max: u32,
    /// Devices that a user may have.
    pub devices_max: u32,
    /// Sessions that a user may have.
    pub sessions_per_user_max: u32,
    /// Sends a second of a user, on average.
    pub sends_per_second: u32,
    /// Sends that a user may make at once after a pause.
    pub sends_burst: u32,
    /// Appends that may wait in the lane.
    pub lane_appends_max: usize,
    /// Bytes of appends that may wait in the lane.
    pub lane_bytes_max: usize,
    /// Channels that a shard keeps in memory; those not used lately give way.
    pub channels_in_memory_max: usize,
    /// Messages of a channel that a repeat is compared with in memory.
    pub recent_max: usize,
    /// Messages that may be under way to another shard.
    pub shard_queue_messages_max: u32,
    /// Time between audits of a live session.
    pub audit_ms: u64,
    /// Calls under way at a shard, parked ones among them; above it they are refused as busy.
    pub calls_max: usize,
    /// Calls of a user that may be under way.
    pub calls_per_user_max: u32,
    /// Users that a shard keeps in memory for a while after their last call.
    pub callers_kept_max: usize,
    /// Events that a user's shard keeps for the user's next syncs.
    pub feed_events_max: usize,
}

impl Default for ShardLimits {
    fn default() -> ShardLimits {
        ShardLimits {
            heartbeat_ms: 30_000,
            window_pushes: 256,
            window_bytes: 256 * 1024,
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            open_sends_max: 256,
            devices_max: 64,
            sessions_per_user_max: 64,
            sends_per_second: 20_000,
            sends_burst: 40_000,
            lane_appends_max: 16_384,
            lane_bytes_max: 16 * 1024 * 1024,
            channels_in_memory_max: 100_000,
            recent_max: 256,
            shard_queue_messages_max: 8_192,
            audit_ms: 120_000,
            calls_max: 65_536,
            calls_per_user_max: 64,
            callers_kept_max: 50_000,
            feed_events_max: 64,
        }
    }
}
