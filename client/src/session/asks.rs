//! Requests of the application other than sends, kept until they are answered.

use std::collections::BTreeMap;

use chatring_wire::frame::{Direction, RangeRequest, RequestId, SignOutScope, UserRef};
use chatring_wire::{Cid, ClientFrame, Seq};

use super::config::Millis;
use super::event::{OpenError, Ticket};
use super::limits;

/// Open requests of the application.
#[derive(Debug, Default)]
pub(super) struct Asks {
    open: BTreeMap<Ticket, (Ask, Stage)>,
    next_ticket: u64,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Ask {
    Open(UserRef),
    Read { cid: Cid, from: Seq, to: Seq, direction: Direction },
    Members(Cid),
    SignOut(SignOutScope),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waits(Millis),
    Asked,
}

impl Asks {
    pub fn push(&mut self, ask: Ask) -> Result<Ticket, OpenError> {
        if self.open.len() >= limits::ASKS_MAX {
            return Err(OpenError::Full);
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.open.insert(ticket, (ask, Stage::Waits(Millis(0))));
        Ok(ticket)
    }

    /// The connection is gone: ask everything again.
    pub fn reset(&mut self) {
        for (_, stage) in self.open.values_mut() {
            *stage = Stage::Waits(Millis(0));
        }
    }

    /// The next one to put on the wire.
    pub fn next(&mut self, now: Millis, request: RequestId) -> Option<(Ticket, ClientFrame)> {
        let due = |stage: &Stage| matches!(stage, Stage::Waits(time) if *time <= now);
        let (ticket, (ask, stage)) = self.open.iter_mut().find(|(_, (_, stage))| due(stage))?;
        *stage = Stage::Asked;
        let frame = match ask {
            Ask::Open(with) => ClientFrame::Open { request, with: with.clone() },
            Ask::Members(cid) => ClientFrame::Who { request, cid: *cid, members: Vec::new() },
            Ask::SignOut(scope) => ClientFrame::SignOut { request, scope: *scope },
            Ask::Read { cid, from, to, direction } => ClientFrame::Range(RangeRequest {
                request,
                cid: *cid,
                from: *from,
                to: *to,
                limit: 0,
                direction: *direction,
            }),
        };
        Some((*ticket, frame))
    }

    pub fn next_time(&self) -> Option<Millis> {
        let time = |stage: &Stage| match stage {
            Stage::Waits(time) => Some(*time),
            Stage::Asked => None,
        };
        self.open.values().filter_map(|(_, stage)| time(stage)).min()
    }

    /// Ask this one again at that time.
    pub fn requeue(&mut self, ticket: Ticket, at: Millis) {
        if let Some((_, stage)) = self.open.get_mut(&ticket) {
            *stage = Stage::Waits(at);
        }
    }

    pub fn remove(&mut self, ticket: Ticket) -> bool {
        self.open.remove(&ticket).is_some()
    }
}
