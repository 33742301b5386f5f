//! A core's queue of appends: gathers them into groups, commits each group once, and settles what
//! the store could not tell.
//!
//! ```text
//!             push                    flush                     Committed
//!  appends ─────────▶ waiting ───────────────▶ group n in flight ─────────▶ Stored{tags}
//!                                                   │ anything else: wait for all answers
//!                                                   ▼
//!        Throttled, Unavailable                 stopped ── Unknown(Maybe) ──▶ write my own fence
//!               │                                   │ Conflict, TooOld, Unknown(No)     │
//!               ▼                                   ▼                                   ▼
//!             pause                        read fence and journal ◀─────────────────────┘
//!               │                           journal ≥ n: group n is stored
//!               └──────────▶ resume ◀────── the rest is submitted again, unchanged
//! ```
//!
//! Each group conflicts with the core's own fence at a version at which the fence was read, so that
//! nothing lands after somebody (this core itself, to settle) has written the fence.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::effect::{FatalCause, Now};
use crate::kv::{
    Class, Commit, InFlight, KeyRange, LaneId, Limits, Outcome, Read, ReadVersion, Request, Rows,
    Version, Write,
};
use crate::sabotage::{Break, Breaks};
use crate::values::{FenceRow, JournalRow, StoreIncarnation};

/// A fence older than this is read again beside the commits.
const VERIFY_MS: u64 = 500;
/// A fence older than this is read again before the next commit: below the store's bound on the age
/// of a read version, with room for the commit itself.
const VERIFY_MS_MAX: u64 = 4_000;
/// Pause after the store asked to wait.
const PAUSE_MS: u64 = 20;
/// Most appends of one group.
const GROUP_APPENDS_MAX: usize = 4_096;

const _: () = assert!(VERIFY_MS_MAX < crate::kv::READ_VERSION_AGE_MS_MAX);

/// Rows that belong together, and what to do once they are stored.
#[derive(Debug)]
pub struct Append<T> {
    /// The rows.
    pub writes: Vec<Write>,
    /// Comes back when they are stored.
    pub tag: T,
}

/// What the lane asks of the store; comes back with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneOp {
    /// The commit of a group.
    Group(u64),
    /// A read of the fence beside the commits.
    Verify,
    /// The write of the own fence that makes an outcome definite.
    Fence,
    /// A read that tells whether a write of the fence happened.
    Refence,
    /// The read of fence and journal that settles.
    Settle,
}

/// What the lane wants done.
#[derive(Debug)]
pub enum LaneOutput<T> {
    /// Submit this.
    Submit(LaneOp, Request),
    /// Let the store's lane go on.
    Resume(LaneId),
    /// These appends are stored, at or below the version, in the order in which they were pushed.
    Stored(Version, Vec<T>),
    /// Nothing more can be promised.
    Lost(FatalCause),
}

/// Who the lane is.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// The lane's name at the store.
    pub id: LaneId,
    /// Key of the core's fence.
    pub fence: Bytes,
    /// Key of the lane's journal.
    pub journal: Bytes,
    /// Which store's counting goes into stamps.
    pub store: StoreIncarnation,
    /// The start of this process.
    pub incarnation: u64,
    /// The store's limits.
    pub kv: Limits,
    /// Appends that may wait.
    pub appends_max: usize,
    /// Bytes of appends that may wait.
    pub bytes_max: usize,
    /// What is broken on purpose.
    pub breaks: Breaks,
}

/// The machine of one lane.
#[derive(Debug)]
pub struct Lane<T> {
    config: LaneConfig,
    waiting: VecDeque<Append<T>>,
    waiting_bytes: usize,
    groups: VecDeque<Group<T>>,
    next_group: u64,
    state: State,
    claimed: Version,
    fence_version: Version,
    fence_read_ms: u64,
    fence_writes: u64,
    verifying: Option<u64>,
    settles: u64,
}

#[derive(Debug)]
struct Group<T> {
    number: u64,
    writes: Vec<Write>,
    tags: Vec<T>,
    answer: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Groups go out as they fill.
    Running,
    /// A group failed: the answers of the others are awaited.
    Stopped,
    /// The own fence is being written, or will be looked at at the given time.
    Fencing { retry_ms: Option<u64> },
    /// Fence and journal are being read, or will be at the given time.
    Settling { retry_ms: Option<u64> },
    /// The store asked to wait; nothing of the groups has happened.
    Pausing { until_ms: u64 },
}

impl<T> Lane<T> {
    /// A lane whose fence was read as this process's own at `fence_version`, by a read that was
    /// submitted at `read_ms`.
    pub fn new(config: LaneConfig, fence_version: Version, read_ms: u64) -> Lane<T> {
        Lane {
            config,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            groups: VecDeque::new(),
            next_group: 1,
            state: State::Running,
            claimed: fence_version,
            fence_version,
            fence_read_ms: read_ms,
            fence_writes: 0,
            verifying: None,
            settles: 0,
        }
    }

    /// Takes an append. Gives the tag back if the queue is full: the sender must come again.
    pub fn push(&mut self, append: Append<T>) -> Result<(), T> {
        let bytes = bytes_of(&append.writes);
        let full = self.waiting.len() >= self.config.appends_max
            || self.waiting_bytes + bytes > self.config.bytes_max;
        if full {
            return Err(append.tag);
        }
        self.waiting_bytes += bytes;
        self.waiting.push_back(append);
        Ok(())
    }

    /// Whether an append of ordinary size would be taken.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < self.config.appends_max
            && self.waiting_bytes + crate::kv::VALUE_BYTES_MAX <= self.config.bytes_max
    }

    /// Whether nothing waits and nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.groups.is_empty()
    }

    /// Appends and bytes that wait for a group.
    pub fn waiting(&self) -> (usize, usize) {
        (self.waiting.len(), self.waiting_bytes)
    }

    /// Appends in groups that the store has yet to answer.
    pub fn committing(&self) -> usize {
        self.groups.iter().map(|group| group.tags.len()).sum()
    }

    /// Groups numbered so far, and how often the lane was settled.
    pub fn progress(&self) -> (u64, u64) {
        (self.next_group - 1, self.settles)
    }

    /// All groups up to this number are stored.
    pub fn stored(&self) -> u64 {
        self.groups.front().map_or(self.next_group, |group| group.number) - 1
    }

    /// Nothing of a process that had this lane before was committed at or above this version.
    pub fn claimed(&self) -> Version {
        self.claimed
    }

    /// When [`Lane::flush`] has something to do although nothing was pushed.
    pub fn deadline_ms(&self) -> Option<u64> {
        match self.state {
            State::Fencing { retry_ms } | State::Settling { retry_ms } => retry_ms,
            State::Pausing { until_ms } => Some(until_ms),
            State::Running | State::Stopped => None,
        }
    }

    /// Forms groups of what waits, and does what is due.
    pub fn flush(&mut self, now: Now, out: &mut Vec<LaneOutput<T>>) {
        let due = |at: Option<u64>| at.is_some_and(|at| at <= now.mono_ms);
        match self.state {
            State::Running => self.submit_waiting(now, out),
            State::Stopped => {}
            State::Fencing { retry_ms } if due(retry_ms) => {
                self.state = State::Fencing { retry_ms: None };
                out.push(LaneOutput::Submit(LaneOp::Refence, self.read(&[&self.config.fence])));
            }
            State::Settling { retry_ms } if due(retry_ms) => self.read_journal(now, out),
            State::Pausing { until_ms } if until_ms <= now.mono_ms => self.resubmit(now, out),
            State::Fencing { .. } | State::Settling { .. } | State::Pausing { .. } => {}
        }
    }

    /// Takes the store's answer to what was submitted.
    pub fn completed(
        &mut self,
        now: Now,
        op: LaneOp,
        outcome: Outcome,
        out: &mut Vec<LaneOutput<T>>,
    ) {
        if outcome == Outcome::Fatal {
            out.push(LaneOutput::Lost(FatalCause::StoreFailed));
            return;
        }
        match op {
            LaneOp::Group(number) => self.group_answered(now, number, outcome, out),
            LaneOp::Verify => self.verified(now, outcome, out),
            LaneOp::Fence => match outcome {
                Outcome::Committed(_) => {
                    self.fence_writes += 1;
                    self.read_journal(now, out);
                }
                // Not even a conflict proves that the fence was written: stores give false ones.
                _ => self.state = State::Fencing { retry_ms: Some(now.mono_ms + PAUSE_MS) },
            },
            LaneOp::Refence => match outcome {
                Outcome::Rows(rows) => match self.mine(rows.gets.first().cloned().flatten()) {
                    Ok(fence) if fence.writes > self.fence_writes => {
                        self.fence_writes = fence.writes;
                        self.read_journal(now, out);
                    }
                    Ok(_) => {
                        self.fence_version = self.fence_version.max(rows.version);
                        self.write_fence(out);
                    }
                    Err(cause) => out.push(LaneOutput::Lost(cause)),
                },
                _ => self.state = State::Fencing { retry_ms: Some(now.mono_ms + PAUSE_MS) },
            },
            LaneOp::Settle => match outcome {
                Outcome::Rows(rows) => self.settle(now, rows, out),
                _ => self.state = State::Settling { retry_ms: Some(now.mono_ms + PAUSE_MS) },
            },
        }
    }

    fn submit_waiting(&mut self, now: Now, out: &mut Vec<LaneOutput<T>>) {
        if self.waiting.is_empty() {
            return;
        }
        let fence_age_ms = now.mono_ms.saturating_sub(self.fence_read_ms);
        if fence_age_ms > VERIFY_MS && self.verifying.is_none() {
            self.verifying = Some(now.mono_ms);
            out.push(LaneOutput::Submit(LaneOp::Verify, self.read(&[&self.config.fence])));
        }
        if fence_age_ms > VERIFY_MS_MAX {
            return;
        }
        while self.groups.len() < self.config.kv.lane_commits_max && !self.waiting.is_empty() {
            let group = self.form_group();
            out.push(self.commit(&group));
            self.groups.push_back(group);
            if self.config.breaks.has(Break::AckBeforeCommit)
                && let Some(group) = self.groups.back_mut()
            {
                out.push(LaneOutput::Stored(Version(u64::MAX), std::mem::take(&mut group.tags)));
            }
        }
    }

    fn form_group(&mut self) -> Group<T> {
        let (mut writes, mut tags, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(append) = self.waiting.front() {
            let more = bytes_of(&append.writes);
            let full = bytes + more > self.config.kv.commit_bytes_target
                || tags.len() >= GROUP_APPENDS_MAX;
            if full && !tags.is_empty() {
                break;
            }
            if let Some(append) = self.waiting.pop_front() {
                self.waiting_bytes -= more;
                bytes += more;
                writes.extend(append.writes);
                tags.push(append.tag);
            }
        }
        let number = self.next_group;
        self.next_group += 1;
        if !self.config.breaks.has(Break::JournalForgotten) {
            writes.push(JournalRow::write(
                self.config.journal.clone(),
                self.config.store,
                self.config.incarnation,
                number,
            ));
        }
        Group { number, writes, tags, answer: None }
    }

    fn commit(&self, group: &Group<T>) -> LaneOutput<T> {
        let conflicts = if self.config.breaks.has(Break::NoFence) {
            Vec::new()
        } else {
            vec![KeyRange::key(&self.config.fence)]
        };
        let commit = Commit {
            lane: Some(self.config.id),
            class: Class::Interactive,
            read_version: Some(self.fence_version),
            conflicts,
            writes: group.writes.clone(),
        };
        LaneOutput::Submit(LaneOp::Group(group.number), Request::Commit(commit))
    }

    fn group_answered(
        &mut self,
        now: Now,
        number: u64,
        outcome: Outcome,
        out: &mut Vec<LaneOutput<T>>,
    ) {
        let Some(group) = self.groups.iter_mut().find(|group| group.number == number) else {
            return;
        };
        group.answer = Some(outcome);
        while self.state == State::Running {
            match self.groups.front().and_then(|group| group.answer.clone()) {
                Some(Outcome::Committed(stamp)) => {
                    if let Some(group) = self.groups.pop_front() {
                        out.push(LaneOutput::Stored(stamp.version, group.tags));
                    }
                }
                Some(_) => {
                    self.state = State::Stopped;
                    self.settles += 1;
                }
                None => break,
            }
        }
        if self.state == State::Stopped && self.groups.iter().all(|group| group.answer.is_some()) {
            self.choose_settlement(now, out);
        }
    }

    fn choose_settlement(&mut self, now: Now, out: &mut Vec<LaneOutput<T>>) {
        let any = |wanted: fn(&Outcome) -> bool| {
            self.groups.iter().filter_map(|group| group.answer.as_ref()).any(wanted)
        };
        let in_flight = any(|answer| *answer == Outcome::Unknown(InFlight::Maybe));
        let unsettled = any(|answer| {
            matches!(
                answer,
                Outcome::Conflict
                    | Outcome::TooOld
                    | Outcome::Unknown(InFlight::No)
                    | Outcome::Committed(_)
            )
        });
        if any(|answer| matches!(answer, Outcome::TooLarge | Outcome::Rows(_))) {
            out.push(LaneOutput::Lost(FatalCause::StoreBroken));
        } else if in_flight && !self.config.breaks.has(Break::NoFence) {
            self.write_fence(out);
        } else if in_flight || unsettled {
            self.read_journal(now, out);
        } else {
            self.state = State::Pausing { until_ms: now.mono_ms + PAUSE_MS };
        }
    }

    fn write_fence(&mut self, out: &mut Vec<LaneOutput<T>>) {
        self.state = State::Fencing { retry_ms: None };
        let value =
            FenceRow { incarnation: self.config.incarnation, writes: self.fence_writes + 1 };
        let value = value.encode();
        let commit = Commit {
            lane: None,
            class: Class::Interactive,
            // Conditional, so that a write of a dead process cannot land over a living one's.
            read_version: Some(self.fence_version),
            conflicts: vec![KeyRange::key(&self.config.fence)],
            writes: vec![Write::Set { key: self.config.fence.clone(), value }],
        };
        out.push(LaneOutput::Submit(LaneOp::Fence, Request::Commit(commit)));
    }

    fn read_journal(&mut self, now: Now, out: &mut Vec<LaneOutput<T>>) {
        self.state = State::Settling { retry_ms: None };
        self.fence_read_ms = now.mono_ms;
        let read = self.read(&[&self.config.fence, &self.config.journal]);
        out.push(LaneOutput::Submit(LaneOp::Settle, read));
    }

    fn settle(&mut self, now: Now, rows: Rows, out: &mut Vec<LaneOutput<T>>) {
        let [fence, journal] = rows.gets.as_slice() else {
            out.push(LaneOutput::Lost(FatalCause::StoreBroken));
            return;
        };
        if let Err(cause) = self.mine(fence.clone()) {
            out.push(LaneOutput::Lost(cause));
            return;
        }
        let journal = match journal.clone().map(JournalRow::decode) {
            Some(Ok(row)) if row.incarnation == self.config.incarnation => Some(row),
            Some(Err(error)) => {
                out.push(LaneOutput::Lost(FatalCause::Damaged(error)));
                return;
            }
            Some(Ok(_)) | None => None,
        };
        if let Some(journal) = journal {
            while let Some(group) = self.groups.pop_front_if(|group| group.number <= journal.group)
            {
                out.push(LaneOutput::Stored(journal.stamp.stamp.version, group.tags));
            }
        }
        self.fence_version = self.fence_version.max(rows.version);
        self.resubmit(now, out);
    }

    fn resubmit(&mut self, now: Now, out: &mut Vec<LaneOutput<T>>) {
        out.push(LaneOutput::Resume(self.config.id));
        self.state = State::Running;
        for index in 0..self.groups.len() {
            self.groups[index].answer = None;
            out.push(self.commit(&self.groups[index]));
        }
        self.submit_waiting(now, out);
    }

    fn verified(&mut self, now: Now, outcome: Outcome, out: &mut Vec<LaneOutput<T>>) {
        let submitted_ms = self.verifying.take().unwrap_or(now.mono_ms);
        if let Outcome::Rows(rows) = outcome {
            if let Err(cause) = self.mine(rows.gets.first().cloned().flatten()) {
                out.push(LaneOutput::Lost(cause));
                return;
            }
            if rows.version >= self.fence_version {
                self.fence_version = rows.version;
                self.fence_read_ms = self.fence_read_ms.max(submitted_ms);
            }
        }
        self.flush(now, out);
    }

    /// The fence, if it is this process's own.
    fn mine(&self, fence: Option<Bytes>) -> Result<FenceRow, FatalCause> {
        let row = fence.map(FenceRow::decode).transpose().map_err(FatalCause::Damaged)?;
        row.filter(|row| row.incarnation == self.config.incarnation).ok_or(FatalCause::FenceTaken)
    }

    fn read(&self, keys: &[&Bytes]) -> Request {
        Request::Read(Read {
            gets: keys.iter().map(|key| (*key).clone()).collect(),
            ranges: Vec::new(),
            version: ReadVersion::Fresh,
        })
    }
}

fn bytes_of(writes: &[Write]) -> usize {
    let size = |write: &Write| match write {
        Write::Set { key, value } | Write::SetStamped { key, value, .. } => key.len() + value.len(),
        Write::Clear { key } => key.len(),
        Write::ClearRange(range) => range.start.len() + range.end.len(),
    };
    writes.iter().map(size).sum()
}

#[cfg(test)]
mod tests;
