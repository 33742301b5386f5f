//! Takes down what held messages up: whatever took longer than a bound, with its time and cause, as
//! counts and as lines of the log.
//!
//! One journal for the process, as with the log that it writes to. Below the bound it costs a load
//! and a comparison.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::metrics::{Metric, MetricValue};

/// Lines that may come at once.
const LINES_BURST_MAX: f64 = 200.0;
/// Lines a second in the long run: at most some 35 MB a day.
const LINES_PER_S: f64 = 2.0;

/// The journal of this process. It takes nothing down until it has a bound.
pub static HELD: Journal = Journal::new();

macro_rules! causes {
    ($($(#[$doc:meta])* $variant:ident: $name:literal, $help:literal;)*) => {
        /// What may hold messages up.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Cause { $(#[doc = $help] $variant,)* }

        impl Cause {
            const ALL: &[Cause] = &[$(Cause::$variant),*];

            /// Its word in the log and in the figures' names.
            pub fn name(self) -> &'static str {
                match self { $(Cause::$variant => $name,)* }
            }

            fn help(self) -> &'static str {
                match self { $(Cause::$variant => $help,)* }
            }
        }
    };
}

causes! {
    Turn: "turn", "turns of a shard that took long";
    Late: "late", "turns of a shard that began late";
    Process: "process", "pauses of the whole process, seen by a thread that only sleeps";
    Queue: "queue", "times that the oldest commit of a group waited for it";
    Group: "group", "groups that took long from writing to answers";
    Write: "write", "writes of a group";
    Sync: "sync", "syncs of a group";
    Segment: "segment", "waits for a segment of the log";
    Room: "room", "waits for room for a memtable";
}

const CAUSES: usize = Cause::ALL.len();

/// See the module.
pub struct Journal {
    bound_us: AtomicU64,
    counts: [AtomicU64; CAUSES],
    sums_us: [AtomicU64; CAUSES],
    unlogged: AtomicU64,
    lines: Mutex<Lines>,
}

/// How many lines may be written.
struct Lines {
    left: f64,
    since: Option<Instant>,
    /// Left out since the last line.
    left_out: u64,
}

impl Journal {
    /// An empty one without a bound.
    pub const fn new() -> Journal {
        Journal {
            bound_us: AtomicU64::new(u64::MAX),
            counts: [const { AtomicU64::new(0) }; CAUSES],
            sums_us: [const { AtomicU64::new(0) }; CAUSES],
            unlogged: AtomicU64::new(0),
            lines: Mutex::new(Lines { left: LINES_BURST_MAX, since: None, left_out: 0 }),
        }
    }

    /// Takes down what lasts at least so long from now on; zero: nothing.
    pub fn set_bound(&self, bound: Duration) {
        let bound_us = match bound.is_zero() {
            true => u64::MAX,
            false => micros(bound),
        };
        self.bound_us.store(bound_us, Relaxed);
    }

    /// Something took from `start` until now.
    pub fn since(&self, cause: Cause, start: Instant) {
        self.took(cause, start.elapsed());
    }

    /// Something took this long and ended now.
    pub fn took(&self, cause: Cause, took: Duration) {
        self.note(cause, took, None);
    }

    /// The same of a thread whose own times meanwhile are known.
    pub fn note(&self, cause: Cause, took: Duration, thread: Option<ThreadTimes>) {
        let took_us = micros(took);
        if took_us < self.bound_us.load(Relaxed) {
            return;
        }
        self.counts[cause as usize].fetch_add(1, Relaxed);
        self.sums_us[cause as usize].fetch_add(took_us, Relaxed);
        let Some(left_out) = self.line(Instant::now()) else {
            self.unlogged.fetch_add(1, Relaxed);
            return;
        };
        let began = SystemTime::now().checked_sub(took).unwrap_or(UNIX_EPOCH);
        let began_unix_us = micros(began.duration_since(UNIX_EPOCH).unwrap_or_default());
        let thread_name = std::thread::current();
        let name = thread_name.name().unwrap_or_default();
        let cause = cause.name();
        match thread {
            Some(ThreadTimes { ran, waited }) => tracing::warn!(
                cause,
                took_us,
                began_unix_us,
                thread = name,
                ran_us = micros(ran),
                waited_us = micros(waited),
                left_out,
                "held up"
            ),
            None => {
                tracing::warn!(cause, took_us, began_unix_us, thread = name, left_out, "held up")
            }
        }
    }

    /// How often and how long in all, by cause.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut metrics = Vec::new();
        for &cause in Cause::ALL {
            let (name, help) = (cause.name(), cause.help());
            let count = self.counts[cause as usize].load(Relaxed);
            let seconds = self.sums_us[cause as usize].load(Relaxed) as f64 / 1e6;
            let metric = |unit: &str, value| {
                let help = format!("above the bound of `log.held_up`: {help}");
                Metric::new(&format!("chatring_held_up_{name}{unit}"), &help, value)
            };
            metrics.push(metric("", MetricValue::Counter(count)));
            metrics.push(metric("_seconds", MetricValue::CounterF(seconds)));
        }
        let unlogged = MetricValue::Counter(self.unlogged.load(Relaxed));
        let help = "those of them without a line of their own in the log";
        metrics.push(Metric::new("chatring_held_up_unlogged", help, unlogged));
        metrics
    }

    /// Takes the room of one line, and gives how many had none before it.
    fn line(&self, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = lines.since.replace(now) {
            let more = now.saturating_duration_since(since).as_secs_f64() * LINES_PER_S;
            lines.left = (lines.left + more).min(LINES_BURST_MAX);
        }
        if lines.left < 1.0 {
            lines.left_out += 1;
            return None;
        }
        lines.left -= 1.0;
        Some(std::mem::take(&mut lines.left_out))
    }
}

impl Default for Journal {
    fn default() -> Journal {
        Journal::new()
    }
}

/// What the scheduler says of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadTimes {
    /// It had a core.
    pub ran: Duration,
    /// It could have run and had none.
    pub waited: Duration,
}

/// Notices when a thread wakes late, and whether it had no core, was busy, or was not woken.
pub struct Punctual {
    cause: Cause,
    /// None if the kernel does not tell.
    schedstat: Option<File>,
    times: ThreadTimes,
}

impl Punctual {
    /// For the calling thread.
    pub fn new(cause: Cause) -> Punctual {
        let schedstat = File::open("/proc/thread-self/schedstat").ok();
        let mut punctual = Punctual { cause, schedstat, times: ThreadTimes::default() };
        punctual.look();
        punctual
    }

    /// It meant to sleep from `start` for this long, and is awake.
    pub fn woke(&mut self, start: Instant, meant: Duration) {
        let times = self.look();
        HELD.note(self.cause, start.elapsed().saturating_sub(meant), times);
    }

    /// The thread's times since the last look.
    fn look(&mut self) -> Option<ThreadTimes> {
        let mut text = [0; 64];
        let length = self.schedstat.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten().map(Duration::from_nanos);
        let now = ThreadTimes { ran: next()?, waited: next()? };
        let before = std::mem::replace(&mut self.times, now);
        Some(ThreadTimes {
            ran: now.ran.saturating_sub(before.ran),
            waited: now.waited.saturating_sub(before.waited),
        })
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(journal: &Journal, name: &str) -> f64 {
        let name = format!("chatring_held_up_{name}");
        let metric = journal.metrics().into_iter().find(|metric| metric.name == name);
        match metric.expect("it is there").value {
            MetricValue::Counter(count) => count as f64,
            MetricValue::CounterF(sum) => sum,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_lasts_as_long_as_the_bound_is_counted_under_its_cause_and_nothing_else() {
        let journal = Journal::new();
        let ms = Duration::from_millis;
        journal.took(Cause::Sync, ms(9_000));
        assert_eq!(value(&journal, "sync"), 0.0, "no bound, no count");
        journal.set_bound(ms(25));
        journal.took(Cause::Sync, ms(24));
        journal.took(Cause::Sync, ms(25));
        journal.took(Cause::Sync, ms(75));
        journal.took(Cause::Turn, ms(30));
        assert_eq!((value(&journal, "sync"), value(&journal, "sync_seconds")), (2.0, 0.1));
        assert_eq!((value(&journal, "turn"), value(&journal, "write")), (1.0, 0.0));
        journal.set_bound(Duration::ZERO);
        journal.took(Cause::Turn, ms(30));
        assert_eq!(value(&journal, "turn"), 1.0);
    }

    #[test]
    fn lines_are_bounded_and_what_has_none_is_told_with_the_next() {
        let journal = Journal::new();
        let start = Instant::now();
        let given = (0..1_000).filter(|_| journal.line(start).is_some()).count();
        assert_eq!(given, LINES_BURST_MAX as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(journal.line(later), Some(800));
        assert_eq!((journal.line(later), journal.line(later)), (Some(0), None));
        let much_later = start + Duration::from_secs(86_400);
        assert!((0..1_000).filter(|_| journal.line(much_later).is_some()).count() <= 200);
    }

    #[test]
    fn a_thread_that_sleeps_neither_runs_nor_waits() {
        let mut punctual = Punctual::new(Cause::Process);
        std::thread::sleep(Duration::from_millis(50));
        let Some(times) = punctual.look() else { return };
        assert!(times.ran < Duration::from_millis(40), "{times:?}");
        let cpu_ms = || {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            time.tv_sec * 1_000 + time.tv_nsec / 1_000_000
        };
        let start = cpu_ms();
        while cpu_ms() < start + 30 {
            std::hint::spin_loop();
        }
        let times = punctual.look().expect("as before");
        assert!(times.ran > Duration::from_millis(20), "{times:?}");
    }
}
