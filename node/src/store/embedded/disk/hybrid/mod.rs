//! The hybrid disk: a log and memtables in front of fjall, which keeps what is at rest.
//!
//! ```text
//!   write ─▶ log: one record, one fdatasync ─▶ memtable ─▶ snapshot (sequence, memtables, fjall's)
//!                │ segments of 16 MiB              │ full: sealed
//!                ▼                                 ▼
//!            written again ◀── all at rest ── ingested into fjall as sorted tables (own thread)
//! ```
//!
//! `docs/storage.md` has the formats and the steps of recovery.
//!
//! * A record of the log is a batch and a state. It has a sequence; snapshots are named by it.
//! * A memtable begins with a segment of its own, and is ingested as a whole. With it goes a row
//!   that says up to which record the tables at rest are whole. Then its segments leave the log.
//! * Reading goes through the memtables, the newest first, to fjall's snapshot. Both change
//!   together ([`Stack`]), so that a row is never in neither; in both it is the same.
//! * Whatever fails, nothing more is written until `reopen` has read the files anew.

mod files;
mod ingest;
mod limits;
mod log;
mod pace;
mod probe;
mod record;
mod replay;
mod segments;
mod slots;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::files::{LogDir, RealDir};
use self::ingest::Ingester;
use self::limits::{
    FRESH_RUNS_MAX, LIVE_BYTES_MAX, LIVE_TABLES_MIN, PAUSE_FROM, PAUSE_MAX, REPLAYED_SEGMENTS_MAX,
    SEALED_TABLES_MAX, WAIT_POLL,
};
use self::log::Log;
use self::probe::{Probe, Step};
use self::replay::Replay;
use self::segments::{Prepared, Segments, SegmentsMessage};
use self::snapshot::{HybridSnapshot, Live, Stack};
use self::table::Table;
use super::plain::{PlainDisk, PlainOptions};
use super::{Batch, Disk, DiskError, DiskSnapshot};
use crate::held::{Cause, HELD};
use crate::store::embedded::metrics::Counters;

pub(crate) use self::limits::SEGMENT_BYTES;

/// How a hybrid disk uses memory and files.
#[derive(Clone)]
pub(crate) struct HybridOptions {
    /// Of the tables at rest; its memtable size is that of the hybrid's memtables.
    pub plain: PlainOptions,
    /// Bytes of a log segment's file.
    pub segment_bytes: u64,
    /// What tests look through.
    pub probe: Probe,
    /// Where figures go.
    pub counters: Arc<Counters>,
}

/// See the module.
pub(crate) struct HybridDisk {
    at_rest: Arc<PlainDisk>,
    log_dir: Arc<dyn LogDir>,
    options: HybridOptions,
    /// Taken by `close` and `reopen`.
    running: Mutex<Option<Arc<Running>>>,
}

/// The threads and what they share with the committer.
struct Running {
    shared: Arc<Shared>,
    writer: Mutex<Writer>,
    /// The ingester, and the one of the segments.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the committer, the ingester and the thread of the segments share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something in the state has changed.
    changed: Condvar,
    live: Arc<Live>,
    live_tables: Arc<AtomicUsize>,
    /// The bound of the tables that live.
    live_tables_max: usize,
    counters: Arc<Counters>,
}

struct State {
    stack: Arc<Stack>,
    /// For each sealed table, the oldest first, the last segment with its records.
    sealed: Vec<u64>,
    /// The newest record in the stack.
    sequence: u64,
    stop: bool,
    failure: Option<Failure>,
}

/// Why nothing is written any more.
#[derive(Clone)]
struct Failure {
    reason: String,
    /// More room would have helped.
    full: bool,
}

/// The committer's part.
struct Writer {
    log: Log,
    active: Arc<Table>,
    /// The sequence of the next record.
    sequence: u64,
    /// Those of the snapshots that are held; kept for its memory.
    live: Vec<u64>,
}

impl HybridDisk {
    /// Opens a disk: tables at rest that are there, and a log that may be empty.
    pub(crate) fn open(
        rows: &Path,
        log: &Path,
        options: HybridOptions,
    ) -> Result<HybridDisk, DiskError> {
        HybridDisk::open_with(rows, Arc::new(RealDir::open(log.to_path_buf())?), options)
    }

    fn open_with(
        rows: &Path,
        log_dir: Arc<dyn LogDir>,
        options: HybridOptions,
    ) -> Result<HybridDisk, DiskError> {
        let at_rest = Arc::new(ingest::in_background(|| PlainDisk::open(rows, options.plain))?);
        // fjall 3.1.13 takes a snapshot numbered 0 for none when it looks for the oldest one, and
        // then lets go of what later ones need. The first write leaves 0 behind.
        if at_rest.state()?.is_first() {
            let row = (Bytes::from_static(ingest::INGESTED_KEY), None);
            at_rest.write(Batch { rows: vec![row] })?;
        }
        let disk = HybridDisk { at_rest, log_dir, options, running: Mutex::new(None) };
        *disk.lock() = Some(disk.start()?);
        Ok(disk)
    }

    /// Ingests all that is in the log, and waits for it: then the tables at rest are everything.
    pub(crate) fn drain(&self) -> Result<(), DiskError> {
        self.drain_running(&*self.running()?)
    }

    fn drain_running(&self, running: &Running) -> Result<(), DiskError> {
        let mut writer = running.writer();
        if writer.active.next_sequence() > writer.active_first() {
            self.seal(&running.shared, &mut writer)?;
        }
        running.shared.wait_until(|state, _| state.sealed.is_empty()).map(drop)
    }

    fn start(&self) -> Result<Arc<Running>, DiskError> {
        let counters = Arc::clone(&self.options.counters);
        let probe = self.options.probe.clone();
        let segment_bytes = self.options.segment_bytes;
        let log_dir = Arc::clone(&self.log_dir);
        let mut segments =
            Segments::open(log_dir, segment_bytes, probe.clone(), Arc::clone(&counters))?;
        let (to_segments, messages) = flume::bounded(2 * SEALED_TABLES_MAX + 4);
        let (to_log, ready) = flume::bounded(1);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                stack: Arc::new(Stack { tables: Vec::new(), at_rest: self.at_rest.state()? }),
                sealed: Vec::new(),
                sequence: 0,
                stop: false,
                failure: None,
            }),
            changed: Condvar::new(),
            live: Arc::default(),
            live_tables: Arc::default(),
            live_tables_max: live_tables_max(self.options.plain.memtable_bytes),
            counters: Arc::clone(&counters),
        });
        let ingester = Ingester {
            shared: Arc::clone(&shared),
            at_rest: Arc::clone(&self.at_rest),
            segments: to_segments.clone(),
            probe: probe.clone(),
        };
        let mut threads = vec![ingester.start()?];
        let writer = self.replay(&segments, &shared).and_then(|replayed| {
            segments.take_back(replayed.first_unused)?;
            segments.recycle(replayed.at_rest)?;
            let last_number = segments.used().last().copied().unwrap_or(0);
            let first = segments.prepare(0)?;
            to_log.send(Ok(first)).expect("it has room");
            let thread = SegmentsThread { segments, messages, to_log, shared: Arc::clone(&shared) };
            threads.push(thread.start()?);
            let log = Log::new(ready, to_segments, last_number, probe, counters);
            let Replayed { active, sequence, .. } = replayed;
            Ok(Writer { log, active, sequence, live: Vec::new() })
        });
        let writer = match writer {
            Ok(writer) => writer,
            Err(error) => {
                shared.stop();
                threads.into_iter().for_each(|thread| drop(thread.join()));
                return Err(error);
            }
        };
        let (writer, threads) = (Mutex::new(writer), Mutex::new(threads));
        let running = Arc::new(Running { shared, writer, threads });
        if self.options.counters.log_segments.load(Relaxed) > REPLAYED_SEGMENTS_MAX {
            self.drain_running(&running).inspect_err(|_| running.stop())?;
        }
        Ok(running)
    }

    /// Reads the log into memtables; full ones are sealed, and ingested meanwhile.
    fn replay(&self, segments: &Segments, shared: &Arc<Shared>) -> Result<Replayed, DiskError> {
        let ingested = ingest::ingested_sequence(&self.at_rest)?;
        let mut replay = Replay::new(ingested);
        let start = Instant::now();
        let mut active: Option<Arc<Table>> = None;
        let mut count = 0_u64;
        let (mut last_number, mut at_rest) = (0, 0);
        for number in segments.used() {
            let records = replay.segment(segments, number)?;
            if let Some(table) = active.take_if(|table| self.is_full(table)) {
                shared.wait_for_room()?;
                shared.sealed(&table, last_number, None);
            }
            for (sequence, record) in records {
                let table = active.get_or_insert_with(|| {
                    let table = Arc::new(Table::new(sequence, 0, &shared.live_tables));
                    shared.began(&table);
                    table
                });
                table.insert(record, &[])?;
                count += 1;
            }
            last_number = number;
            if count == 0 {
                at_rest = number;
            }
        }
        let sequence = replay.next_sequence();
        let active = active.unwrap_or_else(|| {
            let table = Arc::new(Table::new(sequence, 0, &shared.live_tables));
            shared.began(&table);
            table
        });
        shared.lock().sequence = sequence - 1;
        let took_ms = start.elapsed().as_millis() as u64;
        tracing::debug!(records = count, segments = segments.used().len(), took_ms, "log read");
        Ok(Replayed { active, sequence, at_rest, first_unused: replay.first_unused() })
    }

    fn is_full(&self, table: &Table) -> bool {
        table.bytes() >= self.options.plain.memtable_bytes
    }

    fn seal(&self, shared: &Arc<Shared>, writer: &mut Writer) -> Result<(), DiskError> {
        shared.wait_for_room()?;
        let last_number = writer.log.end_segment();
        let heads = writer.active.heads();
        let next = Arc::new(Table::new(writer.sequence, heads, &shared.live_tables));
        shared.sealed(&writer.active, last_number, Some(&next));
        writer.active = next;
        self.options.probe.reached(Step::TableSealed);
        Ok(())
    }

    fn running(&self) -> Result<Arc<Running>, DiskError> {
        self.lock().clone().ok_or_else(|| DiskError::Stopped("closed".into()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        if let Some(running) = self.lock().take() {
            running.stop();
        }
    }
}

impl Disk for HybridDisk {
    fn write(&self, batch: Batch) -> Result<Arc<dyn DiskSnapshot>, DiskError> {
        let running = self.running()?;
        let shared = &running.shared;
        let mut writer = running.writer();
        shared.check()?;
        if self.is_full(&writer.active) {
            self.seal(shared, &mut writer)?;
        }
        writer.write(&batch, shared).map_err(|error| {
            let earlier = shared.check().err();
            shared.fail(&error);
            match error {
                // Of a thread: why it has ended says more.
                DiskError::Stopped(_) => earlier.unwrap_or(error),
                error => error,
            }
        })
    }

    fn snapshot(&self) -> Arc<dyn DiskSnapshot> {
        let running = self.running().expect("no snapshot is taken after close");
        running.shared.snapshot()
    }

    /// The nearer memtables and fresh runs come to where writes or ingestions wait, the longer.
    fn pause(&self) -> Duration {
        let counters = &self.options.counters;
        let active = counters.memtable_bytes.load(Relaxed) as f64;
        let active = (active / self.options.plain.memtable_bytes as f64).min(1.0);
        let sealed = counters.sealed_tables.load(Relaxed) as f64;
        let memtables = (sealed + active) / (SEALED_TABLES_MAX + 1) as f64;
        let runs = counters.fresh_runs.load(Relaxed) as f64 / FRESH_RUNS_MAX as f64;
        let pause = pause_at(memtables.max(runs));
        counters.pause_us.store(pause.as_micros() as u64, Relaxed);
        pause
    }

    fn check(&self) -> Result<(), DiskError> {
        let running = self.running()?;
        running.shared.check()?;
        running.shared.count_fresh_runs(&self.at_rest)?;
        self.at_rest.check()
    }

    fn reopen(&self) -> Result<Arc<dyn DiskSnapshot>, DiskError> {
        self.stop();
        ingest::in_background(|| self.at_rest.reopen())?;
        let running = self.start()?;
        let snapshot = running.shared.snapshot();
        *self.lock() = Some(running);
        Ok(snapshot)
    }

    fn close(&self) -> Result<(), DiskError> {
        self.stop();
        self.at_rest.close()
    }
}

impl Drop for HybridDisk {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    /// Ends the threads. What is being ingested is left; the log still has it.
    fn stop(&self) {
        self.shared.stop();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, thread) in threads.drain(..).enumerate() {
            if number > 0 {
                self.writer().log.close();
            }
            // A panic in it has been taken for a failure.
            let _ = thread.join();
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn write(
        &mut self,
        batch: &Batch,
        shared: &Arc<Shared>,
    ) -> Result<Arc<dyn DiskSnapshot>, DiskError> {
        let mut record = record::encode(batch, self.sequence)?;
        self.log.append(&mut record)?;
        shared.live.copy_into(&mut self.live);
        self.active.insert(record.into(), &self.live)?;
        shared.counters.memtable_bytes.store(self.active.bytes(), Relaxed);
        let snapshot = shared.landed(self.sequence);
        self.sequence += 1;
        Ok(snapshot)
    }

    fn active_first(&self) -> u64 {
        self.active.first_sequence()
    }
}

impl Shared {
    /// Whether anything has failed.
    fn check(&self) -> Result<(), DiskError> {
        self.lock().check()
    }

    /// Takes a failure down and wakes whoever waits.
    fn fail(&self, error: &DiskError) {
        let mut state = self.lock();
        if state.failure.is_none() && !state.stop {
            state.failure = Some(Failure { reason: error.to_string(), full: error.is_full() });
        }
        drop(state);
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_all();
    }

    fn snapshot(&self) -> Arc<dyn DiskSnapshot> {
        let state = self.lock();
        let stack = Arc::clone(&state.stack);
        Arc::new(HybridSnapshot::new(stack, state.sequence, &self.live))
    }

    /// A record is durable and in its memtable: the state after it.
    fn landed(&self, sequence: u64) -> Arc<dyn DiskSnapshot> {
        let mut state = self.lock();
        state.sequence = sequence;
        Arc::new(HybridSnapshot::new(Arc::clone(&state.stack), sequence, &self.live))
    }

    /// A memtable takes records from now on.
    fn began(&self, table: &Arc<Table>) {
        let mut state = self.lock();
        let mut tables = vec![Arc::clone(table)];
        tables.extend_from_slice(&state.stack.tables);
        state.stack = Arc::new(Stack { tables, at_rest: Arc::clone(&state.stack.at_rest) });
    }

    /// The newest memtable takes no more; another one may be in its place already.
    fn sealed(&self, table: &Arc<Table>, last_segment: u64, next: Option<&Arc<Table>>) {
        if let Some(next) = next {
            self.began(next);
        }
        let mut state = self.lock();
        debug_assert!(state.stack.tables.iter().any(|other| Arc::ptr_eq(other, table)));
        state.sealed.push(last_segment);
        self.counters.sealed_tables.store(state.sealed.len(), Relaxed);
        drop(state);
        self.changed.notify_all();
    }

    /// Runs of tables that have not been merged: counted for the committer, too, which must not
    /// wait for fjall's answer.
    fn count_fresh_runs(&self, at_rest: &PlainDisk) -> Result<usize, DiskError> {
        let runs = at_rest.fresh_runs()?;
        self.counters.fresh_runs.store(runs, Relaxed);
        Ok(runs)
    }

    /// Waits until one more memtable may be sealed.
    fn wait_for_room(&self) -> Result<(), DiskError> {
        let is_free = |state: &State, live_tables: usize| {
            state.sealed.len() < SEALED_TABLES_MAX && live_tables < self.live_tables_max
        };
        let start = Instant::now();
        if self.wait_until(is_free)? == Waited::Yes {
            self.counters.stalled(start.elapsed());
            HELD.since(Cause::Room, start);
        }
        Ok(())
    }

    fn wait_until(&self, done: impl Fn(&State, usize) -> bool) -> Result<Waited, DiskError> {
        let mut waited = Waited::No;
        let mut state = self.lock();
        loop {
            state.check()?;
            if done(&state, self.live_tables.load(Relaxed)) {
                return Ok(waited);
            }
            waited = Waited::Yes;
            let woken = self.changed.wait_timeout(state, WAIT_POLL);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    Yes,
    No,
}

impl State {
    fn check(&self) -> Result<(), DiskError> {
        match &self.failure {
            Some(failure) if failure.full => {
                Err(DiskError::Io(std::io::ErrorKind::StorageFull.into()))
            }
            Some(failure) => Err(DiskError::Stopped(failure.reason.clone())),
            None if self.stop => Err(DiskError::Stopped("closed".into())),
            None => Ok(()),
        }
    }
}

/// What the log held.
struct Replayed {
    active: Arc<Table>,
    /// The sequence of the next record.
    sequence: u64,
    /// The last of the segments whose records are all at rest.
    at_rest: u64,
    /// The first segment behind all records.
    first_unused: u64,
}

/// Prepares and recycles segments.
struct SegmentsThread {
    segments: Segments,
    messages: flume::Receiver<SegmentsMessage>,
    to_log: flume::Sender<std::io::Result<Prepared>>,
    shared: Arc<Shared>,
}

impl SegmentsThread {
    fn start(self) -> std::io::Result<JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        spawn("store-segments", move || {
            if catch_unwind(AssertUnwindSafe(|| self.run())).is_err() {
                let reason = "the thread of the log's segments panicked".to_owned();
                shared.fail(&DiskError::Stopped(reason));
            }
        })
    }

    fn run(mut self) {
        while let Ok(message) = self.messages.recv() {
            let done = match message {
                SegmentsMessage::Close => return,
                SegmentsMessage::Prepare(bytes) => {
                    // One at a time is asked for, so the channel has room.
                    self.segments.prepare(bytes).map(|ready| drop(self.to_log.try_send(Ok(ready))))
                }
                SegmentsMessage::Recycle(last) => self.segments.recycle(last),
            };
            if let Err(error) = done {
                let error = DiskError::Io(error);
                self.shared.fail(&error);
                return;
            }
        }
    }
}

/// The pause when this part of the memtables, or of the fresh runs, is taken: none up to the half,
/// in which one is ingested while the next one fills, and then more and more.
fn pause_at(full: f64) -> Duration {
    if full <= PAUSE_FROM {
        return Duration::ZERO;
    }
    let above = (full.min(1.0) - PAUSE_FROM) / (1.0 - PAUSE_FROM);
    PAUSE_MAX.mul_f64(above * above)
}

/// Small memtables may be many: snapshots hold them for a time, not for a number.
fn live_tables_max(memtable_bytes: u64) -> usize {
    let fit = usize::try_from(LIVE_BYTES_MAX / memtable_bytes.max(1)).unwrap_or(usize::MAX);
    fit.max(LIVE_TABLES_MIN)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(work)
}
