//! The embedded engine: an own committer over a disk of five functions.
//!
//! ```text
//!   shards ──submit──▶ queue ──▶ committer ── one batch, one sync ──▶ disk
//!      ▲                            │ publish                           ▲
//!      │                            ▼                                   │ get, range
//!      └────── completions ── published snapshots ◀── 2 readers ◀── queue of reads
//! ```
//!
//! `docs/storage.md` tells the whole: versions, crashes, full disks.

mod committer;
mod disk;
mod folder;
mod group;
mod handle;
mod health;
mod limits;
mod metrics;
mod published;
mod queue;
mod readers;
mod resolver;
mod room;
mod system;
#[cfg(test)]
mod tests;
mod threads;
mod versions;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use chatring_core::kv::{Completion, Version};
use serde::{Deserialize, Serialize};

pub use self::folder::{OpenError, STORE_FORMAT};
pub use self::handle::EmbeddedHandle;
pub use self::metrics::{StoreMetrics, WRITE_US_BOUNDS};

use self::committer::ElapsedClock;
use self::disk::{Batch, Disk, DiskError, PlainDisk, PlainOptions};
use self::disk::{HybridDisk, HybridOptions, SEGMENT_BYTES};
use self::folder::Folder;
use self::limits::{READER_THREADS, RESERVE_BYTES_DEFAULT};
use self::metrics::Counters;
use self::queue::Submitter;
use self::resolver::ResolverBounds;
use self::room::SpaceProbe;
use self::threads::Threads;

/// For the benchmarks alone.
#[doc(hidden)]
pub mod bench_support {
    pub use super::resolver::{KeyHash, Resolver, ResolverBounds, Verdict};
}

/// The version of a store in which nothing has been written.
const FIRST_VERSION: Version = Version(1);

/// What the engine writes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// fjall alone, with a synced batch for each group.
    Plain,
    /// A log and memtables in front of fjall.
    #[default]
    Hybrid,
}

/// What an operator may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// What it writes to. A folder of the other one is converted at the opening.
    pub disk: DiskKind,
    /// Least time between the starts of two groups, in microseconds. More: fewer and larger syncs,
    /// later acknowledgements.
    pub commit_gap_us: u64,
    /// Bytes of memory for rows read from disk.
    pub cache_bytes: u64,
    /// Bytes of new rows gathered in memory before they go into a table; up to five times this.
    pub memtable_bytes: u64,
    /// Bytes of disk kept free, at most; a sixteenth of the file system if that is less.
    pub reserve_bytes: u64,
}

/// Somewhat more than a sync on a quick disk takes: fewer groups leave a core more time, which the
/// slowest answers gain more from than the median loses (`docs/decisions/010-latency.md`).
const COMMIT_GAP_US_DEFAULT: u64 = 200;

impl Default for EmbeddedConfig {
    fn default() -> EmbeddedConfig {
        EmbeddedConfig {
            disk: DiskKind::default(),
            commit_gap_us: COMMIT_GAP_US_DEFAULT,
            cache_bytes: 64 << 20,
            memtable_bytes: 64 << 20,
            reserve_bytes: RESERVE_BYTES_DEFAULT,
        }
    }
}

/// An open store. Handles may outlive it; once it is closed they answer `Unavailable`.
pub struct EmbeddedStore {
    threads: Threads,
    next_submitter: AtomicU32,
    /// Unlocks the folder, after the threads have ended.
    _folder: Folder,
}

/// What tests put in the place of the world.
pub(crate) struct Parts {
    /// Elapsed time since the opening.
    pub elapsed: ElapsedClock,
    /// Asks for free space; none asks the file system.
    pub space: Option<SpaceProbe>,
    /// Called once when the disk has failed, after those who waited were answered.
    pub on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
    /// Puts something round the disk.
    #[expect(clippy::type_complexity)]
    pub wrap: Box<dyn FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk>>,
    /// What the resolver remembers.
    pub bounds: ResolverBounds,
    /// Bytes of a segment of the hybrid disk's log.
    pub segment_bytes: u64,
}

impl Default for Parts {
    fn default() -> Parts {
        let start = Instant::now();
        Parts {
            elapsed: Arc::new(move || start.elapsed()),
            space: None,
            on_fatal: Arc::new(|_| std::process::abort()),
            wrap: Box::new(|disk| disk),
            bounds: ResolverBounds::default(),
            segment_bytes: SEGMENT_BYTES,
        }
    }
}

impl EmbeddedStore {
    /// Opens the store in the folder, which is made if there is none. A folder left by a killed
    /// process opens as any other.
    ///
    /// A disk that fails later ends the process: after a failed sync nobody knows what is stored
    /// until the files are read again.
    pub fn open(dir: &Path, config: EmbeddedConfig) -> Result<EmbeddedStore, OpenError> {
        EmbeddedStore::open_with(dir, config, Parts::default())
    }

    /// Opens the store with parts of the world replaced.
    pub(crate) fn open_with(
        dir: &Path,
        config: EmbeddedConfig,
        mut parts: Parts,
    ) -> Result<EmbeddedStore, OpenError> {
        let mut folder = Folder::open(dir, config.disk)?;
        folder.ensure_rows(|draft| make_rows(&folder, draft, &config))?;
        let counters = Arc::<Counters>::default();
        let hybrid = HybridOptions {
            plain: plain_options(&config),
            segment_bytes: parts.segment_bytes,
            probe: Default::default(),
            counters: Arc::clone(&counters),
        };
        convert(&mut folder, config.disk, &hybrid)?;
        let disk = open_rows(&folder, hybrid)?;
        let wrap = std::mem::replace(&mut parts.wrap, Box::new(|disk| disk));
        let disk = wrap(disk);
        let version = disk
            .snapshot()
            .get(system::VERSION_KEY)
            .map_err(|error| folder.unreadable(error.to_string()))?
            .and_then(|value| system::parse_version(&value))
            .ok_or_else(|| folder.unreadable("its version row is missing or damaged"))?;
        let threads = Threads::start(dir, &config, parts, disk, version, counters)
            .map_err(folder::at(dir))?;
        Ok(EmbeddedStore { threads, next_submitter: AtomicU32::new(0), _folder: folder })
    }

    /// A new submitter's end. For the sink see [`EmbeddedHandle`].
    pub fn handle(&self, sink: impl Fn(Vec<Completion>) + Send + Sync + 'static) -> EmbeddedHandle {
        let id = self.next_submitter.fetch_add(1, Ordering::Relaxed);
        let submitter = Submitter { id, sink: Arc::new(sink) };
        let (queues, counters) = (&self.threads.queues, &self.threads.counters);
        EmbeddedHandle::new(submitter, Arc::clone(queues), Arc::clone(counters))
    }

    /// The figures of this moment.
    pub fn metrics(&self) -> StoreMetrics {
        StoreMetrics {
            queued_reads: self.threads.queues.queued_reads(),
            snapshots_held: self.threads.published.held(),
            ..self.threads.counters.read()
        }
    }

    /// Answers everything that was submitted before, then stops. Dropping the store does the same.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.threads.stop(READER_THREADS);
    }
}

/// Fills a folder with an empty store: one row, the first version.
fn make_rows(folder: &Folder, draft: &Path, config: &EmbeddedConfig) -> Result<(), OpenError> {
    let make = || {
        let disk = PlainDisk::create(draft, plain_options(config))?;
        let key = bytes::Bytes::from_static(system::VERSION_KEY);
        disk.write(Batch { rows: vec![(key, Some(system::version_value(FIRST_VERSION).into()))] })?;
        disk.close()
    };
    make().map_err(|error| open_error(folder, draft, error))?;
    match folder.disk() {
        DiskKind::Hybrid => folder.make_log(),
        DiskKind::Plain => Ok(()),
    }
}

/// Makes the folder one of the wanted disk. What is at rest is the same in both; so to the hybrid
/// disk only an empty log is added, and to leave it the log is ingested. The format file changes
/// in between: a log without it has no meaning.
fn convert(folder: &mut Folder, to: DiskKind, hybrid: &HybridOptions) -> Result<(), OpenError> {
    match (folder.disk(), to) {
        (DiskKind::Plain, DiskKind::Hybrid) => {
            folder.make_log()?;
            folder.set_disk(to)?;
            tracing::info!("the data folder is one of the hybrid disk from now on");
        }
        (DiskKind::Hybrid, DiskKind::Plain) => {
            let drain = || {
                let disk = open_hybrid(folder, hybrid.clone())?;
                disk.drain().and_then(|()| disk.close())
            };
            drain().map_err(|error| open_error(folder, &folder.log(), error))?;
            folder.set_disk(to)?;
            folder.remove_log()?;
            tracing::info!("the data folder is one of the plain disk from now on");
        }
        (DiskKind::Plain, DiskKind::Plain) => folder.remove_log()?,
        (DiskKind::Hybrid, DiskKind::Hybrid) => {}
    }
    Ok(())
}

fn open_rows(folder: &Folder, hybrid: HybridOptions) -> Result<Arc<dyn Disk>, OpenError> {
    let disk: Result<Arc<dyn Disk>, DiskError> = match folder.disk() {
        DiskKind::Plain => {
            PlainDisk::open(&folder.rows(), hybrid.plain).map(|disk| Arc::new(disk) as _)
        }
        DiskKind::Hybrid => open_hybrid(folder, hybrid).map(|disk| Arc::new(disk) as _),
    };
    disk.map_err(|error| open_error(folder, &folder.rows(), error))
}

fn open_hybrid(folder: &Folder, options: HybridOptions) -> Result<HybridDisk, DiskError> {
    if !folder.log().try_exists()? {
        return Err(DiskError::Corrupt("its log is missing".into()));
    }
    HybridDisk::open(&folder.rows(), &folder.log(), options)
}

fn plain_options(config: &EmbeddedConfig) -> PlainOptions {
    PlainOptions { cache_bytes: config.cache_bytes, memtable_bytes: config.memtable_bytes }
}

fn open_error(folder: &Folder, path: &Path, error: DiskError) -> OpenError {
    match error {
        DiskError::Io(source) => folder::at(path)(source),
        error => folder.unreadable(error.to_string()),
    }
}
