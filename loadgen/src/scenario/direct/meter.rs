//! A thread's part of the intervals: notices when one ends and hands over what was seen.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant, SystemTime};

use chatring_bare::cpu::thread_cpu_time;

use super::talk::State;
use crate::report::collect::Said;
use crate::report::interval::{Grid, Part, Seen};

/// The intervals of one thread.
pub struct Meter {
    grid: Grid,
    thread: u32,
    out: SyncSender<Said>,
    start: Instant,
    number: u32,
    cpu: Duration,
    /// Sent, acked and delivered messages and errors when the interval began.
    before: [u64; 4],
}

impl Meter {
    /// From the start of the load on.
    pub fn new(grid: Grid, thread: u32, out: SyncSender<Said>, start: Instant) -> Meter {
        // The collector is there as long as somebody can speak to it.
        let _ = out.send(Said::Start(wall_clock(start)));
        Meter { grid, thread, out, start, number: 0, cpu: thread_cpu_time(), before: [0; 4] }
    }

    /// When the interval ends.
    pub fn end(&self) -> Instant {
        self.start + self.grid.end_of(self.number)
    }

    /// Hands the interval over if it has ended.
    pub fn tick(&mut self, state: &mut State, now: Instant) {
        if now < self.end() {
            return;
        }
        // After a pause: several have ended.
        while self.start + self.grid.end_of(self.number + 1) <= now {
            self.number += 1;
        }
        let part = self.part(state, self.grid.end_of(self.number));
        self.number += 1;
        match self.out.try_send(Said::Part(Box::new(part))) {
            Ok(()) => {}
            Err(TrySendError::Full(Said::Part(part))) => self.take_back(state, *part),
            // As above.
            Err(_) => {}
        }
    }

    /// Hands over what is left.
    pub fn finish(mut self, state: &mut State) {
        let to = self.start.elapsed();
        let mut part = self.part(state, to.max(self.grid.start_of(self.number)));
        part.is_last = true;
        // As above. It may wait, for there is no load any more.
        let _ = self.out.send(Said::Part(Box::new(part)));
    }

    fn part(&mut self, state: &mut State, to: Duration) -> Part {
        let counts = state.book.counts();
        let now = [counts.sent, counts.acked, counts.delivered, state.errors + counts.faults()];
        let [sent, acked, delivered, errors] =
            std::array::from_fn(|index| now[index] - self.before[index]);
        let cpu = thread_cpu_time();
        let seen = Seen {
            sent,
            acked,
            delivered,
            errors,
            outstanding: state.backlog(),
            cpu: cpu - self.cpu,
            timed: std::mem::take(&mut state.timed),
        };
        (self.before, self.cpu) = (now, cpu);
        Part { thread: self.thread, number: self.number, to, is_last: false, seen }
    }

    /// There was no room: it goes out with the next one.
    fn take_back(&mut self, state: &mut State, part: Part) {
        let Seen { sent, acked, delivered, errors, cpu, mut timed, .. } = part.seen;
        for (before, count) in self.before.iter_mut().zip([sent, acked, delivered, errors]) {
            *before -= count;
        }
        self.cpu -= cpu;
        timed.merge(&state.timed);
        state.timed = timed;
    }
}

/// The wall clock's time at a moment.
fn wall_clock(at: Instant) -> SystemTime {
    let (now, wall) = (Instant::now(), SystemTime::now());
    match at.checked_duration_since(now) {
        Some(ahead) => wall + ahead,
        None => wall - now.duration_since(at),
    }
}
