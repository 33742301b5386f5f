//! Disks that misbehave, for tests.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chatring_core::kv::{KeyRange, Order};

use super::{Batch, Disk, DiskError, DiskSnapshot, RowVisitor};

/// What a [`FaultDisk`] does to writes.
#[derive(Debug)]
pub(crate) struct Faults {
    /// Each write takes this much longer, in milliseconds.
    pub delay_ms: AtomicU64,
    /// Writes start at least so far apart, in milliseconds.
    pub pause_ms: AtomicU64,
    /// Writes from this number on (counted from 0) fail before anything is written.
    pub fail_before: AtomicU64,
    /// Writes from this number on are stored, and then reported as failed.
    pub fail_after: AtomicU64,
    /// Failures say that there is no room, instead of something worse.
    pub full: AtomicBool,
    /// Writes so far.
    pub writes: AtomicU64,
}

impl Default for Faults {
    fn default() -> Faults {
        Faults {
            delay_ms: AtomicU64::new(0),
            pause_ms: AtomicU64::new(0),
            fail_before: AtomicU64::new(u64::MAX),
            fail_after: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
            writes: AtomicU64::new(0),
        }
    }
}

/// Delays and fails the writes of another disk.
pub(crate) struct FaultDisk {
    pub inner: Arc<dyn Disk>,
    pub faults: Arc<Faults>,
}

impl Disk for FaultDisk {
    fn write(&self, batch: Batch) -> Result<Arc<dyn DiskSnapshot>, DiskError> {
        let number = self.faults.writes.fetch_add(1, SeqCst);
        std::thread::sleep(Duration::from_millis(self.faults.delay_ms.load(SeqCst)));
        let failure = || match self.faults.full.load(SeqCst) {
            true => DiskError::Io(io::ErrorKind::StorageFull.into()),
            false => DiskError::Io(io::Error::other("injected")),
        };
        if number >= self.faults.fail_before.load(SeqCst) {
            return Err(failure());
        }
        let snapshot = self.inner.write(batch)?;
        if number >= self.faults.fail_after.load(SeqCst) {
            return Err(failure());
        }
        Ok(snapshot)
    }

    fn pause(&self) -> Duration {
        self.inner.pause().max(Duration::from_millis(self.faults.pause_ms.load(SeqCst)))
    }

    fn snapshot(&self) -> Arc<dyn DiskSnapshot> {
        self.inner.snapshot()
    }

    fn check(&self) -> Result<(), DiskError> {
        self.inner.check()
    }

    fn reopen(&self) -> Result<Arc<dyn DiskSnapshot>, DiskError> {
        self.inner.reopen()
    }

    fn close(&self) -> Result<(), DiskError> {
        self.inner.close()
    }
}

/// Rows that survive a crash of a [`PageCacheDisk`].
pub(crate) type Platter = Arc<Mutex<BTreeMap<Bytes, Bytes>>>;

/// Whether a [`PageCacheDisk`] syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syncing {
    /// As it should.
    Honest,
    /// Never: what is written stays in the page cache.
    Skipped,
}

/// A disk in memory under a page cache that a crash empties: dropping it is the crash.
pub(crate) struct PageCacheDisk {
    platter: Platter,
    cache: Mutex<Arc<BTreeMap<Bytes, Bytes>>>,
    syncing: Syncing,
}

impl PageCacheDisk {
    /// Starts from what is on the platter.
    pub(crate) fn new(platter: Platter, syncing: Syncing) -> PageCacheDisk {
        let cache = Arc::new(platter.lock().unwrap().clone());
        PageCacheDisk { platter, cache: Mutex::new(cache), syncing }
    }
}

impl Disk for PageCacheDisk {
    fn write(&self, batch: Batch) -> Result<Arc<dyn DiskSnapshot>, DiskError> {
        let mut cache = self.cache.lock().unwrap();
        let mut next = BTreeMap::clone(&cache);
        for (key, value) in batch.rows {
            match value {
                Some(value) => next.insert(key, value.into_bytes()),
                None => next.remove(&key),
            };
        }
        *cache = Arc::new(next);
        if self.syncing == Syncing::Honest {
            *self.platter.lock().unwrap() = BTreeMap::clone(&cache);
        }
        Ok(Arc::new(MapSnapshot(Arc::clone(&cache))))
    }

    fn pause(&self) -> Duration {
        Duration::ZERO
    }

    fn snapshot(&self) -> Arc<dyn DiskSnapshot> {
        Arc::new(MapSnapshot(Arc::clone(&self.cache.lock().unwrap())))
    }

    fn check(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn reopen(&self) -> Result<Arc<dyn DiskSnapshot>, DiskError> {
        Ok(self.snapshot())
    }

    fn close(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

struct MapSnapshot(Arc<BTreeMap<Bytes, Bytes>>);

impl DiskSnapshot for MapSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
        Ok(self.0.get(key).cloned())
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
        let mut rows = self.0.range(range.start.clone()..range.end.clone());
        while let Some((key, value)) = match order {
            Order::Forward => rows.next(),
            Order::Reverse => rows.next_back(),
        } {
            if let ControlFlow::Break(()) = visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}
