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

pub use self::folder::{OpenError, STORE_FORMAT};
pub use self::handle::EmbeddedHandle;
pub use self::metrics::{StoreMetrics, WRITE_US_BOUNDS};

use self::committer::ElapsedClock;
use self::disk::{Batch, Disk, DiskError, PlainDisk, PlainOptions};
use self::folder::Folder;
use self::limits::{READER_THREADS, RESERVE_BYTES_DEFAULT};
use self::queue::Submitter;
use self::resolver::ResolverBounds;
use self::room::SpaceProbe;
use self::threads::Threads;

/// For the benchmarks alone.
#[doc(hidden)]
pub mod bench_support {
    pub use super::resolver::{Resolver, ResolverBounds, Verdict};
}

/// The version of a store in which nothing has been written.
const FIRST_VERSION: Version = Version(1);

/// What an operator may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedConfig {
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

impl Default for EmbeddedConfig {
    fn default() -> EmbeddedConfig {
        EmbeddedConfig {
            commit_gap_us: 0,
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
        let folder = Folder::open(dir)?;
        folder.ensure_rows(|draft| make_rows(&folder, draft, &config))?;
        let disk = open_rows(&folder, &config)?;
        let wrap = std::mem::replace(&mut parts.wrap, Box::new(|disk| disk));
        let disk = wrap(disk);
        let version = disk
            .snapshot()
            .get(system::VERSION_KEY)
            .map_err(|error| folder.unreadable(error.to_string()))?
            .and_then(|value| system::parse_version(&value))
            .ok_or_else(|| folder.unreadable("its version row is missing or damaged"))?;
        let threads =
            Threads::start(dir, &config, parts, disk, version).map_err(folder::at(dir))?;
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
        disk.write(Batch { rows: vec![(key, Some(system::version_value(FIRST_VERSION)))] })?;
        disk.close()
    };
    make().map_err(|error| open_error(folder, draft, error))
}

fn open_rows(folder: &Folder, config: &EmbeddedConfig) -> Result<Arc<dyn Disk>, OpenError> {
    let path = folder.rows();
    let disk = PlainDisk::open(&path, plain_options(config));
    Ok(Arc::new(disk.map_err(|error| open_error(folder, &path, error))?))
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
