//! What the relay and its clients say.
//!
//! ```text
//!  hello    H  user (7)                      client ⇄ relay: the relay echoes it
//!  message  M  number (7)  body (32)         client → relay → client of the other user of the pair
//!  ack      A  number (7)                    relay → client
//! ```
//!
//! Numbers are big-endian. Users 2k and 2k + 1 are a pair.

/// Bytes of a message.
pub const MESSAGE_BYTES: usize = 40;
/// Bytes of a hello or an ack.
pub const SHORT_BYTES: usize = 8;
/// Bytes of the body of a message.
pub const BODY_BYTES: usize = MESSAGE_BYTES - SHORT_BYTES;

const HELLO: u8 = b'H';
const MESSAGE: u8 = b'M';
const ACK: u8 = b'A';

/// A whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The connection is this user's.
    Hello {
        /// Its number.
        user: u64,
    },
    /// A message, whole.
    Message(&'a [u8; MESSAGE_BYTES]),
    /// The sender's message is relayed, and stored if the relay has a log.
    Ack {
        /// The message's.
        number: u64,
    },
}

/// The peer sent a byte that begins no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFrame(pub u8);

/// The hello of a user.
pub fn hello(user: u64) -> [u8; SHORT_BYTES] {
    short(HELLO, user)
}

/// The ack of a message.
pub fn ack(message: &[u8; MESSAGE_BYTES]) -> [u8; SHORT_BYTES] {
    short(ACK, number(message))
}

/// A message. Of `number` the low 56 bits count.
pub fn message(number: u64, body: &[u8; BODY_BYTES]) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[..SHORT_BYTES].copy_from_slice(&short(MESSAGE, number));
    message[SHORT_BYTES..].copy_from_slice(body);
    message
}

/// The number of a message.
pub fn number(message: &[u8; MESSAGE_BYTES]) -> u64 {
    rest(&message[..SHORT_BYTES])
}

/// The body of a message.
pub fn body(message: &[u8; MESSAGE_BYTES]) -> &[u8] {
    &message[SHORT_BYTES..]
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Splitter {
    /// The beginning of a frame whose end has not come.
    part: Vec<u8>,
}

impl Splitter {
    /// Takes the next bytes; gives each frame that is complete now to `on`.
    ///
    /// # Errors
    /// The stream holds no frames; it cannot go on.
    pub fn feed(&mut self, mut bytes: &[u8], mut on: impl FnMut(Frame<'_>)) -> Result<(), NoFrame> {
        while let Some(first) = self.part.first().or(bytes.first()).copied() {
            let length = match first {
                MESSAGE => MESSAGE_BYTES,
                HELLO | ACK => SHORT_BYTES,
                other => return Err(NoFrame(other)),
            };
            let missing = length - self.part.len();
            let Some((head, tail)) = bytes.split_at_checked(missing) else {
                self.part.extend_from_slice(bytes);
                return Ok(());
            };
            bytes = tail;
            if self.part.is_empty() {
                on(whole(head));
            } else {
                self.part.extend_from_slice(head);
                on(whole(&self.part));
                self.part.clear();
            }
        }
        Ok(())
    }
}

fn whole(bytes: &[u8]) -> Frame<'_> {
    match (bytes[0], bytes.first_chunk()) {
        (_, Some(message)) => Frame::Message(message),
        (HELLO, None) => Frame::Hello { user: rest(bytes) },
        (_, None) => Frame::Ack { number: rest(bytes) },
    }
}

fn short(kind: u8, number: u64) -> [u8; SHORT_BYTES] {
    let mut bytes = number.to_be_bytes();
    bytes[0] = kind;
    bytes
}

fn rest(bytes: &[u8]) -> u64 {
    bytes[1..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_wherever_the_stream_is_cut() {
        let text = message(7, &[b'x'; BODY_BYTES]);
        let stream = [&hello(3)[..], &text, &ack(&text), &text].concat();
        for cut in 0..=stream.len() {
            let mut splitter = Splitter::default();
            let mut seen = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                let mut on = |frame: Frame<'_>| match frame {
                    Frame::Hello { user } => seen.push(('H', user)),
                    Frame::Ack { number } => seen.push(('A', number)),
                    Frame::Message(message) => {
                        assert_eq!(body(message), [b'x'; BODY_BYTES]);
                        seen.push(('M', number(message)));
                    }
                };
                splitter.feed(part, &mut on).unwrap();
            }
            assert_eq!(seen, [('H', 3), ('M', 7), ('A', 7), ('M', 7)], "cut at {cut}");
        }
    }

    #[test]
    fn a_byte_that_begins_no_frame_ends_the_stream() {
        let stream = [&hello(3)[..], b"?"].concat();
        let mut frames = 0;
        let fed = Splitter::default().feed(&stream, |_| frames += 1);
        assert_eq!((fed, frames), (Err(NoFrame(b'?')), 1));
    }
}
