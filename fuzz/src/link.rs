//! What API servers and nodes hand each other.

use bytes::BytesMut;
use chatring_wire::link::format1::{ToApi, ToNode};
use chatring_wire::link::{
    Agreed, ApiHandshake, ClusterKey, Formats, KEY_BYTES, NONCE_BYTES, NodeHandshake,
    OPENING_BYTES, PROOF_BYTES, REPLY_BYTES,
};

/// Envelopes from nowhere, whole and cut, and the same bytes in envelopes that are good.
pub(crate) fn envelopes(data: &[u8]) {
    let (mut api, mut node) = agreed();
    let mut received = BytesMut::new();
    for piece in data.chunks(7) {
        received.extend_from_slice(piece);
        match node.reader.next(&mut received) {
            Ok(None) => {}
            Ok(Some(_)) => panic!("nobody knows the key"),
            Err(_) => break,
        }
    }
    let (_, mut node) = agreed();
    let mut out = BytesMut::new();
    for archive in data.chunks(100) {
        api.writer.put(archive, &mut out).expect("short");
    }
    for archive in data.chunks(100) {
        let read = node.reader.next(&mut out).expect("good").expect("whole");
        assert_eq!(&read[..], archive);
    }
}

/// What reads as an archive is written and reads as the same again.
pub(crate) fn archives(data: &[u8]) {
    if let Ok(read) = ToNode::read(data) {
        assert_eq!(ToNode::read(&read.archive()), Ok(read));
    }
    if let Ok(read) = ToApi::read(data) {
        assert_eq!(ToApi::read(&read.archive()), Ok(read));
    }
}

/// Nobody without the key gets through, from either side.
pub(crate) fn handshake(data: &[u8]) {
    let key = key();
    if let Some(opening) = first::<OPENING_BYTES>(data)
        && let Ok(answered) = NodeHandshake::answer(&key, Formats::OWN, &opening, &[1; NONCE_BYTES])
        && let Ok(node) = answered.next
        && let Some(proof) = first::<PROOF_BYTES>(&data[OPENING_BYTES..])
    {
        assert!(node.finish(&proof).is_err());
    }
    if let Some(reply) = first::<REPLY_BYTES>(data) {
        let api = ApiHandshake::new(&key, Formats::OWN, &[2; NONCE_BYTES]);
        assert!(api.finish(&reply).is_err());
    }
}

fn first<const N: usize>(data: &[u8]) -> Option<[u8; N]> {
    data.get(..N)?.try_into().ok()
}

fn key() -> ClusterKey {
    ClusterKey::new(&[7; KEY_BYTES])
}

/// Both ends of a link.
fn agreed() -> (Agreed, Agreed) {
    let api = ApiHandshake::new(&key(), Formats::OWN, &[2; NONCE_BYTES]);
    let answered = NodeHandshake::answer(&key(), Formats::OWN, api.opening(), &[1; NONCE_BYTES]);
    let answered = answered.expect("an opening");
    let (proof, api) = api.finish(&answered.reply).expect("the same key");
    (api, answered.next.expect("a common format").finish(&proof).expect("the same key"))
}
