//! The engines: rows a second by the size of a commit. A direct message is three rows, and each
//! commit has the lane's journal row besides, as in a node. The embedded engine is measured on a
//! real disk, where rows are durable, and on `/dev/shm`, where a sync costs nothing.

use std::path::Path;

use chatring_benches::{Rows, Writer, quick, time_in_streams};
use chatring_core::kv::mem::{MemStore, SubmitterId};
use chatring_core::kv::{Outcome, Request, Ticket};
use chatring_core::sabotage::Breaks;
use chatring_node::store::embedded::{EmbeddedConfig, EmbeddedStore};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// A lane of a node has at most so many commits in flight.
const IN_FLIGHT: u64 = 4;

/// Messages of a commit, and commits in flight.
const GROUPS: [(u64, u64); 4] = [(1, 1), (16, 1), (128, 1), (128, IN_FLIGHT)];
/// Memory that is a file system, where there is one.
const SHARED_MEMORY: &str = "/dev/shm";
/// Messages after which a new reference store is made: it keeps all that was ever written.
const MEM_MESSAGES_MAX: u64 = 20_000;

fn durable_rows(c: &mut Criterion) {
    // On the disk of the build, not on /tmp, which may be memory.
    embedded(c, "store/durable_rows", Path::new(env!("CARGO_TARGET_TMPDIR")));
}

fn rows_in_memory(c: &mut Criterion) {
    if Path::new(SHARED_MEMORY).is_dir() {
        embedded(c, "store/rows_without_disk", Path::new(SHARED_MEMORY));
    }
}

fn embedded(c: &mut Criterion, name: &str, place: &Path) {
    let folder = tempfile::tempdir_in(place).expect("a folder");
    let store = EmbeddedStore::open(folder.path(), EmbeddedConfig::default()).expect("a store");
    let mut writer = Writer::new(&store);
    let mut group = c.benchmark_group(name);
    for (messages, in_flight) in GROUPS {
        let rows = messages * 3 + 1;
        group.throughput(Throughput::Elements(rows * in_flight));
        group.bench_function(format!("{in_flight}_x_{rows}"), |b| {
            b.iter(|| writer.write(messages, in_flight));
        });
    }
    group.finish();
}

fn reference(c: &mut Criterion) {
    let mut group = c.benchmark_group("store/mem_rows");
    for (messages, _) in &GROUPS[..3] {
        let rows = messages * 3 + 1;
        group.throughput(Throughput::Elements(rows));
        group.bench_function(format!("1_x_{rows}"), |b| {
            b.iter_custom(|commits| {
                let prepare = || (MemStore::new(1, Breaks::NONE), Rows::default());
                time_in_streams(commits, MEM_MESSAGES_MAX / messages, prepare, |state, commits| {
                    let (store, rows) = state;
                    for _ in 0..commits {
                        let commit = rows.commit(*messages);
                        store.submit(SubmitterId(1), Request::Commit(commit), Ticket(rows.commits));
                        store.sync_all();
                        let answer = store.poll_completion().map(|(_, answer)| answer.outcome);
                        assert!(matches!(answer, Some(Outcome::Committed(_))), "{answer:?}");
                    }
                })
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = quick();
    targets = durable_rows, rows_in_memory, reference
}
criterion_main!(benches);
