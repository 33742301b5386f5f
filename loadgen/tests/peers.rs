//! Goal: each server of `peers` that is installed here takes the load, loses and doubles nothing.
//! Method: the command itself, with few users for a moment.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;

use chatring_loadgen::cli::{Cli, Command};
use chatring_loadgen::machine;
use chatring_loadgen::scenario::peers;
use clap::Parser as _;

fn smoke(server: &str) {
    machine::raise_open_files();
    let line = "chatring-loadgen peers --users 24 --fan-out 3 --duration 1s --warmup 200ms --only";
    let cli = Cli::try_parse_from(line.split(' ').chain([server])).unwrap();
    let Command::Peers(options) = cli.command else { panic!("another command") };
    let table = peers::run(&options).unwrap();
    assert_eq!(table.rows.len(), 2, "direct and fan-out");
    for row in &table.rows {
        if let Some(reason) = &row.skipped {
            // Not captured like the output of `eprintln!`.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {server}, {}: {reason}", row.workload);
            continue;
        }
        let outcome = row.outcome.unwrap_or_else(|| panic!("no outcome:\n{table}"));
        assert!(row.is_good() && outcome.counts.is_clean(), "{table}");
        assert!(outcome.delivered_per_s > 0.0 && outcome.acked_per_s > 0.0, "{table}");
        assert!(outcome.loadgen_cpu_percent > 0.0, "{table}");
        assert!(row.version.starts_with(|c: char| c.is_ascii_digit()), "{table}");
        assert!(!row.acked.is_empty(), "{table}");
    }
}

#[test]
fn chatring_takes_the_load() {
    smoke("chatring");
}

#[test]
fn redis_takes_the_load() {
    smoke("redis");
}

#[test]
fn mosquitto_takes_the_load() {
    smoke("mosquitto");
}

#[test]
fn nats_takes_the_load() {
    smoke("nats");
}

#[test]
fn ejabberd_takes_the_load() {
    smoke("ejabberd");
}
