//! Masking of payloads (RFC 6455, 5.3): the same operation masks and unmasks.

/// The four bytes that a client draws afresh, unpredictably, for each frame that it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MaskKey(pub [u8; 4]);

impl MaskKey {
    /// Combines `data` with the key; its first byte is the payload's byte number `offset`.
    ///
    /// A payload may be passed in pieces of any size, each with its own offset. Works on eight
    /// bytes at a time, which the compiler turns into vector instructions.
    pub fn apply(self, offset: u64, data: &mut [u8]) {
        let turned = self.turned((offset % 4) as usize);
        let [a, b, c, d] = turned;
        let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let (words, rest) = data.as_chunks_mut::<8>();
        for word in words {
            *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
        }
        for (byte, key) in rest.iter_mut().zip(turned.iter().cycle()) {
            *byte ^= key;
        }
    }

    fn turned(self, by: usize) -> [u8; 4] {
        let mut bytes = self.0;
        bytes.rotate_left(by);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn byte_loop(key: [u8; 4], offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte ^= key[((offset + index as u64) % 4) as usize];
        }
    }

    proptest! {
        #[test]
        fn equals_a_loop_over_bytes(
            key: [u8; 4],
            offset in 0u64..1000,
            skip in 0usize..16,
            data in proptest::collection::vec(any::<u8>(), 16..300),
        ) {
            let mut fast = data.clone();
            let mut slow = data;
            MaskKey(key).apply(offset, &mut fast[skip..]);
            byte_loop(key, offset, &mut slow[skip..]);
            prop_assert_eq!(fast, slow);
        }

        #[test]
        fn pieces_equal_the_whole(
            key: [u8; 4],
            data in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..200,
        ) {
            let cut = cut.min(data.len());
            let mut whole = data.clone();
            MaskKey(key).apply(0, &mut whole);
            let mut pieces = data;
            let (first, second) = pieces.split_at_mut(cut);
            MaskKey(key).apply(0, first);
            MaskKey(key).apply(cut as u64, second);
            prop_assert_eq!(whole, pieces);
        }
    }

    #[test]
    fn masks_the_example_of_the_rfc() {
        let mut data = *b"Hello";
        MaskKey([0x37, 0xfa, 0x21, 0x3d]).apply(0, &mut data);
        assert_eq!(data, [0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    }
}
