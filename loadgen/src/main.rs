//! The binary `chatring-loadgen`.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use chatring_loadgen::cli::{Bare, Cli, Command, Compare, HttpShare, Output, Share};
use chatring_loadgen::link::trust;
use chatring_loadgen::machine;
use chatring_loadgen::report::compare::Comparison;
use chatring_loadgen::report::{Report, html};
use chatring_loadgen::scenario::{
    RunError, bare, direct, flood, http, http_share, idle, knee, parked, peers, share, stalls,
    verify,
};
use clap::Parser as _;

/// The node failed what was asked of it.
const EXIT_FAILED: u8 = 1;
/// It could not start.
const EXIT_UNUSABLE: u8 = 2;
/// The generator was the bottleneck, and `--strict` was asked for.
const EXIT_BOTTLENECK: u8 = 3;

fn main() -> ExitCode {
    let cli = Cli::parse();
    machine::raise_open_files();
    if let Some(ca) = &cli.ca
        && let Err(error) = trust(ca)
    {
        eprintln!("chatring-loadgen: {error}");
        return ExitCode::from(EXIT_UNUSABLE);
    }
    let outcome = match &cli.command {
        Command::Direct(options) => {
            direct::run(options).and_then(|ran| report(ran, &options.output))
        }
        Command::Http(options) => {
            http::run(options).and_then(|ran| report(ran, &options.load.output))
        }
        Command::Verify(options) => verify::run(options).map(|verified| {
            print!("{verified}");
            verified.is_good()
        }),
        Command::Idle(options) => idle::run(options).map(|held| {
            print!("{held}");
            held.is_good()
        }),
        Command::Parked(options) => parked::run(options).and_then(|parked| {
            print!("{parked}");
            write_json(options.json.as_deref(), &parked)?;
            Ok(parked.is_good())
        }),
        Command::Stalls(options) => stalls::explain(options).map(|explained| {
            print!("{explained}");
            explained.is_good()
        }),
        Command::Trend(options) => stalls::trend(options),
        Command::Knee(options) => run_knee(options),
        Command::Compare(options) => run_compare(options),
        Command::Peers(options) => run_peers(options),
        Command::Bare(options) => run_bare(options),
        Command::Share(options) => run_share(options),
        Command::HttpShare(options) => run_http_share(options),
        Command::Flood(options) => run_flood(options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILED),
        Err(error) => {
            eprintln!("chatring-loadgen: {error}");
            ExitCode::from(match error {
                RunError::Bottleneck => EXIT_BOTTLENECK,
                error if error.is_of_node() => EXIT_FAILED,
                _ => EXIT_UNUSABLE,
            })
        }
    }
}

fn report((report, notes): (Report, Vec<String>), output: &Output) -> Result<bool, RunError> {
    for note in &notes {
        eprintln!("{note}");
    }
    print!("{report}");
    if let Some(path) = &output.json {
        report.write_json(path).map_err(not_usable(path))?;
    }
    if let Some(path) = &output.html {
        std::fs::write(path, html::run(&report)).map_err(not_usable(path))?;
    }
    match report.is_good() {
        true if output.strict && report.is_generator_bottleneck() => Err(RunError::Bottleneck),
        is_good => Ok(is_good),
    }
}

fn run_knee(options: &knee::Options) -> Result<bool, RunError> {
    println!("{}", knee::HEAD);
    let found = knee::run(options, |step| println!("{step}"))?;
    print!("{found}");
    if let Some(path) = &options.json {
        found.write_json(path).map_err(not_usable(path))?;
    }
    if let Some(path) = &options.html {
        std::fs::write(path, html::knee(&found)).map_err(not_usable(path))?;
    }
    match found.is_good() {
        true if options.strict && found.is_generator_limit => Err(RunError::Bottleneck),
        is_good => Ok(is_good),
    }
}

fn run_compare(options: &Compare) -> Result<bool, RunError> {
    let read = |path: &Path| Report::read_json(path).map_err(not_usable(path));
    let (a, b) = (read(&options.a)?, read(&options.b)?);
    let comparison = Comparison::new(&a, &b);
    print!("{comparison}");
    if let Some(path) = &options.html {
        let names = [&options.a, &options.b].map(|path| path.display().to_string());
        let page = html::compare(&comparison, [&names[0], &names[1]]);
        std::fs::write(path, page).map_err(not_usable(path))?;
    }
    Ok(true)
}

fn not_usable(path: &Path) -> impl FnOnce(std::io::Error) -> RunError {
    let what = path.display().to_string();
    move |error| RunError::Io { what, error }
}

fn run_peers(options: &peers::Options) -> Result<bool, RunError> {
    let table = peers::run(options)?;
    print!("{table}");
    if let Some(path) = &options.json {
        table
            .write_json(path)
            .map_err(|error| RunError::Io { what: path.display().to_string(), error })?;
    }
    Ok(table.is_good())
}

fn run_bare(options: &Bare) -> Result<bool, RunError> {
    let relayed = bare::run(options, &|_| {})?;
    print!("{relayed}");
    write_json(options.json.as_deref(), &relayed)?;
    Ok(relayed.is_good())
}

fn run_share(options: &Share) -> Result<bool, RunError> {
    let rounds = share::run(options)?;
    print!("{rounds}");
    let verdict = rounds.verdict();
    let whole = serde_json::json!({ "rounds": rounds, "verdict": verdict });
    write_json(options.place.json.as_deref(), &whole)?;
    Ok(rounds.is_good())
}

fn run_http_share(options: &HttpShare) -> Result<bool, RunError> {
    let rounds = http_share::run(options)?;
    print!("{rounds}");
    let verdict = rounds.verdict();
    let whole = serde_json::json!({ "rounds": rounds, "verdict": verdict });
    write_json(options.place.json.as_deref(), &whole)?;
    Ok(rounds.is_good())
}

fn run_flood(options: &flood::Options) -> Result<bool, RunError> {
    let flooded = flood::run(options)?;
    print!("{flooded}");
    write_json(options.json.as_deref(), &flooded)?;
    Ok(flooded.is_good())
}

fn write_json(path: Option<&Path>, result: &impl serde::Serialize) -> Result<(), RunError> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(result).expect("a result is plain data");
    std::fs::write(path, text + "\n")
        .map_err(|error| RunError::Io { what: path.display().to_string(), error })
}
