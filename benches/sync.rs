//! A user with many channels signs in: what the shard and the reference store need for the sync.

use bytes::Bytes;
use chatring_benches::{OneShard, quick};
use criterion::{Criterion, criterion_group, criterion_main};

const CHANNELS: usize = 300;
const MESSAGES_PER_CHANNEL: usize = 5;
/// A session has at most 256 sends open.
const SENDS_PER_TURN: usize = 100;
/// Channels of which a sync gives the newest messages; of the others it gives heads.
const CHANNELS_WITH_PAGES: usize = 64;
/// Channels with a new message since the short absence.
const CHANNELS_CHANGED: usize = 3;

fn sync(c: &mut Criterion) {
    let body = Bytes::from_static(b"twenty bytes of text");
    let mut node = OneShard::new();
    let (me, _) = node.sign_in("me", 1, Bytes::new());
    let mut pairs = Vec::with_capacity(CHANNELS);
    for n in 0..CHANNELS {
        let name = format!("peer-{n}");
        let (peer, _) = node.sign_in(&name, 1, Bytes::new());
        pairs.push(node.open(me, peer, &name));
    }
    for _ in 0..MESSAGES_PER_CHANNEL {
        pairs.chunks_mut(SENDS_PER_TURN).for_each(|pairs| node.talk(pairs, &body));
    }
    let (other, before) = node.sign_in("me", 2, Bytes::new());
    node.sign_out(other);
    node.talk(&mut pairs[..CHANNELS_CHANGED], &body);
    let (other, now) = node.sign_in("me", 2, before.cursor.clone());
    node.sign_out(other);

    let mut group = c.benchmark_group(format!("sync/{CHANNELS}_channels"));
    let whole = CHANNELS_WITH_PAGES * MESSAGES_PER_CHANNEL;
    let cases = [
        ("from_nothing", Bytes::new(), CHANNELS, whole + CHANNELS_CHANGED),
        ("3_changed", before.cursor, CHANNELS_CHANGED, CHANNELS_CHANGED),
        ("none_changed", now.cursor, 0, 0),
    ];
    for (name, cursor, heads, messages) in cases {
        group.bench_function(name, |b| {
            b.iter(|| {
                let (session, synced) = node.sign_in("me", 2, cursor.clone());
                assert_eq!((synced.heads, synced.messages), (heads, messages));
                node.sign_out(session);
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = quick(); targets = sync }
criterion_main!(benches);
