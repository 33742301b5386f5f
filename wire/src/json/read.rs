//! JSON to frames: each object is read into one flat struct of optional fields, then looked at.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use super::read_server::{ServerObject, server_frame};
use crate::codec::{check_body, check_length};
use crate::error::WireError;
use crate::frame::{
    ClientFrame, Direction, Hello, MessageKind, RangeRequest, RequestId, Send, ServerFrame,
    SignOutScope, UserRef,
};
use crate::id::{Cid, Cmid, DeviceId, InstallationId, MemberNumber, Seq, Uid};
use crate::limits::{
    BODY_BYTES_MAX, CURSOR_BYTES_MAX, FRAME_BYTES_MAX, FRAMES_PER_MESSAGE_MAX, JSON_NUMBER_MAX,
    MESSAGE_BYTES_MAX, NAME_BYTES_MAX, TOKEN_BYTES_MAX, WHO_MEMBERS_MAX,
};

/// Gives each frame of one message of a client to `on_frame`, in order; tells how many were skipped
/// because they are of a later version and say so (`"skip": true`).
///
/// # Errors
/// The first frame that is not right; those before it have been given out.
pub fn decode_client(
    message: &Bytes,
    mut on_frame: impl FnMut(ClientFrame),
) -> Result<u64, WireError> {
    decode(message, |object: ClientObject<'_>| {
        let skip = object.skip;
        count_skipped(client_frame(object)?, skip.unwrap_or(false), &mut on_frame)
    })
}

/// Gives each frame of one message of a server to `on_frame`, in order; tells how many were skipped
/// because they are of a later version and say so (`"skip": true`).
///
/// # Errors
/// The first frame that is not right; those before it have been given out.
pub fn decode_server(
    message: &Bytes,
    mut on_frame: impl FnMut(ServerFrame),
) -> Result<u64, WireError> {
    decode(message, |object: ServerObject<'_>| {
        let skip = object.skip;
        count_skipped(server_frame(object)?, skip.unwrap_or(false), &mut on_frame)
    })
}

fn count_skipped<F>(
    frame: Option<F>,
    skip: bool,
    on_frame: &mut impl FnMut(F),
) -> Result<u64, WireError> {
    match frame {
        Some(frame) => {
            on_frame(frame);
            Ok(0)
        }
        None if skip => Ok(1),
        None => Err(WireError::UnknownType),
    }
}

#[derive(serde::Deserialize)]
struct ClientObject<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    skip: Option<bool>,
    request: Option<u32>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    installation: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cursor: Option<Cow<'a, str>>,
    capabilities: Option<u64>,
    frame_bytes_max: Option<u32>,
    #[serde(borrow)]
    with: Option<UserObject<'a>>,
    #[serde(borrow)]
    cid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cmid: Option<Cow<'a, str>>,
    base: Option<u64>,
    previous: Option<u32>,
    kind: Option<u8>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    body: Option<Cow<'a, str>>,
    read: Option<u64>,
    received: Option<u64>,
    pushes: Option<u64>,
    from: Option<u64>,
    to: Option<u64>,
    limit: Option<u32>,
    #[serde(borrow)]
    direction: Option<Cow<'a, str>>,
    members: Option<AtMost<u32, WHO_MEMBERS_MAX>>,
    #[serde(borrow)]
    scope: Option<Cow<'a, str>>,
    device: Option<u32>,
}

#[derive(serde::Deserialize)]
struct UserObject<'a> {
    #[serde(borrow)]
    issuer: Option<Cow<'a, str>>,
    #[serde(borrow)]
    subject: Option<Cow<'a, str>>,
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
}

/// The frame that an object stands for; `None` if its type is not known.
fn client_frame(object: ClientObject<'_>) -> Result<Option<ClientFrame>, WireError> {
    let request = || need("request", object.request).map(RequestId);
    let cid = || id("cid", &object.cid).map(Cid);
    let frame = match &*object.r#type {
        "hello" => hello(&object)?,
        "refresh" => ClientFrame::Refresh {
            request: request()?,
            token: string("token", &object.token, TOKEN_BYTES_MAX)?,
        },
        "open" => {
            let with = object.with.as_ref().ok_or(WireError::MissingField { field: "with" })?;
            ClientFrame::Open { request: request()?, with: user(with)? }
        }
        "send" => send(&object)?,
        "mark" => ClientFrame::Mark {
            cid: cid()?,
            read: Seq(number("read", object.read.or(Some(0)))?),
            received: Seq(number("received", object.received.or(Some(0)))?),
        },
        "ack" => ClientFrame::Ack { pushes: number("pushes", object.pushes)? },
        "sync" => ClientFrame::Sync { request: request()?, cursor: cursor(&object.cursor)? },
        "more" => ClientFrame::More { request: request()? },
        "range" => ClientFrame::Range(RangeRequest {
            request: request()?,
            cid: cid()?,
            from: Seq(number("from", object.from)?),
            to: Seq(number("to", object.to)?),
            limit: object.limit.unwrap_or(0),
            direction: match object.direction.as_deref() {
                None | Some("ascending") => Direction::Ascending,
                Some("descending") => Direction::Descending,
                Some(_) => return Err(WireError::OutOfRange { field: "direction" }),
            },
        }),
        "who" => {
            let members = object.members.map(|members| members.0).unwrap_or_default();
            let members = members.into_iter().map(MemberNumber).collect();
            let request = RequestId(need("request", object.request)?);
            ClientFrame::Who { request, cid: Cid(id("cid", &object.cid)?), members }
        }
        "sign_out" => ClientFrame::SignOut {
            request: request()?,
            scope: match object.scope.as_deref() {
                None => return Err(WireError::MissingField { field: "scope" }),
                Some("everywhere") => SignOutScope::Everywhere,
                Some("device") => SignOutScope::Device(DeviceId(need("device", object.device)?)),
                Some(_) => return Err(WireError::OutOfRange { field: "scope" }),
            },
        },
        "ping" => ClientFrame::Ping { pushes: number("pushes", object.pushes)? },
        _ => return Ok(None),
    };
    Ok(Some(frame))
}

fn hello(object: &ClientObject<'_>) -> Result<ClientFrame, WireError> {
    Ok(ClientFrame::Hello(Hello {
        token: string("token", &object.token, TOKEN_BYTES_MAX)?,
        installation: InstallationId(id16("installation", &object.installation)?),
        cursor: cursor(&object.cursor)?,
        capabilities: number("capabilities", object.capabilities.or(Some(0)))?,
        frame_bytes_max: object.frame_bytes_max.unwrap_or(FRAME_BYTES_MAX as u32),
    }))
}

fn user(with: &UserObject<'_>) -> Result<UserRef, WireError> {
    if with.uid.is_some() {
        return id("uid", &with.uid).map(|uid| UserRef::Uid(Uid(uid)));
    }
    let issuer =
        string("issuer", &with.issuer.as_ref().or(Some(&Cow::Borrowed(""))), NAME_BYTES_MAX)?;
    Ok(UserRef::Subject { issuer, subject: string("subject", &with.subject, NAME_BYTES_MAX)? })
}

fn send(object: &ClientObject<'_>) -> Result<ClientFrame, WireError> {
    let request = RequestId(need("request", object.request)?);
    let previous = object.previous.map(RequestId);
    if previous.is_some_and(|previous| previous >= request) {
        return Err(WireError::OutOfRange { field: "previous" });
    }
    let kind = MessageKind(object.kind.unwrap_or(MessageKind::TEXT.0));
    Ok(ClientFrame::Send(Send {
        request,
        cid: Cid(id("cid", &object.cid)?),
        cmid: Cmid(id16("cmid", &object.cmid)?),
        base: Seq(number("base", object.base.or(Some(0)))?),
        previous,
        kind,
        body: body(kind, &object.text, &object.body)?,
    }))
}

fn cursor(text: &Option<Cow<'_, str>>) -> Result<Bytes, WireError> {
    match text {
        None => Ok(Bytes::new()),
        Some(text) => base64("cursor", text, CURSOR_BYTES_MAX),
    }
}

pub(super) fn need<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::MissingField { field })
}

pub(super) fn number(field: &'static str, value: Option<u64>) -> Result<u64, WireError> {
    match need(field, value)? {
        value if value > JSON_NUMBER_MAX => Err(WireError::OutOfRange { field }),
        value => Ok(value),
    }
}

/// A string within its bound.
pub(super) fn string(
    field: &'static str,
    text: &Option<impl AsRef<str>>,
    max: usize,
) -> Result<String, WireError> {
    let text = need(field, text.as_ref())?.as_ref();
    check_length(field, text.len() as u64, max)?;
    Ok(text.to_owned())
}

/// Sixteen hexadecimal digits.
pub(super) fn id(field: &'static str, text: &Option<Cow<'_, str>>) -> Result<u64, WireError> {
    let text = hex_digits(field, text, 16)?;
    u64::from_str_radix(text, 16).map_err(|_| WireError::OutOfRange { field })
}

/// Thirty-two hexadecimal digits.
pub(super) fn id16(
    field: &'static str,
    text: &Option<Cow<'_, str>>,
) -> Result<[u8; 16], WireError> {
    let text = hex_digits(field, text, 32)?;
    let value = u128::from_str_radix(text, 16).map_err(|_| WireError::OutOfRange { field })?;
    Ok(value.to_be_bytes())
}

fn hex_digits<'a>(
    field: &'static str,
    text: &'a Option<Cow<'_, str>>,
    digits: usize,
) -> Result<&'a str, WireError> {
    let text = need(field, text.as_deref())?;
    // `from_str_radix` alone would take a sign.
    if text.len() != digits || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(WireError::OutOfRange { field });
    }
    Ok(text)
}

pub(super) fn base64(field: &'static str, text: &str, max: usize) -> Result<Bytes, WireError> {
    check_length(field, (text.len() / 4 * 3) as u64, max)?;
    let bytes =
        URL_SAFE_NO_PAD.decode(text).map_err(|_| WireError::Json("bytes are not base64url"))?;
    check_length(field, bytes.len() as u64, max)?;
    Ok(Bytes::from(bytes))
}

/// A body from `text` or from `body`, one of the two.
pub(super) fn body(
    kind: MessageKind,
    text: &Option<Cow<'_, str>>,
    body: &Option<Cow<'_, str>>,
) -> Result<Bytes, WireError> {
    match (text, body) {
        (Some(text), None) if kind == MessageKind::TEXT => {
            check_length("body", text.len() as u64, BODY_BYTES_MAX)?;
            Ok(Bytes::copy_from_slice(text.as_bytes()))
        }
        (None, Some(body)) => {
            let body = base64("body", body, BODY_BYTES_MAX)?;
            check_body(kind, &body)?;
            Ok(body)
        }
        (None, None) => Err(WireError::MissingField { field: "body" }),
        _ => Err(WireError::OutOfRange { field: "text" }),
    }
}

/// A list whose length is bounded while it is read.
pub(super) struct AtMost<T, const MAX: usize>(pub(super) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for AtMost<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
            type Value = AtMost<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} items")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    if items.len() == MAX {
                        return Err(de::Error::invalid_length(MAX + 1, &self));
                    }
                    items.push(item);
                }
                Ok(AtMost(items))
            }
        }
        deserializer.deserialize_seq(Items(PhantomData))
    }
}

/// Reads one object or an array of them and gives each to `on_object` before the next is read, so
/// that a flood of small objects takes no memory.
fn decode<'a, O: Deserialize<'a>>(
    message: &'a [u8],
    on_object: impl FnMut(O) -> Result<u64, WireError>,
) -> Result<u64, WireError> {
    check_length("message", message.len() as u64, MESSAGE_BYTES_MAX)?;
    let mut json = serde_json::Deserializer::from_slice(message);
    let mut objects = Objects { on_object, frames: 0, skipped: 0, error: None, of: PhantomData };
    let result = if message.trim_ascii_start().first() == Some(&b'[') {
        json.deserialize_seq(&mut objects)
    } else {
        O::deserialize(&mut json).and_then(|object| objects.take(object))
    };
    match (result.and_then(|()| json.end()), objects.error) {
        (_, Some(error)) => Err(error),
        (Ok(()), None) => Ok(objects.skipped),
        (Err(error), None) if error.is_data() => {
            Err(WireError::Json("a field has a wrong type or comes twice"))
        }
        (Err(_), None) => Err(WireError::Json("it does not parse")),
    }
}

struct Objects<O, F> {
    on_object: F,
    frames: usize,
    skipped: u64,
    error: Option<WireError>,
    of: PhantomData<O>,
}

impl<O, F: FnMut(O) -> Result<u64, WireError>> Objects<O, F> {
    fn take<E: de::Error>(&mut self, object: O) -> Result<(), E> {
        self.frames += 1;
        let taken = if self.frames > FRAMES_PER_MESSAGE_MAX {
            Err(WireError::TooManyFrames(FRAMES_PER_MESSAGE_MAX))
        } else {
            (self.on_object)(object)
        };
        match taken {
            Ok(skipped) => {
                self.skipped += skipped;
                Ok(())
            }
            Err(error) => {
                self.error = Some(error);
                Err(E::custom(error))
            }
        }
    }
}

impl<'de, O, F> Visitor<'de> for &mut Objects<O, F>
where
    O: Deserialize<'de>,
    F: FnMut(O) -> Result<u64, WireError>,
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("frames")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(object) = seq.next_element()? {
            self.take::<A::Error>(object)?;
        }
        Ok(())
    }
}
