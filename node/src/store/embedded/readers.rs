//! The readers: threads that serve reads from published states.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use bytes::Bytes;
use chatring_core::kv::{
    Completion, Order, Outcome, RangeEnd, RangeRead, RangeRows, Read, ReadVersion, Rows,
};

use super::disk::{DiskError, DiskSnapshot};
use super::limits::READS_PER_PASS_MAX;
use super::metrics::Counters;
use super::published::Published;
use super::queue::{PendingRead, ReadMessage, deliver};

/// One reader's work.
pub(crate) struct Reader {
    pub queue: flume::Receiver<ReadMessage>,
    pub published: Arc<Published>,
    pub counters: Arc<Counters>,
}

impl Reader {
    /// Serves until it is told to end.
    pub(crate) fn run(&self) {
        while let Ok(ReadMessage::Read(first)) = self.queue.recv() {
            let mut answers = vec![self.serve(first)];
            let mut end = false;
            while answers.len() < READS_PER_PASS_MAX && !end {
                match self.queue.try_recv() {
                    Ok(ReadMessage::Read(next)) => answers.push(self.serve(next)),
                    Ok(ReadMessage::Close) => end = true,
                    Err(_) => break,
                }
            }
            deliver(answers);
            if end {
                return;
            }
        }
    }

    fn serve(&self, pending: PendingRead) -> (super::queue::Submitter, Completion) {
        let outcome = match self.read(&pending.read) {
            Ok(Some(rows)) => {
                Counters::bump(&self.counters.reads);
                Outcome::Rows(rows)
            }
            Ok(None) => {
                Counters::bump(&self.counters.too_old);
                Outcome::TooOld
            }
            Err(error) => {
                self.counters.read_errors.fetch_add(1, Relaxed);
                tracing::error!(%error, "a read from disk failed");
                Outcome::Unavailable
            }
        };
        (pending.submitter, Completion { ticket: pending.ticket, outcome })
    }

    /// Nothing if the version is too old.
    fn read(&self, read: &Read) -> Result<Option<Rows>, DiskError> {
        let now = Instant::now();
        let (version, snapshot) = match read.version {
            ReadVersion::Fresh => self.published.fresh(now),
            ReadVersion::At(version) => match self.published.at(version, now) {
                Some(snapshot) => (version, snapshot),
                None => return Ok(None),
            },
        };
        let gets = read.gets.iter().map(|key| snapshot.get(key)).collect::<Result<_, _>>()?;
        let ranges = read
            .ranges
            .iter()
            .map(|range| read_range(&*snapshot, range))
            .collect::<Result<_, _>>()?;
        Ok(Some(Rows { version, gets, ranges }))
    }
}

fn read_range(snapshot: &dyn DiskSnapshot, read: &RangeRead) -> Result<RangeRows, DiskError> {
    let range = super::system::user_part(&read.range);
    let rows_max = read.rows_max.max(1) as usize;
    let mut rows: Vec<(Bytes, Bytes)> = Vec::new();
    let mut bytes = 0;
    let mut end = RangeEnd::Complete;
    let order: Order = read.order;
    snapshot.range(&range, order, &mut |key, value| {
        if rows.len() >= rows_max || (!rows.is_empty() && bytes >= read.bytes_max as usize) {
            end = RangeEnd::More;
            return ControlFlow::Break(());
        }
        bytes += key.len() + value.len();
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    })?;
    Ok(RangeRows { rows, end })
}
