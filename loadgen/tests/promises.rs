//! Goal: a run against a node that breaks a promise once, in one of a thousand messages, says so;
//! one against a node that keeps them all is good.
//!
//! Method: the whole generator over real sockets, against a small node in memory.

#![allow(clippy::unwrap_used)]

mod faulty_node;
mod reports;

use chatring_loadgen::cli::{Cli, Command};
use chatring_loadgen::report::Report;
use chatring_loadgen::scenario::verify::Verified;
use chatring_loadgen::scenario::{direct, idle, verify};
use clap::Parser as _;
use faulty_node::{Fault, FaultyNode};

const WINDOW: &str = "--window 4";

fn command(node: &FaultyNode, line: &str) -> Command {
    let ready = node.ready();
    let node = ["--node", ready.to_str().unwrap()];
    let mut words: Vec<_> = std::iter::once("chatring-loadgen").chain(line.split(' ')).collect();
    words.splice(2..2, node);
    Cli::parse_from(words).command
}

fn talk(node: &FaultyNode, load: &str) -> Report {
    let line = "direct --users 6 --duration 400ms --warmup 100ms --patience 500ms";
    let Command::Direct(mut options) = command(node, &format!("{line} {load}")) else {
        panic!("another command");
    };
    options.ledger = Some(node.path("ledger"));
    let (report, _notes) = direct::run(&options).unwrap();
    node.end_of_run();
    report
}

fn verified(node: &FaultyNode, ledger: &FaultyNode) -> Verified {
    let path = ledger.path("ledger");
    let line = format!("verify --ledger {}", path.display());
    let Command::Verify(options) = command(node, &line) else { panic!("another command") };
    verify::run(&options).unwrap()
}

#[test]
fn a_node_that_keeps_its_promises_is_good_and_an_empty_one_is_not() {
    let node = FaultyNode::start(Fault::None);
    for load in ["--rate 2000", "--window 4", "--rate 2000 --threads 2"] {
        let report = talk(&node, load);
        assert!(report.is_good(), "{load}: {report}");
        let counts = report.counts;
        assert!(counts.acked >= 600 && counts.acked == counts.delivered, "{load}: {report}");
        if load.starts_with("--rate") {
            assert_eq!(counts.sent, 1_000, "half a second of 2000/s");
            assert!((report.acked_per_s - 2_000.0).abs() < 300.0, "{report}");
        }
        assert_eq!((report.errors, report.reconnects), (0, 0));
        assert!(report.deliver.p50 > 0.0 && report.ack.max >= report.ack.p50);
        let overhead = report.wire.delivered_overhead_bytes.unwrap();
        assert!((5.0..=12.0).contains(&overhead), "{overhead}");
        let verified_here = verified(&node, &node);
        assert!(verified_here.is_good(), "{verified_here}");
        assert_eq!(verified_here.lines as u64, counts.acked);
        assert_eq!(verified_here.readings.found, 2 * counts.acked);
    }
    let empty = FaultyNode::start(Fault::None);
    let verified = verified(&empty, &node);
    assert!(!verified.is_good());
    assert_eq!(verified.readings.missing, 2 * verified.lines as u64);
}

#[test]
fn an_ack_of_a_message_that_is_not_stored_is_caught() {
    let node = FaultyNode::start(Fault::AckWithoutStore);
    let report = talk(&node, WINDOW);
    assert!(report.counts.lost + report.counts.unacked > 0, "{report}");
    assert!(!report.is_good());
}

#[test]
fn a_message_stored_twice_is_caught() {
    let node = FaultyNode::start(Fault::StoreTwice);
    let report = talk(&node, WINDOW);
    assert!(report.counts.duplicated > 0 && !report.is_good(), "{report}");
    let verified = verified(&node, &node);
    assert_eq!(verified.readings.duplicated, 2, "{verified}");
}

#[test]
fn messages_stored_in_the_wrong_order_are_caught() {
    let node = FaultyNode::start(Fault::Swap);
    let report = talk(&node, WINDOW);
    assert!(report.counts.reordered > 0 && !report.is_good(), "{report}");
    let verified = verified(&node, &node);
    assert!(verified.readings.reordered > 0, "{verified}");
}

#[test]
fn a_changed_byte_is_caught() {
    let node = FaultyNode::start(Fault::ChangeByte);
    let report = talk(&node, WINDOW);
    assert!(report.counts.corrupt > 0 && !report.is_good(), "{report}");
    let verified = verified(&node, &node);
    assert_eq!(verified.readings.wrong, 2, "{verified}");
}

#[test]
fn a_message_that_vanishes_later_is_caught_by_verify() {
    let node = FaultyNode::start(Fault::Forget);
    let report = talk(&node, WINDOW);
    assert!(report.is_good(), "{report}");
    let verified = verified(&node, &node);
    assert_eq!(verified.readings.missing, 2, "{verified}");
}

#[test]
fn a_run_goes_on_through_a_restart_at_another_port() {
    let node = FaultyNode::start(Fault::Restart);
    let report = talk(&node, "--rate 1000");
    assert!(report.is_good(), "{report}");
    assert_eq!(report.reconnects, 6);
    assert_eq!(report.counts.acked, 500);
    assert!(report.ack.max > 150_000.0, "the stall shows in the latencies: {report}");
    assert!(verified(&node, &node).is_good());
}

#[test]
fn idle_sessions_stay_and_are_counted() {
    let node = FaultyNode::start(Fault::None);
    let Command::Idle(options) = command(&node, "idle --users 7 --hold 100ms --threads 2") else {
        panic!("another command");
    };
    let held = idle::run(&options).unwrap();
    assert!(held.is_good(), "{held}");
    assert_eq!((held.users, held.connected), (7, 7));
}
