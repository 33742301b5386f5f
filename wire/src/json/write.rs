//! Frames to JSON, without building a tree of it first.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, BytesMut};

use crate::codec::{check_body, check_length, check_page, utf8};
use crate::error::{ErrorClass, WireError};
use crate::frame::{
    CacheAction, ClientFrame, Direction, Failure, Head, HeadRows, Hello, Member, MessageKind, Page,
    RangeRequest, RequestId, Row, Send, ServerFrame, SignOutScope, UserRef, Welcome,
};
use crate::id::Cid;
use crate::limits::{
    BODY_BYTES_MAX, CURSOR_BYTES_MAX, ERROR_TEXT_BYTES_MAX, JSON_NUMBER_MAX, MESSAGE_BYTES_MAX,
    NAME_BYTES_MAX, TOKEN_BYTES_MAX, URL_BYTES_MAX, WHO_MEMBERS_MAX,
};

type Written = Result<(), WireError>;

/// Appends a client's frame as one JSON object.
///
/// # Errors
/// A field above its bound, a number that JSON does not carry exactly, a text that is not UTF-8, a
/// `previous` that is not below `request`. `out` is then as it was.
pub fn encode_client(frame: &ClientFrame, out: &mut BytesMut) -> Result<(), WireError> {
    whole(out, |object| put_client(frame, object))
}

/// Appends a server's frame as one JSON object.
///
/// # Errors
/// A field above its bound, a number that JSON does not carry exactly, a text that is not UTF-8, a
/// row outside of its page. `out` is then as it was.
pub fn encode_server(frame: &ServerFrame, out: &mut BytesMut) -> Result<(), WireError> {
    whole(out, |object| put_server(frame, object))
}

fn whole(out: &mut BytesMut, fields: impl FnOnce(&mut Object<'_>) -> Written) -> Written {
    let start = out.len();
    let written = Object::new(out)
        .fill(fields)
        .and_then(|()| check_length("frame", (out.len() - start) as u64, MESSAGE_BYTES_MAX));
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn put_client(frame: &ClientFrame, object: &mut Object<'_>) -> Written {
    match frame {
        ClientFrame::Hello(hello) => put_hello(hello, object),
        ClientFrame::Refresh { request, token } => {
            object.request("refresh", *request)?;
            object.bounded("token", token, TOKEN_BYTES_MAX)
        }
        ClientFrame::Open { request, with } => {
            object.request("open", *request)?;
            object.object("with", |object| match with {
                UserRef::Subject { issuer, subject } => {
                    object.bounded("issuer", issuer, NAME_BYTES_MAX)?;
                    object.bounded("subject", subject, NAME_BYTES_MAX)
                }
                UserRef::Uid(uid) => object.plain("uid", uid),
            })
        }
        ClientFrame::Send(send) => put_send(send, object),
        ClientFrame::Mark { cid, read, received } => {
            object.kind("mark")?;
            object.cid(*cid)?;
            object.number("read", read.0)?;
            object.number("received", received.0)
        }
        ClientFrame::Ack { pushes } => {
            object.kind("ack")?;
            object.number("pushes", *pushes)
        }
        ClientFrame::Sync { request, cursor } => {
            object.request("sync", *request)?;
            object.bytes("cursor", cursor, CURSOR_BYTES_MAX)
        }
        ClientFrame::More { request } => object.request("more", *request),
        ClientFrame::Range(range) => put_range(range, object),
        ClientFrame::Who { request, cid, members } => {
            object.request("who", *request)?;
            object.cid(*cid)?;
            check_length("members", members.len() as u64, WHO_MEMBERS_MAX)?;
            object.array("members", members, |out, member| {
                out.put_slice(member.0.to_string().as_bytes());
                Ok(())
            })
        }
        ClientFrame::SignOut { request, scope } => {
            object.request("sign_out", *request)?;
            match scope {
                SignOutScope::Everywhere => object.plain("scope", "everywhere"),
                SignOutScope::Device(device) => {
                    object.plain("scope", "device")?;
                    object.number("device", u64::from(device.0))
                }
            }
        }
        ClientFrame::Ping { pushes } => {
            object.kind("ping")?;
            object.number("pushes", *pushes)
        }
    }
}

fn put_hello(hello: &Hello, object: &mut Object<'_>) -> Written {
    object.kind("hello")?;
    object.bounded("token", &hello.token, TOKEN_BYTES_MAX)?;
    object.hex("installation", &hello.installation.0)?;
    object.bytes("cursor", &hello.cursor, CURSOR_BYTES_MAX)?;
    object.number("capabilities", hello.capabilities)?;
    object.number("frame_bytes_max", u64::from(hello.frame_bytes_max))
}

fn put_send(send: &Send, object: &mut Object<'_>) -> Written {
    object.request("send", send.request)?;
    object.cid(send.cid)?;
    object.hex("cmid", &send.cmid.0)?;
    object.number("base", send.base.0)?;
    if let Some(previous) = send.previous {
        if previous >= send.request {
            return Err(WireError::OutOfRange { field: "previous" });
        }
        object.number("previous", u64::from(previous.0))?;
    }
    if send.kind != MessageKind::TEXT {
        object.number("kind", u64::from(send.kind.0))?;
    }
    object.body(send.kind, &send.body)
}

fn put_range(range: &RangeRequest, object: &mut Object<'_>) -> Written {
    object.request("range", range.request)?;
    object.cid(range.cid)?;
    object.number("from", range.from.0)?;
    object.number("to", range.to.0)?;
    object.number("limit", u64::from(range.limit))?;
    let direction = match range.direction {
        Direction::Ascending => "ascending",
        Direction::Descending => "descending",
    };
    object.plain("direction", direction)
}

fn put_server(frame: &ServerFrame, object: &mut Object<'_>) -> Written {
    match frame {
        ServerFrame::Welcome(welcome) => put_welcome(welcome, object),
        ServerFrame::Done { request } => object.request("done", *request),
        ServerFrame::Opened { request, head } => {
            object.request("opened", *request)?;
            object.object("head", |object| put_head(head, object))
        }
        ServerFrame::Sent { request, cid, seq, time_ms } => {
            object.request("sent", *request)?;
            object.cid(*cid)?;
            object.number("seq", seq.0)?;
            object.number("time_ms", *time_ms)
        }
        ServerFrame::Refused { request, error } => {
            object.request("refused", *request)?;
            object.object("error", |object| put_failure(error, object))
        }
        ServerFrame::Unknown { request } => object.request("unknown", *request),
        ServerFrame::Continue { request, checked_to } => {
            object.request("continue", *request)?;
            object.number("checked_to", checked_to.0)
        }
        ServerFrame::Text { cid, seq, sender, time_ms, body } => {
            object.kind("text")?;
            object.cid(*cid)?;
            object.number("seq", seq.0)?;
            object.number("sender", u64::from(sender.0))?;
            object.number("time_ms", *time_ms)?;
            object.body(MessageKind::TEXT, body)
        }
        ServerFrame::Entry { cid, row } => {
            object.kind("entry")?;
            object.cid(*cid)?;
            object.object("row", |object| put_row(row, object))
        }
        ServerFrame::Marker { cid, read, read_ordinal, received } => {
            object.kind("marker")?;
            object.cid(*cid)?;
            object.number("read", read.0)?;
            object.number("read_ordinal", read_ordinal.0)?;
            object.number("received", received.0)
        }
        _ => put_sync(frame, object),
    }
}

/// The rest of the server's frames: sync, answers to reads, and the connection's own.
fn put_sync(frame: &ServerFrame, object: &mut Object<'_>) -> Written {
    match frame {
        ServerFrame::Syncing { request, cache } => {
            object.request("syncing", *request)?;
            let cache = match cache {
                CacheAction::Keep => "keep",
                CacheAction::Replace => "replace",
            };
            object.plain("cache", cache)
        }
        ServerFrame::Head(head) => {
            object.kind("head")?;
            object.object("head", |object| put_head(head, object))
        }
        ServerFrame::Page(page) => {
            object.kind("page")?;
            object.object("page", |object| put_page(page, object))
        }
        ServerFrame::PageEnd { request } => object.request("page_end", *request),
        ServerFrame::Synced { request, cursor } => {
            object.request("synced", *request)?;
            object.bytes("cursor", cursor, CURSOR_BYTES_MAX)
        }
        ServerFrame::Rows { request, page } => {
            object.request("rows", *request)?;
            object.object("page", |object| put_page(page, object))
        }
        ServerFrame::Members { request, cid, members } => {
            object.request("members", *request)?;
            object.cid(*cid)?;
            check_length("members", members.len() as u64, WHO_MEMBERS_MAX)?;
            object.array("members", members, |out, member| {
                Object::new(out).fill(|object| put_member(member, object))
            })
        }
        ServerFrame::Drain { after_ms, spread_ms } => {
            object.kind("drain")?;
            object.number("after_ms", u64::from(*after_ms))?;
            object.number("spread_ms", u64::from(*spread_ms))
        }
        ServerFrame::Pong { pushes, time_ms } => {
            object.kind("pong")?;
            object.number("pushes", *pushes)?;
            object.number("time_ms", *time_ms)
        }
        ServerFrame::Error(failure) => {
            object.kind("error")?;
            object.object("error", |object| put_failure(failure, object))
        }
        // The others are written by `put_server`.
        _ => object.kind("behind"),
    }
}

fn put_welcome(welcome: &Welcome, object: &mut Object<'_>) -> Written {
    object.kind("welcome")?;
    object.plain("uid", welcome.uid)?;
    object.number("device", u64::from(welcome.device.0))?;
    object.plain("history", format_args!("{:016x}", welcome.history.0))?;
    object.number("time_ms", welcome.time_ms)?;
    for (key, value) in [
        ("heartbeat_ms", welcome.heartbeat_ms),
        ("window_pushes", welcome.window_pushes),
        ("window_bytes", welcome.window_bytes),
        ("frame_bytes_max", welcome.frame_bytes_max),
        ("body_bytes_max", welcome.body_bytes_max),
        ("open_sends_max", welcome.open_sends_max),
    ] {
        object.number(key, u64::from(value))?;
    }
    object.plain("durability", welcome.durability.name())
}

fn put_failure(failure: &Failure, object: &mut Object<'_>) -> Written {
    match failure.code {
        Err(number) => object.number("code", u64::from(number))?,
        Ok(code) => {
            object.number("code", u64::from(code.number()))?;
            object.plain("name", code.name())?;
            let class = match code.class() {
                ErrorClass::Protocol => "protocol",
                ErrorClass::Auth => "auth",
                ErrorClass::Request => "request",
                ErrorClass::Busy => "busy",
                ErrorClass::Internal => "internal",
            };
            object.plain("class", class)?;
        }
    }
    if !failure.text.is_empty() {
        object.bounded("text", &failure.text, ERROR_TEXT_BYTES_MAX)?;
    }
    if let Some(ms) = failure.retry_after_ms {
        object.number("retry_after_ms", u64::from(ms))?;
    }
    if let Some(url) = &failure.moved_to {
        object.bounded("moved_to", url, URL_BYTES_MAX)?;
    }
    Ok(())
}

fn put_head(head: &Head, object: &mut Object<'_>) -> Written {
    object.cid(head.cid)?;
    object.plain("kind", head.kind.name())?;
    if let Some(peer) = head.peer {
        object.plain("peer", peer)?;
    }
    object.number("me", u64::from(head.me.0))?;
    object.number("head", head.head.0)?;
    object.number("ordinal", head.ordinal.0)?;
    object.number("floor", head.floor.0)?;
    object.number("read", head.read.0)?;
    object.number("read_ordinal", head.read_ordinal.0)?;
    object.number("received", head.received.0)?;
    let rows = match head.rows {
        HeadRows::Unchanged => "unchanged",
        HeadRows::Follow => "follow",
        HeadRows::Stale => "stale",
    };
    object.plain("rows", rows)
}

fn put_page(page: &Page, object: &mut Object<'_>) -> Written {
    check_page(page)?;
    object.cid(page.cid)?;
    object.number("from", page.from.0)?;
    object.number("to", page.to.0)?;
    object.raw("gap", if page.gap { b"true" } else { b"false" });
    object
        .array("rows", &page.rows, |out, row| Object::new(out).fill(|object| put_row(row, object)))
}

fn put_row(row: &Row, object: &mut Object<'_>) -> Written {
    object.number("seq", row.seq.0)?;
    object.number("ordinal", row.ordinal.0)?;
    object.number("kind", u64::from(row.kind.0))?;
    object.number("sender", u64::from(row.sender.0))?;
    object.number("device", u64::from(row.device.0))?;
    object.hex("cmid", &row.cmid.0)?;
    object.number("time_ms", row.time_ms)?;
    object.body(row.kind, &row.body)
}

fn put_member(member: &Member, object: &mut Object<'_>) -> Written {
    object.number("number", u64::from(member.number.0))?;
    object.plain("uid", member.uid)?;
    object.bounded("issuer", &member.issuer, NAME_BYTES_MAX)?;
    object.bounded("subject", &member.subject, NAME_BYTES_MAX)
}

/// A JSON object on its way out.
struct Object<'a> {
    out: &'a mut BytesMut,
    separator: u8,
}

impl<'a> Object<'a> {
    fn new(out: &'a mut BytesMut) -> Object<'a> {
        Object { out, separator: b'{' }
    }

    /// Writes the fields and the closing brace. Objects of the protocol are never empty.
    fn fill(mut self, fields: impl FnOnce(&mut Object<'_>) -> Written) -> Written {
        fields(&mut self)?;
        self.out.put_u8(b'}');
        Ok(())
    }

    fn key(&mut self, key: &str) {
        self.out.put_u8(self.separator);
        self.separator = b',';
        self.out.put_u8(b'"');
        self.out.put_slice(key.as_bytes());
        self.out.put_slice(b"\":");
    }

    fn raw(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        self.out.put_slice(value);
    }

    /// The frame's name.
    fn kind(&mut self, name: &str) -> Written {
        self.plain("type", name)
    }

    fn request(&mut self, name: &str, request: RequestId) -> Written {
        self.kind(name)?;
        self.number("request", u64::from(request.0))
    }

    fn cid(&mut self, cid: Cid) -> Written {
        self.plain("cid", cid)
    }

    fn number(&mut self, key: &'static str, value: u64) -> Written {
        if value > JSON_NUMBER_MAX {
            return Err(WireError::OutOfRange { field: key });
        }
        self.raw(key, value.to_string().as_bytes());
        Ok(())
    }

    /// A string that needs no escapes.
    fn plain(&mut self, key: &str, value: impl std::fmt::Display) -> Written {
        self.raw(key, format!("\"{value}\"").as_bytes());
        Ok(())
    }

    fn hex(&mut self, key: &str, bytes: &[u8; 16]) -> Written {
        self.plain(key, format_args!("{:032x}", u128::from_be_bytes(*bytes)))
    }

    fn string(&mut self, key: &str, text: &str) {
        self.key(key);
        serde_json::to_writer(self.out.writer(), text)
            .expect("writing a string to memory does not fail");
    }

    fn bounded(&mut self, key: &'static str, text: &str, max: usize) -> Written {
        check_length(key, text.len() as u64, max)?;
        self.string(key, text);
        Ok(())
    }

    fn bytes(&mut self, key: &'static str, bytes: &[u8], max: usize) -> Written {
        check_length(key, bytes.len() as u64, max)?;
        self.plain(key, URL_SAFE_NO_PAD.encode(bytes))
    }

    /// A text as `text`, other bodies as `body`. A text that is mostly characters to be escaped
    /// goes as `body` too, so that no body outgrows a message.
    fn body(&mut self, kind: MessageKind, body: &[u8]) -> Written {
        check_length("body", body.len() as u64, BODY_BYTES_MAX)?;
        check_body(kind, body)?;
        if kind != MessageKind::TEXT || escapes_bytes(body) > body.len() / 3 + 64 {
            return self.bytes("body", body, BODY_BYTES_MAX);
        }
        self.string("text", utf8("body", body)?);
        Ok(())
    }

    fn object(&mut self, key: &str, fields: impl FnOnce(&mut Object<'_>) -> Written) -> Written {
        self.key(key);
        Object::new(self.out).fill(fields)
    }

    fn array<T>(
        &mut self,
        key: &str,
        items: &[T],
        mut put: impl FnMut(&mut BytesMut, &T) -> Written,
    ) -> Written {
        self.raw(key, b"[");
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                self.out.put_u8(b',');
            }
            put(self.out, item)?;
        }
        self.out.put_u8(b']');
        Ok(())
    }
}

/// How many bytes the escapes of a JSON string add.
fn escapes_bytes(text: &[u8]) -> usize {
    let added = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
        0..0x20 => 5,
        _ => 0,
    };
    text.iter().map(added).sum()
}
