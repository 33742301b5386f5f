//! Message bodies that say what they are: run, sender, number and a checksum, then filler.
//!
//! ```text
//!  0     4    7      12     16                 length
//!  ├─────┼────┼──────┼──────┼────────────────────┤
//!  │ run │from│number│check │ filler             │   digits of 6 bits in A–Z a–z 0–9 - _
//!  └─────┴────┴──────┴──────┴────────────────────┘
//! ```
//!
//! Everything from the check on follows from the first three fields and the length, so a received
//! body is compared byte by byte with the only one that could have been sent.

use bytes::Bytes;

use crate::limits::{MESSAGES_PER_USER_MAX, USERS_MAX};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const BITS_PER_DIGIT: u32 = 6;
const RUN_DIGITS: usize = 4;
const SENDER_DIGITS: usize = 3;
const NUMBER_DIGITS: usize = 5;
const CHECK_DIGITS: usize = 4;
/// Bodies up to this length are compared without an allocation.
const SHORT_BYTES: usize = 256;

/// Names a run, so that its messages are told from those of others in the same channels: 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunTag(u32);

impl RunTag {
    /// From any number, of which the low 24 bits count.
    pub const fn new(number: u64) -> RunTag {
        RunTag((number & ((1 << (BITS_PER_DIGIT as usize * RUN_DIGITS)) - 1)) as u32)
    }
}

/// What a body says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The run that sent it.
    pub run: RunTag,
    /// The number of the user who sent it.
    pub sender: u32,
    /// Which message of that user it is, from 0.
    pub number: u32,
}

/// What a received body turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Exactly the body that carries this stamp.
    Whole(Stamp),
    /// It begins like a body of this run but is not one: bytes were changed or cut.
    Damaged(RunTag),
    /// Something else, or too short to say.
    Other,
}

impl Stamp {
    /// The shortest body that holds a stamp.
    pub const BYTES: usize = RUN_DIGITS + SENDER_DIGITS + NUMBER_DIGITS + CHECK_DIGITS;

    /// The body of `length` bytes that carries this stamp; ASCII. `length` is at least
    /// [`Stamp::BYTES`].
    pub fn body(self, length: usize) -> Bytes {
        let mut body = vec![0; length];
        self.fill(&mut body);
        body.into()
    }

    /// The same, where it is to stand.
    pub fn fill(self, body: &mut [u8]) {
        let length = body.len();
        assert!(length >= Stamp::BYTES, "the stamp fits into the body");
        let (run, rest) = body.split_at_mut(RUN_DIGITS);
        let (sender, rest) = rest.split_at_mut(SENDER_DIGITS);
        let (number, rest) = rest.split_at_mut(NUMBER_DIGITS);
        let (check, filler) = rest.split_at_mut(CHECK_DIGITS);
        put_digits(run, u64::from(self.run.0));
        put_digits(sender, u64::from(self.sender));
        put_digits(number, u64::from(self.number));
        let mut random = Mixer(self.seed(length));
        put_digits(check, random.draw());
        filler.chunks_mut(8).for_each(|piece| put_digits(piece, random.draw()));
    }

    /// Whether this is the body that carries the stamp. One of usual length is compared on the
    /// stack.
    fn is_body(self, body: &[u8]) -> bool {
        if body.len() < Stamp::BYTES {
            return false;
        }
        let mut short = [0; SHORT_BYTES];
        match short.get_mut(..body.len()) {
            Some(own) => {
                self.fill(own);
                own == body
            }
            None => self.body(body.len()) == body,
        }
    }

    /// Reads a received body.
    pub fn parse(body: &[u8]) -> Parsed {
        let Some(run) = body.get(..RUN_DIGITS).and_then(digits) else { return Parsed::Other };
        let run = RunTag(run as u32);
        let (from, to) = (RUN_DIGITS + SENDER_DIGITS, Stamp::BYTES - CHECK_DIGITS);
        let sender = body.get(RUN_DIGITS..from).and_then(digits);
        let number = body.get(from..to).and_then(digits);
        let (Some(sender), Some(number)) = (sender, number) else { return Parsed::Damaged(run) };
        let stamp = Stamp { run, sender: sender as u32, number: number as u32 };
        if stamp.is_body(body) { Parsed::Whole(stamp) } else { Parsed::Damaged(run) }
    }

    fn seed(self, length: usize) -> u64 {
        let fields = (u64::from(self.sender) << 32) | u64::from(self.number);
        mix(mix(u64::from(self.run.0)) ^ fields) ^ (length as u64)
    }
}

const _: () = assert!(USERS_MAX as u64 <= 1 << (BITS_PER_DIGIT as usize * SENDER_DIGITS));
const _: () =
    assert!(MESSAGES_PER_USER_MAX as u64 <= 1 << (BITS_PER_DIGIT as usize * NUMBER_DIGITS));

/// A small generator for plans and fillers (SplitMix64): repeatable, not secret.
#[derive(Clone, Debug)]
pub struct Mixer(pub u64);

impl Mixer {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is at least 1. The bias is below 2⁻³².
    pub fn below(&mut self, bound: u32) -> u32 {
        (((self.draw() >> 32) * u64::from(bound)) >> 32) as u32
    }
}

/// The finaliser of SplitMix64.
pub const fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Writes as many of the low digits of a number as there is room for, highest first.
fn put_digits(room: &mut [u8], number: u64) {
    for (digit, byte) in room.iter_mut().rev().enumerate() {
        *byte = ALPHABET[((number >> (digit as u32 * BITS_PER_DIGIT)) & 63) as usize];
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0, |number, byte| {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        Some((number << BITS_PER_DIGIT) | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp =
        Stamp { run: RunTag(0xab_cdef), sender: USERS_MAX - 1, number: MESSAGES_PER_USER_MAX - 1 };

    #[test]
    fn a_body_of_any_length_is_read_back() {
        for length in [16, 17, 20, 23, 24, 25, 100, 65_536] {
            for number in [0, 1, 4_711, STAMP.number] {
                let stamp = Stamp { number, ..STAMP };
                let body = stamp.body(length);
                assert_eq!(body.len(), length);
                assert!(body.is_ascii());
                assert_eq!(Stamp::parse(&body), Parsed::Whole(stamp));
            }
        }
    }

    #[test]
    fn each_changed_byte_is_seen() {
        let body = STAMP.body(40);
        for at in 0..body.len() {
            let mut forged = body.to_vec();
            forged[at] = if forged[at] == b'x' { b'y' } else { b'x' };
            assert!(!matches!(Stamp::parse(&forged), Parsed::Whole(_)), "byte {at}");
        }
        assert_eq!(Stamp::parse(&body[..39]), Parsed::Damaged(STAMP.run));
        assert_eq!(Stamp::parse(&body[..10]), Parsed::Damaged(STAMP.run));
    }

    #[test]
    fn texts_of_people_are_other_or_damaged_never_whole() {
        assert_eq!(Stamp::parse(b""), Parsed::Other);
        assert_eq!(Stamp::parse(b"hi!"), Parsed::Other);
        assert_eq!(Stamp::parse("Grüße und so weiter".as_bytes()), Parsed::Other);
        assert!(!matches!(Stamp::parse(b"HelloThisIsSomeText"), Parsed::Whole(_)));
    }
}
