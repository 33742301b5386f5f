//! Named steps at which tests look at the disk, or let it crash. Without tests: nothing.

/// A step of sealing, ingesting and recycling, named after what has just been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Step {
    /// A record was written, and not yet synced.
    RecordWritten,
    /// A record is durable, and not yet in the memtable.
    RecordSynced,
    /// A memtable is full, and takes no more.
    TableSealed,
    /// The rows of a sealed memtable were given to fjall, which has made nothing of them yet.
    RowsGiven,
    /// Its rows are at rest, durably; readers still take them from memory.
    RowsIngested,
    /// Readers take them from rest.
    TableDropped,
    /// A new segment has its zeros, durably.
    SegmentFilled,
    /// A segment has a new head.
    HeadWritten,
    /// That head is durable.
    HeadSynced,
    /// The segment has its new name.
    SegmentNamed,
    /// That name is durable: the segment may be written.
    SegmentReady,
    /// A segment has lost its name in the log.
    SegmentTakenOut,
    /// That is durable.
    SegmentRecycled,
}

impl Step {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Step; 13] = [
        Step::RecordWritten,
        Step::RecordSynced,
        Step::TableSealed,
        Step::RowsGiven,
        Step::RowsIngested,
        Step::TableDropped,
        Step::SegmentFilled,
        Step::HeadWritten,
        Step::HeadSynced,
        Step::SegmentNamed,
        Step::SegmentReady,
        Step::SegmentTakenOut,
        Step::SegmentRecycled,
    ];
}

/// Is told of each step, in tests.
#[derive(Clone, Default)]
pub(crate) struct Probe {
    /// Called by whoever has done the step.
    #[cfg(test)]
    pub at: Option<std::sync::Arc<dyn Fn(Step) + Send + Sync>>,
}

impl Probe {
    /// A step was done.
    pub(crate) fn reached(&self, step: Step) {
        #[cfg(test)]
        if let Some(at) = &self.at {
            at(step);
        }
        let _ = step;
    }
}
