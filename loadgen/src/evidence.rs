//! Watches the machine while a node is loaded: what may have held messages up that neither node nor
//! generator did.
//!
//! * The sampler reads `/proc/stat` and the scheduler's figures of the node's threads, 20 times a
//!   second. It runs beside the generator.
//! * The sleeper, if asked for, sleeps on the server's core, 5 ms at a time: late, it had no core,
//!   or the machine stood still.
//! * The disk's probe, if asked for, writes 400 bytes and syncs them, 50 times a second.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chatring_bare::log::fill;
use rustix::process::Pid;
use rustix::thread::sched_getaffinity;
use serde::{Deserialize, Serialize};

use crate::process::{CpuTimes, pin, ticks};

/// What lasts less is no evidence.
const EVIDENCE_MIN: Duration = Duration::from_millis(10);
/// Most pieces of evidence that a thread keeps; further ones are counted.
const EVIDENCE_MAX: usize = 100_000;
/// Time between two samples.
const SAMPLE: Duration = Duration::from_millis(50);
/// Samples until new threads of the node are looked for.
const SAMPLES_PER_LIST: u32 = 20;
/// Most threads of the node that are watched.
const THREADS_WATCHED_MAX: usize = 64;
/// What the sleeper sleeps.
const NAP: Duration = Duration::from_millis(5);
/// Time between two syncs of the disk's probe.
const SYNC_EVERY: Duration = Duration::from_millis(20);
/// Bytes of one of them.
const SYNC_BYTES: u64 = 400;
/// Bytes of its file, which is written over and over.
const FILE_BYTES: u64 = 1 << 20;

/// Who held something up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The machine's host, or whoever stopped the machine.
    Host,
    /// The disk, with a file that is not the node's.
    Disk,
    /// The generator.
    Generator,
    /// Whoever had the core.
    Core,
    /// The node.
    Node,
}

/// Something that took long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Who.
    pub who: Who,
    /// What, in a word.
    pub cause: String,
    /// More, for people.
    pub note: String,
    /// From when on, Unix time.
    pub begin_unix_us: u64,
    /// Until when.
    pub end_unix_us: u64,
    /// How much of that time, if it is a sample's.
    pub took_us: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// In no order.
    pub evidence: Vec<Evidence>,
    /// What had no room.
    pub left_out: u64,
    /// The share of the cores that it may use for which the node was busy meanwhile; 0 if that is
    /// not known.
    #[serde(default)]
    pub node_busy: f64,
}

/// What is to be watched.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// The node's process, if it is on this machine.
    pub pid: Option<u32>,
    /// The core on which a sleeper naps.
    pub core: Option<usize>,
    /// The folder in which a file is synced.
    pub folder: Option<PathBuf>,
}

/// Threads that watch. Dropped, they end.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Found>>,
}

impl Watch {
    /// Begins.
    ///
    /// # Errors
    /// There is no such core or folder, or no thread.
    pub fn start(watched: &Watched) -> io::Result<Watch> {
        let mut watch = Watch { stop: Arc::default(), threads: Vec::new() };
        let sampler = Sampler::new(watched.pid);
        watch.spawn("sampler", move |stop, found| sampler.run(stop, found))?;
        if let Some(core) = watched.core {
            let (tell, told) = std::sync::mpsc::sync_channel(1);
            watch.spawn("sleeper", move |stop, found| {
                let pinned = pin(core);
                let is_pinned = pinned.is_ok();
                // Whoever starts it waits for this word.
                let _ = tell.send(pinned);
                if is_pinned {
                    sleeper(stop, found);
                }
            })?;
            told.recv().map_err(io::Error::other)??;
        }
        if let Some(folder) = &watched.folder {
            let file = SyncedFile::create(folder)?;
            watch.spawn("disk", move |stop, found| file.run(stop, found))?;
        }
        Ok(watch)
    }

    /// Ends, and tells what was found.
    pub fn end(mut self) -> Found {
        self.stop.store(true, Relaxed);
        let mut all = Found::default();
        for thread in self.threads.drain(..) {
            let found = thread.join().expect("watching does not panic");
            all.evidence.extend(found.evidence);
            all.left_out += found.left_out;
            all.node_busy += found.node_busy;
        }
        all
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(&AtomicBool, &mut Found) + Send + 'static,
    ) -> io::Result<()> {
        let stop = Arc::clone(&self.stop);
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            let mut found = Found::default();
            work(&stop, &mut found);
            found
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

impl Found {
    /// Something ended now that began `length` ago, and took `took` of that time.
    fn note(&mut self, who: Who, cause: &str, note: String, length: Duration, took: Duration) {
        if took < EVIDENCE_MIN {
            return;
        }
        if self.evidence.len() == EVIDENCE_MAX {
            self.left_out += 1;
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.evidence.push(Evidence {
            who,
            cause: cause.to_owned(),
            note,
            begin_unix_us: micros(now.saturating_sub(length)),
            end_unix_us: micros(now),
            took_us: micros(took),
        });
    }
}

/// The figures of the system and of the node's threads.
struct Sampler {
    pid: Option<u32>,
    stolen: BTreeMap<String, Duration>,
    threads: BTreeMap<u32, Watchee>,
}

struct Watchee {
    name: String,
    waited: Duration,
}

impl Sampler {
    fn new(pid: Option<u32>) -> Sampler {
        Sampler { pid, stolen: BTreeMap::new(), threads: BTreeMap::new() }
    }

    fn run(mut self, stop: &AtomicBool, found: &mut Found) {
        let start = Instant::now();
        let used_before = self.node_used();
        let mut last = start;
        for number in 0_u32.. {
            if number.is_multiple_of(SAMPLES_PER_LIST) {
                self.list();
            }
            let length = last.elapsed();
            last = Instant::now();
            self.steal(length, found);
            self.waits(length, found);
            if stop.load(Relaxed) {
                found.node_busy = self.node_busy(used_before, start.elapsed()).unwrap_or(0.0);
                return;
            }
            std::thread::sleep(SAMPLE);
        }
    }

    fn node_used(&self) -> Option<CpuTimes> {
        CpuTimes::of(self.pid?).ok()
    }

    fn node_busy(&self, before: Option<CpuTimes>, length: Duration) -> Option<f64> {
        let pid = Pid::from_raw(i32::try_from(self.pid?).ok()?)?;
        let cores = sched_getaffinity(Some(pid)).ok()?.count();
        let used = self.node_used()?.since(&before?).total();
        Some(used.as_secs_f64() / (length.as_secs_f64() * f64::from(cores)))
    }

    fn steal(&mut self, length: Duration, found: &mut Found) {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        for (core, stolen) in stolen(&text) {
            let before = self.stolen.insert(core.to_owned(), stolen).unwrap_or(stolen);
            let took = stolen.saturating_sub(before);
            found.note(Who::Host, "steal", core.to_owned(), length, took);
        }
    }

    fn waits(&mut self, length: Duration, found: &mut Found) {
        let Some(pid) = self.pid else { return };
        for (thread, watchee) in &mut self.threads {
            let path = format!("/proc/{pid}/task/{thread}/schedstat");
            let Some(waited) = std::fs::read_to_string(path).ok().and_then(|text| waited(&text))
            else {
                continue;
            };
            let took = waited.saturating_sub(std::mem::replace(&mut watchee.waited, waited));
            found.note(Who::Core, "wait", watchee.name.clone(), length, took);
        }
    }

    /// Looks for new threads of the node, and forgets those that are gone.
    fn list(&mut self) {
        let Some(pid) = self.pid else { return };
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
        let mut before = std::mem::take(&mut self.threads);
        for entry in entries.flatten().take(THREADS_WATCHED_MAX) {
            let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
            let known = before.remove(&thread).or_else(|| {
                let name = read("comm")?.trim_end().to_owned();
                Some(Watchee { name, waited: waited(&read("schedstat")?)? })
            });
            self.threads.extend(known.map(|known| (thread, known)));
        }
    }
}

/// Naps. It is late for want of its core, or because the machine stood still.
fn sleeper(stop: &AtomicBool, found: &mut Found) {
    let own = OwnWaits::new();
    while !stop.load(Relaxed) {
        let (start, before) = (Instant::now(), own.waited());
        std::thread::sleep(NAP);
        let late = start.elapsed().saturating_sub(NAP);
        let waited = own.waited().saturating_sub(before).min(late);
        let still = late.saturating_sub(waited);
        found.note(Who::Core, "sleeper", "it had no core".to_owned(), late, waited);
        found.note(Who::Host, "still", "no timer came".to_owned(), late, still);
    }
}

/// The probe of the disk.
struct SyncedFile {
    file: File,
    path: PathBuf,
}

impl SyncedFile {
    fn create(folder: &Path) -> io::Result<SyncedFile> {
        let path = folder.join("probe");
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        // As with the node's log: blocks that exist need no metadata.
        fill(&file, FILE_BYTES)?;
        Ok(SyncedFile { file, path })
    }

    fn run(self, stop: &AtomicBool, found: &mut Found) {
        let own = OwnWaits::new();
        let mut at = 0;
        while !stop.load(Relaxed) {
            let (start, before) = (Instant::now(), own.waited());
            let written = self.file.write_all_at(&[7; SYNC_BYTES as usize], at);
            let write = start.elapsed();
            let synced = written.and_then(|()| self.file.sync_data());
            let took = start.elapsed();
            let waited = own.waited().saturating_sub(before);
            let own_part = took.saturating_sub(waited);
            let note = match synced {
                Ok(()) => format!("the write {} ms of it", write.as_millis()),
                Err(error) => error.to_string(),
            };
            found.note(Who::Disk, "sync", note, took, own_part);
            at = if at + 2 * SYNC_BYTES > FILE_BYTES { 0 } else { at + SYNC_BYTES };
            std::thread::sleep(SYNC_EVERY);
        }
        // The folder is another's; a file that stays is no matter.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// How long the calling thread has waited for a core.
struct OwnWaits(Option<File>);

impl OwnWaits {
    fn new() -> OwnWaits {
        OwnWaits(File::open("/proc/thread-self/schedstat").ok())
    }

    fn waited(&self) -> Duration {
        let mut text = [0; 64];
        let read = self.0.as_ref().and_then(|file| file.read_at(&mut text, 0).ok());
        let text = std::str::from_utf8(&text[..read.unwrap_or(0)]).ok();
        text.and_then(waited).unwrap_or_default()
    }
}

/// The second number of a schedstat: nanoseconds without a core.
fn waited(text: &str) -> Option<Duration> {
    text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// Time that the host took from each core (proc(5)).
fn stolen(stat: &str) -> impl Iterator<Item = (&str, Duration)> {
    stat.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let core = words.next().filter(|name| name.starts_with("cpu") && *name != "cpu")?;
        Some((core, ticks(words.nth(7)?.parse().ok()?)))
    })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_takes_the_eighth_time_of_a_core() {
        let stat =
            "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 100 9 10\nintr 5 5 5 5 5 5 5 5 5\n";
        let stolen: Vec<_> = stolen(stat).collect();
        assert_eq!(stolen, [("cpu0", ticks(100))]);
        assert_eq!(waited("123 4567 8\n"), Some(Duration::from_nanos(4_567)));
        assert_eq!(waited(""), None);
    }

    #[test]
    fn what_is_short_or_too_much_is_not_kept() {
        let mut found = Found::default();
        let ms = Duration::from_millis;
        found.note(Who::Disk, "sync", String::new(), ms(9), ms(9));
        assert!(found.evidence.is_empty());
        for _ in 0..=EVIDENCE_MAX {
            found.note(Who::Disk, "sync", String::new(), ms(50), ms(10));
        }
        assert_eq!((found.evidence.len(), found.left_out), (EVIDENCE_MAX, 1));
        let first = &found.evidence[0];
        assert_eq!((first.end_unix_us - first.begin_unix_us, first.took_us), (50_000, 10_000));
    }

    #[test]
    fn a_watch_ends_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let watched = Watched {
            pid: Some(std::process::id()),
            core: Some(0),
            folder: Some(folder.path().to_owned()),
        };
        let watch = Watch::start(&watched).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(150) {}
        let found = watch.end();
        assert!(found.node_busy > 0.01, "{}", found.node_busy);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let nowhere = Watched { core: Some(100_000), ..Watched::default() };
        assert!(Watch::start(&nowhere).is_err());
    }
}
