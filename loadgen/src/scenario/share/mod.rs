//! `share`: which share of what the machine can do the node reaches, in one command.
//!
//! ```text
//!  each round:  probe the machine ─▶ bare relay ─▶ bare relay with a log ─▶ chatring serve
//!               (every server fresh, on its core; the generator on another one, in this process)
//! ```
//!
//! Rounds alternate, so that a machine that becomes slower or faster meanwhile does so for all.

mod figures;
mod probe;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use clap::Parser as _;

pub(super) use figures::name;
pub use figures::{Measured, Middle, Rounds, Verdict, Who};
pub use probe::Probe;

use self::Who::{Bare, BareLog, Chatring};
use super::{Moment, RunError, bare, direct};
use crate::cli;
use crate::process::{CpuTimes, Server, core_busy, pin};
use crate::report::environment::Machine;

/// How long a server may take to come up; a log is filled with zeroes first.
pub(super) const COME_UP_MAX: Duration = Duration::from_secs(60);
/// How long to wait at the end of a load while nothing that is outstanding arrives.
const PATIENCE_S: u64 = 20;
/// Bytes of a body: with them a message of the bare relay has 40.
const BODY_BYTES: usize = chatring_bare::frame::BODY_BYTES;
/// Lines of a server's log that are shown if it fails.
const LOG_LINES_SHOWN_MAX: usize = 10;
/// `f_type` of a file system in memory, where a sync is nothing.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Runs it; says on standard output how each load went.
///
/// # Errors
/// A server does not come up, or a load never began.
pub fn run(options: &cli::Share) -> Result<Rounds, RunError> {
    let place = Place::new(&options.place, &["chatring", "chatring-bare"])?;
    pin(options.place.generator_core).map_err(RunError::io("the generator's core"))?;
    place.print_machine();
    let mut rounds = Rounds {
        users: options.users,
        window: options.window,
        duration_s: options.place.duration.as_secs_f64(),
        ..Rounds::default()
    };
    for round in 1..=options.place.rounds {
        println!("round {round}");
        rounds.probes.push(place.probe()?);
        for who in [Bare, BareLog, Chatring] {
            rounds.closed.push(measure(options, &place, who, None)?);
        }
    }
    let rate = options.rate.or_else(|| options.half.then(|| rounds.half_rate()));
    let Some(rate) = rate else { return Ok(rounds) };
    for round in 1..=options.place.rounds {
        println!("round {round} at {rate}/s");
        rounds.open_probes.push(place.probe()?);
        for who in [Bare, BareLog, Chatring] {
            rounds.open.push(measure(options, &place, who, Some(rate))?);
        }
    }
    Ok(rounds)
}

/// Where servers are and live.
pub(super) struct Place<'a> {
    options: &'a cli::Place,
    folder: PathBuf,
}

impl Place<'_> {
    /// A folder for the time being. These programs are needed.
    pub fn new<'a>(options: &'a cli::Place, programs: &[&str]) -> Result<Place<'a>, RunError> {
        let what = options.dir.display().to_string();
        let kind = rustix::fs::statfs(&options.dir);
        let kind = kind.map_err(|error| RunError::io(what.clone())(error.into()))?;
        if kind.f_type as u64 == TMPFS_MAGIC {
            let error = std::io::Error::other("in memory, where a sync costs nothing: give --dir");
            return Err(RunError::Io { what, error });
        }
        let folder = options.dir.join(format!("chatring-share-{}", std::process::id()));
        let place = Place { options, folder };
        for program in programs {
            let path = place.program(program)?;
            std::fs::metadata(&path).map_err(RunError::io(path.display().to_string()))?;
        }
        let folder = &place.folder;
        std::fs::create_dir(folder).map_err(RunError::io(folder.display().to_string()))?;
        Ok(place)
    }

    /// Says what the figures are of.
    pub fn print_machine(&self) {
        println!("{}", Machine::look(&self.folder));
    }

    /// As it was asked for, or beside this program.
    fn program(&self, name: &str) -> Result<PathBuf, RunError> {
        let given = match name {
            "chatring" => &self.options.chatring,
            _ => &self.options.bare,
        };
        match given {
            Some(path) => Ok(path.clone()),
            None => {
                let own = std::env::current_exe().map_err(RunError::io("our own place"))?;
                Ok(own.with_file_name(name))
            }
        }
    }

    fn probe(&self) -> Result<Probe, RunError> {
        let probe = Probe::measure(&self.folder, self.options.server_core);
        let probe = probe.map_err(RunError::io("probing the machine"))?;
        println!("  {probe}");
        Ok(probe)
    }

    /// Does something with a fresh folder for a server.
    pub fn within_home<T>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, RunError>,
    ) -> Result<T, RunError> {
        let home = self.folder.join("server");
        std::fs::create_dir(&home).map_err(RunError::io(home.display().to_string()))?;
        let outcome = work(&home);
        std::fs::remove_dir_all(&home).map_err(RunError::io(home.display().to_string()))?;
        outcome.inspect_err(|_| self.show_log())
    }

    /// What the last server said.
    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn show_log(&self) {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN_MAX)..];
        last.iter().for_each(|line| eprintln!("{line}"));
    }

    /// Starts a program on the servers' core.
    pub fn start(&self, program: &str, arguments: &[OsString]) -> Result<Server, RunError> {
        let (core, program) = (self.options.server_core, self.program(program)?);
        let server = Server::start(&program, arguments, core, &self.log());
        server.map_err(RunError::io(program.display().to_string()))
    }

    /// Starts a node with one shard; gives its ready file, too.
    pub fn start_node(&self, home: &Path) -> Result<(Server, PathBuf), RunError> {
        let ready = home.join("ready.json");
        let fixed = ["serve", "--shards", "1", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let mut arguments: Vec<OsString> = fixed.iter().map(OsString::from).collect();
        arguments.extend(["--data".into(), home.join("data").into()]);
        arguments.extend(["--ready-file".into(), ready.clone().into()]);
        arguments.extend(self.options.serve.iter().map(OsString::from));
        let mut server = self.start("chatring", &arguments)?;
        server.file(&ready, COME_UP_MAX).map_err(RunError::io("chatring serve"))?;
        Ok((server, ready))
    }
}

/// Nothing is left behind.
impl Drop for Place<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is only a temporary folder.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// One load on a fresh server.
fn measure(
    options: &cli::Share,
    place: &Place<'_>,
    who: Who,
    rate: Option<u32>,
) -> Result<Measured, RunError> {
    let measured = place.within_home(|home| match who {
        BareLog => {
            let log = home.join("log").into_os_string();
            let mib = options.log_mib.to_string();
            let log = ["--log".into(), log, "--log-mib".into(), mib.into()];
            relay(options, place, who, rate, &log)
        }
        Chatring => node(options, place, rate, home),
        _ => relay(options, place, who, rate, &[]),
    })?;
    println!("  {measured}");
    Ok(measured)
}

fn relay(
    options: &cli::Share,
    place: &Place<'_>,
    who: Who,
    rate: Option<u32>,
    arguments: &[OsString],
) -> Result<Measured, RunError> {
    let mut server = place.start("chatring-bare", arguments)?;
    let line = server.first_line(COME_UP_MAX).map_err(RunError::io("the bare relay"))?;
    let address = line.trim_end().strip_prefix("listening on ");
    let address = address.and_then(|address| address.parse::<SocketAddr>().ok());
    let relay = address.ok_or_else(|| RunError::Node(format!("no relay: {line}")))?;
    let load = cli::Bare {
        relay,
        users: options.users,
        rate,
        window: rate.is_none().then_some(options.window),
        duration: options.place.duration,
        warmup: options.place.warmup,
        seed: 1,
        json: None,
    };
    let watch = Watch::new(&server, options.place.server_core);
    let relayed = bare::run(&load, &|moment| watch.look(moment))?;
    let (used, busy) = watch.used()?;
    server.end();
    whole(relayed.cut_short.as_deref())?;
    let is_good = relayed.is_good();
    let fault = format!("{} faults", relayed.faults);
    let measured = Measured {
        who,
        offered_per_s: rate,
        acked_per_s: relayed.acked_per_s,
        server_us: 0.0,
        server_us_by_thread: Default::default(),
        ack: relayed.ack,
        deliver: relayed.deliver,
        generator_percent: relayed.loadgen_cpu_percent,
        others_percent: 0.0,
        fault: (!is_good).then_some(fault),
    };
    Ok(measured.with_cpu(&used, busy, options.place.duration.as_secs_f64()))
}

fn node(
    options: &cli::Share,
    place: &Place<'_>,
    rate: Option<u32>,
    home: &Path,
) -> Result<Measured, RunError> {
    let (server, ready) = place.start_node(home)?;
    let load = direct(options, &ready, rate);
    let watch = Watch::new(&server, options.place.server_core);
    let (report, notes) = direct::run_observed(&load, &|moment| watch.look(moment))?;
    let (used, busy) = watch.used()?;
    server.end();
    whole(report.setup.cut_short.as_deref())?;
    let fault = notes.first().cloned();
    let measured = Measured {
        who: Chatring,
        offered_per_s: rate,
        acked_per_s: report.acked_per_s,
        server_us: 0.0,
        server_us_by_thread: Default::default(),
        ack: report.ack,
        deliver: report.deliver,
        generator_percent: report.loadgen_cpu_percent,
        others_percent: 0.0,
        fault: (!report.is_good()).then(|| fault.unwrap_or_default()),
    };
    Ok(measured.with_cpu(&used, busy, options.place.duration.as_secs_f64()))
}

/// What `direct` is asked for: a command line, so that its other options have their defaults.
fn direct(options: &cli::Share, ready: &Path, rate: Option<u32>) -> cli::Direct {
    let cli::Share { users, window, place: cli::Place { duration, warmup, .. }, .. } = options;
    let load = match rate {
        Some(rate) => format!("--rate {rate}"),
        None => format!("--window {window}"),
    };
    let (duration, warmup) = (duration.as_millis(), warmup.as_millis());
    let words = format!(
        "chatring-loadgen direct --users {users} {load} --duration {duration}ms \
         --warmup {warmup}ms --body {BODY_BYTES} --patience {PATIENCE_S}s --node"
    );
    let words = words.split(' ').map(OsString::from).chain([ready.into()]);
    match cli::Cli::parse_from(words).command {
        cli::Command::Direct(direct) => direct,
        _ => unreachable!("it is direct"),
    }
}

/// A load that was stopped ends all: a signal is meant for the command, not for a load.
pub(super) fn whole(cut_short: Option<&str>) -> Result<(), RunError> {
    match cut_short {
        Some(reason) => Err(RunError::Node(format!("a load was cut short: {reason}"))),
        None => Ok(()),
    }
}

/// What a server's threads and its core had done when the measured time began and ended.
pub(super) struct Watch<'a> {
    server: &'a Server,
    core: usize,
    looks: Mutex<[Option<Look>; 2]>,
}

/// The CPU times of the threads, and how long the core was busy for all.
type Look = std::io::Result<(CpuTimes, Duration)>;

impl<'a> Watch<'a> {
    /// Nothing was seen yet.
    pub fn new(server: &'a Server, core: usize) -> Watch<'a> {
        Watch { server, core, looks: Mutex::default() }
    }

    /// Looks.
    pub fn look(&self, moment: Moment) {
        let look = self.server.cpu().and_then(|times| Ok((times, core_busy(self.core)?)));
        let mut looks = self.looks.lock().expect("a look does not panic");
        looks[usize::from(moment == Moment::End)] = Some(look);
    }

    /// The difference of the two.
    pub fn used(self) -> Result<(CpuTimes, Duration), RunError> {
        match self.looks.into_inner().expect("a look does not panic") {
            [Some(Ok((times, busy))), Some(Ok((times_end, busy_end)))] => {
                Ok((times_end.since(&times), busy_end.saturating_sub(busy)))
            }
            [Some(Err(error)), _] | [_, Some(Err(error))] => {
                Err(RunError::io("the server's CPU times")(error))
            }
            _ => Err(RunError::Stopped),
        }
    }
}
