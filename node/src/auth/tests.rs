use jsonwebtoken::EncodingKey;
use serde_json::json;

use super::*;
use crate::config::{Issuer as IssuerConfig, Period};

const NOW_S: u64 = 1_800_000_000;
const SECRET: &str = "thirty-two bytes of a good secret";

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(data(name)).expect(name)
}

fn issuer(name: &str, keys: Vec<IssuerKey>) -> IssuerConfig {
    let algorithms = crate::config::public_algorithms();
    IssuerConfig { name: name.to_owned(), audience: None, jwks: None, algorithms, keys }
}

fn key(algorithm: KeyAlgorithm, id: Option<&str>, file: PathBuf) -> IssuerKey {
    IssuerKey { id: id.map(ToOwned::to_owned), algorithm, file }
}

struct World {
    own: TokenKey,
    verifier: Verifier,
    _folder: tempfile::TempDir,
}

/// An issuer of each algorithm, named after it.
fn world() -> World {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).expect("a file");
    let mut aimed = issuer("aimed", vec![key(KeyAlgorithm::HS256, None, secret.clone())]);
    aimed.audience = Some("chat".to_owned());
    let issuers = vec![
        issuer("HS256", vec![key(KeyAlgorithm::HS256, None, secret)]),
        issuer("RS256", vec![key(KeyAlgorithm::RS256, Some("r"), data("rs256_public.pem"))]),
        issuer("ES256", vec![key(KeyAlgorithm::ES256, None, data("es256_public.pem"))]),
        issuer("EdDSA", vec![key(KeyAlgorithm::EdDSA, None, data("eddsa_public.pem"))]),
        aimed,
    ];
    let (own, _) = TokenKey::generate().expect("random bytes");
    let auth = Auth { leeway: Period::from_s(5), issuers, ..Auth::default() };
    let verifier = Verifier::new(&auth, Some(&own)).expect("good keys");
    World { own, verifier, _folder: folder }
}

fn claims(issuer: &str) -> Value {
    json!({ "iss": issuer, "sub": "alice", "iat": NOW_S - 10, "exp": NOW_S + 60 })
}

fn with(issuer: &str, name: &str, value: Value) -> Value {
    let mut claims = claims(issuer);
    claims[name] = value;
    claims
}

fn signed(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).expect("a good key");
    format!("{message}.{signature}")
}

fn hs256(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    signed(&json!({ "alg": "HS256" }), claims, &key, Algorithm::HS256)
}

fn refused(world: &World, token: &str) {
    assert_eq!(world.verifier.verify(token, NOW_S), Err(ErrorCode::InvalidToken), "{token}");
}

#[test]
fn own_tokens_belong_to_users_with_the_empty_issuer() {
    let world = world();
    let identity = world.verifier.verify(&world.own.mint("alice", NOW_S - 1, 60), NOW_S);
    let identity = identity.expect("a good token");
    assert_eq!((identity.issuer.as_str(), identity.subject.as_str()), ("", "alice"));
    assert_eq!((identity.issued_at_s, identity.expires_at_s), (NOW_S - 1, NOW_S + 59));
    let (other, _) = TokenKey::generate().expect("random bytes");
    refused(&world, &other.mint("alice", NOW_S, 60));
}

#[test]
fn each_algorithm_verifies_its_own_signatures() {
    let world = world();
    let keys = [
        (Algorithm::HS256, EncodingKey::from_secret(SECRET.as_bytes())),
        (Algorithm::RS256, EncodingKey::from_rsa_pem(&bytes("rs256_private.pem")).expect("RSA")),
        (Algorithm::ES256, EncodingKey::from_ec_pem(&bytes("es256_private.pem")).expect("EC")),
        (Algorithm::EdDSA, EncodingKey::from_ed_pem(&bytes("eddsa_private.pem")).expect("Ed")),
    ];
    for (signing, key) in &keys {
        let name = format!("{signing:?}");
        let token = signed(&json!({ "alg": name }), &claims(&name), key, *signing);
        let identity = world.verifier.verify(&token, NOW_S).expect(&name);
        assert_eq!((identity.issuer, identity.subject), (name.clone(), "alice".to_owned()));
        // The same good signature for another issuer, whose key it is not.
        for (other, _) in keys.iter().filter(|(other, _)| other != signing) {
            let claims = claims(&format!("{other:?}"));
            refused(&world, &signed(&json!({ "alg": name }), &claims, key, *signing));
            // … and under the algorithm that the other issuer's key has.
            refused(&world, &signed(&json!({"alg": other}), &claims, key, *signing));
        }
        // A good signature of the right key, but the header names another algorithm.
        for alg in ["HS256", "HS512", "RS256", "PS256", "ES256", "EdDSA"] {
            if alg != name {
                refused(&world, &signed(&json!({ "alg": alg }), &claims(&name), key, *signing));
            }
        }
        let (message, signature) = token.rsplit_once('.').expect("a dot");
        let first = if signature.starts_with('A') { 'B' } else { 'A' };
        let torn = format!("{message}.{first}{}", &signature[1..]);
        refused(&world, &torn);
    }
}

#[test]
fn a_public_key_is_no_secret() {
    let world = world();
    let pem = bytes("rs256_public.pem");
    for secret in [&pem[..], pem.trim_ascii()] {
        let key = EncodingKey::from_secret(secret);
        let header = json!({ "alg": "HS256", "kid": "r" });
        refused(&world, &signed(&header, &claims("RS256"), &key, Algorithm::HS256));
        let header = json!({ "alg": "RS256", "kid": "r" });
        refused(&world, &signed(&header, &claims("RS256"), &key, Algorithm::HS256));
    }
    let auth = Auth {
        leeway: Period::from_s(5),
        issuers: vec![issuer("a", vec![key(KeyAlgorithm::HS256, None, data("rs256_public.pem"))])],
        ..Auth::default()
    };
    let error = Verifier::new(&auth, None).expect_err("a public key as secret");
    assert!(error.to_string().contains("HS256 needs a secret"), "{error}");
}

#[test]
fn none_is_no_algorithm() {
    let world = world();
    for alg in ["none", "None", "NONE", ""] {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(&json!({ "alg": alg })), part(&claims("HS256")));
        refused(&world, &format!("{message}."));
        refused(&world, &message);
    }
    let (_, rest) = hs256(&claims("HS256")).split_once('.').map(own_pair).expect("a dot");
    refused(&world, &format!("{}.{rest}", URL_SAFE_NO_PAD.encode("{}")));
}

fn own_pair((a, b): (&str, &str)) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

#[test]
fn the_key_id_selects_among_keys() {
    let world = world();
    let key = EncodingKey::from_rsa_pem(&bytes("rs256_private.pem")).expect("RSA");
    let token = |header: Value| signed(&header, &claims("RS256"), &key, Algorithm::RS256);
    assert!(world.verifier.verify(&token(json!({ "alg": "RS256", "kid": "r" })), NOW_S).is_ok());
    assert!(world.verifier.verify(&token(json!({ "alg": "RS256" })), NOW_S).is_ok());
    refused(&world, &token(json!({ "alg": "RS256", "kid": "s" })));
    refused(&world, &token(json!({ "alg": "RS256", "crit": ["b64"], "b64": false })));
}

#[test]
fn times_are_kept_with_the_leeway_and_no_more() {
    let world = world();
    let verify = |claims: &Value| world.verifier.verify(&hs256(claims), NOW_S);
    assert!(verify(&with("HS256", "exp", json!(NOW_S - 4))).is_ok());
    assert_eq!(verify(&with("HS256", "exp", json!(NOW_S - 5))), Err(ErrorCode::ExpiredToken));
    assert!(verify(&with("HS256", "nbf", json!(NOW_S + 5))).is_ok());
    assert_eq!(verify(&with("HS256", "nbf", json!(NOW_S + 6))), Err(ErrorCode::InvalidToken));
    assert!(verify(&with("HS256", "iat", json!(NOW_S + 5))).is_ok());
    assert_eq!(verify(&with("HS256", "iat", json!(NOW_S + 6))), Err(ErrorCode::InvalidToken));
    let identity = verify(&with("HS256", "iat", json!(NOW_S as f64 - 0.5))).expect("a fraction");
    assert_eq!(identity.issued_at_s, NOW_S - 1);
    assert!(verify(&with("HS256", "exp", json!(u64::MAX))).is_ok());
}

#[test]
fn missing_and_senseless_claims_are_refused() {
    let world = world();
    for name in ["iss", "sub", "iat", "exp"] {
        let mut claims = claims("HS256");
        claims.as_object_mut().expect("an object").remove(name);
        refused(&world, &hs256(&claims));
        for value in [json!(null), json!(-1), json!([]), json!(1e300), json!(true)] {
            refused(&world, &hs256(&with("HS256", name, value)));
        }
    }
    refused(&world, &hs256(&with("HS256", "nbf", json!("soon"))));
    refused(&world, &hs256(&with("HS256", "sub", json!(""))));
    refused(&world, &hs256(&with("HS256", "sub", json!("a".repeat(257)))));
    assert!(
        world.verifier.verify(&hs256(&with("HS256", "sub", json!("a".repeat(256)))), NOW_S).is_ok()
    );
    refused(&world, &hs256(&claims("unknown")));
    refused(&world, &hs256(&claims("")));
}

#[test]
fn the_audience_must_be_ours() {
    let world = world();
    let verify = |claims: &Value| world.verifier.verify(&hs256(claims), NOW_S).is_ok();
    assert!(verify(&with("aimed", "aud", json!("chat"))));
    assert!(verify(&with("aimed", "aud", json!(["mail", "chat"]))));
    assert!(!verify(&with("aimed", "aud", json!("mail"))));
    assert!(!verify(&with("aimed", "aud", json!([]))));
    assert!(!verify(&claims("aimed")));
    assert!(!verify(&with("HS256", "aud", json!("chat"))));
}

#[test]
fn a_huge_token_is_refused_before_it_is_looked_at() {
    let world = world();
    let long = hs256(&with("HS256", "more", json!("a".repeat(TOKEN_BYTES_MAX))));
    refused(&world, &long);
    for token in ["", ".", "..", "...", "a.b.c", "é.é.é", "\0.\0.\0"] {
        refused(&world, token);
    }
}

#[test]
fn the_own_key_is_made_once_and_only_its_owner_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let (first, path) = own_key(folder.path()).expect("a new key");
    let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let (second, _) = own_key(folder.path()).expect("the same key");
    assert_eq!(first.public_key(), second.public_key());
    std::fs::write(&path, "broken").expect("a file");
    let error = own_key(folder.path()).expect_err("a broken key is never replaced");
    assert!(error.to_string().contains("token_key.pem: no Ed25519"), "{error}");
}

#[test]
fn unfit_key_files_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let short = folder.path().join("short");
    std::fs::write(&short, "short").expect("a file");
    let cases = [
        (KeyAlgorithm::HS256, short, "at least 32 bytes"),
        (KeyAlgorithm::HS256, folder.path().join("missing"), "No such file"),
        (KeyAlgorithm::RS256, data("es256_public.pem"), "no public key for RS256"),
        (KeyAlgorithm::ES256, data("rs256_public.pem"), "no public key for ES256"),
        (KeyAlgorithm::EdDSA, data("es256_public.pem"), "no public key for EdDSA"),
        (KeyAlgorithm::RS256, data("rs256_private.pem"), "private key"),
    ];
    for (algorithm, file, text) in cases {
        let issuers = vec![issuer("a", vec![key(algorithm, None, file)])];
        let auth = Auth { leeway: Period::from_s(5), issuers, ..Auth::default() };
        let error = Verifier::new(&auth, None).expect_err(text).to_string();
        assert!(error.contains(text) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn a_token_of_a_log_in_is_bound_to_it() {
    let world = world();
    let (session, installation) = ("0b".repeat(16), "c0".repeat(16));
    let token = world.own.mint_bound("alice", NOW_S, 60, &session, &installation);
    let verified = world.verifier.verify_whole(&token, NOW_S).expect("a good token");
    assert_eq!(verified.family, Some(Family([0x0b; 16])));
    assert_eq!(verified.identity.installation, Some(InstallationId([0xc0; 16])));
    assert_eq!(world.verifier.verify(&token, NOW_S), Ok(verified.identity));

    for (session, installation) in [("", &*installation), (&*session, "c0"), (&*session, "zz")] {
        refused(&world, &world.own.mint_bound("alice", NOW_S, 60, session, installation));
    }
    world.verifier.revocations().revoke(Family([0x0b; 16]), NOW_S + 60, NOW_S);
    assert_eq!(world.verifier.verify(&token, NOW_S), Err(ErrorCode::RevokedToken));
    let other = world.own.mint_bound("alice", NOW_S, 60, &"0c".repeat(16), &installation);
    assert!(world.verifier.verify(&other, NOW_S).is_ok());

    // Other issuers may have claims of these names with another meaning.
    let foreign = with("HS256", "sid", json!("anything"));
    let verified = world.verifier.verify_whole(&hs256(&foreign), NOW_S).expect("a good token");
    assert_eq!((verified.family, verified.identity.installation), (None, None));
}
