//! The handshake of a link: a format that both speak, and the proof that both have the key of the
//! cluster, for this very link.
//!
//! ```text
//!  opening     0   8  "CHATLINK"              reply      0   8  "CHATLINK"
//!              8   2  newest format                      8   2  newest format
//!             10   2  oldest format                     10   2  oldest format
//!             12   4  zero                              12   2  format agreed on; 0: none
//!             16  32  nonce                             14   2  zero
//!                                                       16  32  nonce
//!  proof       0  32  HMAC                              48  32  HMAC
//! ```
//!
//! Numbers are little-endian. Each HMAC (SHA-256, under the cluster's key) covers a label of its
//! sender and every byte of the handshake before it; the keys of the two directions cover all of
//! it. So a proof is worth nothing on another link, and neither is what follows it.

use std::fmt;

use ring::hmac;

use super::envelope::{Reader, Writer};
use super::{LinkError, format1};

/// Bytes of a cluster's key.
pub const KEY_BYTES: usize = 32;
/// Random bytes that each side adds to a handshake.
pub const NONCE_BYTES: usize = 32;
/// Bytes of what the API server says first.
pub const OPENING_BYTES: usize = 48;
/// Bytes of what the node answers.
pub const REPLY_BYTES: usize = 80;
/// Bytes of a proof.
pub const PROOF_BYTES: usize = 32;

const MAGIC: [u8; 8] = *b"CHATLINK";
const NONCE_AT: usize = 16;
const PROOF_AT: usize = 48;

const NODE_PROOF: &[u8] = b"chatring link 1: the node has the key";
const API_PROOF: &[u8] = b"chatring link 1: the API server has the key";
const TO_NODE: &[u8] = b"chatring link 1: envelopes to the node";
const TO_API: &[u8] = b"chatring link 1: envelopes to the API server";

/// The key that all processes of a cluster share.
#[derive(Clone)]
pub struct ClusterKey(hmac::Key);

/// Formats from one number to another, both spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// The newest.
    pub newest: u16,
    /// The oldest, at least 1.
    pub oldest: u16,
}

/// What a good handshake comes to.
#[derive(Debug)]
pub struct Agreed {
    /// The format of every archive from now on.
    pub format: u16,
    /// For what this side says.
    pub writer: Writer,
    /// For what the other side says.
    pub reader: Reader,
}

/// The API server's side, after its opening.
#[derive(Debug)]
pub struct ApiHandshake {
    key: ClusterKey,
    ours: Formats,
    opening: [u8; OPENING_BYTES],
}

/// The node's side, after its reply.
#[derive(Debug)]
pub struct NodeHandshake {
    key: ClusterKey,
    format: u16,
    said: Vec<u8>,
}

/// What a node says to an opening, and what it then waits for.
#[derive(Debug)]
pub struct Answered {
    /// To be sent in any case.
    pub reply: [u8; REPLY_BYTES],
    /// With an error the link is closed after the reply, which tells the other side why.
    pub next: Result<NodeHandshake, LinkError>,
}

impl ClusterKey {
    /// A key of these bytes, which must be random.
    pub fn new(bytes: &[u8; KEY_BYTES]) -> ClusterKey {
        ClusterKey(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    fn proof(&self, label: &[u8], said: &[&[u8]]) -> [u8; PROOF_BYTES] {
        self.context(label, said).sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn is_proof(&self, label: &[u8], said: &[&[u8]], proof: &[u8]) -> bool {
        let mut whole = label.to_vec();
        said.iter().for_each(|part| whole.extend_from_slice(part));
        hmac::verify(&self.0, &whole, proof).is_ok()
    }

    fn derived(&self, label: &[u8], said: &[&[u8]]) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.proof(label, said))
    }

    fn context(&self, label: &[u8], said: &[&[u8]]) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(label);
        said.iter().for_each(|part| context.update(part));
        context
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey")
    }
}

impl Formats {
    /// What this build speaks: its own format and, from the second on, the one before.
    pub const OWN: Formats = Formats { newest: format1::NUMBER, oldest: format1::NUMBER };

    /// The newest that both speak.
    fn common(self, other: Formats) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }

    fn put(self, to: &mut [u8]) {
        to[..2].copy_from_slice(&self.newest.to_le_bytes());
        to[2..4].copy_from_slice(&self.oldest.to_le_bytes());
    }

    fn take(from: &[u8]) -> Result<Formats, LinkError> {
        let formats = Formats { newest: number(from), oldest: number(&from[2..]) };
        match formats.oldest >= 1 && formats.oldest <= formats.newest {
            true => Ok(formats),
            false => Err(LinkError::NotALink),
        }
    }
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oldest == self.newest {
            true => write!(f, "format {}", self.newest),
            false => write!(f, "formats {} to {}", self.oldest, self.newest),
        }
    }
}

impl ApiHandshake {
    /// Begins a link. The nonce must be random and never used before.
    pub fn new(key: &ClusterKey, ours: Formats, nonce: &[u8; NONCE_BYTES]) -> ApiHandshake {
        let mut opening = [0; OPENING_BYTES];
        opening[..8].copy_from_slice(&MAGIC);
        ours.put(&mut opening[8..]);
        opening[NONCE_AT..].copy_from_slice(nonce);
        ApiHandshake { key: key.clone(), ours, opening }
    }

    /// What to send first.
    pub fn opening(&self) -> &[u8; OPENING_BYTES] {
        &self.opening
    }

    /// Takes the node's reply. Answers what to send, and what follows it.
    ///
    /// # Errors
    /// `NotALink`, `NoCommonFormat`, `WrongKey`: nothing more is sent.
    pub fn finish(
        self,
        reply: &[u8; REPLY_BYTES],
    ) -> Result<([u8; PROOF_BYTES], Agreed), LinkError> {
        if reply[..8] != MAGIC || reply[14..16] != [0; 2] {
            return Err(LinkError::NotALink);
        }
        let theirs = Formats::take(&reply[8..])?;
        let format = number(&reply[12..]);
        // A node that agrees on less than both speak is refused by its proof, if it is not ours.
        if format == 0 || self.ours.common(theirs) != Some(format) {
            return Err(LinkError::NoCommonFormat { ours: self.ours, theirs });
        }
        let opening = &self.opening[..];
        if !self.key.is_proof(NODE_PROOF, &[opening, &reply[..PROOF_AT]], &reply[PROOF_AT..]) {
            return Err(LinkError::WrongKey);
        }
        let proof = self.key.proof(API_PROOF, &[opening, reply]);
        let all: [&[u8]; 3] = [opening, reply, &proof];
        let writer = Writer::new(self.key.derived(TO_NODE, &all), format);
        let reader = Reader::new(self.key.derived(TO_API, &all), format);
        Ok((proof, Agreed { format, writer, reader }))
    }
}

impl NodeHandshake {
    /// Answers an opening. The nonce must be random and never used before.
    ///
    /// # Errors
    /// `NotALink`: nothing is sent.
    pub fn answer(
        key: &ClusterKey,
        ours: Formats,
        opening: &[u8; OPENING_BYTES],
        nonce: &[u8; NONCE_BYTES],
    ) -> Result<Answered, LinkError> {
        if opening[..8] != MAGIC || opening[12..NONCE_AT] != [0; 4] {
            return Err(LinkError::NotALink);
        }
        let theirs = Formats::take(&opening[8..])?;
        let format = ours.common(theirs);
        let mut reply = [0; REPLY_BYTES];
        reply[..8].copy_from_slice(&MAGIC);
        ours.put(&mut reply[8..]);
        reply[12..14].copy_from_slice(&format.unwrap_or(0).to_le_bytes());
        reply[NONCE_AT..PROOF_AT].copy_from_slice(nonce);
        let proof = key.proof(NODE_PROOF, &[opening, &reply[..PROOF_AT]]);
        reply[PROOF_AT..].copy_from_slice(&proof);
        let next = match format {
            Some(format) => {
                let said = [&opening[..], &reply].concat();
                Ok(NodeHandshake { key: key.clone(), format, said })
            }
            None => Err(LinkError::NoCommonFormat { ours, theirs }),
        };
        Ok(Answered { reply, next })
    }

    /// Takes the API server's proof.
    ///
    /// # Errors
    /// `WrongKey`.
    pub fn finish(self, proof: &[u8; PROOF_BYTES]) -> Result<Agreed, LinkError> {
        let NodeHandshake { key, format, said } = self;
        if !key.is_proof(API_PROOF, &[&said], proof) {
            return Err(LinkError::WrongKey);
        }
        let all: [&[u8]; 2] = [&said, proof];
        let writer = Writer::new(key.derived(TO_API, &all), format);
        let reader = Reader::new(key.derived(TO_NODE, &all), format);
        Ok(Agreed { format, writer, reader })
    }
}

fn number(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::BytesMut;

    use super::*;

    fn key(byte: u8) -> ClusterKey {
        ClusterKey::new(&[byte; KEY_BYTES])
    }

    fn formats(oldest: u16, newest: u16) -> Formats {
        Formats { newest, oldest }
    }

    /// Both ends of a link, always the same one.
    pub(in crate::link) fn agreed() -> (Agreed, Agreed) {
        shake((&key(1), formats(1, 1)), (&key(1), formats(1, 1))).expect("the same key")
    }

    type Side<'a> = (&'a ClusterKey, Formats);

    fn shake(api: Side<'_>, node: Side<'_>) -> Result<(Agreed, Agreed), LinkError> {
        let begun = ApiHandshake::new(api.0, api.1, &[2; NONCE_BYTES]);
        let answered = NodeHandshake::answer(node.0, node.1, begun.opening(), &[3; NONCE_BYTES])?;
        let (proof, api) = begun.finish(&answered.reply)?;
        Ok((api, answered.next?.finish(&proof)?))
    }

    #[test]
    fn two_with_the_same_key_agree_on_the_newest_common_format() {
        let key = key(1);
        for (api, node, agreed) in [
            (formats(1, 1), formats(1, 1), 1),
            (formats(1, 2), formats(2, 3), 2),
            (formats(3, 4), formats(2, 3), 3),
        ] {
            let (api, node) = shake((&key, api), (&key, node)).expect("a common one");
            assert_eq!((api.format, node.format), (agreed, agreed));
        }
    }

    #[test]
    fn both_sides_are_told_that_there_is_no_common_format() {
        let (key, old, new) = (key(1), formats(1, 1), formats(2, 3));
        let begun = ApiHandshake::new(&key, old, &[2; NONCE_BYTES]);
        let answered = NodeHandshake::answer(&key, new, begun.opening(), &[3; NONCE_BYTES]);
        let answered = answered.expect("an opening");
        let error = LinkError::NoCommonFormat { ours: new, theirs: old };
        assert_eq!(answered.next.err(), Some(error));
        let error = begun.finish(&answered.reply).expect_err("none in common");
        assert_eq!(error, LinkError::NoCommonFormat { ours: old, theirs: new });
        let text = "no common format: it speaks formats 2 to 3, we speak format 1";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn each_side_refuses_one_with_another_key() {
        let (a, b, formats) = (key(1), key(9), formats(1, 1));
        assert_eq!(shake((&a, formats), (&b, formats)).err(), Some(LinkError::WrongKey));
        // An impostor that does not look at the node's proof.
        let begun = ApiHandshake::new(&b, formats, &[2; NONCE_BYTES]);
        let answered = NodeHandshake::answer(&a, formats, begun.opening(), &[3; NONCE_BYTES]);
        let answered = answered.expect("an opening");
        let proof = b.proof(API_PROOF, &[&begun.opening[..], &answered.reply]);
        let node = answered.next.expect("a common format");
        assert_eq!(node.finish(&proof).err(), Some(LinkError::WrongKey));
    }

    #[test]
    fn a_proof_is_good_for_its_own_link_and_its_own_side_alone() {
        let (key, formats) = (key(1), formats(1, 1));
        let begun = ApiHandshake::new(&key, formats, &[2; NONCE_BYTES]);
        let node = |nonce: u8| {
            NodeHandshake::answer(&key, formats, begun.opening(), &[nonce; NONCE_BYTES])
                .expect("an opening")
        };
        let first = node(3);
        let node_proof: [u8; PROOF_BYTES] =
            first.reply[PROOF_AT..].try_into().expect("as long as a proof");
        let mirrored = node(3).next.expect("a common format").finish(&node_proof);
        assert_eq!(mirrored.err(), Some(LinkError::WrongKey));
        let opening = *begun.opening();
        let again = ApiHandshake::new(&key, formats, &[2; NONCE_BYTES]);
        assert_eq!(*again.opening(), opening);
        let (proof, _) = begun.finish(&first.reply).expect("good");
        let other = NodeHandshake::answer(&key, formats, &opening, &[4; NONCE_BYTES]);
        let other = other.expect("an opening").next.expect("a common format");
        assert_eq!(other.finish(&proof).err(), Some(LinkError::WrongKey));
    }

    #[test]
    fn each_bit_of_a_handshake_matters() {
        let (key, formats) = (key(1), formats(1, 2));
        let nonces = ([2; NONCE_BYTES], [3; NONCE_BYTES]);
        let run = |turn: Option<usize>| -> Result<(Agreed, Agreed), LinkError> {
            let begun = ApiHandshake::new(&key, formats, &nonces.0);
            let mut said = begun.opening().to_vec();
            turned(&mut said, turn, 0);
            let opening = said[..].try_into().expect("as long as it was");
            let answered = NodeHandshake::answer(&key, formats, &opening, &nonces.1)?;
            let mut reply = answered.reply;
            turned(&mut reply, turn, OPENING_BYTES * 8);
            let (mut proof, api) = begun.finish(&reply)?;
            turned(&mut proof, turn, (OPENING_BYTES + REPLY_BYTES) * 8);
            Ok((api, answered.next?.finish(&proof)?))
        };
        assert!(run(None).is_ok());
        for bit in 0..(OPENING_BYTES + REPLY_BYTES + PROOF_BYTES) * 8 {
            assert!(run(Some(bit)).is_err(), "bit {bit}");
        }
    }

    fn turned(bytes: &mut [u8], turn: Option<usize>, before: usize) {
        let Some(bit) = turn.and_then(|bit| bit.checked_sub(before)) else { return };
        if let Some(byte) = bytes.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn envelopes_of_one_link_are_none_on_another() {
        let (mut one, _) = agreed();
        let key = key(1);
        let begun = ApiHandshake::new(&key, formats(1, 1), &[2; NONCE_BYTES]);
        let opening = *begun.opening();
        let other = NodeHandshake::answer(&key, formats(1, 1), &opening, &[8; NONCE_BYTES]);
        let other = other.expect("an opening");
        let (proof, _) = begun.finish(&other.reply).expect("good");
        let mut other = other.next.expect("a format").finish(&proof).expect("good");
        let mut out = BytesMut::new();
        one.writer.put(b"call", &mut out).expect("short");
        assert_eq!(other.reader.next(&mut out), Err(LinkError::Forged));
    }
}
