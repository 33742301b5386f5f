//! The keys that the engine keeps for itself, and what a request may name.

use bytes::Bytes;
use chatring_core::kv::checks::{Fit, commit_fits, read_fits};
use chatring_core::kv::{Commit, KeyRange, Read, Version, Write};

use super::limits::SYSTEM_KEY_PREFIX;

/// Holds the version of the newest group, eight bytes big-endian, written with every group.
pub(crate) const VERSION_KEY: &[u8] = b"\xff/version";

/// The version row's value.
pub(crate) fn version_value(version: Version) -> Bytes {
    Bytes::copy_from_slice(&version.0.to_be_bytes())
}

/// Reads what [`version_value`] wrote.
pub(crate) fn parse_version(value: &[u8]) -> Option<Version> {
    value.try_into().ok().map(|bytes| Version(u64::from_be_bytes(bytes)))
}

/// The part of a range that is not the engine's.
pub(crate) fn user_part(range: &KeyRange) -> KeyRange {
    if is_user_bound(&range.end) {
        return range.clone();
    }
    KeyRange { start: range.start.clone(), end: Bytes::from_static(&[SYSTEM_KEY_PREFIX]) }
}

/// Bytes that a commit takes in the queue; nothing if it is above a bound or names a key that is
/// not the submitter's. An empty key is none either: fjall has no place for it.
pub(crate) fn commit_bytes(commit: &Commit) -> Option<usize> {
    if commit_fits(commit) == Fit::TooLarge {
        return None;
    }
    let mut bytes = 0;
    for range in &commit.conflicts {
        bytes += range.start.len() + range.end.len();
    }
    for write in &commit.writes {
        let (key, rest) = match write {
            Write::Set { key, value } | Write::SetStamped { key, value, .. } => (key, value.len()),
            Write::Clear { key } => (key, 0),
            Write::ClearRange(range) => {
                bytes += range.start.len() + range.end.len();
                continue;
            }
        };
        if !is_user_key(key) {
            return None;
        }
        bytes += key.len() + rest;
    }
    Some(bytes)
}

/// Whether a read names only keys that are the submitter's, within the bounds.
pub(crate) fn is_read_in_bounds(read: &Read) -> bool {
    read_fits(read) == Fit::Fits && read.gets.iter().all(|key| is_user_key(key))
}

fn is_user_key(key: &[u8]) -> bool {
    !key.is_empty() && is_user_bound(key)
}

fn is_user_bound(key: &[u8]) -> bool {
    key.first() != Some(&SYSTEM_KEY_PREFIX)
}
