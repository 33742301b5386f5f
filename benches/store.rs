//! The embedded engine on a real disk: rows a second that are synced, by the size of a commit. A
//! direct message is three rows, and each commit has the lane's journal row besides, as in a node.

use bytes::Bytes;
use chatring_benches::quick;
use chatring_core::keys;
use chatring_core::kv::{Class, Commit, Completion, Kv, LaneId, Outcome, Request, Ticket, Write};
use chatring_core::values::{JournalRow, StoreIncarnation};
use chatring_node::store::embedded::{EmbeddedConfig, EmbeddedHandle, EmbeddedStore};
use chatring_wire::{Cid, Seq, Uid};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const STORE: StoreIncarnation = StoreIncarnation(1);
const USERS: u64 = 1_000;
const MESSAGE_VALUE_BYTES: usize = 80;
const INBOX_VALUE_BYTES: usize = 40;
/// A lane of a node has at most so many commits in flight.
const IN_FLIGHT: u64 = 4;

fn durable_rows(c: &mut Criterion) {
    // On the disk of the build, not on /tmp, which may be memory.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let store = EmbeddedStore::open(folder.path(), EmbeddedConfig::default()).expect("a store");
    let mut writer = Writer::new(&store);
    let mut group = c.benchmark_group("store/durable_rows");
    for (messages, in_flight) in [(1, 1), (16, 1), (128, 1), (128, IN_FLIGHT)] {
        let rows = messages * 3 + 1;
        group.throughput(Throughput::Elements(rows * in_flight));
        group.bench_function(format!("{in_flight}_x_{rows}"), |b| {
            b.iter(|| writer.write(messages, in_flight));
        });
    }
    group.finish();
}

struct Writer {
    handle: EmbeddedHandle,
    answers: flume::Receiver<Vec<Completion>>,
    messages: u64,
    commits: u64,
}

impl Writer {
    fn new(store: &EmbeddedStore) -> Writer {
        let (sender, answers) = flume::bounded(64);
        let handle = store.handle(move |completions| {
            sender.send(completions).expect("somebody waits");
        });
        Writer { handle, answers, messages: 0, commits: 0 }
    }

    /// Submits commits and waits until all of them are on disk.
    fn write(&mut self, messages: u64, commits: u64) {
        for _ in 0..commits {
            self.commits += 1;
            let commit = self.commit(messages);
            self.handle.submit(Request::Commit(commit), Ticket(self.commits));
        }
        let mut open = commits;
        while open > 0 {
            for Completion { outcome, .. } in self.answers.recv().expect("an answer") {
                assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
                open -= 1;
            }
        }
    }

    fn commit(&mut self, messages: u64) -> Commit {
        let mut writes = Vec::with_capacity(messages as usize * 3 + 1);
        for _ in 0..messages {
            self.messages += 1;
            let pair = self.messages % USERS;
            let (cid, seq) = (Cid(spread(pair)), Seq(1 + self.messages / USERS));
            writes.push(set(keys::message(cid, seq), MESSAGE_VALUE_BYTES));
            for user in [pair, pair ^ 1] {
                writes.push(set(keys::inbox(Uid(spread(user)), cid), INBOX_VALUE_BYTES));
            }
        }
        writes.push(JournalRow::write(keys::journal(0, 0, 0), STORE, 1, self.commits));
        Commit {
            lane: Some(LaneId(0)),
            class: Class::Interactive,
            read_version: None,
            conflicts: Vec::new(),
            writes,
        }
    }
}

fn set(key: Bytes, value_bytes: usize) -> Write {
    Write::SetStamped { key, value: Bytes::from(vec![1; value_bytes]), offset: 3 }
}

/// Ids are evenly spread.
fn spread(n: u64) -> u64 {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

criterion_group! { name = benches; config = quick(); targets = durable_rows }
criterion_main!(benches);
