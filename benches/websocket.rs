//! The WebSocket codec: unmasking, and what a small message costs at either end.

use std::hint::black_box;

use bytes::BytesMut;
use chatring_benches::{quick, time_in_streams};
use chatring_wire::ws::{
    Decoder, Limits, MaskKey, MessageKind, Opcode, Role, encode_header, encode_message,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const KEY: MaskKey = MaskKey([0x37, 0xfa, 0x21, 0x3d]);
/// A send of a short text.
const SMALL_BYTES: usize = 48;
/// Messages of one stream.
const MESSAGES: u64 = 1_024;

fn unmask(c: &mut Criterion) {
    let mut group = c.benchmark_group("websocket/unmask");
    for bytes in [16, SMALL_BYTES, 256, 1_024, 4 * 1_024, 64 * 1_024] {
        let mut data = vec![0x5a; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("{bytes}_bytes"), |b| {
            b.iter(|| black_box(KEY).apply(0, black_box(&mut data)));
        });
    }
    group.finish();
}

fn small_message(c: &mut Criterion) {
    let payload = [0x5a; SMALL_BYTES];
    let mut stream = BytesMut::new();
    for _ in 0..MESSAGES {
        encode_message(&mut stream, MessageKind::Binary, &payload, Some(KEY));
    }
    let message_bytes = stream.len() / MESSAGES as usize;
    let decoder = || Decoder::new(Role::Server, Limits::default());
    let mut group = c.benchmark_group("websocket");
    group.bench_function("small_message/decode", |b| {
        b.iter_custom(|count| {
            time_in_streams(count, MESSAGES, decoder, |decoder, items| {
                let mut input = &stream[..items as usize * message_bytes];
                for _ in 0..items {
                    let event = decoder.next(&mut input).expect("it can be decoded");
                    assert!(event.is_some());
                    black_box(event);
                }
            })
        });
    });
    let mut out = BytesMut::with_capacity(1 << 16);
    group.bench_function("header/encode", |b| {
        b.iter(|| {
            out.clear();
            encode_header(&mut out, true, Opcode::Binary, black_box(SMALL_BYTES), None);
        });
    });
    group.finish();
}

criterion_group! { name = benches; config = quick(); targets = unmask, small_message }
criterion_main!(benches);
