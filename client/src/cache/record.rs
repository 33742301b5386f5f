//! How the records of a cache file are laid out: fixed fields, big-endian, a body to the end.
//!
//! ```text
//! channel  kind 1, peer 1 + 8, me 4, ten numbers of 8
//! row      ordinal 8, kind 1, sender 4, device 4, cmid 16, time 8, body
//! send     cid 8, cmid 16, base 1 + 8, kind 1, body
//! ```

use bytes::{Buf, BufMut, Bytes};
use chatring_wire::frame::{ChannelKind, MessageKind, Row};
use chatring_wire::{Cid, Cmid, DeviceId, MemberNumber, Ordinal, Seq, Uid};

use super::{ChannelRecord, OutboxEntry};

const CHANNEL_BYTES: usize = 1 + 9 + 4 + 10 * 8;
const ROW_HEAD_BYTES: usize = 8 + 1 + 4 + 4 + 16 + 8;
const SEND_HEAD_BYTES: usize = 8 + 16 + 9 + 1;

pub(super) fn encode_channel(record: &ChannelRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(CHANNEL_BYTES);
    out.put_u8(record.kind as u8);
    put_option(&mut out, record.peer.map(|peer| peer.0));
    out.put_u32(record.me.0);
    let numbers = [
        record.head.0,
        record.ordinal.0,
        record.floor.0,
        record.read.0,
        record.read_ordinal.0,
        record.received.0,
        record.marks.0.0,
        record.marks.1.0,
        record.delivered.0,
        record.delivered_ordinal.0,
    ];
    numbers.into_iter().for_each(|number| out.put_u64(number));
    out
}

pub(super) fn decode_channel(cid: Cid, mut bytes: &[u8]) -> Option<ChannelRecord> {
    if bytes.len() != CHANNEL_BYTES {
        return None;
    }
    Some(ChannelRecord {
        cid,
        kind: ChannelKind::from_number(bytes.get_u8())?,
        peer: get_option(&mut bytes)?.map(Uid),
        me: MemberNumber(bytes.get_u32()),
        head: Seq(bytes.get_u64()),
        ordinal: Ordinal(bytes.get_u64()),
        floor: Seq(bytes.get_u64()),
        read: Seq(bytes.get_u64()),
        read_ordinal: Ordinal(bytes.get_u64()),
        received: Seq(bytes.get_u64()),
        marks: (Seq(bytes.get_u64()), Seq(bytes.get_u64())),
        delivered: Seq(bytes.get_u64()),
        delivered_ordinal: Ordinal(bytes.get_u64()),
    })
}

pub(super) fn encode_row(row: &Row) -> Vec<u8> {
    let mut out = Vec::with_capacity(ROW_HEAD_BYTES + row.body.len());
    out.put_u64(row.ordinal.0);
    out.put_u8(row.kind.0);
    out.put_u32(row.sender.0);
    out.put_u32(row.device.0);
    out.put_slice(&row.cmid.0);
    out.put_u64(row.time_ms);
    out.put_slice(&row.body);
    out
}

pub(super) fn decode_row(seq: Seq, mut bytes: &[u8]) -> Option<Row> {
    if bytes.len() < ROW_HEAD_BYTES {
        return None;
    }
    Some(Row {
        seq,
        ordinal: Ordinal(bytes.get_u64()),
        kind: MessageKind(bytes.get_u8()),
        sender: MemberNumber(bytes.get_u32()),
        device: DeviceId(bytes.get_u32()),
        cmid: get_cmid(&mut bytes),
        time_ms: bytes.get_u64(),
        body: Bytes::copy_from_slice(bytes),
    })
}

pub(super) fn encode_send(entry: &OutboxEntry) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEND_HEAD_BYTES + entry.body.len());
    out.put_u64(entry.cid.0);
    out.put_slice(&entry.cmid.0);
    put_option(&mut out, entry.base.map(|base| base.0));
    out.put_u8(entry.kind.0);
    out.put_slice(&entry.body);
    out
}

pub(super) fn decode_send(mut bytes: &[u8]) -> Option<OutboxEntry> {
    if bytes.len() < SEND_HEAD_BYTES {
        return None;
    }
    Some(OutboxEntry {
        cid: Cid(bytes.get_u64()),
        cmid: get_cmid(&mut bytes),
        base: get_option(&mut bytes)?.map(Seq),
        kind: MessageKind(bytes.get_u8()),
        body: Bytes::copy_from_slice(bytes),
    })
}

fn put_option(out: &mut Vec<u8>, value: Option<u64>) {
    out.put_u8(u8::from(value.is_some()));
    out.put_u64(value.unwrap_or(0));
}

fn get_option(bytes: &mut &[u8]) -> Option<Option<u64>> {
    let (flag, value) = (bytes.get_u8(), bytes.get_u64());
    match flag {
        0 => Some(None),
        1 => Some(Some(value)),
        _ => None,
    }
}

fn get_cmid(bytes: &mut &[u8]) -> Cmid {
    let mut cmid = [0; 16];
    bytes.copy_to_slice(&mut cmid);
    Cmid(cmid)
}
