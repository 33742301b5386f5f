//! Which id a user or channel has, and which shard owns it.

use chatring_wire::id::VSHARD_BITS;
use chatring_wire::{Cid, Uid, Vshard};
use ring::hmac;

use crate::effect::ShardId;

/// How many ids a user may have; the first one that is free or its own is taken.
pub const CANDIDATES: u8 = 4;

/// The deployment's key, from which ids are derived: no lookup is needed to name a user, and nobody
/// outside can search for a name that hits another's id.
#[derive(Clone)]
pub struct DeploymentKey(hmac::Key);

impl DeploymentKey {
    /// Bytes of the secret.
    pub const BYTES: usize = 32;

    /// From the stored secret.
    pub fn new(secret: &[u8; Self::BYTES]) -> DeploymentKey {
        DeploymentKey(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The candidate id number `candidate` of a user.
    pub fn uid(&self, issuer: &str, subject: &str, candidate: u8) -> Uid {
        let digest = self.digest(&[issuer.as_bytes(), &[0], subject.as_bytes(), &[candidate]]);
        Uid(digest)
    }

    /// The candidate id number `candidate` of the direct channel of two users, in either order. It
    /// lies in the vshard of one of the two, picked by the hash of the pair.
    pub fn direct_cid(&self, a: Uid, b: Uid, candidate: u8) -> Cid {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        let parts: [&[u8]; 4] =
            [b"direct\0", &low.0.to_be_bytes(), &high.0.to_be_bytes(), &[candidate]];
        let digest = self.digest(&parts);
        let home = if digest & 1 == 0 { low } else { high };
        let rest = u64::MAX >> VSHARD_BITS;
        Cid((home.0 & !rest) | (digest >> 1 & rest))
    }

    fn digest(&self, parts: &[&[u8]]) -> u64 {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(part);
        }
        let tag = context.sign();
        u64::from_be_bytes(tag.as_ref()[..8].try_into().expect("a tag has 32 bytes"))
    }
}

impl std::fmt::Debug for DeploymentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeploymentKey(…)")
    }
}

/// The shard of a node that owns a vshard, out of `shards` (at least 1).
pub const fn shard_of(vshard: Vshard, shards: u16) -> ShardId {
    ShardId(vshard.0 % shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direct_channel_lies_with_one_of_its_users_whatever_the_order() {
        let key = DeploymentKey::new(&[7; 32]);
        let (mut low, mut high) = (0, 0);
        for n in 0..200 {
            let a = key.uid("", &format!("a{n}"), 0);
            let b = key.uid("", &format!("b{n}"), 0);
            let cid = key.direct_cid(a, b, 0);
            assert_eq!(cid, key.direct_cid(b, a, 0));
            assert_ne!(cid, key.direct_cid(a, b, 1));
            match cid.vshard() {
                v if v == a.min(b).vshard() => low += 1,
                v if v == a.max(b).vshard() => high += 1,
                v => panic!("{v:?} is neither user's"),
            }
        }
        assert!(low > 50 && high > 50, "both users' vshards are used: {low}, {high}");
    }

    #[test]
    fn issuer_and_subject_do_not_run_into_each_other() {
        let key = DeploymentKey::new(&[7; 32]);
        assert_ne!(key.uid("ab", "c", 0), key.uid("a", "bc", 0));
        assert_ne!(key.uid("a", "b", 0), key.uid("a", "b", 1));
    }
}
