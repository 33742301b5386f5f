//! Judges what an engine answered against the reference model.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::record::{Asked, MARKERS, Recorder, marker};
use super::{FaultsOn, Harness};
use crate::kv::checks::{Fit, commit_fits};
use crate::kv::mem::{History, SubmitterId};
use crate::kv::{
    Commit, KeyRange, Order, Outcome, READ_VERSION_AGE_MS_MAX, RangeEnd, RangeRead, RangeRows,
    Read, ReadVersion, Rows, STAMP_BYTES, Stamp, Version, Write,
};

type Judged = Result<(), String>;

/// Reads the final state and checks every answer.
pub(super) fn judge<H: Harness>(recorder: &mut Recorder<'_, H>) -> Judged {
    recorder.harness.settle();
    let rows = final_rows(recorder)?;
    let mut landed = BTreeMap::new();
    for (number, commit) in recorder.commits.iter().enumerate() {
        if let Some(value) = rows.get(&marker(number)) {
            let bytes: [u8; STAMP_BYTES] = value[..].try_into().map_err(|_| "a torn marker")?;
            if landed.insert(Stamp::from_bytes(bytes), number).is_some() {
                return Err(format!("two commits with one stamp: {commit:?}"));
            }
        }
    }
    let stamps = landed.iter().map(|(stamp, number)| (*number, *stamp)).collect();
    let mut model = History::default();
    for (stamp, number) in &landed {
        model.apply(*stamp, &recorder.commits[*number].request.writes);
    }
    let all = Version(u64::MAX);
    if !model.rows_at(all).eq(rows.iter()) {
        return Err("the final state is not that of the commits in the order of stamps".into());
    }
    let case = Evidence {
        commits: &recorder.commits,
        reads: &recorder.reads,
        stamps,
        model,
        faults: recorder.harness.faults(),
        now_ms: recorder.harness.now_ms(),
    };
    case.commits_did_what_was_said()?;
    case.conflicts_are_right()?;
    case.lanes_kept_order()?;
    case.time_goes_forward()?;
    case.reads_are_right()
}

/// Every row at one version, page by page, asked again if a fault comes between.
fn final_rows<H: Harness>(
    recorder: &mut Recorder<'_, H>,
) -> Result<BTreeMap<Bytes, Bytes>, String> {
    const TRIES_MAX: u32 = 10_000;
    let mut rows = BTreeMap::new();
    let mut range = KeyRange { start: Bytes::new(), end: Bytes::from_static(b"\xff") };
    let mut version = ReadVersion::Fresh;
    for _ in 0..TRIES_MAX {
        let page = RangeRead {
            range: range.clone(),
            rows_max: 50,
            bytes_max: 10_000,
            order: Order::Forward,
        };
        let read = Read { gets: Vec::new(), ranges: vec![page], version };
        let number = recorder.read(SubmitterId(0), read);
        recorder.drain()?;
        match &recorder.reads[number].answered {
            Some((_, Outcome::Rows(page))) => {
                version = ReadVersion::At(page.version);
                let page = &page.ranges[0];
                rows.extend(page.rows.iter().cloned());
                match page.rows.last() {
                    Some((key, _)) if page.end == RangeEnd::More => {
                        range.start = KeyRange::key(key).end;
                    }
                    _ => return Ok(rows),
                }
            }
            Some((_, Outcome::TooOld)) => {
                rows.clear();
                range.start = Bytes::new();
                version = ReadVersion::Fresh;
            }
            _ if recorder.harness.faults() == FaultsOn::Yes => {}
            other => return Err(format!("the final read was answered with {other:?}")),
        }
    }
    Err("the final state could not be read".into())
}

struct Evidence<'a> {
    commits: &'a [Asked<Commit>],
    reads: &'a [Asked<Read>],
    stamps: BTreeMap<usize, Stamp>,
    model: History,
    faults: FaultsOn,
    now_ms: u64,
}

impl Evidence<'_> {
    fn commits_did_what_was_said(&self) -> Judged {
        for (number, asked) in self.commits.iter().enumerate() {
            let Some((_, outcome)) = &asked.answered else { continue };
            let stamp = self.stamps.get(&number);
            let agrees = match outcome {
                Outcome::Committed(told) => stamp == Some(told),
                Outcome::Unknown(_) => self.faults == FaultsOn::Yes,
                Outcome::Throttled | Outcome::Unavailable => {
                    stamp.is_none() && self.faults == FaultsOn::Yes
                }
                Outcome::TooLarge => {
                    stamp.is_none() && commit_fits(&asked.request) == Fit::TooLarge
                }
                Outcome::Conflict | Outcome::TooOld | Outcome::LaneStopped => stamp.is_none(),
                Outcome::Fatal | Outcome::Rows(_) => false,
            };
            let too_large = commit_fits(&asked.request) == Fit::TooLarge;
            if !agrees || (too_large && stamp.is_some()) {
                return Err(format!("told {outcome:?}, found {stamp:?}: {asked:?}"));
            }
        }
        Ok(())
    }

    fn conflicts_are_right(&self) -> Judged {
        for (number, asked) in self.commits.iter().enumerate() {
            let known = asked.request.read_version.unwrap_or_default();
            let against = |other: usize| {
                other != number && touches(&self.commits[other].request, &asked.request.conflicts)
            };
            if let Some(stamp) = self.stamps.get(&number) {
                let mut since = self
                    .stamps
                    .iter()
                    .filter(|(_, other)| known < other.version && **other < *stamp);
                if let Some((other, _)) = since.find(|(other, _)| against(**other)) {
                    return Err(format!(
                        "{asked:?} at {stamp:?} should conflict with {:?}",
                        self.commits[*other]
                    ));
                }
            }
            let Some((answered, outcome)) = &asked.answered else { continue };
            let justified = match outcome {
                Outcome::Conflict => (0..self.commits.len()).any(|other| {
                    let before = self.commits[other].submitted < *answered;
                    let stamp = self.stamps.get(&other);
                    let lost = stamp.is_none() && self.commits[other].answered.is_none();
                    before && against(other) && (lost || stamp.is_some_and(|s| s.version > known))
                }),
                Outcome::TooOld => self.may_be_too_old(asked, Some(known)),
                _ => true,
            };
            if !justified && self.faults == FaultsOn::No {
                return Err(format!("without a reason: {asked:?}"));
            }
        }
        Ok(())
    }

    /// Whether a version was given in an earlier epoch, or longer ago than it may be used.
    fn may_be_too_old<R>(&self, asked: &Asked<R>, version: Option<Version>) -> bool {
        let given = self.reads.iter().find(|read| match &read.answered {
            Some((_, Outcome::Rows(rows))) => Some(rows.version) == version,
            _ => false,
        });
        given.is_none_or(|given| {
            given.epoch != asked.epoch || self.now_ms - given.submitted_ms > READ_VERSION_AGE_MS_MAX
        })
    }

    fn lanes_kept_order(&self) -> Judged {
        let mut lanes: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (number, asked) in self.commits.iter().enumerate() {
            if let Some(lane) = asked.request.lane {
                let lane = (asked.submitter, lane, asked.epoch, asked.resumes);
                lanes.entry(lane).or_default().push(number);
            }
        }
        for (lane, numbers) in lanes {
            let mut newest = None;
            let mut stopped = false;
            for number in numbers {
                let asked = &self.commits[number];
                let Some((_, outcome)) = &asked.answered else {
                    // A kill came before the answer: it may be a failure that stopped the lane.
                    if let Some(stamp) = self.stamps.get(&number) {
                        newest = Some(*stamp);
                    } else {
                        break;
                    }
                    continue;
                };
                match outcome {
                    Outcome::LaneStopped if stopped => {}
                    Outcome::Committed(stamp) if !stopped && newest < Some(*stamp) => {
                        newest = Some(*stamp);
                    }
                    Outcome::LaneStopped | Outcome::Committed(_) => {
                        return Err(format!("out of order in lane {lane:?}: {asked:?}"));
                    }
                    _ if stopped => return Err(format!("lane {lane:?} goes on: {asked:?}")),
                    _ => stopped = true,
                }
            }
        }
        Ok(())
    }

    fn time_goes_forward(&self) -> Judged {
        for (number, stamp) in &self.stamps {
            let later = &self.commits[*number];
            let mut seen = self.told_before(later.submitted);
            if let Some(floor) = seen.find(|floor| *floor >= stamp.version) {
                return Err(format!("{floor:?} was known before, yet {stamp:?}: {later:?}"));
            }
        }
        for later in self.reads {
            let Some((_, Outcome::Rows(rows))) = &later.answered else { continue };
            if later.request.version != ReadVersion::Fresh {
                continue;
            }
            let mut seen = self.told_before(later.submitted);
            if let Some(floor) = seen.find(|floor| *floor > rows.version) {
                return Err(format!("{floor:?} was known before this fresh read: {later:?}"));
            }
        }
        Ok(())
    }

    /// Versions that somebody had been told before an event: of commits, and of reads.
    fn told_before(&self, event: u64) -> impl Iterator<Item = Version> {
        let commits = self.commits.iter().filter_map(|asked| asked.answered.as_ref());
        let reads = self.reads.iter().filter_map(|asked| asked.answered.as_ref());
        commits.chain(reads).filter(move |(at, _)| *at < event).filter_map(|(_, outcome)| {
            match outcome {
                Outcome::Committed(stamp) => Some(stamp.version),
                Outcome::Rows(rows) => Some(rows.version),
                _ => None,
            }
        })
    }

    fn reads_are_right(&self) -> Judged {
        for asked in self.reads {
            let Some((_, outcome)) = &asked.answered else { continue };
            match outcome {
                Outcome::Rows(rows) => self.rows_are_right(asked, rows)?,
                Outcome::TooOld => {
                    let at = match asked.request.version {
                        ReadVersion::Fresh => return Err(format!("too fresh: {asked:?}")),
                        ReadVersion::At(at) => at,
                    };
                    if self.faults == FaultsOn::No && !self.may_be_too_old(asked, Some(at)) {
                        return Err(format!("without a reason: {asked:?}"));
                    }
                }
                Outcome::Throttled | Outcome::Unavailable if self.faults == FaultsOn::Yes => {}
                _ => return Err(format!("no answer to a read: {asked:?}")),
            }
        }
        Ok(())
    }

    fn rows_are_right(&self, asked: &Asked<Read>, rows: &Rows) -> Judged {
        let at = rows.version;
        let same_version = match asked.request.version {
            ReadVersion::Fresh => true,
            ReadVersion::At(wanted) => wanted == at,
        };
        let model = self.model.read(&asked.request, at);
        let ranges = asked.request.ranges.iter().zip(&rows.ranges).zip(&model.ranges);
        let right = same_version
            && rows.gets == model.gets
            && rows.ranges.len() == model.ranges.len()
            && ranges.into_iter().all(|((read, got), wanted)| {
                got.rows == wanted.rows && self.end_is_right(read, got, wanted, at)
            });
        if right { Ok(()) } else { Err(format!("wanted {model:?}: {asked:?}")) }
    }

    /// An engine that stopped at a bound may know that nothing is left.
    fn end_is_right(
        &self,
        read: &RangeRead,
        got: &RangeRows,
        wanted: &RangeRows,
        at: Version,
    ) -> bool {
        let whole = RangeRead { rows_max: u32::MAX, bytes_max: u32::MAX, ..read.clone() };
        match got.end {
            RangeEnd::More => wanted.end == RangeEnd::More,
            RangeEnd::Complete => self.model.read_range(&whole, at).rows.len() == got.rows.len(),
        }
    }
}

/// Whether a commit writes into any of these ranges. Markers are nobody's conflict.
fn touches(commit: &Commit, ranges: &[KeyRange]) -> bool {
    commit.writes.iter().any(|write| match write {
        Write::Set { key, .. } | Write::SetStamped { key, .. } | Write::Clear { key } => {
            !key.starts_with(MARKERS) && ranges.iter().any(|range| range.contains(key))
        }
        Write::ClearRange(cleared) => ranges.iter().any(|range| {
            let start = cleared.start.as_ref().max(range.start.as_ref());
            start < cleared.end.as_ref().min(range.end.as_ref())
        }),
    })
}
