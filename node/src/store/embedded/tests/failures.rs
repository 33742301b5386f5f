//! Disks that are slow, full, failing, or lie.

use std::io;
use std::sync::Mutex;
use std::time::Instant;

use chatring_core::kv::InFlight;

use super::*;
use crate::store::embedded::disk::fault::{PageCacheDisk, Platter, Syncing};
use crate::store::embedded::resolver::ResolverBounds;
use crate::store::embedded::room::Space;
use crate::store::embedded::{FIRST_VERSION, system};

fn nothing_is_answered_before_the_sync(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults, _) = open_faulty(setup, dir.path());
    let mut client = Client::new(&store);
    faults.delay_ms.store(150, SeqCst);
    let start = Instant::now();
    client.submit(Request::Commit(writes(vec![set("k", "1")])));
    assert_eq!(client.answer_within(Duration::from_millis(100)), None);
    stamp(client.answer().outcome);
    assert!(start.elapsed() >= Duration::from_millis(150));
    assert!(store.metrics().write_us_sum >= 150_000);
}

fn a_read_does_not_see_a_group_that_is_being_synced(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults, _) = open_faulty(setup, dir.path());
    let mut client = Client::new(&store);
    let before = client.fresh();
    faults.delay_ms.store(300, SeqCst);
    client.submit(Request::Commit(writes(vec![set("k", "1")])));
    std::thread::sleep(Duration::from_millis(50));
    let read = client.submit(Request::Read(get("k", ReadVersion::Fresh)));
    let first = client.answer();
    assert_eq!(first.ticket, read);
    let read = rows(first.outcome);
    assert_eq!((read.version, read.gets), (before, vec![None]));
    stamp(client.answer().outcome);
    assert_eq!(client.value("k").as_deref(), Some("1"));
}

fn a_failed_sync_is_fatal_acknowledges_nothing_and_is_not_tried_again(setup: Setup) {
    for stored in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (store, faults, fatal) = open_faulty(setup, dir.path());
        let mut client = Client::new(&store);
        let acked = client.set("acked", "1").version;
        let counter = if stored { &faults.fail_after } else { &faults.fail_before };
        counter.store(1, SeqCst);
        assert_eq!(client.commit(writes(vec![set("lost", "1")])), Outcome::Fatal);
        counter.store(u64::MAX, SeqCst);
        assert_eq!(client.commit(writes(vec![set("later", "1")])), Outcome::Fatal);
        assert_eq!(client.read(get("acked", ReadVersion::Fresh)), Outcome::Fatal);
        assert_eq!(faults.writes.load(SeqCst), 2, "no write follows a failed one");
        drop(store);
        assert_eq!(fatal.load(SeqCst), 1);
        let store = open(setup, dir.path());
        let mut client = Client::new(&store);
        assert_eq!(client.value("acked").as_deref(), Some("1"));
        assert_eq!(client.value("lost").is_some(), stored);
        assert!(client.fresh() >= acked);
    }
}

fn a_full_disk_acknowledges_nothing_and_goes_on_once_there_is_room(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (mut parts, fatal) = counting_parts(setup);
    let free = Arc::new(AtomicU64::new(1 << 30));
    let probed = Arc::clone(&free);
    parts.space = Some(Arc::new(move || {
        Ok::<_, io::Error>(Space { free_bytes: probed.load(SeqCst), total_bytes: 1 << 30 })
    }));
    let config = setup.config();
    let store = EmbeddedStore::open_with(dir.path(), config, parts).unwrap();
    let mut client = Client::new(&store);
    client.set("before", "1");
    free.store((64 << 20) - 1, SeqCst);
    let commit = in_lane(1, writes(vec![set("full", "1")]));
    assert_eq!(client.commit(commit.clone()), Outcome::Unavailable);
    assert_eq!(client.commit(commit.clone()), Outcome::LaneStopped);
    assert_eq!(client.value("full"), None);
    assert_eq!(client.value("before").as_deref(), Some("1"));
    free.store(1 << 30, SeqCst);
    client.handle.resume(LaneId(1));
    stamp(client.commit(commit));
    assert_eq!(fatal.load(SeqCst), 0);
    let metrics = store.metrics();
    assert_eq!((metrics.unavailable, metrics.lane_stopped), (1, 1));
    assert_eq!(metrics.reserve_bytes, 64 << 20);
}

fn a_write_without_room_is_unknown_and_the_store_goes_on_once_there_is_room(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults, fatal) = open_faulty(setup, dir.path());
    let mut client = Client::new(&store);
    client.set("before", "1");
    faults.full.store(true, SeqCst);
    faults.fail_before.store(1, SeqCst);
    let commit = in_lane(1, writes(vec![set("torn", "1")]));
    assert_eq!(client.commit(commit.clone()), Outcome::Unknown(InFlight::Maybe));
    assert_eq!(client.commit(commit.clone()), Outcome::LaneStopped);
    faults.fail_before.store(u64::MAX, SeqCst);
    let again = client.commit(writes(vec![set("after", "1")]));
    stamp(again);
    assert_eq!(client.value("torn"), None);
    assert_eq!(client.value("before").as_deref(), Some("1"));
    client.handle.resume(LaneId(1));
    stamp(client.commit(commit));
    assert_eq!(fatal.load(SeqCst), 0);
}

fn a_write_that_is_there_although_its_sync_failed_for_want_of_room_is_fatal(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults, fatal) = open_faulty(setup, dir.path());
    let mut client = Client::new(&store);
    faults.full.store(true, SeqCst);
    faults.fail_after.store(0, SeqCst);
    let commit = writes(vec![set("k", "1")]);
    assert_eq!(client.commit(commit.clone()), Outcome::Unknown(InFlight::Maybe));
    faults.fail_after.store(u64::MAX, SeqCst);
    assert_eq!(client.commit(commit), Outcome::Fatal);
    drop(store);
    assert_eq!(fatal.load(SeqCst), 1);
}

#[test]
fn a_skipped_sync_loses_acked_rows_and_is_noticed() {
    assert_eq!(acked_rows_lost_by_a_crash(Syncing::Honest), 0);
    assert!(acked_rows_lost_by_a_crash(Syncing::Skipped) > 0);
}

/// Commits over a page cache, crashes, opens again and counts what was acked and is gone.
fn acked_rows_lost_by_a_crash(syncing: Syncing) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let platter: Platter = Arc::default();
    let version_row =
        (Bytes::from_static(system::VERSION_KEY), system::version_value(FIRST_VERSION));
    platter.lock().unwrap().extend([version_row]);
    let start = || {
        let (mut parts, _) = counting_parts(Setup::Plain);
        let platter = Arc::clone(&platter);
        parts.wrap = Box::new(move |_| Arc::new(PageCacheDisk::new(platter, syncing)));
        EmbeddedStore::open_with(dir.path(), Setup::Plain.config(), parts).unwrap()
    };
    let store = start();
    let mut client = Client::new(&store);
    for number in 0..10 {
        client.set(&format!("k{number}"), "1");
    }
    drop(store);
    10 - Client::new(&start()).keys("k", "l").len()
}

fn a_full_queue_throttles_and_everything_is_answered_once(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults, _) = open_faulty(setup, dir.path());
    let answers = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&answers);
    let mut handle = store.handle(move |batch| sink.lock().unwrap().extend(batch));
    faults.delay_ms.store(500, SeqCst);
    let value = Bytes::from(vec![0; 100_000]);
    let large = |number: u64| {
        let key = |row: u64| bytes(&format!("{number}/{row}"));
        let set = |row| Write::Set { key: key(row), value: value.clone() };
        Request::Commit(writes((0..90).map(set).collect()))
    };
    for number in 0..12 {
        handle.submit(large(number), Ticket(number));
    }
    faults.delay_ms.store(0, SeqCst);
    store.close();
    let answers = answers.lock().unwrap();
    let mut tickets: Vec<u64> = answers.iter().map(|answer| answer.ticket.0).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (0..12).collect::<Vec<u64>>());
    let throttled = answers.iter().filter(|answer| answer.outcome == Outcome::Throttled).count();
    let committed =
        answers.iter().filter(|answer| matches!(answer.outcome, Outcome::Committed(_))).count();
    assert_eq!(throttled + committed, 12);
    assert!(throttled >= 3, "the queue took {committed} commits of 9 MB");
}

fn a_closed_store_answers_unavailable(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    client.submit(Request::Commit(writes(vec![set("k", "1")])));
    store.close();
    stamp(client.answer().outcome);
    assert_eq!(client.commit(writes(vec![set("k", "2")])), Outcome::Unavailable);
    assert_eq!(client.read(get("k", ReadVersion::Fresh)), Outcome::Unavailable);
}

fn a_forgotten_window_makes_read_versions_too_old(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (mut parts, _) = counting_parts(setup);
    parts.bounds = ResolverBounds { keys_max: 2, ..ResolverBounds::default() };
    let config = setup.config();
    let store = EmbeddedStore::open_with(dir.path(), config, parts).unwrap();
    let mut client = Client::new(&store);
    let version = client.fresh();
    let key = || vec![KeyRange::key(&bytes("k"))];
    stamp(client.commit(guarded(version, key(), set("a", "1"))));
    client.set("b", "1");
    stamp(client.commit(guarded(version, key(), set("a", "2"))));
    assert_eq!(client.commit(guarded(version, key(), set("a", "3"))), Outcome::TooOld);
}

on_every_setup![
    nothing_is_answered_before_the_sync,
    a_read_does_not_see_a_group_that_is_being_synced,
    a_failed_sync_is_fatal_acknowledges_nothing_and_is_not_tried_again,
    a_full_disk_acknowledges_nothing_and_goes_on_once_there_is_room,
    a_write_without_room_is_unknown_and_the_store_goes_on_once_there_is_room,
    a_write_that_is_there_although_its_sync_failed_for_want_of_room_is_fatal,
    a_full_queue_throttles_and_everything_is_answered_once,
    a_closed_store_answers_unavailable,
    a_forgotten_window_makes_read_versions_too_old,
];
