//! The committer: gathers what waits into groups, judges each commit, and makes groups durable.
//!
//! ```text
//!   queue ─▶ gather ─▶ resolve: lanes, room, conflicts, versions, rows
//!                      land:    one batch, one sync ─▶ publish ─▶ answer
//! ```
//!
//! While one group is being synced the next one waits in the queue: so the groups grow with the
//! load. `resolve` and `land` share only the group, so each may get its own thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chatring_core::kv::checks::Fit;
use chatring_core::kv::{Class, Completion, InFlight, LaneId, Outcome, Stamp, Version, Write};
use rustc_hash::FxHashSet;

use super::disk::{Batch, Disk, DiskError};
use super::group::{ClearError, ClearedKeys, GroupRows};
use super::health::Health;
use super::limits::{
    GROUP_BACKGROUND_BYTES_MAX, GROUP_BYTES_MAX, GROUP_CLEARS_MAX, GROUP_COMMITS_MAX,
};
use super::metrics::Counters;
use super::published::Published;
use super::queue::{CommitMessage, PendingCommit, Submitter, deliver, queue_class};
use super::resolver::{KeyHash, Resolver, Verdict};
use super::room::RoomState;
use super::system::{VERSION_KEY, user_part, version_value};
use super::versions::VersionClock;
use crate::held::{Cause, HELD};

/// Elapsed monotonic time since the store was opened.
pub(crate) type ElapsedClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// See the module.
pub(crate) struct Committer {
    gatherer: Gatherer,
    judge: Judge,
    lander: Lander,
}

/// Takes groups from the queue.
pub(crate) struct Gatherer {
    queue: flume::Receiver<CommitMessage>,
    interactive: VecDeque<PendingCommit>,
    background: VecDeque<PendingCommit>,
    closing: bool,
    gap: Duration,
    last_start: Option<Instant>,
    counters: Arc<Counters>,
}

/// Decides the outcome that each commit has once its group is durable.
pub(crate) struct Judge {
    pub resolver: Resolver,
    pub clock: VersionClock,
    pub elapsed: ElapsedClock,
    pub health: Arc<Health>,
    pub disk: Arc<dyn Disk>,
    pub published: Arc<Published>,
    pub stopped_lanes: FxHashSet<(u32, LaneId)>,
    pub counters: Arc<Counters>,
}

/// Makes groups durable and answers.
pub(crate) struct Lander {
    pub disk: Arc<dyn Disk>,
    pub published: Arc<Published>,
    pub counters: Arc<Counters>,
}

/// A judged group on its way to disk.
struct Resolved {
    batch: Batch,
    /// The last version given to a commit of the group, if any has an effect.
    version: Option<Version>,
    commits: u64,
    bytes: usize,
    /// The lanes of commits that count on the group.
    lanes: Vec<(u32, LaneId)>,
    answers: Vec<(Submitter, Completion)>,
}

/// A group that could not be written.
struct FailedGroup {
    error: DiskError,
    lanes: Vec<(u32, LaneId)>,
    answers: Vec<(Submitter, Completion)>,
}

impl Committer {
    /// Puts the steps together.
    pub(crate) fn new(gatherer: Gatherer, judge: Judge, lander: Lander) -> Committer {
        Committer { gatherer, judge, lander }
    }

    /// Works until it is told to close and everything before has been answered, or the disk fails.
    /// Whatever comes after a failure is answered by [`Committer::refuse_rest`].
    pub(crate) fn run(&mut self) -> Result<(), DiskError> {
        while let Some(group) = self.gatherer.next_group(|| self.lander.disk.pause()) {
            let bytes = group.iter().map(|pending| pending.bytes).sum();
            let room = match self.judge.health.ready(bytes) {
                Ok(room) => room,
                Err(error) => {
                    deliver(group.into_iter().map(|pending| answer(pending, Outcome::Fatal)));
                    return Err(error);
                }
            };
            let resolved = self.judge.resolve(group, room);
            if let Err(failed) = self.lander.land(resolved) {
                self.settle(failed)?;
            }
        }
        Ok(())
    }

    /// Answers a group that could not be written.
    fn settle(&mut self, failed: FailedGroup) -> Result<(), DiskError> {
        let FailedGroup { error, lanes, answers } = failed;
        // A disk that had stopped before has written nothing.
        let mut outcome = match &error {
            DiskError::Stopped(_) => Outcome::Unavailable,
            _ => Outcome::Unknown(InFlight::Maybe),
        };
        let survived = self.judge.health.failed(error);
        if survived.is_err() {
            outcome = Outcome::Fatal;
        }
        self.judge.stopped_lanes.extend(lanes);
        deliver(answers.into_iter().map(|(submitter, mut completion)| {
            if let Outcome::Committed(_) = completion.outcome {
                completion.outcome = outcome.clone();
            }
            (submitter, completion)
        }));
        survived
    }

    /// After a failure: answers `Fatal` to everything until the store is closed.
    pub(crate) fn refuse_rest(&mut self) {
        while let Some(group) = self.gatherer.next_group(|| Duration::ZERO) {
            deliver(group.into_iter().map(|pending| answer(pending, Outcome::Fatal)));
        }
    }
}

impl Gatherer {
    /// Gathers from the queue, with at least `gap` between the starts of two groups.
    pub(crate) fn new(
        queue: flume::Receiver<CommitMessage>,
        gap: Duration,
        counters: Arc<Counters>,
    ) -> Gatherer {
        Gatherer {
            queue,
            interactive: VecDeque::new(),
            background: VecDeque::new(),
            closing: false,
            gap,
            last_start: None,
            counters,
        }
    }

    /// Waits for the next group, which starts no sooner than `pause` after the last one; none once
    /// the queue is closed and empty.
    fn next_group(&mut self, pause: impl FnOnce() -> Duration) -> Option<Vec<PendingCommit>> {
        if self.is_empty() && !self.closing {
            match self.queue.recv() {
                Ok(message) => self.sort_in(message),
                Err(flume::RecvError::Disconnected) => self.closing = true,
            }
        }
        self.wait_for_gap(pause());
        while let Ok(message) = self.queue.try_recv() {
            self.sort_in(message);
        }
        if self.is_empty() && self.closing {
            return None;
        }
        Some(self.take_group())
    }

    fn is_empty(&self) -> bool {
        self.interactive.is_empty() && self.background.is_empty()
    }

    fn sort_in(&mut self, message: CommitMessage) {
        match message {
            CommitMessage::Commit(pending) => match queue_class(&pending.commit) {
                Class::Interactive => self.interactive.push_back(pending),
                Class::Background => self.background.push_back(pending),
            },
            CommitMessage::Close => self.closing = true,
        }
    }

    fn wait_for_gap(&mut self, pause: Duration) {
        if self.closing {
            return;
        }
        let gap = self.gap.max(pause);
        if let Some(last_start) = self.last_start.filter(|_| !gap.is_zero()) {
            std::thread::sleep(gap.saturating_sub(last_start.elapsed()));
        }
        self.last_start = Some(Instant::now());
    }

    /// Interactive commits first, as many as fit; then background ones up to their own bound.
    fn take_group(&mut self) -> Vec<PendingCommit> {
        let mut group = GroupDraft::default();
        while let Some(pending) = self.interactive.front() {
            if !group.fits(pending, GROUP_BYTES_MAX) {
                break;
            }
            group.push(self.interactive.pop_front().expect("just seen"), &self.counters);
        }
        let bytes_max = group.bytes + GROUP_BACKGROUND_BYTES_MAX;
        let mut alone = GroupDraft { bytes: group.bytes, ..GroupDraft::default() };
        while let Some(pending) = self.background.front() {
            if !alone.fits(pending, bytes_max) {
                break;
            }
            alone.push(self.background.pop_front().expect("just seen"), &self.counters);
        }
        group.commits.append(&mut alone.commits);
        if let Some(oldest) = group.commits.first() {
            HELD.since(Cause::Queue, oldest.queued);
        }
        group.commits
    }
}

#[derive(Default)]
struct GroupDraft {
    commits: Vec<PendingCommit>,
    bytes: usize,
    clears: usize,
}

impl GroupDraft {
    /// The first commit always fits.
    fn fits(&self, pending: &PendingCommit, bytes_max: usize) -> bool {
        self.commits.is_empty()
            || self.commits.len() < GROUP_COMMITS_MAX
                && self.bytes + pending.bytes <= bytes_max
                && self.clears + pending.clears() <= GROUP_CLEARS_MAX
    }

    fn push(&mut self, pending: PendingCommit, counters: &Counters) {
        counters.queue_remove(queue_class(&pending.commit), pending.bytes);
        self.bytes += pending.bytes;
        self.clears += pending.clears();
        self.commits.push(pending);
    }
}

impl Judge {
    fn resolve(&mut self, group: Vec<PendingCommit>, room: RoomState) -> Resolved {
        let elapsed = (self.elapsed)();
        self.resolver.expire(self.clock.now(elapsed));
        let writes = group.iter().map(|pending| pending.commit.writes.len()).sum::<usize>();
        let mut rows = GroupRows::with_capacity(writes + 1);
        let mut resolved = Resolved {
            batch: Batch::default(),
            version: None,
            commits: 0,
            bytes: 0,
            lanes: Vec::new(),
            answers: Vec::with_capacity(group.len()),
        };
        for mut pending in group {
            let outcome = self.judge(&mut pending, room, elapsed, &mut rows);
            if let Outcome::Committed(stamp) = outcome {
                resolved.version = Some(stamp.version);
                resolved.commits += 1;
                resolved.bytes += pending.bytes;
                resolved.lanes.extend(pending.lane());
            } else {
                self.count(&outcome);
            }
            resolved.answers.push(answer(pending, outcome));
        }
        if let Some(version) = resolved.version {
            self.counters.rows.fetch_add(rows.len() as u64, Relaxed);
            let key = Bytes::from_static(VERSION_KEY);
            rows.put(key, KeyHash::of(VERSION_KEY), Some(version_value(version).into()));
            resolved.batch = rows.into_batch();
        }
        self.counters.resolver_writes.store(self.resolver.len(), Relaxed);
        resolved
    }

    /// Looks after the lane; the rest is [`Judge::admit`].
    fn judge(
        &mut self,
        pending: &mut PendingCommit,
        room: RoomState,
        elapsed: Duration,
        rows: &mut GroupRows,
    ) -> Outcome {
        let lane = pending.lane();
        if let Some(lane) = lane {
            if pending.resumed {
                self.stopped_lanes.remove(&lane);
            }
            if self.stopped_lanes.contains(&lane) {
                return Outcome::LaneStopped;
            }
        }
        match self.admit(pending, room, elapsed, rows) {
            Ok(stamp) => Outcome::Committed(stamp),
            Err(outcome) => {
                self.stopped_lanes.extend(lane);
                outcome
            }
        }
    }

    fn admit(
        &mut self,
        pending: &mut PendingCommit,
        room: RoomState,
        elapsed: Duration,
        rows: &mut GroupRows,
    ) -> Result<Stamp, Outcome> {
        if pending.fit == Fit::TooLarge {
            return Err(Outcome::TooLarge);
        }
        if room == RoomState::Short {
            return Err(Outcome::Unavailable);
        }
        self.check_conflicts(pending)?;
        let commit = &mut pending.commit;
        let cleared = if pending_clears(&commit.writes) == 0 {
            ClearedKeys::default()
        } else {
            ClearedKeys::find(&commit.writes, &*self.disk.snapshot()).map_err(clear_outcome)?
        };
        let version = self.clock.next(elapsed);
        let stamp = Stamp { version, order: 0 };
        let mut writes = std::mem::take(&mut commit.writes);
        for write in &mut writes {
            if let Write::ClearRange(range) = write {
                *range = user_part(range);
                self.resolver.wrote_range(version, range);
            }
        }
        let wrote = |key: &[u8], hash| self.resolver.wrote_key(version, key, hash);
        rows.apply(writes, cleared, stamp, wrote);
        Ok(stamp)
    }

    fn check_conflicts(&mut self, pending: &PendingCommit) -> Result<(), Outcome> {
        let conflicts = &pending.commit.conflicts;
        if conflicts.is_empty() {
            return Ok(());
        }
        // A version that was not given out yet comes from another store; so does none at all.
        let Some(read_version) = pending.commit.read_version else { return Err(Outcome::TooOld) };
        if read_version > self.published.newest() {
            return Err(Outcome::TooOld);
        }
        match self.resolver.check(read_version, conflicts) {
            Verdict::Clear => Ok(()),
            Verdict::Conflict => Err(Outcome::Conflict),
            Verdict::TooOld => Err(Outcome::TooOld),
        }
    }

    fn count(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Conflict => Counters::bump(&self.counters.conflicts),
            Outcome::TooOld => Counters::bump(&self.counters.too_old),
            Outcome::Unavailable => Counters::bump(&self.counters.unavailable),
            Outcome::LaneStopped => Counters::bump(&self.counters.lane_stopped),
            _ => {}
        }
    }
}

impl Lander {
    fn land(&self, resolved: Resolved) -> Result<(), FailedGroup> {
        let Resolved { batch, version, commits, bytes, lanes, answers } = resolved;
        let Some(version) = version else {
            deliver(answers);
            return Ok(());
        };
        let start = Instant::now();
        let snapshot = match self.disk.write(batch) {
            Ok(snapshot) => snapshot,
            Err(error) => return Err(FailedGroup { error, lanes, answers }),
        };
        self.counters.wrote(start.elapsed());
        Counters::bump(&self.counters.groups);
        self.counters.commits.fetch_add(commits, Relaxed);
        self.counters.bytes.fetch_add(bytes as u64, Relaxed);
        self.published.publish(version, snapshot);
        deliver(answers);
        HELD.since(Cause::Group, start);
        Ok(())
    }
}

impl PendingCommit {
    fn clears(&self) -> usize {
        pending_clears(&self.commit.writes)
    }
}

fn pending_clears(writes: &[Write]) -> usize {
    let is_clear = |write: &&Write| matches!(write, Write::ClearRange(_));
    writes.iter().filter(is_clear).count()
}

fn clear_outcome(error: ClearError) -> Outcome {
    match error {
        ClearError::TooLarge => Outcome::TooLarge,
        ClearError::Disk(error) => {
            tracing::error!(%error, "cannot read the rows of a range to clear");
            Outcome::Unavailable
        }
    }
}

fn answer(pending: PendingCommit, outcome: Outcome) -> (Submitter, Completion) {
    (pending.submitter, Completion { ticket: pending.ticket, outcome })
}
