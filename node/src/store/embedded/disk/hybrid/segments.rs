//! The log's segments: prepared before they are needed, and written again once their rows are at
//! rest.
//!
//! ```text
//!   fill.new ──zeros, sync──▶ N.spare ──head, sync, rename, sync of the folder──▶ N.log
//!                               ▲                                                  │ records
//!                               └──── rename, sync of the folder ◀──── all at rest ┘
//! ```
//!
//! A segment is whole, durable and has its name before a record goes into it, so a record needs
//! one write and one `fdatasync` that touches no metadata. Segments leave one by one, the oldest
//! first, so that what is left has no hole whenever the process ends.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ring::rand::SecureRandom as _;

use super::files::{LogDir, LogFile};
use super::limits::{
    FILL_BYTES, FILL_PAUSE_MAX, FILL_PAUSES_DIVISOR, FILL_SYNC_BYTES, SEGMENT_HEAD_BYTES,
    SPARE_SEGMENTS_MAX,
};
use super::probe::{Probe, Step};
use super::record::SegmentId;
use crate::store::embedded::metrics::Counters;

/// Ends the names of segments with records.
const LOG: &str = ".log";
/// Ends the names of segments to be written again.
const SPARE: &str = ".spare";
/// The segment that is being filled with zeros.
const FILL: &str = "fill.new";

/// A segment that awaits its first record.
pub(crate) struct Prepared {
    pub id: SegmentId,
    pub file: Arc<dyn LogFile>,
    pub bytes: u64,
}

/// Makes and recycles segments; its thread alone gives and takes names.
pub(crate) struct Segments {
    dir: Arc<dyn LogDir>,
    segment_bytes: u64,
    next_number: u64,
    /// Numbers of the segments in use or ready, ascending.
    used: VecDeque<u64>,
    /// Numbers of the spare ones.
    spares: Vec<u64>,
    /// When a segment was last asked for; none before the first one.
    asked: Option<Instant>,
    probe: Probe,
    counters: Arc<Counters>,
}

impl Segments {
    /// Takes stock of a folder: removes what was half made, finds the segments that hold records.
    pub(crate) fn open(
        dir: Arc<dyn LogDir>,
        segment_bytes: u64,
        probe: Probe,
        counters: Arc<Counters>,
    ) -> io::Result<Segments> {
        let (mut used, mut spares) = (Vec::new(), Vec::new());
        for name in dir.list()? {
            match (number_of(&name, LOG), number_of(&name, SPARE)) {
                (Some(number), _) => used.push(number),
                (_, Some(number)) if dir.open(&name)?.bytes()? == segment_bytes => {
                    spares.push(number)
                }
                _ => dir.remove(&name)?,
            }
        }
        used.sort_unstable();
        spares.sort_unstable();
        let next_number = used.iter().chain(&spares).max().map_or(1, |last| last + 1);
        let used = used.into();
        let segments = Segments {
            dir,
            segment_bytes,
            next_number,
            used,
            spares,
            asked: None,
            probe,
            counters,
        };
        segments.count();
        Ok(segments)
    }

    /// The segments with records, in their order.
    pub(crate) fn used(&self) -> Vec<u64> {
        self.used.iter().copied().collect()
    }

    /// Opens a segment with records.
    pub(crate) fn read(&self, number: u64) -> io::Result<Vec<u8>> {
        self.dir.open(&name(number, LOG))?.read()
    }

    /// Makes a segment that can take a record of this many bytes.
    pub(crate) fn prepare(&mut self, record_bytes: u64) -> io::Result<Prepared> {
        let lasted = self.asked.replace(Instant::now()).map(|asked| asked.elapsed());
        // At the start, and for a record that fits in no other, somebody waits for it already.
        let lasted = lasted.filter(|_| record_bytes == 0).unwrap_or_default();
        let bytes = self.segment_bytes.max(SEGMENT_HEAD_BYTES + record_bytes);
        let is_own_size = bytes == self.segment_bytes;
        let spare = if is_own_size { self.spares.pop() } else { None };
        let spare = match spare {
            Some(spare) => name(spare, SPARE),
            None => {
                self.fill(bytes, lasted)?;
                FILL.to_owned()
            }
        };
        let file = self.dir.open(&spare)?;
        let mut salt = [0; 8];
        let random = ring::rand::SystemRandom::new();
        random.fill(&mut salt).map_err(|_| io::Error::other("no random numbers"))?;
        let id = SegmentId { number: self.next_number, salt: u64::from_le_bytes(salt) };
        file.write_at(&id.head(bytes), 0)?;
        self.probe.reached(Step::HeadWritten);
        file.sync_data()?;
        self.probe.reached(Step::HeadSynced);
        self.dir.rename(&spare, &name(id.number, LOG))?;
        self.probe.reached(Step::SegmentNamed);
        self.dir.sync()?;
        self.probe.reached(Step::SegmentReady);
        self.next_number += 1;
        self.used.push_back(id.number);
        self.count();
        Ok(Prepared { id, file, bytes })
    }

    /// Takes the segments up to this one out of the log: all their rows are at rest.
    pub(crate) fn recycle(&mut self, last: u64) -> io::Result<()> {
        while let Some(number) = self.used.front().copied().filter(|number| *number <= last) {
            self.take_out(number)?;
            self.used.pop_front();
            self.count();
        }
        Ok(())
    }

    /// Takes the segments from this one on out of the log: they have no record, or a torn one.
    pub(crate) fn take_back(&mut self, first: u64) -> io::Result<()> {
        while let Some(number) = self.used.back().copied().filter(|number| *number >= first) {
            self.take_out(number)?;
            self.used.pop_back();
            self.count();
        }
        Ok(())
    }

    fn take_out(&mut self, number: u64) -> io::Result<()> {
        let file = self.dir.open(&name(number, LOG))?;
        let is_spare =
            self.spares.len() < SPARE_SEGMENTS_MAX && file.bytes()? == self.segment_bytes;
        match is_spare {
            true => self.dir.rename(&name(number, LOG), &name(number, SPARE))?,
            false => self.dir.remove(&name(number, LOG))?,
        }
        self.probe.reached(Step::SegmentTakenOut);
        self.dir.sync()?;
        self.probe.reached(Step::SegmentRecycled);
        if is_spare {
            self.spares.push(number);
        }
        Ok(())
    }

    /// Writes the zeros: blocks that exist need no metadata when they are written again.
    fn fill(&self, bytes: u64, last_one_lasted: Duration) -> io::Result<()> {
        let pauses = u32::try_from(bytes / FILL_SYNC_BYTES).unwrap_or(u32::MAX).max(1);
        let pause = (last_one_lasted / FILL_PAUSES_DIVISOR / pauses).min(FILL_PAUSE_MAX);
        let file = self.dir.create(FILL)?;
        let zeros = vec![0; FILL_BYTES];
        let mut at = 0;
        while at < bytes {
            let step = (bytes - at).min(FILL_BYTES as u64);
            let end = at + step;
            let filled = file.write_at(&zeros[..step as usize], at).and_then(|()| {
                let is_due = end.is_multiple_of(FILL_SYNC_BYTES) || end == bytes;
                if is_due {
                    file.sync_data()?;
                    std::thread::sleep(pause);
                }
                Ok(())
            });
            if let Err(error) = filled {
                // A half-filled one takes room that others need. If this fails, too, the next
                // opening does it.
                let _ = self.dir.remove(FILL);
                return Err(error);
            }
            at = end;
        }
        self.probe.reached(Step::SegmentFilled);
        Ok(())
    }

    fn count(&self) {
        self.counters.log_segments.store(self.used.len(), Relaxed);
        self.counters.log_spares.store(self.spares.len(), Relaxed);
    }
}

/// What the thread of the segments is told.
pub(crate) enum SegmentsMessage {
    /// Make one that can take a record of this many bytes.
    Prepare(u64),
    /// See [`Segments::recycle`].
    Recycle(u64),
    /// End.
    Close,
}

fn name(number: u64, kind: &str) -> String {
    format!("{number:016}{kind}")
}

fn number_of(name: &str, kind: &str) -> Option<u64> {
    name.strip_suffix(kind)?.parse().ok()
}
