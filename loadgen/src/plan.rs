//! When each user sends: decided before the run from a seed, and never bent by how it goes.
//!
//! In the open loop message i of a thread is intended for i ÷ rate after the start. A late send
//! stays in the plan and is made as soon as possible, with its latency counted from the intended
//! time: a stall of the server shows up in every message that it held up (no coordinated omission).
//! In the closed loop each user keeps a window of messages in flight; it measures capacity, and its
//! latencies are those of a saturated server.

use std::time::Duration;

use crate::stamp::Mixer;

const NANOS_PER_S: u128 = 1_000_000_000;

/// A send that the plan asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intended {
    /// Which user sends: a number below the plan's user count.
    pub user: u32,
    /// When it should be sent, in nanoseconds after the start of the plan.
    pub at_ns: u64,
}

/// The open loop: evenly spaced sends, each user once per round, in an order drawn anew per round.
#[derive(Debug)]
pub struct OpenLoop {
    /// The time between two sends is `interval_ns.0` ÷ `interval_ns.1`.
    interval_ns: (u128, u128),
    phase_ns: u64,
    total: u64,
    next: u64,
    order: Vec<u32>,
    random: Mixer,
}

/// What the plans of all threads share.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Messages a second of all users together, at least 1.
    pub per_s: u32,
    /// How many users there are in all threads.
    pub all_users: u32,
    /// How long they send.
    pub length: Duration,
    /// Decides the order of the users.
    pub seed: u64,
}

impl OpenLoop {
    /// The plan of a thread that has `users` (at least 1) of the users and so that share of the
    /// rate. `thread` of `threads` shifts it, so that the plans of the threads interleave.
    pub fn new(rate: Rate, users: u32, thread: u32, threads: u32) -> OpenLoop {
        assert!(users > 0 && rate.per_s > 0, "the command line excludes zero");
        let interval_ns =
            (NANOS_PER_S * u128::from(rate.all_users), u128::from(rate.per_s) * u128::from(users));
        let phase_ns = interval_ns.0 * u128::from(thread) / interval_ns.1 / u128::from(threads);
        let length_ns = rate.length.as_nanos().saturating_sub(phase_ns);
        let mut plan = OpenLoop {
            interval_ns,
            phase_ns: phase_ns as u64,
            // All sends that are intended before the end.
            total: (length_ns * interval_ns.1).div_ceil(interval_ns.0) as u64,
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
        let offset = u128::from(index) * self.interval_ns.0 / self.interval_ns.1;
        self.phase_ns + offset as u64
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

    fn plan(users: u32, per_s: u32, total: u64, seed: u64) -> OpenLoop {
        let length = Duration::from_nanos(total * 1_000_000_000 / u64::from(per_s));
        OpenLoop::new(Rate { per_s, all_users: users, length, seed }, users, 0, 1)
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
        let rate = Rate { per_s: 600, all_users: 6, length, seed: 1 };
        let sends = |users, thread| {
            let mut plan = OpenLoop::new(rate, users, thread, 2);
            drain(&mut plan, u64::MAX)
        };
        let (large, small) = (sends(4, 0), sends(2, 1));
        assert_eq!((large.len(), small.len()), (800, 400));
        assert!(small.iter().chain(&large).all(|send| send.at_ns < 2_000_000_000));
        assert_eq!(large[1].at_ns - large[0].at_ns, 2_500_000);
        assert_eq!((small[0].at_ns, small[1].at_ns), (2_500_000, 7_500_000));
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
