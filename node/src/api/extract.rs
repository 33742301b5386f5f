//! What handlers take of a request. Each refuses what is wrong with a problem that says where.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use chatring_wire::ErrorCode;
use http_body_util::BodyExt as _;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;

use super::Shared;
use super::accounts::{self, Accounts};
use super::describe::{Gives, In, Operation, Takes};
use super::limits::{HTTP_BODIES_BYTES_MAX, HTTP_BODY_BYTES_MAX, HTTP_BODY_MS_MAX};
use super::problem::Problem;
use super::tokens::Owner;

/// Longest `Idempotency-Key`.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

/// Who asks: `Authorization: Bearer TOKEN` was good.
#[derive(Clone, Debug)]
pub(super) struct Caller(pub Owner);

impl FromRequestParts<Shared> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Caller, Problem> {
        let mut all = parts.headers.get_all(AUTHORIZATION).iter();
        let no_token = |detail: &str| Problem::new(ErrorCode::InvalidToken).detail(detail);
        let value = match (all.next(), all.next()) {
            (Some(value), None) => value,
            (None, _) => return Err(no_token("the header Authorization is missing")),
            (Some(_), Some(_)) => return Err(no_token("the header Authorization comes twice")),
        };
        let token = value.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("Bearer").then_some(token.trim())
        });
        let token = token.ok_or_else(|| no_token("Authorization must be: Bearer TOKEN"))?;
        let tokens = state.tokens().ok_or(ErrorCode::Unavailable)?;
        let from = parts.extensions.get::<Peer>().ok_or(ErrorCode::Internal)?.0;
        Ok(Caller(tokens.verify(token, from, unix_ms())?))
    }
}

impl Takes for Caller {
    fn describe(operation: &mut Operation<'_>) {
        operation.needs_token();
    }
}

/// Who asks, where only those with an account here may: the token is one of a log-in.
#[derive(Clone, Debug)]
pub(super) struct Account(pub accounts::Caller);

impl FromRequestParts<Shared> for Account {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Account, Problem> {
        let Caller(owner) = Caller::from_request_parts(parts, state).await?;
        account_of(&owner).map(Account).ok_or_else(|| {
            let detail = "this needs the token of a log-in (POST /v1/sessions)";
            Problem::new(ErrorCode::InvalidToken).detail(detail)
        })
    }
}

impl Takes for Account {
    fn describe(operation: &mut Operation<'_>) {
        operation.needs_token();
    }
}

/// The account that a token belongs to, if it is one of a log-in.
pub(super) fn account_of(owner: &Owner) -> Option<accounts::Caller> {
    accounts::Caller::of(&owner.identity, owner.family)
}

/// The accounts.
pub(super) struct Db(pub Accounts);

impl FromRequestParts<Shared> for Db {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, state: &Shared) -> Result<Db, Problem> {
        Ok(Db(state.accounts().ok_or(ErrorCode::Unavailable)?.clone()))
    }
}

impl Takes for Db {
    fn describe(_: &mut Operation<'_>) {}
}

/// The address that a request comes from: that of the peer, or the one that a trusted proxy names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub IpAddr);

impl FromRequestParts<Shared> for Peer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Peer, Problem> {
        let peer = parts.extensions.get::<Peer>().copied();
        peer.ok_or_else(|| ErrorCode::Internal.into())
    }
}

impl Takes for Peer {
    fn describe(_: &mut Operation<'_>) {}
}

/// What names this very request, so that it may be repeated.
#[derive(Clone, Debug)]
pub(super) struct IdempotencyKey(pub Option<String>);

impl FromRequestParts<Shared> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Problem> {
        let Some(key) = parts.headers.get("idempotency-key") else {
            return Ok(IdempotencyKey(None));
        };
        let key =
            key.to_str().ok().filter(|key| (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()));
        let key = key.ok_or_else(|| {
            let detail = format!("must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible characters");
            Problem::invalid("Idempotency-Key", detail)
        })?;
        Ok(IdempotencyKey(Some(key.to_owned())))
    }
}

impl Takes for IdempotencyKey {
    fn describe(operation: &mut Operation<'_>) {
        let schema = json!({
            "type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_BYTES_MAX,
        });
        let about = "Names this very request: a repeat with the same key gets the same answer";
        operation.header("Idempotency-Key", about, &schema);
    }
}

/// The id of the last event that a client of server-sent events has taken in.
#[derive(Clone, Debug)]
pub(super) struct LastEventId(pub Option<String>);

impl FromRequestParts<Shared> for LastEventId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Problem> {
        let Some(id) = parts.headers.get("last-event-id") else { return Ok(LastEventId(None)) };
        match id.to_str() {
            Ok("") => Ok(LastEventId(None)),
            Ok(id) => Ok(LastEventId(Some(id.to_owned()))),
            Err(_) => Err(Problem::invalid("Last-Event-ID", "must be a cursor")),
        }
    }
}

impl Takes for LastEventId {
    fn describe(operation: &mut Operation<'_>) {
        let about = "The cursor of the last event that was taken in";
        operation.header("Last-Event-ID", about, &json!({ "type": "string" }));
    }
}

/// An answer without a body (204).
#[derive(Clone, Copy, Debug)]
pub(super) struct Nothing;

impl IntoResponse for Nothing {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

impl Gives for Nothing {
    fn describe(operation: &mut Operation<'_>) {
        operation.answer_as(204, "done", None);
    }
}

/// Parameters in the path.
#[derive(Debug)]
pub(super) struct InPath<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Shared> for InPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(params)) => Ok(InPath(params)),
            Err(rejection) => Err(Problem::invalid("path", rejection.body_text())),
        }
    }
}

impl<T: JsonSchema> Takes for InPath<T> {
    fn describe(operation: &mut Operation<'_>) {
        operation.parameters::<T>(In::Path);
        // With an empty parameter, or one of several segments.
        operation.fails(&[ErrorCode::NotFound]);
    }
}

/// Parameters in the query.
#[derive(Debug)]
pub(super) struct InQuery<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for InQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(query.as_bytes());
        let deserializer = serde_urlencoded::Deserializer::new(pairs);
        match serde_path_to_error::deserialize(deserializer) {
            Ok(query) => Ok(InQuery(query)),
            Err(error) => Err(wrong(&error)),
        }
    }
}

impl<T: JsonSchema> Takes for InQuery<T> {
    fn describe(operation: &mut Operation<'_>) {
        operation.parameters::<T>(In::Query);
    }
}

/// A body in JSON. Taken last, when everything else of the request is found good.
#[derive(Debug)]
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Shared> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &Shared) -> Result<Self, Problem> {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if !kind.is_some_and(is_json) {
            let problem = Problem::new(ErrorCode::UnsupportedMediaType);
            return Err(problem.detail("Content-Type must be application/json"));
        }
        let limit = Duration::from_millis(HTTP_BODY_MS_MAX);
        let read = timeout(limit, read_body(request, state)).await;
        let body = read.map_err(|_| {
            let detail = format!("the body must come within {} s", limit.as_secs());
            Problem::new(ErrorCode::Timeout).detail(detail)
        })??;
        parse(&body).map(Json)
    }
}

impl<T: JsonSchema> Takes for Json<T> {
    fn describe(operation: &mut Operation<'_>) {
        operation.body::<T>();
        let codes = [ErrorCode::Timeout, ErrorCode::TooLarge, ErrorCode::UnsupportedMediaType];
        operation.fails(&codes);
    }
}

/// An answer in JSON with the status 200 (or another).
#[derive(Debug)]
pub(super) struct Answer<T, const STATUS: u16 = 200>(pub T);

impl<T: Serialize, const STATUS: u16> IntoResponse for Answer<T, STATUS> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(STATUS).expect("a constant of ours");
        match serde_json::to_vec(&self.0) {
            Ok(body) => (status, [(CONTENT_TYPE, "application/json")], body).into_response(),
            Err(error) => {
                tracing::error!(%error, "an answer cannot be written as JSON");
                Problem::new(ErrorCode::Internal).into_response()
            }
        }
    }
}

impl<T: JsonSchema, const STATUS: u16> Gives for Answer<T, STATUS> {
    fn describe(operation: &mut Operation<'_>) {
        operation.answer::<T>(STATUS, "done");
    }
}

/// Seconds since 1970.
pub(super) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Parses JSON. What is wrong is told with its path; that takes longer and so comes second.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let error: serde_json::Error = match serde_json::from_slice(body) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    if !error.is_data() {
        return Err(Problem::new(ErrorCode::Malformed).detail(format!("not JSON: {error}")));
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(body);
    match serde_path_to_error::deserialize(deserializer) {
        Ok(value) => Ok(value),
        Err(error) => Err(wrong(&error)),
    }
}

/// What is wrong with a field, or with the whole.
fn wrong<E: std::fmt::Display>(error: &serde_path_to_error::Error<E>) -> Problem {
    let problem = Problem::new(ErrorCode::Invalid).detail(error.inner().to_string());
    match error.path().iter().next() {
        Some(_) => problem.field(error.path().to_string()),
        None => problem,
    }
}

/// `application/json`, whatever follows (`; charset=utf-8`).
fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Reads a body within its bound. Of all bodies together no more is held than their bound.
async fn read_body(request: Request, state: &Shared) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("a body has at most {HTTP_BODY_BYTES_MAX} bytes");
        Problem::new(ErrorCode::TooLarge).detail(detail)
    };
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > HTTP_BODY_BYTES_MAX) {
        return Err(too_large());
    }
    let mut body = request.into_body();
    let mut held = state.bodies.hold();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let broken = |_| Problem::new(ErrorCode::Malformed).detail("the body broke off");
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if whole.len() + data.len() > HTTP_BODY_BYTES_MAX {
            return Err(too_large());
        }
        held.grow(data.len(), HTTP_BODIES_BYTES_MAX)
            .map_err(|_| Problem::new(ErrorCode::Busy).detail("too many bodies are being read"))?;
        if whole.is_empty() && Some(data.len()) == length {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
