//! The engine as one shard sees it.

use std::sync::Arc;
use std::time::Instant;

use chatring_core::kv::checks::Fit;
use chatring_core::kv::{Commit, Completion, Kv, LaneId, Limits, Outcome, Read, Request, Ticket};
use chatring_wire::frame::Durability;
use rustc_hash::FxHashSet;

use super::limits::{COMMIT_BYTES_TARGET, LANE_COMMITS_MAX};
use super::metrics::Counters;
use super::queue::{PendingCommit, PendingRead, Queues, Submitter};
use super::system::{commit_bytes, is_read_in_bounds};

/// One submitter's end of an embedded store.
///
/// Completions go to its sink: from the engine's threads, those of one group in one call; and from
/// within `submit` for a request that is refused at once (a full queue, a read above a bound, a
/// closed store). The sink must not block for ever, nor call back into the handle.
pub struct EmbeddedHandle {
    submitter: Submitter,
    queues: Arc<Queues>,
    counters: Arc<Counters>,
    /// Lanes of which a commit was refused here, before it came into the queue.
    stopped: FxHashSet<LaneId>,
    /// Lanes resumed since their last commit: the next commit carries the word.
    resumed: FxHashSet<LaneId>,
}

impl EmbeddedHandle {
    pub(crate) fn new(
        submitter: Submitter,
        queues: Arc<Queues>,
        counters: Arc<Counters>,
    ) -> EmbeddedHandle {
        let (stopped, resumed) = (FxHashSet::default(), FxHashSet::default());
        EmbeddedHandle { submitter, queues, counters, stopped, resumed }
    }

    fn submit_commit(&mut self, commit: Commit, ticket: Ticket) -> Result<(), Outcome> {
        let lane = commit.lane;
        if lane.is_some_and(|lane| self.stopped.contains(&lane)) {
            Counters::bump(&self.counters.lane_stopped);
            return Err(Outcome::LaneStopped);
        }
        let refused = self.queue_commit(commit, ticket);
        if refused.is_err() {
            self.stopped.extend(lane);
        }
        refused
    }

    fn queue_commit(&mut self, mut commit: Commit, ticket: Ticket) -> Result<(), Outcome> {
        let (bytes, fit) = match commit_bytes(&commit) {
            Some(bytes) => (bytes, Fit::Fits),
            None => (0, Fit::TooLarge),
        };
        if fit == Fit::TooLarge {
            (commit.writes, commit.conflicts) = (Vec::new(), Vec::new());
        }
        let resumed = commit.lane.is_some_and(|lane| self.resumed.remove(&lane));
        let submitter = self.submitter.clone();
        let queued = Instant::now();
        let pending = PendingCommit { submitter, ticket, commit, resumed, queued, bytes, fit };
        self.queues.push_commit(pending).map_err(|refused| self.refused(refused.outcome()))
    }

    fn submit_read(&mut self, read: Read, ticket: Ticket) -> Result<(), Outcome> {
        if !is_read_in_bounds(&read) {
            return Err(Outcome::TooLarge);
        }
        let pending = PendingRead { submitter: self.submitter.clone(), ticket, read };
        self.queues.push_read(pending).map_err(|refused| self.refused(refused.outcome()))
    }

    fn refused(&self, outcome: Outcome) -> Outcome {
        if outcome == Outcome::Throttled {
            Counters::bump(&self.counters.throttled);
        }
        outcome
    }
}

impl Kv for EmbeddedHandle {
    fn submit(&mut self, request: Request, ticket: Ticket) {
        let taken = match request {
            Request::Commit(commit) => self.submit_commit(commit, ticket),
            Request::Read(read) => self.submit_read(read, ticket),
        };
        if let Err(outcome) = taken {
            (self.submitter.sink)(vec![Completion { ticket, outcome }]);
        }
    }

    fn resume(&mut self, lane: LaneId) {
        self.stopped.remove(&lane);
        self.resumed.insert(lane);
    }

    fn limits(&self) -> Limits {
        Limits {
            lane_commits_max: LANE_COMMITS_MAX,
            commit_bytes_target: COMMIT_BYTES_TARGET,
            durability: Durability::Fsync,
        }
    }
}
