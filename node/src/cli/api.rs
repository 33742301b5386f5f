//! `chatring api`: runs the HTTP API alone until it is told to stop.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{ConfigSource, EXIT_FORCED, refuse};
use crate::server::{self, Ended};

#[derive(Debug, Args)]
pub(super) struct ApiArgs {
    /// Configuration file (TOML), that of the node with `cluster.nodes`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Folder with copies of the node's keys.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address for HTTP; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// File that appears, with the address in JSON, once the server is linked to a node.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

pub(super) fn run(args: ApiArgs) -> ExitCode {
    let ApiArgs { config, data, http, ready_file } = args;
    let source = ConfigSource { config: Some(config), data, http, ..ConfigSource::default() };
    let config = match source.load() {
        Ok(config) => config,
        Err(error) => return refuse(error),
    };
    if let Err(error) = crate::log::start(&config.log) {
        return refuse(error);
    }
    let welcome = |http: &str| {
        let version = env!("CARGO_PKG_VERSION");
        let text =
            format!("Chatring {version}, the API alone\n\n  HTTP  {http}\n\nCtrl-C stops it.\n");
        // Nobody may be reading; that is no reason to end.
        let _ = io::stdout().write_all(text.as_bytes());
    };
    match server::run_api(&config, ready_file.as_deref(), welcome) {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        Ok(Ended::Unstarted | Ended::Forced) => std::process::exit(EXIT_FORCED),
        Err(error) => refuse(error),
    }
}
