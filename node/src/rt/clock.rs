//! The two clocks of a shard.

use std::time::{SystemTime, UNIX_EPOCH};

use chatring_core::effect::Now;

/// What time it is. The monotonic clock is `CLOCK_BOOTTIME`: it counts while the machine sleeps.
pub fn now() -> Now {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for one timespec.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert_eq!(result, 0, "CLOCK_BOOTTIME exists since Linux 2.6.39");
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        mono_ms: time.tv_sec as u64 * 1_000 + time.tv_nsec as u64 / 1_000_000,
        unix_ms: unix.as_millis() as u64,
    }
}
