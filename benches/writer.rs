//! Writes messages into an embedded store as a lane of a node does: three rows a message, and the
//! lane's journal row with each commit.

use bytes::Bytes;
use chatring_core::keys;
use chatring_core::kv::{Class, Commit, Completion, Kv, LaneId, Outcome, Request, Ticket, Write};
use chatring_core::values::{JournalRow, StoreIncarnation};
use chatring_node::store::embedded::{EmbeddedHandle, EmbeddedStore};
use chatring_wire::{Cid, Seq, Uid};

const STORE: StoreIncarnation = StoreIncarnation(1);
const USERS: u64 = 1_000;
const MESSAGE_VALUE_BYTES: usize = 80;
const INBOX_VALUE_BYTES: usize = 40;

/// One submitter of a store.
pub struct Writer {
    handle: EmbeddedHandle,
    answers: flume::Receiver<Vec<Completion>>,
    rows: Rows,
}

/// Makes commits of messages.
#[derive(Default)]
pub struct Rows {
    messages: u64,
    /// Commits made.
    pub commits: u64,
}

impl Writer {
    /// A submitter that has written nothing yet.
    pub fn new(store: &EmbeddedStore) -> Writer {
        let (sender, answers) = flume::bounded(64);
        let handle = store.handle(move |completions| {
            sender.send(completions).expect("somebody waits");
        });
        Writer { handle, answers, rows: Rows::default() }
    }

    /// Submits commits and waits until all of them are on disk.
    pub fn write(&mut self, messages: u64, commits: u64) {
        for _ in 0..commits {
            let commit = self.rows.commit(messages);
            self.handle.submit(Request::Commit(commit), Ticket(self.rows.commits));
        }
        let mut open = commits;
        while open > 0 {
            for Completion { outcome, .. } in self.answers.recv().expect("an answer") {
                assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
                open -= 1;
            }
        }
    }
}

impl Rows {
    /// The next commit, of so many messages.
    pub fn commit(&mut self, messages: u64) -> Commit {
        self.commits += 1;
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
