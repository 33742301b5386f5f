//! Everything of mine in one document, written while it is read.
//!
//! ```text
//!  {"issuer", "subject", "made_ms", "account", "channels":[
//!      a page of channels ─▶ {…, "messages":[ a page of history ─▶ …, … ]}, …
//!  ]}
//! ```
//!
//! No more than one page is in memory, and the next is read when the peer has taken it. An export
//! that cannot go on breaks off its body, so nobody takes a part for the whole.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chatring_core::call::{Answer as CallAnswer, CallRequest, ChannelView, LIST_CHANNELS_MAX};
use chatring_wire::{Cid, ErrorCode, Seq};
use http_body::Frame;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::channels::Channel;
use super::messages::Message;
use crate::api::chat::unexpected;
use crate::api::describe::{Gives, Operation};
use crate::api::exports::Exporting;
use crate::api::extract::{Caller, account_of, unix_ms, unix_s};
use crate::api::limits::HTTP_EXPORT_MS_MAX;
use crate::api::problem::Problem;
use crate::api::tokens::Owner;
use crate::api::{Phase, Shared};

/// Everything of mine.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ExportBody {
    /// Who made my tokens; empty for this deployment.
    issuer: String,
    /// My name with the issuer.
    subject: String,
    /// Unix time at which the export began, in milliseconds.
    made_ms: u64,
    /// The account: profile, settings, devices, log-ins, friends and blocks; null for users who
    /// have none here.
    account: Option<serde_json::Map<String, Value>>,
    /// Every channel that has messages.
    channels: Vec<ChannelExport>,
}

/// A channel with everything that was said in it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ChannelExport {
    /// The channel as I see it.
    #[serde(flatten)]
    channel: Channel,
    /// All messages that are kept, up to `head`, ascending.
    messages: Vec<Message>,
}

/// The document, while it is written.
pub(super) struct Export(Body);

pub(super) async fn export(
    Caller(owner): Caller,
    State(state): State<Shared>,
) -> Result<Export, Problem> {
    let exporting = state.exports.begin(&owner.identity)?;
    let account = match (account_of(&owner), state.accounts()) {
        (Some(caller), Some(accounts)) => accounts.export(&caller).await?,
        _ => Value::Null,
    };
    let mut writer = Writer {
        state,
        owner,
        until: Instant::now() + Duration::from_millis(HTTP_EXPORT_MS_MAX),
        channels: VecDeque::new(),
        next: Next::Channels(None),
        begun: false,
        out: Vec::new(),
    };
    let identity = &writer.owner.identity;
    writer.out.extend_from_slice(b"{\"issuer\":");
    put(&mut writer.out, &identity.issuer);
    writer.out.extend_from_slice(b",\"subject\":");
    put(&mut writer.out, &identity.subject);
    writer.out.extend_from_slice(b",\"made_ms\":");
    put(&mut writer.out, &unix_ms());
    writer.out.extend_from_slice(b",\"account\":");
    put(&mut writer.out, &account);
    writer.out.extend_from_slice(b",\"channels\":[");
    // What is refused is refused before the document begins.
    let (writer, first) = writer.go_on().await?;
    let stream = Stream { first: Some(first), idle: writer, waiting: None, _place: exporting };
    Ok(Export(Body::new(stream)))
}

/// Where the writer is.
enum Next {
    /// The channels above this one are yet to be listed.
    Channels(Option<Cid>),
    /// No more channels are to be listed than those that were.
    Listed,
}

/// Writes the document, a page at a time.
struct Writer {
    state: Shared,
    owner: Owner,
    until: Instant,
    /// Listed, and not yet written. The first one is open if `at` is set.
    channels: VecDeque<Reading>,
    next: Next,
    /// Whether a channel has been written.
    begun: bool,
    out: Vec<u8>,
}

/// A channel that is read.
struct Reading {
    view: ChannelView,
    /// The newest message that is written; `None` before the channel is.
    at: Option<Seq>,
}

impl Writer {
    /// Reads and writes one page. Without a writer in the answer it was the last one.
    async fn go_on(mut self) -> Result<(Option<Writer>, Bytes), Problem> {
        self.check()?;
        let ended = match (self.channels.pop_front(), &self.next) {
            (Some(reading), _) => {
                self.read(reading).await?;
                false
            }
            (None, Next::Channels(after)) => {
                let after = *after;
                self.list(after).await?;
                false
            }
            (None, Next::Listed) => true,
        };
        if ended {
            self.out.extend_from_slice(b"]}\n");
        }
        let written = Bytes::from(std::mem::take(&mut self.out));
        Ok(((!ended).then_some(self), written))
    }

    /// A token may expire meanwhile, but a log-in that has ended ends its export, too.
    fn check(&self) -> Result<(), Problem> {
        let tokens = self.state.tokens().ok_or(ErrorCode::Unavailable)?;
        if tokens.check(&self.owner, unix_s()) == Err(ErrorCode::RevokedToken) {
            return Err(ErrorCode::RevokedToken.into());
        }
        match self.state.phase() {
            Phase::Ready if Instant::now() < self.until => Ok(()),
            Phase::Ready => Err(ErrorCode::Timeout.into()),
            Phase::Starting | Phase::Draining => Err(ErrorCode::Draining.into()),
        }
    }

    async fn list(&mut self, after: Option<Cid>) -> Result<(), Problem> {
        let request = CallRequest::Channels { after, limit: LIST_CHANNELS_MAX };
        match self.state.chat()?.call(&self.owner, request).await? {
            CallAnswer::Channels { channels, next } => {
                let reading = |view: ChannelView| Reading { view, at: None };
                self.channels.extend(channels.into_iter().map(reading));
                self.next = next.map_or(Next::Listed, |next| Next::Channels(Some(next)));
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Writes the next messages of a channel up to the head that it had when it was listed.
    async fn read(&mut self, mut reading: Reading) -> Result<(), Problem> {
        let head = reading.view.head.head;
        let cid = reading.view.head.cid;
        let after = reading.at.unwrap_or(Seq(reading.view.head.floor.0.saturating_sub(1)));
        let before = Some(Seq(head.0 + 1));
        let request = CallRequest::History { cid, before, after: Some(after), limit: 0 };
        let page = match self.state.chat()?.call(&self.owner, request).await? {
            CallAnswer::History(page) => page,
            other => return Err(unexpected(&other)),
        };
        let first = reading.at.is_none();
        if first {
            if self.begun {
                self.out.push(b',');
            }
            self.begun = true;
            reading.view.last = None;
            put(&mut self.out, &Channel::from(reading.view.clone()));
            let brace = self.out.pop();
            debug_assert_eq!(brace, Some(b'}'));
            self.out.extend_from_slice(b",\"messages\":[");
        }
        let newest = page.rows.last().map_or(after, |row| row.seq);
        for (n, row) in page.rows.into_iter().enumerate() {
            if n > 0 || !first {
                self.out.push(b',');
            }
            put(&mut self.out, &Message::from(row));
        }
        // A page without rows and with more behind it would not get on.
        if page.gap && newest > after {
            reading.at = Some(newest);
            self.channels.push_front(reading);
        } else {
            self.out.extend_from_slice(b"]}");
        }
        Ok(())
    }
}

/// The document as a body.
struct Stream {
    first: Option<Bytes>,
    idle: Option<Writer>,
    waiting: Option<Waiting>,
    _place: Exporting,
}

type Waiting = Pin<Box<dyn Future<Output = Result<(Option<Writer>, Bytes), Problem>> + Send>>;

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        loop {
            if this.waiting.is_none() {
                let Some(writer) = this.idle.take() else { return Poll::Ready(None) };
                this.waiting = Some(Box::pin(writer.go_on()));
            }
            let Some(waiting) = &mut this.waiting else { return Poll::Ready(None) };
            let done = ready!(waiting.as_mut().poll(cx));
            this.waiting = None;
            match done {
                Ok((writer, written)) => {
                    this.idle = writer;
                    // Listing channels writes nothing.
                    if !written.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(written))));
                    }
                }
                Err(problem) => {
                    let why = std::io::Error::other(problem.code().name());
                    return Poll::Ready(Some(Err(why)));
                }
            }
        }
    }
}

/// Writes a value as JSON.
fn put(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("texts and numbers are JSON");
}

impl IntoResponse for Export {
    fn into_response(self) -> Response {
        let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
        (headers, self.0).into_response()
    }
}

impl Gives for Export {
    fn describe(operation: &mut Operation<'_>) {
        operation.answer::<ExportBody>(200, "everything of mine; a body that breaks off is none");
    }
}
