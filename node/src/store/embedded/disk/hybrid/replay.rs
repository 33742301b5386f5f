//! Reading the log after whatever ended the process before.
//!
//! Records are written one at a time, each synced before the next: so damage can only be the torn
//! end of the log, behind which nothing is whole. A damaged record with a whole one behind it, in
//! its segment or in a later one, was durable once, and is not silently cut off.

use bytes::Bytes;

use super::limits::{RECORD_ALIGN_BYTES, SEGMENT_HEAD_BYTES};
use super::record::{SegmentId, claimed_sequence};
use super::segments::Segments;
use crate::store::embedded::disk::DiskError;

/// Sequences by which a record behind a damaged one may be ahead of it: more fit in no segment.
const SEQUENCES_AHEAD_MAX: u64 = 1 << 32;

/// A stretch in which no record begins.
const ZEROS: [u8; 4096] = [0; 4096];

/// Reads the segments one by one.
pub(crate) struct Replay {
    /// The sequence of the next record; none before the first.
    expected: Option<u64>,
    /// The sequence up to which everything is at rest.
    ingested: u64,
    /// The last segment with a whole record.
    last_with_record: u64,
    /// Where the records ended, if a segment has more than records.
    torn: Option<String>,
}

impl Replay {
    /// Starts at the oldest segment.
    pub(crate) fn new(ingested: u64) -> Replay {
        Replay { expected: None, ingested, last_with_record: 0, torn: None }
    }

    /// Reads the next segment: its records that are not at rest, with their sequences.
    pub(crate) fn segment(
        &mut self,
        segments: &Segments,
        number: u64,
    ) -> Result<Vec<(u64, Bytes)>, DiskError> {
        let bytes = Bytes::from(segments.read(number)?);
        let id = match SegmentId::parse(&bytes) {
            Some((id, length)) if id.number == number && length == bytes.len() as u64 => id,
            _ => return Err(corrupt(format!("segment {number} has a damaged head"))),
        };
        let mut at = SEGMENT_HEAD_BYTES as usize;
        let mut records = Vec::new();
        while let Some((sequence, record)) = id.record(bytes.get(at..).unwrap_or_default()) {
            self.check_order(number, at, sequence)?;
            if sequence > self.ingested {
                records.push((sequence, bytes.slice_ref(record)));
            }
            self.expected = Some(sequence + 1);
            self.last_with_record = number;
            at += record.len();
        }
        self.look_behind(&id, &bytes, at)?;
        self.torn = Some(format!("segment {number}, byte {at}"));
        let used: usize = records.iter().map(|(_, record)| record.len()).sum();
        if used < bytes.len() / 2 {
            // A part would keep the whole in memory.
            for (_, record) in &mut records {
                *record = Bytes::copy_from_slice(record);
            }
        }
        Ok(records)
    }

    /// The sequence of the first record to be written.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.expected.unwrap_or(0).max(self.ingested + 1)
    }

    /// The first segment behind all records.
    pub(crate) fn first_unused(&self) -> u64 {
        self.last_with_record + 1
    }

    fn check_order(&self, number: u64, at: usize, sequence: u64) -> Result<(), DiskError> {
        let end = || self.torn.clone().unwrap_or_else(|| "its start".into());
        match self.expected {
            Some(expected) if sequence != expected => Err(corrupt(format!(
                "the log is damaged at {}: record {expected} is missing, but segment {number}, \
                 byte {at} has record {sequence}",
                end()
            ))),
            None if sequence > self.ingested + 1 => Err(corrupt(format!(
                "the log starts with record {sequence}, but the tables end with record {}",
                self.ingested
            ))),
            _ => Ok(()),
        }
    }

    /// Looks for whole records behind the first place that has none.
    fn look_behind(&self, id: &SegmentId, bytes: &Bytes, end: usize) -> Result<(), DiskError> {
        let least = self.expected.unwrap_or(1);
        let mut at = end;
        while at < bytes.len() {
            let rest = &bytes[at..];
            // Mostly zeros; a record begins with its checksum and a count of rows that is none.
            if rest.starts_with(&ZEROS) {
                at += ZEROS.len();
                continue;
            }
            // Records of an earlier use have lower sequences.
            let is_ahead = claimed_sequence(rest).is_some_and(|sequence| {
                sequence >= least && sequence - least < SEQUENCES_AHEAD_MAX
            });
            if is_ahead && let Some((sequence, _)) = id.record(rest) {
                return Err(corrupt(format!(
                    "the log is damaged at segment {}, byte {end}: a record is missing, but byte \
                     {at} has record {sequence}",
                    id.number
                )));
            }
            at += RECORD_ALIGN_BYTES;
        }
        Ok(())
    }
}

fn corrupt(reason: String) -> DiskError {
    DiskError::Corrupt(reason)
}
