//! Folders: locked, versioned, and opened again whatever happened.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use super::conformance::copy_tree;
use super::*;
use crate::store::embedded::OpenError;
use crate::takeover::TAKEOVER_MS_MAX;

fn a_folder_in_use_is_refused_after_a_bounded_wait(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let start = Instant::now();
    let second = EmbeddedStore::open(dir.path(), setup.config());
    assert!(matches!(second.err(), Some(OpenError::InUse { .. })));
    assert!(start.elapsed() >= Duration::from_millis(TAKEOVER_MS_MAX));
    assert!(start.elapsed() < PATIENCE);
    drop(store);
    open(setup, dir.path()).close();
}

/// A restart right after `kill -9` was refused, because the dying process still held the lock.
fn a_folder_that_is_let_go_meanwhile_opens(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(setup, dir.path());
    let dying = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        store.close();
    });
    let start = Instant::now();
    open(setup, dir.path()).close();
    assert!(start.elapsed() >= Duration::from_millis(300));
    dying.join().unwrap();
}

#[test]
fn a_newer_or_damaged_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(Setup::Plain, dir.path()).close();
    let open = || EmbeddedStore::open(dir.path(), Setup::Plain.config()).err();
    fs::write(dir.path().join("format"), "chatring-store 3\n").unwrap();
    assert!(matches!(open(), Some(OpenError::NewerFormat { found: 3, .. })));
    fs::write(dir.path().join("format"), "something else").unwrap();
    assert!(matches!(open(), Some(OpenError::Unreadable { .. })));
    fs::remove_file(dir.path().join("format")).unwrap();
    assert!(matches!(open(), Some(OpenError::Unreadable { .. })));
}

#[test]
fn rows_without_their_marker_are_unreadable_and_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    open(Setup::Plain, dir.path()).close();
    fs::remove_file(dir.path().join("rows/version")).unwrap();
    let error = EmbeddedStore::open(dir.path(), Setup::Plain.config()).err();
    assert!(matches!(error, Some(OpenError::Unreadable { .. })), "{error:?}");
}

#[test]
fn the_folder_is_made_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("deep/store");
    open(Setup::Plain, &made).close();
    assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_start_that_was_cut_off_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("rows.new/keyspaces")).unwrap();
    fs::write(dir.path().join("rows.new/0.jnl"), "half").unwrap();
    let store = open(Setup::Plain, dir.path());
    Client::new(&store).set("k", "1");
    store.close();
    assert!(!dir.path().join("rows.new").exists());
}

fn versions_rise_over_restarts_with_a_stopped_clock(setup: Setup) {
    let dir = tempfile::tempdir().unwrap();
    let mut last = Version(0);
    for (start_s, step_s) in [(0, 0), (1_000, 0), (0, 0), (0, 10)] {
        let (mut parts, _) = counting_parts(setup);
        let elapsed = AtomicU64::new(start_s);
        parts.elapsed = Arc::new(move || Duration::from_secs(elapsed.fetch_add(step_s, SeqCst)));
        let config = setup.config();
        let store = EmbeddedStore::open_with(dir.path(), config, parts).unwrap();
        let mut client = Client::new(&store);
        assert!(client.fresh() >= last, "fresh never lies below what was committed");
        for _ in 0..3 {
            let version = client.set("k", "1").version;
            assert!(version > last);
            assert_eq!(client.fresh(), version);
            last = version;
        }
    }
}

#[test]
fn a_torn_journal_tail_is_cut_off_and_everything_acked_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let store = open(Setup::Plain, dir.path());
    let mut client = Client::new(&store);
    for number in 0..20 {
        client.set(&format!("k{number:02}"), "1");
    }
    // What a kill leaves: the files as they are, with half a batch behind the last whole one.
    copy_tree(dir.path(), copy.path());
    let journal = journal_of(copy.path());
    let mut torn = fs::read(&journal).unwrap();
    let end = torn.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let start = torn[..end].windows(2).position(|pair| pair == b"k1").unwrap();
    let half: Vec<u8> = torn[start - 40..start + 8].to_vec();
    torn.truncate(end);
    torn.extend_from_slice(&half);
    fs::write(&journal, torn).unwrap();
    let store = open(Setup::Plain, copy.path());
    let mut client = Client::new(&store);
    assert_eq!(client.keys("k", "l").len(), 20);
    client.set("k20", "after");
    drop(store);
    let store = open(Setup::Plain, copy.path());
    assert_eq!(Client::new(&store).keys("k", "l").len(), 21);
}

fn journal_of(dir: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(dir.join("rows")).unwrap().map(|entry| entry.unwrap().path());
    files.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "jnl")).unwrap()
}

/// Opens a folder with one disk after the other; each sees what the ones before have written.
#[test]
fn a_folder_of_one_disk_is_converted_to_the_other_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let format = || fs::read_to_string(dir.path().join("format")).unwrap();
    let mut count = 0;
    let setups = [Setup::Plain, Setup::Hybrid, Setup::Plain, Setup::Small, Setup::Plain];
    for (number, setup) in setups.into_iter().chain([Setup::Hybrid, Setup::Small]).enumerate() {
        let store = open(setup, dir.path());
        let mut client = Client::new(&store);
        assert_eq!(client.keys("k", "l").len(), count, "{number}");
        assert_eq!(client.value("last").is_some(), number > 0);
        for _ in 0..40 {
            client.set(&format!("k{count:04}"), &"v".repeat(90));
            count += 1;
        }
        let last = client.set("last", &number.to_string()).version;
        store.close();
        let expected = match setup {
            Setup::Plain => "chatring-store 1\n",
            Setup::Hybrid | Setup::Small => "chatring-store 2 hybrid\n",
        };
        assert_eq!(format(), expected);
        assert_eq!(dir.path().join("log").exists(), setup != Setup::Plain);
        let store = open(setup, dir.path());
        assert_eq!(Client::new(&store).fresh(), last);
        store.close();
    }
}

/// A conversion that was cut off before the log went left one that must not be read again.
#[test]
fn a_log_beside_a_plain_disk_has_no_meaning() {
    let dir = tempfile::tempdir().unwrap();
    let old = tempfile::tempdir().unwrap();
    let store = open(Setup::Hybrid, dir.path());
    Client::new(&store).set("k", "old");
    store.close();
    copy_tree(&dir.path().join("log"), old.path());
    let store = open(Setup::Plain, dir.path());
    Client::new(&store).set("k", "new");
    store.close();
    copy_tree(old.path(), &dir.path().join("log"));
    let store = open(Setup::Hybrid, dir.path());
    assert_eq!(Client::new(&store).value("k").as_deref(), Some("new"));
}

#[test]
fn a_missing_or_damaged_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(Setup::Hybrid, dir.path());
    let mut client = Client::new(&store);
    for number in 0..5 {
        client.set(&format!("k{number}"), "1");
    }
    store.close();
    let refused = |words: &str| {
        let opened = EmbeddedStore::open(dir.path(), Setup::Hybrid.config());
        let error = opened.err().expect("is refused").to_string();
        assert!(error.contains(words), "{error}");
    };
    let segment = dir.path().join("log/0000000000000001.log");
    let whole = fs::read(&segment).unwrap();
    let at = whole.windows(2).position(|pair| pair == b"k1").unwrap();
    let mut damaged = whole.clone();
    damaged[at] = b'K';
    fs::write(&segment, &damaged).unwrap();
    refused("the log is damaged at segment 1");
    fs::write(&segment, &whole).unwrap();
    fs::rename(dir.path().join("rows"), dir.path().join("elsewhere")).unwrap();
    refused("it has a log but no rows");
    fs::rename(dir.path().join("elsewhere"), dir.path().join("rows")).unwrap();
    assert_eq!(Client::new(&open(Setup::Hybrid, dir.path())).keys("k", "l").len(), 5);
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    refused("its log is missing");
}

on_every_setup![
    a_folder_in_use_is_refused_after_a_bounded_wait,
    a_folder_that_is_let_go_meanwhile_opens,
    versions_rise_over_restarts_with_a_stopped_clock,
];
