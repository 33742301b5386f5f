//! Whose request it is: verifies a token once, and remembers it while it is good.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chatring_core::effect::Identity;
use chatring_wire::ErrorCode;
use ring::digest::{SHA256, digest};

use super::limits::TOKENS_KEPT_MAX;
use crate::auth::{Family, TokenVerifier};

/// Verifies tokens. A signature costs more than everything else that a short request does, and a
/// client sends the same token with each of its requests.
pub(super) struct Tokens {
    verifier: Arc<dyn TokenVerifier>,
    kept: Mutex<Kept>,
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
    pub(super) fn new(verifier: Arc<dyn TokenVerifier>) -> Tokens {
        Tokens { verifier, kept: Mutex::default() }
    }

    /// Whose token this is at Unix time `unix_s`.
    ///
    /// # Errors
    /// `InvalidToken`, `ExpiredToken`, `RevokedToken` and whatever else the verifier says.
    pub(super) fn verify(&self, token: &str, unix_s: u64) -> Result<Owner, ErrorCode> {
        let key: Digest = digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("32 bytes");
        let kept = self.lock().get(&key);
        // At the end of its time the verifier decides, which knows the leeway.
        if let Some(owner) = kept.filter(|owner| owner.identity.expires_at_s > unix_s) {
            return self.check(&owner, unix_s).map(|()| owner);
        }
        let verified = self.verifier.verify_whole(token, unix_s)?;
        let owner = Owner { identity: Arc::new(verified.identity), family: verified.family };
        self.lock().put(key, owner.clone());
        Ok(owner)
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
    use std::sync::atomic::{AtomicU64, Ordering};

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

    #[test]
    fn a_token_is_verified_once_and_never_outlives_its_time() {
        let verifier = Arc::new(Counting::default());
        let tokens = Tokens::new(Arc::clone(&verifier) as Arc<dyn TokenVerifier>);
        for at in [1, 50, 99] {
            assert_eq!(tokens.verify("alice", at).expect("good").identity.subject, "alice");
        }
        assert_eq!(verifier.0.load(Ordering::Relaxed), 1);
        assert_eq!(tokens.verify("alice", 100), Err(ErrorCode::ExpiredToken));
        for _ in 0..2 {
            assert_eq!(tokens.verify("bad", 1), Err(ErrorCode::InvalidToken));
        }
        assert_eq!(verifier.0.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_flood_of_tokens_is_bounded_and_those_in_use_stay() {
        let verifier = Arc::new(Counting::default());
        let tokens = Tokens::new(Arc::clone(&verifier) as Arc<dyn TokenVerifier>);
        for n in 0..3 * TOKENS_KEPT_MAX {
            tokens.verify(&n.to_string(), 1).expect("good");
            if n % 1_000 == 0 {
                tokens.verify("alice", 1).expect("good");
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
        let tokens = Tokens::new(Arc::new(verifier));
        let (session, installation) = ("0b".repeat(16), "c0".repeat(16));
        let token = key.mint_bound("alice", 10, 60, &session, &installation);
        let family = Family([0x0b; 16]);
        assert_eq!(tokens.verify(&token, 10).expect("good").family, Some(family));
        revocations.revoke(family, 70, 10);
        assert_eq!(tokens.verify(&token, 10), Err(ErrorCode::RevokedToken));
    }
}
