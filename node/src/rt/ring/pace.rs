//! When a busy shard waits a moment before its next turn, so that the turn has more in it: a turn
//! with one message costs several times what the message does in a full one.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Time between two looks at the thread's clock, which is a system call.
const LOOK: Duration = Duration::from_millis(20);
/// Share of a core in percent above which a shard is busy: below it nobody waits for another one's
/// message, and the pause would be all that there is to notice.
const BUSY_PERCENT_MIN: u64 = 50;
/// Share of a core below which it is no more. The pause itself saves a quarter, which must not end
/// it.
const CALM_PERCENT_MAX: u64 = 30;

/// The pace of the calling thread's turns.
#[derive(Debug)]
pub struct Pace {
    gather: Duration,
    busy: bool,
    looked: Instant,
    used: Duration,
}

impl Pace {
    /// Pauses of this length; none if it is zero.
    pub fn new(gather: Duration) -> Pace {
        // SAFETY: the call takes numbers only. The default would make each pause 50 µs longer.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_u64) };
        Pace { gather, busy: false, looked: Instant::now(), used: thread_time() }
    }

    /// How long to wait before the next turn, if at all.
    pub fn pause(&mut self) -> Option<Duration> {
        if self.gather.is_zero() {
            return None;
        }
        let elapsed = self.looked.elapsed();
        if elapsed >= LOOK {
            let used = thread_time();
            self.busy = is_busy(self.busy, used.saturating_sub(self.used), elapsed);
            (self.looked, self.used) = (Instant::now(), used);
        }
        self.busy.then_some(self.gather)
    }
}

fn is_busy(was_busy: bool, used: Duration, elapsed: Duration) -> bool {
    let percent = used.as_micros() as u64 * 100 / (elapsed.as_micros() as u64).max(1);
    percent >= if was_busy { CALM_PERCENT_MAX } else { BUSY_PERCENT_MIN }
}

/// The processor time that this thread has used.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_busy_above_half_a_core_and_stays_so_though_it_saves_by_that() {
        let ms = Duration::from_millis;
        assert!(!is_busy(false, ms(9), ms(20)));
        assert!(is_busy(false, ms(11), ms(20)));
        assert!(is_busy(true, ms(9), ms(20)));
        assert!(!is_busy(true, ms(5), ms(20)));
    }

    #[test]
    fn only_a_busy_thread_pauses_and_only_if_it_may() {
        // Until it pauses; others may keep it from its core for a while.
        let burn = |pace: &mut Pace, limit: Duration| {
            let until = Instant::now() + limit;
            while Instant::now() < until {
                if pace.pause().is_some() {
                    return true;
                }
            }
            false
        };
        assert!(!burn(&mut Pace::new(Duration::ZERO), Duration::from_millis(100)));
        let mut pace = Pace::new(Duration::from_micros(100));
        assert!(pace.pause().is_none(), "nothing is known of it yet");
        assert!(burn(&mut pace, Duration::from_secs(20)));
        std::thread::sleep(Duration::from_millis(300));
        assert!(pace.pause().is_none(), "it was idle");
    }
}
