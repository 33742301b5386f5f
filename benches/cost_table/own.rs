//! What our own code does for a message: counted by valgrind, timed without it.

use std::time::Instant;

use chatring_benches::valgrind::{self, Profile};
use chatring_benches::{CASES, Case};

use super::{figure, head, row};

const COLUMNS: [(&str, &str); 3] = [
    ("64 a turn", "path/direct_message/64_a_turn"),
    ("1 a turn", "path/direct_message/1_a_turn"),
    ("64 a turn, JSON", "path/direct_message/64_a_turn_json"),
];
/// Rounds of which the fastest is taken: what others do on the machine only adds.
const ROUNDS: usize = 15;

pub fn work(case: &str, items: &str) -> Result<(), String> {
    let items = items.parse().map_err(|_| format!("{items} is no number"))?;
    (find(case)?.prepare)()(items);
    Ok(())
}

pub fn table() -> Result<(), String> {
    let cases: Vec<&Case> = COLUMNS.iter().map(|(_, case)| find(case)).collect::<Result<_, _>>()?;
    head("own code, of one message", &COLUMNS.map(|(name, _)| name));
    row("time, fastest of rounds (µs)", cases.iter().map(|case| figure(fastest_us(case))));
    if !valgrind::is_there() {
        eprintln!("SKIPPED: instructions, allocations and copies: valgrind is not installed");
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let profiles: Vec<Profile> = cases
        .iter()
        .map(|case| valgrind::profile(&program, case.name, case.items))
        .collect::<Result<_, _>>()?;
    row("instructions", profiles.iter().map(|profile| figure(profile.total())));
    let mut owners: Vec<&String> = profiles.iter().flat_map(|p| p.instructions.keys()).collect();
    owners.sort();
    owners.dedup();
    for owner in owners {
        let counts = profiles.iter().map(|p| p.instructions.get(owner).copied().unwrap_or(0.0));
        let counts: Vec<f64> = counts.collect();
        if counts.iter().any(|count| *count >= 1.0) {
            row(&format!("of these, {owner}"), counts.into_iter().map(figure));
        }
    }
    row("allocations", profiles.iter().map(|profile| figure(profile.allocations)));
    let moved: Vec<(f64, f64)> = cases
        .iter()
        .map(|case| valgrind::bytes_moved(&program, case.name, case.items))
        .collect::<Result<_, _>>()?;
    row("bytes allocated", moved.iter().map(|(_, allocated)| figure(*allocated)));
    row("bytes copied by library calls", moved.iter().map(|(copied, _)| figure(*copied)));
    Ok(())
}

fn find(name: &str) -> Result<&'static Case, String> {
    CASES.iter().find(|case| case.name == name).ok_or_else(|| format!("there is no case {name}"))
}

fn fastest_us(case: &Case) -> f64 {
    let round = |_| {
        let mut work = (case.prepare)();
        let start = Instant::now();
        work(case.items);
        start.elapsed().as_secs_f64() * 1e6 / case.items as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}
