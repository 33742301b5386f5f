//! Keys of an issuer that change by themselves: a JSON Web Key Set (RFC 7517), in a file or a URL.
//!
//! ```text
//!  token with an unknown kid ─▶ asks for the set, unless it is fresh ─▶ "not now" or "invalid"
//!  fetcher (one per issuer, never more often than its pace) ─▶ parse ─▶ keys, replaced at once
//!                                                            └ fails: the keys before stay
//! ```

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::{Key, Parsed};
use crate::config::KeyAlgorithm;

/// Largest set that is read.
pub const JWKS_BYTES_MAX: usize = 256 * 1024;
/// Most keys of a set. One that a token does not choose by its `kid` is not tried, so they cost
/// memory alone.
const JWKS_KEYS_MAX: usize = 64;
/// Smallest and largest modulus of an RSA key.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// The set of an issuer.
pub struct KeySet {
    issuer: String,
    source: Source,
    pace: Pace,
    allowed: Vec<Algorithm>,
    keys: RwLock<Arc<[Key]>>,
    /// Unix second at which the last fetch was over; 0 before.
    fetched_s: AtomicU64,
    ask: flume::Sender<()>,
    asked: flume::Receiver<()>,
    fetches: AtomicU64,
    failures: AtomicU64,
}

/// How often a set is fetched.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Without being asked for.
    pub refresh: Duration,
    /// Least time between two fetches, whatever tokens ask for; at least a second.
    pub pause: Duration,
}

/// Where a set is.
#[derive(Clone, Debug)]
pub enum Source {
    /// In a file.
    File(PathBuf),
    /// At an HTTP URL.
    Plain(String),
    /// At an HTTPS URL, whose server is known so.
    Url(String, Arc<ClientConfig>),
}

/// Why a set is of no use.
#[derive(Debug, Error)]
pub enum JwksError {
    /// It cannot be had.
    #[error("{0}")]
    Fetch(String),
    /// It is too large.
    #[error("larger than {JWKS_BYTES_MAX} bytes")]
    TooLarge,
    /// It is no set.
    #[error("is no JSON Web Key Set: {0}")]
    Format(#[from] serde_json::Error),
    /// It has too many keys.
    #[error("has more than {JWKS_KEYS_MAX} keys")]
    TooMany,
    /// None of its keys can be used.
    #[error("has no key that is allowed here")]
    Empty,
}

/// What a set says of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Good,
    Bad,
    /// Its key may be in a newer set, which is asked for.
    NotYet,
}

impl KeySet {
    pub(super) fn new(
        issuer: &str,
        source: Source,
        algorithms: &[KeyAlgorithm],
        pace: Pace,
    ) -> KeySet {
        let allowed = algorithms.iter().filter_map(|name| match name {
            // A secret is nothing that a set may tell.
            KeyAlgorithm::HS256 => None,
            KeyAlgorithm::RS256 => Some(Algorithm::RS256),
            KeyAlgorithm::ES256 => Some(Algorithm::ES256),
            KeyAlgorithm::EdDSA => Some(Algorithm::EdDSA),
        });
        let (ask, asked) = flume::bounded(1);
        KeySet {
            issuer: issuer.to_owned(),
            source,
            pace,
            allowed: allowed.collect(),
            keys: RwLock::new(Arc::new([])),
            fetched_s: AtomicU64::new(0),
            ask,
            asked,
            fetches: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// Whose it is.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Where it is.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// How often it is fetched.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Has a word in it as soon as a token needs a newer set.
    pub fn asked(&self) -> &flume::Receiver<()> {
        &self.asked
    }

    /// Takes what a fetch that ended at Unix time `unix_s` has brought. If that is of no use, the
    /// keys before stay.
    ///
    /// # Errors
    /// It was of no use.
    pub fn take(
        &self,
        fetched: Result<Vec<u8>, JwksError>,
        unix_s: u64,
    ) -> Result<usize, JwksError> {
        self.fetched_s.store(unix_s, Ordering::Relaxed);
        // Whoever asked up to now has been answered.
        let _ = self.asked.try_recv();
        self.fetches.fetch_add(1, Ordering::Relaxed);
        let keys = fetched.and_then(|bytes| parse(&bytes, &self.allowed));
        let keys = keys.inspect_err(|_| _ = self.failures.fetch_add(1, Ordering::Relaxed))?;
        let count = keys.len();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
        Ok(count)
    }

    /// How many keys there are, fetches there were, and how many of those failed.
    pub fn figures(&self) -> (u64, u64, u64) {
        let keys = self.keys().len() as u64;
        (keys, self.fetches.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }

    pub(super) fn says(&self, token: &Parsed<'_>, unix_s: u64) -> Said {
        let keys = self.keys();
        let mut of_algorithm = keys.iter().filter(|key| key.algorithm == token.header.alg);
        let key = match &token.header.kid {
            Some(kid) => keys.iter().find(|key| key.id.as_ref() == Some(kid)),
            // Only where there is nothing to choose from.
            None => of_algorithm.next().filter(|_| of_algorithm.next().is_none()),
        };
        match key {
            Some(key) if key.algorithm == token.header.alg && key.has_signed(token) => Said::Good,
            Some(_) => Said::Bad,
            None if token.header.kid.is_none() && !keys.is_empty() => Said::Bad,
            None if !self.allowed.contains(&token.header.alg) => Said::Bad,
            None => {
                let fetched_s = self.fetched_s.load(Ordering::Relaxed);
                if unix_s.saturating_sub(fetched_s) < self.pace.pause.as_secs() && !keys.is_empty()
                {
                    return Said::Bad;
                }
                let _ = self.ask.try_send(());
                Said::NotYet
            }
        }
    }

    fn keys(&self) -> Arc<[Key]> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// A key of a set; what it says beside this does not matter here.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// The keys of a set that can be used. Others are skipped (RFC 7517, 5).
fn parse(bytes: &[u8], allowed: &[Algorithm]) -> Result<Vec<Key>, JwksError> {
    if bytes.len() > JWKS_BYTES_MAX {
        return Err(JwksError::TooLarge);
    }
    let Set { keys } = serde_json::from_slice(bytes)?;
    if keys.len() > JWKS_KEYS_MAX {
        return Err(JwksError::TooMany);
    }
    let usable = keys.into_iter().filter_map(|key| serde_json::from_value(key).ok());
    let keys: Vec<Key> = usable.filter_map(|jwk: Jwk| of_jwk(jwk, allowed)).collect();
    match keys.is_empty() {
        true => Err(JwksError::Empty),
        false => Ok(keys),
    }
}

/// The algorithm follows from what the key is. What the key says of it can only be the same.
fn of_jwk(jwk: Jwk, allowed: &[Algorithm]) -> Option<Key> {
    let part = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
    let (algorithm, name, key) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => {
            let (n, e) = (part(&jwk.n)?, part(&jwk.e)?);
            if !RSA_BYTES.contains(&n.len()) {
                return None;
            }
            (Algorithm::RS256, "RS256", DecodingKey::from_rsa_raw_components(&n, &e))
        }
        ("EC", Some("P-256")) => {
            let point = [&[4][..], &part(&jwk.x)?, &part(&jwk.y)?].concat();
            if point.len() != 65 {
                return None;
            }
            (Algorithm::ES256, "ES256", DecodingKey::from_ec_der(&point))
        }
        ("OKP", Some("Ed25519")) => {
            let x = part(&jwk.x).filter(|x| x.len() == 32)?;
            (Algorithm::EdDSA, "EdDSA", DecodingKey::from_ed_der(&x))
        }
        _ => return None,
    };
    let says_same = jwk.alg.is_none_or(|alg| alg == name || alg == "Ed25519" && name == "EdDSA");
    let signs = jwk.usage.is_none_or(|usage| usage == "sig");
    (says_same && signs && allowed.contains(&algorithm)).then_some(Key {
        id: jwk.kid,
        algorithm,
        key,
    })
}

#[cfg(test)]
mod tests;
