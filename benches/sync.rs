//! A user with many channels signs in: what the shard and the reference store need for the sync.

use chatring_benches::{Absence, ManyChannels, quick};
use criterion::{Criterion, criterion_group, criterion_main};

fn sync(c: &mut Criterion) {
    let mut user = ManyChannels::new();
    let mut group = c.benchmark_group(format!("sync/{}_channels", ManyChannels::CHANNELS));
    let cases = [
        ("from_nothing", Absence::Endless),
        ("3_changed", Absence::Short),
        ("none_changed", Absence::None),
    ];
    for (name, absence) in cases {
        group.bench_function(name, |b| b.iter(|| user.sync(absence)));
    }
    group.finish();
}

criterion_group! { name = benches; config = quick(); targets = sync }
criterion_main!(benches);
