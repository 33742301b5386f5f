//! How the fields of binary frames are written and read, and the envelope of length and opcode.
//!
//! ```text
//!  frame   = length varint · opcode u8 · fields … payload      (length counts from the opcode on)
//!  blob    = length varint · bytes
//!  tagged  = (tag varint · length varint · bytes)*          tags ascend, unknown ones are skipped
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::WireError;
use crate::frame::MessageKind;
use crate::id::Cid;
use crate::limits::{BODY_BYTES_MAX, FRAMES_PER_MESSAGE_MAX};
use crate::varint;

/// The bit of an opcode that says "refuse the connection if you do not know this one".
pub(super) const MUST_UNDERSTAND: u8 = 0x80;

/// Writes one frame: `fields` appends opcode and fields, the length is put before them. On an error
/// `out` is as it was.
pub(super) fn write_frame<T>(
    out: &mut BytesMut,
    frame_bytes_max: usize,
    fields: impl FnOnce(&mut BytesMut) -> Result<T, WireError>,
) -> Result<T, WireError> {
    let start = out.len();
    out.put_u8(0);
    let written = fields(out).and_then(|value| {
        let length = out.len() - start - 1;
        check_length("frame", length as u64, frame_bytes_max)?;
        Ok((value, length))
    });
    match written {
        Ok((value, length)) => {
            put_length_at(out, start, length);
            Ok(value)
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Fills the one byte kept at `start` with `length`, and moves what follows if that needs more.
fn put_length_at(out: &mut BytesMut, start: usize, length: usize) {
    let prefix = varint::len(length as u64);
    if prefix > 1 {
        out.resize(out.len() + prefix - 1, 0);
        out.copy_within(start + 1..start + 1 + length, start + prefix);
    }
    let mut rest = length;
    for at in 0..prefix {
        let more = if at + 1 < prefix { 0x80 } else { 0 };
        out[start + at] = (rest & 0x7f) as u8 | more;
        rest >>= 7;
    }
}

/// Cuts a message into frames and gives each one's opcode and fields to `on_frame`, which says
/// whether it knew the opcode.
pub(super) fn read_message(
    message: &Bytes,
    frame_bytes_max: usize,
    mut on_frame: impl FnMut(u8, Reader<'_>) -> Result<Known, WireError>,
) -> Result<u64, WireError> {
    let mut rest = Reader::new(message);
    let mut frames = 0;
    let mut skipped = 0;
    while rest.remaining() > 0 {
        frames += 1;
        if frames > FRAMES_PER_MESSAGE_MAX {
            return Err(WireError::TooManyFrames(FRAMES_PER_MESSAGE_MAX));
        }
        let length = rest.varint()?;
        check_length("frame", length, frame_bytes_max)?;
        let mut frame = rest.part(length)?;
        let opcode = frame.u8()?;
        match on_frame(opcode, frame)? {
            Known::Yes => {}
            Known::No if opcode & MUST_UNDERSTAND != 0 => {
                return Err(WireError::UnknownOpcode(opcode));
            }
            Known::No => skipped += 1,
        }
    }
    Ok(skipped)
}

/// Whether an opcode is one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Yes,
    No,
}

/// The bytes of one frame, read from the front. Payloads are given out as slices of the message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    message: &'a Bytes,
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a Bytes) -> Reader<'a> {
        Reader { message, at: 0, end: message.len() }
    }

    pub(super) fn remaining(&self) -> usize {
        self.end - self.at
    }

    fn bytes(&self) -> &'a [u8] {
        &self.message[self.at..self.end]
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let bytes = *self.bytes().first_chunk::<N>().ok_or(WireError::Truncated)?;
        self.at += N;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.fixed::<1>().map(|[byte]| byte)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.fixed().map(u64::from_be_bytes)
    }

    pub(super) fn cid(&mut self) -> Result<Cid, WireError> {
        self.u64().map(Cid)
    }

    pub(super) fn id16(&mut self) -> Result<[u8; 16], WireError> {
        self.fixed()
    }

    pub(super) fn varint(&mut self) -> Result<u64, WireError> {
        let (value, used) = varint::take(self.bytes())?;
        self.at += used;
        Ok(value)
    }

    pub(super) fn varint_u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        u32::try_from(self.varint()?).map_err(|_| WireError::OutOfRange { field })
    }

    /// A byte that stands for one of a few values.
    pub(super) fn choice<T>(
        &mut self,
        field: &'static str,
        from_number: impl FnOnce(u8) -> Option<T>,
    ) -> Result<T, WireError> {
        from_number(self.u8()?).ok_or(WireError::OutOfRange { field })
    }

    pub(super) fn flag(&mut self, field: &'static str) -> Result<bool, WireError> {
        self.choice(field, |byte| match byte {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        })
    }

    /// The next `length` bytes as a reader of their own.
    pub(super) fn part(&mut self, length: u64) -> Result<Reader<'a>, WireError> {
        if length > self.remaining() as u64 {
            return Err(WireError::Truncated);
        }
        let end = self.at + length as usize;
        let part = Reader { message: self.message, at: self.at, end };
        self.at = end;
        Ok(part)
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self, field: &'static str, max: usize) -> Result<Bytes, WireError> {
        check_length(field, self.remaining() as u64, max)?;
        let rest = self.message.slice(self.at..self.end);
        self.at = self.end;
        Ok(rest)
    }

    pub(super) fn blob(&mut self, field: &'static str, max: usize) -> Result<Bytes, WireError> {
        let length = self.varint()?;
        check_length(field, length, max)?;
        self.part(length)?.rest(field, max)
    }

    pub(super) fn text(&mut self, field: &'static str, max: usize) -> Result<String, WireError> {
        let length = self.varint()?;
        check_length(field, length, max)?;
        self.part(length)?.rest_text(field, max)
    }

    pub(super) fn rest_text(
        &mut self,
        field: &'static str,
        max: usize,
    ) -> Result<String, WireError> {
        check_length(field, self.remaining() as u64, max)?;
        let text = utf8(field, self.bytes())?.to_owned();
        self.at = self.end;
        Ok(text)
    }

    /// The rest of the frame as a body of this kind.
    pub(super) fn rest_body(&mut self, kind: MessageKind) -> Result<Bytes, WireError> {
        let body = self.rest("body", BODY_BYTES_MAX)?;
        check_body(kind, &body)?;
        Ok(body)
    }

    /// How many items follow, none shorter than `item_bytes_min`: room for them can be taken.
    pub(super) fn count(
        &mut self,
        field: &'static str,
        max: usize,
        item_bytes_min: usize,
    ) -> Result<usize, WireError> {
        let count = self.varint()?;
        check_length(field, count, max)?;
        if count * item_bytes_min as u64 > self.remaining() as u64 {
            return Err(WireError::Truncated);
        }
        Ok(count as usize)
    }

    /// A block of tagged fields with its length before it.
    pub(super) fn tagged_block(&mut self) -> Result<(), WireError> {
        let length = self.varint()?;
        self.part(length)?.tagged(|_, _| Ok(Known::No))
    }

    /// Tagged fields up to the end; `on_field` reads those that it knows to their end.
    pub(super) fn tagged(
        &mut self,
        mut on_field: impl FnMut(u64, &mut Reader<'a>) -> Result<Known, WireError>,
    ) -> Result<(), WireError> {
        let mut lowest = 0;
        while self.remaining() > 0 {
            let tag = self.varint()?;
            if tag < lowest || tag == u64::MAX {
                return Err(WireError::OutOfRange { field: "tag" });
            }
            lowest = tag + 1;
            let length = self.varint()?;
            let mut value = self.part(length)?;
            if on_field(tag, &mut value)? == Known::Yes {
                value.finish()?;
            }
        }
        Ok(())
    }

    /// The end of a frame that may grow: tagged fields, none of which this version knows.
    pub(super) fn tail(&mut self) -> Result<(), WireError> {
        self.tagged(|_, _| Ok(Known::No))
    }

    /// The end of a frame that never grows.
    pub(super) fn finish(&self) -> Result<(), WireError> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(WireError::TrailingBytes(left)),
        }
    }
}

pub(super) fn put_blob(
    out: &mut BytesMut,
    field: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<(), WireError> {
    check_length(field, bytes.len() as u64, max)?;
    varint::put(out, bytes.len() as u64);
    out.put_slice(bytes);
    Ok(())
}

pub(super) fn put_body(
    out: &mut BytesMut,
    kind: MessageKind,
    body: &[u8],
) -> Result<(), WireError> {
    check_length("body", body.len() as u64, BODY_BYTES_MAX)?;
    check_body(kind, body)?;
    out.put_slice(body);
    Ok(())
}

pub(super) fn put_difference(out: &mut BytesMut, from: u64, to: u64) {
    varint::put(out, varint::difference(from, to));
}

pub(crate) fn check_length(field: &'static str, actual: u64, max: usize) -> Result<(), WireError> {
    if actual > max as u64 {
        return Err(WireError::TooLarge { field, actual, max: max as u64 });
    }
    Ok(())
}

/// Texts are UTF-8; nothing is known about other kinds.
pub(crate) fn check_body(kind: MessageKind, body: &[u8]) -> Result<(), WireError> {
    if kind == MessageKind::TEXT {
        utf8("body", body)?;
    }
    Ok(())
}

pub(crate) fn utf8<'a>(field: &'static str, bytes: &'a [u8]) -> Result<&'a str, WireError> {
    std::str::from_utf8(bytes).map_err(|_| WireError::NotUtf8 { field })
}
