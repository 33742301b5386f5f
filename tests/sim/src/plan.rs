//! What a seed stands for: how large the world is and what goes wrong in it.

use chatring_core::kv::Limits;
use chatring_core::kv::faulty::{FaultKind, FaultRates};
use chatring_core::kv::prng::Prng;
use chatring_core::limits::ShardLimits;
use chatring_core::sabotage::Breaks;

/// Whether the store dies with the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreLife {
    /// As the embedded store: in the same process.
    WithNode,
    /// As a cluster: commits of a dead node may still land.
    Apart,
}

/// Everything that a run draws from its seed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// What is broken on purpose.
    pub breaks: Breaks,
    /// Shards of the node.
    pub shards: u16,
    /// Users.
    pub users: usize,
    /// Most devices of a user.
    pub devices_max: usize,
    /// Channels that one user has beside the others, stored before the run.
    pub old_channels: usize,
    /// Whether the store dies with the node.
    pub store_life: StoreLife,
    /// Faults of the store.
    pub faults: FaultRates,
    /// Messages after which the faults end.
    pub messages: u64,
    /// Milliseconds between actions of one device, on average.
    pub action_ms: u64,
    /// Per mille of actions that cut the connection, stall it, take the device away, restart it.
    pub cut: u16,
    /// See `cut`.
    pub stall: u16,
    /// See `cut`.
    pub away: u16,
    /// See `cut`.
    pub restart: u16,
    /// Milliseconds between crashes of the node, on average; 0 for none.
    pub crash_ms: u64,
    /// Milliseconds between jumps of the wall clock, on average; 0 for none.
    pub clock_ms: u64,
    /// Whether everybody leaves in the middle of the run, and for how long.
    pub absence_ms: u64,
    /// Clients that poll.
    pub pollers: usize,
    /// Per mille of answers to calls that get lost.
    pub call_loss: u16,
    /// Per mille of a poller's actions that take its cursor to a connection.
    pub call_change: u16,
    /// Bounds of the shards.
    pub limits: ShardLimits,
}

const HOUR_MS: u64 = 3_600_000;

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, breaks: Breaks) -> Plan {
        let mut dice = Prng::new(seed ^ 0x5eed_0000);
        let mut faults = FaultRates::none();
        for kind in FaultKind::ALL {
            if dice.happens(700) {
                faults = faults.with(kind, 1 + dice.below(20) as u16);
            }
        }
        // Every run meets a few kinds whatever was drawn.
        faults = faults.with(FaultKind::UnknownLate, 4 + dice.below(20) as u16);
        faults = faults.with(FaultKind::SlowCommit, 4 + dice.below(20) as u16);
        faults.delay_ms_max = 1 + dice.below(200);
        faults.late_ms_max = 10 + dice.below(3_000);
        let apart = dice.happens(400);
        // Drawn apart, so that the rest of a seed is the same with and without them.
        let mut for_calls = Prng::new(seed ^ 0xca11_0000);
        let has_pollers = for_calls.happens(600);
        let limits = ShardLimits {
            heartbeat_ms: 5_000,
            window_pushes: 8 + dice.below(60) as u32,
            window_bytes: 1_024 + dice.below(8_192) as u32,
            sends_per_second: if dice.happens(300) { 200 } else { 20_000 },
            sends_burst: if dice.happens(300) { 5 } else { 40_000 },
            lane_appends_max: if dice.happens(300) { 6 } else { 16_384 },
            channels_in_memory_max: 2 + dice.below(30) as usize,
            shard_queue_messages_max: if dice.happens(300) {
                2 + dice.below(20) as u32
            } else {
                8_192
            },
            recent_max: 2 + dice.below(12) as usize,
            audit_ms: 1_000 + dice.below(8_000),
            ..ShardLimits::default()
        };
        Plan {
            seed,
            breaks,
            shards: 2 + dice.below(3) as u16,
            users: 4 + dice.below(5) as usize,
            devices_max: 1 + dice.below(3) as usize,
            old_channels: if dice.happens(60) { 520 + dice.below(900) as usize } else { 0 },
            store_life: if apart { StoreLife::Apart } else { StoreLife::WithNode },
            faults,
            messages: 2_050,
            action_ms: 10 + dice.below(60),
            cut: dice.below(25) as u16,
            stall: dice.below(20) as u16,
            away: dice.below(12) as u16,
            restart: dice.below(8) as u16,
            crash_ms: if dice.happens(800) { 1_500 + dice.below(8_000) } else { 0 },
            clock_ms: if dice.happens(500) { 2_000 + dice.below(5_000) } else { 0 },
            absence_ms: match dice.below(10) {
                0 => HOUR_MS,
                1 => 365 * 24 * HOUR_MS,
                2 => 30_000,
                _ => 0,
            },
            pollers: if has_pollers { 1 + for_calls.below(4) as usize } else { 0 },
            call_loss: 10 + for_calls.below(120) as u16,
            call_change: for_calls.below(20) as u16,
            limits: ShardLimits {
                feed_events_max: 1 + for_calls.below(64) as usize,
                callers_kept_max: if for_calls.happens(300) { 1 } else { 50_000 },
                ..limits
            },
        }
    }

    /// What shards are told about the store.
    pub fn store_limits(&self, limits: Limits) -> Limits {
        // Small groups, so that a run has many of them in flight.
        Limits { commit_bytes_target: 1_024, ..limits }
    }
}
