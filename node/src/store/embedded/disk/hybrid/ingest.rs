//! Sealed memtables on their way to rest, on a thread of their own.
//!
//! fjall 3.1.13 writes what it is given in ascending order into new tables beside its journal and
//! its memtable. `finish` syncs the tables and their folder, then a new list of tables, and only
//! then shows them to snapshots taken from there on; a removed row becomes a tombstone like any
//! other. Whatever is cut off before leaves files that the next opening removes. So a memtable is
//! at rest as a whole or not at all, and giving it a second time changes nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Instant;

use super::limits::{BACKGROUND_NICE, FRESH_RUNS_MAX, ROWS_PER_LOOK, WAIT_POLL};
use super::pace::Pace;
use super::probe::{Probe, Step};
use super::segments::SegmentsMessage;
use super::snapshot::Stack;
use super::table::Table;
use super::{Shared, spawn};
use crate::store::embedded::disk::plain::PlainDisk;
use crate::store::embedded::disk::{Disk as _, DiskError, DiskSnapshot as _};
use crate::store::embedded::metrics::Counters;

/// Holds the sequence up to which all records are at rest, eight bytes big-endian. Goes to rest
/// with the rows of each memtable.
pub(crate) const INGESTED_KEY: &[u8] = b"\xff/ingested";

/// Where a keyspace has its tables.
const TABLES: &str = "tables";

/// Takes sealed memtables to rest, the oldest first.
pub(crate) struct Ingester {
    pub shared: Arc<Shared>,
    pub at_rest: Arc<PlainDisk>,
    pub segments: flume::Sender<SegmentsMessage>,
    pub probe: Probe,
}

/// The sequence up to which all records are at rest.
pub(crate) fn ingested_sequence(at_rest: &PlainDisk) -> Result<u64, DiskError> {
    match at_rest.state()?.get(INGESTED_KEY)? {
        None => Ok(0),
        Some(value) => match <[u8; 8]>::try_from(&*value) {
            Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
            Err(_) => Err(DiskError::Corrupt("the row of what is at rest is damaged".into())),
        },
    }
}

/// Runs on a thread that gives way to the shards; threads started by it do so, too.
pub(crate) fn in_background<T: Send>(
    work: impl FnOnce() -> Result<T, DiskError> + Send,
) -> Result<T, DiskError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            give_way();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Ingester {
    /// Starts the thread.
    pub(crate) fn start(self) -> std::io::Result<JoinHandle<()>> {
        spawn("store-ingest", move || {
            give_way();
            if catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
                let reason = "the thread that ingests memtables panicked".to_owned();
                self.shared.fail(&DiskError::Stopped(reason));
            }
        })
    }

    fn run(&self) {
        while let Some((table, last_segment)) = self.next() {
            match self.ingest(&table) {
                Ok(Done::Whole) => self.switch(table, last_segment),
                Ok(Done::Stopped) => return,
                Err(error) => return self.shared.fail(&error),
            }
        }
    }

    /// Waits for a sealed memtable; none when it is to end.
    fn next(&self) -> Option<(Arc<Table>, u64)> {
        self.shared.wait_until(|state, _| !state.sealed.is_empty()).ok()?;
        let state = self.shared.lock();
        let table = state.stack.tables.last().expect("a sealed table is in the stack");
        Some((Arc::clone(table), state.sealed[0]))
    }

    fn ingest(&self, table: &Table) -> Result<Done, DiskError> {
        let keyspace = self.at_rest.keyspace()?;
        while self.shared.count_fresh_runs(&self.at_rest)? >= FRESH_RUNS_MAX {
            self.at_rest.check()?;
            if self.is_ending() {
                return Ok(Done::Stopped);
            }
            std::thread::sleep(WAIT_POLL);
        }
        let start = Instant::now();
        let counters = &self.shared.counters;
        let mut pace = Pace::start(keyspace.path().join(TABLES))?;
        let mut ingestion = keyspace.start_ingestion()?;
        let ingested = (table.next_sequence() - 1).to_be_bytes();
        let mut own = Some(INGESTED_KEY);
        let (mut rows, mut bytes) = (0, 0);
        let visited = table.for_each(|key, value| {
            if let Some(own_key) = own.take_if(|own_key| key > *own_key) {
                ingestion.write(own_key, ingested)?;
            }
            match value {
                Some(value) => ingestion.write(key, value)?,
                None => ingestion.write_tombstone(key)?,
            }
            rows += 1;
            let row_bytes = key.len() + value.map_or(0, <[u8]>::len);
            bytes += row_bytes;
            pace.gave(row_bytes)?;
            match rows % ROWS_PER_LOOK == 0 && self.is_ending() {
                true => Err(DiskError::Stopped("ending".into())),
                false => Ok(()),
            }
        });
        match visited {
            Err(DiskError::Stopped(_)) if self.is_ending() => return Ok(Done::Stopped),
            visited => visited?,
        }
        if let Some(own_key) = own {
            ingestion.write(own_key, ingested)?;
        }
        self.probe.reached(Step::RowsGiven);
        ingestion.finish()?;
        self.probe.reached(Step::RowsIngested);
        self.shared.count_fresh_runs(&self.at_rest)?;
        Counters::bump(&counters.ingestions);
        counters.ingested_bytes.fetch_add(bytes as u64, Relaxed);
        counters.ingestion_us.fetch_add(start.elapsed().as_micros() as u64, Relaxed);
        tracing::debug!(rows, bytes, took_ms = start.elapsed().as_millis() as u64, "ingested");
        Ok(Done::Whole)
    }

    /// Lets readers take the rows from rest, then the log forget them.
    fn switch(&self, table: Arc<Table>, last_segment: u64) {
        let at_rest = match self.at_rest.state() {
            Ok(at_rest) => at_rest,
            Err(error) => return self.shared.fail(&error),
        };
        let mut state = self.shared.lock();
        let mut tables = state.stack.tables.clone();
        let oldest = tables.pop();
        debug_assert!(oldest.is_some_and(|oldest| Arc::ptr_eq(&oldest, &table)));
        let before = std::mem::replace(&mut state.stack, Arc::new(Stack { tables, at_rest }));
        state.sealed.remove(0);
        self.shared.counters.sealed_tables.store(state.sealed.len(), Relaxed);
        drop(state);
        // Freeing a memtable takes a while: not under the lock.
        drop((before, table));
        self.shared.changed.notify_all();
        self.probe.reached(Step::TableDropped);
        // An error means that the disk is closing; the next opening finds the segments again.
        let _ = self.segments.send(SegmentsMessage::Recycle(last_segment));
    }

    fn is_ending(&self) -> bool {
        self.shared.check().is_err()
    }
}

enum Done {
    Whole,
    Stopped,
}

/// Lowers the thread's priority; if that is refused it is only less polite.
fn give_way() {
    let thread = rustix::thread::gettid();
    let _ = rustix::process::setpriority_process(Some(thread), BACKGROUND_NICE);
}
