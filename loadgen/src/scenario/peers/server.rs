//! A server that the command starts itself: found, configured in a folder of its own, pinned to a
//! core, watched, and ended by its process id.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity};
use tempfile::TempDir;

use crate::latency::Latencies;
use crate::process::{core_busy, pin, spawn_on, ticks};

/// How long a server may take until it takes connections.
const START_MAX: Duration = Duration::from_secs(30);
/// How often a start is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of a server's log that are shown when it does not start.
const LOG_SHOWN_BYTES: usize = 400;
/// Folders that hold servers and that a user's `PATH` may lack.
const MORE_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Syncs that [`sync_us`] times.
const SYNCS: u32 = 100;

/// The cores of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// Of the server.
    pub server: u32,
    /// Of the generator.
    pub generator: u32,
}

impl Cores {
    /// These, or the first two that the process may use; both the same if there is only one.
    ///
    /// # Errors
    /// The process cannot be told where it runs.
    pub fn choose(server: Option<u32>, generator: Option<u32>) -> Result<Cores, String> {
        let allowed = sched_getaffinity(None).map_err(|error| format!("affinity: {error}"))?;
        let mut allowed = (0..CpuSet::MAX_CPU as u32).filter(|core| allowed.is_set(*core as usize));
        let first = allowed.next().unwrap_or_default();
        let second = allowed.next().unwrap_or(first);
        Ok(Cores { server: server.unwrap_or(first), generator: generator.unwrap_or(second) })
    }

    /// Pins the calling thread to the generator's core.
    ///
    /// # Errors
    /// There is no such core for this process.
    pub fn pin_generator(self) -> Result<(), String> {
        pin(self.generator as usize).map_err(|error| format!("core {}: {error}", self.generator))
    }

    fn spawn_on_server_core(self, command: &mut Command) -> Result<Child, String> {
        spawn_on(self.server as usize, command).map_err(|error| {
            format!("{} on core {}: {error}", command.get_program().display(), self.server)
        })
    }
}

/// A running server. It ends, and its folder goes, when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    // Behind the child: dropped after it.
    folder: TempDir,
}

impl Server {
    /// Starts the command with its output in a file of the folder.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command, folder: TempDir, cores: Cores) -> Result<Server, String> {
        let log = File::create(log_of(folder.path())).map_err(|e| format!("its log: {e}"))?;
        let errors = log.try_clone().map_err(|e| format!("its log: {e}"))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        // A Ctrl-C is for the generator, which ends the server.
        command.current_dir(folder.path()).process_group(0);
        let child = cores.spawn_on_server_core(&mut command)?;
        Ok(Server { child, folder })
    }

    /// Waits until it takes connections at this address.
    ///
    /// # Errors
    /// It ended, takes none for half a minute, or `stop` was set.
    pub fn wait_until_up(&mut self, address: SocketAddr, stop: &AtomicBool) -> Result<(), String> {
        let start = Instant::now();
        loop {
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            if let Some(status) = ended {
                return Err(format!("it ended at its start ({status}): {}", self.log_end()));
            }
            if stop.load(Ordering::Relaxed) {
                return Err("stopped".to_owned());
            }
            if start.elapsed() > START_MAX {
                return Err(format!("it takes no connections: {}", self.log_end()));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// CPU time that it has used, of all its threads, to 10 ms.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        stat.ok().as_deref().and_then(cpu_of_stat).unwrap_or_default()
    }

    /// The end of what it wrote.
    fn log_end(&self) -> String {
        let log = std::fs::read(log_of(self.folder.path())).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_SHOWN_BYTES);
        String::from_utf8_lossy(&log[from..]).split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its data goes too, so it need not end well; an error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_of(folder: &Path) -> PathBuf {
    folder.join("output.log")
}

/// User and system time of a line of `/proc/PID/stat` (proc(5)). The name in it may hold anything.
fn cpu_of_stat(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(ticks(user + system))
}

/// CPU time that has been used on a core, by anybody, the machine's host included, to 10 ms.
pub fn core_time(core: u32) -> Duration {
    core_busy(core as usize).unwrap_or_default()
}

/// Where a program is: beside this one, in `PATH`, or where servers usually are.
pub fn find(program: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    // Tests run one folder deeper.
    let above = beside.as_deref().and_then(Path::parent).map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain(above).chain(std::env::split_paths(&path));
    let mut found = folders
        .chain(MORE_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .filter(|path| path.is_file());
    found.next()
}

/// The version that a command prints, whatever its exit code.
pub fn version(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    version_in(&String::from_utf8_lossy(&text)).unwrap_or("unknown").to_owned()
}

/// The first word like `1.2`, `v1.2.3` or `v=1.2`, without its letter.
fn version_in(text: &str) -> Option<&str> {
    let words = text.split_ascii_whitespace().map(|word| word.trim_start_matches(['v', '=']));
    let mut versions =
        words.filter(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
    versions.next()
}

/// A port of the loopback address that is free now.
pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.map(|address| address.port()).map_err(|error| format!("a free port: {error}"))
}

/// The median time of appending 100 bytes and syncing them, in microseconds, in this folder.
///
/// # Errors
/// The folder cannot be written to.
pub fn sync_us(folder: &Path) -> Result<f64, String> {
    let probe = || {
        let mut file = tempfile::tempfile_in(folder)?;
        let mut times = Latencies::new();
        for _ in 0..SYNCS {
            let start = Instant::now();
            file.write_all(&[b'x'; 100])?;
            file.sync_data()?;
            times.record(start.elapsed().as_nanos() as u64);
        }
        std::io::Result::Ok(times.percentiles().p50)
    };
    probe().map_err(|error| format!("{}: {error}", folder.display()))
}

#[cfg(test)]
mod tests {
    use rustix::param::clock_ticks_per_second;

    use super::*;

    #[test]
    fn versions_are_found_in_what_servers_print() {
        for (text, version) in [
            ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0", "7.0.15"),
            ("mosquitto version 2.0.11\n\nmosquitto is an MQTT", "2.0.11"),
            ("nats-server: v2.9.10\n", "2.9.10"),
            ("chatring 0.1.0", "0.1.0"),
            ("23.01", "23.01"),
        ] {
            assert_eq!(version_in(text), Some(version));
        }
        assert_eq!(version_in("no such option"), None);
    }

    #[test]
    fn a_strange_name_does_not_hide_the_cpu_time() {
        let per_s = clock_ticks_per_second();
        let times = format!("{} {}", 2 * per_s, per_s);
        let stat = format!("7 (a) b) S 1 7 7 0 -1 4194560 9 0 0 0 {times} 0 0 20 0 4 0 5");
        assert_eq!(cpu_of_stat(&stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu_of_stat("7 (a"), None);
        assert!(core_time(Cores::choose(None, None).unwrap().server) > Duration::ZERO);
    }

    #[test]
    fn a_server_is_pinned_watched_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let own = sched_getaffinity(None).unwrap();
        let cores = Cores::choose(None, None).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]);
        let server = Server::start(command, folder, cores).unwrap();
        assert_eq!(sched_getaffinity(None).unwrap(), own, "the thread is where it was");
        let status = format!("/proc/{}/status", server.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        assert!(status.contains(&format!("Cpus_allowed_list:\t{}\n", cores.server)), "{status}");
        let start = Instant::now();
        while server.cpu_time() < Duration::from_millis(20) {
            assert!(start.elapsed() < START_MAX, "a loop uses CPU time");
            std::thread::sleep(LOOK);
        }
        let process = format!("/proc/{}", server.child.id());
        assert!(Path::new(&process).exists());
        drop(server);
        assert!(!Path::new(&process).exists(), "it was ended and waited for");
        assert!(!path.exists(), "its folder is gone");
    }

    #[test]
    fn a_server_that_ends_at_once_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such option >&2; exit 3"]);
        let cores = Cores::choose(None, None).unwrap();
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let mut server = Server::start(command, tempfile::tempdir().unwrap(), cores).unwrap();
        let error = server.wait_until_up(nowhere, &AtomicBool::new(false)).unwrap_err();
        assert!(error.contains("no such option") && error.contains('3'), "{error}");
    }
}
