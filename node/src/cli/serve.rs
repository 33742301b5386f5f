//! `chatring serve`: runs the server until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{ConfigSource, refuse};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    source: ConfigSource,
    /// File that appears, with addresses in JSON, once the server accepts.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

pub(super) fn run(args: ServeArgs) -> ExitCode {
    let _ = args.ready_file;
    match args.source.load() {
        Ok(_) => refuse("this build has no gateway yet"),
        Err(error) => refuse(error),
    }
}
