//! How often somebody may try: token buckets in memory, bounded in number.
//!
//! Two generations of buckets are kept. When the younger one is full it becomes the older one,
//! whose buckets move back when they are used; what falls out starts afresh, full. A flood of ever
//! new keys can so forget a bucket, but has to spend more attempts of its own for that than it
//! wins.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

/// How many attempts: `burst` at once, `per_hour` more each hour.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    pub burst: u32,
    pub per_hour: u32,
}

/// The buckets of all keys of one kind.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    rate: Rate,
    keys_max: usize,
    kept: Mutex<Generations<K>>,
}

#[derive(Debug)]
struct Generations<K> {
    young: HashMap<K, Bucket>,
    old: HashMap<K, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at_ms: u64,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    pub(super) fn new(rate: Rate, keys_max: usize) -> Buckets<K> {
        let kept = Generations { young: HashMap::new(), old: HashMap::new() };
        Buckets { rate, keys_max: keys_max.max(1), kept: Mutex::new(kept) }
    }

    /// Takes one attempt, or says in how many milliseconds there is one.
    pub(super) fn take(&self, key: &K, now_ms: u64) -> Result<(), u64> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Rate { burst, per_hour } = self.rate;
        let per_ms = f64::from(per_hour) / 3_600_000.0;
        let bucket = kept.bucket(key, self.keys_max, f64::from(burst), now_ms);
        let refill = now_ms.saturating_sub(bucket.at_ms) as f64 * per_ms;
        bucket.at_ms = bucket.at_ms.max(now_ms);
        bucket.tokens = (bucket.tokens + refill).min(f64::from(burst));
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(((1.0 - bucket.tokens) / per_ms).ceil().clamp(1.0, 86_400_000.0) as u64)
    }

    /// Gives an attempt back that was no failure.
    pub(super) fn give_back(&self, key: &K) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = kept.young.get_mut(key) {
            bucket.tokens = (bucket.tokens + 1.0).min(f64::from(self.rate.burst));
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.young.len() + kept.old.len()
    }
}

impl<K: Eq + Hash + Clone> Generations<K> {
    fn bucket(&mut self, key: &K, keys_max: usize, full: f64, now_ms: u64) -> &mut Bucket {
        let old = self.old.remove(key);
        if !self.young.contains_key(key) && self.young.len() >= keys_max {
            self.old = std::mem::take(&mut self.young);
        }
        let fresh = old.unwrap_or(Bucket { tokens: full, at_ms: now_ms });
        self.young.entry(key.clone()).or_insert(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 3, per_hour: 3_600 };

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let buckets = Buckets::new(RATE, 10);
        for _ in 0..3 {
            assert_eq!(buckets.take(&1, 0), Ok(()));
        }
        assert_eq!(buckets.take(&1, 0), Err(1_000));
        assert_eq!(buckets.take(&2, 0), Ok(()), "others have their own");
        assert_eq!(buckets.take(&1, 1_000), Ok(()));
        assert_eq!(buckets.take(&1, 500), Err(1_000), "a clock that went back gives nothing");
        buckets.give_back(&1);
        assert_eq!(buckets.take(&1, 1_000), Ok(()));
    }

    #[test]
    fn memory_is_bounded_and_a_used_bucket_is_not_forgotten() {
        let buckets = Buckets::new(RATE, 100);
        for _ in 0..3 {
            assert_eq!(buckets.take(&0, 0), Ok(()));
        }
        for key in 1..10_000 {
            let _ = buckets.take(&key, 0);
            if key % 50 == 0 {
                assert!(buckets.take(&0, 0).is_err(), "forgotten after {key} others");
            }
            assert!(buckets.len() <= 200);
        }
    }
}
