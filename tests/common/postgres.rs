//! A PostgreSQL server of Debian's packages for one test, gone with it.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

/// Who runs it if the test is run by root, whom PostgreSQL refuses to serve: nobody.
const NOBODY: u32 = 65_534;
/// Time until it answers.
const START: Duration = Duration::from_secs(60);
/// Times that another port is tried, if somebody has taken the free one meanwhile.
const STARTS_MAX: u32 = 3;

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    port: u16,
    process: Child,
    _folder: TempDir,
}

impl Postgres {
    /// Starts it, or says why it cannot.
    pub fn start() -> Result<Postgres, String> {
        let programs = programs().ok_or("PostgreSQL is not installed")?;
        let folder = tempfile::Builder::new().prefix("chatring-pg").tempdir();
        let folder = folder.map_err(|error| error.to_string())?;
        if geteuid().is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).map_err(|error| error.to_string())?;
        }
        let data = folder.path().join("data");
        let mut init = command(&programs.join("initdb"), folder.path());
        init.args(["--username=chatring", "--auth=trust", "--no-sync", "--encoding=UTF8"]);
        init.args(["--locale=C", "--pgdata"]).arg(&data);
        if !init.status().is_ok_and(|status| status.success()) {
            return Err("initdb of PostgreSQL failed".to_owned());
        }
        for _ in 0..STARTS_MAX {
            let port = free_port();
            let mut start = command(&programs.join("postgres"), folder.path());
            start.arg("-D").arg(&data).arg("-k").arg(folder.path());
            start.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-F"]);
            let mut process = start.spawn().map_err(|error| error.to_string())?;
            if answers(&programs, folder.path(), port, &mut process) {
                return Ok(Postgres { port, process, _folder: folder });
            }
            stop(&mut process);
        }
        Err("PostgreSQL does not answer".to_owned())
    }

    /// URL of its database.
    pub fn url(&self) -> String {
        format!("postgres://chatring@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        stop(&mut self.process);
    }
}

/// A port that nobody has at the moment.
pub fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    free.expect("a port").port()
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
fn command(program: &Path, folder: &Path) -> Command {
    let out = File::options().create(true).append(true).open(folder.join("log"));
    let out = out.expect("a file in an own folder");
    let mut command = Command::new(program);
    let err = out.try_clone().expect("a descriptor");
    command.current_dir(folder).stdin(Stdio::null()).stdout(out).stderr(err);
    command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin");
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn answers(programs: &Path, folder: &Path, port: u16, process: &mut Child) -> bool {
    let until = Instant::now() + START;
    while Instant::now() < until && matches!(process.try_wait(), Ok(None)) {
        let mut ready = command(&programs.join("pg_isready"), folder);
        ready.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
        if ready.status().is_ok_and(|status| status.success()) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// Tells it to end at once, in order; kills it if it does not.
fn stop(process: &mut Child) {
    if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::INT);
    }
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until && matches!(process.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = process.kill();
    let _ = process.wait();
}
