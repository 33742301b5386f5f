//! Finds stalls: stretches of time in which answers came that were older than a bound.
//!
//! ```text
//!  sent  a    b   c           d
//!        |────|───|──▶ a      |───▶ d
//!             |───|───▶ b
//!                 |───▶ c
//!        [── one stall ──]    [ another ]
//! ```

/// Most stalls that are kept apart; those after them are counted.
pub const STALLS_MAX: usize = 10_000;

/// The stalls of a run, or of one thread of it. Times are nanoseconds from a common origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// What is older than this is slow.
    bound_ns: u64,
    /// In the order of time; no two touch.
    list: Vec<Stall>,
    /// Slow messages for which there was no room.
    left_out: u64,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// When the first slow message was intended.
    pub begin_ns: u64,
    /// When the last slow one was answered.
    pub end_ns: u64,
    /// How many were slow.
    pub messages: u64,
    /// The slowest one's time.
    pub longest_ns: u64,
    /// When that one was intended.
    pub longest_begin_ns: u64,
}

impl Stalls {
    /// None yet.
    pub fn new(bound_ns: u64) -> Stalls {
        Stalls { bound_ns, list: Vec::new(), left_out: 0 }
    }

    /// A message was intended and answered. Answers come in the order of time.
    pub fn answered(&mut self, intended_ns: u64, at_ns: u64) {
        let took_ns = at_ns.saturating_sub(intended_ns);
        if took_ns > self.bound_ns {
            self.add(Stall {
                begin_ns: intended_ns,
                end_ns: at_ns,
                messages: 1,
                longest_ns: took_ns,
                longest_begin_ns: intended_ns,
            });
        }
    }

    /// Adds those of another thread.
    pub fn merge(&mut self, other: Stalls) {
        let mut all = std::mem::take(&mut self.list);
        all.extend(other.list);
        all.sort_unstable_by_key(|stall| stall.end_ns);
        all.into_iter().for_each(|stall| self.add(stall));
        self.bound_ns = self.bound_ns.max(other.bound_ns);
        self.left_out += other.left_out;
    }

    /// In the order of time.
    pub fn list(&self) -> &[Stall] {
        &self.list
    }

    /// Slow messages for which there was no room.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The longest answer of a slow message within this time.
    pub fn longest_ns_within(&self, begin_ns: u64, end_ns: u64) -> u64 {
        let touches = |stall: &&Stall| stall.begin_ns <= end_ns && begin_ns <= stall.end_ns;
        self.list.iter().filter(touches).map(|stall| stall.longest_ns).max().unwrap_or(0)
    }

    /// It ends last of all, and may reach back over several.
    fn add(&mut self, mut stall: Stall) {
        while let Some(last) = self.list.last()
            && stall.begin_ns <= last.end_ns
        {
            stall.begin_ns = stall.begin_ns.min(last.begin_ns);
            stall.end_ns = stall.end_ns.max(last.end_ns);
            stall.messages += last.messages;
            if last.longest_ns > stall.longest_ns {
                stall.longest_ns = last.longest_ns;
                stall.longest_begin_ns = last.longest_begin_ns;
            }
            self.list.pop();
        }
        match self.list.len() < STALLS_MAX {
            true => self.list.push(stall),
            false => self.left_out += stall.messages,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(answers: &[(u64, u64)]) -> Stalls {
        let mut stalls = Stalls::new(50);
        answers.iter().for_each(|(intended, at)| stalls.answered(*intended, *at));
        stalls
    }

    fn brief(stalls: &Stalls) -> Vec<(u64, u64, u64, u64)> {
        let brief = |s: &Stall| (s.begin_ns, s.end_ns, s.messages, s.longest_ns);
        stalls.list().iter().map(brief).collect()
    }

    #[test]
    fn only_answers_above_the_bound_are_stalls() {
        assert_eq!(brief(&found(&[(0, 50), (100, 149)])), []);
        assert_eq!(brief(&found(&[(0, 51)])), [(0, 51, 1, 51)]);
    }

    #[test]
    fn slow_answers_that_overlap_are_one_stall_and_others_are_apart() {
        let stalls = found(&[(0, 80), (40, 100), (90, 95), (200, 260)]);
        assert_eq!(brief(&stalls), [(0, 100, 2, 80), (200, 260, 1, 60)]);
        assert_eq!(stalls.list()[0].longest_begin_ns, 0);
    }

    #[test]
    fn one_that_reaches_back_unites_those_before() {
        let stalls = found(&[(0, 60), (100, 160), (50, 170)]);
        assert_eq!(brief(&stalls), [(0, 170, 3, 120)]);
        assert_eq!(stalls.list()[0].longest_begin_ns, 50);
    }

    #[test]
    fn threads_are_united_by_time() {
        let mut stalls = found(&[(0, 60), (500, 560)]);
        stalls.merge(found(&[(30, 90), (300, 360)]));
        assert_eq!(brief(&stalls), [(0, 90, 2, 60), (300, 360, 1, 60), (500, 560, 1, 60)]);
        assert_eq!(stalls.longest_ns_within(360, 370), 60);
        assert_eq!(stalls.longest_ns_within(361, 499), 0);
    }

    #[test]
    fn there_is_a_bound_to_how_many_are_kept() {
        let mut stalls = Stalls::new(0);
        (0..STALLS_MAX as u64 + 5).for_each(|number| stalls.answered(number * 10, number * 10 + 1));
        assert_eq!((stalls.list().len(), stalls.left_out()), (STALLS_MAX, 5));
    }
}
