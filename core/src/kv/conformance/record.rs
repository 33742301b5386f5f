//! Writes down what was asked and answered, in the order in which the clients saw it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Coverage, Harness, Supported};
use crate::kv::mem::SubmitterId;
use crate::kv::{
    Commit, InFlight, LaneId, Order, Outcome, Read, ReadVersion, Request, STAMP_BYTES, Ticket,
    Write,
};

/// Markers lie here, out of the reach of programs.
pub(super) const MARKERS: &[u8] = b"\x01u";

/// A request and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Asked<R> {
    pub submitter: SubmitterId,
    pub request: R,
    /// Number of the event.
    pub submitted: u64,
    pub submitted_ms: u64,
    /// Starts of the engine so far.
    pub epoch: u32,
    /// Resumes of its lane so far.
    pub resumes: u32,
    /// Number of the event, and the answer.
    pub answered: Option<(u64, Outcome)>,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Commit(usize),
    Read(usize),
}

/// Drives a harness and remembers everything.
pub(super) struct Recorder<'h, H> {
    pub harness: &'h mut H,
    pub coverage: Coverage,
    pub commits: Vec<Asked<Commit>>,
    pub reads: Vec<Asked<Read>>,
    /// Starts of the engine so far.
    pub epoch: u32,
    events: u64,
    tickets: u64,
    open: BTreeMap<(SubmitterId, Ticket), Which>,
    resumes: BTreeMap<(SubmitterId, LaneId), u32>,
}

impl<'h, H: Harness> Recorder<'h, H> {
    pub fn new(harness: &'h mut H) -> Recorder<'h, H> {
        Recorder {
            harness,
            coverage: Coverage::default(),
            commits: Vec::new(),
            reads: Vec::new(),
            epoch: 0,
            events: 0,
            tickets: 0,
            open: BTreeMap::new(),
            resumes: BTreeMap::new(),
        }
    }

    /// Submits a commit together with its marker.
    pub fn commit(&mut self, submitter: SubmitterId, mut commit: Commit) -> usize {
        for write in &commit.writes {
            self.coverage.note(match write {
                Write::Set { .. } => "set",
                Write::SetStamped { .. } => "set-stamped",
                Write::Clear { .. } => "clear",
                Write::ClearRange(_) => "clear-range",
            });
        }
        let number = self.commits.len();
        let value = vec![0; STAMP_BYTES].into();
        commit.writes.push(Write::SetStamped { key: marker(number), value, offset: 0 });
        let lane = commit.lane.map(|lane| (submitter, lane));
        let resumes = lane.and_then(|lane| self.resumes.get(&lane)).copied().unwrap_or_default();
        let asked = self.asked(submitter, commit.clone(), resumes);
        self.commits.push(asked);
        self.submit(submitter, Request::Commit(commit), Which::Commit(number));
        number
    }

    /// Submits a read.
    pub fn read(&mut self, submitter: SubmitterId, read: Read) -> usize {
        if !read.gets.is_empty() {
            self.coverage.note("get");
        }
        for range in &read.ranges {
            self.coverage.note(match range.order {
                Order::Forward => "range-forward",
                Order::Reverse => "range-reverse",
            });
        }
        if matches!(read.version, ReadVersion::At(_)) {
            self.coverage.note("read-at");
        }
        let number = self.reads.len();
        let asked = self.asked(submitter, read.clone(), 0);
        self.reads.push(asked);
        self.submit(submitter, Request::Read(read), Which::Read(number));
        number
    }

    /// Takes in the next answers.
    ///
    /// # Errors
    /// An answer that nobody asked for.
    pub fn wait(&mut self) -> Result<usize, String> {
        let answers = self.harness.wait();
        let count = answers.len();
        for (submitter, completion) in answers {
            let which = self.open.remove(&(submitter, completion.ticket));
            let which = which.ok_or_else(|| format!("answer without request: {completion:?}"))?;
            self.events += 1;
            self.coverage.note(name_of(&completion.outcome));
            let answered = Some((self.events, completion.outcome));
            match which {
                Which::Commit(number) => self.commits[number].answered = answered,
                Which::Read(number) => self.reads[number].answered = answered,
            }
        }
        Ok(count)
    }

    /// Waits until nothing is open.
    ///
    /// # Errors
    /// A request that is never answered.
    pub fn drain(&mut self) -> Result<(), String> {
        while self.wait()? > 0 {}
        if self.open.is_empty() { Ok(()) } else { Err(format!("never answered: {:?}", self.open)) }
    }

    /// Resumes a lane all of whose commits were answered.
    pub fn resume(&mut self, submitter: SubmitterId, lane: LaneId) {
        *self.resumes.entry((submitter, lane)).or_default() += 1;
        self.harness.resume(submitter, lane);
    }

    /// Whether a lane has commits without an answer.
    pub fn lane_is_open(&self, submitter: SubmitterId, lane: LaneId) -> bool {
        self.open.iter().any(|((owner, _), which)| match which {
            Which::Commit(number) => {
                *owner == submitter && self.commits[*number].request.lane == Some(lane)
            }
            Which::Read(_) => false,
        })
    }

    /// Opens the engine anew after all was answered.
    ///
    /// # Errors
    /// As of [`Recorder::drain`].
    pub fn reopen(&mut self) -> Result<(), String> {
        self.drain()?;
        self.harness.settle();
        self.harness.reopen();
        self.coverage.note("reopen");
        self.epoch += 1;
        Ok(())
    }

    /// Kills the engine; open requests stay without an answer.
    pub fn crash(&mut self) -> Supported {
        let supported = self.harness.crash();
        if supported == Supported::Done {
            self.coverage.note("crash");
            self.open.clear();
            self.epoch += 1;
        }
        supported
    }

    fn submit(&mut self, submitter: SubmitterId, request: Request, which: Which) {
        self.tickets += 1;
        self.open.insert((submitter, Ticket(self.tickets)), which);
        self.harness.submit(submitter, request, Ticket(self.tickets));
    }

    fn asked<R>(&mut self, submitter: SubmitterId, request: R, resumes: u32) -> Asked<R> {
        self.events += 1;
        Asked {
            submitter,
            request,
            submitted: self.events,
            submitted_ms: self.harness.now_ms(),
            epoch: self.epoch,
            resumes,
            answered: None,
        }
    }
}

/// The marker of a commit.
pub(super) fn marker(number: usize) -> Bytes {
    let mut key = MARKERS.to_vec();
    key.extend_from_slice(&(number as u64).to_be_bytes());
    key.into()
}

fn name_of(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Committed(_) => "committed",
        Outcome::Conflict => "conflict",
        Outcome::TooOld => "too-old",
        Outcome::Throttled => "throttled",
        Outcome::Unknown(InFlight::No) => "unknown-no",
        Outcome::Unknown(InFlight::Maybe) => "unknown-maybe",
        Outcome::LaneStopped => "lane-stopped",
        Outcome::TooLarge => "too-large",
        Outcome::Unavailable => "unavailable",
        Outcome::Fatal => "fatal",
        Outcome::Rows(_) => "rows",
    }
}
