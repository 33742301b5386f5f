//! What a process takes while it is flooded, by the kernel's count.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Memory and threads of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Resident memory before the flood.
    pub resident_kib: u64,
    /// The same at most.
    pub resident_kib_max: u64,
    /// Threads before the flood.
    pub threads: u64,
    /// The same at most.
    pub threads_max: u64,
}

impl Usage {
    /// Of a process now; `None` if there is none.
    pub fn of(pid: u32) -> Option<Usage> {
        Usage::parse(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    fn parse(status: &str) -> Option<Usage> {
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_ascii_whitespace().next()?.parse().ok()
        };
        let (resident_kib, threads) = (number("VmRSS:")?, number("Threads:")?);
        let (resident_kib_max, threads_max) = (resident_kib, threads);
        Some(Usage { resident_kib, resident_kib_max, threads, threads_max })
    }

    /// How much memory grew, at most.
    pub fn grown_kib(&self) -> u64 {
        self.resident_kib_max - self.resident_kib
    }

    /// How many threads there were more, at most.
    pub fn grown_threads(&self) -> u64 {
        self.threads_max - self.threads
    }

    fn look(&mut self, now: &Usage) {
        self.resident_kib_max = self.resident_kib_max.max(now.resident_kib);
        self.threads_max = self.threads_max.max(now.threads);
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, most] = [self.resident_kib, self.resident_kib_max].map(|kib| kib / 1_024);
        write!(f, "{before} MiB resident, {most} at most; ")?;
        write!(f, "{} threads, {} at most", self.threads, self.threads_max)
    }
}

/// Looks at a process again and again.
pub(super) struct Watch {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Usage>,
}

impl Watch {
    /// Begins; `None` if there is no such process on this machine.
    pub(super) fn start(pid: u32) -> Option<Watch> {
        let mut usage = Usage::of(pid)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            while !theirs.load(Ordering::Relaxed)
                && let Some(now) = Usage::of(pid)
            {
                usage.look(&now);
                std::thread::sleep(LOOK);
            }
            usage
        });
        Some(Watch { is_over, thread })
    }

    /// What there was before, and at most.
    pub(super) fn end(self) -> Usage {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it only reads")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_of_all_looks_is_kept() {
        let at = |resident, threads| {
            Usage::parse(&format!("Name:\tx\nVmRSS:\t  {resident} kB\nThreads:\t{threads}\n"))
        };
        let mut usage = at(2_048, 7).unwrap();
        usage.look(&at(5_120, 6).unwrap());
        usage.look(&at(1_024, 9).unwrap());
        assert_eq!((usage.grown_kib(), usage.grown_threads()), (3_072, 2));
        assert_eq!(usage.to_string(), "2 MiB resident, 5 at most; 7 threads, 9 at most");
        assert_eq!(Usage::parse("Name:\tx\n"), None);
    }

    #[test]
    fn a_process_is_watched_while_there_is_one() {
        let usage = Watch::start(std::process::id()).unwrap().end();
        assert!(usage.resident_kib > 0 && usage.threads >= 1, "{usage:?}");
        assert!(Watch::start(u32::MAX).is_none());
    }
}
