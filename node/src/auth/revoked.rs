//! Log-ins that have ended while their access tokens are still about.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// All tokens that come from one log-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Family(pub [u8; 16]);

/// Most families that are remembered.
const FAMILIES_MAX: usize = 262_144;

/// The families whose tokens are refused. A family need only be here while a token of it could
/// still be good: access tokens live for minutes.
#[derive(Debug, Default)]
pub struct Revocations {
    /// Families with the Unix second at which the last of their tokens has expired.
    families: RwLock<HashMap<Family, u64>>,
    /// Tokens of any family that were made before this Unix second are refused.
    all_before_s: AtomicU64,
}

impl Revocations {
    /// Refuses the tokens of a family, the last of which expires at Unix time `until_s`. If there
    /// are too many families, all tokens made up to now are refused instead: everybody exchanges
    /// theirs once, and nothing that was revoked is good.
    pub fn revoke(&self, family: Family, until_s: u64, unix_s: u64) {
        let mut families = self.families.write().unwrap_or_else(PoisonError::into_inner);
        if families.len() >= FAMILIES_MAX && !families.contains_key(&family) {
            families.retain(|_, until_s| *until_s > unix_s);
            if families.len() >= FAMILIES_MAX {
                self.all_before_s.fetch_max(unix_s.saturating_add(1), Ordering::Relaxed);
                families.clear();
            }
        }
        families.insert(family, until_s);
    }

    /// Whether the tokens of a family are refused, if they were made at Unix time `issued_at_s`.
    pub fn holds(&self, family: Family, issued_at_s: u64) -> bool {
        let families = self.families.read().unwrap_or_else(PoisonError::into_inner);
        families.contains_key(&family) || issued_at_s < self.all_before_s.load(Ordering::Relaxed)
    }

    /// Forgets the families whose tokens have expired.
    pub fn forget(&self, unix_s: u64) {
        let mut families = self.families.write().unwrap_or_else(PoisonError::into_inner);
        families.retain(|_, until_s| *until_s > unix_s);
    }

    /// How many families are remembered.
    pub fn len(&self) -> usize {
        self.families.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(n: usize) -> Family {
        Family((n as u128).to_be_bytes())
    }

    #[test]
    fn a_family_is_refused_until_its_tokens_have_expired() {
        let revocations = Revocations::default();
        revocations.revoke(family(1), 100, 40);
        assert!(revocations.holds(family(1), 39) && !revocations.holds(family(2), 39));
        revocations.forget(99);
        assert!(revocations.holds(family(1), 39));
        revocations.forget(100);
        assert!(revocations.is_empty());
    }

    #[test]
    fn too_many_families_end_all_tokens_rather_than_none() {
        let revocations = Revocations::default();
        for n in 0..=FAMILIES_MAX {
            revocations.revoke(family(n), 100, 40);
        }
        assert!(revocations.len() <= FAMILIES_MAX);
        for n in [0, 1, FAMILIES_MAX, FAMILIES_MAX + 5] {
            assert!(revocations.holds(family(n), 40), "{n}");
        }
        assert!(!revocations.holds(family(0), 41));
    }
}
