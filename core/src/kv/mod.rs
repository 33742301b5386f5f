//! The store interface: narrow, shaped like FoundationDB, the same for every engine.
//!
//! Requests go in with a ticket and come back as exactly one [`Completion`] with that ticket, in
//! any order between requests (but see lanes). What an engine cannot tell, it says: an outcome of
//! [`Outcome::Unknown`] must be settled by whoever submitted the commit.
//!
//! **Versions.** Each commit that succeeds gets a version above every earlier one. A read at
//! [`ReadVersion::Fresh`] sees every commit whose `Committed` was delivered before the read was
//! submitted, and nothing that a crash could take back.
//!
//! **Conflicts.** A commit fails with `Conflict` if a key of its `conflicts` was written (set or
//! cleared) by a commit with a version above its `read_version`. Writes alone never conflict.
//!
//! **Lanes.** Commits of one lane are carried out in the order in which they were submitted. After
//! one of them fails, the lane's later ones answer `LaneStopped`, without effect, until
//! [`Kv::resume`].
//!
//! **Requests that break a rule** have no effect either. A key, value or commit above its bound,
//! and a stamp that does not fit into its value, are `TooLarge`. Conflicts without a read version,
//! and a version that the store has not reached, are `TooOld`. A range whose end is not above its
//! start holds nothing.

pub mod checks;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod faulty;
pub mod mem;
pub mod prng;

use bytes::Bytes;

/// Longest key.
pub const KEY_BYTES_MAX: usize = 10_000;
/// Longest value.
pub const VALUE_BYTES_MAX: usize = 100_000;
/// Most bytes of one commit: its keys, values and conflict ranges.
pub const COMMIT_BYTES_MAX: usize = 10_000_000;
/// Age after which a read version is `TooOld`, in milliseconds.
pub const READ_VERSION_AGE_MS_MAX: u64 = 5_000;
/// Versions advance by about this many a second, as FoundationDB's do. They order, they are no
/// clock.
pub const VERSIONS_PER_SECOND: u64 = 1_000_000;
/// Bytes of a commit stamp in a value.
pub const STAMP_BYTES: usize = 10;

/// A commit version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// The place of a commit: its version and its order among the commits of that version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The commit's version.
    pub version: Version,
    /// Order within the version, from 0.
    pub order: u16,
}

impl Stamp {
    /// The ten bytes that [`Write::SetStamped`] puts into a value: both numbers big-endian.
    pub fn to_bytes(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&self.version.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.order.to_be_bytes());
        bytes
    }

    /// Reads what [`Stamp::to_bytes`] wrote.
    pub fn from_bytes(bytes: [u8; STAMP_BYTES]) -> Stamp {
        let (version, order) = bytes.split_at(8);
        Stamp {
            version: Version(u64::from_be_bytes(version.try_into().expect("eight bytes"))),
            order: u16::from_be_bytes(order.try_into().expect("two bytes")),
        }
    }
}

/// Ties a completion to its request. Chosen by the submitter, unique among its open requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// An ordered stream of commits of one submitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u16);

/// The keys from `start` (included) to `end` (excluded).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// First key.
    pub start: Bytes,
    /// The key after the last.
    pub end: Bytes,
}

impl KeyRange {
    /// The range that holds this one key.
    pub fn key(key: &Bytes) -> KeyRange {
        let mut end = Vec::with_capacity(key.len() + 1);
        end.extend_from_slice(key);
        end.push(0);
        KeyRange { start: key.clone(), end: end.into() }
    }

    /// Whether the range holds the key.
    pub fn contains(&self, key: &[u8]) -> bool {
        *self.start <= *key && *key < *self.end
    }

    /// Whether the range holds no key at all.
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }
}

/// A change to one key or range. The writes of a commit apply in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Set {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Sets a key, with the commit's stamp put over the ten bytes at `offset`.
    SetStamped {
        /// The key.
        key: Bytes,
        /// Its new value, at least `offset + 10` bytes long.
        value: Bytes,
        /// Where the stamp goes.
        offset: u32,
    },
    /// Removes a key.
    Clear {
        /// The key.
        key: Bytes,
    },
    /// Removes every key of a range.
    ClearRange(KeyRange),
}

/// How urgent a commit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody waits for it.
    Interactive,
    /// Nobody waits for it: it may give way to the others.
    Background,
}

/// A transaction without reads of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The lane that orders it, if any.
    pub lane: Option<LaneId>,
    /// Its urgency.
    pub class: Class,
    /// The version at which the submitter knew its conflict keys. Needed if there are any.
    pub read_version: Option<Version>,
    /// Fails if any of these was written after `read_version`.
    pub conflicts: Vec<KeyRange>,
    /// What it changes.
    pub writes: Vec<Write>,
}

/// Reads at one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Single keys.
    pub gets: Vec<Bytes>,
    /// Ranges.
    pub ranges: Vec<RangeRead>,
    /// At which version.
    pub version: ReadVersion,
}

/// A bounded read of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRead {
    /// Which keys.
    pub range: KeyRange,
    /// At most this many rows, at least 1.
    pub rows_max: u32,
    /// Stops after the row with which keys and values reach this many bytes, so that at least one
    /// row is given.
    pub bytes_max: u32,
    /// From which end.
    pub order: Order,
}

/// From which end a range is read, and the order of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Lowest key first.
    Forward,
    /// Highest key first.
    Reverse,
}

/// At which version to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadVersion {
    /// The newest durable one.
    Fresh,
    /// A version that an earlier read gave, at most 5 s old.
    At(Version),
}

/// What is asked of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Change something.
    Commit(Commit),
    /// Read something.
    Read(Read),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which request.
    pub ticket: Ticket,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The commit is durable.
    Committed(Stamp),
    /// A conflict key was written meanwhile; the commit has no effect.
    Conflict,
    /// The read version is too old to judge; no effect.
    TooOld,
    /// The store asks to wait; no effect.
    Throttled,
    /// The commit may or may not have had, or may yet have, its effect.
    Unknown(InFlight),
    /// An earlier commit of the lane failed; no effect.
    LaneStopped,
    /// The request is above a bound; no effect.
    TooLarge,
    /// The store cannot be reached or has no room; no effect.
    Unavailable,
    /// The store has failed for good; the process must end.
    Fatal,
    /// What was read.
    Rows(Rows),
}

/// Whether a commit of unknown outcome may still take effect later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InFlight {
    /// It has happened or it never will.
    No,
    /// It may yet happen, unless something it conflicts with is written first.
    Maybe,
}

/// What a read gave: one entry per get and per range, in the order of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The version that was read.
    pub version: Version,
    /// The values of the single keys; `None` where there is none.
    pub gets: Vec<Option<Bytes>>,
    /// The rows of the ranges.
    pub ranges: Vec<RangeRows>,
}

/// The rows of one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRows {
    /// Keys and values in the order asked for.
    pub rows: Vec<(Bytes, Bytes)>,
    /// Whether the range was read to its end.
    pub end: RangeEnd,
}

/// Whether a range read reached the end of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeEnd {
    /// Every row of the range was given.
    Complete,
    /// A bound stopped it; there may be more.
    More,
}

/// What a submitter should keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Commits of one lane that may be in flight at once.
    pub lane_commits_max: usize,
    /// Bytes of keys and values that a commit should aim at.
    pub commit_bytes_target: usize,
    /// What a successful commit stands for.
    pub durability: chatring_wire::frame::Durability,
}

/// A store, as one submitter sees it. Completions come back the way the engine says.
pub trait Kv {
    /// Takes a request. It is answered by exactly one completion with this ticket.
    fn submit(&mut self, request: Request, ticket: Ticket);

    /// Lets a stopped lane go on. Called once every commit of the lane has been answered.
    fn resume(&mut self, lane: LaneId);

    /// The engine's limits.
    fn limits(&self) -> Limits;
}
