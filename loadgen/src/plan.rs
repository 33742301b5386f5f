//! When each user sends: decided before the run from a seed, and never bent by how it goes.
//!
//! In the open loop message i of a thread is intended for i ÷ rate after the start. A late send
//! stays in the plan and is made as soon as possible, with its latency counted from the intended
//! time: a stall of the server shows up in every message that it held up (no coordinated omission).
//! In the closed loop each user keeps a window of messages in flight; it measures capacity, and its
//! latencies are those of a saturated server.

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
    rate_per_s: u32,
    phase_ns: u64,
    total: u64,
    next: u64,
    order: Vec<u32>,
    random: Mixer,
}

impl OpenLoop {
    /// `rate_per_s` messages a second of all `users` (at least 1) together, until `total` are sent.
    /// `phase_ns` shifts all of them, so that the plans of several threads interleave.
    pub fn new(users: u32, rate_per_s: u32, phase_ns: u64, total: u64, seed: u64) -> OpenLoop {
        assert!(users > 0 && rate_per_s > 0, "the command line excludes zero");
        let order = (0..users).collect();
        let mut plan =
            OpenLoop { rate_per_s, phase_ns, total, next: 0, order, random: Mixer(seed) };
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
        let offset = u128::from(index) * NANOS_PER_S / u128::from(self.rate_per_s);
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

    fn drain(plan: &mut OpenLoop, now_ns: u64) -> Vec<Intended> {
        std::iter::from_fn(|| plan.due(now_ns)).collect()
    }

    #[test]
    fn a_late_plan_skips_nothing() {
        let mut prompt = OpenLoop::new(10, 1_000, 0, 5_000, 7);
        let mut expected = Vec::new();
        for step in 0..5_001 {
            expected.extend(drain(&mut prompt, step * 1_000_000));
        }
        assert_eq!(expected.len(), 5_000);
        let mut late = OpenLoop::new(10, 1_000, 0, 5_000, 7);
        let mut got = drain(&mut late, 3_000_000);
        got.extend(drain(&mut late, 4_200_000_000));
        got.extend(drain(&mut late, u64::MAX));
        assert_eq!(got, expected, "the same sends with the same intended times");
        assert_eq!(late.next_at_ns(), None);
    }

    #[test]
    fn sends_are_evenly_spaced_and_never_early() {
        let mut plan = OpenLoop::new(3, 3_000, 50, 9_000, 1);
        assert_eq!(plan.next_at_ns(), Some(50));
        assert_eq!(plan.due(49), None);
        let sends = drain(&mut plan, u64::MAX);
        for (index, send) in sends.iter().enumerate() {
            assert_eq!(send.at_ns, 50 + index as u64 * 1_000_000_000 / 3_000);
        }
    }

    #[test]
    fn each_user_sends_once_per_round_in_an_order_of_the_seed() {
        let sends = |seed| drain(&mut OpenLoop::new(50, 100, 0, 500, seed), u64::MAX);
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
        let mut plan = OpenLoop::new(2, 10, 0, 100, 1);
        assert!(plan.due(0).is_some());
        plan.stop();
        assert_eq!((plan.due(u64::MAX), plan.next_at_ns()), (None, None));
    }
}
