//! What a reader sees: the memtables up to a record, over the tables at rest.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut as _, Bytes, BytesMut};
use chatring_core::kv::{KeyRange, Order};

use super::limits::{SCAN_ROWS_MAX, SCAN_ROWS_MIN};
use super::table::{Found, More, Row, Table};
use crate::store::embedded::disk::plain::PlainSnapshot;
use crate::store::embedded::disk::{DiskError, DiskSnapshot, RowVisitor};

/// Memtables and what is at rest below them, changed together: no row is in neither.
pub(crate) struct Stack {
    /// The newest first; all but it are sealed.
    pub tables: Vec<Arc<Table>>,
    /// Taken when the tables at rest last changed.
    pub at_rest: Arc<PlainSnapshot>,
}

/// The sequences of the snapshots that are held.
#[derive(Default)]
pub(crate) struct Live(Mutex<VecDeque<(u64, u32)>>);

impl Live {
    /// Copies the sequences, ascending, in place of what is there.
    pub(crate) fn copy_into(&self, into: &mut Vec<u64>) {
        into.clear();
        into.extend(self.lock().iter().map(|(sequence, _)| sequence));
    }

    fn add(&self, sequence: u64) {
        let mut live = self.lock();
        match live.binary_search_by_key(&sequence, |entry| entry.0) {
            Ok(at) => live[at].1 += 1,
            Err(at) => live.insert(at, (sequence, 1)),
        }
    }

    fn remove(&self, sequence: u64) {
        let mut live = self.lock();
        if let Ok(at) = live.binary_search_by_key(&sequence, |entry| entry.0) {
            live[at].1 -= 1;
            if live[at].1 == 0 {
                live.remove(at);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, u32)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state after the record of a sequence. Costs a counter and an entry in [`Live`].
pub(crate) struct HybridSnapshot {
    stack: Arc<Stack>,
    sequence: u64,
    live: Arc<Live>,
}

impl HybridSnapshot {
    /// The state of a stack after the record of this sequence, which must be its newest.
    pub(crate) fn new(stack: Arc<Stack>, sequence: u64, live: &Arc<Live>) -> HybridSnapshot {
        live.add(sequence);
        HybridSnapshot { stack, sequence, live: Arc::clone(live) }
    }
}

impl Drop for HybridSnapshot {
    fn drop(&mut self) {
        self.live.remove(self.sequence);
    }
}

impl DiskSnapshot for HybridSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
        for table in &self.stack.tables {
            match table.get(key, self.sequence) {
                Found::Value(value) => return Ok(Some(value)),
                Found::Removed => return Ok(None),
                Found::Nothing => {}
            }
        }
        self.stack.at_rest.get(key)
    }

    fn range(
        &self,
        range: &KeyRange,
        order: Order,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), DiskError> {
        if range.is_empty() {
            return Ok(());
        }
        let mut cursors: Vec<Cursor<'_>> = self
            .stack
            .tables
            .iter()
            .map(|table| Cursor::new(table, range, order, self.sequence))
            .collect();
        let mut flow = ControlFlow::Continue(());
        self.stack.at_rest.range(range, order, &mut |key, value| {
            flow = match emit(&mut cursors, order, Some(key), visit) {
                ControlFlow::Continue(Hidden::No) => visit(key, value),
                ControlFlow::Continue(Hidden::Yes) => ControlFlow::Continue(()),
                ControlFlow::Break(()) => ControlFlow::Break(()),
            };
            flow
        })?;
        if let ControlFlow::Continue(()) = flow {
            let _ = emit(&mut cursors, order, None, visit);
        }
        Ok(())
    }
}

/// Whether a memtable has a row of a key, which hides the one at rest.
enum Hidden {
    Yes,
    No,
}

/// Visits the rows of the memtables up to a key (all, for none). A row of a newer table hides those
/// of the same key in older ones.
fn emit(
    cursors: &mut [Cursor<'_>],
    order: Order,
    upto: Option<&[u8]>,
    visit: &mut RowVisitor<'_>,
) -> ControlFlow<(), Hidden> {
    let comes_before = |one: &[u8], other: &[u8]| match order {
        Order::Forward => one < other,
        Order::Reverse => one > other,
    };
    loop {
        let mut next: Option<Row> = None;
        for cursor in cursors.iter_mut() {
            let Some(row) = cursor.peek() else { continue };
            if next.as_ref().is_none_or(|next| comes_before(&row.key, &next.key)) {
                next = Some(row.clone());
            }
        }
        let Some(row) = next else { return ControlFlow::Continue(Hidden::No) };
        if upto.is_some_and(|upto| comes_before(upto, &row.key)) {
            return ControlFlow::Continue(Hidden::No);
        }
        skip(cursors, &row.key);
        if let Some(value) = &row.value {
            visit(&row.key, value)?;
        }
        if upto.is_some_and(|upto| *upto == *row.key) {
            return ControlFlow::Continue(Hidden::Yes);
        }
    }
}

fn skip(cursors: &mut [Cursor<'_>], key: &[u8]) {
    for cursor in cursors {
        if cursor.peek().is_some_and(|row| row.key == key) {
            cursor.rows.pop();
        }
    }
}

/// Walks through the rows of one table, some at a time.
struct Cursor<'a> {
    table: &'a Table,
    /// What is left.
    range: KeyRange,
    order: Order,
    sequence: u64,
    /// Gathered, the next one last.
    rows: Vec<Row>,
    rows_max: usize,
    more: More,
}

impl<'a> Cursor<'a> {
    fn new(table: &'a Table, range: &KeyRange, order: Order, sequence: u64) -> Cursor<'a> {
        let (range, rows, rows_max) = (range.clone(), Vec::new(), SCAN_ROWS_MIN);
        Cursor { table, range, order, sequence, rows, rows_max, more: More::Maybe }
    }

    fn peek(&mut self) -> Option<&Row> {
        if self.rows.is_empty() && self.more == More::Maybe {
            let (range, order) = (&self.range, self.order);
            self.more =
                self.table.gather(range, order, self.sequence, self.rows_max, &mut self.rows);
            self.rows_max = SCAN_ROWS_MAX.min(self.rows_max * 4);
            if let Some(last) = self.rows.last() {
                match order {
                    Order::Forward => self.range.start = after(&last.key),
                    Order::Reverse => self.range.end = last.key.clone(),
                }
            }
            self.rows.reverse();
        }
        self.rows.last()
    }
}

/// The lowest key above one.
fn after(key: &[u8]) -> Bytes {
    let mut after = BytesMut::with_capacity(key.len() + 1);
    after.put_slice(key);
    after.put_u8(0);
    after.freeze()
}
