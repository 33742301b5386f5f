//! Encoding and decoding of the two frames that matter most: a pushed text and a send. Times are
//! those of one frame in a message of its own, in a connection that has seen the channel before.

use std::hint::black_box;

use bytes::Bytes;
use chatring_benches::{quick, time_in_streams};
use chatring_wire::frame::{MessageKind, RequestId, Send};
use chatring_wire::limits::FRAME_BYTES_MAX;
use chatring_wire::{
    Cid, ClientCodec, ClientFrame, Cmid, MemberNumber, Outgoing, Seq, ServerCodec, ServerFrame,
    Subprotocol,
};
use criterion::{Criterion, criterion_group, criterion_main};

/// Frames that go through one connection.
const FRAMES: u64 = 4_096;
const CID: Cid = Cid(0xfedc_ba98_7654_3210);
const BOTH: [Subprotocol; 2] = [Subprotocol::Binary, Subprotocol::Json];

fn text_push(c: &mut Criterion) {
    let body = Bytes::from_static(b"twenty bytes of text");
    let frames: Vec<ServerFrame> = (1..=FRAMES)
        .map(|n| ServerFrame::Text {
            cid: CID,
            seq: Seq(n),
            sender: MemberNumber((n % 2) as u32),
            time_ms: 1_800_000_000_000 + n * 40,
            body: body.clone(),
        })
        .collect();
    for subprotocol in BOTH {
        let mut group = c.benchmark_group(format!("codec/{}", subprotocol.name()));
        let server = || (ServerCodec::new(subprotocol, FRAME_BYTES_MAX), Outgoing::new());
        let encode = |(codec, out): &mut (ServerCodec, Outgoing), frame: &ServerFrame| {
            out.clear();
            codec.encode(frame, out).expect("it can be encoded");
        };
        group.bench_function("text_push/encode", |b| {
            b.iter_custom(|count| {
                time_in_streams(count, FRAMES, server, |end, items| {
                    frames[..items as usize].iter().for_each(|frame| encode(end, frame));
                })
            });
        });
        let mut end = server();
        let messages: Vec<Bytes> = frames
            .iter()
            .map(|frame| {
                encode(&mut end, frame);
                only_message(&end.1)
            })
            .collect();
        let client = || ClientCodec::new(subprotocol, FRAME_BYTES_MAX);
        group.bench_function("text_push/decode", |b| {
            b.iter_custom(|count| {
                time_in_streams(count, FRAMES, client, |codec, items| {
                    for message in &messages[..items as usize] {
                        let frame = |frame| drop(black_box::<ServerFrame>(frame));
                        codec.decode(message, frame).expect("it can be decoded");
                    }
                })
            });
        });
        group.finish();
    }
}

fn send(c: &mut Criterion) {
    let body = Bytes::from_static(b"twenty bytes of text");
    let frames: Vec<ClientFrame> = (1..=FRAMES)
        .map(|n| {
            ClientFrame::Send(Send {
                request: RequestId(n as u32),
                cid: CID,
                cmid: Cmid(u128::from(n).to_be_bytes()),
                base: Seq(n - 1),
                previous: None,
                kind: MessageKind::TEXT,
                body: body.clone(),
            })
        })
        .collect();
    for subprotocol in BOTH {
        let mut group = c.benchmark_group(format!("codec/{}", subprotocol.name()));
        let client = || (ClientCodec::new(subprotocol, FRAME_BYTES_MAX), Outgoing::new());
        let encode = |(codec, out): &mut (ClientCodec, Outgoing), frame: &ClientFrame| {
            out.clear();
            codec.encode(frame, out).expect("it can be encoded");
        };
        group.bench_function("send/encode", |b| {
            b.iter_custom(|count| {
                time_in_streams(count, FRAMES, client, |end, items| {
                    frames[..items as usize].iter().for_each(|frame| encode(end, frame));
                })
            });
        });
        let mut end = client();
        let messages: Vec<Bytes> = frames
            .iter()
            .map(|frame| {
                encode(&mut end, frame);
                only_message(&end.1)
            })
            .collect();
        let server = || ServerCodec::new(subprotocol, FRAME_BYTES_MAX);
        group.bench_function("send/decode", |b| {
            b.iter_custom(|count| {
                time_in_streams(count, FRAMES, server, |codec, items| {
                    for message in &messages[..items as usize] {
                        let frame = |frame| drop(black_box::<ClientFrame>(frame));
                        codec.decode(message, frame).expect("it can be decoded");
                    }
                })
            });
        });
        group.finish();
    }
}

fn only_message(out: &Outgoing) -> Bytes {
    let mut messages = out.messages();
    let message = Bytes::copy_from_slice(messages.next().expect("one message"));
    assert_eq!(messages.next(), None);
    message
}

criterion_group! { name = benches; config = quick(); targets = text_push, send }
criterion_main!(benches);
