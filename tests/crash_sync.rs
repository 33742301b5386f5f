//! Goal: a message is acknowledged after the disk has synced it, and never if that failed.
//! Method: the real binary under strace, which delays each sync, counts them, or lets one fail.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::Duration;

use crate::common::load::{Load, verify};
use crate::common::skip::{no_strace, skipped, strace};
use crate::common::{Node, NodeOptions};

/// What the disk takes longer for each sync.
const DELAY_US: u32 = 50_000;

#[test]
fn an_ack_waits_for_the_sync_and_every_ack_has_one() {
    if let Some(reason) = no_strace() {
        return skipped(reason);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    let inject = format!("inject=fdatasync,fsync:delay_exit={DELAY_US}");
    let node = Node::start_with(NodeOptions {
        wrapper: strace(&trace, &["-e", "trace=fdatasync,fsync", "-e", &inject]),
        ..NodeOptions::default()
    });
    let syncs_before = syncs(&trace);
    let ledger = folder.path().join("ledger");
    // One message in flight, so that no ack can lean on the sync of another message.
    let load = "--users 2 --rate 4 --warmup 0s --duration 5s";
    let report = Load::start(&node, &ledger, load).report();
    assert!(report.is_good(), "{report}\n{}", node.log());
    assert!(report.ack.p50 >= f64::from(DELAY_US), "{report}");
    let syncs = syncs(&trace) - syncs_before;
    assert!(syncs as u64 >= report.counts.acked, "{syncs} syncs\n{report}");
    assert!(verify(&node, &ledger).is_good());
}

#[test]
fn a_failed_sync_ends_the_server_and_nothing_acked_is_missing_after_the_restart() {
    if let Some(reason) = no_strace() {
        return skipped(reason);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (trace, ledger) = (folder.path().join("trace"), folder.path().join("ledger"));
    let mut node = Node::start();
    node.kill();
    let inject = "inject=fdatasync:error=EIO:when=100+";
    let wrapper = strace(&trace, &["-e", "trace=fdatasync", "-e", inject]);
    node.set_wrapper(&wrapper.iter().map(String::as_str).collect::<Vec<_>>());
    node.restart();
    let load = "--users 20 --rate 100 --warmup 0s --duration 10s";
    let load = Load::start(&node, &ledger, load);
    let status = node.wait(Duration::from_secs(60));
    // strace ends the way its child did.
    let aborted = status.signal() == Some(6) || status.code() == Some(128 + 6);
    assert!(aborted, "{status:?}\n{}", node.log());
    assert!(node.log().contains("the store has failed"), "{}", node.log());
    // Everything that a client was told before the end, and only that, is in the ledger by now.
    let acked_before = std::fs::read_to_string(&ledger).expect("a ledger").lines().count();
    assert!(acked_before > 0, "it failed under load, not before it");
    node.set_wrapper(&[]);
    node.restart();
    let verified = verify(&node, &ledger);
    assert!(verified.readings.missing == 0 && verified.readings.wrong == 0, "{verified}");
    let report = load.report();
    assert!(report.is_good(), "{report}\n{}", node.log());
    let verified = verify(&node, &ledger);
    assert!(verified.is_good(), "{verified}");
    assert_eq!(verified.lines as u64, report.counts.acked);
}

/// Syncs of the store's journal that are done.
fn syncs(trace: &PathBuf) -> usize {
    let text = std::fs::read_to_string(trace).expect("a trace");
    text.lines().filter(|line| line.contains("fdatasync") && line.contains(" = 0")).count()
}
