//! Real file systems that run full under load, lose their filler, and the store goes on.
//!
//! They are mounted by the tests, which takes root; without it they are skipped, aloud.

use std::io::Write as _;
use std::time::Instant;

use self::small_fs::{Kind, SmallFs, fill};
use super::*;

#[allow(dead_code)]
#[path = "../../../../../tests/common/small_fs.rs"]
mod small_fs;

/// The 60 MB of a run are in the journal, in tables, and in both once more while tables are merged.
const FS_MIB: u64 = 384;

#[test]
fn a_full_tmpfs_loses_nothing_acked_and_the_store_goes_on_once_there_is_room() {
    run_full(Setup::Plain, Kind::Tmpfs);
    run_full(Setup::Hybrid, Kind::Tmpfs);
}

#[test]
fn a_full_ext4_loses_nothing_acked_and_the_store_goes_on_once_there_is_room() {
    run_full(Setup::Plain, Kind::Ext4);
    run_full(Setup::Hybrid, Kind::Ext4);
}

fn run_full(setup: Setup, kind: Kind) {
    for memtable_bytes in [4 << 20, 64 << 20] {
        let fs = match SmallFs::mount(kind, FS_MIB) {
            Ok(fs) => fs,
            Err(reason) => return skipped(kind, &reason),
        };
        let store_dir = fs.path().join("store");
        let (parts, fatal) = counting_parts(setup);
        let config = EmbeddedConfig { memtable_bytes, ..setup.config() };
        let store = EmbeddedStore::open_with(&store_dir, config, parts).unwrap();
        let mut client = Client::new(&store);
        let value = "v".repeat(10_000);
        let (mut acked, mut refused, mut fillings) = (Vec::new(), 0, 0);
        for number in 0..6_000 {
            if number % 1_000 == 500 {
                match fillings % 2 {
                    0 => fs.fill(1, 0),
                    // While the store goes on.
                    _ => {
                        let filler = fs.filler();
                        std::thread::spawn(move || fill(&filler, 64, 0));
                    }
                }
                fillings += 1;
            }
            let key = format!("k{number:06}");
            match client.commit(writes(vec![set(&key, &value)])) {
                Outcome::Committed(_) => acked.push(key),
                Outcome::Unavailable | Outcome::Unknown(_) => {
                    refused += 1;
                    // Time for the disk's own threads to run into the wall as well.
                    std::thread::sleep(Duration::from_millis(200));
                    fs.empty();
                    wait_for_room(&mut client, &store);
                }
                other => panic!("{other:?}"),
            }
        }
        let missing =
            |client: &mut Client| acked.iter().filter(|key| client.value(key).is_none()).count();
        assert_eq!(missing(&mut client), 0);
        drop(store);
        fs.empty();
        assert_eq!(missing(&mut Client::new(&open(setup, &store_dir))), 0);
        assert_eq!(fatal.load(SeqCst), 0);
        // The filler in the background may be slower than the commits.
        assert!(refused >= fillings / 2, "it was full {refused} times of {fillings}");
        eprintln!(
            "{setup:?}, {kind:?}: {} acked, {refused} refused, filled {fillings} times",
            acked.len()
        );
    }
}

/// Past the test harness, which swallows what a good test prints.
fn skipped(kind: Kind, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: a full {kind:?}: {reason}");
}

fn wait_for_room(client: &mut Client, store: &EmbeddedStore) {
    let start = Instant::now();
    while !matches!(client.commit(writes(vec![set("probe", "1")])), Outcome::Committed(_)) {
        assert!(start.elapsed() < PATIENCE, "the store goes on: {:?}", store.metrics());
        std::thread::sleep(Duration::from_millis(100));
    }
}
