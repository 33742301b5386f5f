//! Syncs that fail or are late, disks that are full, threads that are slow.

use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::crash_dir::Kept;
use super::*;
use crate::store::embedded::disk::hybrid::limits::{PAUSE_FROM, PAUSE_MAX, SEALED_TABLES_MAX};
use crate::store::embedded::disk::hybrid::pause_at;
use crate::store::embedded::disk::hybrid::probe::Step;

fn numbered(number: u64) -> Batch {
    batch(vec![(format!("k{number:04}"), Some("v".repeat(200)))])
}

fn keys(disk: &HybridDisk) -> usize {
    rows(&*disk.snapshot(), &all(), Order::Forward).len()
}

#[test]
fn nothing_is_shown_before_its_sync() {
    let folder = tempfile::tempdir().unwrap();
    make_rows(folder.path());
    let dir = CrashDir::default();
    let disk = Arc::new(open(folder.path(), &dir, options(Probe::default())).unwrap());
    disk.write(numbered(1)).unwrap();
    dir.faults.sync_delay_ms.store(200, SeqCst);
    let start = Instant::now();
    let writer = Arc::clone(&disk);
    let writing = std::thread::spawn(move || drop(writer.write(numbered(2)).unwrap()));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(keys(&disk), 1);
    writing.join().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert_eq!(keys(&disk), 2);
}

#[test]
fn a_failed_sync_stops_the_disk_and_is_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    make_rows(folder.path());
    let dir = CrashDir::default();
    let disk = open(folder.path(), &dir, options(Probe::default())).unwrap();
    disk.write(numbered(1)).unwrap();
    dir.faults.fail_sync.store(true, SeqCst);
    assert!(matches!(disk.write(numbered(2)).err(), Some(DiskError::Io(_))));
    dir.faults.fail_sync.store(false, SeqCst);
    assert!(matches!(disk.write(numbered(3)).err(), Some(DiskError::Stopped(_))));
    assert!(disk.check().is_err());
    assert_eq!(keys(&disk), 1);
    let crashed = dir.crashed(Kept::Synced);
    drop(disk);
    assert_eq!(keys(&open(folder.path(), &crashed, options(Probe::default())).unwrap()), 1);
}

#[test]
fn a_full_disk_is_opened_again_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    make_rows(folder.path());
    let dir = CrashDir::default();
    let disk = open(folder.path(), &dir, options(Probe::default())).unwrap();
    let mut stored = 0;
    for round in 0..5 {
        for _ in 0..20 {
            stored += 1;
            disk.write(numbered(stored)).unwrap();
        }
        dir.faults.full.store(true, SeqCst);
        let mut error = disk.write(numbered(9_000 + round)).err();
        while error.is_none() {
            // A segment that is prepared already has room.
            error = disk.write(numbered(9_000 + round)).err();
        }
        assert!(error.unwrap().is_full());
        assert!(disk.check().unwrap_err().is_full());
        assert!(disk.reopen().is_err_and(|error| error.is_full()));
        dir.faults.full.store(false, SeqCst);
        let snapshot = disk.reopen().unwrap();
        for number in 1..=stored {
            let key = format!("k{number:04}");
            assert!(snapshot.get(key.as_bytes()).unwrap().is_some(), "{key}");
        }
        disk.check().unwrap();
    }
}

#[test]
fn writes_wait_while_too_many_memtables_wait_to_be_ingested() {
    let folder = tempfile::tempdir().unwrap();
    make_rows(folder.path());
    let (hold, held) = flume::bounded::<()>(0);
    let held = Mutex::new(held);
    let at = move |step: Step| {
        if step == Step::RowsGiven {
            // Until the sender goes.
            let _ = held.lock().unwrap().recv();
        }
    };
    let options = options(Probe { at: Some(Arc::new(at)) });
    let counters = Arc::clone(&options.counters);
    let disk = Arc::new(open(folder.path(), &CrashDir::default(), options).unwrap());
    let writer = Arc::clone(&disk);
    let writing = std::thread::spawn(move || {
        (0..200).for_each(|number| drop(writer.write(numbered(number)).unwrap()));
    });
    std::thread::sleep(Duration::from_millis(500));
    assert!(!writing.is_finished());
    assert_eq!(counters.read().sealed_tables, SEALED_TABLES_MAX);
    assert_eq!(disk.pause(), PAUSE_MAX, "all are full");
    drop(hold);
    writing.join().unwrap();
    assert!(counters.read().stalls > 0);
    assert_eq!(keys(&disk), 200);
    disk.drain().unwrap();
    assert_eq!(disk.pause(), Duration::ZERO, "all are at rest");
}

#[test]
fn groups_pause_the_longer_the_fuller_the_memtables_are() {
    assert_eq!([0.0, 0.3, PAUSE_FROM].map(pause_at), [Duration::ZERO; 3]);
    let pauses = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1].map(pause_at);
    assert!(pauses.is_sorted() && pauses[0] > Duration::ZERO, "{pauses:?}");
    assert_eq!(pauses[4..], [PAUSE_MAX; 2]);
}

#[test]
fn a_failure_of_the_ingester_is_told_and_ends_the_waiting() {
    let folder = tempfile::tempdir().unwrap();
    make_rows(folder.path());
    let at = move |step: Step| assert_ne!(step, Step::RowsGiven, "injected");
    let options = options(Probe { at: Some(Arc::new(at)) });
    let disk = open(folder.path(), &CrashDir::default(), options).unwrap();
    let failed = (0..1_000).find_map(|number| disk.write(numbered(number)).err());
    assert!(matches!(failed, Some(DiskError::Stopped(_))), "{failed:?}");
    assert!(disk.check().is_err());
}

#[test]
fn a_batch_above_a_segment_gets_one_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    make_rows(folder.path());
    let dir = CrashDir::default();
    let disk = open(folder.path(), &dir, options(Probe::default())).unwrap();
    for number in 0..4 {
        disk.write(numbered(number)).unwrap();
        let large = format!("large{number}");
        disk.write(batch(vec![(large, Some("l".repeat(50_000)))])).unwrap();
    }
    let crashed = dir.crashed(Kept::Synced);
    drop(disk);
    let disk = open(folder.path(), &crashed, options(Probe::default())).unwrap();
    assert_eq!(keys(&disk), 8);
    disk.drain().unwrap();
    assert_eq!(keys(&disk), 8);
}

#[test]
fn what_is_drained_is_all_at_rest() {
    let folder = tempfile::tempdir().unwrap();
    make_rows(folder.path());
    let disk = open(folder.path(), &CrashDir::default(), options(Probe::default())).unwrap();
    (0..77).for_each(|number| drop(disk.write(numbered(number)).unwrap()));
    disk.drain().unwrap();
    disk.close().unwrap();
    drop(disk);
    let plain = PlainDisk::open(folder.path(), options(Probe::default()).plain).unwrap();
    assert_eq!(rows(&*plain.snapshot(), &all(), Order::Forward).len(), 77);
}
