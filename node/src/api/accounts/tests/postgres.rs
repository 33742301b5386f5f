//! A PostgreSQL server of Debian's packages for one test: in a folder of its own, at a free port,
//! as an unprivileged user, and gone with the test.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use super::world::block_on;

/// Who runs it if the test is run by root, whom PostgreSQL refuses to serve: nobody.
const NOBODY: u32 = 65_534;
/// Time for `initdb`.
const INIT: Duration = Duration::from_secs(60);
/// Time until it answers.
const START: Duration = Duration::from_secs(30);
/// Time in which it must end when told so.
const STOP: Duration = Duration::from_secs(10);
/// Times that another port is tried, if somebody has taken the free one meanwhile.
const STARTS_MAX: u32 = 3;

pub struct Server {
    port: u16,
    process: Child,
    /// Removed after the process has ended.
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts it; says why it cannot, if it cannot.
    pub fn start() -> Option<Server> {
        match Server::try_start() {
            Ok(server) => Some(server),
            Err(reason) => {
                // Not captured, unlike what a test prints.
                let _ = writeln!(std::io::stderr(), "SKIPPED: accounts on PostgreSQL: {reason}");
                None
            }
        }
    }

    /// The URL of a new database.
    pub fn database(&self, name: &str) -> String {
        let url = |name: &str| format!("postgres://chatring@127.0.0.1:{}/{name}", self.port);
        block_on(async {
            sqlx::any::install_default_drivers();
            let mut admin = connect(&url("postgres")).await.expect("the server runs");
            let make = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
            sqlx::query(make).execute(&mut admin).await.expect("a new database");
        });
        url(name)
    }

    fn try_start() -> Result<Server, String> {
        let programs = programs().ok_or("it is not installed")?;
        let folder = tempfile::Builder::new().prefix("chatring-pg").tempdir();
        let folder = folder.map_err(|error| error.to_string())?;
        if geteuid().is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).map_err(|error| error.to_string())?;
        }
        let data = folder.path().join("data");
        let mut init = command(&programs.join("initdb"), folder.path())?;
        init.args(["--username=chatring", "--auth=trust", "--no-sync", "--encoding=UTF8"]);
        init.args(["--locale=C", "--pgdata"]).arg(&data);
        let mut init = init.spawn().map_err(|error| format!("initdb: {error}"))?;
        match wait(&mut init, INIT) {
            Some(status) if status.success() => {}
            _ => {
                let _ = init.kill();
                let _ = init.wait();
                return Err(format!("initdb failed: {}", log(folder.path())));
            }
        }
        for _ in 0..STARTS_MAX {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
            let port = free.map_err(|error| error.to_string())?.port();
            let mut start = command(&programs.join("postgres"), folder.path())?;
            start.arg("-D").arg(&data).arg("-k").arg(folder.path());
            start.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-F"]);
            let mut process = start.spawn().map_err(|error| format!("postgres: {error}"))?;
            if answers(port, &mut process) {
                return Ok(Server { port, process, _folder: folder });
            }
            stop(&mut process);
        }
        Err(format!("it does not answer: {}", log(folder.path())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        stop(&mut self.process);
    }
}

/// The newest version's folder.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| {
            let path = version.ok()?.path();
            let number = path.file_name()?.to_str()?.parse().ok()?;
            Some((number, path.join("bin")))
        })
        .filter(|(_, bin)| bin.join("postgres").exists() && bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().map(|(_, bin)| bin)
}

/// As nobody, if need be; what it says goes to a file.
fn command(program: &Path, folder: &Path) -> Result<Command, String> {
    let out = File::create(folder.join("log")).map_err(|error| error.to_string())?;
    let err = out.try_clone().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null()).stdout(out).stderr(err);
    command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin");
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    Ok(command)
}

fn answers(port: u16, process: &mut Child) -> bool {
    let until = Instant::now() + START;
    let url = format!("postgres://chatring@127.0.0.1:{port}/postgres");
    sqlx::any::install_default_drivers();
    while Instant::now() < until {
        if !matches!(process.try_wait(), Ok(None)) {
            return false;
        }
        if block_on(connect(&url)).is_some() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

async fn connect(url: &str) -> Option<sqlx::AnyConnection> {
    let connect = <sqlx::AnyConnection as sqlx::Connection>::connect(url);
    tokio::time::timeout(Duration::from_secs(5), connect).await.ok()?.ok()
}

/// Tells it to end at once, in order; kills it if it does not.
fn stop(process: &mut Child) {
    if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::INT);
    }
    if wait(process, STOP).is_none() {
        let _ = process.kill();
        let _ = process.wait();
    }
}

fn wait(process: &mut Child, at_most: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + at_most;
    while Instant::now() < until {
        if let Ok(Some(status)) = process.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

fn log(folder: &Path) -> String {
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    log.lines().rev().take(3).collect::<Vec<_>>().join(" | ")
}
