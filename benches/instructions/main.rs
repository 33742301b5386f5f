//! Counts the instructions of the hot cases and holds them against the kept baseline.
//!
//! ```text
//! instructions                     every case; exit code 1 if one is worse than may be
//! instructions --case WORD         those whose name holds the word
//! instructions --write REASON      the same, and writes what has changed into the baseline
//! instructions --profile CASE      where the instructions of a case go
//! instructions run CASE ITEMS      works through a case; what valgrind is given
//! ```

mod baseline;

use std::process::ExitCode;

use chatring_benches::{CASES, Case, valgrind};

use baseline::{Baseline, Verdict};

/// How often a case is counted that seems to be worse, and that a new baseline rests on. The fewest
/// count: where threads wait for each other, each wait more takes some.
const COUNTS_MAX: usize = 3;

/// Functions that a profile names.
const FUNCTIONS_MAX: usize = 45;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["run", name, items] => run(name, items),
        ["--profile", name] => profile(name),
        [] => compare("", None),
        ["--case", word] => compare(word, None),
        ["--write", reason] => compare("", Some(reason)),
        ["--case", word, "--write", reason] => compare(word, Some(reason)),
        _ => Err("usage: instructions [--case WORD] [--write REASON] | --profile CASE".to_owned()),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: &str, items: &str) -> Result<ExitCode, String> {
    let case = case(name)?;
    let items = items.parse().map_err(|_| format!("{items} is no number"))?;
    let mut work = (case.prepare)();
    work(items);
    Ok(ExitCode::SUCCESS)
}

fn case(name: &str) -> Result<&'static Case, String> {
    CASES.iter().find(|case| case.name == name).ok_or_else(|| format!("there is no case {name}"))
}

fn compare(word: &str, reason: Option<&str>) -> Result<ExitCode, String> {
    if !valgrind::is_there() {
        println!("SKIPPED: instructions: valgrind is not installed");
        return Ok(ExitCode::SUCCESS);
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut baseline = Baseline::read()?;
    let mut failed = baseline.unknown(CASES.iter().map(|case| case.name));
    println!("{:<38} {:>12} {:>12} {:>8}", "instructions per item", "baseline", "now", "change");
    for case in CASES.iter().filter(|case| case.name.contains(word)) {
        let mut now = f64::INFINITY;
        for _ in 0..COUNTS_MAX {
            now = now.min(valgrind::profile(&program, case.name, case.items)?.total());
            if reason.is_none() && !matches!(baseline.judge(case.name, now), Verdict::Worse) {
                break;
            }
        }
        let before = baseline.count(case.name);
        let (shown, change) = match before {
            Some(before) => (format!("{before:.0}"), format!("{:+.1} %", percent(before, now))),
            None => ("none".to_owned(), String::new()),
        };
        let verdict = baseline.judge(case.name, now);
        println!("{:<38} {shown:>12} {now:>12.0} {change:>8}{}", case.name, verdict.text());
        if let Some(reason) = reason {
            baseline.set(case.name, now, reason);
        } else if matches!(verdict, Verdict::Worse | Verdict::Unknown) {
            failed.push(case.name.to_owned());
        }
    }
    if reason.is_some() {
        baseline.write()?;
        return Ok(ExitCode::SUCCESS);
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("FAILED: {}. Counted with {}.", failed.join(", "), baseline::RUSTC_HINT);
    println!("If that is as it must be, write down why: instructions --write REASON");
    Ok(ExitCode::FAILURE)
}

fn profile(name: &str) -> Result<ExitCode, String> {
    let case = case(name)?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let profile = valgrind::profile(&program, name, case.items)?;
    println!("{:>10.1} instructions per item, {:.2} allocations", profile.total(), {
        profile.allocations
    });
    for (owner, count) in descending(&profile.instructions) {
        println!("{count:>10.1} {owner}");
    }
    println!();
    for (function, count) in descending(&profile.functions).into_iter().take(FUNCTIONS_MAX) {
        println!("{count:>10.1} {function}");
    }
    Ok(ExitCode::SUCCESS)
}

fn descending(counts: &std::collections::BTreeMap<String, f64>) -> Vec<(&str, f64)> {
    let mut list: Vec<_> = counts.iter().map(|(name, count)| (&**name, *count)).collect();
    list.sort_by(|a, b| b.1.total_cmp(&a.1));
    list.retain(|(_, count)| *count >= 0.05);
    list
}

fn percent(before: f64, now: f64) -> f64 {
    (now / before - 1.0) * 100.0
}
