//! Tests of the hybrid disk below the engine.
#![allow(clippy::unwrap_used)]

mod crash;
mod crash_dir;
mod faults;
mod model;
mod tail;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use chatring_core::kv::{KeyRange, Order};

use self::crash_dir::CrashDir;
use super::probe::Probe;
use super::{HybridDisk, HybridOptions};
use crate::store::embedded::disk::{Batch, Disk, DiskError, DiskSnapshot, PlainDisk, PlainOptions};

/// Segments with room for some of the tests' records.
const SEGMENT_BYTES: u64 = 8 << 10;
/// Memtables that a few records fill.
const MEMTABLE_BYTES: u64 = 6_000;

type Rows = BTreeMap<Bytes, Bytes>;

fn options(probe: Probe) -> HybridOptions {
    let plain = PlainOptions { cache_bytes: 1 << 20, memtable_bytes: MEMTABLE_BYTES };
    HybridOptions { plain, segment_bytes: SEGMENT_BYTES, probe, counters: Arc::default() }
}

/// Makes tables at rest without a row.
fn make_rows(rows: &Path) {
    PlainDisk::create(rows, options(Probe::default()).plain).unwrap().close().unwrap();
}

fn open(rows: &Path, dir: &CrashDir, options: HybridOptions) -> Result<HybridDisk, DiskError> {
    HybridDisk::open_with(rows, Arc::new(dir.clone()), options)
}

fn batch(rows: Vec<(String, Option<String>)>) -> Batch {
    let rows = rows
        .into_iter()
        .map(|(key, value)| (key.into(), value.map(|value| Bytes::from(value).into())));
    Batch { rows: rows.collect() }
}

fn apply(model: &mut Rows, batch: &Batch) {
    for (key, value) in &batch.rows {
        match value {
            Some(value) => model.insert(key.clone(), value.clone().into_bytes()),
            None => model.remove(key),
        };
    }
}

fn rows(snapshot: &dyn DiskSnapshot, range: &KeyRange, order: Order) -> Vec<(Bytes, Bytes)> {
    let mut rows = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    };
    snapshot.range(range, order, &mut visit).unwrap();
    rows
}

/// Every key that is not the disk's own.
fn all() -> KeyRange {
    KeyRange { start: Bytes::new(), end: Bytes::from_static(b"\xff") }
}
