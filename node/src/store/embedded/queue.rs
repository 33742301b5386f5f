//! Between submitters and the engine's threads: what waits, how much of it, and who is answered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use chatring_core::kv::checks::Fit;
use chatring_core::kv::{Class, Commit, Completion, LaneId, Outcome, Read, Ticket};

use super::limits::{QUEUE_BACKGROUND_DIVISOR, QUEUE_BYTES_MAX, QUEUE_COMMITS_MAX};
use super::metrics::Counters;

/// Takes completions: called with those of one group, or of one pass of a reader.
pub(crate) type Sink = dyn Fn(Vec<Completion>) + Send + Sync;

/// Who submitted a request, and where its answer goes.
#[derive(Clone)]
pub(crate) struct Submitter {
    /// Unique within the store.
    pub id: u32,
    /// Where answers go.
    pub sink: Arc<Sink>,
}

/// A commit that waits for its group.
pub(crate) struct PendingCommit {
    pub submitter: Submitter,
    pub ticket: Ticket,
    pub commit: Commit,
    /// The submitter resumed the lane before this commit.
    pub resumed: bool,
    /// When it was submitted.
    pub queued: Instant,
    /// Bytes that it takes in the queue.
    pub bytes: usize,
    /// A commit above a bound waits as well, without its content: an earlier failure of its lane
    /// comes first.
    pub fit: Fit,
}

impl PendingCommit {
    /// The lane, unique within the store.
    pub(crate) fn lane(&self) -> Option<(u32, LaneId)> {
        self.commit.lane.map(|lane| (self.submitter.id, lane))
    }
}

/// A read that waits for a reader.
pub(crate) struct PendingRead {
    pub submitter: Submitter,
    pub ticket: Ticket,
    pub read: Read,
}

/// What the committer receives.
pub(crate) enum CommitMessage {
    Commit(PendingCommit),
    /// Everything before it is to be finished, then the thread ends.
    Close,
}

/// What a reader receives.
pub(crate) enum ReadMessage {
    Read(PendingRead),
    /// The thread ends.
    Close,
}

/// Why a request was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The queue is full.
    Full,
    /// The store is closed.
    Closed,
    /// The store has failed.
    Failed,
}

impl Refused {
    /// What the submitter is told.
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Refused::Full => Outcome::Throttled,
            Refused::Closed => Outcome::Unavailable,
            Refused::Failed => Outcome::Fatal,
        }
    }
}

/// The ways into the engine.
pub(crate) struct Queues {
    commits: flume::Sender<CommitMessage>,
    reads: flume::Sender<ReadMessage>,
    /// Held for reading by whoever sends, so that nothing is sent behind the closing message.
    gate: RwLock<Gate>,
    failed: AtomicBool,
    counters: Arc<Counters>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Closed,
}

impl Queues {
    /// Wraps the senders.
    pub(crate) fn new(
        commits: flume::Sender<CommitMessage>,
        reads: flume::Sender<ReadMessage>,
        counters: Arc<Counters>,
    ) -> Queues {
        let gate = RwLock::new(Gate::Open);
        Queues { commits, reads, gate, failed: AtomicBool::new(false), counters }
    }

    /// Queues a commit, if there is room.
    pub(crate) fn push_commit(&self, pending: PendingCommit) -> Result<(), Refused> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.admit(*gate)?;
        let (class, bytes) = (queue_class(&pending.commit), pending.bytes);
        if !self.has_room(class, bytes) {
            return Err(Refused::Full);
        }
        self.counters.queue_add(class, bytes);
        self.commits.try_send(CommitMessage::Commit(pending)).map_err(|_| {
            self.counters.queue_remove(class, bytes);
            Refused::Full
        })
    }

    /// Queues a read, if there is room.
    pub(crate) fn push_read(&self, pending: PendingRead) -> Result<(), Refused> {
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.admit(*gate)?;
        self.reads.try_send(ReadMessage::Read(pending)).map_err(|_| Refused::Full)
    }

    /// Takes nothing more, and tells the threads to end once they have answered what waits. Only
    /// the first call does anything.
    pub(crate) fn close(&self, readers: usize) {
        let mut gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if *gate == Gate::Closed {
            return;
        }
        *gate = Gate::Closed;
        drop(gate);
        // A thread that has gone already needs no message.
        let _ = self.commits.send(CommitMessage::Close);
        for _ in 0..readers {
            let _ = self.reads.send(ReadMessage::Close);
        }
    }

    /// From now on every request answers `Fatal`.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Whether the store has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Reads that wait.
    pub(crate) fn queued_reads(&self) -> usize {
        self.reads.len()
    }

    fn admit(&self, gate: Gate) -> Result<(), Refused> {
        if self.has_failed() {
            return Err(Refused::Failed);
        }
        match gate {
            Gate::Open => Ok(()),
            Gate::Closed => Err(Refused::Closed),
        }
    }

    /// Several submitters may pass at once, so the bounds hold up to one commit of each.
    fn has_room(&self, class: Class, bytes: usize) -> bool {
        let (commits, queued) = self.counters.queued();
        let all = commits < QUEUE_COMMITS_MAX && queued + bytes <= QUEUE_BYTES_MAX;
        if class == Class::Interactive {
            return all;
        }
        let (commits, queued) = self.counters.queued_background();
        all && commits < QUEUE_COMMITS_MAX / QUEUE_BACKGROUND_DIVISOR
            && queued + bytes <= QUEUE_BYTES_MAX / QUEUE_BACKGROUND_DIVISOR
    }
}

/// The class in which a commit waits. A lane keeps its order, so its commits wait in one queue.
pub(crate) fn queue_class(commit: &Commit) -> Class {
    match commit.lane {
        Some(_) => Class::Interactive,
        None => commit.class,
    }
}

/// Answers in bulk: one call for each submitter, in the order of the answers.
pub(crate) fn deliver(answers: impl IntoIterator<Item = (Submitter, Completion)>) {
    // A handful of submitters (one a core): a list is faster than a map.
    let mut batches: Vec<(Submitter, Vec<Completion>)> = Vec::new();
    for (submitter, completion) in answers {
        match batches.iter_mut().find(|(to, _)| to.id == submitter.id) {
            Some((_, batch)) => batch.push(completion),
            None => batches.push((submitter, vec![completion])),
        }
    }
    for (submitter, batch) in batches {
        (submitter.sink)(batch);
    }
}
