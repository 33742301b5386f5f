//! Goal: on a full disk nothing is acknowledged and nothing acknowledged is lost; once there is
//! room everything goes on by itself.
//! Method: the real binary on a small file system of its own, which a filler fills and leaves under
//! load. The generator keeps the books.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::load::{Load, verify};
use crate::common::skip::skipped;
use crate::common::small_fs::{Kind, SmallFs};
use crate::common::{Node, NodeOptions, get};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const FS_MIB: u64 = 256;
const MEMTABLE_BYTES: u64 = 4 << 20;

#[test]
fn a_full_tmpfs_delays_acks_and_loses_nothing() {
    run_full(Kind::Tmpfs);
}

#[test]
fn a_full_ext4_delays_acks_and_loses_nothing() {
    run_full(Kind::Ext4);
}

fn run_full(kind: Kind) {
    let fs = match SmallFs::mount(kind, FS_MIB) {
        Ok(fs) => fs,
        Err(reason) => return skipped(&format!("a full {kind:?}: {reason}")),
    };
    let config = format!("[store]\nmemtable_bytes = {MEMTABLE_BYTES}\n");
    let (config, data) = (Some(config), Some(fs.path().join("data")));
    let mut node = Node::start_with(NodeOptions { config, data, ..NodeOptions::default() });
    let ledger = node.ready_file().with_file_name("ledger");
    let load = Load::start(&node, &ledger, "--users 20 --rate 200 --warmup 0s --duration 12s");
    wait(|| lines(&ledger) > 100, "it is under load");

    // tmpfs takes a step that fails, too, for a moment: small ones do not free much again.
    fs.fill(256, 0);
    wait(|| node.log().contains("disk full: nothing is stored"), "the log says so");
    // Acks of what was stored before may still be on their way.
    std::thread::sleep(Duration::from_millis(500));
    let (acked_at_full, log_at_full) = (lines(&ledger), node.log());
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(lines(&ledger), acked_at_full, "no ack while it is full");
    assert!(!load.is_finished());
    assert_eq!(get(node.http(), "/healthz").status, 200);
    assert_eq!(node.log(), log_at_full, "it is said once");

    fs.empty();
    let again = "the disk has room again";
    wait(|| node.log()[log_at_full.len()..].contains(again), "the log says so");
    let report = load.report();
    assert!(report.is_good(), "{report}\n{}", node.log());
    assert!(report.counts.acked as usize > acked_at_full);
    let verified = verify(&node, &ledger);
    assert!(verified.is_good(), "{verified}");
    assert_eq!(verified.lines as u64, report.counts.acked);
    node.restart();
    assert!(verify(&node, &ledger).is_good());
}

fn lines(ledger: &Path) -> usize {
    // The generator makes it when it begins.
    std::fs::read_to_string(ledger).map_or(0, |text| text.lines().count())
}

fn wait(mut done: impl FnMut() -> bool, what: &str) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
