//! Whether the disk can be written, and how it gets well again after it ran out of room.
//!
//! ```text
//!            a write or a worker fails,                 room again: withdraw the snapshots,
//!            and room is short                          open the files anew, compare the version
//!   Up ─────────────────────────────────▶ Down ─────────────────────────────────▶ Up
//!    │ any other failure                    │ the files hold what was not published
//!    └──────────────▶ Fatal ◀───────────────┘
//! ```
//!
//! A write that the file system refused for want of room is torn, and recovery cuts it off. If it
//! is whole after all, it was the sync that failed, and a failed sync is not tried again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::disk::{Disk, DiskError};
use super::published::Published;
use super::room::{Room, RoomState};
use super::system::{VERSION_KEY, parse_version};

/// Least time between two attempts to open the files again.
const REVIVE_INTERVAL: Duration = Duration::from_secs(1);

/// See the module. Shared by the committer and the watch.
pub(crate) struct Health {
    disk: Arc<dyn Disk>,
    published: Arc<Published>,
    room: Mutex<Room>,
    down: AtomicBool,
    last_attempt: Mutex<Option<Instant>>,
}

impl Health {
    /// A disk that is well.
    pub(crate) fn new(disk: Arc<dyn Disk>, published: Arc<Published>, room: Room) -> Health {
        let (room, last_attempt) = (Mutex::new(room), Mutex::new(None));
        Health { disk, published, room, down: AtomicBool::new(false), last_attempt }
    }

    /// Whether a group of this size may be written now; brings the disk up again if it can. Called
    /// by the committer alone. An error is fatal.
    pub(crate) fn ready(&self, group_bytes: usize) -> Result<RoomState, DiskError> {
        let room = self.room().look(group_bytes);
        if room == RoomState::Short || !self.down.load(Ordering::Acquire) {
            return Ok(room);
        }
        self.revive()
    }

    /// Takes note of a failure. An error is fatal.
    pub(crate) fn failed(&self, error: DiskError) -> Result<(), DiskError> {
        let for_want_of_room = match &error {
            DiskError::Stopped(_) => self.room().short_lately(),
            error => error.is_full(),
        };
        if !for_want_of_room {
            return Err(error);
        }
        if !self.down.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "the disk ran out of room: it is opened again once there is");
        }
        Ok(())
    }

    /// Looks after the disk's own threads. An error is fatal.
    pub(crate) fn watch(&self) -> Result<(), DiskError> {
        self.room().look(0);
        if self.down.load(Ordering::Acquire) {
            return Ok(());
        }
        self.disk.check().or_else(|error| self.failed(error))
    }

    fn revive(&self) -> Result<RoomState, DiskError> {
        let mut last = self.last_attempt.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < REVIVE_INTERVAL) {
            return Ok(RoomState::Short);
        }
        *last = Some(Instant::now());
        self.published.withdraw();
        let snapshot = match self.disk.reopen() {
            Ok(snapshot) => snapshot,
            Err(error) if error.is_full() => return Ok(RoomState::Short),
            Err(error) => return Err(error),
        };
        let found = snapshot.get(VERSION_KEY)?.and_then(|value| parse_version(&value));
        if found != Some(self.published.newest()) {
            let reason = "the files hold another state than the one that was published";
            return Err(DiskError::Stopped(reason.into()));
        }
        self.published.restore(snapshot);
        self.down.store(false, Ordering::Release);
        tracing::info!("the disk is open again; everything acknowledged is there");
        Ok(RoomState::Enough)
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
