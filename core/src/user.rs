//! A user at its owner: its devices, its sessions, its markers, and what it was notified of.

use std::collections::{BTreeMap, VecDeque};

use chatring_wire::{Cid, DeviceId, InstallationId, Ordinal, Seq};
use rustc_hash::FxHashMap;

use crate::calls::Caller;
use crate::effect::{Attach, SessionId};
use crate::values::{DeviceRow, MarkerRow, UserRow};

/// Channels whose newest notification a user's shard remembers for audits.
const SEEN_MAX: usize = 4_096;

/// A user with sessions, or with markers to write.
#[derive(Debug)]
pub(crate) struct User {
    /// The user's rows; `None` while they are being read.
    pub(crate) rows: Option<UserRows>,
    /// Whether the rows are being read.
    pub(crate) loading: bool,
    /// Sessions that wait for the rows.
    pub(crate) waiting: VecDeque<(SessionId, Attach)>,
    /// Attached sessions, in the order of their attaching.
    pub(crate) sessions: Vec<SessionId>,
    /// Sign-ins whose rows are in the lane.
    pub(crate) sign_ins_in_lane: u32,
    /// Markers that are not stored yet.
    pub(crate) markers: BTreeMap<Cid, Marker>,
    /// Whether a timer for the markers is set.
    pub(crate) markers_due: bool,
    /// The newest message of each channel that was notified here.
    seen: FxHashMap<Cid, Seq>,
    /// What the user may still send.
    pub(crate) bucket: TokenBucket,
    /// Its calls, and what they are told; `None` while nobody calls.
    pub(crate) calls: Option<Box<Caller>>,
}

/// A user's own rows.
#[derive(Debug)]
pub(crate) struct UserRows {
    /// The user; `None` before the first sign-in.
    pub(crate) user: Option<UserRow>,
    /// The devices.
    pub(crate) devices: Devices,
}

/// A user's devices, ascending by number. Most users have a few: a list that is no longer than it
/// must be, because every user who is signed in has one.
#[derive(Debug, Default)]
pub(crate) struct Devices(Vec<(DeviceId, DeviceRow)>);

/// A marker on its way to the store.
#[derive(Debug)]
pub(crate) struct Marker {
    /// The newest message that the user says it has read.
    pub(crate) read: Seq,
    /// The newest message that a device says it has received.
    pub(crate) received: Seq,
    /// What is being done about it.
    pub(crate) state: MarkerState,
}

/// How far a marker has come.
#[derive(Debug)]
pub(crate) enum MarkerState {
    /// It waits for the next writing.
    Dirty,
    /// The rows that it depends on are being read, among them the message with this position.
    Reading { read: Seq },
    /// The row is in the lane, for this position that the user said.
    InLane { row: MarkerRow, read: Seq },
}

impl User {
    pub(crate) fn new(sends_burst: u32, now_ms: u64) -> User {
        User {
            rows: None,
            loading: false,
            waiting: VecDeque::new(),
            sessions: Vec::new(),
            sign_ins_in_lane: 0,
            markers: BTreeMap::new(),
            markers_due: false,
            seen: FxHashMap::default(),
            bucket: TokenBucket { tokens: f64::from(sends_burst), at_ms: now_ms },
            calls: None,
        }
    }

    pub(crate) fn has_no_markers_to_write(&self) -> bool {
        self.markers.is_empty()
    }

    /// Whether nothing keeps it in memory.
    pub(crate) fn is_idle(&self) -> bool {
        !self.loading
            && self.waiting.is_empty()
            && self.sessions.is_empty()
            && self.sign_ins_in_lane == 0
            && self.markers.is_empty()
            && self.calls.is_none()
    }

    /// Notes a notification.
    pub(crate) fn saw(&mut self, cid: Cid, seq: Seq) {
        if self.seen.len() >= SEEN_MAX && !self.seen.contains_key(&cid) {
            self.seen.clear();
        }
        let newest = self.seen.entry(cid).or_default();
        *newest = (*newest).max(seq);
    }

    /// Whether a message was notified here, or a newer one of its channel.
    pub(crate) fn has_seen(&self, cid: Cid, seq: Seq) -> bool {
        self.seen.get(&cid).is_some_and(|newest| *newest >= seq)
    }
}

impl Devices {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The device of an installation.
    pub(crate) fn of(&self, installation: InstallationId) -> Option<(DeviceId, &DeviceRow)> {
        let (device, row) = self.0.iter().find(|(_, row)| row.installation == installation)?;
        Some((*device, row))
    }

    pub(crate) fn get(&self, device: DeviceId) -> Option<&DeviceRow> {
        let index = self.0.binary_search_by_key(&device, |(device, _)| *device).ok()?;
        Some(&self.0[index].1)
    }

    pub(crate) fn get_mut(&mut self, device: DeviceId) -> Option<&mut DeviceRow> {
        let index = self.0.binary_search_by_key(&device, |(device, _)| *device).ok()?;
        Some(&mut self.0[index].1)
    }

    /// Puts a device in, or in the place of what was known of it.
    pub(crate) fn insert(&mut self, device: DeviceId, row: DeviceRow) {
        match self.0.binary_search_by_key(&device, |(device, _)| *device) {
            Ok(index) => self.0[index].1 = row,
            Err(index) => {
                self.0.reserve_exact(1);
                self.0.insert(index, (device, row));
            }
        }
    }

    /// A number that no device ever had.
    pub(crate) fn next_number(&self) -> DeviceId {
        DeviceId(self.0.last().map_or(1, |(device, _)| device.0 + 1))
    }
}

impl FromIterator<(DeviceId, DeviceRow)> for Devices {
    /// Of ascending numbers, as the rows are read.
    fn from_iter<I: IntoIterator<Item = (DeviceId, DeviceRow)>>(devices: I) -> Devices {
        let mut devices = Devices(devices.into_iter().collect());
        devices.0.shrink_to_fit();
        devices
    }
}

/// Bounds how many sends a user makes a second.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    tokens: f64,
    at_ms: u64,
}

impl TokenBucket {
    /// Takes one token, or says in how many milliseconds there is one.
    pub(crate) fn take(&mut self, now_ms: u64, per_second: u32, burst: u32) -> Result<(), u32> {
        let refill = now_ms.saturating_sub(self.at_ms) as f64 * f64::from(per_second) / 1000.0;
        self.at_ms = now_ms;
        self.tokens = (self.tokens + refill).min(f64::from(burst));
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        let wait_ms = (1.0 - self.tokens) * 1000.0 / f64::from(per_second.max(1));
        Err(wait_ms.ceil() as u32)
    }
}

/// The ordinal up to which nothing is unread for a user: what it read, joined at, or sent itself.
pub(crate) fn read_ordinal(marker: Option<&MarkerRow>, joined: Ordinal, own: Ordinal) -> Ordinal {
    marker.map_or(Ordinal(0), |marker| marker.read_ordinal).max(joined).max(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket { tokens: 3.0, at_ms: 0 };
        for _ in 0..3 {
            assert_eq!(bucket.take(0, 10, 3), Ok(()));
        }
        assert_eq!(bucket.take(0, 10, 3), Err(100));
        assert_eq!(bucket.take(100, 10, 3), Ok(()));
        assert_eq!(bucket.take(50, 10, 3), Err(100), "a clock that went back gives nothing");
        assert_eq!(bucket.take(10_000, 10, 3), Ok(()));
    }
}
