//! Goal: a report tells what happened, to those who wait, and about the generator itself.
//!
//! Method: as in `promises`; a node that stalls or holds a known rate, a generator that is slowed.

use std::process::Command as Process;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chatring_loadgen::cli::Command;
use chatring_loadgen::report::Report;
use chatring_loadgen::report::interval::Stage;
use chatring_loadgen::scenario::{direct, knee};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry, Tag};

use super::command;
use super::faulty_node::{Fault, FaultyNode};

fn run(node: &FaultyNode, line: &str) -> Report {
    let Command::Direct(mut options) = command(node, &format!("direct --users 6 {line}")) else {
        panic!("another command");
    };
    options.output.hdr_log = Some(node.path("log.hlog"));
    direct::run(&options).unwrap().0
}

/// All histograms of a tag, added up.
fn logged(node: &FaultyNode, tag: &str) -> Histogram<u64> {
    let log = std::fs::read(node.path("log.hlog")).unwrap();
    let mut total: Option<Histogram<u64>> = None;
    for entry in IntervalLogIterator::new(&log) {
        let LogEntry::Interval(interval) = entry.unwrap() else { continue };
        if interval.tag() != Tag::new(tag) {
            continue;
        }
        let bytes = STANDARD.decode(interval.encoded_histogram()).unwrap();
        let histogram = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        match &mut total {
            Some(total) => total.add(&histogram).unwrap(),
            None => total = Some(histogram),
        }
    }
    total.expect("the log has such lines")
}

#[test]
fn a_stall_shows_in_every_message_that_it_held_up_and_none_is_skipped() {
    let node = FaultyNode::start(Fault::Stall(Duration::from_millis(1_000)));
    let report = run(&node, "--rate 1000 --warmup 0s --duration 2s");
    assert!(report.is_good(), "{report}");
    assert_eq!(report.counts.sent, 2_000, "every planned send was made");
    let log = logged(&node, "ack");
    assert_eq!(log.len(), 2_000);
    // Evenly spaced messages of a second wait from one second down to nothing.
    let slow = log.count_between(250_000_000, u64::MAX);
    assert!((700..=1_100).contains(&slow), "{slow} messages waited a quarter of a second or more");
    assert!(report.ack.max > 900_000.0, "{report}");
    assert_eq!(report.generator.sends, 2_000);
}

#[test]
fn sends_that_wait_for_an_absent_node_count_from_their_intended_time_and_not_as_lag() {
    let node = FaultyNode::start(Fault::Restart);
    let report = run(&node, "--rate 1000 --warmup 0s --duration 1s");
    assert!(report.is_good() && report.counts.sent == 1_000, "{report}");
    let held = report.generator.held;
    assert!(held > 100, "{held} messages were due while the node was away");
    let waited = logged(&node, "ack").count_between(20_000_000, u64::MAX);
    assert!(waited * 10 > held * 7, "{waited} of {held} show that they waited");
    assert!(report.generator.lag.p50 < 20_000.0, "{report}");
}

#[test]
fn the_interval_log_the_series_and_the_report_agree() {
    let node = FaultyNode::start(Fault::None);
    let report = run(&node, "--rate 500 --warmup 500ms --duration 2500ms --threads 2");
    for (tag, reported) in [("ack", report.ack), ("deliver", report.deliver)] {
        let log = logged(&node, tag);
        assert_eq!(log.len(), 1_250, "{tag}: those intended in the measured time, and no others");
        let us = |quantile| (log.value_at_quantile(quantile) as f64 / 100.0).round() / 10.0;
        assert_eq!((us(0.5), us(0.99)), (reported.p50, reported.p99), "{tag}");
    }
    let count = |stage| report.series.iter().filter(|row| row.stage == stage).count();
    assert_eq!((count(Stage::WarmUp), count(Stage::Measured)), (1, 3));
    let acked: f64 = report.series.iter().map(|row| row.acked_per_s * row.length_s).sum();
    assert!((acked - 1_500.0).abs() < 1.0, "{acked}");
    assert_eq!(report.durability.as_deref(), Some("memory"));
    assert!(!report.machine.cpu.is_empty() && !report.curves.ack.is_empty());
}

#[test]
fn parts_of_a_changing_load_are_reported_by_themselves() {
    let node = FaultyNode::start(Fault::None);
    let report = run(&node, "--steps 200,400 --warmup 0s --duration 2s");
    assert_eq!(report.counts.sent, 600);
    let sections = report.sections;
    assert_eq!((sections[0].from_per_s, sections[1].from_per_s), (200, 400));
    let acked = sections[0].acked_per_s;
    assert!((acked - 200.0).abs() < 20.0, "{acked}");
    let report = run(&node, "--ramp 100..900 --warmup 0s --duration 1s");
    assert_eq!((report.counts.sent, report.sections.len()), (500, 10));
    assert!(report.sections[9].ack.p99 > 0.0);
}

#[test]
fn strict_fails_exactly_if_the_generator_was_the_bottleneck() {
    let node = FaultyNode::start(Fault::None);
    let json = node.path("report.json");
    let exit = |more: &[&str]| {
        let mut process = Process::new(env!("CARGO_BIN_EXE_chatring-loadgen"));
        process.args(["direct", "--users", "6", "--rate", "2000", "--duration", "500ms"]);
        process.args(["--warmup", "0s", "--node"]).arg(node.ready());
        process.arg("--json").arg(&json).args(more);
        let output = process.output().unwrap();
        let report: Report = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.contains("BOTTLENECK"), report.is_generator_bottleneck(), "{text}");
        (output.status.code().unwrap(), report.is_generator_bottleneck())
    };
    // Each message takes twice as long as there is time for one.
    assert_eq!(exit(&["--burn-us", "1000", "--strict"]), (3, true));
    assert_eq!(exit(&["--burn-us", "1000"]), (0, true));
    // A crowded machine may slow it, too.
    let (code, is_bottleneck) = exit(&["--strict"]);
    assert_eq!(code, if is_bottleneck { 3 } else { 0 });
}

#[test]
fn progress_is_a_line_per_second_on_stderr() {
    let node = FaultyNode::start(Fault::None);
    let mut process = Process::new(env!("CARGO_BIN_EXE_chatring-loadgen"));
    process.args(["direct", "--users", "2", "--window", "1", "--duration", "2s"]);
    process.args(["--warmup", "1s", "--progress", "--node"]).arg(node.ready());
    let output = process.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("acked")).collect();
    assert!(lines.len() >= 3, "{text}");
    assert!(lines[0].contains("warm-up") && lines[1].contains("ack p50"), "{text}");
    assert!(lines.iter().all(|line| line.contains("of a core")), "{text}");
}

#[test]
fn a_load_above_what_the_node_holds_leaves_a_backlog() {
    let node = FaultyNode::start(Fault::Paced(Duration::from_millis(2)));
    let report = run(&node, "--rate 1000 --warmup 0s --duration 1s");
    assert_eq!(report.counts.sent, 1_000);
    assert!(report.backlog.start < 100, "{:?}", report.backlog);
    assert!((400..=700).contains(&report.backlog.end), "{:?}", report.backlog);
    assert!(report.acked_per_s < 600.0, "{report}");
}

#[test]
fn the_knee_of_a_node_that_holds_a_known_rate_is_found() {
    let node = FaultyNode::start(Fault::Paced(Duration::from_millis(1)));
    let line = "knee --users 6 --from 200 --to 10000 --p99-ms 60 --precision 20 --late 100 \
                --step 600ms --warmup 200ms --max-time 60s";
    let Command::Knee(options) = command(&node, line) else { panic!("another command") };
    let mut told = Vec::new();
    let knee = knee::run(&options, |step| told.push(step.rate_per_s)).unwrap();
    let found = knee.knee_per_s.unwrap();
    assert!((600..=1_050).contains(&found), "{found}, after {told:?}: {knee}");
    assert!(knee.is_good() && knee.cut_short.is_none(), "{knee}");
    let failed = knee.failed_per_s.unwrap();
    assert!(failed > found && f64::from(failed) <= f64::from(found) * 1.2 + 1.0, "{knee}");
    assert_eq!(told.len(), knee.steps.len());
}

#[test]
fn a_search_for_the_knee_ends_in_time() {
    let node = FaultyNode::start(Fault::None);
    let line = "knee --users 2 --step 300ms --warmup 0s --max-time 1s --p99-ms 1000 --late 100";
    let Command::Knee(options) = command(&node, line) else { panic!("another command") };
    let knee = knee::run(&options, |_| ()).unwrap();
    assert!(knee.cut_short.is_some() && knee.steps.len() <= 3, "{knee}");
    assert!(knee.knee_per_s.is_some(), "{knee}");
}
