//! Sends without a base: a row for each keeps its client message id for as long as its message.
//!
//! The row is written with the message. A send that the map of recent messages does not know reads
//! it first, and counts as new if there is none and no message came meanwhile that the map has
//! forgotten again.

use bytes::Bytes;
use chatring_wire::ErrorCode;
use chatring_wire::Seq;
use chatring_wire::frame::Row;

use crate::call::Again;
use crate::channel::{ChannelSlot, Checked};
use crate::effect::{SendAnswer, SendRequest};
use crate::keys;
use crate::kv::{Read, ReadVersion, Rows, Write};
use crate::shard::{Asker, Shard};
use crate::values::SentRow;

/// Rows that one read asks for: few enough that the readers share those of a turn.
const LOOK_UPS_PER_READ_MAX: usize = 64;

/// A send whose row is being read.
#[derive(Clone, Debug)]
pub(crate) struct LookUp {
    request: SendRequest,
    /// Up to here the read sees every row.
    stored: Seq,
}

impl Shard {
    /// Looks whether a send without a base was stored before. Others pass it meanwhile.
    pub(crate) fn look_up(&mut self, request: SendRequest) {
        let Some(ChannelSlot::Loaded(channel)) = self.channels.get(&request.cid) else { return };
        self.counters.sends_looked_up += 1;
        let stored = channel.stored_head();
        self.look_ups.push(LookUp { request, stored });
    }

    /// Reads what a turn wants to know of its sends, together: to ask costs as much as to know.
    pub(crate) fn read_look_ups(&mut self) {
        while !self.look_ups.is_empty() {
            let rest = self.look_ups.split_off(self.look_ups.len().min(LOOK_UPS_PER_READ_MAX));
            let look_ups = std::mem::replace(&mut self.look_ups, rest);
            let gets = look_ups.iter().map(|LookUp { request, .. }| {
                keys::sent(request.cid, request.uid, request.device, request.cmid)
            });
            let gets = gets.collect();
            let read = Read { gets, ranges: Vec::new(), version: ReadVersion::Fresh };
            self.read(Asker::LookUps(look_ups), read);
        }
    }

    pub(crate) fn looked_up(&mut self, look_ups: Vec<LookUp>, rows: Rows) {
        debug_assert_eq!(look_ups.len(), rows.gets.len());
        for (look_up, row) in look_ups.into_iter().zip(rows.gets) {
            self.looked_up_one(look_up, row);
        }
    }

    fn looked_up_one(&mut self, look_up: LookUp, row: Option<Bytes>) {
        let LookUp { request, stored } = look_up;
        let row = match row.map(SentRow::decode).transpose() {
            Ok(row) => row,
            Err(error) => {
                self.note_damage(error);
                return self.refuse(&request, ErrorCode::Internal);
            }
        };
        if let Some(SentRow { seq, time_ms, print }) = row {
            self.counters.sends_repeated += 1;
            let answer = if print == SentRow::print(request.kind, &request.body) {
                SendAnswer::Stored { seq, time_ms, again: Again::Repeat }
            } else {
                SendAnswer::Refused { code: ErrorCode::CmidReused, retry_after_ms: None }
            };
            return self.answer(request.uid, request.origin, request.cid, answer);
        }
        match self.channels.get(&request.cid) {
            Some(ChannelSlot::Loaded(channel)) if channel.remembers_above(stored) => {
                self.take_send(request, Checked::UpToTheMap);
            }
            // A copy of it may have come and be forgotten since the read.
            Some(_) | None => self.channel_send(request),
        }
    }
}

/// The row that keeps the client message id of a send.
pub(crate) fn sent_row(request: &SendRequest, row: &Row) -> Write {
    let SendRequest { cid, uid, device, cmid, kind, ref body, .. } = *request;
    let print = SentRow::print(kind, body);
    let value = SentRow { seq: row.seq, time_ms: row.time_ms, print }.encode();
    Write::Set { key: keys::sent(cid, uid, device, cmid), value }
}
