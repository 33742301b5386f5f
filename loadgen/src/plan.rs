//! When each user sends: decided before the run from a seed, and never bent by how it goes.
//!
//! In the open loop message i is intended for i ÷ rate after the start; the rate may be steady,
//! rise and fall, or go in steps. A late send stays in the plan and is made as soon as possible,
//! with its latency counted from the intended time: a stall of the server shows up in every message
//! that it held up (no coordinated omission). In the closed loop each user keeps a window of
//! messages in flight; it measures capacity, and its latencies are those of a saturated server.

use std::time::Duration;

use crate::stamp::Mixer;

/// Messages are counted in halves of a billionth, so that borders of segments are whole numbers.
const UNITS_PER_MESSAGE: u128 = 2_000_000_000;

/// A send that the plan asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intended {
    /// Which user sends: a number below the plan's user count.
    pub user: u32,
    /// When it should be sent, in nanoseconds after the start of the plan.
    pub at_ns: u64,
}

/// A time of steady or steadily changing rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Messages a second of all users together at its start, at least 1.
    pub from_per_s: u32,
    /// The same at its end.
    pub to_per_s: u32,
    /// How long it is.
    pub length: Duration,
}

impl Segment {
    /// The same rate all the time.
    pub fn steady(per_s: u32, length: Duration) -> Segment {
        Segment { from_per_s: per_s, to_per_s: per_s, length }
    }

    /// Messages, in [`UNITS_PER_MESSAGE`]: per second and nanosecond, times the mean of the rates.
    fn units(&self) -> u128 {
        (u128::from(self.from_per_s) + u128::from(self.to_per_s)) * self.length.as_nanos()
    }

    /// When so many `units` ÷ `parts` have been sent, in nanoseconds after the start.
    fn at_ns(&self, units: u128, parts: u128) -> u64 {
        if self.from_per_s == self.to_per_s {
            return (units / (parts * 2 * u128::from(self.from_per_s))) as u64;
        }
        // The sum of a rate that changes by `slope` a second: n = from·t + slope·t²/2.
        let messages = units as f64 / parts as f64 / UNITS_PER_MESSAGE as f64;
        let (from, to) = (f64::from(self.from_per_s), f64::from(self.to_per_s));
        let slope = (to - from) / self.length.as_secs_f64();
        let root = (from * from + 2.0 * slope * messages).max(0.0).sqrt();
        ((2.0 * messages / (from + root) * 1e9) as u64).min(self.length.as_nanos() as u64)
    }
}

/// The open loop: evenly spaced sends, each user once per round, in an order drawn anew per round.
#[derive(Debug)]
pub struct OpenLoop {
    segments: Vec<Planned>,
    /// Message `next` of this thread is message `(next · step + phase) / parts` of all.
    step: u128,
    phase: u128,
    parts: u128,
    total: u64,
    next: u64,
    order: Vec<u32>,
    random: Mixer,
}

#[derive(Clone, Copy, Debug)]
struct Planned {
    segment: Segment,
    start_ns: u64,
    units_before: u128,
}

/// What the plans of all threads share.
#[derive(Clone, Debug)]
pub struct Rate {
    /// The rate of all users together, from the start to the end.
    pub segments: Vec<Segment>,
    /// How many users there are in all threads.
    pub all_users: u32,
    /// Decides the order of the users.
    pub seed: u64,
}

impl OpenLoop {
    /// The plan of a thread that has `users` (at least 1) of the users and so that share of the
    /// rate. `thread` of `threads` shifts it, so that the plans of the threads interleave.
    pub fn new(rate: &Rate, users: u32, thread: u32, threads: u32) -> OpenLoop {
        let is_zero = |segment: &Segment| segment.from_per_s == 0 || segment.to_per_s == 0;
        let any_zero = users == 0 || rate.segments.iter().any(is_zero);
        assert!(!any_zero, "the command line excludes zero");
        let (mut start_ns, mut units_before) = (0, 0);
        let mut segments = Vec::new();
        for segment in &rate.segments {
            segments.push(Planned { segment: *segment, start_ns, units_before });
            start_ns += segment.length.as_nanos() as u64;
            units_before += segment.units();
        }
        let unit = u128::from(rate.all_users) * UNITS_PER_MESSAGE;
        let (step, phase) = (unit * u128::from(threads), unit * u128::from(thread));
        let parts = u128::from(threads) * u128::from(users);
        let mut plan = OpenLoop {
            segments,
            step,
            phase,
            parts,
            // All sends that are intended before the end.
            total: (units_before * parts).saturating_sub(phase).div_ceil(step) as u64,
            next: 0,
            order: (0..users).collect(),
            random: Mixer(rate.seed.wrapping_add(u64::from(thread) << 32)),
        };
        plan.shuffle();
        plan
    }

    /// When the next send is intended, in nanoseconds after the start; `None` once all were taken.
    pub fn next_at_ns(&self) -> Option<u64> {
        (self.next < self.total).then(|| self.at_ns(self.next))
    }

    /// The next send if its time has come. Called again until `None`, it gives every send that is
    /// due, however late: none is skipped.
    pub fn due(&mut self, now_ns: u64) -> Option<Intended> {
        let at_ns = self.next_at_ns().filter(|at_ns| *at_ns <= now_ns)?;
        let place = (self.next % self.order.len() as u64) as usize;
        let user = self.order[place];
        self.next += 1;
        if place + 1 == self.order.len() {
            self.shuffle();
        }
        Some(Intended { user, at_ns })
    }

    /// Ends the plan: what was not taken yet never will be.
    pub fn stop(&mut self) {
        self.total = self.next;
    }

    fn at_ns(&self, index: u64) -> u64 {
        let units = u128::from(index) * self.step + self.phase;
        let later = |planned: &Planned| planned.units_before * self.parts <= units;
        let place = self.segments.partition_point(later).saturating_sub(1);
        let planned = &self.segments[place];
        let since = units - planned.units_before * self.parts;
        planned.start_ns + planned.segment.at_ns(since, self.parts)
    }

    /// Fisher–Yates.
    fn shuffle(&mut self) {
        for last in (1..self.order.len()).rev() {
            let other = self.random.below(last as u32 + 1) as usize;
            self.order.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_s: u32, length: Duration, all_users: u32, seed: u64) -> Rate {
        Rate { segments: vec![Segment::steady(per_s, length)], all_users, seed }
    }

    fn plan(users: u32, per_s: u32, total: u64, seed: u64) -> OpenLoop {
        let length = Duration::from_nanos(total * 1_000_000_000 / u64::from(per_s));
        OpenLoop::new(&rate(per_s, length, users, seed), users, 0, 1)
    }

    fn drain(plan: &mut OpenLoop, now_ns: u64) -> Vec<Intended> {
        std::iter::from_fn(|| plan.due(now_ns)).collect()
    }

    #[test]
    fn a_late_plan_skips_nothing() {
        let mut prompt = plan(10, 1_000, 5_000, 7);
        let mut expected = Vec::new();
        for step in 0..5_001 {
            expected.extend(drain(&mut prompt, step * 1_000_000));
        }
        assert_eq!(expected.len(), 5_000);
        let mut late = plan(10, 1_000, 5_000, 7);
        let mut got = drain(&mut late, 3_000_000);
        got.extend(drain(&mut late, 4_200_000_000));
        got.extend(drain(&mut late, u64::MAX));
        assert_eq!(got, expected, "the same sends with the same intended times");
        assert_eq!(late.next_at_ns(), None);
    }

    #[test]
    fn sends_are_evenly_spaced_and_never_early() {
        let mut plan = plan(3, 3_000, 9_000, 1);
        assert_eq!(plan.next_at_ns(), Some(0));
        assert!(plan.due(0).is_some());
        assert_eq!(plan.due(333_332), None);
        let sends = drain(&mut plan, u64::MAX);
        for (index, send) in (1..).zip(&sends) {
            assert_eq!(send.at_ns, index * 1_000_000_000 / 3_000);
        }
    }

    #[test]
    fn threads_share_the_rate_and_interleave() {
        let length = Duration::from_secs(2);
        let rate = rate(600, length, 6, 1);
        let sends = |users, thread| {
            let mut plan = OpenLoop::new(&rate, users, thread, 2);
            drain(&mut plan, u64::MAX)
        };
        let (large, small) = (sends(4, 0), sends(2, 1));
        assert_eq!((large.len(), small.len()), (800, 400));
        assert!(small.iter().chain(&large).all(|send| send.at_ns < 2_000_000_000));
        assert_eq!(large[1].at_ns - large[0].at_ns, 2_500_000);
        assert_eq!((small[0].at_ns, small[1].at_ns), (2_500_000, 7_500_000));
    }

    #[test]
    fn a_ramp_rises_evenly_and_steps_follow_each_other() {
        let second = Duration::from_secs(1);
        let ramp = Segment { from_per_s: 100, to_per_s: 1_100, length: 10 * second };
        let segments = vec![Segment::steady(100, second), ramp, Segment::steady(500, second)];
        for threads in [1, 2] {
            let rate = Rate { segments: segments.clone(), all_users: 4, seed: 1 };
            let mut sends = Vec::new();
            for thread in 0..threads {
                let mut plan = OpenLoop::new(&rate, 4 / threads, thread, threads);
                let own = drain(&mut plan, u64::MAX);
                assert!(own.is_sorted_by_key(|send| send.at_ns));
                sends.extend(own.iter().map(|send| send.at_ns as f64 / 1e9));
            }
            let count = |from: f64, to: f64| {
                let within = |at: &&f64| (from..to).contains(*at);
                sends.iter().filter(within).count()
            };
            assert_eq!((count(0.0, 1.0), count(11.0, 12.0)), (100, 500));
            assert_eq!(sends.len(), 100 + 6_000 + 500);
            for half in 0..20 {
                let from = 1.0 + f64::from(half) / 2.0;
                let expected = 50.0 + 25.0 * (f64::from(half) + 0.5);
                let got = count(from, from + 0.5) as f64;
                assert!((got - expected).abs() <= 2.0, "{from}: {got} for {expected}");
            }
        }
    }

    #[test]
    fn a_ramp_may_fall_to_almost_nothing() {
        let length = Duration::from_secs(4);
        let ramp = Segment { from_per_s: 1_001, to_per_s: 1, length };
        let rate = Rate { segments: vec![ramp], all_users: 2, seed: 1 };
        let sends = drain(&mut OpenLoop::new(&rate, 2, 0, 1), u64::MAX);
        assert_eq!(sends.len(), 2_004);
        assert!(sends.is_sorted_by_key(|send| send.at_ns));
        assert!(sends.iter().all(|send| send.at_ns <= 4_000_000_000));
    }

    #[test]
    fn each_user_sends_once_per_round_in_an_order_of_the_seed() {
        let sends = |seed| drain(&mut plan(50, 100, 500, seed), u64::MAX);
        for round in sends(1).chunks(50) {
            let mut users: Vec<_> = round.iter().map(|send| send.user).collect();
            users.sort_unstable();
            assert_eq!(users, (0..50).collect::<Vec<_>>());
        }
        assert_eq!(sends(1), sends(1));
        assert_ne!(sends(1), sends(2));
    }

    #[test]
    fn a_stopped_plan_gives_nothing_more() {
        let mut plan = plan(2, 10, 100, 1);
        assert!(plan.due(0).is_some());
        plan.stop();
        assert_eq!((plan.due(u64::MAX), plan.next_at_ns()), (None, None));
    }
}
