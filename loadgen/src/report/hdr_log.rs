//! The interval log: all latencies, an interval a line, in HdrHistogram's own format, which its
//! tools read.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{
    IntervalLogWriterBuilder, IntervalLogWriterError, Tag,
};

use super::interval::Timed;
use crate::latency::Latencies;

/// The line that names the columns, as the format wants it.
const LEGEND: &[u8] =
    b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n";

/// An interval log that is being written.
pub struct HdrLog<W: Write> {
    out: W,
    serializer: V2DeflateSerializer,
}

impl HdrLog<BufWriter<File>> {
    /// Makes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path) -> io::Result<HdrLog<BufWriter<File>>> {
        File::create(path).map(BufWriter::new).map(HdrLog::new)
    }
}

impl<W: Write> HdrLog<W> {
    /// Writes there.
    pub fn new(out: W) -> HdrLog<W> {
        HdrLog { out, serializer: V2DeflateSerializer::new() }
    }

    /// Writes the head. Times count from `start`, the beginning of the measured time.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn begin(&mut self, start: SystemTime) -> io::Result<()> {
        IntervalLogWriterBuilder::new()
            .add_comment("[Latencies of chatring-loadgen, in nanoseconds]")
            .with_start_time(start)
            .with_base_time(start)
            .begin_log_with(&mut self.out, &mut self.serializer)?;
        self.out.write_all(LEGEND)
    }

    /// Adds the lines of an interval, tagged `ack` and `deliver`; none for what it has none of.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn add(&mut self, from: Duration, length: Duration, timed: &Timed) -> io::Result<()> {
        self.line("ack", from, length, &timed.ack)?;
        self.line("deliver", from, length, &timed.deliver)
    }

    /// Writes what is still held.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }

    fn line(
        &mut self,
        tag: &str,
        from: Duration,
        length: Duration,
        latencies: &Latencies,
    ) -> io::Result<()> {
        if latencies.count() == 0 {
            return Ok(());
        }
        let tag = Tag::new(tag);
        IntervalLogWriterBuilder::new()
            .begin_log_with(&mut self.out, &mut self.serializer)?
            .write_histogram(latencies.histogram(), from, length, tag)
            .map_err(|error| match error {
                IntervalLogWriterError::IoError(error) => error,
                other @ IntervalLogWriterError::SerializeError(_) => io::Error::other(other),
            })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    fn read(log: &[u8], tag: &str) -> Vec<(Duration, Duration, Histogram<u64>)> {
        let entries = IntervalLogIterator::new(log).map(Result::unwrap);
        let intervals = entries.filter_map(|entry| match entry {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        });
        let tagged = intervals.filter(|interval| interval.tag() == Tag::new(tag));
        tagged
            .map(|interval| {
                let encoded = interval.encoded_histogram();
                let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
                let histogram = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
                (interval.start_timestamp(), interval.duration(), histogram)
            })
            .collect()
    }

    #[test]
    fn the_readers_of_the_format_get_the_same_histograms_back() {
        let mut log = HdrLog::new(Vec::new());
        let start = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        log.begin(start).unwrap();
        let mut written = Vec::new();
        for second in 0..3 {
            let mut timed = Timed::default();
            for us in 1..=1_000 {
                timed.ack.record(us * (second + 1) * 997);
                timed.deliver.record(us * us * 1_000);
            }
            let length = Duration::from_millis(1_000 - 250 * second);
            log.add(Duration::from_secs(second), length, &timed).unwrap();
            written.push((Duration::from_secs(second), length, timed));
        }
        log.add(Duration::from_secs(3), Duration::from_secs(1), &Timed::default()).unwrap();
        let log = log.finish().unwrap();
        let (ack, deliver) = (read(&log, "ack"), read(&log, "deliver"));
        assert_eq!((ack.len(), deliver.len()), (3, 3), "none for an interval without any");
        for (index, (from, length, timed)) in written.iter().enumerate() {
            assert_eq!((&ack[index].0, &ack[index].1), (from, length));
            assert_eq!(&ack[index].2, timed.ack.histogram());
            assert_eq!(&deliver[index].2, timed.deliver.histogram());
        }
        let starts: Vec<_> = IntervalLogIterator::new(&log)
            .filter(|entry| !matches!(entry, Ok(LogEntry::Interval(_))))
            .map(Result::unwrap)
            .collect();
        let since = Duration::from_millis(1_700_000_000_250);
        assert_eq!(starts, [LogEntry::StartTime(since), LogEntry::BaseTime(since)]);
    }
}
