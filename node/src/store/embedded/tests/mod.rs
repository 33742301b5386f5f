//! Tests of the engine as its submitters see it.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use chatring_core::kv::{
    Class, Commit, Completion, KeyRange, Kv, LaneId, Order, Outcome, RangeRead, Read, ReadVersion,
    Request, Rows, Stamp, Ticket, Version, Write,
};

use super::disk::fault::{FaultDisk, Faults};
use super::{DiskKind, EmbeddedConfig, EmbeddedHandle, EmbeddedStore, Parts};

/// Makes a test of each function for each [`Setup`].
macro_rules! on_every_setup {
    ($($test:ident),* $(,)?) => {
        mod plain {
            $(#[test] fn $test() { super::$test(crate::store::embedded::tests::Setup::Plain) })*
        }
        mod hybrid {
            $(#[test] fn $test() { super::$test(crate::store::embedded::tests::Setup::Hybrid) })*
        }
        mod small_hybrid {
            $(#[test] fn $test() { super::$test(crate::store::embedded::tests::Setup::Small) })*
        }
    };
}

mod commits;
mod conformance;
mod failures;
mod folders;
mod full;

pub(super) use self::conformance::copy_killed;

/// What the engine under test writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setup {
    /// The plain disk.
    Plain,
    /// The hybrid disk as it is by default: these tests never fill a memtable.
    Hybrid,
    /// A hybrid disk with memtables and segments so small that it seals and ingests all the time.
    Small,
}

impl Setup {
    pub(super) fn config(self) -> EmbeddedConfig {
        // Thousands of commits, one after the other.
        let default = EmbeddedConfig { commit_gap_us: 0, ..EmbeddedConfig::default() };
        match self {
            Setup::Plain => EmbeddedConfig { disk: DiskKind::Plain, ..default },
            Setup::Hybrid => EmbeddedConfig { disk: DiskKind::Hybrid, ..default },
            Setup::Small => {
                EmbeddedConfig { disk: DiskKind::Hybrid, memtable_bytes: 2_000, ..default }
            }
        }
    }
}

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A submitter that waits for its answers.
pub(super) struct Client {
    pub handle: EmbeddedHandle,
    answers: flume::Receiver<Completion>,
    next: u64,
}

impl Client {
    pub(super) fn new(store: &EmbeddedStore) -> Client {
        let (sink, answers) = flume::unbounded(); // bound: the test's requests
        let handle = store.handle(move |batch| {
            for completion in batch {
                let _ = sink.send(completion);
            }
        });
        Client { handle, answers, next: 0 }
    }

    pub(super) fn submit(&mut self, request: Request) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.handle.submit(request, ticket);
        ticket
    }

    pub(super) fn answer(&self) -> Completion {
        self.answers.recv_timeout(PATIENCE).expect("every request is answered")
    }

    pub(super) fn answer_within(&self, patience: Duration) -> Option<Completion> {
        self.answers.recv_timeout(patience).ok()
    }

    pub(super) fn commit(&mut self, commit: Commit) -> Outcome {
        let ticket = self.submit(Request::Commit(commit));
        let completion = self.answer();
        assert_eq!(completion.ticket, ticket);
        completion.outcome
    }

    pub(super) fn set(&mut self, key: &str, value: &str) -> Stamp {
        stamp(self.commit(writes(vec![set(key, value)])))
    }

    pub(super) fn read(&mut self, read: Read) -> Outcome {
        let ticket = self.submit(Request::Read(read));
        let completion = self.answer();
        assert_eq!(completion.ticket, ticket);
        completion.outcome
    }

    pub(super) fn fresh(&mut self) -> Version {
        rows(self.read(get("none", ReadVersion::Fresh))).version
    }

    pub(super) fn value(&mut self, key: &str) -> Option<String> {
        self.value_at(key, ReadVersion::Fresh)
    }

    pub(super) fn value_at(&mut self, key: &str, version: ReadVersion) -> Option<String> {
        let value = rows(self.read(get(key, version))).gets.remove(0);
        value.map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    pub(super) fn keys(&mut self, start: &str, end: &str) -> Vec<String> {
        let ranges = vec![RangeRead {
            range: range(start, end),
            rows_max: 1_000,
            bytes_max: 1 << 20,
            order: Order::Forward,
        }];
        let read = Read { gets: Vec::new(), ranges, version: ReadVersion::Fresh };
        let rows = rows(self.read(read)).ranges.remove(0).rows;
        rows.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect()
    }
}

pub(super) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(super) fn set(key: &str, value: &str) -> Write {
    Write::Set { key: bytes(key), value: bytes(value) }
}

pub(super) fn range(start: &str, end: &str) -> KeyRange {
    KeyRange { start: bytes(start), end: bytes(end) }
}

pub(super) fn writes(writes: Vec<Write>) -> Commit {
    let (class, conflicts) = (Class::Interactive, Vec::new());
    Commit { lane: None, class, read_version: None, conflicts, writes }
}

pub(super) fn guarded(read_version: Version, conflicts: Vec<KeyRange>, write: Write) -> Commit {
    Commit { read_version: Some(read_version), conflicts, ..writes(vec![write]) }
}

pub(super) fn in_lane(lane: u16, commit: Commit) -> Commit {
    Commit { lane: Some(LaneId(lane)), ..commit }
}

pub(super) fn get(key: &str, version: ReadVersion) -> Read {
    Read { gets: vec![bytes(key)], ranges: Vec::new(), version }
}

pub(super) fn stamp(outcome: Outcome) -> Stamp {
    match outcome {
        Outcome::Committed(stamp) => stamp,
        other => panic!("not committed: {other:?}"),
    }
}

pub(super) fn rows(outcome: Outcome) -> Rows {
    match outcome {
        Outcome::Rows(rows) => rows,
        other => panic!("no rows: {other:?}"),
    }
}

/// Parts whose failures are counted instead of ending the process.
pub(super) fn counting_parts(setup: Setup) -> (Parts, Arc<AtomicU64>) {
    let fatal = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&fatal);
    let on_fatal: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(move |_| {
        counter.fetch_add(1, SeqCst);
    });
    let mut parts = Parts { on_fatal, ..Parts::default() };
    if setup == Setup::Small {
        parts.segment_bytes = 16 << 10;
    }
    (parts, fatal)
}

pub(super) fn open(setup: Setup, dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open_with(dir, setup.config(), counting_parts(setup).0).unwrap()
}

/// A store over a disk that misbehaves on demand, and the count of fatal reports.
pub(super) fn open_faulty(
    setup: Setup,
    dir: &Path,
) -> (EmbeddedStore, Arc<Faults>, Arc<AtomicU64>) {
    let faults = Arc::new(Faults::default());
    let (mut parts, fatal) = counting_parts(setup);
    let wrapped = Arc::clone(&faults);
    parts.wrap = Box::new(move |inner| Arc::new(FaultDisk { inner, faults: wrapped }));
    let store = EmbeddedStore::open_with(dir, setup.config(), parts).unwrap();
    (store, faults, fatal)
}
