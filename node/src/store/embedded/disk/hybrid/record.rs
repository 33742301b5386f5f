//! The bytes of the log: a segment's head, and records of one batch each. Integers are
//! little-endian.
//!
//! ```text
//!  head (4096 bytes)        record (a multiple of 8 bytes)     row
//!   0  "CHATLOG1"            0  checksum        u32             0  bytes of the key    u16
//!   8  segment's number u64  4  rows            u32             2  bytes of the value  u32
//!  16  salt             u64  8  bytes of rows   u64                all ones: the row is removed
//!  24  bytes of file    u64 16  sequence        u64             6  key, value
//!  32  checksum         u32 24  rows, then zeros
//! ```
//!
//! A segment is written again and again. Its salt is drawn anew each time and is part of every
//! checksum, so an old record is never taken for a new one, nor a message that looks like one.

use super::limits::{RECORD_ALIGN_BYTES, RECORD_BYTES_MAX, SEGMENT_HEAD_BYTES};
use crate::store::embedded::disk::{Batch, DiskError, Value};

const MAGIC: &[u8; 8] = b"CHATLOG1";
const HEAD_USED_BYTES: usize = 36;
/// Bytes of a record before its rows.
pub(crate) const RECORD_HEAD_BYTES: usize = 24;
const ROW_HEAD_BYTES: usize = 6;
/// In the place of the value's length: the row is removed.
const REMOVED: u32 = u32::MAX;

/// What makes the checksums of one use of a segment its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentId {
    /// Rises from segment to segment.
    pub number: u64,
    /// Drawn at random.
    pub salt: u64,
}

impl SegmentId {
    /// The head of a segment.
    pub(crate) fn head(&self, file_bytes: u64) -> Vec<u8> {
        let mut head = Vec::with_capacity(SEGMENT_HEAD_BYTES as usize);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&self.number.to_le_bytes());
        head.extend_from_slice(&self.salt.to_le_bytes());
        head.extend_from_slice(&file_bytes.to_le_bytes());
        let checksum = crc32fast::hash(&head);
        head.extend_from_slice(&checksum.to_le_bytes());
        head.resize(SEGMENT_HEAD_BYTES as usize, 0);
        head
    }

    /// Reads a head; none if it is not whole.
    pub(crate) fn parse(head: &[u8]) -> Option<(SegmentId, u64)> {
        let head = head.get(..HEAD_USED_BYTES)?;
        let (content, checksum) = head.split_at(HEAD_USED_BYTES - 4);
        if crc32fast::hash(content) != u32::from_le_bytes(checksum.try_into().ok()?)
            || !content.starts_with(MAGIC)
        {
            return None;
        }
        let id = SegmentId { number: u64_at(head, 8)?, salt: u64_at(head, 16)? };
        Some((id, u64_at(head, 24)?))
    }

    fn checksum(&self, record: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut own = [0; 16];
        own[..8].copy_from_slice(&self.salt.to_le_bytes());
        own[8..].copy_from_slice(&self.number.to_le_bytes());
        hasher.update(&own);
        hasher.update(&record[4..]);
        hasher.finalize()
    }

    /// Puts the checksum into a record that goes into this segment.
    pub(crate) fn seal(&self, record: &mut [u8]) {
        let checksum = self.checksum(record);
        record[..4].copy_from_slice(&checksum.to_le_bytes());
    }

    /// The whole record at the start of the bytes with its sequence, if there is one.
    pub(crate) fn record<'a>(&self, bytes: &'a [u8]) -> Option<(u64, &'a [u8])> {
        let rows_bytes = u64_at(bytes, 8)?;
        let length = RECORD_HEAD_BYTES as u64 + rows_bytes.min(RECORD_BYTES_MAX);
        let length = usize::try_from(length).ok()?.next_multiple_of(RECORD_ALIGN_BYTES);
        let record = bytes.get(..length)?;
        let sequence = u64_at(record, 16)?;
        let checksum = u32::from_le_bytes(record[..4].try_into().ok()?);
        let is_whole = sequence != 0 && checksum == self.checksum(record);
        is_whole.then_some((sequence, record))
    }
}

/// The sequence that a record at the start of the bytes would have, whole or not.
pub(crate) fn claimed_sequence(bytes: &[u8]) -> Option<u64> {
    u64_at(bytes, 16)
}

/// A batch as a record, whose checksum is still to be put in.
pub(crate) fn encode(batch: &Batch, sequence: u64) -> Result<Vec<u8>, DiskError> {
    let rows_bytes: usize = batch
        .rows
        .iter()
        .map(|(key, value)| ROW_HEAD_BYTES + key.len() + value.as_ref().map_or(0, Value::len))
        .sum();
    let length = (RECORD_HEAD_BYTES + rows_bytes).next_multiple_of(RECORD_ALIGN_BYTES);
    if length as u64 > RECORD_BYTES_MAX {
        let reason = format!("a batch of {length} bytes, above {RECORD_BYTES_MAX}");
        return Err(DiskError::Io(std::io::Error::other(reason)));
    }
    let mut record = Vec::with_capacity(length);
    record.extend_from_slice(&[0; 4]);
    record.extend_from_slice(&(batch.rows.len() as u32).to_le_bytes());
    record.extend_from_slice(&(rows_bytes as u64).to_le_bytes());
    record.extend_from_slice(&sequence.to_le_bytes());
    for (key, value) in &batch.rows {
        let key_bytes = u16::try_from(key.len()).expect("a key has at most 10 kB");
        let value_bytes = value.as_ref().map_or(REMOVED, |value| value.len() as u32);
        record.extend_from_slice(&key_bytes.to_le_bytes());
        record.extend_from_slice(&value_bytes.to_le_bytes());
        record.extend_from_slice(key);
        if let Some(value) = value {
            value.append_to(&mut record);
        }
    }
    record.resize(length, 0);
    Ok(record)
}

/// Where a row lies in its record, and its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowAt<'a> {
    /// Bytes from the record's start.
    pub offset: u32,
    /// The key.
    pub key: &'a [u8],
    /// The value, or none if the row is removed.
    pub value: Option<&'a [u8]>,
}

/// The rows of a record. A record that is none, in spite of its checksum, ends with an error.
pub(crate) fn rows(record: &[u8]) -> impl Iterator<Item = Result<RowAt<'_>, DiskError>> {
    let count = record
        .get(4..8)
        .map_or(0, |bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")));
    let mut offset = RECORD_HEAD_BYTES;
    (0..count).map(move |_| {
        let (row, next) = row_at(record, offset)
            .ok_or_else(|| DiskError::Corrupt("a record of the log makes no sense".into()))?;
        offset = next;
        Ok(row)
    })
}

/// The row at an offset, and where the next one starts.
pub(crate) fn row_at(record: &[u8], offset: usize) -> Option<(RowAt<'_>, usize)> {
    let head = record.get(offset..offset + ROW_HEAD_BYTES)?;
    let key_bytes = usize::from(u16::from_le_bytes(head[..2].try_into().ok()?));
    let value_bytes = u32::from_le_bytes(head[2..].try_into().ok()?);
    let key_end = offset + ROW_HEAD_BYTES + key_bytes;
    let key = record.get(offset + ROW_HEAD_BYTES..key_end)?;
    let (value, end) = match value_bytes {
        REMOVED => (None, key_end),
        bytes => {
            let end = key_end + bytes as usize;
            (Some(record.get(key_end..end)?), end)
        }
    };
    Some((RowAt { offset: offset as u32, key, value }, end))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
