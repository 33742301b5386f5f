use bytes::Bytes;

use super::*;
use crate::kv::{Class, KeyRange, Version, Write};
use crate::sabotage::Breaks;

const A: SubmitterId = SubmitterId(1);
const LANE: LaneId = LaneId(7);

struct World {
    faulty: Faulty,
    store: MemStore,
}

impl World {
    fn new(rates: FaultRates) -> World {
        World { faulty: Faulty::new(1, rates), store: MemStore::new(0, Breaks::NONE) }
    }

    fn submit(&mut self, ticket: u64, commit: Commit) {
        self.faulty.submit(A, Request::Commit(commit), Ticket(ticket));
    }

    /// Carries out all that can happen now and gives the answers.
    fn run(&mut self) -> Vec<(u64, Outcome)> {
        loop {
            self.faulty.carry(&mut self.store);
            if self.store.queued() == 0 {
                break;
            }
            self.store.sync_all();
        }
        let told = std::iter::from_fn(|| self.faulty.poll_completion());
        told.map(|(_, done)| (done.ticket.0, done.outcome)).collect()
    }

    fn has(&self, name: &'static str) -> bool {
        self.store.history().get(name.as_bytes(), self.store.newest()).is_some()
    }
}

fn put(name: &'static str) -> Commit {
    let key = Bytes::from_static(name.as_bytes());
    Commit {
        lane: Some(LANE),
        class: Class::Interactive,
        read_version: None,
        conflicts: Vec::new(),
        writes: vec![Write::Set { key, value: Bytes::new() }],
    }
}

fn fenced(name: &'static str, at: Version) -> Commit {
    let fence = KeyRange::key(&Bytes::from_static(b"fence"));
    Commit { read_version: Some(at), conflicts: vec![fence], ..put(name) }
}

fn only(kind: FaultKind) -> FaultRates {
    FaultRates::all(0).with(kind, 1_000)
}

fn unknown(may: InFlight) -> Outcome {
    Outcome::Unknown(may)
}

#[test]
fn a_late_commit_lands_after_its_lane_was_stopped() {
    let mut world = World::new(only(FaultKind::UnknownLate));
    world.submit(1, fenced("late", Version(0)));
    world.submit(2, put("behind"));
    assert_eq!(world.run(), [(1, unknown(InFlight::Maybe)), (2, Outcome::LaneStopped)]);
    assert!(!world.has("late"));
    world.faulty.advance(1_000);
    assert_eq!(world.run(), []);
    assert!(world.has("late") && !world.has("behind"));
    assert_eq!(world.faulty.counts().landed, 1);
}

#[test]
fn a_late_commit_meets_the_conflicts_of_the_time_when_it_lands() {
    let mut world = World::new(only(FaultKind::UnknownLate));
    world.submit(1, fenced("late", Version(0)));
    world.faulty.set_rates(FaultRates::none());
    world.submit(2, Commit { lane: None, ..put("fence") });
    world.run();
    world.faulty.resume(A, LANE);
    world.faulty.advance(1_000);
    world.run();
    assert!(world.has("fence") && !world.has("late"));
    // Its failure is its own: the lane has gone on without it.
    world.submit(3, put("on"));
    assert!(matches!(world.run()[..], [(3, Outcome::Committed(_))]));
    assert_eq!(world.faulty.counts().not_landed, 1);
}

#[test]
fn a_hidden_commit_has_happened_and_nothing_of_its_lane_follows_it() {
    let mut world = World::new(only(FaultKind::UnknownAfter));
    world.submit(1, put("hidden"));
    world.faulty.set_rates(FaultRates::none());
    world.submit(2, put("behind"));
    assert_eq!(world.run(), [(1, unknown(InFlight::No)), (2, Outcome::LaneStopped)]);
    assert!(world.has("hidden") && !world.has("behind"));
    world.faulty.resume(A, LANE);
    world.submit(3, put("on"));
    assert!(matches!(world.run()[..], [(3, Outcome::Committed(_))]));
}

#[test]
fn a_refused_commit_waits_for_its_lane_and_gives_way_to_an_earlier_failure() {
    let mut world = World::new(FaultRates::none());
    let ahead = fenced("ahead", Version(9_999));
    world.submit(1, put("first"));
    world.submit(2, ahead);
    world.faulty.set_rates(only(FaultKind::UnknownBefore));
    world.submit(3, put("refused"));
    assert_eq!(world.faulty.poll_completion(), None);
    let told = world.run();
    assert!(matches!(told[0], (2, Outcome::TooOld)), "{told:?}");
    assert!(told.contains(&(3, Outcome::LaneStopped)), "{told:?}");
    assert_eq!(world.faulty.counts().of(FaultKind::UnknownBefore), 0);
    world.faulty.resume(A, LANE);
    world.submit(4, put("refused"));
    assert_eq!(world.run(), [(4, unknown(InFlight::No))]);
    assert!(world.has("first") && !world.has("refused"));
}

#[test]
fn slow_commits_keep_the_order_of_their_lane() {
    let mut world = World::new(only(FaultKind::SlowCommit));
    world.submit(1, put("slow"));
    world.faulty.set_rates(FaultRates::none());
    world.submit(2, put("behind"));
    assert_eq!(world.run(), []);
    let at_ms = world.faulty.deadline_ms().expect("a delay has an end");
    world.faulty.advance(at_ms.max(51));
    let told = world.run();
    let stamps: Vec<_> = told
        .iter()
        .map(|(ticket, outcome)| match outcome {
            Outcome::Committed(stamp) => (*ticket, stamp.order),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(stamps, [(1, 0), (2, 1)]);
}

#[test]
fn writes_alone_never_conflict_and_fresh_reads_are_never_too_old() {
    let rates = FaultRates::none().with(FaultKind::Conflict, 500).with(FaultKind::TooOld, 500);
    let mut world = World::new(rates);
    let read = Read { gets: Vec::new(), ranges: Vec::new(), version: ReadVersion::Fresh };
    for ticket in 0..50 {
        world.submit(ticket, put("k"));
        world.faulty.submit(A, Request::Read(read.clone()), Ticket(1_000 + ticket));
    }
    for (_, outcome) in world.run() {
        assert!(matches!(outcome, Outcome::Committed(_) | Outcome::Rows(_)), "{outcome:?}");
    }
}
