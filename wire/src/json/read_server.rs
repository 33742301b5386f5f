//! The objects of a server's frames.

use std::borrow::Cow;

use serde::Deserialize;

use super::read::{AtMost, base64, body, id, id16, need, number, string};
use crate::codec::check_page;
use crate::error::{ErrorCode, WireError};
use crate::frame::{
    CacheAction, ChannelKind, Durability, Failure, Head, HeadRows, Member, MessageKind, Page,
    RequestId, Row, ServerFrame, Welcome,
};
use crate::id::{Cid, Cmid, DeviceId, HistoryId, MemberNumber, Ordinal, Seq, Uid};
use crate::limits::{
    CURSOR_BYTES_MAX, ERROR_TEXT_BYTES_MAX, NAME_BYTES_MAX, ROWS_PER_FRAME_MAX, URL_BYTES_MAX,
    WHO_MEMBERS_MAX,
};

type Text<'a> = Option<Cow<'a, str>>;

#[derive(Deserialize)]
pub(super) struct ServerObject<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    pub(super) skip: Option<bool>,
    request: Option<u32>,
    #[serde(borrow)]
    uid: Text<'a>,
    device: Option<u32>,
    #[serde(borrow)]
    history: Text<'a>,
    time_ms: Option<u64>,
    heartbeat_ms: Option<u32>,
    window_pushes: Option<u32>,
    window_bytes: Option<u32>,
    frame_bytes_max: Option<u32>,
    body_bytes_max: Option<u32>,
    open_sends_max: Option<u32>,
    #[serde(borrow)]
    durability: Text<'a>,
    #[serde(borrow)]
    head: Option<HeadObject<'a>>,
    #[serde(borrow)]
    cid: Text<'a>,
    seq: Option<u64>,
    #[serde(borrow)]
    error: Option<FailureObject<'a>>,
    checked_to: Option<u64>,
    sender: Option<u32>,
    #[serde(borrow)]
    text: Text<'a>,
    #[serde(borrow)]
    body: Text<'a>,
    #[serde(borrow)]
    row: Option<RowObject<'a>>,
    read: Option<u64>,
    read_ordinal: Option<u64>,
    received: Option<u64>,
    #[serde(borrow)]
    cache: Text<'a>,
    #[serde(borrow)]
    page: Option<PageObject<'a>>,
    #[serde(borrow)]
    cursor: Text<'a>,
    #[serde(borrow)]
    members: Option<AtMost<MemberObject<'a>, WHO_MEMBERS_MAX>>,
    after_ms: Option<u32>,
    spread_ms: Option<u32>,
    pushes: Option<u64>,
}

#[derive(Deserialize)]
struct HeadObject<'a> {
    #[serde(borrow)]
    cid: Text<'a>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    peer: Text<'a>,
    me: u32,
    head: u64,
    ordinal: u64,
    floor: u64,
    read: u64,
    read_ordinal: u64,
    received: u64,
    #[serde(borrow)]
    rows: Cow<'a, str>,
}

#[derive(Deserialize)]
struct PageObject<'a> {
    #[serde(borrow)]
    cid: Text<'a>,
    from: u64,
    to: u64,
    gap: bool,
    #[serde(borrow)]
    rows: AtMost<RowObject<'a>, ROWS_PER_FRAME_MAX>,
}

#[derive(Deserialize)]
struct RowObject<'a> {
    seq: u64,
    ordinal: u64,
    kind: u8,
    sender: u32,
    device: u32,
    #[serde(borrow)]
    cmid: Text<'a>,
    time_ms: u64,
    #[serde(borrow)]
    text: Text<'a>,
    #[serde(borrow)]
    body: Text<'a>,
}

#[derive(Deserialize)]
struct FailureObject<'a> {
    code: u16,
    #[serde(borrow)]
    text: Text<'a>,
    retry_after_ms: Option<u32>,
    #[serde(borrow)]
    moved_to: Text<'a>,
}

#[derive(Deserialize)]
struct MemberObject<'a> {
    number: u32,
    #[serde(borrow)]
    uid: Text<'a>,
    #[serde(borrow)]
    issuer: Text<'a>,
    #[serde(borrow)]
    subject: Text<'a>,
}

/// The frame that an object stands for; `None` if its type is not known.
pub(super) fn server_frame(object: ServerObject<'_>) -> Result<Option<ServerFrame>, WireError> {
    let request = || need("request", object.request).map(RequestId);
    let cid = || id("cid", &object.cid).map(Cid);
    let seq = || number("seq", object.seq).map(Seq);
    let time_ms = || number("time_ms", object.time_ms);
    let frame = match &*object.r#type {
        "welcome" => welcome(&object)?,
        "done" => ServerFrame::Done { request: request()? },
        "opened" => ServerFrame::Opened { request: request()?, head: head(object.head)? },
        "sent" => {
            ServerFrame::Sent { request: request()?, cid: cid()?, seq: seq()?, time_ms: time_ms()? }
        }
        "refused" => ServerFrame::Refused { request: request()?, error: failure(object.error)? },
        "unknown" => ServerFrame::Unknown { request: request()? },
        "continue" => ServerFrame::Continue {
            request: request()?,
            checked_to: Seq(number("checked_to", object.checked_to)?),
        },
        "text" => ServerFrame::Text {
            cid: cid()?,
            seq: seq()?,
            sender: MemberNumber(need("sender", object.sender)?),
            time_ms: time_ms()?,
            body: body(MessageKind::TEXT, &object.text, &object.body)?,
        },
        "entry" => ServerFrame::Entry { cid: cid()?, row: row(need("row", object.row)?)? },
        "marker" => ServerFrame::Marker {
            cid: cid()?,
            read: Seq(number("read", object.read)?),
            read_ordinal: Ordinal(number("read_ordinal", object.read_ordinal)?),
            received: Seq(number("received", object.received)?),
        },
        "syncing" => ServerFrame::Syncing {
            request: request()?,
            cache: match object.cache.as_deref() {
                Some("keep") => CacheAction::Keep,
                Some("replace") => CacheAction::Replace,
                _ => return Err(WireError::OutOfRange { field: "cache" }),
            },
        },
        "head" => ServerFrame::Head(head(object.head)?),
        "page" => ServerFrame::Page(page(object.page)?),
        "page_end" => ServerFrame::PageEnd { request: request()? },
        "synced" => ServerFrame::Synced {
            request: request()?,
            cursor: base64("cursor", need("cursor", object.cursor.as_deref())?, CURSOR_BYTES_MAX)?,
        },
        "behind" => ServerFrame::Behind,
        "rows" => ServerFrame::Rows { request: request()?, page: page(object.page)? },
        "members" => {
            let (request, cid) = (request()?, cid()?);
            let members = need("members", object.members)?.0;
            let members = members.into_iter().map(member).collect::<Result<_, _>>()?;
            ServerFrame::Members { request, cid, members }
        }
        "drain" => ServerFrame::Drain {
            after_ms: need("after_ms", object.after_ms)?,
            spread_ms: need("spread_ms", object.spread_ms)?,
        },
        "pong" => {
            ServerFrame::Pong { pushes: number("pushes", object.pushes)?, time_ms: time_ms()? }
        }
        "error" => ServerFrame::Error(failure(object.error)?),
        _ => return Ok(None),
    };
    Ok(Some(frame))
}

fn welcome(object: &ServerObject<'_>) -> Result<ServerFrame, WireError> {
    let durability = match need("durability", object.durability.as_deref())? {
        "memory" => Durability::Memory,
        "fsync" => Durability::Fsync,
        "replicated" => Durability::Replicated,
        _ => return Err(WireError::OutOfRange { field: "durability" }),
    };
    Ok(ServerFrame::Welcome(Welcome {
        uid: Uid(id("uid", &object.uid)?),
        device: DeviceId(need("device", object.device)?),
        history: HistoryId(id("history", &object.history)?),
        time_ms: number("time_ms", object.time_ms)?,
        heartbeat_ms: need("heartbeat_ms", object.heartbeat_ms)?,
        window_pushes: need("window_pushes", object.window_pushes)?,
        window_bytes: need("window_bytes", object.window_bytes)?,
        frame_bytes_max: need("frame_bytes_max", object.frame_bytes_max)?,
        body_bytes_max: need("body_bytes_max", object.body_bytes_max)?,
        open_sends_max: need("open_sends_max", object.open_sends_max)?,
        durability,
    }))
}

fn head(object: Option<HeadObject<'_>>) -> Result<Head, WireError> {
    let object = need("head", object)?;
    let peer = match object.peer {
        None => None,
        peer => Some(Uid(id("peer", &peer)?)),
    };
    Ok(Head {
        cid: Cid(id("cid", &object.cid)?),
        kind: match &*object.kind {
            "direct" => ChannelKind::Direct,
            "group" => ChannelKind::Group,
            "broadcast" => ChannelKind::Broadcast,
            _ => return Err(WireError::OutOfRange { field: "kind" }),
        },
        peer,
        me: MemberNumber(object.me),
        head: Seq(number("head", Some(object.head))?),
        ordinal: Ordinal(number("ordinal", Some(object.ordinal))?),
        floor: Seq(number("floor", Some(object.floor))?),
        read: Seq(number("read", Some(object.read))?),
        read_ordinal: Ordinal(number("read_ordinal", Some(object.read_ordinal))?),
        received: Seq(number("received", Some(object.received))?),
        rows: match &*object.rows {
            "unchanged" => HeadRows::Unchanged,
            "follow" => HeadRows::Follow,
            "stale" => HeadRows::Stale,
            _ => return Err(WireError::OutOfRange { field: "rows" }),
        },
    })
}

fn page(object: Option<PageObject<'_>>) -> Result<Page, WireError> {
    let object = need("page", object)?;
    let page = Page {
        cid: Cid(id("cid", &object.cid)?),
        from: Seq(number("from", Some(object.from))?),
        to: Seq(number("to", Some(object.to))?),
        gap: object.gap,
        rows: object.rows.0.into_iter().map(row).collect::<Result<_, _>>()?,
    };
    check_page(&page)?;
    Ok(page)
}

fn row(object: RowObject<'_>) -> Result<Row, WireError> {
    let kind = MessageKind(object.kind);
    Ok(Row {
        seq: Seq(number("seq", Some(object.seq))?),
        ordinal: Ordinal(number("ordinal", Some(object.ordinal))?),
        kind,
        sender: MemberNumber(object.sender),
        device: DeviceId(object.device),
        cmid: Cmid(id16("cmid", &object.cmid)?),
        time_ms: number("time_ms", Some(object.time_ms))?,
        body: body(kind, &object.text, &object.body)?,
    })
}

fn failure(object: Option<FailureObject<'_>>) -> Result<Failure, WireError> {
    let object = need("error", object)?;
    let optional = |field, text: Text<'_>, max| match text {
        None => Ok(None),
        text => string(field, &text, max).map(Some),
    };
    Ok(Failure {
        code: ErrorCode::from_number(object.code).ok_or(object.code),
        text: optional("text", object.text, ERROR_TEXT_BYTES_MAX)?.unwrap_or_default(),
        retry_after_ms: object.retry_after_ms,
        moved_to: optional("moved_to", object.moved_to, URL_BYTES_MAX)?,
    })
}

fn member(object: MemberObject<'_>) -> Result<Member, WireError> {
    Ok(Member {
        number: MemberNumber(object.number),
        uid: Uid(id("uid", &object.uid)?),
        issuer: string("issuer", &object.issuer, NAME_BYTES_MAX)?,
        subject: string("subject", &object.subject, NAME_BYTES_MAX)?,
    })
}
