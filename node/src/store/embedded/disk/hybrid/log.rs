//! The log: one write and one sync for each batch.

use std::sync::Arc;
use std::time::Instant;

use super::limits::{SEGMENT_HEAD_BYTES, WAIT_POLL};
use super::probe::{Probe, Step};
use super::segments::{Prepared, SegmentsMessage};
use crate::held::{Cause, HELD};
use crate::store::embedded::disk::DiskError;
use crate::store::embedded::metrics::Counters;

/// The end of the log to which is written.
pub(crate) struct Log {
    /// None until the first record, and after [`Log::end_segment`].
    current: Option<Current>,
    /// The number of the last segment that took a record, or was passed over.
    last_number: u64,
    ready: flume::Receiver<std::io::Result<Prepared>>,
    segments: flume::Sender<SegmentsMessage>,
    probe: Probe,
    counters: Arc<Counters>,
}

struct Current {
    segment: Prepared,
    /// Where the next record goes.
    at: u64,
}

impl Log {
    /// A log whose segments come from the thread behind these channels, which makes one already.
    pub(crate) fn new(
        ready: flume::Receiver<std::io::Result<Prepared>>,
        segments: flume::Sender<SegmentsMessage>,
        last_number: u64,
        probe: Probe,
        counters: Arc<Counters>,
    ) -> Log {
        Log { current: None, last_number, ready, segments, probe, counters }
    }

    /// Makes a record durable. Nothing else may be written after an error.
    pub(crate) fn append(&mut self, record: &mut [u8]) -> Result<(), DiskError> {
        let bytes = record.len() as u64;
        if self.current.as_ref().is_none_or(|open| open.at + bytes > open.segment.bytes) {
            self.next_segment(bytes)?;
        }
        let current = self.current.as_mut().expect("just made");
        current.segment.id.seal(record);
        let start = Instant::now();
        current.segment.file.write_at(record, current.at)?;
        let written = Instant::now();
        HELD.took(Cause::Write, written - start);
        self.probe.reached(Step::RecordWritten);
        current.segment.file.sync_data()?;
        HELD.since(Cause::Sync, written);
        self.probe.reached(Step::RecordSynced);
        current.at += bytes;
        Ok(())
    }

    /// Lets the next record begin a segment; gives the number of the last one before it.
    pub(crate) fn end_segment(&mut self) -> u64 {
        self.current = None;
        self.last_number
    }

    /// Ends the thread of the segments.
    pub(crate) fn close(&self) {
        // An error means that it has ended.
        let _ = self.segments.send(SegmentsMessage::Close);
    }

    fn next_segment(&mut self, record_bytes: u64) -> Result<(), DiskError> {
        self.current = None;
        let mut wanted = record_bytes;
        loop {
            let segment = self.take_ready()?;
            self.last_number = segment.id.number;
            let fits = SEGMENT_HEAD_BYTES + record_bytes <= segment.bytes;
            if fits {
                // The next one is of the usual size.
                wanted = 0;
            }
            let message = SegmentsMessage::Prepare(wanted);
            self.segments.send(message).map_err(|_| ended())?;
            if fits {
                self.current = Some(Current { segment, at: SEGMENT_HEAD_BYTES });
                return Ok(());
            }
        }
    }

    fn take_ready(&self) -> Result<Prepared, DiskError> {
        if let Ok(segment) = self.ready.try_recv() {
            return Ok(segment?);
        }
        let start = Instant::now();
        loop {
            match self.ready.recv_timeout(WAIT_POLL) {
                Ok(segment) => {
                    self.counters.stalled(start.elapsed());
                    HELD.since(Cause::Segment, start);
                    return Ok(segment?);
                }
                Err(flume::RecvTimeoutError::Timeout) => {}
                Err(flume::RecvTimeoutError::Disconnected) => return Err(ended()),
            }
        }
    }
}

fn ended() -> DiskError {
    DiskError::Stopped("the thread of the log's segments has ended".into())
}
