//! The deployment's own token key (Ed25519 in a PKCS#8 PEM file) and the tokens made with it.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::json;
use thiserror::Error;

/// The claim `iss` of tokens made with the deployment's own key.
pub const OWN_ISSUER: &str = "chatring";
/// Name of the key's file within a data folder.
pub const TOKEN_KEY_FILE: &str = "token_key.pem";
/// Largest key file that is read.
pub const KEY_FILE_BYTES_MAX: u64 = 16 * 1024;

const PEM_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_END: &str = "-----END PRIVATE KEY-----";
/// Columns of the base64 text in a PEM file (RFC 7468, 2).
const PEM_COLUMNS: usize = 64;

/// Why a key file is of no use.
#[derive(Debug, Error)]
pub enum TokenKeyError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It holds something else.
    #[error("no Ed25519 private key in PKCS#8 PEM form")]
    Format,
    /// The system gave no random bytes.
    #[error("the system's random source failed")]
    Random,
}

/// The private key that signs the deployment's own tokens (JWT, EdDSA).
#[derive(Debug)]
pub struct TokenKey {
    pair: Ed25519KeyPair,
    id: String,
}

impl TokenKey {
    /// A new key, and the text of the file that keeps it.
    pub fn generate() -> Result<(TokenKey, String), TokenKeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| TokenKeyError::Random)?;
        let key = TokenKey::from_pkcs8(document.as_ref())?;
        Ok((key, to_pem(document.as_ref())))
    }

    /// Reads a key file.
    pub fn read(path: &Path) -> Result<TokenKey, TokenKeyError> {
        if std::fs::metadata(path)?.len() > KEY_FILE_BYTES_MAX {
            return Err(TokenKeyError::Format);
        }
        TokenKey::from_pem(&std::fs::read_to_string(path)?)
    }

    /// From the text of a key file.
    pub fn from_pem(text: &str) -> Result<TokenKey, TokenKeyError> {
        let (_, rest) = text.split_once(PEM_BEGIN).ok_or(TokenKeyError::Format)?;
        let (body, _) = rest.split_once(PEM_END).ok_or(TokenKeyError::Format)?;
        let base64: String = body.split_ascii_whitespace().collect();
        let der = STANDARD.decode(base64).map_err(|_| TokenKeyError::Format)?;
        TokenKey::from_pkcs8(&der)
    }

    /// The public half: 32 bytes.
    pub fn public_key(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// The key's name (`kid` in a token's header), derived from its public half.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A token for a user: `subject` has 1 to 256 bytes, times are Unix seconds.
    pub fn mint(&self, subject: &str, issued_at_s: u64, ttl_s: u64) -> String {
        self.sign(json!({
            "iss": OWN_ISSUER,
            "sub": subject,
            "iat": issued_at_s,
            "exp": issued_at_s.saturating_add(ttl_s),
        }))
    }

    /// A token like those of [`TokenKey::mint`] that ends with a log-in's session, and is good for
    /// one installation alone: `session` and `installation` are 16 bytes in hexadecimal digits.
    pub fn mint_bound(
        &self,
        subject: &str,
        issued_at_s: u64,
        ttl_s: u64,
        session: &str,
        installation: &str,
    ) -> String {
        self.sign(json!({
            "iss": OWN_ISSUER,
            "sub": subject,
            "iat": issued_at_s,
            "exp": issued_at_s.saturating_add(ttl_s),
            "sid": session,
            "ins": installation,
        }))
    }

    /// 32 bytes that only who has the key can find, the same for the same `purpose` and `input`.
    pub fn derive(&self, purpose: &str, input: &[u8]) -> [u8; 32] {
        // Signatures of Ed25519 are a function of key and message (RFC 8032, 5.1.6). The zero byte
        // keeps this message apart from all tokens.
        let message = [purpose.as_bytes(), &[0], input].concat();
        let hash = digest::digest(&digest::SHA256, self.pair.sign(&message).as_ref());
        hash.as_ref().try_into().expect("SHA-256 gives 32 bytes")
    }

    fn sign(&self, claims: serde_json::Value) -> String {
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": self.id });
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
        let signature = self.pair.sign(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        token
    }

    /// Accepts version 1 of the format too, which other tools write.
    fn from_pkcs8(der: &[u8]) -> Result<TokenKey, TokenKeyError> {
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| TokenKeyError::Format)?;
        let hash = digest::digest(&digest::SHA256, pair.public_key().as_ref());
        let id = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(TokenKey { pair, id })
    }
}

fn to_pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let mut text = format!("{PEM_BEGIN}\n");
    for line in base64.as_bytes().chunks(PEM_COLUMNS) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str(PEM_END);
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file() {
        let (key, pem) = TokenKey::generate().expect("random bytes");
        let again = TokenKey::from_pem(&pem).expect("its own file");
        assert_eq!(key.public_key(), again.public_key());
        assert_eq!(key.mint("alice", 1_000, 60), again.mint("alice", 1_000, 60));
        assert!(pem.lines().all(|line| line.len() <= PEM_COLUMNS));
        assert_eq!(key.derive("a", b"bc"), again.derive("a", b"bc"));
        assert_ne!(key.derive("a", b"bc"), key.derive("ab", b"c"));
    }

    #[test]
    fn other_files_are_no_keys() {
        let (_, pem) = TokenKey::generate().expect("random bytes");
        for text in ["", "hello", PEM_BEGIN, &pem[..pem.len() - 30], &pem.replacen('M', "N", 1)] {
            assert!(matches!(TokenKey::from_pem(text), Err(TokenKeyError::Format)), "{text:?}");
        }
    }
}
