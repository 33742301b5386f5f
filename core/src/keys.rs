//! Every key of the store, with its writer. Binary, fixed width, big-endian.
//!
//! ```text
//!  10 id     kind  rest            a user's or a channel's rows; the id's top 12 bits are its
//!                                  vshard, so that one is contiguous, and in it each of both
//!  12 kind   rest                  what the node and the deployment keep about themselves
//!  14 v      kind  rest            a shard's own rows, spread by v (two bytes, a hash of the rest)
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use chatring_wire::{Cid, Cmid, DeviceId, Seq, Uid};
use ring::digest::{Context, SHA256};

use crate::kv::KeyRange;

const SPACE_ID: u8 = 0x10;
const SPACE_DEPLOYMENT: u8 = 0x12;
const SPACE_SHARD: u8 = 0x14;
/// Length of space, id and kind.
const ID_BYTES: usize = 10;
/// Length of the key of a message or an inbox row.
pub(crate) const ROW_KEY_BYTES: usize = ID_BYTES + 8;

/// `10 uid u`: the user. Written by the user's owner.
pub fn user(uid: Uid) -> Bytes {
    id_key(uid.0, b'u', &[])
}

/// `10 uid d dev`: a device. Written by the user's owner.
pub fn device(uid: Uid, device: DeviceId) -> Bytes {
    id_key(uid.0, b'd', &device.0.to_be_bytes())
}

/// Every device of a user.
pub fn devices(uid: Uid) -> KeyRange {
    id_range(uid.0, b'd')
}

/// `10 uid m cid`: a user's inbox row of a channel. Written by the channel's owner.
pub fn inbox(uid: Uid, cid: Cid) -> Bytes {
    id_key(uid.0, b'm', &cid.0.to_be_bytes())
}

/// Appends the key of a user's inbox row of a channel.
pub(crate) fn put_inbox(out: &mut BytesMut, uid: Uid, cid: Cid) {
    put_id(out, uid.0, b'm');
    out.put_u64(cid.0);
}

/// A user's inbox rows with a channel above `after` (all for `None`).
pub fn inbox_after(uid: Uid, after: Option<Cid>) -> KeyRange {
    range_after(uid, b'm', after)
}

/// `10 uid r cid`: a user's markers of a channel. Written by the user's owner.
pub fn marker(uid: Uid, cid: Cid) -> Bytes {
    id_key(uid.0, b'r', &cid.0.to_be_bytes())
}

/// A user's marker rows with a channel above `after` (all for `None`).
pub fn markers_after(uid: Uid, after: Option<Cid>) -> KeyRange {
    range_after(uid, b'r', after)
}

/// `10 uid f peer`: how a user stands to another one. Written by the user's owner.
pub fn relation(uid: Uid, peer: Uid) -> Bytes {
    id_key(uid.0, b'f', &peer.0.to_be_bytes())
}

/// `10 cid C`: the channel. Written by the channel's owner.
pub fn channel(cid: Cid) -> Bytes {
    id_key(cid.0, b'C', &[])
}

/// `10 cid H`: the floor, and the head of a channel without rows. Written by trim and import.
pub fn trim(cid: Cid) -> Bytes {
    id_key(cid.0, b'H', &[])
}

/// `10 cid x seq`: a message. Written by the channel's owner.
pub fn message(cid: Cid, seq: Seq) -> Bytes {
    id_key(cid.0, b'x', &seq.0.to_be_bytes())
}

/// Appends the key of a message.
pub(crate) fn put_message(out: &mut BytesMut, cid: Cid, seq: Seq) {
    put_id(out, cid.0, b'x');
    out.put_u64(seq.0);
}

/// The messages from `from` to `to`, both included.
pub fn messages(cid: Cid, from: Seq, to: Seq) -> KeyRange {
    KeyRange { start: message(cid, from), end: message(cid, Seq(to.0.saturating_add(1))) }
}

/// `10 cid k hash`: that a client message id of a device was used, for senders that give no base.
/// The hash is the first 16 bytes of SHA-256(uid, device, cmid). Written by the channel's owner.
pub fn sent(cid: Cid, uid: Uid, device: DeviceId, cmid: Cmid) -> Bytes {
    let mut context = Context::new(&SHA256);
    context.update(&uid.0.to_be_bytes());
    context.update(&device.0.to_be_bytes());
    context.update(&cmid.0);
    id_key(cid.0, b'k', &context.finish().as_ref()[..16])
}

/// `12 I`: what all nodes of the deployment share. Written once, by the first shard that starts.
pub fn deployment() -> Bytes {
    Bytes::from_static(&[SPACE_DEPLOYMENT, b'I'])
}

/// `12 F node core`: the fence of a core. Written by that core, at its start and to settle a commit
/// of unknown outcome, and by whoever takes its vshards.
pub fn fence(node: u16, core: u16) -> Bytes {
    let mut key = BytesMut::with_capacity(6);
    key.put_slice(&[SPACE_DEPLOYMENT, b'F']);
    key.put_u16(node);
    key.put_u16(core);
    key.freeze()
}

/// The fences of a node's cores from `core` up: of cores that it had at an earlier start.
pub fn fences_from(node: u16, core: u16) -> KeyRange {
    let mut end = BytesMut::from(&fence(node, u16::MAX)[..]);
    end.put_u8(0);
    KeyRange { start: fence(node, core), end: end.freeze() }
}

/// `14 v J node core lane`: the journal of a lane. Written with each of its groups.
pub fn journal(node: u16, core: u16, lane: u16) -> Bytes {
    let spread = (node.wrapping_mul(0x9e37) ^ core.wrapping_mul(0x79b9)).wrapping_add(lane) << 4;
    let mut key = BytesMut::with_capacity(10);
    key.put_u8(SPACE_SHARD);
    key.put_u16(spread);
    key.put_u8(b'J');
    key.put_u16(node);
    key.put_u16(core);
    key.put_u16(lane);
    key.freeze()
}

/// The channel of an inbox or marker row's key; `None` if it is none.
pub fn channel_of_row(key: &[u8]) -> Option<Cid> {
    match key {
        [SPACE_ID, _, _, _, _, _, _, _, _, b'm' | b'r', cid @ ..] => {
            Some(Cid(u64::from_be_bytes(cid.try_into().ok()?)))
        }
        _ => None,
    }
}

/// The number in a device row's key; `None` if it is none.
pub fn device_of_row(key: &[u8]) -> Option<DeviceId> {
    match key {
        [SPACE_ID, _, _, _, _, _, _, _, _, b'd', device @ ..] => {
            Some(DeviceId(u32::from_be_bytes(device.try_into().ok()?)))
        }
        _ => None,
    }
}

/// The position of a message row's key; `None` if it is none.
pub fn seq_of_message(key: &[u8]) -> Option<Seq> {
    match key {
        [SPACE_ID, _, _, _, _, _, _, _, _, b'x', seq @ ..] => {
            Some(Seq(u64::from_be_bytes(seq.try_into().ok()?)))
        }
        _ => None,
    }
}

fn id_key(id: u64, kind: u8, rest: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(ID_BYTES + rest.len());
    put_id(&mut key, id, kind);
    key.put_slice(rest);
    key.freeze()
}

fn put_id(out: &mut BytesMut, id: u64, kind: u8) {
    let mut bytes = [0; ID_BYTES];
    bytes[0] = SPACE_ID;
    bytes[1..9].copy_from_slice(&id.to_be_bytes());
    bytes[9] = kind;
    out.put_slice(&bytes);
}

fn id_range(id: u64, kind: u8) -> KeyRange {
    KeyRange { start: id_key(id, kind, &[]), end: id_key(id, kind + 1, &[]) }
}

fn range_after(uid: Uid, kind: u8, after: Option<Cid>) -> KeyRange {
    let mut range = id_range(uid.0, kind);
    if let Some(cid) = after {
        range.start = KeyRange::key(&id_key(uid.0, kind, &cid.0.to_be_bytes())).end;
    }
    range
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_user_and_kind_lie_together_and_nothing_else_does() {
        let (uid, other) = (Uid(7), Uid(8));
        let devices = devices(uid);
        assert!(devices.contains(&device(uid, DeviceId(0))));
        assert!(devices.contains(&device(uid, DeviceId(u32::MAX))));
        assert!(!devices.contains(&user(uid)));
        assert!(!devices.contains(&device(other, DeviceId(1))));

        let all = inbox_after(uid, None);
        let some = inbox_after(uid, Some(Cid(5)));
        for (cid, in_some) in [(0, false), (5, false), (6, true), (u64::MAX, true)] {
            let key = inbox(uid, Cid(cid));
            assert!(all.contains(&key));
            assert_eq!(some.contains(&key), in_some, "{cid}");
            assert_eq!(channel_of_row(&key), Some(Cid(cid)));
        }
        assert!(!all.contains(&marker(uid, Cid(6))));
        assert!(inbox_after(uid, Some(Cid(u64::MAX))).start < all.end);
    }

    #[test]
    fn message_ranges_include_both_ends() {
        let range = messages(Cid(1), Seq(2), Seq(4));
        let inside: Vec<_> =
            (1..=5).filter(|seq| range.contains(&message(Cid(1), Seq(*seq)))).collect();
        assert_eq!(inside, [2, 3, 4]);
        assert_eq!(seq_of_message(&message(Cid(1), Seq(9))), Some(Seq(9)));
        assert_eq!(seq_of_message(&channel(Cid(1))), None);
        assert!(messages(Cid(1), Seq(1), Seq(u64::MAX)).contains(&message(Cid(1), Seq(3))));
    }

    #[test]
    fn fences_of_later_cores_are_one_range() {
        let range = fences_from(3, 2);
        assert!(!range.contains(&fence(3, 1)));
        assert!(range.contains(&fence(3, 2)) && range.contains(&fence(3, u16::MAX)));
        assert!(!range.contains(&fence(4, 0)));
    }
}
