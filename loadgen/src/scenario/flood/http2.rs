//! As much of HTTP/2 (RFC 9113) and HPACK (RFC 7541) as a head takes that is too large.

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::Outcome;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Largest payload of a frame that everybody takes.
const FRAME_BYTES_MAX: usize = 16_384;
/// `:method: GET`, `:scheme: http`, `:path: /` of the static table.
const REQUEST: [u8; 3] = [0x82, 0x86, 0x84];
/// Length of a header's value: it fits into the table, of 4,096 bytes, that both ends keep.
const VALUE_BYTES: usize = 4_000;
/// The first place of that table.
const NEWEST: u8 = 0x80 | 62;

/// A connection's opening and a request whose headers take so many bytes on the wire.
pub(super) fn long_head(bytes: usize) -> Bytes {
    let mut block = BytesMut::from(&REQUEST[..]);
    while block.len() < bytes {
        // Without a place in the table.
        put_header(&mut block, 0x00);
    }
    opening(&block)
}

/// The same with one header, to which so many others point that they stand for so many bytes.
pub(super) fn dense_head(bytes: usize) -> Bytes {
    let mut block = BytesMut::from(&REQUEST[..]);
    // With a place in the table.
    put_header(&mut block, 0x40);
    block.put_bytes(NEWEST, bytes / VALUE_BYTES);
    opening(&block)
}

fn put_header(block: &mut BytesMut, kind: u8) {
    block.put_slice(&[kind, 1, b'x']);
    // A length of seven bits, and what is above them in pieces of seven.
    let above = VALUE_BYTES - 127;
    block.put_slice(&[127, 0x80 | (above & 0x7f) as u8, (above >> 7) as u8]);
    block.put_bytes(b'a', VALUE_BYTES);
}

fn opening(block: &[u8]) -> Bytes {
    let mut out = BytesMut::from(PREFACE);
    put_frame(&mut out, SETTINGS, 0, 0, &[]);
    let last = block.chunks(FRAME_BYTES_MAX).count() - 1;
    for (n, piece) in block.chunks(FRAME_BYTES_MAX).enumerate() {
        let kind = if n == 0 { HEADERS } else { CONTINUATION };
        let end = if n == last { END_HEADERS } else { 0 };
        put_frame(&mut out, kind, end | if n == 0 { END_STREAM } else { 0 }, 1, piece);
    }
    out.freeze()
}

fn put_frame(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.put_uint(payload.len() as u64, 3);
    out.put_slice(&[kind, flags]);
    out.put_u32(stream);
    out.put_slice(payload);
}

/// Reads frames until the request is answered or the connection ends.
pub(super) async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> Outcome {
    let mut payload = Vec::new();
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return Outcome::Closed;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if length > FRAME_BYTES_MAX {
            return Outcome::NoAnswer;
        }
        payload.resize(length, 0);
        if stream.read_exact(&mut payload).await.is_err() {
            return Outcome::Closed;
        }
        match head[3] {
            HEADERS => return status(&payload).map_or(Outcome::NoAnswer, Outcome::Status),
            RST_STREAM => return Outcome::Closed,
            GOAWAY => {
                let error = payload.get(4..8).and_then(|bytes| bytes.try_into().ok());
                return error.map_or(Outcome::NoAnswer, |e| Outcome::GoAway(u32::from_be_bytes(e)));
            }
            _ => {}
        }
    }
}

/// The status of an answer: its first header.
fn status(block: &[u8]) -> Option<u16> {
    let known = [200, 204, 206, 304, 400, 404, 500];
    let (&first, rest) = block.split_first()?;
    if first & 0x80 != 0 {
        return known.get(usize::from(first & 0x7f).checked_sub(8)?).copied();
    }
    // A literal whose name is that of any status of the static table.
    let name = if first & 0x40 != 0 { first & 0x3f } else { first & 0x0f };
    if !(8..=14).contains(&name) {
        return None;
    }
    let (&length, rest) = rest.split_first()?;
    let text = rest.get(..usize::from(length & 0x7f))?;
    match length & 0x80 == 0 {
        true => std::str::from_utf8(text).ok()?.parse().ok(),
        false => digits(text),
    }
}

/// Three digits in HPACK's code: 0 to 2 have five bits, the others six (RFC 7541, B).
fn digits(text: &[u8]) -> Option<u16> {
    let bits = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)));
    let mut bits = bits.collect::<Vec<_>>().into_iter();
    let mut number = 0;
    for _ in 0..3 {
        let mut code = bits.by_ref().take(5).fold(0, |code, bit| code << 1 | bit);
        if code > 2 {
            code = code << 1 | bits.next()?;
        }
        let digit = match code {
            0..=2 => code,
            0x19..=0x1f => code - 0x19 + 3,
            _ => return None,
        };
        number = number * 10 + digit;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_in_each_of_its_forms() {
        for (block, expected) in [
            (&[0x88][..], Some(200)),
            (&[0x8d], Some(404)),
            (&[0x82], None),
            (b"\x48\x03431", Some(431)),
            (b"\x08\x03503", Some(503)),
            // RFC 7541, C.6.1: 302.
            (&[0x48, 0x82, 0x64, 0x02], Some(302)),
            (&[0x48, 0x83, 0x69, 0x90, 0xff], Some(431)),
            (&[0x48, 0x83, 0x69], None),
            (&[0x40, 0x01], None),
            (&[], None),
        ] {
            assert_eq!(status(block), expected, "{block:x?}");
        }
    }

    #[test]
    fn heads_are_whole_frames_of_what_was_asked_for() {
        for (head, frames, bytes) in
            [(long_head(1 << 20), 66, 1 << 20), (dense_head(1 << 20), 2, 4_000)]
        {
            let mut rest = &head[PREFACE.len()..];
            let (mut kinds, mut last) = (Vec::new(), 0);
            while let [a, b, c, kind, flags, _, _, _, _, ..] = *rest {
                kinds.push(kind);
                last = flags;
                rest = &rest[9 + u32::from_be_bytes([0, a, b, c]) as usize..];
            }
            assert!(rest.is_empty() && last & END_HEADERS != 0);
            assert_eq!((kinds.len(), &kinds[..2]), (frames, &[SETTINGS, HEADERS][..]));
            assert!(head.len() > bytes && head.len() < bytes + 8_192, "{}", head.len());
        }
    }
}
