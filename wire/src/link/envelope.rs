//! The checked envelope round an archive.
//!
//! ```text
//!   0   4  magic "CRLK"
//!   4   2  format number
//!   6   2  zero
//!   8   4  length n of the archive, at most 8 MiB
//!  12   4  CRC-32 (IEEE) of bytes 0..12 and the archive
//!  16   n  archive
//!       16  tag: HMAC-SHA-256 of (number of the envelope, 8 bytes, and all the above), its first
//!           half, under the key of this direction of this link
//! ```
//!
//! Numbers are little-endian. The number of an envelope counts from 0 in each direction and does
//! not travel, so that none can be left out, repeated or put elsewhere.

use bytes::{Buf as _, Bytes, BytesMut};
use ring::hmac;

use super::{ARCHIVE_BYTES_MAX, HEADER_BYTES, LinkError, TAG_BYTES};

const MAGIC: [u8; 4] = *b"CRLK";

/// Puts archives into envelopes, for one direction of a link.
#[derive(Debug)]
pub struct Writer {
    key: hmac::Key,
    format: u16,
    number: u64,
}

/// Takes archives out of envelopes, for one direction of a link.
#[derive(Debug)]
pub struct Reader {
    key: hmac::Key,
    format: u16,
    number: u64,
}

impl Writer {
    pub(super) fn new(key: hmac::Key, format: u16) -> Writer {
        Writer { key, format, number: 0 }
    }

    /// Appends the envelope of an archive.
    ///
    /// # Errors
    /// `TooLong`; nothing is written then, and the link is as good as before.
    pub fn put(&mut self, archive: &[u8], out: &mut BytesMut) -> Result<(), LinkError> {
        let length = archive.len();
        if length > ARCHIVE_BYTES_MAX {
            return Err(LinkError::TooLong(length as u64));
        }
        out.reserve(HEADER_BYTES + length + TAG_BYTES);
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.format.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&(length as u32).to_le_bytes());
        let crc = checksum(&out[start..], archive);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(archive);
        let tag = tag(&self.key, self.number, &out[start..]);
        out.extend_from_slice(&tag);
        self.number += 1;
        Ok(())
    }
}

impl Reader {
    pub(super) fn new(key: hmac::Key, format: u16) -> Reader {
        Reader { key, format, number: 0 }
    }

    /// Takes the next archive off the front of what was received; `None` if it has not come whole.
    /// The archive is the received memory itself.
    ///
    /// # Errors
    /// All of them end the link. What is announced as too long is refused before it has come.
    pub fn next(&mut self, received: &mut BytesMut) -> Result<Option<Bytes>, LinkError> {
        if received.len() < HEADER_BYTES {
            let begun = received.len().min(MAGIC.len());
            return match received[..begun] == MAGIC[..begun] {
                true => Ok(None),
                false => Err(LinkError::Magic),
            };
        }
        let mut header = &received[..HEADER_BYTES];
        if header[..MAGIC.len()] != MAGIC {
            return Err(LinkError::Magic);
        }
        header.advance(MAGIC.len());
        let (format, reserved) = (header.get_u16_le(), header.get_u16_le());
        let (length, crc) = (header.get_u32_le(), header.get_u32_le());
        if format != self.format {
            return Err(LinkError::Format(format));
        }
        if reserved != 0 {
            return Err(LinkError::Reserved);
        }
        let length = match usize::try_from(length) {
            Ok(length) if length <= ARCHIVE_BYTES_MAX => length,
            _ => return Err(LinkError::TooLong(length.into())),
        };
        let whole = HEADER_BYTES + length + TAG_BYTES;
        if received.len() < whole {
            return Ok(None);
        }
        let (checked, rest) = received.split_at(HEADER_BYTES + length);
        if checksum(&checked[..HEADER_BYTES - 4], &checked[HEADER_BYTES..]) != crc {
            return Err(LinkError::Damaged);
        }
        // Compared in constant time: a guess must not learn how much of it was right.
        let expected = tag(&self.key, self.number, checked);
        if !same(&expected, &rest[..TAG_BYTES]) {
            return Err(LinkError::Forged);
        }
        self.number += 1;
        let envelope = received.split_to(whole).freeze();
        Ok(Some(envelope.slice(HEADER_BYTES..HEADER_BYTES + length)))
    }
}

fn checksum(header: &[u8], archive: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(archive);
    crc.finalize()
}

fn tag(key: &hmac::Key, number: u64, bytes: &[u8]) -> [u8; TAG_BYTES] {
    let mut context = hmac::Context::with_key(key);
    context.update(&number.to_le_bytes());
    context.update(bytes);
    let tag = context.sign();
    tag.as_ref()[..TAG_BYTES].try_into().expect("SHA-256 has 32 bytes")
}

fn same(a: &[u8; TAG_BYTES], b: &[u8]) -> bool {
    let different = a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b));
    std::hint::black_box(different) == 0
}

#[cfg(test)]
mod tests {
    use super::super::handshake::tests::agreed;
    use super::*;

    fn envelopes(archives: &[&[u8]]) -> BytesMut {
        let (mut api, _) = agreed();
        let mut out = BytesMut::new();
        for archive in archives {
            api.writer.put(archive, &mut out).expect("short");
        }
        out
    }

    fn read_all(mut received: BytesMut) -> Result<Vec<Bytes>, LinkError> {
        let (_, mut node) = agreed();
        let mut archives = Vec::new();
        while let Some(archive) = node.reader.next(&mut received)? {
            archives.push(archive);
        }
        Ok(archives)
    }

    #[test]
    fn archives_come_out_as_they_went_in_however_they_are_cut() {
        let archives: [&[u8]; 4] = [b"one", b"", &[7; 70_000], b"last"];
        let whole = envelopes(&archives);
        assert_eq!(read_all(whole.clone()).expect("good"), archives);
        let (_, mut node) = agreed();
        let (mut received, mut got) = (BytesMut::new(), Vec::new());
        for piece in whole.chunks(13) {
            received.extend_from_slice(piece);
            while let Some(archive) = node.reader.next(&mut received).expect("good") {
                got.push(archive);
            }
        }
        assert_eq!(got, archives);
        assert!(received.is_empty());
    }

    #[test]
    fn each_bit_turned_is_an_error_or_waits_for_more_and_never_an_archive() {
        let whole = envelopes(&[b"an archive", b"another one"]);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut turned = whole.clone();
                turned[at] ^= 1 << bit;
                // A larger length may wait for bytes that do not come; nothing false comes out.
                match read_all(turned) {
                    Err(_) => {}
                    Ok(archives) => {
                        let length = at % (whole.len() / 2) >= 8;
                        assert!(length && archives.len() < 2, "byte {at} bit {bit}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_cut_short_waits() {
        let whole = envelopes(&[b"an archive"]);
        for length in 0..whole.len() {
            let cut = BytesMut::from(&whole[..length]);
            assert_eq!(read_all(cut).expect("may go on"), Vec::<Bytes>::new(), "{length}");
        }
    }

    #[test]
    fn each_kind_of_damage_has_its_own_error() {
        let whole = envelopes(&[b"an archive"]);
        let turned = |at: usize| {
            let mut turned = whole.clone();
            turned[at] ^= 1;
            read_all(turned)
        };
        assert_eq!(turned(0), Err(LinkError::Magic));
        assert_eq!(turned(4), Err(LinkError::Format(0)));
        assert_eq!(turned(6), Err(LinkError::Reserved));
        assert_eq!(turned(12), Err(LinkError::Damaged));
        assert_eq!(turned(HEADER_BYTES), Err(LinkError::Damaged));
        assert_eq!(turned(whole.len() - 1), Err(LinkError::Forged));
        assert_eq!(read_all(BytesMut::from(&b"GET / HTTP/1.1\r\n\r\n"[..])), Err(LinkError::Magic));
        assert_eq!(read_all(BytesMut::from(&b"G"[..])), Err(LinkError::Magic));
    }

    #[test]
    fn what_is_announced_as_too_long_is_refused_before_it_comes() {
        let mut header = BytesMut::from(&envelopes(&[b"x"])[..HEADER_BYTES]);
        let length = ARCHIVE_BYTES_MAX as u32 + 1;
        header[8..12].copy_from_slice(&length.to_le_bytes());
        assert_eq!(read_all(header), Err(LinkError::TooLong(length.into())));
        let (mut api, _) = agreed();
        let mut out = BytesMut::new();
        let long = vec![0; ARCHIVE_BYTES_MAX + 1];
        assert_eq!(api.writer.put(&long, &mut out), Err(LinkError::TooLong(length.into())));
        assert!(out.is_empty());
    }

    #[test]
    fn an_envelope_left_out_repeated_or_of_another_direction_is_none() {
        let both = envelopes(&[b"first", b"second"]);
        let first = HEADER_BYTES + 5 + TAG_BYTES;
        assert_eq!(read_all(BytesMut::from(&both[first..])), Err(LinkError::Forged));
        let twice = [&both[..first], &both[..first]].concat();
        assert_eq!(read_all(BytesMut::from(&twice[..])), Err(LinkError::Forged));
        let (mut api, mut node) = agreed();
        let mut out = BytesMut::new();
        node.writer.put(b"to the API", &mut out).expect("short");
        assert_eq!(node.reader.next(&mut out.clone()), Err(LinkError::Forged));
        assert_eq!(api.reader.next(&mut out).expect("good").as_deref(), Some(&b"to the API"[..]));
    }
}
