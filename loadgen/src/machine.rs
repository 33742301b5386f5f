//! What the generator asks of the machine: waits of a thread, open files, a fine timer.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Time that the calling thread has waited for a core although it could have run; nothing if the
/// kernel does not count it.
pub fn thread_wait_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited_ns = text.split(' ').nth(1).and_then(|number| number.parse().ok());
    Duration::from_nanos(waited_ns.unwrap_or_default())
}

/// Raises the limit of open files to the hard limit; gives what it is now (`None`: no limit).
pub fn raise_open_files() -> Option<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => getrlimit(Resource::Nofile).current,
    }
}

/// A timer that fires within microseconds. The runtime's own has a grain of 1 ms, which would add
/// up to a millisecond to every latency that counts from an intended time.
#[derive(Debug)]
pub struct FineTimer(AsyncFd<OwnedFd>);

impl FineTimer {
    /// Within a tokio runtime with I/O.
    #[expect(
        deprecated,
        reason = "unsound only for types whose `as_raw_fd` changes; an `OwnedFd` keeps its own"
    )]
    pub fn new() -> io::Result<FineTimer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        AsyncFd::with_interest(fd, Interest::READABLE).map(FineTimer)
    }

    /// Waits for this long. Dropping the future and calling again is fine.
    pub async fn sleep(&mut self, duration: Duration) -> io::Result<()> {
        if duration.is_zero() {
            return Ok(());
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let value = Timespec { tv_sec: seconds, tv_nsec: i64::from(duration.subsec_nanos()) };
        let timer = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &timer)?;
        loop {
            let mut guard = self.0.readable().await?;
            let mut count = [0; 8];
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut count)?)) {
                Ok(result) => return result.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_timer_is_never_early_and_can_be_used_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut timer = FineTimer::new().unwrap();
            for micros in [0, 1, 300, 5_000] {
                let wanted = Duration::from_micros(micros);
                let start = Instant::now();
                timer.sleep(wanted).await.unwrap();
                assert!(start.elapsed() >= wanted);
            }
            // A sleep that was dropped does not end the next one.
            let short = timer.sleep(Duration::from_millis(1));
            drop(short);
            let _ = tokio::time::timeout(
                Duration::from_millis(1),
                timer.sleep(Duration::from_millis(2)),
            )
            .await;
            std::thread::sleep(Duration::from_millis(5));
            let start = Instant::now();
            timer.sleep(Duration::from_millis(20)).await.unwrap();
            assert!(start.elapsed() >= Duration::from_millis(20));
        });
    }
}
