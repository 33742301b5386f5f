//! The CPU time of a thread: read, and burnt on purpose.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time that the calling thread has used.
pub fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Uses so much CPU time, whatever else gets the core meanwhile.
pub fn burn(cpu: Duration) {
    if cpu.is_zero() {
        return;
    }
    let end = thread_cpu_time() + cpu;
    while thread_cpu_time() < end {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_in_the_cpu_time_and_sleep_does_not() {
        let before = thread_cpu_time();
        std::thread::sleep(Duration::from_millis(30));
        let slept = thread_cpu_time() - before;
        assert!(slept < Duration::from_millis(20), "{slept:?}");
        let start = thread_cpu_time();
        burn(Duration::from_millis(5));
        assert!(thread_cpu_time() - start >= Duration::from_millis(5));
    }
}
