//! Keys, values and ids of the store: what each message makes and each sync reads.

use std::hint::black_box;

use bytes::Bytes;
use chatring_benches::quick;
use chatring_core::cursor::{Cursor, Position};
use chatring_core::keys;
use chatring_core::kv::{Stamp, Version, Write};
use chatring_core::placement::DeploymentKey;
use chatring_core::values::{InboxRow, MessageRow, RowStamp, StoreIncarnation};
use chatring_wire::frame::{ChannelKind, MessageKind, Row};
use chatring_wire::{Cid, Cmid, DeviceId, HistoryId, MemberNumber, Ordinal, Seq, Uid};
use criterion::{Criterion, criterion_group, criterion_main};

const STORE: StoreIncarnation = StoreIncarnation(1);
const UID: Uid = Uid(0x1234_5678_9abc_def0);
const CID: Cid = Cid(0xfedc_ba98_7654_3210);

fn values(c: &mut Criterion) {
    let row = Row {
        seq: Seq(12_345),
        ordinal: Ordinal(12_300),
        kind: MessageKind::TEXT,
        sender: MemberNumber(1),
        device: DeviceId(3),
        cmid: Cmid([7; 16]),
        time_ms: 1_800_000_000_000,
        body: Bytes::from_static(b"twenty bytes of text"),
    };
    let write_message = |row: &Row| MessageRow::write(keys::message(CID, row.seq), STORE, UID, row);
    let stamp = Stamp { version: Version(1), order: 0 };
    let inbox = InboxRow {
        stamp: RowStamp { incarnation: STORE, stamp },
        kind: ChannelKind::Direct,
        peer: UID,
        me: MemberNumber(0),
        joined: Seq(1),
        joined_ordinal: Ordinal(0),
        last: Seq(12_345),
        ordinal: Ordinal(12_300),
        own_ordinal: Ordinal(12_299),
        rest: Bytes::new(),
    };
    let write_inbox = |row: &InboxRow| row.write(keys::inbox(UID, CID), STORE);
    let (message_value, inbox_value) = (value(write_message(&row)), value(write_inbox(&inbox)));

    let mut group = c.benchmark_group("rows");
    group.bench_function("message/write", |b| b.iter(|| write_message(black_box(&row))));
    group.bench_function("message/decode", |b| {
        b.iter(|| MessageRow::decode(row.seq, black_box(&message_value).clone()));
    });
    group.bench_function("inbox/write", |b| b.iter(|| write_inbox(black_box(&inbox))));
    group.bench_function("inbox/decode", |b| {
        b.iter(|| InboxRow::decode(black_box(&inbox_value).clone()));
    });
    group.finish();
}

fn ids(c: &mut Criterion) {
    let key = DeploymentKey::new(&[7; DeploymentKey::BYTES]);
    let position = Position { incarnation: STORE, version: Version(1 << 40) };
    let cursor = Cursor::at(HistoryId(7), position).encode();
    let mut group = c.benchmark_group("rows");
    group.bench_function("uid_of_a_name", |b| {
        b.iter(|| key.uid(black_box("chatring"), black_box("alice"), 0));
    });
    group.bench_function("cid_of_a_pair", |b| {
        b.iter(|| key.direct_cid(black_box(UID), black_box(Uid(1)), 0));
    });
    group.bench_function("cursor/decode", |b| {
        b.iter(|| Cursor::decode(black_box(&cursor).clone()));
    });
    group.finish();
}

fn value(write: Write) -> Bytes {
    match write {
        Write::Set { value, .. } | Write::SetStamped { value, .. } => value,
        Write::Clear { .. } | Write::ClearRange(_) => panic!("a row sets a value"),
    }
}

criterion_group! { name = benches; config = quick(); targets = values, ids }
criterion_main!(benches);
