//! What the engine writes to: six functions, behind which a disk may be laid out as it likes.
//!
//! ```text
//!   write ─▶ one atomic batch, durable when it returns, and the snapshot after it
//!   snapshot ─▶ the state after the last write: get, range
//!   close
//! ```
//!
//! `reopen` starts over after a failure that more room can cure. `check` asks about trouble in the
//! disk's own threads, which no write may come by to meet; `pause` lets these keep up.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chatring_core::kv::{KeyRange, Order, STAMP_BYTES, Stamp};

#[cfg(test)]
pub(crate) mod fault;
mod hybrid;
mod plain;

pub(crate) use hybrid::{HybridDisk, HybridOptions, SEGMENT_BYTES};
pub(crate) use plain::{PlainDisk, PlainOptions};

/// What one group changes: each key once, with its new value or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    /// The rows, in no order.
    pub rows: Vec<(Bytes, Option<Value>)>,
}

/// A row's new value. The stamp is put in where the value is copied to anyway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    bytes: Bytes,
    /// What goes over the bytes at an offset.
    stamp: Option<(u32, [u8; STAMP_BYTES])>,
}

impl Value {
    /// A value with a stamp over the bytes at the offset, which lie within it.
    pub(crate) fn stamped(bytes: Bytes, offset: u32, stamp: Stamp) -> Value {
        Value { bytes, stamp: Some((offset, stamp.to_bytes())) }
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Copies it behind what is there.
    pub(crate) fn append_to(&self, buffer: &mut Vec<u8>) {
        let start = buffer.len();
        buffer.extend_from_slice(&self.bytes);
        if let Some((offset, stamp)) = &self.stamp {
            let start = start + *offset as usize;
            buffer[start..start + STAMP_BYTES].copy_from_slice(stamp);
        }
    }

    /// The value by itself.
    pub(crate) fn into_bytes(self) -> Bytes {
        if self.stamp.is_none() {
            return self.bytes;
        }
        let mut buffer = Vec::with_capacity(self.len());
        self.append_to(&mut buffer);
        buffer.into()
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Value {
        Value { bytes, stamp: None }
    }
}

/// A durable ordered map with atomic batches.
pub(crate) trait Disk: Send + Sync {
    /// Makes the batch durable, all or nothing, and gives the state after it. Called by one thread.
    fn write(&self, batch: Batch) -> Result<Arc<dyn DiskSnapshot>, DiskError>;

    /// The state after the last write that returned.
    fn snapshot(&self) -> Arc<dyn DiskSnapshot>;

    /// How far apart the next two writes should start at least, so that the disk's own threads
    /// keep up.
    fn pause(&self) -> Duration;

    /// Whether the disk's own threads are well.
    fn check(&self) -> Result<(), DiskError>;

    /// Opens the files again after a failure, as a new process would, and gives what they hold.
    /// Every snapshot has been let go before; waits a moment for those still in use.
    fn reopen(&self) -> Result<Arc<dyn DiskSnapshot>, DiskError>;

    /// Finishes; no other call follows.
    fn close(&self) -> Result<(), DiskError>;
}

/// Receives the rows of a range.
pub(crate) type RowVisitor<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// An unchanging state of a disk. Holding one keeps what it shows from being cleaned up.
pub(crate) trait DiskSnapshot: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DiskError>;

    /// Visits the rows of a range until the visitor breaks.
    fn range(
        &self,
        range: &KeyRange,
        order: Order,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), DiskError>;
}

/// Trouble with a disk. After a failed write nothing is known but that it may have happened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The operating system refused.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The disk is locked by somebody else.
    #[error("in use")]
    InUse,
    /// The bytes on disk make no sense.
    #[error("{0}")]
    Corrupt(String),
    /// The disk has stopped itself after an earlier error.
    #[error("stopped after an earlier error: {0}")]
    Stopped(String),
}

impl DiskError {
    /// Whether the file system has no room, or none that this user may take.
    pub(crate) fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, DiskError::Io(error) if matches!(error.kind(), StorageFull | QuotaExceeded))
    }
}
