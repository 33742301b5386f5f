//! The start of a shard: learn (or make) the deployment, claim the core's fence, read it back.

use chatring_wire::HistoryId;

use crate::effect::FatalCause;
use crate::keys;
use crate::kv::{
    Class, Commit, KeyRange, LaneId, Outcome, Read, ReadVersion, Request, Rows, Write,
};
use crate::lane::{Lane, LaneConfig};
use crate::placement::DeploymentKey;
use crate::shard::{Asker, Deployment, Shard};
use crate::timers::Timer;
use crate::values::{DeploymentRow, FenceRow, StoreIncarnation, ValueError};

/// Pause before a claim that failed is looked at again.
const RETRY_MS: u64 = 20;
/// The incarnation of a store that was never moved.
const FIRST_STORE: StoreIncarnation = StoreIncarnation(1);

/// How far the start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boot {
    /// The deployment and the fence are read, since this monotonic time.
    Reading {
        /// When the read was submitted.
        since_ms: u64,
    },
    /// The deployment, the fence or both are written.
    Writing,
    /// The shard runs.
    Done,
}

impl Shard {
    /// Reads the deployment and the fence; the rest follows from what is there.
    pub(crate) fn start_boot(&mut self) {
        self.boot = Boot::Reading { since_ms: self.now.mono_ms };
        let fence = keys::fence(self.config.node, self.config.shard.0);
        let read = Read {
            gets: vec![keys::deployment(), fence],
            ranges: Vec::new(),
            version: ReadVersion::Fresh,
        };
        self.read(Asker::Boot, read);
    }

    pub(crate) fn boot_rows(&mut self, rows: Rows) {
        let [deployment, fence] = rows.gets.as_slice() else {
            self.fatal(FatalCause::Damaged(ValueError::Damaged));
            return;
        };
        let deployment = deployment.clone().map(DeploymentRow::decode);
        let fence = fence.clone().map(FenceRow::decode);
        let (Ok(deployment), Ok(fence)) = (deployment.transpose(), fence.transpose()) else {
            self.fatal(FatalCause::Damaged(ValueError::Damaged));
            return;
        };
        let claimed = fence.is_some_and(|fence| fence.incarnation == self.config.incarnation);
        match deployment {
            Some(row) if claimed => {
                self.deployment = Some(Deployment {
                    key: DeploymentKey::new(&row.key),
                    history: row.history,
                    store: row.incarnation,
                });
                self.lane = Some(self.make_lane(row.incarnation, &rows));
                self.boot = Boot::Done;
            }
            row => self.claim(row.is_none(), &rows),
        }
    }

    /// Whatever became of the claim: what is stored tells.
    pub(crate) fn boot_committed(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Committed(_) => self.start_boot(),
            _ => {
                self.timers.set(self.now.mono_ms + RETRY_MS, Timer::Boot);
            }
        }
    }

    fn claim(&mut self, new_store: bool, rows: &Rows) {
        self.boot = Boot::Writing;
        let (node, core) = (self.config.node, self.config.shard.0);
        let mut commit = Commit {
            lane: None,
            class: Class::Interactive,
            read_version: Some(rows.version),
            conflicts: vec![KeyRange::key(&keys::fence(node, core))],
            writes: vec![Write::Set {
                key: keys::fence(node, core),
                value: FenceRow { incarnation: self.config.incarnation, writes: 0 }.encode(),
            }],
        };
        if core == 0 {
            let gone = keys::fences_from(node, self.config.shards);
            commit.writes.push(Write::ClearRange(gone));
        }
        if new_store {
            let (key, history) = self.config.seed.split_at(32);
            let row = DeploymentRow {
                incarnation: FIRST_STORE,
                history: HistoryId(u64::from_be_bytes(history.try_into().expect("8 bytes"))),
                key: key.try_into().expect("32 bytes"),
            };
            commit.conflicts.push(KeyRange::key(&keys::deployment()));
            commit.writes.push(Write::Set { key: keys::deployment(), value: row.encode() });
        }
        self.submit_once(Asker::Boot, Request::Commit(commit));
    }

    fn make_lane(&self, store: StoreIncarnation, rows: &Rows) -> Lane<crate::shard::Tag> {
        let (node, core) = (self.config.node, self.config.shard.0);
        let config = LaneConfig {
            id: LaneId(core),
            fence: keys::fence(node, core),
            journal: keys::journal(node, core, 0),
            store,
            incarnation: self.config.incarnation,
            kv: self.config.kv,
            appends_max: self.config.limits.lane_appends_max,
            bytes_max: self.config.limits.lane_bytes_max,
            breaks: self.config.breaks,
        };
        let read_ms = match self.boot {
            Boot::Reading { since_ms } => since_ms,
            Boot::Writing | Boot::Done => self.now.mono_ms,
        };
        Lane::new(config, rows.version, read_ms)
    }
}
