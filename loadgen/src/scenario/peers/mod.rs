//! `peers`: the same load on Chatring and on other servers that are installed on this machine, each
//! started here with a configuration of its own, in one run, into one table.
//!
//! ```text
//!  for each server and workload:
//!  folder + configuration ─▶ server on its core ─▶ sign in ─▶ warm up ─▶ measure ─▶ drain ─▶ kill
//! ```
//!
//! The clients are small codecs of our own: the usual client libraries bring a task and a queue per
//! connection, and would be measured along with the servers.

mod books;
mod chatring;
mod drive;
mod mqtt;
mod nats;
mod redis;
mod server;
mod table;
mod xmpp;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use self::books::{Shape, Workload};
use self::chatring::Chatring;
use self::drive::{Client, Load, Outcome, Seat, Usage};
use self::mqtt::Mosquitto;
use self::nats::Nats;
use self::redis::Redis;
use self::server::{Cores, Server, core_time, find, free_port, sync_us, version};
pub use self::table::{Row, Table};
use self::xmpp::Ejabberd;
use super::RunError;
use crate::cli::{body, duration, positive_duration};
use crate::report::environment::Machine;

/// Most receivers of a message.
const FAN_OUT_MAX: i64 = 1_000;
/// Most users: each has two connections at Redis, with a port each at the generator's end.
const PEERS_USERS_MAX: i64 = 10_000;
/// Most rounds.
const ROUNDS_MAX: i64 = 99;
/// Highest number of a core.
const CORE_MAX: i64 = 1_023;

/// The options of `peers`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Time that is measured, for each server and workload
    #[arg(long, default_value = "10s", value_parser = positive_duration)]
    pub duration: Duration,
    /// Time of the same load before it
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub warmup: Duration,
    /// Users, of whom as many take part as make whole pairs or groups
    #[arg(long, value_name = "N", default_value_t = 1_000,
          value_parser = clap::value_parser!(u32).range(2..=PEERS_USERS_MAX))]
    pub users: u32,
    /// Receivers of each message in the fan-out workload
    #[arg(long, value_name = "M", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(1..=FAN_OUT_MAX))]
    pub fan_out: u32,
    /// How many times everything is run, in turn; the row of the median rate is shown
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=ROUNDS_MAX))]
    pub rounds: u32,
    /// Only these servers
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SERVER,…")]
    pub only: Vec<Kind>,
    /// Length of a body
    #[arg(long, value_name = "BYTES", default_value_t = 20, value_parser = body)]
    pub body: usize,
    /// How long to wait at the end while nothing that is outstanding arrives
    #[arg(long, default_value = "15s", value_parser = duration)]
    pub patience: Duration,
    /// Core of the server (default: the first that this process may use)
    #[arg(long, value_name = "CORE",
          value_parser = clap::value_parser!(u32).range(0..=CORE_MAX))]
    pub server_core: Option<u32>,
    /// Core of the generator (default: the second one)
    #[arg(long, value_name = "CORE",
          value_parser = clap::value_parser!(u32).range(0..=CORE_MAX))]
    pub generator_core: Option<u32>,
    /// Folder for the servers' data, on the disk that is to be measured; what is made goes again
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Another program of a server than the one in PATH; may be given for several servers
    #[arg(long, value_name = "SERVER=PATH", value_parser = program)]
    pub program: Vec<(Kind, PathBuf)>,
    /// Writes the result here as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// This project's.
    Chatring,
    /// Redis Streams.
    Redis,
    /// MQTT.
    Mosquitto,
    /// NATS JetStream.
    Nats,
    /// XMPP.
    Ejabberd,
}

impl Kind {
    const ALL: [Kind; 5] =
        [Kind::Chatring, Kind::Redis, Kind::Mosquitto, Kind::Nats, Kind::Ejabberd];

    /// Its name here.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Chatring => "chatring",
            Kind::Redis => "redis",
            Kind::Mosquitto => "mosquitto",
            Kind::Nats => "nats",
            Kind::Ejabberd => "ejabberd",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Kind::Chatring => "chatring",
            Kind::Redis => "redis-server",
            Kind::Mosquitto => "mosquitto",
            Kind::Nats => "nats-server",
            // Names the folders of the libraries.
            Kind::Ejabberd => "ejabberdctl",
        }
    }

    /// How to come by it.
    fn hint(self) -> &'static str {
        match self {
            Kind::Chatring => "cargo build --release --bin chatring",
            Kind::Redis => "apt install redis-server",
            Kind::Mosquitto => "apt install mosquitto",
            Kind::Nats => "apt install nats-server",
            Kind::Ejabberd => "apt install ejabberd",
        }
    }

    fn version(self, program: &Path) -> String {
        let flag = if self == Kind::Mosquitto { "-h" } else { "--version" };
        match (self, xmpp::version_command(program)) {
            (Kind::Ejabberd, Ok(mut command)) => version(&mut command),
            _ => version(Command::new(program).arg(flag)),
        }
    }

    /// How it does a workload.
    fn how(self, shape: Shape) -> &'static str {
        let fan_out = matches!(shape, Shape::FanOut { .. });
        match self {
            Kind::Chatring if fan_out => "to the devices of one user; there are no groups yet",
            Kind::Chatring => "direct channels, one shard",
            Kind::Redis if fan_out => "a stream per group, read by each receiver",
            Kind::Redis => "a stream per user",
            Kind::Mosquitto if fan_out => "a topic per group",
            Kind::Mosquitto => "a topic per user",
            Kind::Nats if fan_out => "a subject per group, a push consumer per receiver",
            Kind::Nats => "a subject and a push consumer per user, one stream for all",
            Kind::Ejabberd if fan_out => "rooms (MUC)",
            Kind::Ejabberd => "chat messages",
        }
    }
}

/// How a server is started and spoken to.
trait Peer {
    type Client: Client;

    /// Writes the configuration into the folder; gives the command that starts the server.
    fn command(&mut self, program: &Path, folder: &Path, port: u16) -> Result<Command, String>;
    /// What an ack says about the message. Known once there is a command.
    fn acked(&self) -> String;
    /// What is to be done once the server takes connections.
    fn prepare(&mut self, server: SocketAddr) -> Result<(), String>;
    /// The connections. Those of one user, who may send only over one, stand together.
    fn seats(&self, workload: Workload) -> Vec<Seat<Self::Client>>;
}

/// Runs it.
///
/// # Errors
/// The cores or the folder cannot be used, or it was stopped.
pub fn run(options: &Options) -> Result<Table, RunError> {
    let folder = options.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = std::path::absolute(&folder).map_err(RunError::io("--folder"))?;
    let machine = Machine::look(&folder);
    let cores = Cores::choose(options.server_core, options.generator_core);
    let cores = cores.map_err(unusable("the cores"))?;
    cores.pin_generator().map_err(unusable("--generator-core"))?;
    let sync_us = sync_us(&folder).map_err(unusable("--folder"))?;
    let stop = stop_on_signals().map_err(RunError::io("signals"))?;
    let mut runs = Vec::new();
    for shape in [Shape::Direct, Shape::FanOut { receivers: options.fan_out }] {
        for kind in Kind::ALL {
            if options.only.is_empty() || options.only.contains(&kind) {
                runs.push(Run { options, kind, shape, cores, folder: &folder, stop: &stop });
            }
        }
    }
    let mut rounds: Vec<Vec<Row>> = runs.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.rounds {
        for (run, rows) in runs.iter().zip(&mut rounds) {
            rows.push(run.row());
            if stop.load(Ordering::Relaxed) {
                return Err(RunError::Stopped);
            }
        }
    }
    let rows = rounds.into_iter().filter_map(Row::of_rounds).collect();
    Ok(Table::new(options, machine, cores, sync_us, rows))
}

/// One server under one workload.
struct Run<'a> {
    options: &'a Options,
    kind: Kind,
    shape: Shape,
    cores: Cores,
    folder: &'a Path,
    stop: &'a AtomicBool,
}

impl Run<'_> {
    fn row(&self) -> Row {
        let kind = self.kind;
        let mut row = Row::new(kind, self.shape, kind.how(self.shape));
        let given = self.options.program.iter().rev().find(|(given, _)| *given == kind);
        let Some(program) = given.map(|(_, path)| path.clone()).or_else(|| find(kind.program()))
        else {
            let (program, hint) = (kind.program(), kind.hint());
            row.skipped = Some(format!("{program} is not installed: {hint}"));
            return row;
        };
        row.version = kind.version(&program);
        eprintln!("{} {}, {} …", kind.name(), row.version, row.workload);
        let outcome = match kind {
            Kind::Chatring => {
                let devices = self.options.fan_out;
                self.measure(Chatring::with_devices(devices), &program, &mut row)
            }
            Kind::Redis => self.measure(Redis, &program, &mut row),
            Kind::Mosquitto => self.measure(Mosquitto, &program, &mut row),
            Kind::Nats => self.measure(Nats::default(), &program, &mut row),
            Kind::Ejabberd => self.measure(Ejabberd, &program, &mut row),
        };
        match outcome {
            Ok(outcome) => row.outcome = Some(outcome),
            Err(reason) => row.failed = Some(reason),
        }
        row
    }

    fn measure<P: Peer>(
        &self,
        mut peer: P,
        program: &Path,
        row: &mut Row,
    ) -> Result<Outcome, String> {
        let options = self.options;
        let folder = tempfile::Builder::new().prefix("chatring-peers-").tempdir_in(self.folder);
        let folder = folder.map_err(|error| format!("{}: {error}", self.folder.display()))?;
        let port = free_port()?;
        let command = peer.command(program, folder.path(), port)?;
        row.acked = peer.acked();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Server::start(command, folder, self.cores)?;
        server.wait_until_up(address, self.stop)?;
        peer.prepare(address)?;
        let workload = Workload::new(self.shape, options.users);
        let load = Load {
            workload,
            body_bytes: options.body,
            warmup: options.warmup,
            duration: options.duration,
            patience: options.patience,
            stop: self.stop,
        };
        let core = self.cores.server;
        let usage = || Usage { server: server.cpu_time(), core: core_time(core) };
        drive::run(address, peer.seats(workload), &load, usage)
    }
}

/// Writes a file of a server's configuration; gives its path.
fn write_file(folder: &Path, name: &str, text: &str) -> Result<PathBuf, String> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

/// Set by the first SIGINT or SIGTERM, so that the running server is ended too.
fn stop_on_signals() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let set = stop.clone();
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        set.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}

fn unusable(what: &str) -> impl FnOnce(String) -> RunError {
    let io = RunError::io(what);
    |reason| io(std::io::Error::other(reason))
}

fn program(text: &str) -> Result<(Kind, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("SERVER=PATH")?;
    // The server is started in a folder of its own.
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    Ok((Kind::from_str(name, false)?, path))
}
