//! Which rate to try next: doubled until one does not hold, then halfway between the highest that
//! held and the lowest that did not.

/// A search for the highest rate that holds.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    from_per_s: u32,
    to_per_s: u32,
    precision_percent: u32,
    held: Option<u32>,
    failed: Option<u32>,
}

impl Search {
    /// Begins with `from_per_s`, never goes above `to_per_s`, and ends when the highest that held
    /// and the lowest that did not are within `precision_percent` of each other.
    pub fn new(from_per_s: u32, to_per_s: u32, precision_percent: u32) -> Search {
        let from_per_s = from_per_s.min(to_per_s);
        Search { from_per_s, to_per_s, precision_percent, held: None, failed: None }
    }

    /// The rate to try; `None` at the end.
    pub fn next(&self) -> Option<u32> {
        match (self.held, self.failed) {
            (None, None) => Some(self.from_per_s),
            (Some(held), None) => {
                let next = held.saturating_mul(2).min(self.to_per_s);
                (next > held).then_some(next)
            }
            (None, Some(failed)) => (failed > 1).then_some(failed / 2),
            (Some(held), Some(failed)) => {
                let close = u64::from(held) * u64::from(self.precision_percent) / 100;
                let apart = failed.saturating_sub(held);
                (u64::from(apart) > close.max(1)).then_some(held + apart / 2)
            }
        }
    }

    /// Whether a rate held.
    pub fn tell(&mut self, per_s: u32, is_held: bool) {
        match is_held {
            true => self.held = self.held.max(Some(per_s)),
            false => {
                self.failed = Some(self.failed.map_or(per_s, |failed| failed.min(per_s)));
            }
        }
    }

    /// The highest rate that held.
    pub fn held(&self) -> Option<u32> {
        self.held
    }

    /// The lowest rate that did not.
    pub fn failed(&self) -> Option<u32> {
        self.failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(knee: u32, from: u32, to: u32) -> (Option<u32>, u32) {
        let mut search = Search::new(from, to, 5);
        let mut steps = 0;
        while let Some(rate) = search.next() {
            assert!((1..=to).contains(&rate));
            search.tell(rate, rate <= knee);
            steps += 1;
            assert!(steps < 40, "it comes to an end");
        }
        (search.held(), steps)
    }

    #[test]
    fn the_knee_is_found_from_below_and_from_above() {
        for knee in [10, 999, 1_000, 1_001, 17_345, 999_999] {
            for from in [1, 1_000, 50_000] {
                let (held, _steps) = find(knee, from, 1_000_000);
                let held = held.unwrap();
                assert!(held <= knee && f64::from(held) >= f64::from(knee) / 1.05 - 2.0, "{held}");
            }
        }
        let (_, steps) = find(17_345, 1_000, 1_000_000);
        assert!(steps <= 12, "{steps}");
    }

    #[test]
    fn it_ends_at_the_borders() {
        assert_eq!(find(1_000_000, 1_000, 5_000).0, Some(5_000));
        assert_eq!(find(0, 1_000, 5_000).0, None);
    }
}
