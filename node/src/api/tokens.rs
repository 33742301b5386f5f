//! Whose request it is: verifies a token once, and remembers it while it is good.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chatring_core::effect::Identity;
use chatring_wire::ErrorCode;
use ring::digest::{SHA256, digest};

use super::limits::TOKENS_KEPT_MAX;
use crate::auth::TokenVerifier;

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
    young: HashMap<Digest, Arc<Identity>>,
    old: HashMap<Digest, Arc<Identity>>,
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
    /// `InvalidToken`, `ExpiredToken` and whatever else the verifier says.
    pub(super) fn verify(&self, token: &str, unix_s: u64) -> Result<Arc<Identity>, ErrorCode> {
        let key: Digest = digest(&SHA256, token.as_bytes()).as_ref().try_into().expect("32 bytes");
        let kept = self.lock().get(&key);
        // At the end of its time the verifier decides, which knows the leeway.
        if let Some(identity) = kept.filter(|identity| identity.expires_at_s > unix_s) {
            return Ok(identity);
        }
        let identity = Arc::new(self.verifier.verify(token, unix_s)?);
        self.lock().put(key, Arc::clone(&identity));
        Ok(identity)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn get(&mut self, key: &Digest) -> Option<Arc<Identity>> {
        if let Some(identity) = self.young.get(key) {
            return Some(Arc::clone(identity));
        }
        let identity = self.old.remove(key)?;
        self.put(*key, Arc::clone(&identity));
        Some(identity)
    }

    fn put(&mut self, key: Digest, identity: Arc<Identity>) {
        if self.young.len() >= TOKENS_KEPT_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, identity);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

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
            assert_eq!(tokens.verify("alice", at).expect("good").subject, "alice");
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
}
