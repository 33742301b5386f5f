//! One shard: the users and channels of its vshards, and everything that is said about them.

use std::collections::VecDeque;

use chatring_wire::HistoryId;

use crate::counters::Counters;
use crate::effect::{Effect, Input, Now, ShardId};
use crate::kv::Limits;
use crate::limits::ShardLimits;
use crate::placement::DeploymentKey;

/// What a shard is told at its start.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which shard this is.
    pub shard: ShardId,
    /// How many shards the node has.
    pub shards: u16,
    /// The node's number in its store (0 for the only one).
    pub node: u16,
    /// Unique to this start of the process, never 0: 64 random bits.
    pub incarnation: u64,
    /// 48 random bytes that become the deployment's key and history id if the store is new.
    pub seed: [u8; 48],
    /// The store's limits.
    pub kv: Limits,
    /// The shard's own.
    pub limits: ShardLimits,
}

/// What all shards of a deployment share for ever.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Derives ids.
    pub key: DeploymentKey,
    /// Changes only when a backup is restored.
    pub history: HistoryId,
}

/// The machine of one shard. See the crate's documentation for how to drive it.
#[derive(Debug)]
pub struct Shard {
    effects: VecDeque<Effect>,
    counters: Counters,
    deployment: Option<Deployment>,
}

impl Shard {
    /// A shard that has just started: it reads and claims what it needs before it is ready.
    pub fn new(_now: Now, _config: ShardConfig) -> Shard {
        Shard { effects: VecDeque::new(), counters: Counters::default(), deployment: None }
    }

    /// Takes in what happened at `now`.
    pub fn step(&mut self, _now: Now, _input: Input) {}

    /// The next thing to do; `None` until the next `step`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to step with `Input::Tick` at the latest, on the monotonic clock.
    pub fn deadline_ms(&self) -> Option<u64> {
        None
    }

    /// What ids are derived from; `None` until the shard is ready to attach sessions.
    pub fn deployment(&self) -> Option<&Deployment> {
        self.deployment.as_ref()
    }

    /// Whether nothing is in flight any more (asked after `Input::Drain`).
    pub fn is_drained(&self) -> bool {
        true
    }

    /// What it has counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
