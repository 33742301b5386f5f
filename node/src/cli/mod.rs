//! The command line.

mod api;
mod chat;
mod config;
mod serve;
mod token;

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, ConfigError, Overrides};
use crate::gateway::Driver;

/// What is wrong is the operator's to mend: arguments, configuration, the data folder.
const EXIT_USAGE: u8 = 2;

/// The exit code after a second signal.
const EXIT_FORCED: i32 = 1;

/// Chatring, a chat server.
#[derive(Debug, Parser)]
#[command(name = "chatring", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(serve::ServeArgs),
    /// Run the HTTP API alone, for a node on another machine.
    Api(api::ApiArgs),
    /// Print a token that signs a user in.
    Token(token::TokenArgs),
    /// Talk to somebody in the terminal.
    Chat(chat::ChatArgs),
    /// Look at the configuration.
    Config(config::ConfigArgs),
}

/// Where the configuration comes from.
#[derive(Debug, Default, Args)]
struct ConfigSource {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data folder; made if it does not exist.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address for WebSocket clients; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address for HTTP; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Shards, one thread each; 0 means one per core.
    #[arg(long, value_name = "N")]
    shards: Option<u16>,
    /// What moves the bytes of the clients' sockets.
    #[arg(long)]
    driver: Option<Driver>,
    /// PEM file with the certificate for both addresses; they speak TLS then.
    #[arg(long, value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// PEM file with the certificate's private key.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

impl ConfigSource {
    fn load(self) -> Result<Config, ConfigError> {
        let ConfigSource { config, data, listen, http, shards, driver, tls_certificate, tls_key } =
            self;
        let overrides = Overrides { data, listen, http, shards, driver, tls_certificate, tls_key };
        Config::load(config.as_deref(), &overrides)
    }
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Api(args) => api::run(args),
        Command::Token(args) => token::run(&args),
        Command::Chat(args) => chat::run(args),
        Command::Config(args) => config::run(args),
    }
}

/// One line that says what the operator has to mend.
fn refuse(error: impl Display) -> ExitCode {
    let line = error.to_string().lines().collect::<Vec<_>>().join(" ");
    eprintln!("chatring: {line}");
    ExitCode::from(EXIT_USAGE)
}
