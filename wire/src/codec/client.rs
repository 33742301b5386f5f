//! The binary form of what a client says: written by [`ClientEncoder`], read by [`ServerDecoder`].

use bytes::{BufMut, Bytes, BytesMut};

use super::alias::{AliasReader, AliasWriter};
use super::fields::{Known, Reader, check_length, put_blob, put_body, read_message, write_frame};
use crate::error::WireError;
use crate::frame::{
    ClientFrame, Direction, Hello, MessageKind, RangeRequest, RequestId, Send, SignOutScope,
    UserRef,
};
use crate::id::{Cid, Cmid, DeviceId, InstallationId, MemberNumber, Seq, Uid};
use crate::limits::{
    CURSOR_BYTES_MAX, FRAME_BYTES_MIN, NAME_BYTES_MAX, TOKEN_BYTES_MAX, WHO_MEMBERS_MAX,
};
use crate::varint;

/// Opcodes of a client's frames.
pub mod opcode {
    /// `hello`.
    pub const HELLO: u8 = 0x81;
    /// `refresh`.
    pub const REFRESH: u8 = 0x82;
    /// `open`.
    pub const OPEN: u8 = 0x83;
    /// `send` of a text.
    pub const SEND_TEXT: u8 = 0x84;
    /// `send` of any kind, with tagged fields.
    pub const SEND: u8 = 0x85;
    /// `mark`.
    pub const MARK: u8 = 0x86;
    /// `ack`.
    pub const ACK: u8 = 0x87;
    /// `sync`.
    pub const SYNC: u8 = 0x88;
    /// `more`.
    pub const MORE: u8 = 0x89;
    /// `range`.
    pub const RANGE: u8 = 0x8a;
    /// `who`.
    pub const WHO: u8 = 0x8b;
    /// `sign_out`.
    pub const SIGN_OUT: u8 = 0x8c;
    /// `ping`.
    pub const PING: u8 = 0x8d;
}

/// Writes a client's frames. One per connection, from its first frame on.
///
/// What was encoded must be sent, all of it and in that order: the aliases that a frame defines are
/// taken as known by the frames after it.
#[derive(Debug)]
pub struct ClientEncoder {
    aliases: AliasWriter,
    frame_bytes_max: usize,
}

impl Default for ClientEncoder {
    fn default() -> ClientEncoder {
        ClientEncoder { aliases: AliasWriter::default(), frame_bytes_max: FRAME_BYTES_MIN }
    }
}

impl ClientEncoder {
    /// For a new connection. Frames are held below 72 KiB, which every server takes.
    pub fn new() -> ClientEncoder {
        ClientEncoder::default()
    }

    /// Appends one frame to `out`.
    ///
    /// # Errors
    /// A field above its bound, a text that is not UTF-8, a `previous` that is not below `request`.
    /// `out` and the encoder are then as they were.
    pub fn encode(&mut self, frame: &ClientFrame, out: &mut BytesMut) -> Result<(), WireError> {
        let aliases = &self.aliases;
        write_frame(out, self.frame_bytes_max, |out| put_frame(aliases, frame, out))?;
        if let ClientFrame::Send(Send { cid, .. }) | ClientFrame::Mark { cid, .. } = frame {
            self.aliases.commit(*cid, None);
        }
        Ok(())
    }
}

/// Reads a client's frames. One per connection, from its first frame on.
#[derive(Debug)]
pub struct ServerDecoder {
    aliases: AliasReader,
    frame_bytes_max: usize,
}

impl ServerDecoder {
    /// For a new connection; longer frames than `frame_bytes_max` are refused.
    pub fn new(frame_bytes_max: usize) -> ServerDecoder {
        ServerDecoder { aliases: AliasReader::default(), frame_bytes_max }
    }

    /// Gives each frame of one WebSocket message to `on_frame`, in order; tells how many frames
    /// were skipped because they are of a later version. Bodies are slices of `message`.
    ///
    /// # Errors
    /// The first frame that is not right; those before it have been given out. The connection has
    /// to be closed then: the decoder is of no further use.
    pub fn decode_message(
        &mut self,
        message: &Bytes,
        mut on_frame: impl FnMut(ClientFrame),
    ) -> Result<u64, WireError> {
        let aliases = &mut self.aliases;
        read_message(message, self.frame_bytes_max, |opcode, mut fields| {
            match take_frame(aliases, opcode, &mut fields)? {
                Some(frame) => {
                    fields.finish()?;
                    on_frame(frame);
                    Ok(Known::Yes)
                }
                None => Ok(Known::No),
            }
        })
    }
}

fn put_frame(
    aliases: &AliasWriter,
    frame: &ClientFrame,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    match frame {
        ClientFrame::Hello(hello) => return put_hello(hello, out),
        ClientFrame::Refresh { request, token } => {
            put_request(out, opcode::REFRESH, *request);
            put_blob(out, "token", token.as_bytes(), TOKEN_BYTES_MAX)?;
        }
        ClientFrame::Open { request, with } => {
            put_request(out, opcode::OPEN, *request);
            put_user(with, out)?;
        }
        ClientFrame::Send(send) => return put_send(aliases, send, out),
        ClientFrame::Mark { cid, read, received } => {
            out.put_u8(opcode::MARK);
            aliases.put(*cid, out);
            varint::put(out, read.0);
            varint::put(out, received.0);
        }
        ClientFrame::Ack { pushes } => {
            out.put_u8(opcode::ACK);
            varint::put(out, *pushes);
        }
        ClientFrame::Sync { request, cursor } => {
            put_request(out, opcode::SYNC, *request);
            put_blob(out, "cursor", cursor, CURSOR_BYTES_MAX)?;
        }
        ClientFrame::More { request } => put_request(out, opcode::MORE, *request),
        ClientFrame::Range(range) => {
            put_request(out, opcode::RANGE, range.request);
            out.put_u64(range.cid.0);
            varint::put(out, range.from.0);
            varint::put(out, range.to.0);
            varint::put(out, u64::from(range.limit));
            out.put_u8(match range.direction {
                Direction::Ascending => 0,
                Direction::Descending => 1,
            });
        }
        ClientFrame::Who { request, cid, members } => {
            put_request(out, opcode::WHO, *request);
            put_who(*cid, members, out)?;
        }
        ClientFrame::SignOut { request, scope } => {
            put_request(out, opcode::SIGN_OUT, *request);
            match scope {
                SignOutScope::Everywhere => out.put_u8(0),
                SignOutScope::Device(device) => {
                    out.put_u8(1);
                    varint::put(out, u64::from(device.0));
                }
            }
        }
        ClientFrame::Ping { pushes } => {
            out.put_u8(opcode::PING);
            varint::put(out, *pushes);
        }
    }
    Ok(())
}

fn put_request(out: &mut BytesMut, opcode: u8, request: RequestId) {
    out.put_u8(opcode);
    varint::put(out, u64::from(request.0));
}

fn put_hello(hello: &Hello, out: &mut BytesMut) -> Result<(), WireError> {
    out.put_u8(opcode::HELLO);
    out.put_slice(&hello.installation.0);
    varint::put(out, hello.capabilities);
    varint::put(out, u64::from(hello.frame_bytes_max));
    put_blob(out, "token", hello.token.as_bytes(), TOKEN_BYTES_MAX)?;
    put_blob(out, "cursor", &hello.cursor, CURSOR_BYTES_MAX)
}

fn put_user(user: &UserRef, out: &mut BytesMut) -> Result<(), WireError> {
    match user {
        UserRef::Subject { issuer, subject } => {
            out.put_u8(0);
            put_blob(out, "issuer", issuer.as_bytes(), NAME_BYTES_MAX)?;
            put_blob(out, "subject", subject.as_bytes(), NAME_BYTES_MAX)
        }
        UserRef::Uid(uid) => {
            out.put_u8(1);
            out.put_u64(uid.0);
            Ok(())
        }
    }
}

fn put_send(aliases: &AliasWriter, send: &Send, out: &mut BytesMut) -> Result<(), WireError> {
    let text = send.kind == MessageKind::TEXT;
    put_request(out, if text { opcode::SEND_TEXT } else { opcode::SEND }, send.request);
    aliases.put(send.cid, out);
    out.put_slice(&send.cmid.0);
    varint::put(out, send.base.0);
    let back = match send.previous {
        None => 0,
        Some(previous) => send
            .request
            .0
            .checked_sub(previous.0)
            .filter(|back| *back > 0)
            .ok_or(WireError::OutOfRange { field: "previous" })?,
    };
    varint::put(out, u64::from(back));
    if !text {
        out.put_u8(send.kind.0);
        varint::put(out, 0);
    }
    put_body(out, send.kind, &send.body)
}

fn put_who(cid: Cid, members: &[MemberNumber], out: &mut BytesMut) -> Result<(), WireError> {
    check_length("members", members.len() as u64, WHO_MEMBERS_MAX)?;
    out.put_u64(cid.0);
    varint::put(out, members.len() as u64);
    for member in members {
        varint::put(out, u64::from(member.0));
    }
    Ok(())
}

/// Reads the fields of one frame; `None` if its opcode is not known.
fn take_frame(
    aliases: &mut AliasReader,
    opcode: u8,
    fields: &mut Reader<'_>,
) -> Result<Option<ClientFrame>, WireError> {
    let frame = match opcode {
        opcode::SEND_TEXT | opcode::SEND => return take_send(aliases, opcode, fields).map(Some),
        opcode::MARK => {
            let cid = aliases.take(fields)?.cid;
            let read = Seq(fields.varint()?);
            return Ok(Some(ClientFrame::Mark { cid, read, received: Seq(fields.varint()?) }));
        }
        opcode::ACK => return Ok(Some(ClientFrame::Ack { pushes: fields.varint()? })),
        opcode::PING => return Ok(Some(ClientFrame::Ping { pushes: fields.varint()? })),
        opcode::HELLO => take_hello(fields)?,
        opcode::REFRESH => {
            let request = take_request(fields)?;
            ClientFrame::Refresh { request, token: fields.text("token", TOKEN_BYTES_MAX)? }
        }
        opcode::OPEN => {
            let request = take_request(fields)?;
            ClientFrame::Open { request, with: take_user(fields)? }
        }
        opcode::SYNC => {
            let request = take_request(fields)?;
            ClientFrame::Sync { request, cursor: fields.blob("cursor", CURSOR_BYTES_MAX)? }
        }
        opcode::MORE => ClientFrame::More { request: take_request(fields)? },
        opcode::RANGE => take_range(fields)?,
        opcode::WHO => take_who(fields)?,
        opcode::SIGN_OUT => {
            let request = take_request(fields)?;
            let scope = match fields.u8()? {
                0 => SignOutScope::Everywhere,
                1 => SignOutScope::Device(DeviceId(fields.varint_u32("device")?)),
                _ => return Err(WireError::OutOfRange { field: "scope" }),
            };
            ClientFrame::SignOut { request, scope }
        }
        _ => return Ok(None),
    };
    fields.tail()?;
    Ok(Some(frame))
}

fn take_request(fields: &mut Reader<'_>) -> Result<RequestId, WireError> {
    fields.varint_u32("request").map(RequestId)
}

fn take_hello(fields: &mut Reader<'_>) -> Result<ClientFrame, WireError> {
    let installation = InstallationId(fields.id16()?);
    let capabilities = fields.varint()?;
    let frame_bytes_max = fields.varint_u32("frame_bytes_max")?;
    let token = fields.text("token", TOKEN_BYTES_MAX)?;
    let cursor = fields.blob("cursor", CURSOR_BYTES_MAX)?;
    Ok(ClientFrame::Hello(Hello { token, installation, cursor, capabilities, frame_bytes_max }))
}

fn take_user(fields: &mut Reader<'_>) -> Result<UserRef, WireError> {
    match fields.u8()? {
        0 => {
            let issuer = fields.text("issuer", NAME_BYTES_MAX)?;
            Ok(UserRef::Subject { issuer, subject: fields.text("subject", NAME_BYTES_MAX)? })
        }
        1 => Ok(UserRef::Uid(Uid(fields.u64()?))),
        _ => Err(WireError::OutOfRange { field: "with" }),
    }
}

fn take_send(
    aliases: &mut AliasReader,
    opcode: u8,
    fields: &mut Reader<'_>,
) -> Result<ClientFrame, WireError> {
    let request = take_request(fields)?;
    let cid = aliases.take(fields)?.cid;
    let cmid = Cmid(fields.id16()?);
    let base = Seq(fields.varint()?);
    let previous = match fields.varint_u32("previous")? {
        0 => None,
        back => {
            let previous = request.0.checked_sub(back);
            Some(RequestId(previous.ok_or(WireError::OutOfRange { field: "previous" })?))
        }
    };
    let mut kind = MessageKind::TEXT;
    if opcode == opcode::SEND {
        kind = MessageKind(fields.u8()?);
        fields.tagged_block()?;
    }
    let body = fields.rest_body(kind)?;
    Ok(ClientFrame::Send(Send { request, cid, cmid, base, previous, kind, body }))
}

fn take_range(fields: &mut Reader<'_>) -> Result<ClientFrame, WireError> {
    Ok(ClientFrame::Range(RangeRequest {
        request: take_request(fields)?,
        cid: fields.cid()?,
        from: Seq(fields.varint()?),
        to: Seq(fields.varint()?),
        limit: fields.varint_u32("limit")?,
        direction: fields.choice("direction", |byte| match byte {
            0 => Some(Direction::Ascending),
            1 => Some(Direction::Descending),
            _ => None,
        })?,
    }))
}

fn take_who(fields: &mut Reader<'_>) -> Result<ClientFrame, WireError> {
    let request = take_request(fields)?;
    let cid = fields.cid()?;
    let count = fields.count("members", WHO_MEMBERS_MAX, 1)?;
    let mut members = Vec::with_capacity(count);
    for _ in 0..count {
        members.push(MemberNumber(fields.varint_u32("members")?));
    }
    Ok(ClientFrame::Who { request, cid, members })
}
