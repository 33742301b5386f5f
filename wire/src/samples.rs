//! Arbitrary frames for tests.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::error::ErrorCode;
use crate::frame::{
    CacheAction, ChannelKind, ClientFrame, Direction, Durability, Failure, Head, HeadRows, Hello,
    Member, MessageKind, Page, RangeRequest, RequestId, Row, Send, ServerFrame, SignOutScope,
    UserRef, Welcome,
};
use crate::id::{Cid, Cmid, DeviceId, HistoryId, InstallationId, MemberNumber, Ordinal, Seq, Uid};

/// Any frame of a client, with numbers up to `max`.
pub(crate) fn client_frame(max: u64) -> BoxedStrategy<ClientFrame> {
    let hello = (text(200), any::<[u8; 16]>(), bytes(100), number(max), any::<u32>()).prop_map(
        |(token, installation, cursor, capabilities, frame_bytes_max)| {
            let installation = InstallationId(installation);
            ClientFrame::Hello(Hello { token, installation, cursor, capabilities, frame_bytes_max })
        },
    );
    let with = prop_oneof![
        (text(40), text(40)).prop_map(|(issuer, subject)| UserRef::Subject { issuer, subject }),
        any::<u64>().prop_map(|uid| UserRef::Uid(Uid(uid))),
    ];
    let scope = prop_oneof![
        Just(SignOutScope::Everywhere),
        any::<u32>().prop_map(|device| SignOutScope::Device(DeviceId(device))),
    ];
    prop_oneof![
        hello,
        (request(), text(200)).prop_map(|(request, token)| ClientFrame::Refresh { request, token }),
        (request(), with).prop_map(|(request, with)| ClientFrame::Open { request, with }),
        send(max),
        (cid(), number(max), number(max)).prop_map(|(cid, read, received)| ClientFrame::Mark {
            cid,
            read: Seq(read),
            received: Seq(received),
        }),
        number(max).prop_map(|pushes| ClientFrame::Ack { pushes }),
        (request(), bytes(100)).prop_map(|(request, cursor)| ClientFrame::Sync { request, cursor }),
        request().prop_map(|request| ClientFrame::More { request }),
        range(max),
        (request(), cid(), vec(any::<u32>().prop_map(MemberNumber), 0..5))
            .prop_map(|(request, cid, members)| ClientFrame::Who { request, cid, members }),
        (request(), scope).prop_map(|(request, scope)| ClientFrame::SignOut { request, scope }),
        number(max).prop_map(|pushes| ClientFrame::Ping { pushes }),
    ]
    .boxed()
}

/// Any frame of a server, with numbers up to `max`.
pub(crate) fn server_frame(max: u64) -> BoxedStrategy<ServerFrame> {
    let quick = prop_oneof![
        (cid(), number(max), any::<u32>(), number(max), body(MessageKind::TEXT)).prop_map(
            |(cid, seq, sender, time_ms, body)| ServerFrame::Text {
                cid,
                seq: Seq(seq),
                sender: MemberNumber(sender),
                time_ms,
                body,
            }
        ),
        (cid(), row(max)).prop_map(|(cid, row)| ServerFrame::Entry { cid, row }),
        (request(), cid(), number(max), number(max)).prop_map(|(request, cid, seq, time_ms)| {
            ServerFrame::Sent { request, cid, seq: Seq(seq), time_ms }
        }),
        (cid(), number(max), number(max), number(max)).prop_map(
            |(cid, read, read_ordinal, received)| ServerFrame::Marker {
                cid,
                read: Seq(read),
                read_ordinal: Ordinal(read_ordinal),
                received: Seq(received),
            }
        ),
    ];
    let plain = prop_oneof![
        request().prop_map(|request| ServerFrame::Done { request }),
        request().prop_map(|request| ServerFrame::Unknown { request }),
        (request(), number(max)).prop_map(|(request, checked_to)| ServerFrame::Continue {
            request,
            checked_to: Seq(checked_to),
        }),
        (request(), prop_oneof![Just(CacheAction::Keep), Just(CacheAction::Replace)])
            .prop_map(|(request, cache)| ServerFrame::Syncing { request, cache }),
        request().prop_map(|request| ServerFrame::PageEnd { request }),
        (request(), bytes(100))
            .prop_map(|(request, cursor)| ServerFrame::Synced { request, cursor }),
        Just(ServerFrame::Behind),
        any::<(u32, u32)>()
            .prop_map(|(after_ms, spread_ms)| ServerFrame::Drain { after_ms, spread_ms }),
        (number(max), number(max))
            .prop_map(|(pushes, time_ms)| ServerFrame::Pong { pushes, time_ms }),
    ];
    prop_oneof![
        4 => quick,
        3 => plain,
        1 => welcome(max),
        1 => (request(), head(max))
            .prop_map(|(request, head)| ServerFrame::Opened { request, head }),
        1 => (request(), failure())
            .prop_map(|(request, error)| ServerFrame::Refused { request, error }),
        1 => head(max).prop_map(ServerFrame::Head),
        1 => page(max).prop_map(ServerFrame::Page),
        1 => (request(), page(max)).prop_map(|(request, page)| ServerFrame::Rows { request, page }),
        1 => (request(), cid(), vec(member(), 0..4))
            .prop_map(|(request, cid, members)| ServerFrame::Members { request, cid, members }),
        1 => failure().prop_map(ServerFrame::Error),
    ]
    .boxed()
}

/// Numbers of all magnitudes.
fn number(max: u64) -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..64).prop_map(move |(value, shift)| (value >> shift) % max)
}

/// Few enough channels that some come again.
fn cid() -> impl Strategy<Value = Cid> {
    prop_oneof![3 => (1u64..6).prop_map(|n| Cid(n << 52)), 1 => any::<u64>().prop_map(Cid)]
}

fn request() -> impl Strategy<Value = RequestId> {
    (any::<u32>(), 0u32..32).prop_map(|(value, shift)| RequestId(value >> shift))
}

fn text(max: usize) -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..max / 4).prop_map(|chars| chars.into_iter().collect())
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn kind() -> impl Strategy<Value = MessageKind> {
    prop_oneof![Just(MessageKind::TEXT), any::<u8>().prop_map(MessageKind)]
}

fn body(kind: MessageKind) -> BoxedStrategy<Bytes> {
    if kind == MessageKind::TEXT {
        return prop_oneof![
            8 => text(400).prop_map(Bytes::from),
            1 => Just(Bytes::from("\u{1}".repeat(9_000))),
        ]
        .boxed();
    }
    bytes(300).boxed()
}

fn send(max: u64) -> impl Strategy<Value = ClientFrame> {
    let body = kind().prop_flat_map(|kind| (Just(kind), body(kind)));
    (request(), cid(), any::<[u8; 16]>(), number(max), option::of(any::<u32>()), body).prop_map(
        |(request, cid, cmid, base, previous, (kind, body))| {
            let previous = previous.and_then(|n| n.checked_rem(request.0)).map(RequestId);
            let (cmid, base) = (Cmid(cmid), Seq(base));
            ClientFrame::Send(Send { request, cid, cmid, base, previous, kind, body })
        },
    )
}

fn range(max: u64) -> impl Strategy<Value = ClientFrame> {
    let direction = prop_oneof![Just(Direction::Ascending), Just(Direction::Descending)];
    (request(), cid(), number(max), number(max), any::<u32>(), direction).prop_map(
        |(request, cid, from, to, limit, direction)| {
            let (from, to) = (Seq(from), Seq(to));
            ClientFrame::Range(RangeRequest { request, cid, from, to, limit, direction })
        },
    )
}

fn row(max: u64) -> impl Strategy<Value = Row> {
    let body = kind().prop_flat_map(|kind| (Just(kind), body(kind)));
    let ids = any::<(u32, u32, [u8; 16])>();
    (number(max), number(max), number(max), ids, body).prop_map(
        |(seq, ordinal, time_ms, (sender, device, cmid), (kind, body))| Row {
            seq: Seq(seq),
            ordinal: Ordinal(ordinal),
            kind,
            sender: MemberNumber(sender),
            device: DeviceId(device),
            cmid: Cmid(cmid),
            time_ms,
            body,
        },
    )
}

fn page(max: u64) -> impl Strategy<Value = Page> {
    (cid(), number(max / 2), any::<bool>(), vec((row(max), 0u64..3), 0..6)).prop_map(
        |(cid, from, gap, rows)| {
            let mut next = from;
            let rows: Vec<Row> = rows
                .into_iter()
                .map(|(row, skip)| {
                    let seq = Seq(next + skip);
                    next = seq.0 + 1;
                    Row { seq, ..row }
                })
                .collect();
            let to = Seq(rows.last().map_or(from.saturating_sub(1), |row| row.seq.0));
            Page { cid, from: Seq(from), to, gap, rows }
        },
    )
}

fn head(max: u64) -> impl Strategy<Value = Head> {
    let kind = (0u8..3).prop_map(|n| ChannelKind::from_number(n).expect("three kinds"));
    let rows =
        prop_oneof![Just(HeadRows::Unchanged), Just(HeadRows::Follow), Just(HeadRows::Stale)];
    let numbers = [(); 6].map(|()| number(max));
    (cid(), kind, option::of(any::<u64>()), any::<u32>(), numbers, rows).prop_map(
        |(cid, kind, peer, me, [head, ordinal, floor, read, read_ordinal, received], rows)| Head {
            cid,
            kind,
            peer: peer.map(Uid),
            me: MemberNumber(me),
            head: Seq(head),
            ordinal: Ordinal(ordinal),
            floor: Seq(floor),
            read: Seq(read),
            read_ordinal: Ordinal(read_ordinal),
            received: Seq(received),
            rows,
        },
    )
}

fn welcome(max: u64) -> impl Strategy<Value = ServerFrame> {
    let durability = (0u8..3).prop_map(|n| Durability::from_number(n).expect("three of them"));
    (any::<(u64, u64, u32)>(), number(max), any::<[u32; 6]>(), durability).prop_map(
        |((uid, history, device), time_ms, numbers, durability)| {
            ServerFrame::Welcome(Welcome {
                uid: Uid(uid),
                device: DeviceId(device),
                history: HistoryId(history),
                time_ms,
                heartbeat_ms: numbers[0],
                window_pushes: numbers[1],
                window_bytes: numbers[2],
                frame_bytes_max: numbers[3],
                body_bytes_max: numbers[4],
                open_sends_max: numbers[5],
                durability,
            })
        },
    )
}

fn failure() -> impl Strategy<Value = Failure> {
    let code = any::<u16>().prop_map(|number| ErrorCode::from_number(number).ok_or(number));
    let code = prop_oneof![proptest::sample::select(ErrorCode::ALL).prop_map(Ok), code];
    (code, text(200), option::of(any::<u32>()), option::of(text(200))).prop_map(
        |(code, text, retry_after_ms, moved_to)| Failure { code, text, retry_after_ms, moved_to },
    )
}

fn member() -> impl Strategy<Value = Member> {
    (any::<(u32, u64)>(), text(60), text(60)).prop_map(|((number, uid), issuer, subject)| Member {
        number: MemberNumber(number),
        uid: Uid(uid),
        issuer,
        subject,
    })
}
