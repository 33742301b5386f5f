//! The binary `chatring-loadgen`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use chatring_loadgen::cli::{Cli, Command, Direct};
use chatring_loadgen::machine;
use chatring_loadgen::scenario::{RunError, direct, idle, peers, verify};
use clap::Parser as _;

/// The node failed what was asked of it.
const EXIT_FAILED: u8 = 1;
/// It could not start.
const EXIT_UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    machine::raise_open_files();
    let outcome = match &cli.command {
        Command::Direct(options) => run_direct(options),
        Command::Verify(options) => verify::run(options).map(|verified| {
            print!("{verified}");
            verified.is_good()
        }),
        Command::Idle(options) => idle::run(options).map(|held| {
            print!("{held}");
            held.is_good()
        }),
        Command::Peers(options) => run_peers(options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILED),
        Err(error) => {
            eprintln!("chatring-loadgen: {error}");
            ExitCode::from(if error.is_of_node() { EXIT_FAILED } else { EXIT_UNUSABLE })
        }
    }
}

fn run_direct(options: &Direct) -> Result<bool, RunError> {
    let (report, notes) = direct::run(options)?;
    for note in &notes {
        eprintln!("{note}");
    }
    print!("{report}");
    if let Some(path) = &options.json {
        report
            .write_json(path)
            .map_err(|error| RunError::Io { what: path.display().to_string(), error })?;
    }
    Ok(report.is_good())
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
