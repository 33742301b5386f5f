//! The binary `chatring-bare`: the relay, for whoever wants to know what a machine can do at most.

#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use chatring_bare::log::Log;
use chatring_bare::relay::Relay;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Longest delay of a sync.
const SYNC_DELAY_MS_MAX: u64 = 60_000;
/// Most CPU time burnt for a message.
const BURN_US_MAX: u64 = 1_000;

/// A bare relay of 40-byte messages between pairs of users, over io_uring, in one thread.
///
/// It has no protocol, no store and no runtime: what a machine can do at most. With a log it is the
/// limit for messages that are stored before they are relayed and acked.
#[derive(Debug, Parser)]
#[command(name = "chatring-bare", version)]
struct Cli {
    /// Where to listen; a line on standard output says which port it is
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Writes and syncs every group of messages here before it is passed on; a new file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Length of the log, which is filled with zeroes at the start and written round and round
    #[arg(long, value_name = "N", default_value_t = 64)]
    log_mib: u32,
    /// Makes each sync so much longer, to see what depends on it
    #[arg(long, value_name = "MS", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(..=SYNC_DELAY_MS_MAX))]
    sync_delay_ms: u64,
    /// Burns so much CPU time for each message, to see what depends on it
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(..=BURN_US_MAX))]
    burn_us: u64,
}

fn main() -> ExitCode {
    let error = match run(&Cli::parse()) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    eprintln!("chatring-bare: {error}");
    ExitCode::FAILURE
}

fn run(cli: &Cli) -> io::Result<std::convert::Infallible> {
    // Each user takes a descriptor. Where more are not allowed, the relay says when they run out.
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let delay = Duration::from_millis(cli.sync_delay_ms);
    let bytes = u64::from(cli.log_mib) << 20;
    let log = cli.log.as_ref().map(|path| Log::create(path, bytes, delay)).transpose()?;
    let listener = TcpListener::bind(cli.listen)?;
    let address = listener.local_addr()?;
    let mut relay = Relay::new(listener, log)?.burning(Duration::from_micros(cli.burn_us));
    println!("listening on {address}");
    relay.run()
}
