//! What the accounts have decided about a user, carried out at the user's owner.
//!
//! ```text
//!  Decision ─▶ live sessions and waiting calls end now ─▶ rows, if any, are stored ─▶ Done
//! ```
//!
//! A decision may come twice, late, or after a newer one; carrying it out again changes nothing.

use chatring_wire::frame::Failure;
use chatring_wire::{DeviceId, ErrorCode, Uid};

use crate::call::{Answer, CallId, Decision};
use crate::effect::Identity;
use crate::keys;
use crate::kv::Write;
use crate::sabotage::Break;
use crate::session::BUSY_RETRY_MS;
use crate::shard::{Shard, Tag};
use crate::values::DeviceStanding;

/// Whose sessions and calls end.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Device(DeviceId),
    AllDevices,
}

/// Whether the user's rows are those of the user that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Yes,
    /// There is no user under this id.
    Nobody,
    /// The id belongs to another user.
    Another,
}

impl Shard {
    /// Whom the rows of a user, which are in memory, belong to.
    pub(crate) fn known(&self, uid: Uid, identity: &Identity) -> Known {
        let rows = self.users.get(&uid).and_then(|user| user.rows.as_ref());
        match rows.and_then(|rows| rows.user.as_ref()) {
            Some(row) if row.issuer == identity.issuer && row.subject == identity.subject => {
                Known::Yes
            }
            Some(_) => Known::Another,
            None => Known::Nobody,
        }
    }

    /// Carries a decision out. The user's rows are in memory, and are its own.
    pub(crate) fn carry_out(&mut self, call: CallId, uid: Uid, decision: Decision) {
        let store = self.ready().store;
        let breaks = self.config.breaks;
        let has_room = self.lane.as_ref().is_some_and(|lane| lane.has_room());
        let Some(rows) = self.users.get_mut(&uid).and_then(|user| user.rows.as_mut()) else {
            return self.answer_call(call, Err(Failure::new(ErrorCode::Internal)));
        };
        let stores = !matches!(decision, Decision::DeviceSignedOut { .. });
        let (whose, issued_at_s_max, write) = match decision {
            Decision::DeviceSignedOut { installation, at_s } => {
                // A device that is not known has nothing that could end.
                let device = rows.devices.of(installation).map(|(device, _)| device);
                (device.map(Whose::Device), at_s, None)
            }
            Decision::DeviceRemoved { installation } => {
                let device = rows.devices.of(installation).map(|(device, _)| device);
                let row = device.and_then(|device| rows.devices.get_mut(device));
                let row = row.filter(|row| has_room && row.standing == DeviceStanding::Active);
                let write = device.zip(row).map(|(device, row)| {
                    row.standing = DeviceStanding::Revoked;
                    row.write(keys::device(uid, device), store)
                });
                let write = write.filter(|_| !breaks.has(Break::RemovalForgotten));
                let device = device.filter(|_| !breaks.has(Break::RemovedGoesOn));
                (device.map(Whose::Device), u64::MAX - 1, write)
            }
            Decision::Relation(relation) => return self.relate(call, uid, relation),
            Decision::AccountDeleted { at_s } => {
                let before_s = at_s.saturating_add(1);
                let row = rows.user.as_mut();
                let row = row.filter(|row| has_room && row.revoked_before_s < before_s);
                let write = row.map(|row| {
                    row.revoked_before_s = before_s;
                    row.write(keys::user(uid), store)
                });
                (Some(Whose::AllDevices), at_s, write)
            }
        };
        if let Some(whose) = whose {
            self.end_live(uid, whose, issued_at_s_max);
        }
        if !stores {
            return self.answer_call(call, Ok(Answer::Done));
        }
        let writes: Vec<Write> = write.into_iter().collect();
        // Without a row, too: what this relies on may be an earlier decision's that is in the lane.
        if !has_room || self.append(writes, Tag::Decided(call)).is_err() {
            let failure = Failure::new(ErrorCode::Busy).retry_after(BUSY_RETRY_MS);
            self.answer_call(call, Err(failure));
        }
    }

    pub(crate) fn decision_stored(&mut self, call: CallId) {
        self.answer_call(call, Ok(Answer::Done));
    }

    /// Ends live sessions, and the calls that wait, whose tokens were not made later than that.
    fn end_live(&mut self, uid: Uid, whose: Whose, issued_at_s_max: u64) {
        let ends = |device: DeviceId, issued_at_s: u64| {
            let meant = match whose {
                Whose::Device(one) => device == one,
                Whose::AllDevices => true,
            };
            meant && issued_at_s <= issued_at_s_max
        };
        let Some(user) = self.users.get(&uid) else { return };
        let session_ends = |id: &_| {
            let session = self.sessions.get(id);
            session.is_some_and(|session| ends(session.device, session.token.issued_at_s))
        };
        let sessions: Vec<_> = user.sessions.iter().copied().filter(session_ends).collect();
        for session in sessions {
            self.counters.sessions_ended += 1;
            self.close_with(session, Failure::new(ErrorCode::RevokedToken));
        }
        self.end_waiting_calls(uid, ends);
    }
}
