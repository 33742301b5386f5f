//! The command line.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use chatring_wire::limits::BODY_BYTES_MAX;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::limits::{
    BURN_US_MAX, DURATION_S_MAX, LOAD_STEPS_MAX, RATE_PER_S_MAX, ROUNDS_MAX, THREADS_MAX,
    USERS_MAX, WINDOW_MAX,
};
use crate::scenario::{flood, knee, peers};
use crate::stamp::Stamp;

/// How long `direct` waits at the end while nothing that is outstanding arrives, unless told
/// otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// An ack that took longer than this is part of a stall, unless told otherwise.
pub const STALL_MS: u64 = 50;

/// Load on a Chatring node, measured honestly, with books of its own.
///
/// Exits 0 if all is well, 1 if the node failed (loss, duplicate, disorder, something missing),
/// 2 if it cannot start, 3 with --strict if the generator itself was the bottleneck.
#[derive(Debug, Parser)]
#[command(name = "chatring-loadgen", version)]
pub struct Cli {
    /// PEM file with the certificates to trust at a node that speaks TLS, in place of the machine's
    #[arg(long, value_name = "FILE", global = true)]
    pub ca: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pairs of users talk: user u with user u xor 1, one session each
    Direct(Direct),
    /// The same over HTTP: messages are posted, and received by polling, waiting or listening
    Http(Http),
    /// Explains the stalls of a run of `direct --json`, by what it and the node have seen
    Stalls(Stalls),
    /// Says whether figures of a table grow, and how fast
    Trend(Trend),
    /// Signs in again without local state and compares what is stored with ledgers
    Verify(Verify),
    /// Sessions that only heartbeat
    Idle(Idle),
    /// Requests that wait for news, all at once: memory of each, then a message to each in turn
    Parked(Parked),
    /// Finds the highest rate at which latency, punctuality and backlog hold
    Knee(knee::Options),
    /// Says what differs between two runs, from what `direct --json` wrote
    Compare(Compare),
    /// The same load on Chatring and on other servers that are installed here, into one table
    Peers(peers::Options),
    /// The load of `direct` on the bare relay: what the machine can do at most
    Bare(Bare),
    /// Starts the bare relay, the same with a log, and the node in turns, and says which share of
    /// what the machine can do the node reaches
    Share(Share),
    /// Starts a bare HTTP handler and the node in turns, and says which share of its rate the
    /// node's durable sends over HTTP reach
    HttpShare(HttpShare),
    /// Requests that no well-meaning client makes, as fast as the node answers them: what becomes
    /// of them, and what they cost the node
    Flood(flood::Options),
}

/// The options of `direct`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("load").required(true).args(["rate", "ramp", "steps", "window"]))]
pub struct Direct {
    /// Ready file of the node; read again when a connection breaks
    #[arg(long, value_name = "READY.json")]
    pub node: PathBuf,
    /// Users, an even number; they are the same from run to run
    #[arg(long, value_name = "N", value_parser = even_users)]
    pub users: u32,
    /// Messages a second of all users together (open loop, latency from the intended send time)
    #[arg(long, value_name = "PER_S",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_PER_S_MAX)))]
    pub rate: Option<u32>,
    /// A rate that rises or falls evenly in the measured time (open loop)
    #[arg(long, value_name = "FROM..TO")]
    pub ramp: Option<Ramp>,
    /// Rates that share the measured time, one after the other (open loop)
    #[arg(long, value_name = "PER_S,…")]
    pub steps: Option<Steps>,
    /// Messages in flight per user (closed loop)
    #[arg(long, value_name = "W",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(WINDOW_MAX)))]
    pub window: Option<u32>,
    /// Time that is measured, such as 10s, 500ms or 2m
    #[arg(long, value_parser = positive_duration)]
    pub duration: Duration,
    /// Time of the same load before it
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub warmup: Duration,
    /// Length of a body; at least 16, because it carries its sender, number and checksum
    #[arg(long, value_name = "BYTES", default_value_t = 20, value_parser = body)]
    pub body: usize,
    /// Seed of the plan: who sends when
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// How long to wait at the end while nothing that is outstanding arrives
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub patience: Duration,
    /// Threads that carry the sessions
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(THREADS_MAX)))]
    pub threads: u32,
    /// Writes a line per acked message here, as the ack arrives
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Burns so much CPU time per message, to see what a slow generator looks like
    #[arg(long, value_name = "MICROS", default_value_t = 0, hide_default_value = true,
          value_parser = clap::value_parser!(u32).range(..=i64::from(BURN_US_MAX)))]
    pub burn_us: u32,
    /// An ack that took longer is part of a stall, which the report lists
    #[arg(long, value_name = "MS", default_value_t = STALL_MS,
          value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub stall_ms: u64,
    /// A core on which a thread does nothing but nap meanwhile, to see the machine stand still
    #[arg(long, value_name = "CORE")]
    pub probe_core: Option<usize>,
    /// A folder in which 400 bytes are synced 50 times a second, to see how the disk is
    #[arg(long, value_name = "DIR")]
    pub probe_dir: Option<PathBuf>,
    /// Where the result goes.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `http`.
#[derive(Clone, Debug, Args)]
pub struct Http {
    /// The load.
    #[command(flatten)]
    pub load: Direct,
    /// How messages are received
    #[arg(long, value_enum, value_name = "MODE")]
    pub receive: Receive,
    /// How long a user waits between two polls
    #[arg(long, default_value = "200ms", value_parser = positive_duration)]
    pub poll_every: Duration,
    /// With `mix`: how long a user stays with one way, on average
    #[arg(long, default_value = "500ms", value_parser = positive_duration)]
    pub change_every: Duration,
    /// Names messages by cmid and base, as clients do that keep what they have seen, and not by
    /// Idempotency-Key
    #[arg(long)]
    pub base: bool,
}

/// How messages are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Receive {
    /// `GET /v1/sync` again and again
    Poll,
    /// `GET /v1/sync` that waits for news
    Longpoll,
    /// Server-sent events
    Sse,
    /// A WebSocket, binary
    Ws,
    /// A WebSocket that speaks JSON
    WsJson,
    /// Each user changes between all of these, in the middle of whatever is under way
    Mix,
}

/// Where the result of `direct` goes.
#[derive(Clone, Debug, Default, Args)]
pub struct Output {
    /// Writes the result here, with settings, machine, versions and a row per second
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes a page here, to look at in a browser: one file that needs no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Writes all latencies here, a line per second, in HdrHistogram's interval log format
    #[arg(long, value_name = "FILE")]
    pub hdr_log: Option<PathBuf>,
    /// Prints a line per second on stderr, as it does if that is a terminal
    #[arg(long)]
    pub progress: bool,
    /// Exits with 3 if the generator itself was the bottleneck
    #[arg(long)]
    pub strict: bool,
}

impl Output {
    /// Whether somebody wants to see how it goes.
    pub fn shows_progress(&self) -> bool {
        self.progress || std::io::stderr().is_terminal()
    }
}

/// A rate that changes evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    /// Messages a second at its start.
    pub from_per_s: u32,
    /// Messages a second at its end.
    pub to_per_s: u32,
}

impl FromStr for Ramp {
    type Err = String;

    fn from_str(text: &str) -> Result<Ramp, String> {
        let rates = text.split_once("..").and_then(|(from, to)| rate(from).zip(rate(to)));
        let (from_per_s, to_per_s) = rates
            .ok_or_else(|| format!("two rates from 1 to {RATE_PER_S_MAX}, such as 1000..20000"))?;
        Ok(Ramp { from_per_s, to_per_s })
    }
}

/// The options of `stalls`.
#[derive(Clone, Debug, Args)]
pub struct Stalls {
    /// What `direct --json` wrote
    #[arg(value_name = "RUN.json")]
    pub run: PathBuf,
    /// The node's log of that time, with `log.format = "json"`
    #[arg(long, value_name = "FILE")]
    pub node_log: Option<PathBuf>,
    /// No stall may be longer, however well explained
    #[arg(long, value_name = "MS", default_value_t = 200.0)]
    pub max_ms: f64,
}

/// The options of `trend`.
#[derive(Clone, Debug, Args)]
pub struct Trend {
    /// A table: a line of names, then lines of numbers; the first column is seconds
    #[arg(value_name = "TABLE.csv")]
    pub table: PathBuf,
    /// Columns that must not grow
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub flat: Vec<String>,
    /// Seconds at the start that are left out
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub skip: f64,
}

/// The options of `verify`.
#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// Ready file of the node
    #[arg(long, value_name = "READY.json")]
    pub node: PathBuf,
    /// Ledgers that `direct` wrote
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub ledger: Vec<PathBuf>,
}

/// The options of `idle`.
#[derive(Clone, Debug, Args)]
pub struct Idle {
    /// Ready file of the node; read again when a connection breaks
    #[arg(long, value_name = "READY.json")]
    pub node: PathBuf,
    /// Sessions
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(USERS_MAX)))]
    pub users: u32,
    /// How long they stay, counted from the last connection
    #[arg(long, value_parser = positive_duration)]
    pub hold: Duration,
    /// Threads that carry the sessions
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(THREADS_MAX)))]
    pub threads: u32,
}

/// The options of `parked`.
#[derive(Clone, Debug, Args)]
pub struct Parked {
    /// Ready file of the node
    #[arg(long, value_name = "READY.json")]
    pub node: PathBuf,
    /// Requests, each of a user of its own; the users are the same from run to run
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(USERS_MAX)))]
    pub users: u32,
    /// How they wait
    #[arg(long, value_enum, value_name = "MODE")]
    pub mode: ParkedMode,
    /// How long all of them lie still before the node's memory is read
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub hold: Duration,
    /// Messages a second, to one after the other
    #[arg(long, value_name = "PER_S", default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_PER_S_MAX)))]
    pub rate: u32,
    /// How long to wait for what does not come
    #[arg(long, default_value = "30s", value_parser = positive_duration)]
    pub patience: Duration,
    /// Fails if a parked request takes more of the node's memory
    #[arg(long, value_name = "KIB")]
    pub max_kib: Option<f64>,
    /// Fails if a message costs more rows read from the store
    #[arg(long, value_name = "ROWS")]
    pub max_rows: Option<f64>,
    /// Writes the result here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// How parked requests wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ParkedMode {
    /// `GET /v1/sync` that waits for news, again after each
    Longpoll,
    /// Server-sent events
    Sse,
}

/// Rates, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps(pub Vec<u32>);

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Steps, String> {
        let rates: Option<Vec<_>> = text.split(',').map(rate).collect();
        let rates = rates.filter(|rates| rates.len() <= LOAD_STEPS_MAX);
        rates.map(Steps).ok_or_else(|| {
            format!("up to {LOAD_STEPS_MAX} rates from 1 to {RATE_PER_S_MAX}, such as 1000,2000")
        })
    }
}

fn rate(text: &str) -> Option<u32> {
    text.trim().parse().ok().filter(|rate| (1..=RATE_PER_S_MAX).contains(rate))
}

/// The options of `compare`.
#[derive(Clone, Debug, Args)]
pub struct Compare {
    /// The run against which the other one is judged
    #[arg(value_name = "A.json")]
    pub a: PathBuf,
    /// The other run
    #[arg(value_name = "B.json")]
    pub b: PathBuf,
    /// Writes a page here, to look at in a browser
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// The options of `bare`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("load").required(true).args(["rate", "window"]))]
pub struct Bare {
    /// Where `chatring-bare` listens
    #[arg(long, value_name = "ADDR")]
    pub relay: SocketAddr,
    /// Users, an even number
    #[arg(long, value_name = "N", value_parser = even_users)]
    pub users: u32,
    /// Messages a second of all users together (open loop, latency from the intended send time)
    #[arg(long, value_name = "PER_S",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_PER_S_MAX)))]
    pub rate: Option<u32>,
    /// Messages in flight per user (closed loop)
    #[arg(long, value_name = "W",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(WINDOW_MAX)))]
    pub window: Option<u32>,
    /// Time that is measured, such as 10s, 500ms or 2m
    #[arg(long, value_parser = positive_duration)]
    pub duration: Duration,
    /// Time of the same load before it
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub warmup: Duration,
    /// Seed of the plan: who sends when
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Writes the result here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// The options of `share`.
#[derive(Clone, Debug, Args)]
pub struct Share {
    /// Users, an even number
    #[arg(long, value_name = "N", default_value = "1000", value_parser = even_users)]
    pub users: u32,
    /// Messages in flight per user
    #[arg(long, value_name = "W", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(WINDOW_MAX)))]
    pub window: u32,
    /// Then as many rounds of an open loop at this rate
    #[arg(long, value_name = "PER_S",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_PER_S_MAX)))]
    pub rate: Option<u32>,
    /// The same at half of the rate that the node reached
    #[arg(long, conflicts_with = "rate")]
    pub half: bool,
    /// Length of the bare relay's log
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub log_mib: u32,
    /// The servers.
    #[command(flatten)]
    pub place: Place,
}

/// The options of `http-share`.
#[derive(Clone, Debug, Args)]
pub struct HttpShare {
    /// Connections, an even number, each of a user with one request in flight
    #[arg(long, value_name = "N", default_value = "256", value_parser = even_users)]
    pub users: u32,
    /// Length of a message
    #[arg(long, value_name = "BYTES", default_value_t = 20, value_parser = body)]
    pub body: usize,
    /// Then as many rounds of an open loop at this rate
    #[arg(long, value_name = "PER_S",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(RATE_PER_S_MAX)))]
    pub rate: Option<u32>,
    /// The servers.
    #[command(flatten)]
    pub place: Place,
}

/// How servers that are compared are started and loaded.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Rounds; each has every server once
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    pub rounds: u32,
    /// Time of each load that is measured
    #[arg(long, default_value = "5s", value_parser = positive_duration)]
    pub duration: Duration,
    /// Time of the same load before it
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub warmup: Duration,
    /// Core of the servers, which get nothing else
    #[arg(long, value_name = "CORE", default_value_t = 0)]
    pub server_core: usize,
    /// Core of the generator
    #[arg(long, value_name = "CORE", default_value_t = 1)]
    pub generator_core: usize,
    /// Where the servers' files are for the time being: on the disk that is meant
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// The server; without it the one beside this program
    #[arg(long, value_name = "FILE")]
    pub chatring: Option<PathBuf>,
    /// The bare one; without it the one beside this program
    #[arg(long, value_name = "FILE")]
    pub bare: Option<PathBuf>,
    /// Writes the result here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Further arguments of `chatring serve`
    #[arg(last = true, value_name = "ARGUMENT")]
    pub serve: Vec<String>,
}

pub(crate) fn even_users(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(users) if users % 2 == 0 && (2..=USERS_MAX).contains(&users) => Ok(users),
        _ => Err(format!("an even number from 2 to {USERS_MAX}: users talk in pairs")),
    }
}

pub(crate) fn body(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if (Stamp::BYTES..=BODY_BYTES_MAX).contains(&bytes) => Ok(bytes),
        _ => Err(format!(
            "from {} (sender, number and checksum take as much) to {BODY_BYTES_MAX}",
            Stamp::BYTES
        )),
    }
}

pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|duration| match duration.is_zero() {
        true => Err("more than nothing".to_owned()),
        false => Ok(duration),
    })
}

/// A number with a unit: `ms`, `s`, `m` or `h`; a bare number counts seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a number with one of the units ms, s, m, h, such as 10s".to_owned()),
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
    ms.filter(|ms| *ms <= DURATION_S_MAX * 1_000)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("a number with a unit, at most {} h", DURATION_S_MAX / 3_600))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("chatring-loadgen").chain(line.split(' ')))
    }

    #[test]
    fn the_lines_that_scripts_use_are_taken() {
        for line in [
            "direct --node r --users 500 --rate 5000 --duration 10s",
            "direct --node r --users 2 --window 1 --duration 500ms --warmup 0s --body 16 --seed 9",
            "direct --node r --users 4 --rate 1 --duration 2m --json j --ledger l --threads 2",
            "direct --node r --users 2 --ramp 100..2000 --duration 10s --strict --progress",
            "direct --node r --users 2 --steps 10,20,30 --duration 3s --burn-us 9",
            "direct --node r --users 2 --rate 1 --duration 3s --hdr-log h --html p",
            "compare a.json b.json --html c.html",
            "knee --node r --users 100",
            "knee --node r --users 100 --p99-ms 5 --from 10 --to 99 --step 1s --max-time 1m",
            "verify --node r --ledger a",
            "verify --node r --ledger a b --ledger c",
            "idle --node r --users 1001 --hold 30s",
            "parked --node r --users 10000 --mode longpoll --max-kib 24 --max-rows 20",
            "parked --node r --users 1 --mode sse --hold 1s --rate 9 --patience 5s --json j",
            "flood --node r --kind tokens --count 100000 --duration 15s --addresses 50000",
            "flood --node r --kind heads2 --connections 16 --json f",
            "bare --relay 127.0.0.1:7 --users 1000 --window 1 --duration 5s",
            "share",
            "share --rounds 3 --half --dir /d -- --config c.toml",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        let cli = parse("verify --node r --ledger a b --ledger c").unwrap();
        assert!(matches!(cli.command, Command::Verify(Verify { ledger, .. }) if ledger.len() == 3));
        let cli = parse("direct --node r --users 2 --rate 7 --duration 10").unwrap();
        let Command::Direct(direct) = cli.command else { panic!("another command") };
        assert_eq!((direct.duration, direct.warmup), (secs(10), secs(2)));
        assert_eq!((direct.body, direct.seed, direct.window), (20, 1, None));
    }

    #[test]
    fn lines_that_make_no_sense_are_refused() {
        let direct = "direct --node r --users 2 --duration 1s";
        for line in [
            direct.to_owned(),
            format!("{direct} --rate 1 --window 1"),
            format!("{direct} --rate 0"),
            format!("{direct} --rate 1 --ramp 1..2"),
            format!("{direct} --ramp 1..0"),
            format!("{direct} --ramp 5"),
            format!("{direct} --steps 1,0"),
            format!("{direct} --window 257"),
            format!("{direct} --rate 1 --body 15"),
            format!("{direct} --rate 1 --body 65537"),
            format!("{direct} --rate 1 --threads 0"),
            format!("{direct} --rate 1 --warmup 1y"),
            format!("{direct} --rate 1 --warmup 25h"),
            "direct --node r --users 3 --rate 1 --duration 1s".to_owned(),
            "direct --node r --users 0 --rate 1 --duration 1s".to_owned(),
            "direct --node r --users 2 --rate 1 --duration 0s".to_owned(),
            "direct --users 2 --rate 1 --duration 1s".to_owned(),
            "verify --node r".to_owned(),
            "idle --node r --users 0 --hold 1s".to_owned(),
            "parked --node r --users 2".to_owned(),
            "bare --relay 127.0.0.1:7 --users 2 --duration 1s".to_owned(),
            "share --half --rate 5".to_owned(),
            "flood --node r".to_owned(),
            "flood --node r --kind tokens --connections 0".to_owned(),
        ] {
            let error = parse(&line).expect_err(&line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
        let error = parse(&format!("{direct} --rate 1 --body 15")).unwrap_err().to_string();
        assert!(error.contains("from 16 (sender, number and checksum"), "{error}");
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }
}
