//! Whether the file system has room: looked at before each group, so that a full disk is met
//! before anything is written and not in the middle of it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::limits::{HYSTERESIS_DIVISOR, RESERVE_DIVISOR};
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
    /// What was needed when room was last short.
    short_needed: u64,
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
        let (state, short_needed, last_short) = (RoomState::Enough, 0, None);
        Room { probe, reserve_bytes_max, state, short_needed, last_short, counters }
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
        // What was too little once does not get enough by a smaller group or a few bytes more.
        let wanted = match self.state {
            RoomState::Enough => needed,
            RoomState::Short => needed.max(self.short_needed) + reserve / HYSTERESIS_DIVISOR,
        };
        let state = match space.free_bytes >= wanted {
            true => RoomState::Enough,
            false => RoomState::Short,
        };
        if state == RoomState::Short {
            self.last_short = Some(Instant::now());
            self.short_needed = match self.state {
                RoomState::Enough => needed,
                RoomState::Short => self.short_needed.max(needed),
            };
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    /// A disk at the edge had an error and an "again" in the log every 250 ms, from looks that
    /// asked for different sizes.
    #[test]
    fn a_disk_at_the_edge_is_short_until_there_is_clearly_room() {
        let free = Arc::new(AtomicU64::new(1 << 30));
        let probed = Arc::clone(&free);
        let probe: SpaceProbe =
            Arc::new(move || Ok(Space { free_bytes: probed.load(Relaxed), total_bytes: 1 << 30 }));
        let reserve = 64 << 20;
        let mut room = Room::new(probe, reserve, Arc::default());
        free.store(reserve + 10_000, Relaxed);
        assert_eq!(room.look(0), RoomState::Enough);
        assert_eq!(room.look(10_000), RoomState::Short);
        for group_bytes in [0, 1, 5_000, 10_000] {
            assert_eq!(room.look(group_bytes), RoomState::Short, "{group_bytes}");
        }
        let enough = reserve + 20_000 + reserve / HYSTERESIS_DIVISOR;
        free.store(enough - 1, Relaxed);
        assert_eq!(room.look(0), RoomState::Short);
        free.store(enough, Relaxed);
        assert_eq!(room.look(0), RoomState::Enough);
        assert_eq!(room.look(10_000), RoomState::Enough);
    }
}
