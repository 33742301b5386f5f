//! A direct message through a shard: the send in, the commit's answer, the ack and the push out.
//! Both users' sessions are on that shard; frames are not encoded, nothing goes over a socket.

use std::hint::black_box;

use bytes::Bytes;
use chatring_benches::{Answers, OneShard, Pair, quick, time_in_streams};
use criterion::{Criterion, criterion_group, criterion_main};

/// Messages after which a new node is made, so that the rows of the reference store, which keeps
/// all that was ever written, stay few.
const MESSAGES_PER_NODE: u64 = 20_000;
/// Length of a body.
const BODY_BYTES: usize = 20;

fn direct_message(c: &mut Criterion) {
    let body = Bytes::from(vec![b'x'; BODY_BYTES]);
    let mut group = c.benchmark_group("shard/direct_message");
    for (name, answers) in [("mem", Answers::Store), ("no_store", Answers::AtOnce)] {
        for in_group in [1, 64] {
            group.bench_function(format!("{name}/{in_group}_per_commit"), |b| {
                b.iter_custom(|messages| {
                    let turns = messages.div_ceil(in_group);
                    let prepare = || node(in_group, answers);
                    let talk = |(node, pairs): &mut (OneShard, Vec<Pair>), turns| {
                        for _ in 0..turns {
                            node.talk(black_box(pairs), &body);
                        }
                    };
                    let took = time_in_streams(turns, MESSAGES_PER_NODE / in_group, prepare, talk);
                    took.mul_f64(messages as f64 / (turns * in_group) as f64)
                });
            });
        }
    }
    group.finish();
}

fn node(pairs: u64, answers: Answers) -> (OneShard, Vec<Pair>) {
    let mut node = OneShard::new();
    let mut pairs: Vec<Pair> =
        (0..pairs).map(|n| node.pair(&format!("from-{n}"), &format!("to-{n}"))).collect();
    // The first message of a channel looks for earlier ones.
    node.talk(&mut pairs, &Bytes::from_static(b"first"));
    node.set_answers(answers);
    (node, pairs)
}

criterion_group! { name = benches; config = quick(); targets = direct_message }
criterion_main!(benches);
