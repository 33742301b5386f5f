//! The cases whose instructions are counted, and which `hot` measures as times. Each prepares
//! itself for a fixed number of items and then works through them in order, always the same way.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use chatring_core::effect::Now;
use chatring_core::keys;
use chatring_core::kv::{KeyRange, LaneId, Limits, Outcome, Stamp, Version, Write};
use chatring_core::lane::{Append, Lane, LaneConfig, LaneOp, LaneOutput};
use chatring_core::sabotage::Breaks;
use chatring_core::values::{InboxRow, MessageRow, RowStamp, StoreIncarnation};
use chatring_node::store::embedded::bench_support::{KeyHash, Resolver, ResolverBounds, Verdict};
use chatring_node::store::embedded::{EmbeddedConfig, EmbeddedStore};
use chatring_wire::frame::{ChannelKind, Durability, MessageKind, RequestId, Row, Send};
use chatring_wire::limits::FRAME_BYTES_MAX;
use chatring_wire::ws::encode_message;
use chatring_wire::ws::{Decoder, Limits as WsLimits, MaskKey, MessageKind as WsKind, Role};
use chatring_wire::{
    Cid, ClientCodec, ClientFrame, Cmid, DeviceId, MemberNumber, Ordinal, Outgoing, Seq,
    ServerCodec, ServerFrame, Subprotocol, Uid,
};

use crate::many_channels::{Absence, ManyChannels};
use crate::path::Path;
use crate::writer::Writer;

/// Works through so many further items.
pub type Work = Box<dyn FnMut(u64)>;

/// Something that is done many times.
pub struct Case {
    /// Its name, by layer.
    pub name: &'static str,
    /// For how many items it prepares itself.
    pub items: u64,
    /// Prepares it.
    pub prepare: fn() -> Work,
}

/// Texts of one connection.
const TEXTS: u64 = 4_096;
/// Messages that are stored: a multiple of four times each number in a commit.
const STORED: u64 = 4_800;
/// Memory that is a file system, where there is one: a sync costs no time there.
const SHARED_MEMORY: &str = "/dev/shm";
/// Texts of the whole path, by pairs in a turn.
const PATH_TEXTS: u64 = 4_096;
/// Texts in a turn of the crowded path.
const PAIRS: u64 = 64;
/// Texts that are given to many sessions.
const FAN_OUT_TEXTS: u64 = 64;
const FAN_OUT_SESSIONS: u32 = 1_000;
const SYNCS: u64 = 16;
const UNMASKED_BYTES: usize = 1_024;

const STORE: StoreIncarnation = StoreIncarnation(1);
const UID: Uid = Uid(0x1234_5678_9abc_def0);
const CID: Cid = Cid(0xfedc_ba98_7654_3210);
const KEY: MaskKey = MaskKey([0x37, 0xfa, 0x21, 0x3d]);

/// All cases, from the lowest layer to the whole path.
pub const CASES: &[Case] = &[
    Case { name: "websocket/unmask_1_kib", items: TEXTS, prepare: unmask },
    Case { name: "websocket/decode_48_bytes", items: TEXTS, prepare: websocket_decode },
    Case {
        name: "codec/binary/send/decode",
        items: TEXTS,
        prepare: || send_decode(Subprotocol::Binary),
    },
    Case {
        name: "codec/binary/text/encode",
        items: TEXTS,
        prepare: || text_encode(Subprotocol::Binary),
    },
    Case {
        name: "codec/json/send/decode",
        items: TEXTS,
        prepare: || send_decode(Subprotocol::Json),
    },
    Case {
        name: "codec/json/text/encode",
        items: TEXTS,
        prepare: || text_encode(Subprotocol::Json),
    },
    Case { name: "rows/message/write", items: TEXTS, prepare: message_write },
    Case { name: "rows/message/decode", items: TEXTS, prepare: message_decode },
    Case { name: "rows/inbox/write", items: TEXTS, prepare: inbox_write },
    Case { name: "lane/append_of_64", items: TEXTS, prepare: lane },
    Case { name: "resolver/key", items: TEXTS, prepare: resolver },
    Case { name: "store/message/1_a_commit", items: STORED, prepare: || stored(1) },
    Case { name: "store/message/3_a_commit", items: STORED, prepare: || stored(3) },
    Case { name: "store/message/25_a_commit", items: STORED, prepare: || stored(25) },
    Case { name: "store/message/200_a_commit", items: STORED, prepare: || stored(200) },
    Case {
        name: "path/direct_message/1_a_turn",
        items: PATH_TEXTS,
        prepare: || path(1, Subprotocol::Binary),
    },
    Case {
        name: "path/direct_message/64_a_turn",
        items: PATH_TEXTS,
        prepare: || path(PAIRS, Subprotocol::Binary),
    },
    Case {
        name: "path/direct_message/64_a_turn_json",
        items: PATH_TEXTS,
        prepare: || path(PAIRS, Subprotocol::Json),
    },
    Case { name: "path/fan_out/1000_sessions", items: FAN_OUT_TEXTS, prepare: fan_out },
    Case { name: "sync/300_channels/3_changed", items: SYNCS, prepare: || sync(Absence::Short) },
    Case {
        name: "sync/300_channels/from_nothing",
        items: SYNCS,
        prepare: || sync(Absence::Endless),
    },
];

fn unmask() -> Work {
    let mut data = vec![0x5a; UNMASKED_BYTES];
    Box::new(move |items| {
        for _ in 0..items {
            black_box(KEY).apply(0, black_box(&mut data));
        }
    })
}

fn websocket_decode() -> Work {
    let mut stream = BytesMut::new();
    for _ in 0..TEXTS {
        encode_message(&mut stream, WsKind::Binary, &[0x5a; 48], Some(KEY));
    }
    let mut decoder = Decoder::new(Role::Server, WsLimits::default());
    let (stream, mut at) = (stream.freeze(), 0);
    Box::new(move |items| {
        for _ in 0..items {
            let mut input = &stream[at..];
            let event = decoder.next(&mut input).expect("it can be decoded");
            assert!(event.is_some());
            at = stream.len() - input.len();
            black_box(event);
        }
    })
}

fn send_decode(subprotocol: Subprotocol) -> Work {
    let mut client = ClientCodec::new(subprotocol, FRAME_BYTES_MAX);
    let messages: Vec<Bytes> = (1..=TEXTS)
        .map(|n| {
            let mut out = Outgoing::new();
            let send = Send {
                request: RequestId(n as u32),
                cid: CID,
                cmid: Cmid(u128::from(n).to_be_bytes()),
                base: Seq(n - 1),
                previous: None,
                kind: MessageKind::TEXT,
                body: body(),
            };
            client.encode(&ClientFrame::Send(send), &mut out).expect("it can be encoded");
            Bytes::copy_from_slice(out.messages().next().expect("one message"))
        })
        .collect();
    let mut codec = ServerCodec::new(subprotocol, FRAME_BYTES_MAX);
    let mut messages = messages.into_iter();
    Box::new(move |items| {
        for message in messages.by_ref().take(items as usize) {
            let frame = |frame| drop(black_box::<ClientFrame>(frame));
            codec.decode(&message, frame).expect("it can be decoded");
        }
    })
}

fn text_encode(subprotocol: Subprotocol) -> Work {
    let mut frame = ServerFrame::Text {
        cid: CID,
        seq: Seq(0),
        sender: MemberNumber(1),
        time_ms: 1_800_000_000_000,
        body: body(),
    };
    let mut codec = ServerCodec::new(subprotocol, FRAME_BYTES_MAX);
    let mut out = Outgoing::new();
    Box::new(move |items| {
        for _ in 0..items {
            if let ServerFrame::Text { seq, time_ms, .. } = &mut frame {
                (*seq, *time_ms) = (seq.next(), *time_ms + 40);
            }
            out.clear();
            codec.encode(&frame, &mut out).expect("it can be encoded");
        }
    })
}

fn message_write() -> Work {
    let mut row = message_row();
    Box::new(move |items| {
        for _ in 0..items {
            row.seq = row.seq.next();
            black_box(MessageRow::write(keys::message(CID, row.seq), STORE, UID, &row));
        }
    })
}

fn message_decode() -> Work {
    let row = message_row();
    let value = match MessageRow::write(keys::message(CID, row.seq), STORE, UID, &row) {
        Write::SetStamped { value, .. } => value,
        other => panic!("a row sets a value: {other:?}"),
    };
    Box::new(move |items| {
        for _ in 0..items {
            black_box(MessageRow::decode(row.seq, black_box(&value).clone())).expect("it parses");
        }
    })
}

fn inbox_write() -> Work {
    let stamp = Stamp { version: Version(1), order: 0 };
    let mut row = InboxRow {
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
    Box::new(move |items| {
        for _ in 0..items {
            row.last = row.last.next();
            black_box(row.write(keys::inbox(UID, CID), STORE));
        }
    })
}

/// Appends of three rows, 64 of which make a group that is committed.
fn lane() -> Work {
    let config = LaneConfig {
        id: LaneId(0),
        fence: keys::fence(0, 0),
        journal: keys::journal(0, 0, 0),
        store: STORE,
        incarnation: 7,
        kv: Limits {
            lane_commits_max: 4,
            commit_bytes_target: 64 << 10,
            durability: Durability::Fsync,
        },
        appends_max: 16_384,
        bytes_max: 16 << 20,
        breaks: Breaks::NONE,
    };
    let now = Now { mono_ms: 1, unix_ms: 1 };
    let mut lane: Lane<u64> = Lane::new(config, Version(1), now.mono_ms);
    let write = Write::SetStamped {
        key: keys::message(CID, Seq(1)),
        value: Bytes::from_static(&[1; 64]),
        offset: 3,
    };
    let (mut out, mut version) = (Vec::new(), 1);
    Box::new(move |items| {
        for n in 1..=items {
            let writes = vec![write.clone(), write.clone(), write.clone()];
            lane.push(Append { writes, tag: n }).expect("there is room");
            if n % PAIRS != 0 && n != items {
                continue;
            }
            lane.flush(now, &mut out);
            for output in std::mem::take(&mut out) {
                let LaneOutput::Submit(LaneOp::Group(number), request) = output else { continue };
                drop(black_box(request));
                version += 1;
                let stamp = Stamp { version: Version(version), order: 0 };
                lane.completed(now, LaneOp::Group(number), Outcome::Committed(stamp), &mut out);
            }
            black_box(std::mem::take(&mut out));
        }
    })
}

/// A write to a key, and the check of one other.
fn resolver() -> Work {
    let mut resolver = Resolver::new(Version(0), ResolverBounds::default());
    let fence = KeyRange::key(&keys::fence(0, 0));
    let mut version = 1;
    Box::new(move |items| {
        for _ in 0..items {
            version += 1;
            let verdict = resolver.check(Version(version - 1), std::slice::from_ref(&fence));
            assert_eq!(verdict, Verdict::Clear);
            let key = keys::message(CID, Seq(version));
            resolver.wrote_key(Version(version), &key, KeyHash::of(&key));
        }
    })
}

/// Messages through the embedded store to its disk and back, so many in each commit.
fn stored(messages: u64) -> Work {
    let in_memory = std::path::Path::new(SHARED_MEMORY).is_dir();
    let folder = match in_memory {
        true => tempfile::tempdir_in(SHARED_MEMORY),
        false => tempfile::tempdir(),
    };
    let folder = folder.expect("a folder");
    // Sleeping between two commits would be counted as well.
    let config = EmbeddedConfig { commit_gap_us: 0, ..EmbeddedConfig::default() };
    let store = EmbeddedStore::open(folder.path(), config).expect("a store");
    let mut writer = Writer::new(&store);
    Box::new(move |items| {
        let _open = (&store, &folder);
        for _ in 0..items / messages {
            writer.write(messages, 1);
        }
    })
}

fn path(pairs: u64, subprotocol: Subprotocol) -> Work {
    let mut path = Path::of_pairs(pairs as usize, PATH_TEXTS / pairs, subprotocol);
    Box::new(move |items| {
        for _ in 0..items.div_ceil(pairs) {
            path.turn();
        }
        path.assert_all_came();
    })
}

fn fan_out() -> Work {
    let mut path = Path::to_sessions(FAN_OUT_SESSIONS, FAN_OUT_TEXTS);
    Box::new(move |items| {
        for _ in 0..items {
            path.turn();
        }
        path.assert_all_came();
    })
}

fn sync(absence: Absence) -> Work {
    let mut user = ManyChannels::new();
    Box::new(move |items| {
        for _ in 0..items {
            user.sync(absence);
        }
    })
}

fn message_row() -> Row {
    Row {
        seq: Seq(12_345),
        ordinal: Ordinal(12_300),
        kind: MessageKind::TEXT,
        sender: MemberNumber(1),
        device: DeviceId(3),
        cmid: Cmid([7; 16]),
        time_ms: 1_800_000_000_000,
        body: body(),
    }
}

fn body() -> Bytes {
    Bytes::from_static(b"twenty bytes of text")
}
