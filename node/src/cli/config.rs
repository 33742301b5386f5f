//! `chatring config`: checks the configuration or shows what it comes to.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{ConfigSource, refuse};
use crate::auth::Verifier;
use crate::tls::ServerTls;

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say "ok", or what is wrong (exit 2).
    Check(ConfigSource),
    /// Print the whole configuration with its defaults.
    Show(ConfigSource),
}

pub(super) fn run(args: ConfigArgs) -> ExitCode {
    match args.command {
        ConfigCommand::Check(source) => {
            let config = match source.load() {
                Ok(config) => config,
                Err(error) => return refuse(error),
            };
            if let Err(error) = ServerTls::open(&config.tls) {
                return refuse(error);
            }
            match Verifier::new(&config.auth, None) {
                Ok(_) => println!("ok"),
                Err(error) => return refuse(error),
            }
        }
        ConfigCommand::Show(source) => match source.load() {
            Ok(config) => print!("{}", config.to_toml()),
            Err(error) => return refuse(error),
        },
    }
    ExitCode::SUCCESS
}
