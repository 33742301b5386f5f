//! Runs seeds of the simulation: `chatring-sim --seeds 300`, `chatring-sim --break no-fence`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use chatring_core::sabotage::{Break, Breaks};
use chatring_sim::{Report, Violation, run};
use clap::Parser;

/// Simulates a node and its clients from seeds, and checks every promise.
#[derive(Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds to run.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// Breaks the code on purpose (or `all`, one after the other) and expects a seed to find it.
    #[arg(long = "break", value_name = "NAME")]
    breaks: Option<String>,
    /// Threads; seeds are independent of one another.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Prints a line for each seed.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.breaks {
        None => honest(&arguments),
        Some(name) if name == "all" => {
            let found = Break::ALL.iter().filter(|broken| find(&arguments, **broken)).count();
            println!("breaks found: {found} of {}", Break::ALL.len());
            if found == Break::ALL.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Some(name) => match name.parse() {
            Ok(broken) if find(&arguments, broken) => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("{error}; known are:");
                Break::ALL.iter().for_each(|known| eprintln!("  {known}"));
                ExitCode::from(2)
            }
        },
    }
}

/// The code as it is: every seed must pass, and must have met what it is for.
fn honest(arguments: &Arguments) -> ExitCode {
    let mut total = Report::default();
    let mut failed = Vec::new();
    run_seeds(arguments, Breaks::default(), |seed, result| {
        match result {
            Ok(report) => {
                if arguments.verbose {
                    println!("seed {seed}: {report:?}");
                }
                if report.faults.len() < 3 {
                    failed.push(seed);
                    println!("seed {seed}: met only {:?}", report.faults);
                }
                add(&mut total, report);
            }
            Err(violation) => {
                failed.push(seed);
                println!("seed {seed}: {violation}");
            }
        }
        true
    });
    println!("seeds {}, failed {}", arguments.seeds, failed.len());
    println!("acks {}, virtual hours {}", total.acks, total.virtual_ms / 3_600_000);
    println!("store faults {:?}", total.faults);
    println!("also met {:?}", total.met);
    for seed in &failed {
        println!("again: cargo run --release -p chatring-sim -- --seeds 1 --seed {seed}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The code with a break: some seed must find it.
fn find(arguments: &Arguments, broken: Break) -> bool {
    let mut found: Option<(u64, Violation)> = None;
    run_seeds(arguments, Breaks::default().with(broken), |seed, result| {
        if let Err(violation) = result
            && found.as_ref().is_none_or(|(known, _)| seed < *known)
        {
            found = Some((seed, violation));
        }
        found.is_none()
    });
    match &found {
        Some((seed, violation)) => println!("{broken}: found by seed {seed}: {violation}"),
        None => println!("{broken}: not found in {} seeds", arguments.seeds),
    }
    found.is_some()
}

/// Runs the seeds until they are through or `each` has had enough.
fn run_seeds(
    arguments: &Arguments,
    breaks: Breaks,
    mut each: impl FnMut(u64, Result<Report, Violation>) -> bool,
) {
    let next = AtomicU64::new(arguments.seed);
    let end = arguments.seed + arguments.seeds;
    let (sender, receiver) = mpsc::sync_channel(16);
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || sender.send((seed, run_one(seed, breaks))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (seed, result) in receiver {
            if !each(seed, result) {
                next.store(end, Ordering::Relaxed);
            }
        }
    });
}

/// Runs a seed; a panic anywhere in the code under test is a violation like any other.
fn run_one(seed: u64, breaks: Breaks) -> Result<Report, Violation> {
    std::panic::catch_unwind(|| run(seed, breaks)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
        Err(Violation { at_ms: 0, what: format!("panicked: {text}") })
    })
}

fn add(total: &mut Report, report: Report) {
    total.acks += report.acks;
    total.virtual_ms += report.virtual_ms;
    sum(&mut total.faults, report.faults);
    sum(&mut total.met, report.met);
}

fn sum(total: &mut BTreeMap<String, u64>, more: BTreeMap<String, u64>) {
    for (name, count) in more {
        *total.entry(name).or_default() += count;
    }
}
