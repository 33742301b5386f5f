//! Wakes a shard that stands still, and ends the process if it stays so.
//!
//! glommio 0.9.0 may park an executor that has runnable tasks; a wake from another thread always
//! un-parks it. A shard that would run and gets no core stands still, too, and ending the process
//! would help nobody: such looks do not count.

use std::fs::read_to_string;
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

/// What is known of a shard from the last look.
#[derive(Clone, Copy, Default)]
struct Seen {
    ticks: u64,
    /// Looks since it moved.
    still: u32,
    ran_ns: u64,
}

/// Watches until `stop`.
pub fn watch(stats: &[Arc<ShardStats>], stop: &AtomicBool, pulse: impl Fn(usize)) {
    let mut seen = vec![Seen::default(); stats.len()];
    // It does nothing but sleep on any core: if it is late, so is everybody.
    let mut punctual = Punctual::new(Cause::Process);
    while !stop.load(Ordering::Relaxed) {
        let (start, pause) = (Instant::now(), Duration::from_millis(LOOK_MS));
        std::thread::sleep(pause);
        punctual.woke(start, pause);
        for (shard, seen) in seen.iter_mut().enumerate() {
            let ticks = stats[shard].ticks.load(Ordering::Relaxed);
            if ticks != seen.ticks {
                *seen = Seen { ticks, still: 0, ran_ns: seen.ran_ns };
                continue;
            }
            let thread = state_of(stats[shard].thread.load(Ordering::Relaxed));
            seen.still += u32::from(!starves(thread, &mut seen.ran_ns));
            if seen.still > LOOKS_MAX && !stop.load(Ordering::Relaxed) {
                tracing::error!(shard, "the shard has not moved for 5 s: aborting");
                std::process::abort();
            }
            count(&stats[shard].pulses, 1);
            pulse(shard);
        }
    }
}

/// Whether a thread is ready to run and has had no core since the last look. Unknown is no.
fn starves(thread: Option<(bool, u64)>, ran_ns: &mut u64) -> bool {
    let Some((ready, ran)) = thread else { return false };
    let before = std::mem::replace(ran_ns, ran);
    ready && ran == before
}

/// Whether a thread of this process is ready to run or runs, and for how long it has had a core.
fn state_of(thread: i32) -> Option<(bool, u64)> {
    let of = |file: &str| read_to_string(format!("/proc/self/task/{thread}/{file}")).ok();
    let stat = of("stat")?;
    // Behind the name, which may hold anything.
    let (_, behind) = stat.rsplit_once(") ")?;
    let ran = of("schedstat")?.split_whitespace().next()?.parse().ok()?;
    Some((behind.starts_with('R'), ran))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_thread_that_is_ready_and_has_not_run_since_starves() {
        let mut ran_ns = 5;
        assert!(!starves(Some((true, 7)), &mut ran_ns), "it has run since");
        assert!(starves(Some((true, 7)), &mut ran_ns));
        assert!(!starves(Some((false, 7)), &mut ran_ns), "it sleeps");
        assert!(!starves(None, &mut ran_ns));
    }

    #[test]
    fn the_kernel_tells_a_thread_that_runs_from_one_that_sleeps() {
        let me = rustix::thread::gettid().as_raw_nonzero().get();
        let until = Instant::now() + Duration::from_secs(30);
        // The kernel accounts what a thread ran at a tick, or when it is taken off its core.
        while !matches!(state_of(me).expect("this thread"), (true, 1..)) {
            assert!(Instant::now() < until, "it runs");
        }
        let (tell, told) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("somebody listens");
            std::thread::park();
        });
        let thread = told.recv().expect("it has said so");
        while state_of(thread).expect("it lives").0 {
            assert!(Instant::now() < until, "it sleeps in the end");
        }
        sleeper.thread().unpark();
        sleeper.join().expect("no panic");
        assert_eq!(state_of(0), None);
    }
}
