//! Prints what a direct message costs, as the Markdown of `docs/performance.md`: first our own code
//! by itself (instructions, time, allocations, copies), then a node under load (system calls,
//! switches, CPU time, rows and bytes written).
//!
//! ```text
//! cargo build --release -p chatring-node -p chatring-loadgen
//! cargo run --release -p chatring-benches --bin cost_table [-- SECONDS]
//! ```

mod live;
mod own;

use std::process::ExitCode;

/// How long a node under load is watched unless said otherwise.
const SECONDS: u64 = 10;
const SECONDS_MAX: u64 = 600;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match &words[..] {
        [] => tables(SECONDS),
        [seconds] => match seconds.parse() {
            Ok(seconds @ 1..=SECONDS_MAX) => tables(seconds),
            _ => Err(format!("usage: cost_table [SECONDS, 1 to {SECONDS_MAX}]")),
        },
        // What valgrind is given.
        [run, case, items] if run == "run" => own::work(case, items),
        _ => Err("usage: cost_table [SECONDS]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn tables(seconds: u64) -> Result<(), String> {
    own::table()?;
    println!();
    live::table(seconds)
}

/// A row of a Markdown table.
fn row(name: &str, values: impl IntoIterator<Item = String>) {
    let values: Vec<String> = values.into_iter().collect();
    println!("| {name} | {} |", values.join(" | "));
}

fn head(name: &str, columns: &[&str]) {
    println!("| {name} | {} |", columns.join(" | "));
    println!("| --- |{}", " ---: |".repeat(columns.len()));
}

/// A figure with as many digits as say something.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => {
            let digits = format!("{value:.0}");
            let cut = digits.len().saturating_sub(3);
            match cut {
                0 => digits,
                _ => format!("{},{}", &digits[..cut], &digits[cut..]),
            }
        }
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
