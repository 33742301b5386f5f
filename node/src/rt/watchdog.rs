//! Wakes a shard that stands still, and ends the process if it stays so.
//!
//! glommio 0.9.0 may park an executor that has runnable tasks; a wake from another thread always
//! un-parks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::TICK_MS;
use super::stats::{ShardStats, count};
use crate::held::{Cause, Punctual};

/// Time between two looks: two ticks and some room.
const LOOK_MS: u64 = 2 * TICK_MS + 10;
/// Looks, counted instead of timed so that a stopped process does not count, until a shard that has
/// not moved is given up: 5 s.
const LOOKS_MAX: u32 = (5_000 / LOOK_MS) as u32;

/// Watches until `stop`.
pub fn watch(stats: &[Arc<ShardStats>], stop: &AtomicBool, pulse: impl Fn(usize)) {
    let mut seen = vec![(0, 0_u32); stats.len()];
    // It does nothing but sleep on any core: if it is late, so is everybody.
    let mut punctual = Punctual::new(Cause::Process);
    while !stop.load(Ordering::Relaxed) {
        let (start, pause) = (Instant::now(), Duration::from_millis(LOOK_MS));
        std::thread::sleep(pause);
        punctual.woke(start, pause);
        for (shard, (ticks, still)) in seen.iter_mut().enumerate() {
            let now = stats[shard].ticks.load(Ordering::Relaxed);
            if now != *ticks {
                (*ticks, *still) = (now, 0);
                continue;
            }
            *still += 1;
            if *still > LOOKS_MAX && !stop.load(Ordering::Relaxed) {
                tracing::error!(shard, "the shard has not moved for 5 s: aborting");
                std::process::abort();
            }
            count(&stats[shard].pulses, 1);
            pulse(shard);
        }
    }
}
