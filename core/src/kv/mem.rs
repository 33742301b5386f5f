//! The reference engine: an ordered map of all versions, without thread, clock or disk of its own.
//!
//! One [`MemStore`] stands for the whole store; several submitters of one thread share it. It goes
//! the way of the embedded engine, but every step is taken by the driver, so that a simulation
//! decides what is durable when the store is killed:
//!
//! ```text
//! submit ──► queue ──begin_sync──► syncing groups ──publish──► published, acknowledged
//!                    (versions,     (in order,                 (survives a crash)
//!                     conflicts)     maybe durable)
//! ```
//!
//! Reads are answered at once, from what is published. A group has one version; its commits differ
//! by their order. All that is not published can be lost in a [`MemStore::crash`], and the versions
//! go on from the newest durable one, as they do after a `kill -9`.

mod history;
mod resolver;

use std::collections::{BTreeMap, VecDeque};

use chatring_wire::frame::Durability;

use super::checks::{Fit, commit_fits, read_fits};
use super::{
    Class, Commit, Completion, Kv, LaneId, Limits, Outcome, Read, ReadVersion, Request, Stamp,
    Ticket, VERSIONS_PER_SECOND, Version, Write,
};
use crate::sabotage::{Break, Breaks};

pub use history::{History, Written};
use resolver::{Resolver, Verdict};

/// Most commits that wait to be taken into a group; further ones are throttled.
pub const QUEUE_COMMITS_MAX: usize = 65_536;
/// Most commits of one group: their order must fit a stamp.
pub const GROUP_COMMITS_MAX: usize = 65_536;
/// Commits of one lane that a submitter should have in flight at most.
pub const LANE_COMMITS_MAX: usize = 8;
/// Bytes that a commit should aim at.
pub const COMMIT_BYTES_TARGET: usize = 64 * 1024;

/// One of those who share a store. The driver gives the numbers; a process that starts again should
/// get a new one, or call [`MemStore::forget`] first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubmitterId(pub u32);

/// The reference engine. See the module's documentation.
#[derive(Clone, Debug)]
pub struct MemStore {
    breaks: Breaks,
    now_ms: u64,
    health: Health,
    /// Durable and published.
    history: History,
    newest: Version,
    /// Where the versions of this run of the store began, and when.
    origin: (Version, u64),
    /// Everything from here on is lost in a crash.
    assigned: Version,
    resolver: Resolver,
    submitted: u64,
    queue: VecDeque<Queued>,
    syncing: VecDeque<Group>,
    /// The submission that stopped each stopped lane.
    stopped: BTreeMap<(SubmitterId, LaneId), u64>,
    completions: VecDeque<(SubmitterId, Completion)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Good,
    Full,
    Failed,
}

#[derive(Clone, Debug)]
struct Queued {
    submitter: SubmitterId,
    ticket: Ticket,
    number: u64,
    commit: Commit,
}

#[derive(Clone, Debug)]
struct Group {
    version: Version,
    commits: Vec<Accepted>,
}

#[derive(Clone, Debug)]
struct Accepted {
    submitter: SubmitterId,
    ticket: Ticket,
    writes: Vec<Write>,
}

impl MemStore {
    /// An empty store on a monotonic clock that shows `now_mono_ms`.
    pub fn new(now_mono_ms: u64, breaks: Breaks) -> MemStore {
        MemStore {
            breaks,
            now_ms: now_mono_ms,
            health: Health::Good,
            history: History::default(),
            newest: Version(0),
            origin: (Version(0), now_mono_ms),
            assigned: Version(0),
            resolver: Resolver::new(Version(0)),
            submitted: 0,
            queue: VecDeque::new(),
            syncing: VecDeque::new(),
            stopped: BTreeMap::new(),
            completions: VecDeque::new(),
        }
    }

    /// Tells the time of the monotonic clock. An earlier time than before is ignored.
    pub fn advance(&mut self, now_mono_ms: u64) {
        self.now_ms = self.now_ms.max(now_mono_ms);
        self.resolver.advance(self.now_ms);
    }

    /// Takes a request. Reads are answered at once, commits when their group is published or they
    /// fail.
    pub fn submit(&mut self, submitter: SubmitterId, request: Request, ticket: Ticket) {
        if self.health == Health::Failed {
            return self.complete(submitter, ticket, Outcome::Fatal);
        }
        match request {
            Request::Read(read) => {
                let outcome = self.read(&read);
                self.complete(submitter, ticket, outcome);
            }
            Request::Commit(commit) => {
                self.submitted += 1;
                let queued = Queued { submitter, ticket, number: self.submitted, commit };
                if self.queue.len() >= QUEUE_COMMITS_MAX {
                    self.refuse(&queued, Outcome::Throttled);
                } else {
                    self.queue.push_back(queued);
                }
            }
        }
    }

    /// Lets a stopped lane go on.
    pub fn resume(&mut self, submitter: SubmitterId, lane: LaneId) {
        self.stopped.remove(&(submitter, lane));
    }

    /// The next answer, if there is one.
    pub fn poll_completion(&mut self) -> Option<(SubmitterId, Completion)> {
        self.completions.pop_front()
    }

    /// The store's limits.
    pub fn limits(&self) -> Limits {
        Limits {
            lane_commits_max: LANE_COMMITS_MAX,
            commit_bytes_target: COMMIT_BYTES_TARGET,
            durability: Durability::Memory,
        }
    }

    /// Commits that no group has taken in yet.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Groups that are being made durable.
    pub fn syncing(&self) -> usize {
        self.syncing.len()
    }

    /// Takes the waiting commits into a group, gives it a version and judges each of them; those
    /// that fail are answered. Background commits without a lane come last.
    pub fn begin_sync(&mut self) {
        let taken = self.queue.len().min(GROUP_COMMITS_MAX);
        let waiting = |queued: &Queued| {
            queued.commit.class == Class::Background && queued.commit.lane.is_none()
        };
        let (last, first): (Vec<_>, Vec<_>) = self.queue.drain(..taken).partition(waiting);
        let version = self.next_version();
        let mut commits = Vec::new();
        for queued in first.into_iter().chain(last) {
            match self.judge(&queued) {
                Some(failed) => self.refuse(&queued, failed),
                None => {
                    let Queued { submitter, ticket, commit, .. } = queued;
                    self.resolver.insert(version, &commit.writes);
                    commits.push(Accepted { submitter, ticket, writes: commit.writes });
                }
            }
        }
        if !commits.is_empty() {
            self.assigned = version;
            self.syncing.push_back(Group { version, commits });
        }
    }

    /// Makes the oldest syncing group durable, publishes it and acknowledges its commits.
    pub fn publish(&mut self) {
        if self.health == Health::Failed {
            return;
        }
        let Some(group) = self.syncing.pop_front() else { return };
        self.apply(&group);
        self.resolver.publish(self.now_ms);
        for (order, accepted) in group.commits.iter().enumerate() {
            let stamp = group.stamp(order);
            self.complete(accepted.submitter, accepted.ticket, Outcome::Committed(stamp));
        }
    }

    /// Takes all waiting commits through a group to their end.
    pub fn sync_all(&mut self) {
        while !self.queue.is_empty() {
            self.begin_sync();
        }
        for _ in 0..self.syncing.len() {
            self.publish();
        }
    }

    /// Kills the store's process and starts it again. Of the syncing groups the first `durable`
    /// ones had reached the disk, though nobody was told; all else that was not published is lost,
    /// every open request and answer with it.
    pub fn crash(&mut self, durable: usize) {
        for group in std::mem::take(&mut self.syncing).iter().take(durable) {
            self.apply(group);
        }
        self.health = Health::Good;
        self.origin = (self.newest, self.now_ms);
        self.assigned = self.newest;
        self.resolver = Resolver::new(self.newest);
        self.queue.clear();
        self.stopped.clear();
        self.completions.clear();
    }

    /// Stops the store in order and starts it again: every commit is carried out first. Answers
    /// that were not fetched are lost.
    pub fn reopen(&mut self) {
        self.sync_all();
        self.crash(0);
    }

    /// Forgets the lanes and answers of a submitter that is gone. Its open commits go on.
    pub fn forget(&mut self, submitter: SubmitterId) {
        self.stopped.retain(|(owner, _), _| *owner != submitter);
        self.completions.retain(|(owner, _)| *owner != submitter);
    }

    /// Makes commits fail as `Unavailable`, as when the disk has no room, or work again.
    pub fn set_full(&mut self, full: bool) {
        if self.health != Health::Failed {
            self.health = if full { Health::Full } else { Health::Good };
        }
    }

    /// Fails for good, as when a sync fails: all that is open and all that comes is `Fatal`, until
    /// a crash.
    pub fn fail(&mut self) {
        self.health = Health::Failed;
        for queued in std::mem::take(&mut self.queue) {
            self.complete(queued.submitter, queued.ticket, Outcome::Fatal);
        }
        // The groups stay: a crash decides which of them had reached the disk.
        for at in 0..self.syncing.len() {
            let open: Vec<_> =
                self.syncing[at].commits.iter().map(|each| (each.submitter, each.ticket)).collect();
            for (submitter, ticket) in open {
                self.complete(submitter, ticket, Outcome::Fatal);
            }
        }
    }

    /// The version of the newest published commit, 0 if there is none.
    pub fn newest(&self) -> Version {
        self.newest
    }

    /// What was published, for checkers.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Forgets what no read can ask for any more. Checkers then no longer see it either.
    pub fn prune(&mut self) {
        self.history.prune(self.resolver.floor());
    }

    fn read(&self, read: &Read) -> Outcome {
        if read_fits(read) == Fit::TooLarge {
            return Outcome::TooLarge;
        }
        let fresh = self.fresh();
        match read.version {
            ReadVersion::Fresh => Outcome::Rows(self.history.read(read, fresh)),
            ReadVersion::At(at) if at < self.resolver.floor() || at > fresh => Outcome::TooOld,
            ReadVersion::At(at) => Outcome::Rows(self.history.read(read, at)),
        }
    }

    fn fresh(&self) -> Version {
        if self.breaks.has(Break::VersionFromClock) {
            return self.newest.max(self.clock_version());
        }
        self.newest
    }

    fn judge(&self, queued: &Queued) -> Option<Outcome> {
        let commit = &queued.commit;
        let lane = commit.lane.map(|lane| (queued.submitter, lane));
        let stopped = lane.and_then(|lane| self.stopped.get(&lane));
        if stopped.is_some_and(|stopped| *stopped < queued.number) {
            return Some(Outcome::LaneStopped);
        }
        if commit_fits(commit) == Fit::TooLarge {
            return Some(Outcome::TooLarge);
        }
        if self.health == Health::Full {
            return Some(Outcome::Unavailable);
        }
        let reached = self.assigned.max(self.fresh());
        let read_version = commit.read_version.filter(|known| *known <= reached);
        match self.resolver.judge(read_version, &commit.conflicts) {
            Verdict::Free => None,
            Verdict::Conflict => Some(Outcome::Conflict),
            Verdict::TooOld => Some(Outcome::TooOld),
        }
    }

    /// Answers a commit that failed and stops its lane.
    fn refuse(&mut self, queued: &Queued, outcome: Outcome) {
        if let Some(lane) = queued.commit.lane {
            let stopped = self.stopped.entry((queued.submitter, lane)).or_insert(queued.number);
            *stopped = queued.number.min(*stopped);
        }
        self.complete(queued.submitter, queued.ticket, outcome);
    }

    fn apply(&mut self, group: &Group) {
        for (order, accepted) in group.commits.iter().enumerate() {
            self.history.apply(group.stamp(order), &accepted.writes);
        }
        self.newest = group.version;
    }

    fn next_version(&self) -> Version {
        self.clock_version().max(Version(self.assigned.0 + 1))
    }

    fn clock_version(&self) -> Version {
        let (version, at_ms) = self.origin;
        Version(version.0 + (self.now_ms - at_ms) * (VERSIONS_PER_SECOND / 1_000))
    }

    fn complete(&mut self, submitter: SubmitterId, ticket: Ticket, outcome: Outcome) {
        self.completions.push_back((submitter, Completion { ticket, outcome }));
    }
}

impl Group {
    fn stamp(&self, order: usize) -> Stamp {
        let order = u16::try_from(order).expect("a group has at most GROUP_COMMITS_MAX commits");
        Stamp { version: self.version, order }
    }
}

/// A store as one submitter sees it.
#[derive(Debug)]
pub struct MemKv<'a> {
    /// The store that all share.
    pub store: &'a mut MemStore,
    /// Who submits.
    pub submitter: SubmitterId,
}

impl Kv for MemKv<'_> {
    fn submit(&mut self, request: Request, ticket: Ticket) {
        self.store.submit(self.submitter, request, ticket);
    }

    fn resume(&mut self, lane: LaneId) {
        self.store.resume(self.submitter, lane);
    }

    fn limits(&self) -> Limits {
        self.store.limits()
    }
}

#[cfg(test)]
mod tests;
