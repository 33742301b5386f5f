//! The readers: threads that serve reads from published states.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use chatring_core::kv::{
    Completion, Outcome, RangeEnd, RangeRead, RangeRows, Read, ReadVersion, Rows,
};

use super::committer::ElapsedClock;
use super::disk::{DiskError, DiskSnapshot};
use super::limits::READS_PER_PASS_MAX;
use super::metrics::Counters;
use super::published::{NotReadable, Published};
use super::queue::{PendingRead, ReadMessage, deliver};

/// One reader's work.
pub(crate) struct Reader {
    pub queue: flume::Receiver<ReadMessage>,
    pub published: Arc<Published>,
    pub elapsed: ElapsedClock,
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
            Ok(rows) => {
                Counters::bump(&self.counters.reads);
                self.counters.rows_read.fetch_add(rows_in(&rows), Relaxed);
                Outcome::Rows(rows)
            }
            Err(ReadError::NotReadable(NotReadable::TooOld)) => {
                Counters::bump(&self.counters.too_old);
                Outcome::TooOld
            }
            Err(ReadError::NotReadable(NotReadable::Withdrawn)) => Outcome::Unavailable,
            Err(ReadError::Disk(error)) => {
                self.counters.read_errors.fetch_add(1, Relaxed);
                tracing::error!(%error, "a read from disk failed");
                Outcome::Unavailable
            }
        };
        (pending.submitter, Completion { ticket: pending.ticket, outcome })
    }

    fn read(&self, read: &Read) -> Result<Rows, ReadError> {
        let now = (self.elapsed)();
        let (version, snapshot) = match read.version {
            ReadVersion::Fresh => self.published.fresh(now)?,
            ReadVersion::At(version) => (version, self.published.at(version, now)?),
        };
        let gets = read.gets.iter().map(|key| snapshot.get(key)).collect::<Result<_, _>>()?;
        let ranges = read
            .ranges
            .iter()
            .map(|range| read_range(&*snapshot, range))
            .collect::<Result<_, _>>()?;
        Ok(Rows { version, gets, ranges })
    }
}

enum ReadError {
    NotReadable(NotReadable),
    Disk(DiskError),
}

impl From<NotReadable> for ReadError {
    fn from(error: NotReadable) -> ReadError {
        ReadError::NotReadable(error)
    }
}

impl From<DiskError> for ReadError {
    fn from(error: DiskError) -> ReadError {
        ReadError::Disk(error)
    }
}

fn rows_in(rows: &Rows) -> u64 {
    let ranges = rows.ranges.iter().map(|range| range.rows.len());
    (rows.gets.iter().flatten().count() + ranges.sum::<usize>()) as u64
}

fn read_range(snapshot: &dyn DiskSnapshot, read: &RangeRead) -> Result<RangeRows, DiskError> {
    let range = super::system::user_part(&read.range);
    let (rows_max, bytes_max) = (read.rows_max as usize, read.bytes_max as usize);
    let mut rows: Vec<(Bytes, Bytes)> = Vec::new();
    let mut bytes = 0;
    let mut end = RangeEnd::Complete;
    snapshot.range(&range, read.order, &mut |key, value| {
        bytes += key.len() + value.len();
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        if rows.len() >= rows_max || bytes >= bytes_max {
            end = RangeEnd::More;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(RangeRows { rows, end })
}
