//! Variable-length numbers: seven bits a byte, lowest first, always in the shortest form.
//!
//! ```text
//!  value 300 = 0b10_0101100     bytes  1_0101100  0_0000010     (top bit: another byte follows)
//! ```

use bytes::{BufMut, BytesMut};

use crate::error::WireError;
use crate::limits::VARINT_BYTES_MAX;

/// Appends `value` in its shortest form: 1 byte below 128, at most 10.
pub fn put(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// How many bytes [`put`] takes for `value`.
pub const fn len(value: u64) -> usize {
    (63 - (value | 1).leading_zeros() as usize) / 7 + 1
}

/// Reads the varint at the start of `bytes`; gives the value and how many bytes it took.
///
/// # Errors
/// `Truncated` if `bytes` end inside it, `Varint` if it is not the shortest form of a `u64`.
pub fn take(bytes: &[u8]) -> Result<(u64, usize), WireError> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if at + 1 == VARINT_BYTES_MAX && bits > 1 {
            return Err(WireError::Varint);
        }
        value |= bits << (7 * at);
        if byte < 0x80 {
            let shortest = at == 0 || byte != 0;
            return if shortest { Ok((value, at + 1)) } else { Err(WireError::Varint) };
        }
    }
    Err(if bytes.len() < VARINT_BYTES_MAX { WireError::Truncated } else { WireError::Varint })
}

/// The difference `to − from` (modulo 2^64) in zigzag form: 0, −1, 1, −2 … become 0, 1, 2, 3 …
pub const fn difference(from: u64, to: u64) -> u64 {
    let delta = to.wrapping_sub(from) as i64;
    ((delta << 1) ^ (delta >> 63)) as u64
}

/// The value that lies `difference` (in zigzag form) behind `from`.
pub const fn apply(from: u64, difference: u64) -> u64 {
    from.wrapping_add((difference >> 1) ^ (difference & 1).wrapping_neg())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_change_where_seven_bits_are_full() {
        for (value, expected) in
            [(0, 1), (127, 1), (128, 2), (16_383, 2), (16_384, 3), (u64::MAX, 10), (1 << 63, 10)]
        {
            let mut out = BytesMut::new();
            put(&mut out, value);
            assert_eq!((out.len(), len(value)), (expected, expected), "{value}");
        }
    }

    #[test]
    fn only_the_shortest_form_is_taken() {
        assert_eq!(take(&[0x80, 0x00]), Err(WireError::Varint));
        assert_eq!(take(&[0xff, 0x80, 0x00]), Err(WireError::Varint));
        let ten = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(take(&ten), Ok((u64::MAX, 10)));
        let above = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(take(&above), Err(WireError::Varint));
        assert_eq!(take(&[0x80; 11]), Err(WireError::Varint));
        assert_eq!(take(&[0x80; 9]), Err(WireError::Truncated));
    }

    proptest! {
        #[test]
        fn every_value_comes_back_and_no_prefix_of_it_parses(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            let mut out = BytesMut::new();
            put(&mut out, value);
            prop_assert_eq!(take(&out), Ok((value, out.len())));
            prop_assert_eq!(out.len(), len(value));
            for end in 0..out.len() {
                prop_assert_eq!(take(&out[..end]), Err(WireError::Truncated));
            }
        }

        #[test]
        fn what_parses_is_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            if let Ok((value, used)) = take(&bytes) {
                let mut out = BytesMut::new();
                put(&mut out, value);
                prop_assert_eq!(&out[..], &bytes[..used]);
            }
        }

        #[test]
        fn differences_come_back_and_small_ones_are_short(from: u64, to: u64, near in -64i64..64) {
            prop_assert_eq!(apply(from, difference(from, to)), to);
            let neighbour = from.wrapping_add_signed(near);
            prop_assert_eq!(apply(from, difference(from, neighbour)), neighbour);
            prop_assert_eq!(len(difference(from, neighbour)), 1);
        }
    }
}
