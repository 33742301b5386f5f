//! What is new: by polling, by waiting, and as server-sent events.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use chatring_core::call::{
    Answer as CallAnswer, CallRequest, CallSync, Event, More, SYNC_EVENTS_MAX, SYNC_WAIT_MS_MAX,
    Synced,
};
use chatring_wire::ErrorCode;
use chatring_wire::frame::CacheAction;
use chatring_wire::limits::CURSOR_BYTES_MAX;
use http_body::Frame;
use schemars::{JsonSchema, json_schema};
use serde::{Deserialize, Serialize};

use super::channels::Channel;
use super::messages::Message;
use super::types::{Base64, CidText, UidText};
use crate::api::Shared;
use crate::api::chat::unexpected;
use crate::api::describe::{Gives, Operation};
use crate::api::extract::{Answer, Caller, InQuery, LastEventId, unix_s};
use crate::api::parked::Parked;
use crate::api::problem::Problem;
use crate::api::tokens::Owner;

/// How long a stream of events is silent at most: a comment keeps the connection alive.
const KEEP_ALIVE_MS: u32 = 15_000;

/// Since when, and how long to wait.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SyncQuery {
    /// `cursor` of the last answer, of whatever transport; left out for a first sync.
    cursor: Option<Base64>,
    /// How long to wait if nothing is new, in milliseconds, up to 60000; 0 (or left out) answers
    /// at once.
    #[schemars(range(max = SYNC_WAIT_MS_MAX))]
    wait_ms: Option<u32>,
    /// Most events, 1 to 256; 256 if it is left out.
    #[schemars(range(min = 1, max = SYNC_EVENTS_MAX))]
    limit: Option<u32>,
}

/// Since when.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Where to begin; the header `Last-Event-ID` goes before it.
    cursor: Option<Base64>,
}

/// What is new.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct SyncBody {
    /// In the order in which they are to be taken in; messages of a channel ascend.
    events: Vec<EventBody>,
    /// Where to go on, here or in the `hello` of a WebSocket.
    cursor: Base64,
    /// Whether it is worth asking again at once.
    more: bool,
    /// Whether everything that was cached is to be dropped before the events: the cursor was of no
    /// use (or there was none), and this is all there is.
    replace: bool,
}

/// Something new.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
enum EventBody {
    /// A channel that changed while the client was away.
    Channel(Box<Channel>),
    /// After an absence: messages at or below `below` may be missing; read them as history before
    /// they are shown.
    Gap {
        /// The channel.
        channel: CidText,
        /// The newest position that may be missing.
        below: u64,
    },
    /// A message.
    Message {
        /// The channel.
        channel: CidText,
        /// The message.
        #[serde(flatten)]
        message: Box<Message>,
    },
    /// My markers of a channel have moved.
    Marker {
        /// The channel.
        channel: CidText,
        /// How far I have read.
        read: u64,
        /// The ordinal of that message.
        read_ordinal: u64,
        /// How far any of my devices has received.
        received: u64,
    },
    /// Somebody is typing now.
    Typing {
        /// The channel.
        channel: CidText,
        /// Who, by its id in the chat.
        uid: UidText,
    },
}

/// Server-sent events: each has the data of an answer of `GET /v1/sync`, and its cursor as id.
pub(super) struct EventStream(Body);

pub(super) async fn sync(
    Caller(owner): Caller,
    State(state): State<Shared>,
    InQuery(query): InQuery<SyncQuery>,
) -> Result<Answer<SyncBody>, Problem> {
    let wait_ms = query.wait_ms.unwrap_or(0);
    if wait_ms > SYNC_WAIT_MS_MAX {
        return Err(Problem::invalid("wait_ms", format!("must be at most {SYNC_WAIT_MS_MAX}")));
    }
    let limit = query.limit.unwrap_or(SYNC_EVENTS_MAX);
    if !(1..=SYNC_EVENTS_MAX).contains(&limit) {
        return Err(Problem::invalid("limit", format!("must be 1 to {SYNC_EVENTS_MAX}")));
    }
    let cursor = cursor_of(query.cursor)?;
    let _parked = match wait_ms {
        0 => None,
        _ => Some(state.parked.park()?),
    };
    let synced = next(&state, &owner, CallSync { cursor, limit, wait_ms }).await?;
    Ok(Answer(SyncBody::from(synced)))
}

pub(super) async fn events(
    Caller(owner): Caller,
    State(state): State<Shared>,
    LastEventId(last): LastEventId,
    InQuery(query): InQuery<EventsQuery>,
) -> Result<EventStream, Problem> {
    let last = last.map(|last| {
        let bytes = URL_SAFE_NO_PAD.decode(last);
        bytes.map_err(|_| Problem::invalid("Last-Event-ID", "must be a cursor"))
    });
    let cursor = match last.transpose()? {
        Some(bytes) => Some(Base64(bytes.into())),
        None => query.cursor,
    };
    let cursor = cursor_of(cursor)?;
    let parked = state.parked.park()?;
    // What is refused is refused before the stream begins.
    let at_once = CallSync { cursor, limit: 0, wait_ms: 0 };
    let first = next(&state, &owner, at_once).await?;
    let events = Events {
        cursor: first.cursor.clone(),
        written: Some(written(first)),
        state,
        owner,
        waiting: None,
        ended: false,
        _parked: parked,
    };
    Ok(EventStream(Body::new(events)))
}

async fn next(state: &Shared, owner: &Owner, sync: CallSync) -> Result<Synced, Problem> {
    // What ends a log-in ends the calls that wait: none may begin to wait after that.
    if state.tokens().is_some_and(|tokens| tokens.has_ended(owner)) {
        return Err(ErrorCode::RevokedToken.into());
    }
    // Boxed, for it waits, and would have two places here and two in each caller.
    let call = Box::pin(state.chat()?.call(owner, CallRequest::Sync(sync)));
    let draining = state.draining();
    let answer = tokio::select! {
        answer = call => answer?,
        () = draining => return Err(ErrorCode::Draining.into()),
    };
    match answer {
        CallAnswer::Synced(synced) => Ok(synced),
        other => Err(unexpected(&other)),
    }
}

fn cursor_of(cursor: Option<Base64>) -> Result<Bytes, Problem> {
    let cursor = cursor.unwrap_or_default().0;
    match cursor.len() <= CURSOR_BYTES_MAX {
        true => Ok(cursor),
        false => Err(Problem::invalid("cursor", "is too long to be one")),
    }
}

/// A stream of events as a body: one sync after the other, each with the cursor of the last. What
/// the peer is slow to take stays in the store.
struct Events {
    state: Shared,
    owner: Owner,
    cursor: Bytes,
    written: Option<Bytes>,
    waiting: Option<Waiting>,
    ended: bool,
    _parked: Parked,
}

type Waiting = Pin<Box<dyn Future<Output = Result<Synced, Problem>> + Send>>;

impl HttpBody for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Some(written) = this.written.take() {
            return Poll::Ready(Some(Ok(Frame::data(written))));
        }
        if this.ended {
            return Poll::Ready(None);
        }
        let waiting = this.waiting.get_or_insert_with(|| {
            let (state, owner) = (Arc::clone(&this.state), this.owner.clone());
            let sync = CallSync { cursor: this.cursor.clone(), limit: 0, wait_ms: KEEP_ALIVE_MS };
            Box::pin(async move {
                state.tokens().ok_or(ErrorCode::Unavailable)?.check(&owner, unix_s())?;
                next(&state, &owner, sync).await
            })
        });
        let synced = ready!(waiting.as_mut().poll(cx));
        this.waiting = None;
        let written = match synced {
            Ok(synced) => {
                this.cursor = synced.cursor.clone();
                written(synced)
            }
            // The client learns more when it comes again, after a moment.
            Err(problem) => {
                this.ended = true;
                Bytes::from(format!("retry: 1000\n: {}\n\n", problem.code().name()))
            }
        };
        Poll::Ready(Some(Ok(Frame::data(written))))
    }
}

/// An event of the stream, or a comment if there is nothing to tell.
fn written(synced: Synced) -> Bytes {
    if synced.events.is_empty() && synced.cache == CacheAction::Keep {
        return Bytes::from_static(b": nothing new\n\n");
    }
    let body = SyncBody::from(synced);
    let mut out = Vec::from("id: ");
    out.extend_from_slice(URL_SAFE_NO_PAD.encode(&body.cursor.0).as_bytes());
    out.extend_from_slice(b"\nevent: sync\ndata: ");
    // JSON on one line: line breaks within strings are escaped.
    serde_json::to_writer(&mut out, &body).expect("writing to memory does not fail");
    out.extend_from_slice(b"\n\n");
    out.into()
}

impl From<Synced> for SyncBody {
    fn from(synced: Synced) -> SyncBody {
        let mut events = Vec::new();
        for event in synced.events {
            put(event, &mut events);
        }
        SyncBody {
            events,
            cursor: Base64(synced.cursor),
            more: synced.more == More::Yes,
            replace: synced.cache == CacheAction::Replace,
        }
    }
}

fn put(event: Event, out: &mut Vec<EventBody>) {
    match event {
        Event::Channel(head) => out.push(EventBody::Channel(Box::new(Channel::from(head)))),
        Event::Page(page) => {
            let channel = CidText(page.cid);
            if page.gap {
                out.push(EventBody::Gap { channel, below: page.from.0.saturating_sub(1) });
            }
            let message = |row| EventBody::Message { channel, message: Box::new(row) };
            out.extend(page.rows.into_iter().map(Message::from).map(message));
        }
        Event::Message { cid, row, .. } => {
            let message = Box::new(Message::from(row));
            out.push(EventBody::Message { channel: CidText(cid), message });
        }
        Event::Marker { cid, read, read_ordinal, received } => out.push(EventBody::Marker {
            channel: CidText(cid),
            read: read.0,
            read_ordinal: read_ordinal.0,
            received: received.0,
        }),
        Event::Typing { cid, uid } => {
            out.push(EventBody::Typing { channel: CidText(cid), uid: UidText(uid) });
        }
    }
}

impl IntoResponse for EventStream {
    fn into_response(self) -> Response {
        let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
        (headers, self.0).into_response()
    }
}

impl Gives for EventStream {
    fn describe(operation: &mut Operation<'_>) {
        let schema = json_schema!({ "type": "string" });
        operation.answer_as(200, "server-sent events", Some(("text/event-stream", schema)));
        operation.known::<SyncBody>();
    }
}
