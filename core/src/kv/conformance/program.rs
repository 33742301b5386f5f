//! Random programs of several clients.

use bytes::Bytes;

use super::judge::judge;
use super::record::Recorder;
use super::{Coverage, Harness};
use crate::kv::mem::SubmitterId;
use crate::kv::prng::Prng;
use crate::kv::{
    Class, Commit, KeyRange, LaneId, Order, Outcome, RangeRead, Read, ReadVersion, VALUE_BYTES_MAX,
    Version, Write,
};

/// How much a program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramSize {
    /// Clients, each a submitter with two lanes.
    pub clients: u32,
    /// Steps of all of them together.
    pub steps: u32,
    /// Chance in a thousand that a step opens the engine anew, cleanly or after a kill.
    pub restarts_per_mille: u16,
}

impl Default for ProgramSize {
    fn default() -> ProgramSize {
        ProgramSize { clients: 3, steps: 200, restarts_per_mille: 10 }
    }
}

/// Most commits that a client has open in a lane.
const LANE_OPEN_MAX: u64 = 4;
const KEYS: u64 = 10;

/// Runs the program of a seed on an engine that is empty at its start, and judges every answer.
///
/// # Errors
/// The first rule that was broken, with the requests concerned.
pub fn run_program<H: Harness>(
    harness: &mut H,
    seed: u64,
    size: ProgramSize,
) -> Result<Coverage, String> {
    let mut program = Program { prng: Prng::new(seed), recorder: Recorder::new(harness), size };
    let outcome = program.run().and_then(|()| judge(&mut program.recorder));
    outcome.map_err(|broken| format!("seed {seed}: {broken}"))?;
    Ok(program.recorder.coverage)
}

struct Program<'h, H> {
    prng: Prng,
    recorder: Recorder<'h, H>,
    size: ProgramSize,
}

impl<H: Harness> Program<'_, H> {
    fn run(&mut self) -> Result<(), String> {
        for _ in 0..self.size.steps {
            if self.prng.happens(self.size.restarts_per_mille) {
                if self.prng.happens(500) {
                    self.recorder.crash();
                } else {
                    self.recorder.reopen()?;
                }
            }
            let submitter = SubmitterId(self.number(u64::from(self.size.clients)));
            match self.prng.below(10) {
                0..=4 => self.commit_some(submitter),
                5..=7 => self.read_some(submitter),
                8 => {
                    self.recorder.wait()?;
                }
                _ => {
                    let ms = self.prng.below(20);
                    self.recorder.harness.advance(ms);
                }
            }
        }
        self.recorder.drain()
    }

    fn commit_some(&mut self, submitter: SubmitterId) {
        let lane = match self.number(4) {
            0 | 1 => None,
            lane => Some(LaneId(u16::try_from(lane).unwrap_or_default())),
        };
        if let Some(lane) = lane
            && !self.recorder.lane_is_open(submitter, lane)
        {
            self.recorder.resume(submitter, lane);
        }
        for _ in 0..1 + self.prng.below(LANE_OPEN_MAX) {
            let commit = self.random_commit(lane);
            self.recorder.commit(submitter, commit);
        }
    }

    fn random_commit(&mut self, lane: Option<LaneId>) -> Commit {
        let writes = (0..1 + self.prng.below(4)).map(|_| self.random_write()).collect();
        let read_version = self.known_version().filter(|_| self.prng.happens(600));
        let conflicts = match read_version {
            None => Vec::new(),
            Some(_) if self.prng.happens(300) => vec![self.random_range()],
            Some(_) => vec![KeyRange::key(&self.random_key())],
        };
        let class = if self.prng.happens(300) { Class::Background } else { Class::Interactive };
        Commit { lane, class, read_version, conflicts, writes }
    }

    fn random_write(&mut self) -> Write {
        let key = self.random_key();
        match self.prng.below(40) {
            0..=19 => {
                let value = self.prng.next_u64().to_be_bytes().to_vec().into();
                Write::Set { key, value }
            }
            20..=27 => {
                let offset = self.number(6);
                let value = vec![7; offset as usize + 10 + self.number(3) as usize].into();
                Write::SetStamped { key, value, offset }
            }
            28..=34 => Write::Clear { key },
            35..=38 => Write::ClearRange(self.random_range()),
            _ => Write::Set { key, value: vec![0; VALUE_BYTES_MAX + 1].into() },
        }
    }

    fn read_some(&mut self, submitter: SubmitterId) {
        let gets = (0..self.prng.below(3)).map(|_| self.random_key()).collect();
        let ranges = (0..self.prng.below(3)).map(|_| self.random_range_read()).collect();
        let at = self.known_version().filter(|_| self.prng.happens(300));
        let version = at.map_or(ReadVersion::Fresh, ReadVersion::At);
        self.recorder.read(submitter, Read { gets, ranges, version });
    }

    fn random_range_read(&mut self) -> RangeRead {
        let order = if self.prng.happens(500) { Order::Forward } else { Order::Reverse };
        let range = self.random_range();
        RangeRead { range, rows_max: 1 + self.number(8), bytes_max: self.number(90), order }
    }

    /// One of the versions that reads gave of late.
    fn known_version(&mut self) -> Option<Version> {
        let known =
            self.recorder.reads.iter().rev().take(8).filter_map(|asked| match &asked.answered {
                Some((_, Outcome::Rows(rows))) => Some(rows.version),
                _ => None,
            });
        let known: Vec<_> = known.collect();
        let at = self.prng.below(known.len() as u64);
        known.get(usize::try_from(at).ok()?).copied()
    }

    fn random_range(&mut self) -> KeyRange {
        KeyRange { start: self.random_key(), end: self.random_key() }
    }

    fn random_key(&mut self) -> Bytes {
        format!("k{}", self.prng.below(KEYS)).into()
    }

    fn number(&mut self, bound: u64) -> u32 {
        u32::try_from(self.prng.below(bound)).expect("bounds are small")
    }
}
