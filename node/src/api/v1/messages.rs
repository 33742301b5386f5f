//! Messages: sending, and history.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chatring_core::call::{Again, Answer as CallAnswer, CallRequest, CallSend};
use chatring_wire::frame::{MessageKind, Row};
use chatring_wire::limits::{BODY_BYTES_MAX, JSON_NUMBER_MAX, ROWS_PER_FRAME_MAX};
use chatring_wire::{Cmid, ErrorCode, Seq};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::channels::ChannelPath;
use super::types::{Base64, CmidText};
use crate::api::Shared;
use crate::api::chat::unexpected;
use crate::api::describe::{Gives, Operation};
use crate::api::extract::{Answer, Caller, IdempotencyKey, InPath, InQuery, Json};
use crate::api::problem::Problem;

/// A message on its way in: `text`, or `body_base64` with `kind`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SendBody {
    /// A text of at most 64 KiB.
    text: Option<String>,
    /// Bytes of another kind, at most 64 KiB.
    body_base64: Option<Base64>,
    /// What the bytes are; 1 (data) if it is left out.
    kind: Option<u8>,
    /// The message's own id, instead of the header `Idempotency-Key`.
    cmid: Option<CmidText>,
    /// The newest seq of the channel that the client had seen when it first sent this message; for
    /// clients that keep one.
    #[schemars(range(max = JSON_NUMBER_MAX))]
    base: Option<u64>,
}

/// Where a message is stored.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct SentBody {
    /// Its position.
    seq: u64,
    /// Its Unix time in milliseconds.
    time: u64,
    /// What "stored" means here: `fsync` for synced to this machine's disk.
    durability: &'static str,
    /// Its id.
    cmid: CmidText,
}

/// The answer to a send: 201, or 200 if the message was there before.
pub(super) struct Sent(Again, SentBody);

/// A stored message.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Message {
    /// Its position.
    seq: u64,
    /// How many messages up to this one count as unread.
    ordinal: u64,
    /// 0 for text, 1 for data; others as clients agree.
    kind: u8,
    /// The sender's number in the channel.
    sender: u32,
    /// The sender's device; 0 for none.
    device: u32,
    /// The sender's id of the message.
    cmid: CmidText,
    /// Unix time in milliseconds.
    time: u64,
    /// The text, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// The bytes, if it is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<Base64>,
}

/// Which part of the history.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    /// Only older messages than this position; the newest of them are given.
    #[schemars(range(max = JSON_NUMBER_MAX))]
    before: Option<u64>,
    /// Only newer messages than this position; the oldest of them are given.
    #[schemars(range(max = JSON_NUMBER_MAX))]
    after: Option<u64>,
    /// How many, 1 to 256; 50 if it is left out. There may be fewer, with `gap` set.
    #[schemars(range(min = 1, max = HISTORY_ROWS_MAX))]
    limit: Option<u32>,
}

/// A part of the history, ascending.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct History {
    /// The messages.
    messages: Vec<Message>,
    /// Whether there are more in the direction in which it was read.
    gap: bool,
}

/// Messages of a page of history, if the request does not say how many.
const HISTORY_ROWS: u32 = 50;
const HISTORY_ROWS_MAX: u32 = ROWS_PER_FRAME_MAX as u32;

pub(super) async fn send(
    Caller(owner): Caller,
    State(state): State<Shared>,
    InPath(path): InPath<ChannelPath>,
    IdempotencyKey(key): IdempotencyKey,
    Json(body): Json<SendBody>,
) -> Result<Sent, Problem> {
    let cmid = match (key, body.cmid) {
        (Some(key), None) => cmid_of(&key),
        (None, Some(cmid)) => cmid.0,
        (None, None) => new_cmid()?,
        (Some(_), Some(_)) => {
            return Err(Problem::invalid("cmid", "Idempotency-Key names the message already"));
        }
    };
    let (kind, bytes) = body_of(body.text, body.body_base64, body.kind)?;
    let base = body.base.map(|base| position("base", base)).transpose()?;
    let send = CallSend { cid: path.id.0, cmid, base, kind, body: bytes };
    let place = state.chat()?.send(&owner, send).await?;
    let sent = SentBody {
        seq: place.seq.0,
        time: place.time_ms,
        durability: state.durability(),
        cmid: CmidText(cmid),
    };
    Ok(Sent(place.again, sent))
}

pub(super) async fn history(
    Caller(owner): Caller,
    State(state): State<Shared>,
    InPath(path): InPath<ChannelPath>,
    InQuery(query): InQuery<HistoryQuery>,
) -> Result<Answer<History>, Problem> {
    let limit = query.limit.unwrap_or(HISTORY_ROWS);
    if !(1..=HISTORY_ROWS_MAX).contains(&limit) {
        return Err(Problem::invalid("limit", format!("must be 1 to {HISTORY_ROWS_MAX}")));
    }
    let before = query.before.map(|before| position("before", before)).transpose()?;
    let after = query.after.map(|after| position("after", after)).transpose()?;
    let request = CallRequest::History { cid: path.id.0, before, after, limit };
    match state.chat()?.call(&owner, request).await? {
        CallAnswer::History(page) => {
            let messages = page.rows.into_iter().map(Message::from).collect();
            Ok(Answer(History { messages, gap: page.gap }))
        }
        other => Err(unexpected(&other)),
    }
}

/// A position that JSON carries exactly.
fn position(field: &str, seq: u64) -> Result<Seq, Problem> {
    match seq <= JSON_NUMBER_MAX {
        true => Ok(Seq(seq)),
        false => Err(Problem::invalid(field, "must be below 2^53")),
    }
}

fn body_of(
    text: Option<String>,
    bytes: Option<Base64>,
    kind: Option<u8>,
) -> Result<(MessageKind, Bytes), Problem> {
    let (kind, body) = match (text, bytes, kind) {
        (Some(text), None, None | Some(0)) => (MessageKind::TEXT, Bytes::from(text)),
        (Some(_), None, Some(_)) => {
            return Err(Problem::invalid("kind", "a text has kind 0"));
        }
        (None, Some(_), Some(0)) => {
            return Err(Problem::invalid("kind", "kind 0 is a text: send it as text"));
        }
        (None, Some(bytes), kind) => (kind.map_or(MessageKind::DATA, MessageKind), bytes.0),
        (Some(_), Some(_), _) | (None, None, _) => {
            return Err(Problem::invalid("text", "exactly one of text and body_base64 is needed"));
        }
    };
    match body.len() <= BODY_BYTES_MAX {
        true => Ok((kind, body)),
        false => Err(ErrorCode::BodyTooLarge.into()),
    }
}

/// The first 16 bytes of the key's SHA-256.
fn cmid_of(key: &str) -> Cmid {
    let hash = digest(&SHA256, key.as_bytes());
    Cmid(*hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes"))
}

/// For senders that do not care whether a repeat is stored twice.
fn new_cmid() -> Result<Cmid, Problem> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| ErrorCode::Internal)?;
    Ok(Cmid(bytes))
}

impl IntoResponse for Sent {
    fn into_response(self) -> Response {
        match self.0 {
            Again::First => Answer::<_, 201>(self.1).into_response(),
            Again::Repeat => Answer::<_, 200>(self.1).into_response(),
        }
    }
}

impl Gives for Sent {
    fn describe(operation: &mut Operation<'_>) {
        operation.answer::<SentBody>(StatusCode::CREATED.as_u16(), "stored");
        operation.answer::<SentBody>(StatusCode::OK.as_u16(), "a repeat: stored before");
    }
}

impl From<Row> for Message {
    fn from(row: Row) -> Message {
        let (text, bytes) = match std::str::from_utf8(&row.body) {
            Ok(text) if row.kind == MessageKind::TEXT => (Some(text.to_owned()), None),
            _ => (None, Some(Base64(row.body))),
        };
        Message {
            seq: row.seq.0,
            ordinal: row.ordinal.0,
            kind: row.kind.0,
            sender: row.sender.0,
            device: row.device.0,
            cmid: CmidText(row.cmid),
            time: row.time_ms,
            text,
            body_base64: bytes,
        }
    }
}
