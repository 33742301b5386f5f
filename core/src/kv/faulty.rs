//! Puts faults between submitters and an engine, from a seed.
//!
//! A [`Faulty`] carries nothing itself: requests go in and come out for the engine, the engine's
//! answers go in and come out for the submitters. Every fault is one that FoundationDB or a busy
//! machine has: refusals without effect, commits whose outcome is lost before or after they
//! happened, commits that land after their submitter was told that they may (checked for conflicts
//! only when they land), and delays. The order within lanes holds throughout: a commit whose fault
//! is an answer waits for the lane's earlier ones, and the later ones wait for it.

mod kinds;

use std::collections::{BTreeMap, VecDeque};

use super::mem::{MemStore, SubmitterId};
use super::prng::Prng;
use super::{Commit, Completion, InFlight, LaneId, Outcome, Read, ReadVersion, Request, Ticket};

pub use kinds::{FaultCounts, FaultKind, FaultRates};

/// What the wrapper wants its engine to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToEngine {
    /// Take a request. The ticket is the wrapper's own.
    Submit(Request, Ticket),
    /// Resume a lane.
    Resume(LaneId),
}

/// The fault wrapper. See the module's documentation.
#[derive(Clone, Debug)]
pub struct Faulty {
    rates: FaultRates,
    counts: FaultCounts,
    prng: Prng,
    now_ms: u64,
    last: u64,
    /// What the engine has been given, by the wrapper's own tickets.
    open: BTreeMap<Ticket, Open>,
    lanes: BTreeMap<(SubmitterId, LaneId), Lane>,
    timers: BTreeMap<(u64, u64), Timed>,
    to_engine: VecDeque<(SubmitterId, ToEngine)>,
    completions: VecDeque<(SubmitterId, Completion)>,
}

#[derive(Clone, Debug)]
struct Open {
    submitter: SubmitterId,
    lane: Option<LaneId>,
    answer: Answer,
}

/// What to do with the engine's answer.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Pass(Ticket),
    /// Say that nobody knows.
    Hide(Ticket),
    /// The commit landed late, its answer was given before.
    Late,
    /// Nobody is there to hear it.
    Drop,
}

#[derive(Clone, Debug)]
struct Held {
    ticket: Ticket,
    commit: Commit,
    fault: Option<FaultKind>,
    from_ms: u64,
}

#[derive(Clone, Debug, Default)]
struct Lane {
    state: LaneState,
    /// Commits that the engine has not answered.
    in_engine: usize,
    held: VecDeque<Held>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LaneState {
    #[default]
    Running,
    /// A commit whose answer will be hidden is in the engine: nothing may follow it.
    Waiting,
    Stopped,
}

#[derive(Clone, Debug)]
enum Timed {
    Lane(SubmitterId, LaneId),
    Commit(SubmitterId, Held),
    Read(SubmitterId, Read, Ticket),
    Land(SubmitterId, Commit),
    Answer(SubmitterId, Completion),
}

impl Faulty {
    /// A wrapper whose faults the seed determines.
    pub fn new(seed: u64, rates: FaultRates) -> Faulty {
        Faulty {
            rates,
            counts: FaultCounts::default(),
            prng: Prng::new(seed),
            now_ms: 0,
            last: 0,
            open: BTreeMap::new(),
            lanes: BTreeMap::new(),
            timers: BTreeMap::new(),
            to_engine: VecDeque::new(),
            completions: VecDeque::new(),
        }
    }

    /// Changes what happens how often, from the next request on.
    pub fn set_rates(&mut self, rates: FaultRates) {
        self.rates = rates;
    }

    /// The faults that have happened.
    pub fn counts(&self) -> &FaultCounts {
        &self.counts
    }

    /// Takes a request.
    pub fn submit(&mut self, submitter: SubmitterId, request: Request, ticket: Ticket) {
        match request {
            Request::Read(read) => self.submit_read(submitter, read, ticket),
            Request::Commit(commit) => self.submit_commit(submitter, commit, ticket),
        }
    }

    /// Lets a stopped lane go on.
    pub fn resume(&mut self, submitter: SubmitterId, lane: LaneId) {
        if let Some(state) = self.lanes.get_mut(&(submitter, lane)) {
            state.state = LaneState::Running;
        }
        self.to_engine.push_back((submitter, ToEngine::Resume(lane)));
        self.pump(submitter, lane);
    }

    /// Takes an answer of the engine.
    pub fn completed(&mut self, completion: Completion) {
        let Some(open) = self.open.remove(&completion.ticket) else { return };
        let outcome = completion.outcome;
        if let Answer::Late = open.answer {
            self.counts.note_landing(&outcome);
        }
        let told = match (open.answer, outcome) {
            (Answer::Hide(ticket), outcome)
                if !matches!(outcome, Outcome::LaneStopped | Outcome::Fatal) =>
            {
                self.counts.note(FaultKind::UnknownAfter);
                Some((ticket, Outcome::Unknown(InFlight::No)))
            }
            (Answer::Hide(ticket) | Answer::Pass(ticket), outcome) => Some((ticket, outcome)),
            (Answer::Late | Answer::Drop, _) => None,
        };
        let committed = matches!(told, Some((_, Outcome::Committed(_))));
        if let Some((ticket, outcome)) = told {
            self.tell(open.submitter, ticket, outcome);
        }
        if let Some(lane) = open.lane {
            self.leave_engine(open.submitter, lane, committed);
        }
    }

    /// Tells the time; what was waiting for it happens.
    pub fn advance(&mut self, now_mono_ms: u64) {
        self.now_ms = self.now_ms.max(now_mono_ms);
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > self.now_ms {
                break;
            }
            match entry.remove() {
                Timed::Lane(submitter, lane) => self.pump(submitter, lane),
                Timed::Commit(submitter, held) => self.act(submitter, held),
                Timed::Read(submitter, read, ticket) => {
                    self.pass(submitter, None, Request::Read(read), Answer::Pass(ticket));
                }
                Timed::Land(submitter, commit) => {
                    self.pass(submitter, None, Request::Commit(commit), Answer::Late);
                }
                Timed::Answer(submitter, completion) => {
                    self.completions.push_back((submitter, completion));
                }
            }
        }
    }

    /// When something that waits will happen, on the monotonic clock.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.timers.first_key_value().map(|((at_ms, _), _)| *at_ms)
    }

    /// The next thing for the engine to do.
    pub fn poll_engine(&mut self) -> Option<(SubmitterId, ToEngine)> {
        self.to_engine.pop_front()
    }

    /// The next answer for a submitter.
    pub fn poll_completion(&mut self) -> Option<(SubmitterId, Completion)> {
        self.completions.pop_front()
    }

    /// Carries requests to a reference engine and its answers back.
    pub fn carry(&mut self, store: &mut MemStore) {
        loop {
            while let Some((submitter, wish)) = self.poll_engine() {
                match wish {
                    ToEngine::Submit(request, ticket) => store.submit(submitter, request, ticket),
                    ToEngine::Resume(lane) => store.resume(submitter, lane),
                }
            }
            let Some((_, completion)) = store.poll_completion() else { break };
            self.completed(completion);
        }
    }

    /// The process that held engine and wrapper is gone: all that is open is forgotten.
    pub fn crash(&mut self) {
        self.open.clear();
        self.lanes.clear();
        self.timers.clear();
        self.to_engine.clear();
        self.completions.clear();
    }

    /// A submitter is gone: what it has not sent yet is forgotten, what is on its way may land.
    pub fn forget(&mut self, submitter: SubmitterId) {
        for open in self.open.values_mut().filter(|open| open.submitter == submitter) {
            if !matches!(open.answer, Answer::Late) {
                (open.answer, open.lane) = (Answer::Drop, None);
            }
        }
        self.lanes.retain(|(owner, _), _| *owner != submitter);
        self.completions.retain(|(owner, _)| *owner != submitter);
        self.timers.retain(|_, timed| match timed {
            Timed::Land(..) => true,
            Timed::Lane(owner, _)
            | Timed::Commit(owner, _)
            | Timed::Read(owner, ..)
            | Timed::Answer(owner, _) => *owner != submitter,
        });
    }

    fn submit_read(&mut self, submitter: SubmitterId, read: Read, ticket: Ticket) {
        let at_version = matches!(read.version, ReadVersion::At(_));
        match self.rates.draw_read(&mut self.prng, at_version) {
            Some((fault, outcome)) => {
                self.counts.note(fault);
                self.tell(submitter, ticket, outcome);
            }
            None if self.prng.happens(self.rates.of(FaultKind::SlowRead)) => {
                self.counts.note(FaultKind::SlowRead);
                let at_ms = self.now_ms + self.delay_ms();
                self.set_timer(at_ms, Timed::Read(submitter, read, ticket));
            }
            None => self.pass(submitter, None, Request::Read(read), Answer::Pass(ticket)),
        }
    }

    fn submit_commit(&mut self, submitter: SubmitterId, commit: Commit, ticket: Ticket) {
        let fault = self.rates.draw_commit(&mut self.prng, &commit);
        let mut from_ms = self.now_ms;
        if self.prng.happens(self.rates.of(FaultKind::SlowCommit)) {
            self.counts.note(FaultKind::SlowCommit);
            from_ms += self.delay_ms();
        }
        let lane = commit.lane;
        let held = Held { ticket, commit, fault, from_ms };
        match lane {
            None if from_ms > self.now_ms => {
                self.set_timer(from_ms, Timed::Commit(submitter, held));
            }
            None => self.act(submitter, held),
            Some(lane) => {
                self.lanes.entry((submitter, lane)).or_default().held.push_back(held);
                self.set_timer(from_ms, Timed::Lane(submitter, lane));
                self.pump(submitter, lane);
            }
        }
    }

    /// Does with the lane's held commits what can be done now.
    fn pump(&mut self, submitter: SubmitterId, lane: LaneId) {
        while let Some(state) = self.lanes.get_mut(&(submitter, lane)) {
            let Some(front) = state.held.front() else { break };
            if state.state == LaneState::Stopped {
                let ticket = front.ticket;
                state.held.pop_front();
                self.tell(submitter, ticket, Outcome::LaneStopped);
                continue;
            }
            let answers_itself = front.fault.is_some_and(|fault| fault != FaultKind::UnknownAfter);
            let early = front.from_ms > self.now_ms || (answers_itself && state.in_engine > 0);
            if early || state.state == LaneState::Waiting {
                break;
            }
            let Some(held) = state.held.pop_front() else { break };
            match held.fault {
                None => state.in_engine += 1,
                Some(FaultKind::UnknownAfter) => {
                    state.in_engine += 1;
                    state.state = LaneState::Waiting;
                }
                Some(_) => state.state = LaneState::Stopped,
            }
            self.act(submitter, held);
        }
    }

    /// Carries out one commit with its fault.
    fn act(&mut self, submitter: SubmitterId, held: Held) {
        let Held { ticket, mut commit, fault, .. } = held;
        let lane = commit.lane;
        match fault {
            None => self.pass(submitter, lane, Request::Commit(commit), Answer::Pass(ticket)),
            Some(FaultKind::UnknownAfter) => {
                self.pass(submitter, lane, Request::Commit(commit), Answer::Hide(ticket));
            }
            Some(fault) => {
                self.counts.note(fault);
                self.tell(submitter, ticket, fault.outcome());
                if fault == FaultKind::UnknownLate {
                    commit.lane = None;
                    let at_ms = self.now_ms + self.prng.below(self.rates.late_ms_max + 1);
                    self.set_timer(at_ms, Timed::Land(submitter, commit));
                }
            }
        }
    }

    fn pass(
        &mut self,
        submitter: SubmitterId,
        lane: Option<LaneId>,
        request: Request,
        answer: Answer,
    ) {
        self.last += 1;
        self.open.insert(Ticket(self.last), Open { submitter, lane, answer });
        self.to_engine.push_back((submitter, ToEngine::Submit(request, Ticket(self.last))));
    }

    fn leave_engine(&mut self, submitter: SubmitterId, lane: LaneId, committed: bool) {
        let Some(state) = self.lanes.get_mut(&(submitter, lane)) else { return };
        state.in_engine = state.in_engine.saturating_sub(1);
        if !committed {
            state.state = LaneState::Stopped;
        }
        self.pump(submitter, lane);
    }

    /// Gives an answer, now or later.
    fn tell(&mut self, submitter: SubmitterId, ticket: Ticket, outcome: Outcome) {
        let completion = Completion { ticket, outcome };
        if self.prng.happens(self.rates.of(FaultKind::SlowAnswer)) {
            self.counts.note(FaultKind::SlowAnswer);
            let at_ms = self.now_ms + self.delay_ms();
            self.set_timer(at_ms, Timed::Answer(submitter, completion));
        } else {
            self.completions.push_back((submitter, completion));
        }
    }

    fn delay_ms(&mut self) -> u64 {
        1 + self.prng.below(self.rates.delay_ms_max)
    }

    fn set_timer(&mut self, at_ms: u64, timed: Timed) {
        self.last += 1;
        self.timers.insert((at_ms, self.last), timed);
    }
}

#[cfg(test)]
mod tests;
