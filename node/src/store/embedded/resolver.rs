//! The resolver: which keys were written lately, and at which version.
//!
//! ```text
//!   keys:    (version, hash, key) in order       the window; range conflicts walk it from its end
//!   watched: hash of key ─▶ last version         single keys that commits ask about: one look-up
//!   clears:  (version, range) in order           every conflict walks it from its end
//!   oldest:  a read version below cannot be judged: TooOld
//! ```
//!
//! Nearly all writes are to keys that nobody ever asks about, so these cost two appends and no
//! entry of a map that is far larger than a processor's cache. A key is watched from the first
//! commit on that asks about it, which walks the window as a range does.
//!
//! Forgetting a write raises `oldest` to its version, so a full or expired window makes read
//! versions too old and never misses a conflict. Two keys with one 64-bit hash may cause a conflict
//! too many. Walking costs as many steps as there were writes since the read version.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::hash::BuildHasher;

use chatring_core::kv::{KeyRange, Version};
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::limits::{
    RESOLVER_BYTES_MAX, RESOLVER_KEYS_MAX, RESOLVER_RANGES_MAX, RESOLVER_WATCHED_MAX,
    RESOLVER_WINDOW_VERSIONS,
};

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was written since.
    Clear,
    /// Something was.
    Conflict,
    /// The window does not reach back so far.
    TooOld,
}

/// The hash by which a key is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHash(pub(super) u64);

impl KeyHash {
    /// The hash of a key.
    pub fn of(key: &[u8]) -> KeyHash {
        KeyHash(FxBuildHasher.hash_one(key))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Resolver {
    keys: VecDeque<KeyWrite>,
    /// The keys themselves, one behind the other in the same order.
    key_bytes: VecDeque<u8>,
    watched: FxHashMap<KeyHash, Watched>,
    clears: VecDeque<(Version, KeyRange)>,
    oldest: Version,
    bounds: ResolverBounds,
}

/// How much a resolver remembers.
#[derive(Clone, Copy, Debug)]
pub struct ResolverBounds {
    /// Writes to single keys.
    pub keys_max: usize,
    /// Bytes of their keys.
    pub bytes_max: usize,
    /// Range clears.
    pub ranges_max: usize,
    /// Age, in versions.
    pub window_versions: u64,
}

impl Default for ResolverBounds {
    fn default() -> ResolverBounds {
        ResolverBounds {
            keys_max: RESOLVER_KEYS_MAX,
            bytes_max: RESOLVER_BYTES_MAX,
            ranges_max: RESOLVER_RANGES_MAX,
            window_versions: RESOLVER_WINDOW_VERSIONS,
        }
    }
}

#[derive(Debug)]
struct KeyWrite {
    version: Version,
    hash: KeyHash,
    bytes: u32,
}

/// What is known of a key that a commit asked about.
#[derive(Debug)]
struct Watched {
    /// Its last write above `since`, if there was any.
    newest: Option<Version>,
    /// Earlier writes are not known.
    since: Version,
}

impl Resolver {
    /// An empty window: nothing was written since `start`, nothing is known about the time before.
    pub fn new(start: Version, bounds: ResolverBounds) -> Resolver {
        Resolver {
            keys: VecDeque::new(),
            key_bytes: VecDeque::new(),
            watched: FxHashMap::default(),
            clears: VecDeque::new(),
            oldest: start,
            bounds,
        }
    }

    /// Whether any of the conflict ranges was written above `read_version`.
    pub fn check(&mut self, read_version: Version, conflicts: &[KeyRange]) -> Verdict {
        if read_version < self.oldest {
            return Verdict::TooOld;
        }
        let written = conflicts.iter().any(|range| self.written(read_version, range));
        if written { Verdict::Conflict } else { Verdict::Clear }
    }

    /// Remembers a write to one key, whose hash this is.
    pub fn wrote_key(&mut self, version: Version, key: &[u8], hash: KeyHash) {
        if let Some(watched) = self.watched.get_mut(&hash) {
            watched.newest = Some(version);
        }
        self.key_bytes.extend(key);
        self.keys.push_back(KeyWrite { version, hash, bytes: key.len() as u32 });
        while self.keys.len() > self.bounds.keys_max || self.key_bytes.len() > self.bounds.bytes_max
        {
            self.forget_keys(1);
        }
    }

    /// Remembers that a range was cleared.
    pub fn wrote_range(&mut self, version: Version, range: &KeyRange) {
        if range.is_empty() {
            return;
        }
        let owned = KeyRange {
            start: bytes::Bytes::copy_from_slice(&range.start),
            end: bytes::Bytes::copy_from_slice(&range.end),
        };
        self.clears.push_back((version, owned));
        while self.clears.len() > self.bounds.ranges_max {
            self.forget_clear();
        }
    }

    /// Forgets what is older than the window.
    pub fn expire(&mut self, now: Version) {
        let horizon = Version(now.0.saturating_sub(self.bounds.window_versions));
        self.forget_keys(self.keys.iter().take_while(|write| write.version < horizon).count());
        while self.clears.front().is_some_and(|(version, _)| *version < horizon) {
            self.forget_clear();
        }
    }

    /// Writes remembered.
    pub(crate) fn len(&self) -> usize {
        self.keys.len() + self.clears.len()
    }

    fn written(&mut self, read_version: Version, range: &KeyRange) -> bool {
        if range.is_empty() {
            return false;
        }
        let cleared = self
            .clears
            .iter()
            .rev()
            .take_while(|(version, _)| *version > read_version)
            .any(|(_, clear)| clear.start < range.end && range.start < clear.end);
        if cleared {
            return true;
        }
        if is_single_key(range) {
            return self.key_written(read_version, KeyHash::of(&range.start));
        }
        let mut end = self.key_bytes.len();
        let recent = self.keys.iter().rev().take_while(|write| write.version > read_version);
        recent.into_iter().any(|write| {
            let start = end - write.bytes as usize;
            let key = self.bytes(start, end);
            end = start;
            range.contains(&key)
        })
    }

    fn key_written(&mut self, read_version: Version, hash: KeyHash) -> bool {
        if let Some(watched) = self.watched.get(&hash) {
            if watched.newest.is_some_and(|version| version > read_version) {
                return true;
            }
            if watched.since <= read_version {
                return false;
            }
        }
        let mut recent = self.keys.iter().rev().take_while(|write| write.version > read_version);
        let newest = recent.find(|write| write.hash == hash).map(|write| write.version);
        if self.watched.len() >= RESOLVER_WATCHED_MAX {
            self.watched.clear();
        }
        self.watched.insert(hash, Watched { newest, since: read_version });
        newest.is_some()
    }

    fn bytes(&self, start: usize, end: usize) -> Cow<'_, [u8]> {
        let (front, back) = self.key_bytes.as_slices();
        match front.len() {
            split if end <= split => front[start..end].into(),
            split if start >= split => back[start - split..end - split].into(),
            split => [&front[start..], &back[..end - split]].concat().into(),
        }
    }

    /// Forgets the oldest writes to single keys.
    fn forget_keys(&mut self, count: usize) {
        let mut bytes = 0;
        for write in self.keys.drain(..count) {
            bytes += write.bytes as usize;
            self.oldest = self.oldest.max(write.version);
        }
        self.key_bytes.drain(..bytes);
    }

    fn forget_clear(&mut self) {
        let Some((version, _)) = self.clears.pop_front() else { return };
        self.oldest = self.oldest.max(version);
    }
}

fn is_single_key(range: &KeyRange) -> bool {
    match range.end.split_last() {
        Some((0, head)) => *head == *range.start,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn key(key: &'static str) -> KeyRange {
        KeyRange::key(&Bytes::from_static(key.as_bytes()))
    }

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        let (start, end) = (start.as_bytes(), end.as_bytes());
        KeyRange { start: Bytes::from_static(start), end: Bytes::from_static(end) }
    }

    fn resolver(keys_max: usize, ranges_max: usize) -> Resolver {
        let bounds = ResolverBounds { keys_max, ranges_max, ..ResolverBounds::default() };
        Resolver::new(Version(10), bounds)
    }

    fn wrote_key(resolver: &mut Resolver, version: Version, key: &[u8]) {
        resolver.wrote_key(version, key, KeyHash::of(key));
    }

    #[test]
    fn a_key_conflicts_only_with_writes_above_the_read_version() {
        let mut resolver = resolver(100, 100);
        wrote_key(&mut resolver, Version(20), b"k");
        assert_eq!(resolver.check(Version(19), &[key("k")]), Verdict::Conflict);
        assert_eq!(resolver.check(Version(20), &[key("k")]), Verdict::Clear);
        assert_eq!(resolver.check(Version(19), &[key("j"), key("l")]), Verdict::Clear);
    }

    #[test]
    fn a_cleared_range_conflicts_with_its_keys_and_overlaps() {
        let mut resolver = resolver(100, 100);
        resolver.wrote_range(Version(20), &range("b", "d"));
        resolver.wrote_range(Version(21), &range("x", "y"));
        assert_eq!(resolver.check(Version(15), &[key("c")]), Verdict::Conflict);
        assert_eq!(resolver.check(Version(15), &[key("d")]), Verdict::Clear);
        assert_eq!(resolver.check(Version(15), &[range("a", "c")]), Verdict::Conflict);
        assert_eq!(resolver.check(Version(15), &[range("a", "b")]), Verdict::Clear);
        assert_eq!(resolver.check(Version(20), &[range("a", "c")]), Verdict::Clear);
    }

    #[test]
    fn a_range_conflicts_with_a_key_written_inside() {
        let mut resolver = resolver(100, 100);
        wrote_key(&mut resolver, Version(20), b"bb");
        wrote_key(&mut resolver, Version(21), b"z");
        assert_eq!(resolver.check(Version(15), &[range("b", "c")]), Verdict::Conflict);
        assert_eq!(resolver.check(Version(15), &[range("c", "d")]), Verdict::Clear);
        assert_eq!(resolver.check(Version(20), &[range("b", "c")]), Verdict::Clear);
    }

    #[test]
    fn nothing_is_known_about_the_time_before_the_start() {
        let mut resolver = resolver(100, 100);
        assert_eq!(resolver.check(Version(9), &[key("k")]), Verdict::TooOld);
        assert_eq!(resolver.check(Version(10), &[key("k")]), Verdict::Clear);
    }

    #[test]
    fn a_full_window_turns_older_read_versions_too_old() {
        let mut resolver = resolver(2, 1);
        for (version, key) in [(20, b"a"), (21, b"b"), (22, b"c")] {
            wrote_key(&mut resolver, Version(version), key);
        }
        assert_eq!(resolver.check(Version(19), &[key("a")]), Verdict::TooOld);
        assert_eq!(resolver.check(Version(20), &[key("b")]), Verdict::Conflict);
        resolver.wrote_range(Version(23), &range("f", "g"));
        resolver.wrote_range(Version(24), &range("h", "i"));
        assert_eq!(resolver.check(Version(22), &[key("f")]), Verdict::TooOld);
    }

    #[test]
    fn the_window_expires_and_keeps_later_writes_of_the_same_key() {
        let mut resolver = resolver(100, 100);
        wrote_key(&mut resolver, Version(20), b"k");
        wrote_key(&mut resolver, Version(30), b"k");
        resolver.expire(Version(25 + RESOLVER_WINDOW_VERSIONS));
        assert_eq!(resolver.check(Version(19), &[key("k")]), Verdict::TooOld);
        assert_eq!(resolver.check(Version(20), &[key("k")]), Verdict::Conflict);
        assert_eq!(resolver.len(), 1);
    }

    /// Every write to a key counts, whether it came before or after the first question about it,
    /// and however far back that went.
    #[test]
    fn a_key_that_was_asked_about_is_known_as_well_as_any() {
        let mut resolver = resolver(100, 100);
        wrote_key(&mut resolver, Version(20), b"k");
        wrote_key(&mut resolver, Version(30), b"other");
        assert_eq!(resolver.check(Version(25), &[key("k")]), Verdict::Clear);
        assert_eq!(resolver.check(Version(19), &[key("k")]), Verdict::Conflict);
        assert_eq!(resolver.check(Version(25), &[key("k")]), Verdict::Clear);
        wrote_key(&mut resolver, Version(40), b"k");
        assert_eq!(resolver.check(Version(39), &[key("k")]), Verdict::Conflict);
        assert_eq!(resolver.check(Version(40), &[key("k")]), Verdict::Clear);
    }

    #[test]
    fn more_keys_may_be_asked_about_than_are_watched() {
        let mut resolver = resolver(100, 100);
        wrote_key(&mut resolver, Version(20), b"k");
        assert_eq!(resolver.check(Version(19), &[key("k")]), Verdict::Conflict);
        for number in 0..2 * RESOLVER_WATCHED_MAX {
            let other = KeyRange::key(&Bytes::from(format!("other {number}")));
            assert_eq!(resolver.check(Version(19), &[other]), Verdict::Clear);
            assert!(resolver.watched.len() <= RESOLVER_WATCHED_MAX);
        }
        assert_eq!(resolver.check(Version(19), &[key("k")]), Verdict::Conflict);
    }

    /// The keys lie in a ring: one of them may lie at its end and at its beginning.
    #[test]
    fn a_range_conflicts_with_any_key_of_a_ring_that_was_forgotten_in_part() {
        let mut resolver = resolver(5, 100);
        for number in 0..1_000_u64 {
            let written = format!("key {number:0width$}", width = 1 + number as usize % 7);
            let version = Version(20 + number);
            wrote_key(&mut resolver, version, written.as_bytes());
            let start = Bytes::from(written);
            let just_it = KeyRange { end: [&*start, b"\0\0"].concat().into(), start };
            let before = Version(version.0 - 1);
            assert_eq!(resolver.check(before, &[just_it]), Verdict::Conflict, "{number}");
        }
    }
}
