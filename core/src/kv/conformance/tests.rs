use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::kv::faulty::{FaultKind, FaultRates, Faulty};
use crate::kv::mem::MemStore;
use crate::kv::prng::Prng;
use crate::kv::{KeyRange, Order, Outcome, ReadVersion, Stamp, Write};
use crate::sabotage::Breaks;

/// A way to break an engine from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    ConflictsIgnored,
    PointConflictsOnly,
    LanesIgnored,
    WritesReversed,
    RangesNotCleared,
    StampAtTheStart,
    FreshIsStale,
    AtIsFresh,
    RowsUnbounded,
    AlwaysForward,
    TooLargeAccepted,
    SpuriousConflict,
    ReopenLoses,
    CrashLoses,
    AgeIgnored,
}

/// Each bug with the case that must find it.
const BUGS: [(Bug, &str); 15] = [
    (Bug::ConflictsIgnored, "conflicts are found"),
    (Bug::PointConflictsOnly, "conflicts are found"),
    (Bug::LanesIgnored, "lanes stop and resume"),
    (Bug::WritesReversed, "writes apply in order"),
    (Bug::RangesNotCleared, "writes apply in order"),
    (Bug::StampAtTheStart, "stamps are put in"),
    (Bug::FreshIsStale, "writes apply in order"),
    (Bug::AtIsFresh, "old versions are read"),
    (Bug::RowsUnbounded, "ranges are read up to their bounds"),
    (Bug::AlwaysForward, "ranges are read up to their bounds"),
    (Bug::TooLargeAccepted, "bounds are kept"),
    (Bug::SpuriousConflict, "writes alone never conflict"),
    (Bug::ReopenLoses, "a reopened store goes on"),
    (Bug::CrashLoses, "a kill takes nothing back"),
    (Bug::AgeIgnored, "age is judged"),
];

struct MemHarness {
    store: MemStore,
    faulty: Faulty,
    faults: FaultsOn,
    prng: Prng,
    now_ms: u64,
    breaks: Breaks,
    bug: Option<Bug>,
    last_fresh: Option<ReadVersion>,
}

impl MemHarness {
    fn new(seed: u64, breaks: Breaks, bug: Option<Bug>) -> MemHarness {
        MemHarness {
            store: MemStore::new(0, breaks),
            faulty: Faulty::new(seed, FaultRates::none()),
            faults: FaultsOn::No,
            prng: Prng::new(!seed),
            now_ms: 0,
            breaks,
            bug,
            last_fresh: None,
        }
    }

    fn plain(seed: u64) -> MemHarness {
        MemHarness::new(seed, Breaks::NONE, None)
    }

    fn with_faults(seed: u64, per_mille: u16) -> MemHarness {
        let faulty = Faulty::new(seed, FaultRates::all(per_mille));
        MemHarness { faulty, faults: FaultsOn::Yes, ..MemHarness::plain(seed) }
    }

    fn set_time(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.store.advance(self.now_ms);
        self.faulty.advance(self.now_ms);
    }

    fn break_request(&mut self, request: &mut Request) {
        match (self.bug, request) {
            (Some(Bug::ConflictsIgnored), Request::Commit(commit)) => commit.conflicts.clear(),
            (Some(Bug::PointConflictsOnly), Request::Commit(commit)) => {
                commit.conflicts.retain(|range| *range == KeyRange::key(&range.start));
            }
            (Some(Bug::LanesIgnored), Request::Commit(commit)) => commit.lane = None,
            (Some(Bug::WritesReversed), Request::Commit(commit)) => commit.writes.reverse(),
            (Some(Bug::RangesNotCleared), Request::Commit(commit)) => {
                commit.writes.retain(|write| !matches!(write, Write::ClearRange(_)));
            }
            (Some(Bug::StampAtTheStart), Request::Commit(commit)) => {
                for write in &mut commit.writes {
                    if let Write::SetStamped { offset, .. } = write {
                        *offset = 0;
                    }
                }
            }
            (Some(Bug::FreshIsStale), Request::Read(read))
                if read.version == ReadVersion::Fresh =>
            {
                let stale = self.last_fresh.replace(ReadVersion::At(self.store.newest()));
                read.version = stale.unwrap_or(ReadVersion::Fresh);
            }
            (Some(Bug::AtIsFresh), Request::Read(read)) => read.version = ReadVersion::Fresh,
            (Some(Bug::RowsUnbounded), Request::Read(read)) => {
                read.ranges.iter_mut().for_each(|range| range.rows_max = u32::MAX);
            }
            (Some(Bug::AlwaysForward), Request::Read(read)) => {
                read.ranges.iter_mut().for_each(|range| range.order = Order::Forward);
            }
            _ => {}
        }
    }

    fn break_outcome(&mut self, outcome: &mut Outcome) {
        let told = match (self.bug, &*outcome) {
            (Some(Bug::TooLargeAccepted), Outcome::TooLarge) => {
                Outcome::Committed(Stamp::default())
            }
            (Some(Bug::AgeIgnored), Outcome::TooOld) => Outcome::Committed(Stamp::default()),
            (Some(Bug::SpuriousConflict), Outcome::Committed(_)) if self.prng.happens(200) => {
                Outcome::Conflict
            }
            _ => return,
        };
        *outcome = told;
    }
}

impl Harness for MemHarness {
    fn submit(&mut self, submitter: SubmitterId, mut request: Request, ticket: Ticket) {
        self.break_request(&mut request);
        self.faulty.submit(submitter, request, ticket);
        self.faulty.carry(&mut self.store);
    }

    fn resume(&mut self, submitter: SubmitterId, lane: LaneId) {
        self.faulty.resume(submitter, lane);
        self.faulty.carry(&mut self.store);
    }

    fn wait(&mut self) -> Vec<(SubmitterId, Completion)> {
        loop {
            self.faulty.carry(&mut self.store);
            let mut told: Vec<_> = std::iter::from_fn(|| self.faulty.poll_completion()).collect();
            if !told.is_empty() {
                told.iter_mut().for_each(|(_, done)| self.break_outcome(&mut done.outcome));
                return told;
            }
            if self.store.queued() > 0 && (self.store.syncing() == 0 || self.prng.happens(500)) {
                self.store.begin_sync();
            } else if self.store.syncing() > 0 {
                self.store.publish();
            } else if let Some(at_ms) = self.faulty.deadline_ms() {
                self.set_time(at_ms);
            } else {
                return told;
            }
        }
    }

    fn settle(&mut self) {
        assert!(self.wait().is_empty(), "settled before all was answered");
    }

    fn reopen(&mut self) {
        self.store.reopen();
        if self.bug == Some(Bug::ReopenLoses) {
            self.store = MemStore::new(self.now_ms, self.breaks);
        }
    }

    fn crash(&mut self) -> Supported {
        let syncing = self.store.syncing() as u64;
        let durable = usize::try_from(self.prng.below(syncing + 1)).expect("a small count");
        self.store.crash(durable);
        self.faulty.crash();
        if self.bug == Some(Bug::CrashLoses) {
            self.store = MemStore::new(self.now_ms, self.breaks);
        }
        Supported::Done
    }

    fn advance(&mut self, ms: u64) -> Supported {
        self.set_time(self.now_ms + ms);
        Supported::Done
    }

    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn faults(&self) -> FaultsOn {
        self.faults
    }
}

#[test]
fn the_reference_engine_keeps_every_rule() {
    run_cases(|| MemHarness::plain(1));
}

#[test]
fn random_programs_agree_with_the_model() {
    let mut coverage = Coverage::default();
    for seed in 0..60 {
        let mut harness = MemHarness::plain(seed);
        let met = run_program(&mut harness, seed, ProgramSize::default());
        coverage.add(&met.unwrap_or_else(|broken| panic!("{broken}")));
    }
    coverage.require(&Coverage::PLAIN).expect("programs meet every operation and outcome");
    coverage.require(&["crash"]).expect("programs meet kills");
}

#[test]
fn random_programs_with_faults_agree_with_the_model() {
    let mut coverage = Coverage::default();
    let mut faults = [0; FaultKind::ALL.len()];
    let (mut landed, mut not_landed) = (0, 0);
    for seed in 0..60 {
        let mut harness = MemHarness::with_faults(seed, 30);
        let met = run_program(&mut harness, seed, ProgramSize::default());
        coverage.add(&met.unwrap_or_else(|broken| panic!("{broken}")));
        for (kind, count) in harness.faulty.counts().iter() {
            faults[kind as usize] += count;
        }
        landed += harness.faulty.counts().landed;
        not_landed += harness.faulty.counts().not_landed;
    }
    coverage.require(&Coverage::PLAIN).expect("programs meet every operation and outcome");
    coverage.require(&Coverage::FAULTS).expect("programs meet every outcome of faults");
    assert!(faults.iter().all(|count| *count > 0), "a fault was never met: {faults:?}");
    assert!(landed > 0 && not_landed > 0, "late: {landed} landed, {not_landed} did not");
}

#[test]
fn each_case_finds_the_bug_that_breaks_its_rule() {
    for (bug, name) in BUGS {
        let case = cases::<MemHarness>().into_iter().find(|case| case.name == name);
        let case = case.expect("the case exists");
        let mut harness = MemHarness::new(1, Breaks::NONE, Some(bug));
        let passed = catch_unwind(AssertUnwindSafe(|| (case.check)(&mut harness))).is_ok();
        assert!(!passed, "{name:?} does not find {bug:?}");
    }
}

#[test]
fn random_programs_find_the_bugs() {
    // Ages are beyond a program's few seconds; the case above finds that bug.
    for (bug, _) in BUGS.into_iter().filter(|(bug, _)| *bug != Bug::AgeIgnored) {
        let found = (0..60).any(|seed| {
            let mut harness = MemHarness::new(seed, Breaks::NONE, Some(bug));
            run_program(&mut harness, seed, ProgramSize::default()).is_err()
        });
        assert!(found, "no program finds {bug:?}");
    }
}

#[cfg(feature = "sabotage")]
#[test]
fn versions_from_the_clock_are_found() {
    let breaks = Breaks::NONE.with(crate::sabotage::Break::VersionFromClock);
    let found = (0..60).any(|seed| {
        let mut harness = MemHarness::new(seed, breaks, None);
        run_program(&mut harness, seed, ProgramSize::default()).is_err()
    });
    assert!(found);
    let mut harness = MemHarness::new(1, breaks, None);
    let all = cases::<MemHarness>();
    let kill = all.iter().find(|case| case.name == "a kill takes nothing back");
    let kill = kill.expect("the case exists").check;
    assert!(catch_unwind(AssertUnwindSafe(|| kill(&mut harness))).is_err());
}
