//! The end of the log, torn at every byte, and damage before it.

use super::crash_dir::Kept;
use super::*;
use crate::store::embedded::disk::hybrid::files::LogDir as _;
use crate::store::embedded::disk::hybrid::limits::SEGMENT_HEAD_BYTES;
use crate::store::embedded::disk::hybrid::record::{SegmentId, encode};
use crate::store::embedded::disk::hybrid::replay::Replay;
use crate::store::embedded::disk::hybrid::segments::{Prepared, Segments};

const SEGMENT: &str = "0000000000000001.log";

fn segments(dir: &CrashDir) -> Segments {
    let dir = Arc::new(dir.clone());
    Segments::open(dir, SEGMENT_BYTES, Probe::default(), Arc::default()).unwrap()
}

fn record(id: &SegmentId, sequence: u64) -> Vec<u8> {
    let batch = batch(vec![
        (format!("k{sequence}"), Some("v".repeat(sequence as usize * 3))),
        ("gone".into(), None),
    ]);
    let mut record = encode(&batch, sequence).unwrap();
    id.seal(&mut record);
    record
}

/// Writes the records of these sequences; gives where each starts, and where the last one ends.
fn fill(segment: &Prepared, sequences: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    let mut at = SEGMENT_HEAD_BYTES;
    let mut starts = vec![at];
    for sequence in sequences {
        let record = record(&segment.id, sequence);
        segment.file.write_at(&record, at).unwrap();
        at += record.len() as u64;
        starts.push(at);
    }
    segment.file.sync_data().unwrap();
    starts
}

fn replay(dir: &CrashDir) -> Result<Vec<u64>, DiskError> {
    let segments = segments(dir);
    let mut replay = Replay::new(0);
    let mut found = Vec::new();
    for number in segments.used() {
        let records = replay.segment(&segments, number)?;
        found.extend(records.into_iter().map(|(sequence, _)| sequence));
    }
    Ok(found)
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off() {
    let dir = CrashDir::default();
    let starts = fill(&segments(&dir).prepare(0).unwrap(), 1..=5);
    let (start, end) = (starts[4] as usize, starts[5] as usize);
    for left_by in ["nothing", "another use"] {
        for cut in start..=end {
            let torn = dir.crashed(Kept::All);
            torn.edit(SEGMENT, |bytes| {
                let before: Vec<u8> = match left_by {
                    "nothing" => vec![0; end - cut],
                    _ => (cut..end).map(|at| at as u8 ^ 0xa5).collect(),
                };
                bytes[cut..end].copy_from_slice(&before);
            });
            let found = replay(&torn).unwrap();
            // Zeros at the end of a record may have been there before.
            let is_whole = torn.open(SEGMENT).unwrap().read().unwrap()
                == dir.open(SEGMENT).unwrap().read().unwrap();
            let expected = if is_whole { 1..=5 } else { 1..=4 };
            assert_eq!(found, expected.collect::<Vec<u64>>(), "cut at {cut}, {left_by}");
        }
    }
}

#[test]
fn a_wrong_bit_before_the_last_record_is_refused_and_in_it_is_a_torn_tail() {
    let dir = CrashDir::default();
    let starts = fill(&segments(&dir).prepare(0).unwrap(), 1..=5);
    for at in 0..starts[5] as usize {
        let damaged = dir.crashed(Kept::All);
        damaged.edit(SEGMENT, |bytes| bytes[at] ^= 1 << (at % 8));
        let found = replay(&damaged);
        match at {
            _ if at < 36 => assert!(is_corrupt(&found, "damaged head"), "{at}: {found:?}"),
            _ if at < starts[0] as usize => assert_eq!(found.unwrap().len(), 5),
            _ if at < starts[4] as usize => {
                assert!(is_corrupt(&found, "the log is damaged at segment 1"), "{at}: {found:?}");
            }
            _ => assert_eq!(found.unwrap().len(), 4, "{at}"),
        }
    }
}

#[test]
fn damage_at_the_end_of_a_segment_that_another_follows_is_refused() {
    let dir = CrashDir::default();
    let mut segments = segments(&dir);
    let starts = fill(&segments.prepare(0).unwrap(), 1..=3);
    let second = segments.prepare(0).unwrap();
    // Prepared, and without a record: then the first may be torn.
    for at in starts[2]..starts[3] {
        let torn = dir.crashed(Kept::All);
        torn.edit(SEGMENT, |bytes| bytes[at as usize] ^= 1);
        assert_eq!(replay(&torn).unwrap(), [1, 2]);
    }
    fill(&second, 4..=4);
    assert_eq!(replay(&dir).unwrap(), [1, 2, 3, 4]);
    for at in starts[2]..starts[3] {
        let damaged = dir.crashed(Kept::All);
        damaged.edit(SEGMENT, |bytes| bytes[at as usize] ^= 1);
        assert!(is_corrupt(&replay(&damaged), "record 3 is missing"));
    }
    dir.remove(SEGMENT).unwrap();
    assert!(is_corrupt(&replay(&dir), "the log starts with record 4"));
}

#[test]
fn records_of_an_earlier_use_of_a_segment_are_not_taken_for_new_ones() {
    let dir = CrashDir::default();
    let mut segments = segments(&dir);
    let first = segments.prepare(0).unwrap();
    let starts = fill(&first, 1..=6);
    segments.recycle(1).unwrap();
    let second = segments.prepare(0).unwrap();
    assert_eq!(second.id.number, 2);
    assert_ne!(second.id.salt, first.id.salt);
    // The old records, as if they were what comes next.
    second.file.write_at(&record(&second.id, 1), starts[0]).unwrap();
    for sequence in 2..=6 {
        let old = record(&first.id, sequence);
        second.file.write_at(&old, starts[sequence as usize - 1]).unwrap();
    }
    assert_eq!(replay(&dir).unwrap(), [1]);
    // The same number with another salt: a message that looks like a record.
    for salt in [0, 1, first.id.salt] {
        let forged = SegmentId { number: second.id.number, salt };
        second.file.write_at(&record(&forged, 2), starts[1]).unwrap();
        second.file.write_at(&record(&forged, 3), starts[2]).unwrap();
        assert_eq!(replay(&dir).unwrap(), [1]);
    }
    second.file.write_at(&record(&second.id, 2), starts[1]).unwrap();
    assert_eq!(replay(&dir).unwrap(), [1, 2]);
}

fn is_corrupt<T: std::fmt::Debug>(found: &Result<T, DiskError>, words: &str) -> bool {
    matches!(found, Err(DiskError::Corrupt(reason)) if reason.contains(words))
}
