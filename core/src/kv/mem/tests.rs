use super::*;
use crate::kv::{KeyRange, Order, RangeEnd, RangeRead, Rows};
use bytes::Bytes;

const A: SubmitterId = SubmitterId(1);

fn key(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn set(name: &str, value: &str) -> Write {
    Write::Set { key: key(name), value: key(value) }
}

fn blind(writes: Vec<Write>) -> Commit {
    Commit {
        lane: None,
        class: Class::Interactive,
        read_version: None,
        conflicts: Vec::new(),
        writes,
    }
}

fn store() -> MemStore {
    MemStore::new(0, Breaks::NONE)
}

fn done(store: &mut MemStore) -> Vec<Outcome> {
    std::iter::from_fn(|| store.poll_completion()).map(|(_, done)| done.outcome).collect()
}

fn commit(store: &mut MemStore, commit: Commit) -> Outcome {
    store.submit(A, Request::Commit(commit), Ticket(0));
    store.sync_all();
    done(store).pop().expect("one answer")
}

fn read(store: &mut MemStore, version: ReadVersion, name: &str) -> Outcome {
    let read = Read { gets: vec![key(name)], ranges: Vec::new(), version };
    store.submit(A, Request::Read(read), Ticket(0));
    done(store).pop().expect("one answer")
}

fn version_of(outcome: &Outcome) -> Version {
    match outcome {
        Outcome::Committed(stamp) => stamp.version,
        Outcome::Rows(Rows { version, .. }) => *version,
        other => panic!("no version in {other:?}"),
    }
}

fn value_of(outcome: &Outcome) -> Option<Bytes> {
    match outcome {
        Outcome::Rows(rows) => rows.gets[0].clone(),
        other => panic!("no rows in {other:?}"),
    }
}

#[test]
fn nothing_is_seen_or_acknowledged_before_it_is_published() {
    let mut store = store();
    store.submit(A, Request::Commit(blind(vec![set("k", "v")])), Ticket(0));
    store.begin_sync();
    assert_eq!(value_of(&read(&mut store, ReadVersion::Fresh, "k")), None);
    store.publish();
    assert!(matches!(done(&mut store)[..], [Outcome::Committed(_)]));
    assert_eq!(value_of(&read(&mut store, ReadVersion::Fresh, "k")), Some(key("v")));
}

#[test]
fn a_crash_keeps_what_was_durable_and_loses_the_rest() {
    let mut store = store();
    for name in ["a", "b", "c"] {
        store.submit(A, Request::Commit(blind(vec![set(name, "v")])), Ticket(0));
        store.begin_sync();
    }
    store.publish();
    store.crash(1);
    assert!(done(&mut store).is_empty());
    let found = ["a", "b", "c"].map(|name| value_of(&read(&mut store, ReadVersion::Fresh, name)));
    assert_eq!(found, [Some(key("v")), Some(key("v")), None]);
}

#[test]
fn versions_follow_the_clock_from_the_last_persisted_one() {
    let mut store = store();
    store.advance(2_000);
    let first = version_of(&commit(&mut store, blind(vec![set("k", "1")])));
    assert_eq!(first, Version(2 * VERSIONS_PER_SECOND));
    let second = version_of(&commit(&mut store, blind(vec![set("k", "2")])));
    assert_eq!(second, Version(first.0 + 1));
    // Idle for a minute, then killed: the minute has left nothing behind.
    store.advance(62_000);
    assert_eq!(version_of(&read(&mut store, ReadVersion::Fresh, "k")), second);
    store.crash(0);
    assert_eq!(version_of(&read(&mut store, ReadVersion::Fresh, "k")), second);
    let third = version_of(&commit(&mut store, blind(vec![set("k", "3")])));
    assert_eq!(third, Version(second.0 + 1));
}

#[cfg(feature = "sabotage")]
#[test]
fn fresh_versions_from_the_clock_lie_above_what_comes_after_a_crash() {
    let mut store = MemStore::new(0, Breaks::NONE.with(Break::VersionFromClock));
    commit(&mut store, blind(vec![set("k", "1")]));
    store.advance(60_000);
    let fresh = version_of(&read(&mut store, ReadVersion::Fresh, "k"));
    store.crash(0);
    assert!(version_of(&commit(&mut store, blind(vec![set("k", "2")]))) < fresh);
}

#[test]
fn read_versions_age_by_what_was_written_since() {
    let mut store = store();
    let old = version_of(&commit(&mut store, blind(vec![set("k", "1")])));
    // An idle store can be read and judged at its newest version for ever.
    store.advance(60_000);
    assert_eq!(value_of(&read(&mut store, ReadVersion::At(old), "k")), Some(key("1")));
    let new = version_of(&commit(&mut store, blind(vec![set("k", "2")])));
    store.advance(65_000);
    assert_eq!(value_of(&read(&mut store, ReadVersion::At(old), "k")), Some(key("1")));
    let fenced = |at| Commit {
        read_version: Some(at),
        conflicts: vec![KeyRange::key(&key("k"))],
        ..blind(vec![])
    };
    assert_eq!(commit(&mut store, fenced(old)), Outcome::Conflict);
    store.advance(65_001);
    assert_eq!(read(&mut store, ReadVersion::At(old), "k"), Outcome::TooOld);
    assert_eq!(commit(&mut store, fenced(old)), Outcome::TooOld);
    assert!(matches!(commit(&mut store, fenced(new)), Outcome::Committed(_)));
    let reached = store.assigned;
    assert_eq!(commit(&mut store, fenced(Version(reached.0 + 1))), Outcome::TooOld);
}

#[test]
fn a_failed_commit_stops_its_lane_until_it_is_resumed() {
    let mut store = store();
    let in_lane =
        |lane, name: &str| Commit { lane: Some(LaneId(lane)), ..blind(vec![set(name, "v")]) };
    let too_large = Write::Clear { key: vec![0; 10_001].into() };
    store.submit(A, Request::Commit(in_lane(1, "a")), Ticket(0));
    store.submit(
        A,
        Request::Commit(Commit { lane: Some(LaneId(1)), ..blind(vec![too_large]) }),
        Ticket(1),
    );
    store.submit(A, Request::Commit(in_lane(1, "b")), Ticket(2));
    store.submit(A, Request::Commit(in_lane(2, "c")), Ticket(3));
    store.submit(SubmitterId(2), Request::Commit(in_lane(1, "d")), Ticket(4));
    store.sync_all();
    store.submit(A, Request::Commit(in_lane(1, "e")), Ticket(5));
    store.sync_all();
    let mut answers: Vec<_> =
        std::iter::from_fn(|| store.poll_completion()).map(|(_, done)| done).collect();
    answers.sort_by_key(|done| done.ticket);
    let failed: Vec<_> = answers
        .iter()
        .filter(|done| !matches!(done.outcome, Outcome::Committed(_)))
        .map(|done| (done.ticket.0, done.outcome.clone()))
        .collect();
    assert_eq!(
        failed,
        [(1, Outcome::TooLarge), (2, Outcome::LaneStopped), (5, Outcome::LaneStopped)]
    );
    store.resume(A, LaneId(1));
    assert!(matches!(commit(&mut store, in_lane(1, "f")), Outcome::Committed(_)));
}

#[test]
fn a_full_store_answers_unavailable_and_a_failed_one_fatal() {
    let mut store = store();
    store.set_full(true);
    assert_eq!(commit(&mut store, blind(vec![set("k", "1")])), Outcome::Unavailable);
    store.set_full(false);
    store.submit(A, Request::Commit(blind(vec![set("k", "2")])), Ticket(0));
    store.begin_sync();
    store.submit(A, Request::Commit(blind(vec![set("k", "3")])), Ticket(1));
    store.fail();
    assert_eq!(done(&mut store), [Outcome::Fatal, Outcome::Fatal]);
    assert_eq!(read(&mut store, ReadVersion::Fresh, "k"), Outcome::Fatal);
    store.crash(1);
    assert_eq!(value_of(&read(&mut store, ReadVersion::Fresh, "k")), Some(key("2")));
}

#[test]
fn the_history_of_a_key_tells_each_write_and_pruning_keeps_what_can_be_read() {
    let mut store = store();
    let first = version_of(&commit(&mut store, blind(vec![set("k", "0"), set("k", "1")])));
    commit(&mut store, blind(vec![Write::Clear { key: key("k") }, Write::Clear { key: key("x") }]));
    let range = KeyRange { start: key("a"), end: key("z") };
    commit(&mut store, blind(vec![set("k", "2"), Write::ClearRange(range)]));
    let values = |store: &MemStore| -> Vec<_> {
        store.history().of_key(b"k").iter().map(|written| written.value.clone()).collect()
    };
    assert_eq!(values(&store), [Some(key("1")), None, None]);
    assert!(store.history().of_key(b"x").is_empty());
    assert_eq!(store.history().rows_at(first).count(), 1);
    store.prune();
    assert_eq!(values(&store).len(), 3);
    commit(&mut store, blind(vec![set("k", "3")]));
    store.advance(10_000);
    store.prune();
    assert_eq!(values(&store), [Some(key("3"))]);
    assert_eq!(store.history().rows_at(store.newest()).count(), 1);
}

#[test]
fn ranges_are_read_from_either_end_up_to_their_bounds() {
    let mut store = store();
    commit(&mut store, blind(["a", "b", "c", "d"].map(|name| set(name, "v")).into()));
    let mut rows = |order, rows_max, bytes_max| {
        let range = KeyRange { start: key("a"), end: key("d") };
        let ranges = vec![RangeRead { range, rows_max, bytes_max, order }];
        let read = Read { gets: Vec::new(), ranges, version: ReadVersion::Fresh };
        store.submit(A, Request::Read(read), Ticket(0));
        let Some(Outcome::Rows(rows)) = done(&mut store).pop() else { panic!("no rows") };
        let keys: Vec<u8> = rows.ranges[0].rows.iter().map(|(key, _)| key[0]).collect();
        (String::from_utf8(keys).expect("ASCII"), rows.ranges[0].end)
    };
    assert_eq!(rows(Order::Forward, 9, 99), ("abc".into(), RangeEnd::Complete));
    assert_eq!(rows(Order::Reverse, 9, 99), ("cba".into(), RangeEnd::Complete));
    assert_eq!(rows(Order::Reverse, 2, 99), ("cb".into(), RangeEnd::More));
    assert_eq!(rows(Order::Forward, 9, 3), ("ab".into(), RangeEnd::More));
    assert_eq!(rows(Order::Forward, 9, 0), ("a".into(), RangeEnd::More));
}

#[test]
fn versions_of_lost_groups_are_given_again() {
    let mut store = store();
    let kept = version_of(&commit(&mut store, blind(vec![set("k", "1")])));
    for _ in 0..3 {
        store.submit(A, Request::Commit(blind(vec![set("k", "2")])), Ticket(0));
        store.begin_sync();
    }
    store.crash(0);
    let next = version_of(&commit(&mut store, blind(vec![set("k", "3")])));
    assert_eq!(next, Version(kept.0 + 1));
}

#[test]
fn a_full_queue_throttles_and_stops_only_what_comes_later_in_the_lane() {
    let mut store = store();
    let in_lane = || Commit { lane: Some(LaneId(1)), ..blind(vec![set("k", "v")]) };
    for _ in 0..=QUEUE_COMMITS_MAX {
        store.submit(A, Request::Commit(in_lane()), Ticket(0));
    }
    assert_eq!(done(&mut store), [Outcome::Throttled]);
    store.sync_all();
    let told = done(&mut store);
    assert_eq!(told.len(), QUEUE_COMMITS_MAX);
    assert!(told.iter().all(|told| matches!(told, Outcome::Committed(_))));
    assert_eq!(commit(&mut store, in_lane()), Outcome::LaneStopped);
}
