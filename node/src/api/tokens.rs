//! Whose request it is: verifies a token once, and remembers it while it is good.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chatring_core::effect::Identity;
use chatring_wire::{ErrorClass, ErrorCode};
use ring::digest::{SHA256, digest};

use super::bucket::{Buckets, Rate};
use super::limits::{BAD_TOKENS_NETWORKS_MAX, TOKENS_KEPT_MAX};
use super::problem::Problem;
use crate::auth::{Family, TokenVerifier};
use crate::gateway::network_of;

/// Verifies tokens. A signature costs more than everything else that a short request does, and a
/// client sends the same token with each of its requests.
///
/// A network from which too many bad tokens come is held up, but only with tokens that are not
/// known to be good: whoever was there before, or has just logged in, does not notice.
pub(super) struct Tokens {
    verifier: Arc<dyn TokenVerifier>,
    kept: Mutex<Kept>,
    bad: Buckets<IpAddr>,
    limited: AtomicU64,
}

/// Two generations: when the younger one is full it becomes the older one, whose tokens move back
/// when they are used.
#[derive(Default)]
struct Kept {
    young: HashMap<Digest, Owner>,
    old: HashMap<Digest, Owner>,
}

/// Whose a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// The user.
    pub identity: Arc<Identity>,
    /// The log-in that the token came from, if it is one of an account's.
    pub family: Option<Family>,
}

/// SHA-256 of a token. Nothing here can be taken for a token if memory is ever read by others.
type Digest = [u8; 32];

impl Tokens {
    /// `bad` is how many bad tokens may come from a network.
    pub(super) fn new(verifier: Arc<dyn TokenVerifier>, bad: Rate) -> Tokens {
        let bad = Buckets::new(bad, BAD_TOKENS_NETWORKS_MAX);
        Tokens { verifier, kept: Mutex::default(), bad, limited: AtomicU64::new(0) }
    }

    /// Whose token this is, that came from the address `from`, at Unix time `unix_ms`.
    ///
    /// # Errors
    /// `InvalidToken`, `ExpiredToken`, `RevokedToken` and whatever else the verifier says; `Busy`
    /// if too many bad ones have come from there.
    pub(super) fn verify(&self, token: &str, from: IpAddr, unix_ms: u64) -> Result<Owner, Problem> {
        let unix_s = unix_ms / 1_000;
        let key = digest_of(token);
        let kept = self.lock().get(&key);
        // At the end of its time the verifier decides, which knows the leeway.
        if let Some(owner) = kept.filter(|owner| owner.identity.expires_at_s > unix_s) {
            self.check(&owner, unix_s)?;
            return Ok(owner);
        }
        let network = network_of(from);
        self.bad.take(&network, unix_ms).map_err(|retry_after_ms| {
            self.limited.fetch_add(1, Ordering::Relaxed);
            let busy = Problem::new(ErrorCode::Busy);
            busy.detail("too many bad tokens came from this network").retry_after_ms(retry_after_ms)
        })?;
        let verified = self.verify_anew(token, unix_s);
        // Where keys cannot be had for a while nobody's token is to blame.
        if !matches!(&verified, Err(code) if code.class() == ErrorClass::Auth) {
            self.bad.give_back(&network);
        }
        let owner = verified?;
        self.lock().put(key, owner.clone());
        Ok(owner)
    }

    /// Remembers a token that was just made, so that its first use is not held up.
    pub(super) fn remember(&self, token: &str, unix_s: u64) {
        if let Ok(owner) = self.verify_anew(token, unix_s) {
            self.lock().put(digest_of(token), owner);
        }
    }

    /// Requests refused because too many bad tokens had come from their network.
    pub(super) fn limited(&self) -> u64 {
        self.limited.load(Ordering::Relaxed)
    }

    fn verify_anew(&self, token: &str, unix_s: u64) -> Result<Owner, ErrorCode> {
        let verified = self.verifier.verify_whole(token, unix_s)?;
        Ok(Owner { identity: Arc::new(verified.identity), family: verified.family })
    }

    /// Whether a token that was good is so still.
    ///
    /// # Errors
    /// `ExpiredToken` (here without leeway), `RevokedToken`.
    pub(super) fn check(&self, owner: &Owner, unix_s: u64) -> Result<(), ErrorCode> {
        match owner.identity.expires_at_s <= unix_s {
            true => Err(ErrorCode::ExpiredToken),
            false if self.has_ended(owner) => Err(ErrorCode::RevokedToken),
            false => Ok(()),
        }
    }

    /// Whether the log-in that a token came from has ended.
    pub(super) fn has_ended(&self, owner: &Owner) -> bool {
        let issued_at_s = owner.identity.issued_at_s;
        owner.family.is_some_and(|family| self.verifier.has_ended(family, issued_at_s))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest_of(token: &str) -> Digest {
    digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("32 bytes")
}

impl Kept {
    fn get(&mut self, key: &Digest) -> Option<Owner> {
        if let Some(owner) = self.young.get(key) {
            return Some(owner.clone());
        }
        let owner = self.old.remove(key)?;
        self.put(*key, owner.clone());
        Some(owner)
    }

    fn put(&mut self, key: Digest, owner: Owner) {
        if self.young.len() >= TOKENS_KEPT_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Verifier;
    use crate::config::Auth;

    /// Takes every token until Unix time 100, and counts.
    #[derive(Default)]
    struct Counting(AtomicU64);

    impl TokenVerifier for Counting {
        fn verify(&self, token: &str, unix_s: u64) -> Result<Identity, ErrorCode> {
            self.0.fetch_add(1, Ordering::Relaxed);
            match token {
                "bad" => Err(ErrorCode::InvalidToken),
                "keyless" => Err(ErrorCode::Unavailable),
                _ if unix_s >= 100 => Err(ErrorCode::ExpiredToken),
                subject => Ok(Identity {
                    issuer: String::new(),
                    subject: subject.to_owned(),
                    issued_at_s: 0,
                    expires_at_s: 100,
                    installation: None,
                }),
            }
        }
    }

    const RATE: Rate = Rate { burst: 3, per_hour: 3_600 };

    fn verify_at(tokens: &Tokens, token: &str, from: &str, ms: u64) -> Result<Owner, ErrorCode> {
        let from = from.parse().expect("an address");
        tokens.verify(token, from, ms).map_err(|problem| problem.code())
    }

    fn verify(tokens: &Tokens, token: &str, unix_s: u64) -> Result<Owner, ErrorCode> {
        verify_at(tokens, token, "127.0.0.1", unix_s * 1_000)
    }

    #[test]
    fn bad_tokens_hold_up_their_network_alone_and_no_known_token() {
        let tokens = Tokens::new(Arc::new(Counting::default()), RATE);
        for _ in 0..5 {
            let keyless = verify_at(&tokens, "keyless", "2001:db8::2", 1_000);
            assert_eq!(keyless, Err(ErrorCode::Unavailable), "that is not its fault");
        }
        let (here, there) = ("2001:db8::1", "2001:db8:0:1::1");
        verify_at(&tokens, "alice", here, 1_000).expect("good");
        for _ in 0..3 {
            let bad = verify_at(&tokens, "bad", "2001:db8::2", 1_000);
            assert_eq!(bad, Err(ErrorCode::InvalidToken));
        }
        let late = tokens.verify("bad", here.parse().expect("an address"), 1_000);
        let late = late.expect_err("too many");
        assert_eq!(
            late,
            Problem::new(ErrorCode::Busy)
                .detail("too many bad tokens came from this network")
                .retry_after_ms(1_000)
        );
        assert_eq!(verify_at(&tokens, "bob", here, 1_000), Err(ErrorCode::Busy));
        tokens.remember("carol", 1);
        for known in ["alice", "carol"] {
            verify_at(&tokens, known, here, 1_000).expect("known before");
        }
        verify_at(&tokens, "bob", there, 1_000).expect("another network");
        for _ in 0..5 {
            verify_at(&tokens, "dave", here, 2_000).expect("a second later; good ones are free");
        }
        assert_eq!(tokens.limited(), 2);
    }

    #[test]
    fn a_token_is_verified_once_and_never_outlives_its_time() {
        let verifier = Arc::new(Counting::default());
        let tokens = Tokens::new(Arc::clone(&verifier) as Arc<dyn TokenVerifier>, RATE);
        for at in [1, 50, 99] {
            assert_eq!(verify(&tokens, "alice", at).expect("good").identity.subject, "alice");
        }
        assert_eq!(verifier.0.load(Ordering::Relaxed), 1);
        assert_eq!(verify(&tokens, "alice", 100), Err(ErrorCode::ExpiredToken));
        for _ in 0..2 {
            assert_eq!(verify(&tokens, "bad", 1), Err(ErrorCode::InvalidToken));
        }
        assert_eq!(verifier.0.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_flood_of_tokens_is_bounded_and_those_in_use_stay() {
        let verifier = Arc::new(Counting::default());
        let tokens = Tokens::new(Arc::clone(&verifier) as Arc<dyn TokenVerifier>, RATE);
        for n in 0..3 * TOKENS_KEPT_MAX {
            verify(&tokens, &n.to_string(), 1).expect("good");
            if n % 1_000 == 0 {
                verify(&tokens, "alice", 1).expect("good");
            }
        }
        let asked = verifier.0.load(Ordering::Relaxed);
        assert_eq!(asked, 3 * TOKENS_KEPT_MAX as u64 + 1);
        let kept = tokens.lock();
        assert!(kept.young.len() <= TOKENS_KEPT_MAX && kept.old.len() <= TOKENS_KEPT_MAX);
    }

    #[test]
    fn a_kept_token_ends_with_its_log_in() {
        let (key, _) = chatring_client::token::TokenKey::generate().expect("random bytes");
        let verifier = Verifier::new(&Auth::default(), Some(&key)).expect("no other keys");
        let revocations = Arc::clone(verifier.revocations());
        let tokens = Tokens::new(Arc::new(verifier), RATE);
        let (session, installation) = ("0b".repeat(16), "c0".repeat(16));
        let token = key.mint_bound("alice", 10, 60, &session, &installation);
        let family = Family([0x0b; 16]);
        assert_eq!(verify(&tokens, &token, 10).expect("good").family, Some(family));
        revocations.revoke(family, 70, 10);
        assert_eq!(verify(&tokens, &token, 10), Err(ErrorCode::RevokedToken));
    }
}
