//! Channels: opening, listing, markers, typing.

use axum::extract::State;
use chatring_core::call::{Answer as CallAnswer, CallDevice, CallRequest, ChannelView};
use chatring_core::effect::Identity;
use chatring_wire::frame::{ChannelKind, Head, UserRef};
use chatring_wire::limits::NAME_BYTES_MAX;
use chatring_wire::{ErrorCode, Seq};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::messages::Message;
use super::types::{CidText, UidText};
use crate::api::Shared;
use crate::api::accounts::AccountError;
use crate::api::chat::{Chat, unexpected};
use crate::api::extract::{Answer, Caller, InPath, InQuery, Json, Nothing, unix_s};
use crate::api::problem::Problem;

/// Which channel to open. Exactly one of `with`, `with_user` and `with_uid` says with whom.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenBody {
    /// Only `direct` today.
    kind: KindName,
    /// The other one's handle; of a user without an account, the subject of its tokens.
    with: Option<String>,
    /// The other one by what its tokens say.
    with_user: Option<UserName>,
    /// The other one by its id in the chat.
    with_uid: Option<UidText>,
}

/// A user by what its tokens say.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserName {
    /// `iss`; empty for this deployment's own.
    issuer: String,
    /// `sub`.
    subject: String,
}

/// Kinds of channels.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum KindName {
    /// Two users.
    Direct,
}

/// Which channel.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ChannelPath {
    /// The channel's id.
    pub id: CidText,
}

/// Which page of the list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// `next` of the page before.
    after: Option<CidText>,
    /// How many, 1 to 50; 50 if it is left out.
    #[schemars(range(min = 1, max = CHANNELS_MAX))]
    limit: Option<u32>,
}

/// A page of my channels.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Channels {
    /// Those with messages, by id.
    channels: Vec<Channel>,
    /// Give it as `after` for the next page; null at the end.
    next: Option<CidText>,
}

/// A channel as I see it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Channel {
    /// Its id.
    id: CidText,
    /// `direct`, `group` or `broadcast`.
    kind: &'static str,
    /// The other one of a direct channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<PeerBody>,
    /// My number in the channel, which messages name as `sender`.
    me: u32,
    /// The newest position; 0 while the channel is empty.
    head: u64,
    /// The oldest position kept.
    floor: u64,
    /// How far I have read.
    read: u64,
    /// How far any of my devices has received.
    received: u64,
    /// How many messages count as unread.
    unread: u64,
    /// The newest message.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Message>,
}

/// The other one of a direct channel.
#[derive(Debug, Serialize, JsonSchema)]
struct PeerBody {
    /// Its id in the chat.
    uid: UidText,
    /// Who made its tokens, and its name there.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<UserName>,
}

/// How far I have read and received.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Markers {
    /// The newest message that I have read; markers only rise.
    read: Option<u64>,
    /// The newest message that my device has received.
    received: Option<u64>,
}

pub(super) async fn open(
    Caller(owner): Caller,
    State(state): State<Shared>,
    Json(body): Json<OpenBody>,
) -> Result<Answer<Channel>, Problem> {
    let OpenBody { kind: KindName::Direct, with, with_user, with_uid } = body;
    let chat = state.chat()?;
    let with = match (with, with_user, with_uid) {
        (Some(handle), None, None) => by_handle(&state, chat, handle).await?,
        (None, Some(UserName { issuer, subject }), None) => subject_of(issuer, subject)?,
        (None, None, Some(uid)) => UserRef::Uid(uid.0),
        _ => {
            let detail = "exactly one of with, with_user and with_uid must say with whom";
            return Err(Problem::invalid("with", detail));
        }
    };
    channel(chat.call(&owner, CallRequest::Open(with)).await?)
}

pub(super) async fn show(
    Caller(owner): Caller,
    State(state): State<Shared>,
    InPath(path): InPath<ChannelPath>,
) -> Result<Answer<Channel>, Problem> {
    channel(state.chat()?.call(&owner, CallRequest::Channel(path.id.0)).await?)
}

pub(super) async fn list(
    Caller(owner): Caller,
    State(state): State<Shared>,
    InQuery(query): InQuery<ListQuery>,
) -> Result<Answer<Channels>, Problem> {
    let limit = query.limit.unwrap_or(CHANNELS_MAX);
    if !(1..=CHANNELS_MAX).contains(&limit) {
        return Err(Problem::invalid("limit", format!("must be 1 to {CHANNELS_MAX}")));
    }
    let request = CallRequest::Channels { after: query.after.map(|after| after.0), limit };
    match state.chat()?.call(&owner, request).await? {
        CallAnswer::Channels { channels, next } => Ok(Answer(Channels {
            channels: channels.into_iter().map(Channel::from).collect(),
            next: next.map(CidText),
        })),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn mark(
    Caller(owner): Caller,
    State(state): State<Shared>,
    InPath(path): InPath<ChannelPath>,
    Json(body): Json<Markers>,
) -> Result<Nothing, Problem> {
    let (read, received) = (body.read.unwrap_or(0), body.received.unwrap_or(0));
    if read == 0 && received == 0 {
        return Err(Problem::invalid("read", "one of read and received must be above 0"));
    }
    let (read, received) = (Seq(read), Seq(received));
    done(state.chat()?.call(&owner, CallRequest::Mark { cid: path.id.0, read, received }).await?)
}

pub(super) async fn typing(
    Caller(owner): Caller,
    State(state): State<Shared>,
    InPath(path): InPath<ChannelPath>,
) -> Result<Nothing, Problem> {
    done(state.chat()?.call(&owner, CallRequest::Typing(path.id.0)).await?)
}

/// Most channels of a page.
const CHANNELS_MAX: u32 = chatring_core::call::LIST_CHANNELS_MAX;

/// The user with a handle. An account that has never spoken to the chat is made known to it, so
/// that its first messages may come before it does.
async fn by_handle(state: &Shared, chat: &Chat, handle: String) -> Result<UserRef, Problem> {
    let account = match state.accounts() {
        Some(accounts) => match accounts.user(&handle).await {
            Ok(profile) => Some(profile.account),
            Err(AccountError::UnknownUser) => None,
            Err(error) => return Err(error.into()),
        },
        None => None,
    };
    let Some(account) = account else { return subject_of(String::new(), handle) };
    let now_s = unix_s();
    let identity = Identity {
        issuer: String::new(),
        subject: account.to_string(),
        issued_at_s: now_s,
        expires_at_s: now_s + 60,
        installation: None,
    };
    chat.sign_in(&identity, CallDevice::None).await?;
    subject_of(identity.issuer, identity.subject)
}

fn subject_of(issuer: String, subject: String) -> Result<UserRef, Problem> {
    let fits = |name: &str| name.len() <= NAME_BYTES_MAX;
    if subject.is_empty() || !fits(&issuer) || !fits(&subject) {
        return Err(ErrorCode::UnknownUser.into());
    }
    Ok(UserRef::Subject { issuer, subject })
}

fn channel(answer: CallAnswer) -> Result<Answer<Channel>, Problem> {
    match answer {
        CallAnswer::Channel(view) => Ok(Answer(Channel::from(*view))),
        other => Err(unexpected(&other)),
    }
}

fn done(answer: CallAnswer) -> Result<Nothing, Problem> {
    match answer {
        CallAnswer::Done => Ok(Nothing),
        other => Err(unexpected(&other)),
    }
}

impl From<Head> for Channel {
    fn from(head: Head) -> Channel {
        Channel {
            id: CidText(head.cid),
            kind: kind_name(head.kind),
            peer: head.peer.map(|uid| PeerBody { uid: UidText(uid), user: None }),
            me: head.me.0,
            head: head.head.0,
            floor: head.floor.0,
            read: head.read.0,
            received: head.received.0,
            unread: head.unread(),
            last: None,
        }
    }
}

impl From<ChannelView> for Channel {
    fn from(view: ChannelView) -> Channel {
        let mut channel = Channel::from(view.head);
        channel.peer = view.peer.map(|peer| PeerBody {
            uid: UidText(peer.uid),
            user: Some(UserName { issuer: peer.issuer, subject: peer.subject }),
        });
        channel.last = view.last.map(Message::from);
        channel
    }
}

const fn kind_name(kind: ChannelKind) -> &'static str {
    kind.name()
}
