//! The cases whose instructions are counted, as times. The path of a message is here alone: bytes
//! from sockets through WebSocket, codec and machine, and bytes for sockets.

use chatring_benches::{CASES, quick, time_in_streams};
use criterion::{Criterion, criterion_group, criterion_main};

fn hot(c: &mut Criterion) {
    for case in CASES {
        c.bench_function(case.name, |b| {
            b.iter_custom(|count| {
                time_in_streams(count, case.items, case.prepare, |work, items| work(items))
            });
        });
    }
}

criterion_group! { name = benches; config = quick(); targets = hot }
criterion_main!(benches);
