//! The plain disk: one fjall keyspace, one batch with one fdatasync per group.
//!
//! What fjall 3.1.13 does, and what follows from it:
//! * A batch with `SyncData` is written, synced and made visible under one lock of the journal, and
//!   looks for earlier failures after it has the lock. Writing and syncing in two calls would leave
//!   a gap in which a worker's failed sync of the same file could go unseen; hence one call.
//! * All items of a batch share a sequence number, so a batch must hold each key once.
//! * A failed write or sync, also of a background worker, stops it for good (`Poisoned`).
//! * A writer waits without end while four memtables, or 30 runs of tables, wait for a dead worker;
//!   hence writes wait here before they get there, and look whether the workers live.
//! * A snapshot is a counter in a map. While one is open, merging keeps the rows that it shows.

use std::ops::{Bound, ControlFlow};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chatring_core::kv::{KeyRange, Order};
use fjall::compaction::Leveled;
use fjall::{AbstractTree as _, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};

use super::{Batch, Disk, DiskError, DiskSnapshot, RowVisitor};

/// Name of the only keyspace.
const KEYSPACE: &str = "rows";
/// The file that fjall writes last when it makes a database.
const MARKER: &str = "version";
/// Journal bytes above which fjall flushes what keeps the oldest journal alive.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;
/// Memtables that may wait for a worker before a write waits; fjall itself waits from 4 on.
const SEALED_MEMTABLES_MAX: usize = 2;
/// Runs of unmerged tables before a write waits; fjall itself slows down from 20 and stops at 30.
const FRESH_RUNS_MAX: usize = 20;
/// Time between two looks at the workers.
const WORKERS_POLL: Duration = Duration::from_millis(5);
/// Looks at whether the last snapshot of a closed database has gone: 2 s.
const REOPEN_TRIES_MAX: u32 = 400;
/// Bytes of a table at least, however small the memtables are: each is a file.
const TABLE_BYTES_MIN: u64 = 4 << 20;
/// fjall's threads: one may flush while the other merges.
const WORKER_THREADS: usize = 2;

/// How a plain disk uses memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlainOptions {
    /// Bytes of the block cache.
    pub cache_bytes: u64,
    /// Bytes at which a memtable is flushed; up to four wait.
    pub memtable_bytes: u64,
}

/// See the module.
pub(crate) struct PlainDisk {
    dir: PathBuf,
    options: PlainOptions,
    /// Taken by `close`: a database stops its threads when its last handle goes.
    open: Mutex<Option<Open>>,
}

#[derive(Clone)]
struct Open {
    database: Database,
    rows: Keyspace,
}

impl PlainDisk {
    /// Makes an empty disk in an empty folder.
    pub(crate) fn create(dir: &Path, options: PlainOptions) -> Result<PlainDisk, DiskError> {
        PlainDisk::start(dir, options)
    }

    /// Opens a disk that was made before; never makes an empty one in place of a damaged one.
    pub(crate) fn open(dir: &Path, options: PlainOptions) -> Result<PlainDisk, DiskError> {
        if !dir.join(MARKER).try_exists()? {
            return Err(DiskError::Corrupt(format!("{} is missing", dir.join(MARKER).display())));
        }
        PlainDisk::start(dir, options)
    }

    /// The keyspace, for those who put tables into it.
    pub(super) fn keyspace(&self) -> Result<Keyspace, DiskError> {
        Ok(self.handle()?.rows)
    }

    /// The state of the moment.
    pub(super) fn state(&self) -> Result<Arc<PlainSnapshot>, DiskError> {
        Ok(self.handle()?.snapshot())
    }

    /// Runs of tables that have not been merged.
    pub(super) fn fresh_runs(&self) -> Result<usize, DiskError> {
        Ok(self.handle()?.rows.tree.l0_run_count())
    }

    fn start(dir: &Path, options: PlainOptions) -> Result<PlainDisk, DiskError> {
        // Some damage makes fjall panic.
        let open = catch_unwind(AssertUnwindSafe(|| Open::start(dir, options)))
            .unwrap_or_else(|_| Err(DiskError::Corrupt("its files are damaged".into())))?;
        Ok(PlainDisk { dir: dir.to_path_buf(), options, open: Mutex::new(Some(open)) })
    }

    /// A handle for one call; the mutex is not held during I/O.
    fn handle(&self) -> Result<Open, DiskError> {
        self.lock().clone().ok_or_else(|| DiskError::Stopped("closed".into()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn start(dir: &Path, options: PlainOptions) -> Result<Open, DiskError> {
        let database = Database::builder(dir)
            .worker_threads(WORKER_THREADS)
            .cache_size(options.cache_bytes)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .open()?;
        // The first level holds four tables, as many as a merge into it takes memtables: were they
        // larger, each merge would write the level anew for a few rows.
        let table_bytes = options.memtable_bytes.max(TABLE_BYTES_MIN);
        let keyspace_options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(options.memtable_bytes)
                .compaction_strategy(Arc::new(
                    Leveled::default().with_table_target_size(table_bytes),
                ))
        };
        let rows = database.keyspace(KEYSPACE, keyspace_options)?;
        Ok(Open { database, rows })
    }

    /// Waits until the workers have caught up. A write adds at most two memtables and one run.
    fn wait_for_workers(&self) -> Result<(), DiskError> {
        while self.rows.tree.sealed_memtable_count() >= SEALED_MEMTABLES_MAX
            || self.rows.tree.l0_run_count() >= FRESH_RUNS_MAX
        {
            self.check()?;
            std::thread::sleep(WORKERS_POLL);
        }
        Ok(())
    }

    /// Writes nothing that a group has not synced: it asks whether a worker has failed.
    fn check(&self) -> Result<(), DiskError> {
        Ok(self.database.persist(PersistMode::Buffer)?)
    }

    fn snapshot(self) -> Arc<PlainSnapshot> {
        Arc::new(PlainSnapshot { snapshot: self.database.snapshot(), rows: self.rows })
    }
}

impl Disk for PlainDisk {
    fn write(&self, batch: Batch) -> Result<Arc<dyn DiskSnapshot>, DiskError> {
        let open = self.handle()?;
        open.wait_for_workers()?;
        let (database, rows) = (open.database.clone(), &open.rows);
        let mut write = fjall::OwnedWriteBatch::with_capacity(database, batch.rows.len())
            .durability(Some(PersistMode::SyncData));
        for (key, value) in batch.rows {
            match value {
                Some(value) => write.insert(rows, &*key, &*value.into_bytes()),
                None => write.remove(rows, &*key),
            }
        }
        write.commit()?;
        Ok(open.snapshot())
    }

    /// A write waits for the workers by itself.
    fn pause(&self) -> Duration {
        Duration::ZERO
    }

    fn snapshot(&self) -> Arc<dyn DiskSnapshot> {
        self.handle().expect("no snapshot is taken after close").snapshot()
    }

    fn check(&self) -> Result<(), DiskError> {
        self.handle()?.check()
    }

    fn reopen(&self) -> Result<Arc<dyn DiskSnapshot>, DiskError> {
        drop(self.lock().take());
        let mut tries_left = REOPEN_TRIES_MAX;
        loop {
            match PlainDisk::open(&self.dir, self.options) {
                // A reader still holds a snapshot of the old one.
                Err(DiskError::InUse) if tries_left > 0 => tries_left -= 1,
                opened => {
                    let opened = opened?.lock().take().expect("just opened");
                    *self.lock() = Some(opened.clone());
                    return Ok(opened.snapshot());
                }
            }
            std::thread::sleep(WORKERS_POLL);
        }
    }

    fn close(&self) -> Result<(), DiskError> {
        let open = self.lock().take();
        match open {
            Some(open) => Ok(open.database.persist(PersistMode::SyncAll)?),
            None => Ok(()),
        }
    }
}

/// A snapshot of fjall's.
pub(super) struct PlainSnapshot {
    snapshot: fjall::Snapshot,
    rows: Keyspace,
}

impl PlainSnapshot {
    /// Whether it was taken before anything was ever written.
    pub(super) fn is_first(&self) -> bool {
        self.snapshot.seqno() == 0
    }
}

impl DiskSnapshot for PlainSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
        let value = self.snapshot.get(&self.rows, key)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn range(
        &self,
        range: &KeyRange,
        order: Order,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), DiskError> {
        if range.is_empty() {
            return Ok(());
        }
        let bounds = (Bound::Included(&*range.start), Bound::Excluded(&*range.end));
        let mut rows = self.snapshot.range::<&[u8], _>(&self.rows, bounds);
        loop {
            let row = match order {
                Order::Forward => rows.next(),
                Order::Reverse => rows.next_back(),
            };
            let Some(row) = row else { return Ok(()) };
            let (key, value) = row.into_inner()?;
            if let ControlFlow::Break(()) = visit(&key, &value) {
                return Ok(());
            }
        }
    }
}

impl From<fjall::Error> for DiskError {
    fn from(error: fjall::Error) -> DiskError {
        match error {
            fjall::Error::Io(error) => DiskError::Io(error),
            fjall::Error::Storage(fjall::LsmError::Io(error)) => DiskError::Io(error),
            fjall::Error::Locked => DiskError::InUse,
            fjall::Error::Poisoned => DiskError::Stopped("fjall is poisoned".into()),
            error => DiskError::Corrupt(error.to_string()),
        }
    }
}
