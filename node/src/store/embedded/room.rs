//! Whether the file system has room: looked at before each group, so that a full disk is met
//! before anything is written and not in the middle of it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::limits::RESERVE_DIVISOR;
use super::metrics::Counters;

/// How long a failure may follow a lack of room and still be ascribed to it: a worker that ran out
/// of room leaves its half-written table behind, or clears it away.
const SHORT_MEMORY: Duration = Duration::from_secs(10);

/// Bytes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Space {
    /// Free for us.
    pub free_bytes: u64,
    /// In all.
    pub total_bytes: u64,
}

/// Asks for the space. Tests put their own in.
pub(crate) type SpaceProbe = Arc<dyn Fn() -> io::Result<Space> + Send + Sync>;

/// Asks the file system that holds the folder.
pub(crate) fn space_of(dir: PathBuf) -> SpaceProbe {
    Arc::new(move || {
        let found = rustix::fs::statvfs(&dir)?;
        Ok(Space {
            free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        })
    })
}

/// Keeps the reserve free.
pub(crate) struct Room {
    probe: SpaceProbe,
    reserve_bytes_max: u64,
    state: RoomState,
    last_short: Option<Instant>,
    counters: Arc<Counters>,
}

/// Whether there is room for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoomState {
    /// There is.
    Enough,
    /// There is not: nothing may be written.
    Short,
}

impl Room {
    /// Keeps free at most `reserve_bytes_max`, less on a small file system.
    pub(crate) fn new(probe: SpaceProbe, reserve_bytes_max: u64, counters: Arc<Counters>) -> Room {
        Room { probe, reserve_bytes_max, state: RoomState::Enough, last_short: None, counters }
    }

    /// Looks whether a group of this size may be written. Says so in the log when that changes.
    pub(crate) fn look(&mut self, group_bytes: usize) -> RoomState {
        let space = match (self.probe)() {
            Ok(space) => space,
            Err(error) => {
                tracing::warn!(%error, "cannot ask for free disk space; going on");
                return self.state;
            }
        };
        let reserve = self.reserve_bytes_max.min(space.total_bytes / RESERVE_DIVISOR);
        self.counters.free_bytes.store(space.free_bytes, Relaxed);
        self.counters.reserve_bytes.store(reserve, Relaxed);
        // A group is written twice at most before its journal goes: there and into a table.
        let needed = reserve.saturating_add(2 * group_bytes as u64);
        let state = match space.free_bytes >= needed {
            true => RoomState::Enough,
            false => RoomState::Short,
        };
        if state == RoomState::Short {
            self.last_short = Some(Instant::now());
        }
        if state != self.state {
            let free_bytes = space.free_bytes;
            match state {
                RoomState::Short => tracing::error!(
                    free_bytes,
                    reserve_bytes = reserve,
                    "disk full: nothing is stored or acknowledged until there is room"
                ),
                RoomState::Enough => tracing::info!(free_bytes, "the disk has room again"),
            }
            self.state = state;
        }
        state
    }

    /// Whether room is short, or was a moment ago: so that a failure may come from it.
    pub(crate) fn short_lately(&mut self) -> bool {
        self.look(0) == RoomState::Short
            || self.last_short.is_some_and(|last| last.elapsed() < SHORT_MEMORY)
    }
}
