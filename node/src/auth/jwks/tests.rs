use chatring_wire::ErrorCode;
use jsonwebtoken::EncodingKey;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use serde_json::json;

use super::*;
use crate::auth::{TokenVerifier as _, Verifier};
use crate::config::{Auth, Issuer, public_algorithms};

const NOW_S: u64 = 1_800_000_000;

/// The modulus of `testdata/rs256_public.pem`.
const RSA_N: &str = "\
     nM8--XK9dU5CjYQfYoa8OUDL3XqMeQ2TI5BR9Udaiq3ZjD_67RCIh3fQx2AODkVotVMtJ1R2OFrpfYDg\
     nqvKAv2MrksSTPmlY8QGZhAHH99MU5aZlp0CXqtBfd6qGys9xUpDZB0ZlE5fP0dnMEArrEqwvM_UTyGs\
     cOD2RJ55pLH67xO9Iuo53siVZBs6MyhE5eIv2eq8zYnZGeC0MytCG8T7by5WSlMiT-uyIcFCs4ZiuOhQ\
     6npKZB51vqktlAR1hac7LIo20iIo25PTrp7IemH4UyjbkpHKjYtrGwUKi-dYGMXz13xxXXOSdzqv4dG7\
     kaJdKbeLdue38ayAtCkIfw";

struct Signer {
    jwk: Value,
    key: EncodingKey,
    algorithm: Algorithm,
    public: Vec<u8>,
}

fn part(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn ed25519(kid: &str) -> Signer {
    let pair = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let public = pair.public_key_raw().to_vec();
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": part(&public) });
    let key = EncodingKey::from_ed_der(&pair.serialize_der());
    Signer { jwk, key, algorithm: Algorithm::EdDSA, public }
}

fn p256(kid: &str) -> Signer {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let public = pair.public_key_raw().to_vec();
    let (x, y) = (part(&public[1..33]), part(&public[33..]));
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y, "alg": "ES256", "use": "sig",
    });
    let key = EncodingKey::from_ec_der(&pair.serialize_der());
    Signer { jwk, key, algorithm: Algorithm::ES256, public }
}

fn rsa(kid: &str) -> Signer {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/rs256_private.pem");
    let pem = std::fs::read(path).expect("a key");
    let key = EncodingKey::from_rsa_pem(&pem).expect("RSA");
    let jwk = json!({ "kty": "RSA", "kid": kid, "n": RSA_N, "e": "AQAB" });
    Signer { jwk, key, algorithm: Algorithm::RS256, public: RSA_N.as_bytes().to_vec() }
}

fn set(signers: &[&Signer]) -> Vec<u8> {
    let keys: Vec<&Value> = signers.iter().map(|signer| &signer.jwk).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

fn token(header: &Value, audience: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let claims = json!({
        "iss": "idp", "sub": "alice", "aud": audience, "iat": NOW_S - 10, "exp": NOW_S + 600,
    });
    let text = |value: &Value| part(value.to_string().as_bytes());
    let message = format!("{}.{}", text(header), text(&claims));
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).expect("a good key");
    format!("{message}.{signature}")
}

impl Signer {
    fn sign(&self) -> String {
        let header = json!({ "alg": self.algorithm, "kid": self.jwk["kid"] });
        token(&header, "chat", &self.key, self.algorithm)
    }
}

/// A verifier with a set at a URL that nobody fetches but the test.
fn verifier(algorithms: Vec<KeyAlgorithm>) -> (Verifier, Arc<KeySet>) {
    let issuer = Issuer {
        name: "idp".to_owned(),
        audience: Some("chat".to_owned()),
        jwks: Some("http://127.0.0.1:1/keys".to_owned()),
        algorithms,
        keys: Vec::new(),
    };
    let auth = Auth { issuers: vec![issuer], ..Auth::default() };
    let verifier = Verifier::new(&auth, None).expect("nothing is read");
    let set = Arc::clone(verifier.key_sets().next().expect("one set"));
    (verifier, set)
}

fn says(verifier: &Verifier, token: &str, unix_s: u64) -> Result<(), ErrorCode> {
    verifier.verify(token, unix_s).map(|identity| {
        assert_eq!((identity.issuer.as_str(), identity.subject.as_str()), ("idp", "alice"));
    })
}

#[test]
fn each_kind_of_key_verifies_its_own_signatures_and_is_chosen_by_name() {
    let (verifier, keys) = verifier(public_algorithms());
    let signers = [ed25519("a"), p256("b"), rsa("c")];
    let taken = keys.take(Ok(set(&[&signers[0], &signers[1], &signers[2]])), NOW_S);
    assert_eq!(taken.expect("a good set"), 3);
    for signer in &signers {
        assert_eq!(says(&verifier, &signer.sign(), NOW_S), Ok(()), "{:?}", signer.algorithm);
        // Under another one's name.
        for other in signers.iter().filter(|other| other.algorithm != signer.algorithm) {
            let header = json!({ "alg": signer.algorithm, "kid": other.jwk["kid"] });
            let stolen = token(&header, "chat", &signer.key, signer.algorithm);
            assert_eq!(says(&verifier, &stolen, NOW_S), Err(ErrorCode::InvalidToken));
        }
        let elsewhere = json!({ "alg": signer.algorithm, "kid": signer.jwk["kid"] });
        let elsewhere = token(&elsewhere, "bank", &signer.key, signer.algorithm);
        assert_eq!(says(&verifier, &elsewhere, NOW_S), Err(ErrorCode::InvalidToken));
    }
}

#[test]
fn a_public_key_is_no_secret_whatever_header_or_set_say() {
    let (verifier, keys) = verifier(public_algorithms());
    let mut lying = rsa("c");
    lying.jwk["alg"] = json!("HS256");
    let secret = json!({ "kty": "oct", "kid": "s", "alg": "HS256", "k": part(&[7; 32]) });
    let secret = Signer {
        jwk: secret,
        key: EncodingKey::from_secret(&[7; 32]),
        algorithm: Algorithm::HS256,
        public: vec![7; 32],
    };
    let good = [ed25519("a"), p256("b")];
    let taken = keys.take(Ok(set(&[&good[0], &good[1], &lying, &secret])), NOW_S);
    assert_eq!(taken.expect("two good keys"), 2);
    assert_eq!(says(&verifier, &secret.sign(), NOW_S), Err(ErrorCode::InvalidToken));
    for signer in good.iter().chain([&lying]) {
        let key = EncodingKey::from_secret(&signer.public);
        for kid in [signer.jwk["kid"].clone(), Value::Null] {
            let header = json!({ "alg": "HS256", "kid": kid });
            let forged = token(&header, "chat", &key, Algorithm::HS256);
            assert_eq!(says(&verifier, &forged, NOW_S), Err(ErrorCode::InvalidToken));
        }
    }
}

#[test]
fn only_algorithms_that_are_allowed_are_taken() {
    let (verifier, keys) = verifier(vec![KeyAlgorithm::ES256]);
    let (one, other) = (p256("a"), ed25519("b"));
    assert_eq!(keys.take(Ok(set(&[&one, &other])), NOW_S).expect("one key"), 1);
    assert_eq!(says(&verifier, &one.sign(), NOW_S), Ok(()));
    assert_eq!(says(&verifier, &other.sign(), NOW_S + 60), Err(ErrorCode::InvalidToken));
    let alone = keys.take(Ok(set(&[&other])), NOW_S);
    assert!(matches!(alone, Err(JwksError::Empty)), "{alone:?}");
}

#[test]
fn a_new_key_is_asked_for_once_and_an_old_one_is_forgotten() {
    let (verifier, keys) = verifier(public_algorithms());
    let (old, new) = (p256("old"), p256("new"));
    // Before the first fetch nobody can say.
    assert_eq!(says(&verifier, &old.sign(), NOW_S), Err(ErrorCode::Unavailable));
    keys.take(Ok(set(&[&old])), NOW_S).expect("a good set");
    assert_eq!(says(&verifier, &old.sign(), NOW_S), Ok(()));
    // The set is fresh, so the key does not exist.
    assert_eq!(says(&verifier, &new.sign(), NOW_S + 1), Err(ErrorCode::InvalidToken));
    assert!(keys.asked().is_empty());
    for _ in 0..1_000 {
        assert_eq!(says(&verifier, &new.sign(), NOW_S + 60), Err(ErrorCode::Unavailable));
    }
    assert_eq!(keys.asked().len(), 1);
    keys.take(Ok(set(&[&new])), NOW_S + 60).expect("a good set");
    assert!(keys.asked().is_empty());
    assert_eq!(says(&verifier, &new.sign(), NOW_S + 60), Ok(()));
    assert_eq!(says(&verifier, &old.sign(), NOW_S + 60), Err(ErrorCode::InvalidToken));
}

#[test]
fn a_set_that_is_of_no_use_leaves_the_keys_as_they_were() {
    let (verifier, keys) = verifier(public_algorithms());
    let signer = p256("a");
    keys.take(Ok(set(&[&signer])), NOW_S).expect("a good set");
    let many: Vec<Signer> = (0..=JWKS_KEYS_MAX).map(|n| ed25519(&n.to_string())).collect();
    let many = set(&many.iter().collect::<Vec<_>>());
    let large = format!("{{\"keys\":[],\"x\":{:?}}}", "x".repeat(JWKS_BYTES_MAX)).into_bytes();
    for bad in [b"".to_vec(), b"[]".to_vec(), b"{\"keys\":[1,{}]}".to_vec(), many, large] {
        keys.take(Ok(bad), NOW_S + 1).expect_err("no use");
        assert_eq!(says(&verifier, &signer.sign(), NOW_S + 1), Ok(()));
    }
    let failed = Err(JwksError::Fetch("nobody is there".to_owned()));
    keys.take(failed, NOW_S + 2).expect_err("a failure");
    assert_eq!(says(&verifier, &signer.sign(), NOW_S + 2), Ok(()));
    assert_eq!(keys.figures(), (1, 7, 6));
}

#[test]
fn without_a_name_a_token_is_good_only_if_there_is_nothing_to_choose() {
    let (verifier, keys) = verifier(public_algorithms());
    let (one, two) = (p256("a"), p256("b"));
    let nameless = token(&json!({ "alg": "ES256" }), "chat", &one.key, Algorithm::ES256);
    keys.take(Ok(set(&[&one, &ed25519("c")])), NOW_S).expect("a good set");
    assert_eq!(says(&verifier, &nameless, NOW_S), Ok(()));
    keys.take(Ok(set(&[&one, &two])), NOW_S).expect("a good set");
    assert_eq!(says(&verifier, &nameless, NOW_S + 60), Err(ErrorCode::InvalidToken));
    assert!(keys.asked().is_empty(), "a new set would not help");
}
