//! What readers see: the newest published state, and those handed out lately.
//!
//! A version that a fresh read gave stays readable for 5 s after it was last given. Nothing else is
//! kept: a version that nobody was told cannot be asked for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chatring_core::kv::{READ_VERSION_AGE_MS_MAX, Version};

use super::disk::DiskSnapshot;

/// See the module.
pub(crate) struct Published {
    state: Mutex<State>,
    held_max: usize,
}

struct State {
    newest: Version,
    snapshot: Arc<dyn DiskSnapshot>,
    /// Ascending by version, and by `until`.
    held: VecDeque<Held>,
}

struct Held {
    version: Version,
    snapshot: Arc<dyn DiskSnapshot>,
    until: Instant,
}

impl Published {
    /// Starts with the state found on disk.
    pub(crate) fn new(
        newest: Version,
        snapshot: Arc<dyn DiskSnapshot>,
        held_max: usize,
    ) -> Published {
        let held = VecDeque::new();
        Published { state: Mutex::new(State { newest, snapshot, held }), held_max }
    }

    /// Puts a durable state in place of the newest.
    pub(crate) fn publish(&self, version: Version, snapshot: Arc<dyn DiskSnapshot>) {
        let mut state = self.lock();
        assert!(version > state.newest, "versions rise");
        state.newest = version;
        let before = std::mem::replace(&mut state.snapshot, snapshot);
        drop(state);
        // Letting a snapshot go may clean up: not while readers wait for the lock.
        drop(before);
    }

    /// The version of the newest durable state.
    pub(crate) fn newest(&self) -> Version {
        self.lock().newest
    }

    /// The newest durable state, which stays readable by its version for a while.
    pub(crate) fn fresh(&self, now: Instant) -> (Version, Arc<dyn DiskSnapshot>) {
        let until = now + Duration::from_millis(READ_VERSION_AGE_MS_MAX);
        let mut state = self.lock();
        let (version, snapshot) = (state.newest, Arc::clone(&state.snapshot));
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
        (version, snapshot)
    }

    /// The state of a version, if it is the newest or still held.
    pub(crate) fn at(&self, version: Version, now: Instant) -> Option<Arc<dyn DiskSnapshot>> {
        let state = self.lock();
        if version == state.newest {
            return Some(Arc::clone(&state.snapshot));
        }
        let index = state.held.binary_search_by_key(&version, |held| held.version).ok()?;
        let held = &state.held[index];
        (now <= held.until).then(|| Arc::clone(&held.snapshot))
    }

    /// Lets go of what nobody may ask for any more.
    pub(crate) fn expire(&self, now: Instant) {
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
