//! Commits and reads on a healthy disk.

use chatring_core::kv::STAMP_BYTES;

use super::*;

fn what_is_committed_is_read(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    assert_eq!(client.value("a"), None);
    let first = client.set("a", "1");
    let second = client.set("b", "2");
    assert!(second.version > first.version);
    assert_eq!(client.value("a").as_deref(), Some("1"));
    assert_eq!(client.fresh(), second.version);
    assert_eq!(client.keys("a", "z"), ["a", "b"]);
    store.close();
}

fn the_last_write_of_a_commit_wins_and_clears_see_earlier_ones(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    client.set("m1", "old");
    client.set("m2", "old");
    let commit = writes(vec![
        set("m3", "gone"),
        Write::ClearRange(range("m", "n")),
        set("m2", "new"),
        set("m4", "x"),
        Write::Clear { key: bytes("m4") },
        set("m5", "1"),
        set("m5", "2"),
    ]);
    stamp(client.commit(commit));
    assert_eq!(client.keys("m", "n"), ["m2", "m5"]);
    assert_eq!(client.value("m5").as_deref(), Some("2"));
}

fn a_stamped_value_holds_the_stamp_of_its_commit(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    let value = Bytes::from(vec![7; STAMP_BYTES + 3]);
    let write = Write::SetStamped { key: bytes("s"), value: value.clone(), offset: 2 };
    let given = stamp(client.commit(writes(vec![write])));
    let read = rows(client.read(get("s", ReadVersion::Fresh))).gets.remove(0).unwrap();
    assert_eq!(read[..2], [7, 7]);
    assert_eq!(Stamp::from_bytes(read[2..2 + STAMP_BYTES].try_into().unwrap()), given);
    assert_eq!(read[2 + STAMP_BYTES..], [7]);
    let write = Write::SetStamped { key: bytes("s"), value, offset: 4 };
    assert_eq!(client.commit(writes(vec![write])), Outcome::TooLarge);
}

fn a_conflict_is_found_for_keys_ranges_and_clears(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    client.set("k", "1");
    let version = client.fresh();
    let key = || vec![KeyRange::key(&bytes("k"))];
    stamp(client.commit(guarded(version, key(), set("k", "2"))));
    assert_eq!(client.commit(guarded(version, key(), set("k", "3"))), Outcome::Conflict);
    let within = vec![range("j", "l")];
    assert_eq!(client.commit(guarded(version, within, set("k", "3"))), Outcome::Conflict);
    assert_eq!(client.value("k").as_deref(), Some("2"));
    let version = client.fresh();
    stamp(client.commit(writes(vec![Write::ClearRange(range("a", "z"))])));
    assert_eq!(client.commit(guarded(version, key(), set("k", "3"))), Outcome::Conflict);
    let elsewhere = vec![range("zz", "zzz")];
    stamp(client.commit(guarded(version, elsewhere, set("k", "4"))));
    assert_eq!(store.metrics().conflicts, 3);
}

fn commits_of_one_group_conflict_with_each_other(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults, _) = open_faulty(setup, dir.path());
    let mut client = Client::new(&store);
    let version = client.fresh();
    faults.delay_ms.store(200, SeqCst);
    client.submit(Request::Commit(writes(vec![set("holds", "the disk")])));
    std::thread::sleep(Duration::from_millis(50));
    for _ in 0..2 {
        let commit = guarded(version, vec![KeyRange::key(&bytes("k"))], set("k", "1"));
        client.submit(Request::Commit(commit));
    }
    stamp(client.answer().outcome);
    stamp(client.answer().outcome);
    assert_eq!(client.answer().outcome, Outcome::Conflict);
    assert_eq!(faults.writes.load(SeqCst), 2);
}

fn groups_start_as_far_apart_as_the_disk_asks_for(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults, _) = open_faulty(setup, dir.path());
    let mut client = Client::new(&store);
    faults.pause_ms.store(1_000, SeqCst);
    client.set("begins", "1");
    client.submit(Request::Commit(writes(vec![set("waits", "1")])));
    std::thread::sleep(Duration::from_millis(100));
    client.submit(Request::Commit(writes(vec![set("joins", "1")])));
    stamp(client.answer().outcome);
    stamp(client.answer().outcome);
    assert_eq!(faults.writes.load(SeqCst), 2);
}

fn a_read_version_from_elsewhere_is_too_old(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    client.set("k", "1");
    let version = client.fresh();
    let key = || vec![KeyRange::key(&bytes("k"))];
    for foreign in [Version(0), Version(version.0 + 1)] {
        let commit = guarded(foreign, key(), set("k", "2"));
        assert_eq!(client.commit(commit), Outcome::TooOld);
        assert_eq!(client.read(get("k", ReadVersion::At(foreign))), Outcome::TooOld);
    }
    drop(store);
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    assert_eq!(client.fresh(), version);
    let commit = guarded(Version(version.0 - 1), key(), set("k", "2"));
    assert_eq!(client.commit(commit), Outcome::TooOld);
    stamp(client.commit(guarded(version, key(), set("k", "2"))));
}

fn a_version_given_by_a_fresh_read_stays_readable(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    client.set("k", "1");
    let version = client.fresh();
    let unseen = client.set("k", "2").version;
    client.set("k", "3");
    assert_eq!(client.value_at("k", ReadVersion::At(version)).as_deref(), Some("1"));
    assert_eq!(client.value("k").as_deref(), Some("3"));
    let read = client.read(get("k", ReadVersion::At(unseen)));
    assert_eq!(read, Outcome::TooOld);
    assert!(store.metrics().snapshots_held >= 1);
}

fn a_failed_commit_stops_its_lane_until_it_is_resumed(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults, _) = open_faulty(setup, dir.path());
    let mut client = Client::new(&store);
    let stale = client.fresh();
    client.set("k", "1");
    faults.delay_ms.store(100, SeqCst);
    let failing = guarded(stale, vec![KeyRange::key(&bytes("k"))], set("l", "1"));
    client.submit(Request::Commit(in_lane(1, writes(vec![set("l", "0")]))));
    client.submit(Request::Commit(in_lane(1, failing)));
    client.submit(Request::Commit(in_lane(1, writes(vec![set("l", "2")]))));
    client.submit(Request::Commit(in_lane(2, writes(vec![set("other", "1")]))));
    let outcomes: Vec<Outcome> = (0..4).map(|_| client.answer().outcome).collect();
    assert!(matches!(
        outcomes[..],
        [Outcome::Committed(_), Outcome::Conflict, Outcome::LaneStopped, Outcome::Committed(_)]
    ));
    let again = in_lane(1, writes(vec![set("l", "3")]));
    assert_eq!(client.commit(again.clone()), Outcome::LaneStopped);
    client.handle.resume(LaneId(1));
    stamp(client.commit(again));
    assert_eq!(client.value("l").as_deref(), Some("3"));
}

fn a_commit_refused_at_submission_stops_its_lane_too(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    let large = writes(vec![Write::Clear { key: Bytes::from(vec![1; 10_001]) }]);
    assert_eq!(client.commit(in_lane(1, large)), Outcome::TooLarge);
    let small = in_lane(1, writes(vec![set("k", "1")]));
    assert_eq!(client.commit(small.clone()), Outcome::LaneStopped);
    client.handle.resume(LaneId(1));
    stamp(client.commit(small));
}

fn the_engines_own_rows_cannot_be_seen_or_changed(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    client.set("k", "1");
    let key = Bytes::from_static(b"\xff/version");
    let write = Write::Set { key, value: Bytes::new() };
    assert_eq!(client.commit(writes(vec![write])), Outcome::TooLarge);
    let all = KeyRange { start: Bytes::new(), end: Bytes::from_static(b"\xff") };
    stamp(client.commit(writes(vec![Write::ClearRange(all)])));
    let version = client.fresh();
    drop(store);
    assert_eq!(Client::new(&open(setup, dir.path())).fresh(), version);
}

fn reads_keep_to_their_bounds_in_both_orders(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let mut client = Client::new(&store);
    for key in ["a", "b", "c"] {
        client.set(key, "12345");
    }
    let read = |order, rows_max, bytes_max| {
        let range = RangeRead { range: range("a", "z"), rows_max, bytes_max, order };
        Read { gets: Vec::new(), ranges: vec![range], version: ReadVersion::Fresh }
    };
    let mut keys = |order, rows_max, bytes_max| {
        let found = rows(client.read(read(order, rows_max, bytes_max))).ranges.remove(0).rows;
        found.into_iter().map(|(key, _)| key[0] as char).collect::<String>()
    };
    assert_eq!(keys(Order::Forward, 2, 1_000), "ab");
    assert_eq!(keys(Order::Reverse, 2, 1_000), "cb");
    assert_eq!(keys(Order::Forward, 9, 7), "ab");
    assert_eq!(keys(Order::Forward, 9, 6), "a");
    assert_eq!(keys(Order::Forward, 9, 0), "a");
}

fn background_commits_give_way_and_get_on(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let (store, faults, _) = open_faulty(setup, dir.path());
    let mut client = Client::new(&store);
    faults.delay_ms.store(100, SeqCst);
    client.submit(Request::Commit(writes(vec![set("holds", "the disk")])));
    std::thread::sleep(Duration::from_millis(30));
    let value = "x".repeat(90_000);
    let background: Vec<Ticket> = (0..6)
        .map(|number| {
            let commit = writes(vec![set(&format!("background{number}"), &value)]);
            client.submit(Request::Commit(Commit { class: Class::Background, ..commit }))
        })
        .collect();
    let interactive = client.submit(Request::Commit(writes(vec![set("interactive", "1")])));
    client.answer();
    let order: Vec<Ticket> = (0..7).map(|_| client.answer().ticket).collect();
    assert_eq!(order[0], interactive);
    assert_eq!(order[1..], background[..]);
    assert!(faults.writes.load(SeqCst) >= 4, "the background was spread over groups");
}

on_every_setup![
    what_is_committed_is_read,
    the_last_write_of_a_commit_wins_and_clears_see_earlier_ones,
    a_stamped_value_holds_the_stamp_of_its_commit,
    a_conflict_is_found_for_keys_ranges_and_clears,
    commits_of_one_group_conflict_with_each_other,
    groups_start_as_far_apart_as_the_disk_asks_for,
    a_read_version_from_elsewhere_is_too_old,
    a_version_given_by_a_fresh_read_stays_readable,
    a_failed_commit_stops_its_lane_until_it_is_resumed,
    a_commit_refused_at_submission_stops_its_lane_too,
    the_engines_own_rows_cannot_be_seen_or_changed,
    reads_keep_to_their_bounds_in_both_orders,
    background_commits_give_way_and_get_on,
];
