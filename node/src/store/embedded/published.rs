//! What readers see: the newest published state, and those handed out lately.
//!
//! A version that a fresh read gave stays readable for 5 s after it was last given. Nothing else is
//! kept: a version that nobody was told cannot be asked for. Times count from the opening.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chatring_core::kv::{READ_VERSION_AGE_MS_MAX, Version};

use super::disk::DiskSnapshot;

/// See the module.
pub(crate) struct Published {
    state: Mutex<State>,
    held_max: usize,
}

struct State {
    newest: Version,
    /// None while the disk is opened again.
    snapshot: Option<Arc<dyn DiskSnapshot>>,
    /// Ascending by version, and by `until`.
    held: VecDeque<Held>,
}

struct Held {
    version: Version,
    snapshot: Arc<dyn DiskSnapshot>,
    until: Duration,
}

/// Why a state cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotReadable {
    /// It is not held.
    TooOld,
    /// The disk is being opened again.
    Withdrawn,
}

impl Published {
    /// Starts with the state found on disk.
    pub(crate) fn new(
        newest: Version,
        snapshot: Arc<dyn DiskSnapshot>,
        held_max: usize,
    ) -> Published {
        let held = VecDeque::new();
        let snapshot = Some(snapshot);
        Published { state: Mutex::new(State { newest, snapshot, held }), held_max }
    }

    /// Puts a durable state in place of the newest.
    pub(crate) fn publish(&self, version: Version, snapshot: Arc<dyn DiskSnapshot>) {
        let mut state = self.lock();
        assert!(version > state.newest, "versions rise");
        state.newest = version;
        let before = state.snapshot.replace(snapshot);
        drop(state);
        // Letting a snapshot go may clean up: not while readers wait for the lock.
        drop(before);
    }

    /// Lets go of every state, so that the disk can be opened again.
    pub(crate) fn withdraw(&self) {
        let mut state = self.lock();
        let dropped = (state.snapshot.take(), std::mem::take(&mut state.held));
        drop(state);
        drop(dropped);
    }

    /// Takes up the newest state again.
    pub(crate) fn restore(&self, snapshot: Arc<dyn DiskSnapshot>) {
        self.lock().snapshot = Some(snapshot);
    }

    /// The version of the newest durable state.
    pub(crate) fn newest(&self) -> Version {
        self.lock().newest
    }

    /// The newest durable state, which stays readable by its version for a while.
    pub(crate) fn fresh(
        &self,
        now: Duration,
    ) -> Result<(Version, Arc<dyn DiskSnapshot>), NotReadable> {
        let until = now + Duration::from_millis(READ_VERSION_AGE_MS_MAX);
        let mut state = self.lock();
        let version = state.newest;
        let snapshot = state.snapshot.clone().ok_or(NotReadable::Withdrawn)?;
        let mut dropped = None;
        match state.held.back_mut() {
            Some(held) if held.version == version => held.until = held.until.max(until),
            _ => {
                if state.held.len() >= self.held_max {
                    dropped = state.held.pop_front();
                }
                let snapshot = Arc::clone(&snapshot);
                state.held.push_back(Held { version, snapshot, until });
            }
        }
        drop(state);
        drop(dropped);
        Ok((version, snapshot))
    }

    /// The state of a version, if it is the newest or still held.
    pub(crate) fn at(
        &self,
        version: Version,
        now: Duration,
    ) -> Result<Arc<dyn DiskSnapshot>, NotReadable> {
        let state = self.lock();
        let newest = state.snapshot.as_ref().ok_or(NotReadable::Withdrawn)?;
        if version == state.newest {
            return Ok(Arc::clone(newest));
        }
        let found = state.held.binary_search_by_key(&version, |held| held.version);
        let held = found.ok().map(|index| &state.held[index]).filter(|held| now <= held.until);
        held.map(|held| Arc::clone(&held.snapshot)).ok_or(NotReadable::TooOld)
    }

    /// Lets go of what nobody may ask for any more.
    pub(crate) fn expire(&self, now: Duration) {
        let mut state = self.lock();
        let expired = state.held.partition_point(|held| held.until < now);
        let expired: Vec<Held> = state.held.drain(..expired).collect();
        drop(state);
        drop(expired);
    }

    /// States held beside the newest.
    pub(crate) fn held(&self) -> usize {
        self.lock().held.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
