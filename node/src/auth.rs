//! Whose tokens are good: JWT (RFC 7519), verified in the node without asking anybody.
//!
//! A token's issuer names the keys that may have signed it, and each key knows its one algorithm;
//! what the token's header says can only be compared with that, never chosen from.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chatring_client::tls::{RootsError, client_config};
use chatring_client::token::{
    KEY_FILE_BYTES_MAX, OWN_ISSUER, TOKEN_KEY_FILE, TokenKey, TokenKeyError,
};
use chatring_core::effect::Identity;
use chatring_wire::limits::{NAME_BYTES_MAX, TOKEN_BYTES_MAX};
use chatring_wire::{ErrorCode, InstallationId};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Number, Value};
use thiserror::Error;

pub use self::jwks::{JWKS_BYTES_MAX, JwksError, KeySet, Source};
use self::jwks::{Pace, Said};
pub use self::revoked::{Family, Revocations};
use crate::config::{self, Auth, IssuerKey, KeyAlgorithm};
use crate::metrics::{Metric, MetricValue};

mod jwks;
mod revoked;

/// Shortest secret for `HS256` (RFC 7518, 3.2: at least as long as the hash).
const SECRET_BYTES_MIN: usize = 32;

/// Tells whose a token is.
pub trait TokenVerifier: Send + Sync {
    /// Whose token this is at Unix time `unix_s`; `InvalidToken` or `ExpiredToken` if it is none.
    fn verify(&self, token: &str, unix_s: u64) -> Result<Identity, ErrorCode>;

    /// The same with the log-in that the token came from.
    fn verify_whole(&self, token: &str, unix_s: u64) -> Result<Verified, ErrorCode> {
        Ok(Verified { identity: self.verify(token, unix_s)?, family: None })
    }

    /// Whether a log-in has ended meanwhile: to be asked of every token that was verified before.
    fn has_ended(&self, _family: Family, _issued_at_s: u64) -> bool {
        false
    }
}

/// The deployment's own key and the configured issuers' keys.
pub struct Verifier {
    leeway_s: u64,
    issuers: HashMap<String, Issuer>,
    revocations: Arc<Revocations>,
}

/// A good token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Whose it is.
    pub identity: Identity,
    /// The log-in that it came from, if it is one of an account's.
    pub family: Option<Family>,
}

/// Why a key cannot be used.
#[derive(Debug, Error)]
pub enum AuthError {
    /// The deployment's own key.
    #[error("token key {}: {error}", path.display())]
    OwnKey {
        /// Its file.
        path: PathBuf,
        /// Why.
        error: TokenKeyError,
    },
    /// A configured issuer's key.
    #[error("auth.issuers: key {}: {reason}", path.display())]
    IssuerKey {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A configured issuer's key set.
    #[error("auth.issuers: jwks {place}: {error}")]
    Jwks {
        /// Where it is.
        place: String,
        /// Why.
        error: JwksError,
    },
    /// Whom to trust at the URLs of key sets.
    #[error("auth.ca: {0}")]
    Roots(#[from] RootsError),
}

impl Verifier {
    /// Reads the configured keys. `own` signs the tokens of the deployment itself, whose users have
    /// the empty issuer.
    pub fn new(auth: &Auth, own: Option<&TokenKey>) -> Result<Verifier, AuthError> {
        let mut issuers = HashMap::new();
        if let Some(own) = own {
            let key = Key {
                id: Some(own.id().to_owned()),
                algorithm: Algorithm::EdDSA,
                key: DecodingKey::from_ed_der(own.public_key()),
            };
            let issuer =
                Issuer { identity: String::new(), audience: None, keys: vec![key], set: None };
            issuers.insert(OWN_ISSUER.to_owned(), issuer);
        }
        for issuer in &auth.issuers {
            let keys = issuer.keys.iter().map(read_issuer_key).collect::<Result<_, _>>()?;
            let set = match &issuer.jwks {
                Some(source) => Some(Arc::new(key_set(issuer, source, auth)?)),
                None => None,
            };
            let (identity, audience) = (issuer.name.clone(), issuer.audience.clone());
            let known = Issuer { identity, audience, keys, set };
            issuers.insert(issuer.name.clone(), known);
        }
        Ok(Verifier { leeway_s: auth.leeway.as_s(), issuers, revocations: Arc::default() })
    }

    /// The key sets that somebody is to keep up to date.
    pub fn key_sets(&self) -> impl Iterator<Item = &Arc<KeySet>> {
        self.issuers.values().filter_map(|issuer| issuer.set.as_ref())
    }

    /// What a scraper is told.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut sums = [0; 3];
        for set in self.key_sets() {
            let (keys, fetches, failures) = set.figures();
            sums = [sums[0] + keys, sums[1] + fetches, sums[2] + failures];
        }
        let [keys, fetches, failures] = sums;
        let metric = |name: &str, help: &str, value| {
            Metric::new(&format!("chatring_auth_{name}"), help, value)
        };
        vec![
            metric("jwks_keys", "keys of issuers' key sets", MetricValue::Gauge(keys)),
            metric("jwks_fetches", "fetches of key sets", MetricValue::Counter(fetches)),
            metric("jwks_failures", "fetches that brought nothing", MetricValue::Counter(failures)),
        ]
    }

    /// The log-ins whose tokens are refused, to be filled by who ends them.
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    fn verified(&self, issuer: &Issuer, claims: Claims, unix_s: u64) -> Option<Timed> {
        let (expires_at_s, issued_at_s) = (seconds(&claims.exp)?, seconds(&claims.iat)?);
        let not_before_s = match &claims.nbf {
            Some(nbf) => seconds(nbf)?,
            None => 0,
        };
        // A token from the future would outlive a revocation, which compares with `iat`.
        let future_s = unix_s.saturating_add(self.leeway_s);
        let named = (1..=NAME_BYTES_MAX).contains(&claims.sub.len());
        if !named || not_before_s > future_s || issued_at_s > future_s {
            return None;
        }
        if !issuer.takes_audience(claims.aud.as_ref()) {
            return None;
        }
        if expires_at_s.saturating_add(self.leeway_s) <= unix_s {
            return Some(Timed::Expired);
        }
        // What others write there is their own matter.
        let own = issuer.identity.is_empty();
        let hex16 = |claim: Option<&Value>| match claim.filter(|_| own) {
            Some(claim) => Some(Some(from_hex(claim.as_str()?)?)),
            None => Some(None),
        };
        let family = hex16(claims.sid.as_ref())?.map(Family);
        let installation = hex16(claims.ins.as_ref())?.map(InstallationId);
        let issuer = issuer.identity.clone();
        let subject = claims.sub;
        let identity = Identity { issuer, subject, issued_at_s, expires_at_s, installation };
        Some(Timed::Good(Verified { identity, family }))
    }
}

impl TokenVerifier for Verifier {
    fn verify(&self, token: &str, unix_s: u64) -> Result<Identity, ErrorCode> {
        Ok(self.verify_whole(token, unix_s)?.identity)
    }

    /// `RevokedToken` if the log-in has ended.
    fn verify_whole(&self, token: &str, unix_s: u64) -> Result<Verified, ErrorCode> {
        let parsed = Parsed::new(token).ok_or(ErrorCode::InvalidToken)?;
        let issuer = self.issuers.get(&parsed.claims.iss).ok_or(ErrorCode::InvalidToken)?;
        if !issuer.has_signed(&parsed) {
            match issuer.set.as_ref().map(|set| set.says(&parsed, unix_s)) {
                Some(Said::Good) => {}
                Some(Said::NotYet) => return Err(ErrorCode::Unavailable),
                Some(Said::Bad) | None => return Err(ErrorCode::InvalidToken),
            }
        }
        let verified = match self.verified(issuer, parsed.claims, unix_s) {
            Some(Timed::Good(verified)) => verified,
            Some(Timed::Expired) => return Err(ErrorCode::ExpiredToken),
            None => return Err(ErrorCode::InvalidToken),
        };
        let issued_at_s = verified.identity.issued_at_s;
        match verified.family {
            Some(family) if self.has_ended(family, issued_at_s) => Err(ErrorCode::RevokedToken),
            _ => Ok(verified),
        }
    }

    fn has_ended(&self, family: Family, issued_at_s: u64) -> bool {
        self.revocations.holds(family, issued_at_s)
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("issuers", &self.issuers.keys()).finish_non_exhaustive()
    }
}

/// The deployment's own token key in the data folder, made if it is not there. Call it while the
/// folder is locked.
pub fn own_key(data: &Path) -> Result<(TokenKey, PathBuf), AuthError> {
    let path = data.join(TOKEN_KEY_FILE);
    let error = |error: TokenKeyError| AuthError::OwnKey { path: path.clone(), error };
    match TokenKey::read(&path) {
        Err(TokenKeyError::Io(e)) if e.kind() == io::ErrorKind::NotFound => {}
        read => return Ok((read.map_err(error)?, path)),
    }
    let (key, text) = TokenKey::generate().map_err(error)?;
    write_private(&path, text.as_bytes()).map_err(|e| error(e.into()))?;
    Ok((key, path))
}

/// Puts a file that only its owner may read into place: after a crash it is there whole or not at
/// all.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(".new");
    let new = path.with_file_name(name);
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

struct Issuer {
    /// What the core sees; empty for the deployment's own.
    identity: String,
    audience: Option<String>,
    keys: Vec<Key>,
    set: Option<Arc<KeySet>>,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

enum Timed {
    Good(Verified),
    Expired,
}

impl Issuer {
    /// A named key is the only one tried; without a name each key of the algorithm is. A key
    /// without a name may have signed any token.
    fn has_signed(&self, token: &Parsed<'_>) -> bool {
        self.keys.iter().any(|key| {
            let named = match (&key.id, &token.header.kid) {
                (Some(id), Some(kid)) => id == kid,
                (None, _) | (_, None) => true,
            };
            named && key.algorithm == token.header.alg && key.has_signed(token)
        })
    }

    /// RFC 7519, 4.1.3: who is not among those meant refuses the token.
    fn takes_audience(&self, aud: Option<&Value>) -> bool {
        match (&self.audience, aud) {
            (None, None) => true,
            (Some(ours), Some(Value::String(one))) => one == ours,
            (Some(ours), Some(Value::Array(many))) => {
                many.iter().any(|one| one.as_str() == Some(ours))
            }
            _ => false,
        }
    }
}

impl Key {
    fn has_signed(&self, token: &Parsed<'_>) -> bool {
        let message = token.message.as_bytes();
        let good =
            jsonwebtoken::crypto::verify(token.signature, message, &self.key, self.algorithm);
        matches!(good, Ok(true))
    }
}

/// A token taken apart, nothing of it checked yet.
struct Parsed<'a> {
    message: &'a str,
    signature: &'a str,
    header: Header,
    claims: Claims,
}

#[derive(Deserialize)]
struct Header {
    alg: Algorithm,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515, 4.1.11): we understand none.
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    exp: Number,
    iat: Number,
    nbf: Option<Number>,
    aud: Option<Value>,
    /// The log-in that the token came from.
    sid: Option<Value>,
    /// The installation that it is bound to.
    ins: Option<Value>,
}

impl<'a> Parsed<'a> {
    fn new(token: &'a str) -> Option<Parsed<'a>> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let header: Header = part(header)?;
        if header.crit.is_some() {
            return None;
        }
        Some(Parsed { message, signature, header, claims: part(claims)? })
    }
}

fn part<T: for<'de> Deserialize<'de>>(base64: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(base64).ok()?).ok()
}

fn from_hex(text: &str) -> Option<[u8; 16]> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; 16];
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

/// A time in whole seconds, rounded down; the format allows fractions.
fn seconds(number: &Number) -> Option<u64> {
    number.as_u64().or_else(|| {
        let float = number.as_f64()?;
        (0.0..=9e15).contains(&float).then_some(float as u64)
    })
}

/// The set of an issuer; one in a file is read at once.
fn key_set(issuer: &config::Issuer, named: &str, auth: &Auth) -> Result<KeySet, AuthError> {
    let source = match named.contains("://") {
        true => {
            let ca = Some(&*auth.ca).filter(|ca| !ca.as_os_str().is_empty());
            // Roots are read only where they are needed.
            match named.starts_with("https://") {
                true => Source::Url(named.to_owned(), client_config(ca, &[b"http/1.1"])?),
                false => Source::Plain(named.to_owned()),
            }
        }
        false => Source::File(PathBuf::from(named)),
    };
    let pace = Pace {
        refresh: Duration::from_millis(auth.jwks_refresh.as_ms()),
        pause: Duration::from_millis(auth.jwks_pause.as_ms()),
    };
    let set = KeySet::new(&issuer.name, source, &issuer.algorithms, pace);
    if let Source::File(path) = set.source() {
        let taken = set.take(read_jwks(path), 0);
        taken.map_err(|error| AuthError::Jwks { place: named.to_owned(), error })?;
    }
    Ok(set)
}

/// Reads a key set from a file.
pub(crate) fn read_jwks(path: &Path) -> Result<Vec<u8>, JwksError> {
    let error = |error: io::Error| JwksError::Fetch(error.to_string());
    if std::fs::metadata(path).map_err(error)?.len() > JWKS_BYTES_MAX as u64 {
        return Err(JwksError::TooLarge);
    }
    std::fs::read(path).map_err(error)
}

fn read_issuer_key(key: &IssuerKey) -> Result<Key, AuthError> {
    let error = |reason: String| AuthError::IssuerKey { path: key.file.clone(), reason };
    let read = || -> io::Result<Vec<u8>> {
        let length = std::fs::metadata(&key.file)?.len();
        if length > KEY_FILE_BYTES_MAX {
            return Err(io::Error::other(format!("larger than {KEY_FILE_BYTES_MAX} bytes")));
        }
        std::fs::read(&key.file)
    };
    let bytes = read().map_err(|e| error(e.to_string()))?;
    let is_pem = bytes.windows(10).any(|window| window == b"-----BEGIN");
    if is_pem && bytes.windows(11).any(|window| window == b"PRIVATE KEY") {
        return Err(error("holds a private key; give the public one".to_owned()));
    }
    let (algorithm, parsed) = match key.algorithm {
        KeyAlgorithm::HS256 => {
            let secret = bytes.trim_ascii();
            // Whoever knows a public key could sign with it if it were taken for a secret.
            if is_pem {
                return Err(error("HS256 needs a secret, this is a PEM file".to_owned()));
            }
            if secret.len() < SECRET_BYTES_MIN {
                return Err(error(format!("HS256 needs at least {SECRET_BYTES_MIN} bytes")));
            }
            (Algorithm::HS256, Ok(DecodingKey::from_secret(secret)))
        }
        KeyAlgorithm::RS256 => (Algorithm::RS256, DecodingKey::from_rsa_pem(&bytes)),
        KeyAlgorithm::ES256 => (Algorithm::ES256, DecodingKey::from_ec_pem(&bytes)),
        KeyAlgorithm::EdDSA => (Algorithm::EdDSA, DecodingKey::from_ed_pem(&bytes)),
    };
    let name = key.algorithm;
    let parsed = parsed.map_err(|_| error(format!("holds no public key for {name:?} in PEM")))?;
    Ok(Key { id: key.id.clone(), algorithm, key: parsed })
}

#[cfg(test)]
mod tests;
