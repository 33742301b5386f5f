//! The bounds of requests, checked the same way by every engine.

use super::{
    COMMIT_BYTES_MAX, Commit, KEY_BYTES_MAX, KeyRange, Read, STAMP_BYTES, VALUE_BYTES_MAX, Write,
};

/// Whether a request keeps to the store's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Fits,
    /// It is answered with `TooLarge`.
    TooLarge,
}

/// Checks a commit: each key and value, the place of each stamp, and the sum of all bytes.
pub fn commit_fits(commit: &Commit) -> Fit {
    let writes = commit.writes.iter().map(write_bytes);
    let conflicts = commit.conflicts.iter().map(range_bytes);
    let bytes = writes.chain(conflicts).try_fold(0, |sum: usize, bytes| Some(sum + bytes?));
    fit(bytes.is_some_and(|bytes| bytes <= COMMIT_BYTES_MAX))
}

/// Checks a read: each of its keys.
pub fn read_fits(read: &Read) -> Fit {
    let gets = read.gets.iter().all(|key| key.len() <= KEY_BYTES_MAX);
    fit(gets && read.ranges.iter().all(|each| range_bytes(&each.range).is_some()))
}

fn fit(fits: bool) -> Fit {
    if fits { Fit::Fits } else { Fit::TooLarge }
}

/// The bytes that a write counts, `None` if it breaks a bound of its own.
fn write_bytes(write: &Write) -> Option<usize> {
    let (key, value) = match write {
        Write::Set { key, value } => (key, value.len()),
        Write::SetStamped { key, value, offset } => {
            let end = (*offset as usize).checked_add(STAMP_BYTES)?;
            (key, Some(value.len()).filter(|bytes| *bytes >= end)?)
        }
        Write::Clear { key } => (key, 0),
        Write::ClearRange(range) => return range_bytes(range),
    };
    (key.len() <= KEY_BYTES_MAX && value <= VALUE_BYTES_MAX).then_some(key.len() + value)
}

/// The end of a range that holds the longest key alone is one byte longer than a key may be.
fn range_bytes(range: &KeyRange) -> Option<usize> {
    let fits = range.start.len() <= KEY_BYTES_MAX + 1 && range.end.len() <= KEY_BYTES_MAX + 1;
    fits.then_some(range.start.len() + range.end.len())
}
