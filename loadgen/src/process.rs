//! Servers that a command starts itself: pinned to a core, watched, and ended with it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// How long a server may take to end when asked; then it is killed.
const END_MAX: Duration = Duration::from_secs(10);
/// How often a waiting thread looks.
const LOOK: Duration = Duration::from_millis(10);

/// A server that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    /// Starts a program on one core. Its standard output can be read; its errors go into the file
    /// `log`, which is made.
    ///
    /// # Errors
    /// There is no such program or core, or the file cannot be made.
    pub fn start<S: AsRef<OsStr>>(
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
        core: usize,
        log: &Path,
    ) -> io::Result<Server> {
        let log = File::create(log)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        spawn_on(core, &mut command).map(Server)
    }

    /// Waits for the first line that the server prints.
    ///
    /// # Errors
    /// It prints none within that time, or ends.
    pub fn first_line(&mut self, patience: Duration) -> io::Result<String> {
        let stdout = self.0.stdout.take().ok_or_else(|| io::Error::other("asked twice"))?;
        let (say, heard) = channel(); // bound: one line
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            // Nobody waits any more if it took too long.
            let _ = say.send(read.map(|_| line));
        });
        match heard.recv_timeout(patience) {
            Ok(Ok(line)) if line.is_empty() => Err(io::Error::other("it ended at once")),
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "it says nothing"))
            }
        }
    }

    /// Waits for a file that the server makes.
    ///
    /// # Errors
    /// It is not there within that time, or the server ends.
    pub fn file(&mut self, path: &Path, patience: Duration) -> io::Result<()> {
        // What it prints meanwhile is for people who started it by hand.
        self.0.stdout.take();
        let start = Instant::now();
        while !path.exists() {
            if let Some(status) = self.0.try_wait()? {
                return Err(io::Error::other(format!("it ended: {status}")));
            }
            if start.elapsed() > patience {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not come up"));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The CPU time of its threads by name, up to now.
    ///
    /// # Errors
    /// It is gone, or the kernel does not tell.
    pub fn cpu(&self) -> io::Result<CpuTimes> {
        CpuTimes::of(self.0.id())
    }

    /// Asks it to end, and kills it if it does not.
    pub fn end(mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let start = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && start.elapsed() < END_MAX {
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already is no matter.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a command on one core.
///
/// # Errors
/// There is no such program or core.
pub fn spawn_on(core: usize, command: &mut Command) -> io::Result<Child> {
    // A process begins where its parent's thread may run.
    let before = sched_getaffinity(None)?;
    pin(core)?;
    let child = command.spawn();
    sched_setaffinity(None, &before)?;
    child
}

/// Lets the calling thread, and those that it starts, run on one core alone.
///
/// # Errors
/// There is no such core for us.
pub fn pin(core: usize) -> io::Result<()> {
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// Time that a core was busy since the machine started, for whomever: what the host took is in it.
///
/// # Errors
/// There is no such core, or the kernel does not tell.
pub fn core_busy(core: usize) -> io::Result<Duration> {
    core_of_stat(&std::fs::read_to_string("/proc/stat")?, core)
        .ok_or_else(|| io::Error::other(format!("the kernel tells nothing of core {core}")))
}

/// All of a core's time in `/proc/stat` (proc(5)) but the idle and the waiting one.
fn core_of_stat(stat: &str, core: usize) -> Option<Duration> {
    let name = format!("cpu{core} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name))?;
    let times = line.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>();
    let [user, nice, system, _idle, _wait, irq, soft, steal, ..] = times.ok()?[..] else {
        return None;
    };
    Some(ticks(user + nice + system + irq + soft + steal))
}

/// Ticks of the kernel's clock, in which `/proc` counts.
pub fn ticks(count: u64) -> Duration {
    Duration::from_micros(count * 1_000_000 / clock_ticks_per_second().max(1))
}

/// CPU times of the threads of a process, added up by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes(pub BTreeMap<String, Duration>);

impl CpuTimes {
    /// Those of a process, up to now.
    ///
    /// # Errors
    /// It is gone, or the kernel does not tell.
    pub fn of(pid: u32) -> io::Result<CpuTimes> {
        let mut times = CpuTimes::default();
        for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = entry?.path();
            let name = std::fs::read_to_string(task.join("comm"));
            let stat = std::fs::read_to_string(task.join("schedstat"));
            // A thread may end while we look.
            let (Ok(name), Ok(stat)) = (name, stat) else { continue };
            let ns = stat.split(' ').next().and_then(|ns| ns.parse().ok());
            let ns = ns.ok_or_else(|| io::Error::other("the kernel counts no CPU time"))?;
            *times.0.entry(name.trim_end().to_owned()).or_default() += Duration::from_nanos(ns);
        }
        Ok(times)
    }

    /// What was used since an earlier look.
    pub fn since(&self, earlier: &CpuTimes) -> CpuTimes {
        let used = self.0.iter().map(|(name, time)| {
            let before = earlier.0.get(name).copied().unwrap_or_default();
            (name.clone(), time.saturating_sub(before))
        });
        CpuTimes(used.collect())
    }

    /// All threads together.
    pub fn total(&self) -> Duration {
        self.0.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_core_counts_all_but_idling_and_waiting() {
        let per_s = clock_ticks_per_second();
        let stat =
            format!("cpu  9 9 9 9 9 9 9 9 0 0\ncpu1 {per_s} 0 {per_s} 7 7 0 0 {per_s} 0 0\n");
        assert_eq!(core_of_stat(&stat, 1), Some(Duration::from_secs(3)));
        assert_eq!(core_of_stat(&stat, 2), None);
    }

    #[test]
    fn a_server_runs_on_its_core_and_ends_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "echo ready; echo trouble >&2; while :; do :; done";
        let mut server = Server::start(Path::new("/bin/sh"), ["-c", script], 0, &log).unwrap();
        assert_eq!(server.first_line(Duration::from_secs(10)).unwrap(), "ready\n");
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.0.id())).unwrap();
        let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        assert_eq!(cores.map(str::trim), Some("0"));
        let before = server.cpu().unwrap();
        let busy_before = core_busy(0).unwrap();
        while server.cpu().unwrap().since(&before).total() < Duration::from_millis(100) {
            std::thread::sleep(LOOK);
        }
        let busy = core_busy(0).unwrap() - busy_before;
        assert!(busy >= Duration::from_millis(50), "{busy:?}");
        assert!(core_busy(CpuSet::MAX_CPU).is_err());
        assert!(server.cpu().unwrap().0.contains_key("sh"));
        let pid = server.0.id();
        server.end();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "trouble\n");
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn one_that_says_nothing_or_ends_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let start = |script| Server::start(Path::new("/bin/sh"), ["-c", script], 0, &log).unwrap();
        let mut silent = start("exec sleep 100");
        assert!(silent.first_line(Duration::from_millis(50)).is_err());
        let mut short = start("exit 3");
        let error = short.file(Path::new("/nowhere"), Duration::from_secs(10)).unwrap_err();
        assert!(error.to_string().contains('3'), "{error}");
    }
}
