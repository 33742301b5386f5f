//! The binary form of what a server says: written by [`ServerEncoder`], read by [`ClientDecoder`].

use bytes::{BufMut, Bytes, BytesMut};

use super::alias::{AliasReader, AliasWriter, Last};
use super::fields::{Known, Reader, put_blob, put_body, put_difference, read_message, write_frame};
use super::page::{put_head, put_members, put_page, take_head, take_members, take_page};
use crate::error::{ErrorCode, WireError};
use crate::frame::{
    CacheAction, Durability, Failure, MessageKind, RequestId, Row, ServerFrame, Welcome,
};
use crate::id::{Cid, Cmid, DeviceId, HistoryId, MemberNumber, Ordinal, Seq, Uid};
use crate::limits::{
    BODY_BYTES_MAX, CURSOR_BYTES_MAX, ERROR_TEXT_BYTES_MAX, FRAME_BYTES_MIN, URL_BYTES_MAX,
};
use crate::varint;

/// Opcodes of a server's frames.
pub mod opcode {
    /// `drain`: the only one that a client may skip.
    pub const DRAIN: u8 = 0x40;
    /// `text`.
    pub const TEXT: u8 = 0xc0;
    /// `entry`.
    pub const ENTRY: u8 = 0xc1;
    /// `sent`.
    pub const SENT: u8 = 0xc2;
    /// `marker`.
    pub const MARKER: u8 = 0xc3;
    /// `welcome`.
    pub const WELCOME: u8 = 0xc4;
    /// `done`.
    pub const DONE: u8 = 0xc5;
    /// `opened`.
    pub const OPENED: u8 = 0xc6;
    /// `refused`.
    pub const REFUSED: u8 = 0xc7;
    /// `unknown`.
    pub const UNKNOWN: u8 = 0xc8;
    /// `continue`.
    pub const CONTINUE: u8 = 0xc9;
    /// `syncing`.
    pub const SYNCING: u8 = 0xca;
    /// `head`.
    pub const HEAD: u8 = 0xcb;
    /// `page`.
    pub const PAGE: u8 = 0xcc;
    /// `page_end`.
    pub const PAGE_END: u8 = 0xcd;
    /// `synced`.
    pub const SYNCED: u8 = 0xce;
    /// `behind`.
    pub const BEHIND: u8 = 0xcf;
    /// `rows`.
    pub const ROWS: u8 = 0xd0;
    /// `members`.
    pub const MEMBERS: u8 = 0xd1;
    /// `pong`.
    pub const PONG: u8 = 0xd2;
    /// `error`.
    pub const ERROR: u8 = 0xd3;
    /// Kept for compressed blocks of a sync; not used by this version.
    pub const RESERVED_ZSTD: u8 = 0xdf;
}

/// Tags of a failure's optional fields.
mod tag {
    pub(super) const TEXT: u64 = 1;
    pub(super) const RETRY_AFTER_MS: u64 = 2;
    pub(super) const MOVED_TO: u64 = 3;
}

/// Writes a server's frames. One per connection, from its first frame on.
///
/// What was encoded must be sent, all of it and in that order: aliases that a frame defines are
/// taken as known by the frames after it, and numbers are differences against the frames before.
#[derive(Debug)]
pub struct ServerEncoder {
    aliases: AliasWriter,
    frame_bytes_max: usize,
}

impl Default for ServerEncoder {
    fn default() -> ServerEncoder {
        ServerEncoder { aliases: AliasWriter::default(), frame_bytes_max: FRAME_BYTES_MIN }
    }
}

impl ServerEncoder {
    /// For a new connection. Frames are held below 72 KiB, which every client takes.
    pub fn new() -> ServerEncoder {
        ServerEncoder::default()
    }

    /// Appends one frame to `out`.
    ///
    /// # Errors
    /// A field or the frame above its bound, a row with a text that is not UTF-8 or outside of its
    /// page. `out` and the encoder are then as they were.
    pub fn encode(&mut self, frame: &ServerFrame, out: &mut BytesMut) -> Result<(), WireError> {
        let aliases = &self.aliases;
        write_frame(out, self.frame_bytes_max, |out| put_frame(aliases, frame, out))?;
        match frame {
            ServerFrame::Text { cid, seq, time_ms, .. }
            | ServerFrame::Sent { cid, seq, time_ms, .. } => {
                self.aliases.commit(*cid, Some(Last { seq: seq.0, time_ms: *time_ms }));
            }
            ServerFrame::Entry { cid, row } => {
                self.aliases.commit(*cid, Some(Last { seq: row.seq.0, time_ms: row.time_ms }));
            }
            _ => {}
        }
        Ok(())
    }
}

/// Reads a server's frames. One per connection, from its first frame on.
#[derive(Debug)]
pub struct ClientDecoder {
    aliases: AliasReader,
    frame_bytes_max: usize,
}

impl ClientDecoder {
    /// For a new connection; longer frames than `frame_bytes_max` (what `hello` announces) are
    /// refused.
    pub fn new(frame_bytes_max: usize) -> ClientDecoder {
        ClientDecoder { aliases: AliasReader::default(), frame_bytes_max }
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
        mut on_frame: impl FnMut(ServerFrame),
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
    frame: &ServerFrame,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    match frame {
        ServerFrame::Text { cid, seq, sender, time_ms, body } => {
            out.put_u8(opcode::TEXT);
            put_position(aliases, *cid, *seq, *time_ms, out);
            varint::put(out, u64::from(sender.0));
            return put_body(out, MessageKind::DATA, body);
        }
        ServerFrame::Entry { cid, row } => return put_entry(aliases, *cid, row, out),
        ServerFrame::Sent { request, cid, seq, time_ms } => {
            put_request(out, opcode::SENT, *request);
            put_position(aliases, *cid, *seq, *time_ms, out);
        }
        ServerFrame::Marker { cid, read, read_ordinal, received } => {
            out.put_u8(opcode::MARKER);
            out.put_u64(cid.0);
            varint::put(out, read.0);
            varint::put(out, read_ordinal.0);
            varint::put(out, received.0);
        }
        ServerFrame::Welcome(welcome) => put_welcome(welcome, out),
        ServerFrame::Done { request } => put_request(out, opcode::DONE, *request),
        ServerFrame::Opened { request, head } => {
            put_request(out, opcode::OPENED, *request);
            put_head(head, out);
        }
        ServerFrame::Refused { request, error } => {
            put_request(out, opcode::REFUSED, *request);
            put_failure(error, out)?;
        }
        ServerFrame::Unknown { request } => put_request(out, opcode::UNKNOWN, *request),
        ServerFrame::Continue { request, checked_to } => {
            put_request(out, opcode::CONTINUE, *request);
            varint::put(out, checked_to.0);
        }
        ServerFrame::Syncing { request, cache } => {
            put_request(out, opcode::SYNCING, *request);
            out.put_u8(match cache {
                CacheAction::Keep => 0,
                CacheAction::Replace => 1,
            });
        }
        ServerFrame::Head(head) => {
            out.put_u8(opcode::HEAD);
            put_head(head, out);
        }
        ServerFrame::Page(page) => {
            out.put_u8(opcode::PAGE);
            put_page(page, out)?;
        }
        ServerFrame::PageEnd { request } => put_request(out, opcode::PAGE_END, *request),
        ServerFrame::Synced { request, cursor } => {
            put_request(out, opcode::SYNCED, *request);
            put_blob(out, "cursor", cursor, CURSOR_BYTES_MAX)?;
        }
        ServerFrame::Behind => out.put_u8(opcode::BEHIND),
        ServerFrame::Rows { request, page } => {
            put_request(out, opcode::ROWS, *request);
            put_page(page, out)?;
        }
        ServerFrame::Members { request, cid, members } => {
            put_request(out, opcode::MEMBERS, *request);
            out.put_u64(cid.0);
            put_members(members, out)?;
        }
        ServerFrame::Drain { after_ms, spread_ms } => {
            out.put_u8(opcode::DRAIN);
            varint::put(out, u64::from(*after_ms));
            varint::put(out, u64::from(*spread_ms));
        }
        ServerFrame::Pong { pushes, time_ms } => {
            out.put_u8(opcode::PONG);
            varint::put(out, *pushes);
            varint::put(out, *time_ms);
        }
        ServerFrame::Error(failure) => {
            out.put_u8(opcode::ERROR);
            put_failure(failure, out)?;
        }
    }
    Ok(())
}

fn put_request(out: &mut BytesMut, opcode: u8, request: RequestId) {
    out.put_u8(opcode);
    varint::put(out, u64::from(request.0));
}

/// Channel, seq and time, the latter two as differences against the alias's previous ones.
fn put_position(aliases: &AliasWriter, cid: Cid, seq: Seq, time_ms: u64, out: &mut BytesMut) {
    let last = aliases.put(cid, out);
    put_difference(out, last.seq, seq.0);
    put_difference(out, last.time_ms, time_ms);
}

fn put_entry(
    aliases: &AliasWriter,
    cid: Cid,
    row: &Row,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    out.put_u8(opcode::ENTRY);
    put_position(aliases, cid, row.seq, row.time_ms, out);
    varint::put(out, u64::from(row.sender.0));
    varint::put(out, row.ordinal.0);
    out.put_u8(row.kind.0);
    varint::put(out, u64::from(row.device.0));
    out.put_slice(&row.cmid.0);
    varint::put(out, 0);
    put_body(out, row.kind, &row.body)
}

fn put_welcome(welcome: &Welcome, out: &mut BytesMut) {
    out.put_u8(opcode::WELCOME);
    out.put_u64(welcome.uid.0);
    out.put_u64(welcome.history.0);
    varint::put(out, u64::from(welcome.device.0));
    varint::put(out, welcome.time_ms);
    for value in [
        welcome.heartbeat_ms,
        welcome.window_pushes,
        welcome.window_bytes,
        welcome.frame_bytes_max,
        welcome.body_bytes_max,
        welcome.open_sends_max,
    ] {
        varint::put(out, u64::from(value));
    }
    out.put_u8(welcome.durability as u8);
}

fn put_failure(failure: &Failure, out: &mut BytesMut) -> Result<(), WireError> {
    let number = failure.code.map_or_else(|number| number, ErrorCode::number);
    varint::put(out, u64::from(number));
    if !failure.text.is_empty() {
        varint::put(out, tag::TEXT);
        put_blob(out, "text", failure.text.as_bytes(), ERROR_TEXT_BYTES_MAX)?;
    }
    if let Some(ms) = failure.retry_after_ms {
        varint::put(out, tag::RETRY_AFTER_MS);
        varint::put(out, varint::len(u64::from(ms)) as u64);
        varint::put(out, u64::from(ms));
    }
    if let Some(url) = &failure.moved_to {
        varint::put(out, tag::MOVED_TO);
        put_blob(out, "moved_to", url.as_bytes(), URL_BYTES_MAX)?;
    }
    Ok(())
}

/// Reads the fields of one frame; `None` if its opcode is not known.
fn take_frame(
    aliases: &mut AliasReader,
    opcode: u8,
    fields: &mut Reader<'_>,
) -> Result<Option<ServerFrame>, WireError> {
    if let Some(frame) = take_fixed(aliases, opcode, fields)? {
        return Ok(Some(frame));
    }
    let frame = match opcode {
        opcode::WELCOME => ServerFrame::Welcome(take_welcome(fields)?),
        opcode::DONE => ServerFrame::Done { request: take_request(fields)? },
        opcode::OPENED => {
            ServerFrame::Opened { request: take_request(fields)?, head: take_head(fields)? }
        }
        opcode::REFUSED => {
            ServerFrame::Refused { request: take_request(fields)?, error: take_failure(fields)? }
        }
        opcode::UNKNOWN => ServerFrame::Unknown { request: take_request(fields)? },
        opcode::CONTINUE => ServerFrame::Continue {
            request: take_request(fields)?,
            checked_to: Seq(fields.varint()?),
        },
        opcode::SYNCING => ServerFrame::Syncing {
            request: take_request(fields)?,
            cache: fields.choice("cache", |byte| match byte {
                0 => Some(CacheAction::Keep),
                1 => Some(CacheAction::Replace),
                _ => None,
            })?,
        },
        opcode::HEAD => ServerFrame::Head(take_head(fields)?),
        opcode::PAGE => ServerFrame::Page(take_page(fields)?),
        opcode::PAGE_END => ServerFrame::PageEnd { request: take_request(fields)? },
        opcode::SYNCED => ServerFrame::Synced {
            request: take_request(fields)?,
            cursor: fields.blob("cursor", CURSOR_BYTES_MAX)?,
        },
        opcode::BEHIND => ServerFrame::Behind,
        opcode::ROWS => {
            ServerFrame::Rows { request: take_request(fields)?, page: take_page(fields)? }
        }
        opcode::MEMBERS => ServerFrame::Members {
            request: take_request(fields)?,
            cid: fields.cid()?,
            members: take_members(fields)?,
        },
        opcode::DRAIN => ServerFrame::Drain {
            after_ms: fields.varint_u32("after_ms")?,
            spread_ms: fields.varint_u32("spread_ms")?,
        },
        opcode::ERROR => ServerFrame::Error(take_failure(fields)?),
        _ => return Ok(None),
    };
    fields.tail()?;
    Ok(Some(frame))
}

/// The frames that never grow a tail: the frequent ones.
fn take_fixed(
    aliases: &mut AliasReader,
    opcode: u8,
    fields: &mut Reader<'_>,
) -> Result<Option<ServerFrame>, WireError> {
    let frame = match opcode {
        opcode::TEXT => {
            let (cid, seq, time_ms) = take_position(aliases, fields)?;
            let sender = MemberNumber(fields.varint_u32("sender")?);
            let body = fields.rest_body(MessageKind::TEXT)?;
            ServerFrame::Text { cid, seq, sender, time_ms, body }
        }
        opcode::ENTRY => {
            let (cid, seq, time_ms) = take_position(aliases, fields)?;
            let sender = MemberNumber(fields.varint_u32("sender")?);
            let ordinal = Ordinal(fields.varint()?);
            let kind = MessageKind(fields.u8()?);
            let device = DeviceId(fields.varint_u32("device")?);
            let cmid = Cmid(fields.id16()?);
            fields.tagged_block()?;
            let body = fields.rest_body(kind)?;
            let row = Row { seq, ordinal, kind, sender, device, cmid, time_ms, body };
            ServerFrame::Entry { cid, row }
        }
        opcode::SENT => {
            let request = take_request(fields)?;
            let (cid, seq, time_ms) = take_position(aliases, fields)?;
            ServerFrame::Sent { request, cid, seq, time_ms }
        }
        opcode::MARKER => ServerFrame::Marker {
            cid: fields.cid()?,
            read: Seq(fields.varint()?),
            read_ordinal: Ordinal(fields.varint()?),
            received: Seq(fields.varint()?),
        },
        opcode::PONG => ServerFrame::Pong { pushes: fields.varint()?, time_ms: fields.varint()? },
        _ => return Ok(None),
    };
    Ok(Some(frame))
}

fn take_request(fields: &mut Reader<'_>) -> Result<RequestId, WireError> {
    fields.varint_u32("request").map(RequestId)
}

fn take_position(
    aliases: &mut AliasReader,
    fields: &mut Reader<'_>,
) -> Result<(Cid, Seq, u64), WireError> {
    let referred = aliases.take(fields)?;
    let seq = varint::apply(referred.last.seq, fields.varint()?);
    let time_ms = varint::apply(referred.last.time_ms, fields.varint()?);
    aliases.keep(referred, Last { seq, time_ms });
    Ok((referred.cid, Seq(seq), time_ms))
}

fn take_welcome(fields: &mut Reader<'_>) -> Result<Welcome, WireError> {
    let uid = Uid(fields.u64()?);
    let history = HistoryId(fields.u64()?);
    Ok(Welcome {
        uid,
        history,
        device: DeviceId(fields.varint_u32("device")?),
        time_ms: fields.varint()?,
        heartbeat_ms: fields.varint_u32("heartbeat_ms")?,
        window_pushes: fields.varint_u32("window_pushes")?,
        window_bytes: fields.varint_u32("window_bytes")?,
        frame_bytes_max: fields.varint_u32("frame_bytes_max")?,
        body_bytes_max: fields.varint_u32("body_bytes_max")?,
        open_sends_max: fields.varint_u32("open_sends_max")?,
        durability: fields.choice("durability", Durability::from_number)?,
    })
}

/// A failure ends its frame: its optional fields are the frame's tail.
fn take_failure(fields: &mut Reader<'_>) -> Result<Failure, WireError> {
    let number =
        u16::try_from(fields.varint()?).map_err(|_| WireError::OutOfRange { field: "code" })?;
    let code = ErrorCode::from_number(number).ok_or(number);
    let mut failure = Failure { code, text: String::new(), retry_after_ms: None, moved_to: None };
    fields.tagged(|tag, value| {
        match tag {
            tag::TEXT => failure.text = value.rest_text("text", ERROR_TEXT_BYTES_MAX)?,
            tag::RETRY_AFTER_MS => {
                failure.retry_after_ms = Some(value.varint_u32("retry_after_ms")?);
            }
            tag::MOVED_TO => {
                failure.moved_to = Some(value.rest_text("moved_to", URL_BYTES_MAX)?);
            }
            _ => return Ok(Known::No),
        }
        Ok(Known::Yes)
    })?;
    Ok(failure)
}

const _: () = assert!(BODY_BYTES_MAX + 128 <= FRAME_BYTES_MIN);
